"""One run of one batch: lines in, requests out, answers into its files, until all is done or it is to stop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from threading import Event
from typing import Any, BinaryIO

import structlog

from stoker import _flows
from stoker._link import Link
from stoker.batch import parts
from stoker.batch.checkpoint import Checkpoint, Tally
from stoker.batch.flight import Flight
from stoker.batch.format import Defaults, Entry, Parser, Problem, answer_line, code_of, custom_id_of, error_line
from stoker.batch.lease import Lease, LeaseLost
from stoker.batch.ledger import Ledger, numbers
from stoker.batch.place import place_of
from stoker.batch.retried import Retried
from stoker.batch.seen import SeenIds
from stoker.batch.source import count_lines, lines
from stoker.batch.spec import Spec
from stoker.config import Config
from stoker.errors import InvalidRequest, RedisUnavailable, RequestExpired, RequestFailed, StokerError
from stoker.request import InferenceResponse, RequestPriority
from stoker.store.reads import Card

log = structlog.get_logger()

COMMIT_S = 1.0
COMMIT_BYTES = 8 << 20
LOOK_S = 2.0
WAIT_S = 0.05
ENDING_S = 10.0
"""How long a cancelled batch waits for answers that were there before it was cancelled."""

SPAN = 32_768
"""How far the newest line taken may be above the oldest that is not done: what bounds a run's memory."""

CODES = {"cancelled": "batch_cancelled", "expired": "batch_expired"}
WORDS = {
    "batch_cancelled": "the batch was cancelled before this request was done",
    "batch_expired": "the batch's window ended before this request was done",
}


def run_batch(config: Config, batch_id: str, stop: Event) -> str:
    """Run a batch if nobody else does; gives the state it is left in, or `not run`, or `lost` to another run.

    Setting `stop` makes it leave the batch to its next run. Raises `RedisUnavailable`.
    """
    lease = Lease(config, batch_id)
    leased = lease.take()
    if leased is None:
        return "not run"
    spec = Spec.from_dict(json.loads(leased.spec))
    try:
        try:
            with Run(config, spec, lease, leased.round, stop) as run:
                state = run.work()
        except (OSError, StokerError) as error:
            if isinstance(error, LeaseLost | RedisUnavailable):
                raise
            log.error("batch failed", batch=batch_id, reason=str(error))
            lease.end("failed", str(error))
            return "failed"
        lease.end(state)
        if state == "completed" and not run.failed:
            # Nothing is left to retry. Only now: a run that died before this would begin from nothing.
            run.place.clear()
        return state
    except LeaseLost:
        log.warning("batch lost to another run", batch=batch_id)
        return "lost"
    finally:
        lease.close()


