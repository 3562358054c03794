"""The queues and model servers that Stoker is measured beside, each with the setting in which it is fastest here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HERE = "{home}/bin/"
HIREDIS, UVLOOP, AIOHTTP, MSGPACK = "hiredis==3.5.0", "uvloop==0.23.0", "aiohttp==3.14.5", "msgpack==1.2.4"
STOKER = (sys.executable, "-c", "from stoker.cli import main; main()")
SIM = ("--model", "sim", "--profile", "instant", "--max-num-seqs", "256", "--max-num-batched-tokens", "65536")

Command = tuple[str, ...]


@dataclass(frozen=True)
class Peer:
    """How one is installed and run. In commands, {home} is its environment, {url} and {port} where it is reached."""

    packages: tuple[str, ...]
    """What pip installs, pinned; for `node`, what npm does; nothing for Stoker, which runs in its own environment."""
    workers: Callable[[int], list[Command]]
    """The commands of so many workers."""
    drive: Command = ()
    """The command that asks; {seconds} is how long the last measurement shall take."""
    durable: bool = True
    """Whether requests wait in Redis."""
    node: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment of all its processes."""


def each(*command: str) -> Callable[[int], list[Command]]:
    """Return the commands of workers that are one process each."""
    return lambda workers: [command] * workers


def once(*command: str) -> Callable[[int], list[Command]]:
    """Return the command of a program that starts its workers itself; {workers} is how many."""
    return lambda workers: [tuple(word.replace("{workers}", str(workers)) for word in command)]


def celery(workers: int) -> list[Command]:
    """Return the commands of workers with a name each."""
    quiet = ("-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat")
    return [
        (HERE + "celery", "-A", "celery_peer", "worker", *quiet, "-P", "solo", "-n", f"w{index}@peer")
        for index in range(workers)
    ]


def stoker(workers: int) -> list[Command]:
    """Return the commands of a scheduler and workers with a name each."""
    quiet = ("--log-level", "error")
    named = [(*STOKER, "worker", "--name", f"w{index}", *SIM, *quiet) for index in range(workers)]
    return [(*STOKER, "scheduler", *quiet), *named]


def driven(module: str, python: str = HERE + "python") -> Command:
    """Return the command that asks through a module of `bench/peer`."""
    return (python, "drive.py", module, "{seconds}")


PEERS = {
    "stoker": Peer((), stoker, driven("stoker_peer", sys.executable)),
    "rq": Peer(
        ("rq==3.0.0", HIREDIS),
        each(HERE + "rq", "worker", "-q", "-u", "{url}", "-w", "rq.SimpleWorker"),
        driven("rq_peer"),
    ),
    "celery": Peer(("celery[redis]==5.7.0", HIREDIS), celery, driven("celery_peer")),
    "dramatiq": Peer(
        ("dramatiq[redis]==2.2.1", HIREDIS),
        once(HERE + "dramatiq", "dramatiq_peer", "-p", "{workers}", "-t", "8"),
        driven("dramatiq_peer"),
    ),
    "saq": Peer(
        ("saq[redis]==0.26.4", "typing_extensions==4.16.0", HIREDIS, UVLOOP),
        each(HERE + "saq", "saq_peer.settings", "--quiet"),
        driven("saq_peer"),
    ),
    "taskiq": Peer(
        ("taskiq==0.13.0", HIREDIS, "taskiq-redis==1.2.4", UVLOOP, "orjson==3.13.0", MSGPACK),
        each(HERE + "taskiq", "worker", "taskiq_peer:broker", "-w", "1", "--log-level", "ERROR"),
        driven("taskiq_peer"),
    ),
    "huey": Peer(
        ("huey==3.5.4", "redis==8.1.0", HIREDIS),
        each(HERE + "huey_consumer", "huey_peer.huey", "-w", "1", "-k", "thread", "-q"),
        driven("huey_peer"),
    ),
    "bullmq": Peer(("bullmq==3.4.4", HIREDIS, UVLOOP), each(HERE + "python", "bullmq_peer.py"), driven("bullmq_peer")),
    "bullmq-node": Peer(
        ("bullmq@6.7.0", "ioredis@6.0.0"),
        each("node", "bullmq_node.mjs", "worker"),
        ("node", "bullmq_node.mjs", "drive", "{seconds}"),
        node=True,
    ),
    "litserve": Peer(
        ("litserve==0.2.19", AIOHTTP, UVLOOP, "httptools==0.9.0"),
        once(HERE + "python", "litserve_server.py"),
        driven("http_peer"),
        durable=False,
        settings={"PEER_PATH": "/predict", "PEER_CODEC": "json"},
    ),
    "mosec": Peer(
        ("mosec==0.9.8", MSGPACK, AIOHTTP, UVLOOP),
        once(HERE + "python", "mosec_server.py", "--port", "{port}", "--timeout", "20000"),
        driven("http_peer"),
        durable=False,
        settings={"PEER_PATH": "/inference", "PEER_CODEC": "msgpack"},
    ),
}
