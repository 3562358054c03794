"""Requests a second of Stoker and of other queues and model servers, each in an environment of its own.

    python bench/peers.py --rounds 5
    python bench/peers.py --peers huey mosec --workers 1 --seconds 3

A request is 128 random token ids in and 16 out, of a model that does nothing; the result goes back to the producer, who
looks at it. All are asked in bulk, in the setting in which each is fastest (`bench/peer_list.py`). A run starts a Redis
of its own (AOF everysec, the same program for all, by TCP), the workers and a producer, warms up, and ends them all.
The environments lie in `.peers/`, made when first needed; who cannot be installed or does not answer is named and left
out. Stoker's engine is `sim` with whole answers in a step; its scheduler is one more process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TextIO

import psutil
from figures import Bar, Rounds, alternating, ratio, save, table, verdicts
from peer_list import PEERS, Peer

from stoker_ops.embedded import start

HOME = Path(__file__).parent.parent / ".peers"
SCRIPTS = Path(__file__).parent / "peer"
BARS = {1: 15.0, 2: 10.0}
MOSEC_BAR = 2.5
INSTALL_S = 400
# LitServe never comes to rest; who is not ready by then is waited for by the producer.
START_S = 8
LOOK_S = 0.25
AT_REST = 0.15
RUN_S = 90
STOP_S = 0.5


class LeftOut(Exception):
    """Why a peer has no figures."""


# --- environments --------------------------------------------------------------------------------------------------


def install(name: str, peer: Peer) -> Path:
    """Return the folder of a peer's environment, made if what it holds is not what is wanted."""
    home = HOME / name
    stamp = home / "packages"
    if not peer.packages or (stamp.exists() and stamp.read_text() == "\n".join(peer.packages)):
        return home
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    if peer.node:
        if not (shutil.which("node") and shutil.which("npm")):
            raise LeftOut("needs node and npm on PATH")
        _done("npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", "--silent", *peer.packages)
    else:
        # A pip in each would take longer than what is installed.
        _done(sys.executable, "-m", "venv", "--without-pip", str(home))
        pip = (sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--disable-pip-version-check")
        _done(*pip, "install", "--quiet", *peer.packages)
    stamp.write_text("\n".join(peer.packages))
    return home


def _done(*command: str) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise LeftOut(f"not installed within {INSTALL_S} s") from None
    if ended.returncode:
        raise LeftOut(f"not installed: {_last_line(ended.stderr)}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


# --- one run -------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def run(name: str, workers: int, seconds: float) -> float:
    """Return the requests a second of a fresh stack of a peer. Raises LeftOut with what its processes said last."""
    peer, port = PEERS[name], free_port()
    scheme = "redis" if peer.durable else "http"
    names = {
        "home": str(HOME / name),
        "port": str(port),
        "url": f"{scheme}://127.0.0.1:{port}",
        "seconds": str(seconds),
    }
    settings = {
        "PEER_URL": names["url"],
        "PEER_HOME": names["home"],
        "PEER_WORKERS": str(workers),
        "STOKER_REDIS_URL": names["url"],
        "STOKER_METRICS": "0",
        "PYTHONPATH": str(SCRIPTS),
    }
    with contextlib.ExitStack() as stay:
        folder = stay.enter_context(tempfile.TemporaryDirectory(prefix="sb", dir="/tmp"))
        if peer.durable:
            stay.enter_context(start(f"{folder}/redis", extra_args=("--port", str(port), "--bind", "127.0.0.1")))
        log = stay.enter_context((Path(folder) / "log").open("w+"))
        environment = os.environ | settings | peer.settings
        commands = [[_filled(word, names) for word in command] for command in peer.workers(workers)]
        processes = stay.enter_context(_running(commands, environment, log))
        _wait_for_rest(processes, log)
        drive = [_filled(word, names) for word in peer.drive]
        try:
            asked = subprocess.run(
                drive, cwd=SCRIPTS, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise LeftOut(f"no answers within {RUN_S} s") from None
        if asked.returncode:
            log.seek(0)
            raise LeftOut(f"{_last_line(asked.stderr)}; its workers: {_last_line(log.read())}")
    found = json.loads(_last_line(asked.stdout))
    return found["requests"] / found["seconds"]


def _filled(word: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        word = word.replace("{" + name + "}", value)
    return word


@contextmanager
def _running(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str], log: TextIO
) -> Iterator[list[psutil.Popen]]:
    """Run programs for the time of a block, and end them with all their children."""
    processes: list[psutil.Popen] = []
    try:
        for command in commands:
            started = psutil.Popen(
                command, cwd=SCRIPTS, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            processes.append(started)
        yield processes
    finally:
        family = [*processes, *(child for process in processes for child in _children(process))]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, STOP_S)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(alive)


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _wait_for_rest(processes: Sequence[psutil.Popen], log: TextIO) -> None:
    """Wait until the processes have started: they run, and hardly use their CPU any more."""
    until = time.monotonic() + START_S
    before, resting = 0.0, 0
    while resting < 2 and time.monotonic() < until:
        time.sleep(LOOK_S)
        for process in processes:
            if process.poll() is not None:
                log.seek(0)
                raise LeftOut(f"a worker ended with {process.returncode}: {_last_line(log.read())}")
        used = sum(map(_cpu_s, processes))
        resting = resting + 1 if used - before < AT_REST * LOOK_S * len(processes) else 0
        before = used


def _cpu_s(process: psutil.Popen) -> float:
    total = 0.0
    for one in [process, *_children(process)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:2])
    return total


# --- all runs ------------------------------------------------------------------------------------------------------


class Field:
    """Who takes part, and why others do not."""

    def __init__(self, names: Sequence[str], seconds: float) -> None:
        """Install all that can be."""
        self.left_out: dict[str, str] = {}
        self._seconds = seconds
        for name in names:
            try:
                install(name, PEERS[name])
            except LeftOut as reason:
                self.left_out[name] = str(reason)
        self.names = [name for name in names if name not in self.left_out]

    def rate(self, name: str, workers: int) -> float:
        """Return the rate of a run; 0 from the first that failed on."""
        if name in self.left_out:
            return 0.0
        try:
            return run(name, workers, self._seconds)
        except LeftOut as reason:
            self.left_out[name] = str(reason)
            print(f"{name} is left out: {reason}", flush=True)
            return 0.0


def title(name: str, workers: int) -> str:
    """Name a contestant."""
    return f"{name}, {workers}w"


def without(rounds: Rounds, names: Sequence[str]) -> Rounds:
    """Return the figures without those of these peers."""
    return [{key: rate for key, rate in one.items() if key.split(",")[0] not in names} for one in rounds]


def best(rounds: Rounds, contestants: Sequence[str]) -> str | None:
    """Return whose median is the highest, of those that have figures."""
    found = [name for name in contestants if name in rounds[0]]
    return max(found, key=lambda name: median(one[name] for one in rounds), default=None)


def bars(rounds: Rounds, counts: Sequence[int]) -> list[tuple[Bar, str]]:
    """Return what Stoker reaches over the best of the others, and who that is."""
    found = []
    for workers in counts:
        durable = [title(name, workers) for name, peer in PEERS.items() if peer.durable and name != "stoker"]
        for label, limit, others in (
            (f"durable-{workers}w", BARS[workers], durable),
            ("mosec", MOSEC_BAR, [title("mosec", 1)] if workers == 1 else []),
        ):
            ours, theirs = title("stoker", workers), best(rounds, others)
            if theirs and ours in rounds[0]:
                found.append((Bar(label, ratio(rounds, ours, theirs), limit), theirs))
    return found


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return what was installed for each."""
    return {name: " ".join(PEERS[name].packages) or f"stoker {metadata.version('stoker')}" for name in names}


def main() -> None:
    """Install, measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=sorted(PEERS), default=list(PEERS))
    parser.add_argument("--workers", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="about how long one measurement takes")
    options = parser.parse_args()
    field = Field(list(dict.fromkeys(["stoker", *options.peers])), options.seconds)
    contestants = {
        title(name, workers): lambda name=name, workers=workers: field.rate(name, workers)
        for workers in options.workers
        for name in field.names
    }
    rounds = without(alternating(contestants, options.rounds, warm_up=False), list(field.left_out))
    if not rounds[0]:
        raise SystemExit(f"nobody answered: {field.left_out}")
    table(rounds)
    for name, reason in field.left_out.items():
        print(f"left out: {name}: {reason}")
    found = bars(rounds, options.workers)
    for bar, theirs in found:
        print(f"{bar.name}: over {theirs}")
    said = {"peers": versions(field.names), "left_out": field.left_out}
    if set(options.peers) == set(PEERS) and set(options.workers) == set(BARS):
        save("peers", rounds, [bar for bar, _ in found], more=said | {"over": {bar.name: who for bar, who in found}})
    verdicts([bar for bar, _ in found])


if __name__ == "__main__":
    main()