class Run:
    """A batch, from its last checkpoint on.

    1. Reads lines, skips what is done, and sends what can be sent: so much that idle GPUs find work, and no more.
    2. Writes answers and errors as they come; each second makes them safe and says so in a checkpoint.
    3. In the end, or when the batch is cancelled or its window is over, writes a line for whatever has none, and makes
       one output file and one errors file of it all.
    """

    def __init__(self, config: Config, spec: Spec, lease: Lease, number: int, stop: Event) -> None:
        """Prepare round `number` of the batch."""
        self._config = config
        self._spec = spec
        self._lease = lease
        self._stop = stop
        self._opened = ExitStack()
        self.place = place_of(spec, config, lambda: lease.left_s)
        """Where the batch lies."""
        self._opened.callback(self.place.close)
        self._files = self.place.files
        self._links = [Link(shard) for shard in config.each()]
        for link in self._links:
            self._opened.callback(link.close)
        self._flight = Flight(self._links, spec.max_in_flight or config.batch_in_flight)
        self._began = self._first_checkpoint(number)
        self._tally = Tally.from_dict(self._began.tally)
        self._ledger = Ledger(self._began.number, self._began.offset, numbers(self._began.done))
        self._writer = parts.Writer(self._files, lease.epoch, self._began)
        self._retried = Retried.of(self._files, self._began.round) if self._began.round else None
        self._exhausted = False
        self._committed_at = self._looked_at = time.monotonic()
        self._ended_before = self._tally.succeeded + self._tally.failed

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @property
    def failed(self) -> int:
        """How many lines have an error."""
        return self._tally.failed

    # --- beginning --------------------------------------------------------------------------------------------------

    def _first_checkpoint(self, number: int) -> Checkpoint:
        """Return what this run goes on from: the last checkpoint, which a new round turns over."""
        stat = self.place.stamp()
        last = parts.last_checkpoint(self._files)
        if last is None:
            with self.place.open_input() as file:
                return Checkpoint(round=number, total=count_lines(file), input=stat)
        if last.input != stat:
            raise StokerError(f"{self._spec.source} was changed since the batch began; its lines cannot be told apart")
        if last.round >= number:
            return last
        if not last.finished:
            raise StokerError(f"the files of round {last.round} are not whole, so that it cannot be retried")
        Retried.mark(self._files, number, last)
        tally = Tally.from_dict(last.tally)
        tally.errors.clear()
        return Checkpoint(round=number, outputs=last.outputs, tally=tally.to_dict(), total=last.total, input=last.input)

    def _open(self) -> None:
        """Open what only a run that still has lines needs."""
        file = self.place.open_input()
        self._opened.callback(file.close)
        if self._ledger.number > 1 and not self.place.ids.exists():
            self._see_again(file)
        self._seen = SeenIds(self.place.ids, self._began.total)
        self._opened.callback(self._seen.close)
        place = {"number": self._ledger.number, "offset": self._ledger.offset}
        self._lines = lines(file, self._config.batch_line_bytes, **place)

    def _see_again(self, file: BinaryIO) -> None:
        """Make the table of custom ids before the checkpoint: this machine has none, or it was lost."""
        fresh = self.place.ids.with_name(f"{parts.IDS}.new-{os.getpid()}")
        with closing(SeenIds(fresh, self._began.total)) as seen:
            for line in lines(file, self._config.batch_line_bytes):
                if line.number >= self._ledger.number:
                    break
                if line.data is not None and (custom_id := custom_id_of(line.data, line.number, self._spec.kind)):
                    seen.first(custom_id, line.number)
            seen.sync()
        fresh.replace(self.place.ids)

    def _make_parser(self, defaults: Defaults) -> Parser:
        spec = self._spec
        return Parser(
            source=spec.source,
            batch=spec.id,
            round=self._began.round,
            kind=spec.kind,
            priority=RequestPriority(spec.priority),
            defaults=defaults,
            any_model=spec.any_model,
        )

    def _defaults(self) -> Defaults | None:
        """Return the defaults of this batch: fixed when its first request is made, for an id has one content.

        None while no worker has said what model the queue serves.
        """
        if kept := self._files.get(parts.DEFAULTS):
            return Defaults(**json.loads(kept))
        card = self._card()
        if card is None:
            return None
        defaults = Defaults.of(self._spec.defaults, card)
        fields = {name: getattr(defaults, name) for name in Defaults.__slots__}
        self._files.put(parts.DEFAULTS, json.dumps(fields).encode())
        return defaults

    def _card(self) -> Card | None:
        """Return the card of the queue's model, which all shards have."""
        for link in self._links:
            with suppress(RedisUnavailable):
                if card := link.drive(_flows.card(link.state), patiently=False):
                    return card
        return None

    # --- working ----------------------------------------------------------------------------------------------------

    def work(self) -> str:
        """Run to the end; returns the state that the batch is to be left in. Raises `LeaseLost`, `OSError`."""
        if self._began.finished:
            return self._publish(self._began)
        self._open()
        self._commit()
        state = self._until_known() or self._flow()
        if state in ("paused", "queued"):
            self._commit()
            return state
        if state in CODES:
            self._write_off(CODES[state])
        return self._publish(self._commit(finished=True))

    def _until_known(self) -> str:
        """Wait for the queue's first worker; gives why not to go on, empty to go on."""
        while not (state := self._turned()):
            if defaults := self._defaults():
                self._parser = self._make_parser(defaults)
                return ""
            self._lease.tell(self._progress() | {"waits_for": "a worker: the queue's model is not known yet"})
            self._stop.wait(COMMIT_S / 4)
        self._parser = self._make_parser(Defaults(self._spec.defaults))
        return state

    def _flow(self) -> str:
        """Send and collect until all is done, or until something else is wanted; gives the batch's state then."""
        while not (state := self._turned()):
            self._look()
            self._take_lines()
            for entry, error in self._flight.send():
                self._fail(entry, code_of(error), str(error), getattr(error, "field", None))
            busy = self._flight.room and not self._exhausted and self._ledger.span < SPAN
            for entry, response in self._flight.ended(0.0 if busy else WAIT_S):
                self._end(entry, response)
            if self._exhausted and not len(self._flight):
                return "completed"
            if time.monotonic() - self._committed_at >= COMMIT_S or self._writer.buffered >= COMMIT_BYTES:
                self._commit()
        return state

    def _turned(self) -> str:
        """Return the state that something outside asks for, empty to go on. Raises `LeaseLost`."""
        want = self._lease.want
        if want == "cancel":
            return "cancelled"
        if self._lease.left_s <= 0:
            return "expired"
        if want == "pause":
            return "paused"
        return "queued" if self._stop.is_set() else ""

    def _look(self) -> None:
        """Fit the window to the workers now and then."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return
        ended = self._tally.succeeded + self._tally.failed
        per_s, self._ended_before = (ended - self._ended_before) / (now - self._looked_at), ended
        self._looked_at = now
        try:
            shards = [link.drive(_flows.workers(link.state), patiently=False) for link in self._links]
        except RedisUnavailable:
            return
        rows = sum(worker.rows + worker.ahead for workers in shards for worker in workers if worker.available)
        self._flight.resize(rows, per_s)

    def _take_lines(self) -> None:
        room = self._flight.room
        if room and self._ledger.span < SPAN:
            self._flight.take(self._entries(room, self._flight.room_bytes))

    def _entries(self, most: int, most_bytes: int) -> Iterator[Entry]:
        """Give at most about so many lines and bytes that can be sent; lines that cannot are errors at once."""
        timeout = max(0.001, min(self._lease.left_s, float(self._config.max_age_s)))
        for line in self._lines:
            if not self._ledger.read(line.number, line.offset, line.size):
                continue
            if self._retried and line.number not in self._retried:
                self._ledger.done(line.number)
                continue
            parsed = self._parse(line.number, line.data, timeout)
            if isinstance(parsed, Entry):
                yield parsed
                most -= 1
                most_bytes -= parsed.size
            else:
                self._error(parsed)
            if most <= 0 or most_bytes <= 0 or self._ledger.span >= SPAN:
                return
        self._exhausted = True

    def _parse(self, number: int, data: bytes | None, timeout: float) -> Entry | Problem:
        parser = self._parser
        if data is None:
            limit = f"the line is over batch_line_bytes ({self._config.batch_line_bytes})"
            return parser.problem(number, None, "line_too_long", limit)
        parsed = parser.parse(number, data, timeout)
        if parsed.custom_id is None:
            return parsed
        first = self._seen.first(parsed.custom_id, number)
        if first == number:
            return parsed
        message = f"custom_id {parsed.custom_id!r} is that of line {first}"
        return parser.problem(number, parsed.custom_id, "duplicate_custom_id", message)

    # --- ends of lines ----------------------------------------------------------------------------------------------

    def _end(self, entry: Entry, response: InferenceResponse) -> None:
        error = response.error
        if error is None:
            try:
                line = answer_line(entry, self._parser.defaults.model, response)
            except RequestFailed as failure:  # no vector: the queue's model is another one since the batch began
                self._fail(entry, code_of(failure), str(failure))
                return
            self._writer.answer(line)
            self._tally.answered(response)
            self._ledger.done(entry.number)
        elif isinstance(error, RequestExpired) and self._lease.left_s <= 1:
            self._fail(entry, "batch_expired", WORDS["batch_expired"])
        else:
            self._fail(entry, code_of(error), str(error), getattr(error, "field", None))

    def _fail(self, entry: Entry, code: str, message: str, param: str | None = None) -> None:
        self._error(self._parser.problem(entry.number, entry.custom_id, code, message, param))

    def _error(self, problem: Problem) -> None:
        self._writer.error(error_line(self._parser.request_id(problem.number), problem))
        self._tally.errors[problem.code] += 1
        self._ledger.done(problem.number)

    def _write_off(self, code: str) -> None:
        """Keep what was answered, and write an error for every other line."""
        for entry in self._flight.cancel():
            self._fail(entry, code, WORDS[code])
        give_up = time.monotonic() + ENDING_S
        while len(self._flight) and time.monotonic() < give_up:
            for entry, response in self._flight.ended(WAIT_S):
                if response.error is None or isinstance(response.error, InvalidRequest):
                    self._end(entry, response)
                else:
                    self._fail(entry, code, WORDS[code])
        for entry in self._flight.abandon():
            self._fail(entry, code, WORDS[code])
        while not self._exhausted:
            for entry in self._entries(self._config.group, COMMIT_BYTES):
                self._fail(entry, code, WORDS[code])
            if self._writer.buffered >= COMMIT_BYTES or time.monotonic() - self._committed_at >= COMMIT_S:
                self._commit()

    # --- files ------------------------------------------------------------------------------------------------------

    def _commit(self, *, finished: bool = False) -> Checkpoint:
        """Make all that ended safe, then the checkpoint that says so. Raises `LeaseLost`, `OSError`."""
        self._lease.check()
        self._writer.flush()
        self._seen.sync()
        checkpoint = Checkpoint(
            round=self._began.round,
            number=self._ledger.number,
            offset=self._ledger.offset,
            done=tuple((first, last) for first, last in self._ledger.ranges()),
            outputs=self._writer.segments("out"),
            errors=self._writer.segments("err"),
            tally=self._tally.to_dict(),
            total=self._began.total,
            input=self._began.input,
            finished=finished,
        )
        self._writer.commit(checkpoint)
        self._committed_at = time.monotonic()
        self._lease.tell(self._progress())
        return checkpoint

    def _progress(self) -> dict[str, Any]:
        done = self._tally.succeeded + self._tally.failed
        return {"total": self._began.total, "done": done, "in_flight": len(self._flight), **self._tally.to_dict()}

    def _publish(self, checkpoint: Checkpoint) -> str:
        """Have the answers where they were asked for; gives the batch's last state."""
        self._lease.confirm()
        self.place.publish(checkpoint, self._lease.epoch, self._lease.confirm)
        self._lease.tell(self._progress())
        codes = self._tally.errors
        return next((state for state, code in CODES.items() if codes[code]), "completed")
