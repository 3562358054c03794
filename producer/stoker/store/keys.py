"""Every key of a queue, made here alone. All share one hash tag, so that a queue lies on one node of a cluster."""

from __future__ import annotations


class Keys:
    """The names of one queue's keys; `PROTOCOL.md` of the scheduler gives each one's shape and life."""

    def __init__(self, queue: str) -> None:
        """Name the keys of `queue`, a name that `check_name` has passed, or of the shard with this tag."""
        self.prefix = f"stoker:{{{queue}}}:"
        self.card = f"{self.prefix}card"
        self.generation = f"{self.prefix}generation"
        self.bell = f"{self.prefix}bell"
        self.inc = f"{self.prefix}inc"
        self.beats = f"{self.prefix}beats"
        self.credit = f"{self.prefix}credit"
        self.quarantine = f"{self.prefix}quarantine"
        self.shards = f"{self.prefix}shards"
        self.leader = f"{self.prefix}leader"
        self.delayed = f"{self.prefix}delayed"
        self.deadlines = f"{self.prefix}deadlines"
        self.dead_letters = f"{self.prefix}dead"
        self.counts = f"{self.prefix}counts"
        self.histograms = f"{self.prefix}histograms"
        self.answers = f"{self.prefix}answers"
        self.rates = f"{self.prefix}rates"
        self.sheddable = f"{self.prefix}sheddable"
        self.tenants = f"{self.prefix}tenants"
        self.events = f"{self.prefix}events"
        self.batches = f"{self.prefix}batches"
        self.lapses = f"{self.prefix}lapses"
        self.active = f"{self.prefix}active"

    def lane(self, name: str) -> str:
        """The waiting requests of one class, of one tenant in it (`<class>:<tenant>`), or the suspects."""
        return f"{self.prefix}lane:{name}"

    def payload(self, request_id: str) -> str:
        """What the client sent."""
        return f"{self.prefix}payload:{request_id}"

    def flight(self, request_id: str) -> str:
        """What the scripts know of a request since its first dispatch."""
        return f"{self.prefix}flight:{request_id}"

    def result(self, request_id: str) -> str:
        """How a request ended."""
        return f"{self.prefix}result:{request_id}"

    def dead(self, request_id: str) -> str:
        """A dead letter."""
        return f"{self.prefix}dead:{request_id}"

    def work(self, inc: str) -> str:
        """What an incarnation holds."""
        return f"{self.prefix}work:{inc}"

    def stream(self, inc: str) -> str:
        """An incarnation's doorbells."""
        return f"{self.prefix}stream:{inc}"

    def void(self, inc: str) -> str:
        """Why an incarnation may not come back."""
        return f"{self.prefix}void:{inc}"

    def obituary(self, inc: str) -> str:
        """How an incarnation's child ended, for the requests that it is blamed on."""
        return f"{self.prefix}obituary:{inc}"

    def reply(self, client: str) -> str:
        """The wake-ups of one client."""
        return f"{self.prefix}reply:{client}"

    def tokens(self, request_id: str, nonce: str) -> str:
        """The published tokens of one life of a streaming request."""
        return f"{self.prefix}tokens:{request_id}:{nonce}"

    def batch(self, batch_id: str) -> str:
        """The record of a batch file."""
        return f"{self.prefix}batch:{batch_id}"

    def batch_files(self, batch_id: str) -> str:
        """How long the files are that a batch keeps in Redis."""
        return f"{self.prefix}files:{batch_id}"

    def batch_file(self, batch_id: str, name: str) -> str:
        """One of these files."""
        return f"{self.prefix}file:{batch_id}:{name}"
