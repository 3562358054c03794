"""Writes docs/operating.md: runs a stack, has a worker killed and a request fail, and shows what commands say.

python docs/write_operating.py
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stoker import Client, Config
from stoker_ops import embedded

PAGE = Path(__file__).parent / "operating.md"
STOKER = (sys.executable, "-c", "from stoker.cli import main; main(prog_name='stoker')")
DEADLINE_S = 90.0

MODEL = """\
from pathlib import Path


class Reports:
    def load(self, device): ...
    def predict(self, batch):
        rows = Path("sales.csv").read_text().splitlines()
        return [f"{text}: {len(rows)} rows" for text in batch]
"""

HEAD = """\
# Operating

<!-- Written by docs/write_operating.py, which ran all of this: change that one. -->

| At 3 a.m. | Ask |
|---|---|
| Is anything wrong? | `stoker doctor`: what, and how to put it right |
| Is it slow? | `stoker top`: what waits in each class, queue time against time to first token, each worker's rate |
| Where is request X? | `stoker explain X`: where it is, what became of each attempt, what it waits for |
| Who is next? | `stoker queue preview`: the next batches; `stoker explain X`: why X is not among them, and about when |
| Does one tenant crowd out the others? | `stoker tenants list`, `stoker tenants set NAME --weight W` |
| What failed for good? | `stoker dead list`, `stoker dead show X`, `stoker dead retry X` |
| A machine must be restarted | `stoker drain NAME --wait`, then stop it |
| Which settings count here? | `stoker config show` |

Every command takes `--redis URL` and `--queue NAME` (else `STOKER_REDIS_URL` and `STOKER_QUEUE`), and most take
`--json` ([what it prints](json.md)). Exit codes: 0 ok, 1 a request failed or something was found, 2 usage, 3 Redis
unreachable, 4 no workers or out of time, 130 interrupted. None of these commands stops or slows the queue.

The workers on this page are `gpu0` and `gpu1`, with the engine `sim`.
"""

STATS = """\
`queue time` is from acceptance to the first attempt, `time to first token` and `end to end` from acceptance too.
They are of requests that succeeded since the queue began; [metrics](metrics.md) have them over time.
"""

WORKERS = """\
Each worker:

| Column | Meaning |
|---|---|
| state | `live`; `silent`: no heartbeat within the lease (3.3 heartbeats); `drained`: gets no more work |
| rows, tokens held | what it holds (`4/4+2`: two requests [ahead](concepts.md#credit)), and of how much credit |
| tokens/s | measured by the worker; by it the scheduler places |
| faults | attempts that failed through the worker's own fault; 5 within a minute open its circuit |
"""

TOP = """\
`stoker top` fills the screen and goes on until q; in a pipe, as here, it prints tables. What fills `waiting` while
rows are free is a request that no worker has room for: `explain` says so.
"""

EXPLAIN = """\
One request, from its acceptance on; and an end to it, at once wherever it is:
"""

TENANTS = """\
## Who is next

A queue `shared` whose only worker has one row, which is taken. The tenants acme and beta wait, and acme is to get twice
as much ([how they share](concepts.md#tenants)):
"""

PREVIEWED = """\
`preview` lets the scheduler's policy plan on what waits now, and forms nothing. `now` would be handed out at once;
`later` is the order in which the rest goes as workers finish what they hold. Why is `a3` not next?
"""

TURN = """\
`score` and `tenants` are the two terms of the order. `held back` names all that keeps it from a worker now: no room,
an open circuit, other tenants' turns, requests before it. `its turn` is what stands before it over the rate at which
requests ended lately, `goes to` the worker that the plan gives it to. `--json` has each as a number or a word.
"""

SETTINGS = """\
Settings come from `STOKER_<NAME>`, else from the TOML file that `STOKER_CONFIG` names ([tuning](tuning.md)):
"""

KILLED = """\
## A worker is killed

The process that runs the model of gpu0 is gone: the kernel killed it for memory, say. What ran in it goes to the
head of the queue and runs elsewhere. Nobody need do anything:
"""

RESTARTED = """\
`losses` counts workers lost under the request; it is charged no failure for that. Meanwhile gpu0 has started its
process again, as a new incarnation, and its log has a line `child died` with the cause:
"""

TRY_IT = """\
To see it for yourself, kill (`kill -9`) a process that `pgrep -f "worker --name NAME"` finds. The first is the
supervisor, and its loss is noticed after the lease of 3.3 heartbeats; its child runs the model.
"""

FAILED = """\
## A request failed

A model that reads a file, [served](engines-callable.md) in the queue `reports`, and the file is not there:

```python
{MODEL}```
""".replace("{MODEL}", MODEL)

FOUND = "It was tried three times (`STOKER_MAX_ATTEMPTS`), and is kept for a week (`STOKER_DEAD_TTL_S`). What was it?"

MENDED = "Put the file back, and try the request again. It gets a new id:"

MANY = """\
Many at once: `stoker dead retry --all --reason error`, or `--tenant`, or `--older-than 2h`; `stoker dead purge`
forgets them. Reasons are `error` (the model raised), `poison` (it took its worker down twice, alone), `worker_lost`
(it lost too many workers) and `unschedulable` (no worker could hold it). A request that was itself at fault fails
with `invalid` and is no dead letter: trying again would not help.
"""

UPGRADE = """\
## An upgrade, without a request lost

Drain a worker: it gets nothing new, and `--wait` returns when what it had is finished.
"""

UPGRADED = """\
Stop it, install the new version, and start it (`systemctl restart stoker-worker@0`): it takes work again, for a
drain holds until the worker starts anew. Then the next worker; schedulers last, the standby first. SIGTERM alone is
safe too: what does not finish within `STOKER_DRAIN_TIMEOUT_S` is handed back, uncharged.
"""

TAIL = """\
## In production

- **systemd**: [ops/systemd](../ops/systemd/README.md) has units for Redis, scheduler and workers, and how to
  install them.
- **Prometheus**: [metrics](metrics.md) has what is exported and what it answers; `ops/prometheus` scrape lists and
  alert rules.
- **Redis**: `ops/redis/redis.conf`, with a reason above each line. It must not evict (`noeviction`), or requests
  are lost.
- **Logs** go to standard error, JSON lines where that is no terminal: `journalctl -u 'stoker-*' -o cat`.
  `--log-level debug` names each attempt. There is never a prompt in them.
- **Two schedulers** on two machines: one leads, the other takes over within three heartbeats.
"""

SAME_LENGTH = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "2026-01-02 03:04:05"),
    (re.compile(r"(?<=:05)\.\d{3}"), ".678"),
    (re.compile(r"(?<=:)(\d+)-[0-9a-f]{8}\b"), r"\1-5eed5eed"),
    (re.compile(r"/stoker-\w{8}/"), "/stoker-5eed5eed/"),
    (re.compile(r"\b(\d+):[\w.-]+:[0-9a-f]{16}\b"), r"\1:host-4711:5eed5eed5eed5eed"),
)
"""What differs between runs and says nothing: times of day, random ids, the name of the machine."""


NEW_ID = r"(?:(?<=quarter -> )|(?<=result --queue reports ))[0-9A-Za-z]{13}\b"
"""An id that a client makes."""


class Desk:
    """A folder, a Redis, and the processes of a stack; `say` is the page so far."""

    def __init__(self, folder: Path, url: str, processes: ExitStack) -> None:
        self.config = Config(redis_url=url)
        self.client = processes.enter_context(Client(config=self.config))
        self._folder = folder
        self._processes = processes
        self._parts: list[str] = []
        quick = {"STOKER_BACKOFF_MIN_MS": "20", "STOKER_BACKOFF_MAX_MS": "50", "STOKER_METRICS": "0"}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        # The same width wherever this runs, so that the same columns are shown.
        self._environment = os.environ | quick | {"STOKER_REDIS_URL": url, "COLUMNS": "120"}

    def say(self, text: str) -> None:
        """Add a paragraph, a heading or a list."""
        self._parts.append(text.strip("\n"))

    def show(self, *commands: str, also: Callable[[str], str] = str) -> list[str]:
        """Run commands in a shell, and add them with what they print; `also` changes what the page has of it."""
        printed = [self.call(command) for command in commands]
        text = "\n".join(f"$ {command}\n{output}".rstrip() for command, output in zip(commands, printed, strict=True))
        self.say(f"```console\n{stable(also(text))}\n```")
        return printed

    def page(self) -> str:
        """Return the page as Markdown."""
        return "\n\n".join(self._parts) + "\n"

    def write(self, name: str, text: str) -> None:
        """Put a file into the folder."""
        (self._folder / name).write_text(text)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a process of the stack, which ends with it."""
        log = self._processes.enter_context((self._folder / "log").open("ab"))
        process = subprocess.Popen(
            [*STOKER, *arguments], env=self._environment, cwd=self._folder, stdout=log, stderr=log
        )
        self._processes.callback(stop, process)
        return process

    def start_workers(
        self, *names: str, model: str = "sim", queue: str = "default", options: Sequence[str] = ()
    ) -> None:
        """Start workers of a queue and wait for them."""
        for name in names:
            self.running[name] = self.start("worker", "--name", name, "--queue", queue, "--model", model, *options)
        with Client(config=self.config.model_copy(update={"queue": queue})) as client:
            self.wait(lambda: {worker.worker for worker in client.workers()} >= set(names))

    def wait(self, happened: Callable[[], object]) -> None:
        """Wait for a condition; raises `TimeoutError`, with the log, where it never comes true."""
        until = time.monotonic() + DEADLINE_S
        while not happened():
            if time.monotonic() > until:
                raise TimeoutError((self._folder / "log").read_text())
            time.sleep(0.05)

    def call(self, command: str) -> str:
        """Return what a command prints, errors too."""
        code = f'stoker() {{ \'{STOKER[0]}\' -c "{STOKER[2]}" "$@"; }}; {command}'
        done = subprocess.run(
            ["bash", "-c", code],  # noqa: S607  # the shell that the page's reader has
            env=self._environment,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return done.stdout


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process of the stack, and wait for it."""
    process.terminate()
    process.wait(DEADLINE_S)


def stable(text: str) -> str:
    """Return the text with names of the same length in the place of those that each run makes anew."""
    for pattern, name in SAME_LENGTH:
        text = pattern.sub(name, text)
    return text


def same_id(text: str) -> str:
    """Return the text with the same id for every one that a retry makes."""
    return re.sub(NEW_ID, "5eed5eed5eed1", text)


def shape(page: str) -> list[str]:
    """Return what two runs have in common: the lines, without numbers, widths, and what doctor says of the machine."""
    # What doctor found is told in as many lines as it needs; those behind the first are indented.
    text = re.sub(r"^(ok|hidden|problem) +(\w+).*(?:\n {8,}.*)*", r"\1 \2", page, flags=re.M)
    text = re.sub(r"\d[\d,.]*k?( (us|ms|s|min)\b)?", "0", text)
    return [" ".join("0" if cell == "-" else cell for cell in line.split()) for line in text.splitlines()]


@contextmanager
def desk() -> Iterator[Desk]:
    """Give a stack with a scheduler and two workers, in a folder with a short path; everything ends with the block."""
    with ExitStack() as all_of_it:
        folder = Path(
            all_of_it.enter_context(tempfile.TemporaryDirectory(prefix="stoker-", dir="/tmp"))
        )  # a socket needs a short path
        server = all_of_it.enter_context(embedded.start(folder / "redis", ephemeral=True))
        found = Desk(folder, server.url, all_of_it.enter_context(ExitStack()))
        found.start("scheduler")
        found.start_workers("gpu0", "gpu1")
        yield found


def operating() -> str:
    """Run everything and return the page."""
    with desk() as d:
        d.say(HEAD)
        running_stack(d)
        next_in_line(d)
        killed_worker(d)
        failed_request(d)
        upgrade(d)
        d.say(TAIL)
        return d.page()


def running_stack(d: Desk) -> None:
    """Show the commands that look at a queue."""
    for _ in d.client.map(["The with statement"] * 40, max_tokens=8):
        pass
    long = d.client.submit(prompt="A long story", max_tokens=100_000, request_id="long")
    d.wait(lambda: long.status() == "running")
    time.sleep(2 * d.config.heartbeat_ms / 1000)  # until a beat says what is held
    d.say("## A running stack")
    d.show("stoker stats")
    d.say(STATS)
    d.show("stoker workers")
    d.say(WORKERS)
    d.show("stoker top --count 1")
    d.say(TOP)
    d.show("stoker explain long", "stoker cancel long")
    d.say(EXPLAIN)
    d.show("stoker queue show")
    d.say("`doctor` looks for what is wrong, says how to put it right, and exits with 1 if it found something:")
    d.show("stoker doctor --no-torch")
    d.say(SETTINGS)
    d.show("STOKER_HEARTBEAT_MS=500 stoker config show | head -n 7")


def next_in_line(d: Desk) -> None:
    """Let two tenants wait for one row, and show whose turn it is."""
    d.start("scheduler", "--queue", "shared")
    d.start_workers("gpu2", queue="shared", options=("--max-num-seqs", "1"))
    with Client(config=d.config.model_copy(update={"queue": "shared"})) as client:
        for _ in range(3):
            client.submit(prompt="A word", max_tokens=1).result(timeout=DEADLINE_S)
        taken = client.submit(prompt="A long story", max_tokens=100_000, request_id="taken")
        d.wait(lambda: taken.status() == "running")
        for name in ("a1", "a2", "a3", "a4", "b1", "b2", "b3"):
            tenant = "acme" if name[0] == "a" else "beta"
            client.submit(prompt_tokens=[1] * 10, max_tokens=90, request_id=name, tenant=tenant)
        d.wait(lambda: d.call("stoker queue preview --queue shared").count(" 0\n") == 2)  # the leader has told of both
        d.say(TENANTS)
        d.show("stoker tenants set acme --weight 2 --queue shared", "stoker queue preview --queue shared")
        d.say(PREVIEWED)
        d.show("stoker explain a3 --queue shared")
        d.say(TURN)
        taken.cancel()


def killed_worker(d: Desk) -> None:
    """Kill the process that runs a model, and show what came of it."""
    d.call("stoker drain gpu1")  # so that it is gpu0 which gets the request
    story = d.client.submit(prompt="A story", max_tokens=1500, request_id="story")
    d.wait(lambda: story.status() == "running")
    d.call("stoker drain gpu1 --undo")
    supervisor = d.running["gpu0"].pid
    child = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0]
    os.kill(int(child), signal.SIGKILL)
    d.wait(lambda: "on gpu1" in d.call("stoker explain story"))
    d.say(KILLED)
    d.show("stoker explain story")
    d.wait(lambda: [worker["state"] for worker in d.client.stats()["workers"]] == ["live", "live"])
    d.say(RESTARTED)
    d.show("stoker workers")
    story.result(timeout=DEADLINE_S)
    d.show("stoker explain story")
    d.say(TRY_IT)


def failed_request(d: Desk) -> None:
    """Let a request fail for good, find it, and try it again."""
    d.write("my_models.py", MODEL)
    d.start("scheduler", "--queue", "reports")
    d.start_workers("cpu0", queue="reports", model="my_models:Reports")
    d.say(FAILED)
    d.show('stoker submit --queue reports --id quarter "Sales of the quarter"', "stoker dead list --queue reports")
    d.say(FOUND)
    d.show("stoker dead show --queue reports quarter")
    d.write("sales.csv", "north,1\nsouth,2\n")
    d.say(MENDED)
    [printed] = d.show("stoker dead retry --queue reports quarter", also=same_id)
    new = re.findall(NEW_ID, printed)[-1]
    d.show(f"stoker result --queue reports {new}", also=same_id)
    d.say(MANY)


def upgrade(d: Desk) -> None:
    """Drain a worker, and start it anew."""
    d.say(UPGRADE)
    d.show("stoker drain gpu0 --wait", "stoker workers")
    stop(d.running["gpu0"])
    d.start_workers("gpu0")
    d.say(UPGRADED)
    d.show("stoker workers")


if __name__ == "__main__":
    PAGE.write_text(operating())
