"""Redis servers that are the nodes of a cluster, on loopback."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from helpers import wait_until
from stoker.shards import SLOTS
from stoker_ops.embedded import EmbeddedRedis, ServerBinary, start


def cluster_port() -> int:
    """Return a free port for a node, which listens on two: that of its bus lies above the other by 10,000."""
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as one, socket.socket() as bus, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port
    pytest.fail("no two free ports that lie 10,000 apart")


def cluster_options(port: int) -> tuple[str, ...]:
    """The arguments of a server that is to be a node."""
    return ("--bind", "127.0.0.1", "--port", str(port), "--cluster-enabled", "yes")


def take_slots(urls: Sequence[str], ports: Sequence[int] = ()) -> None:
    """Make one cluster of servers: each takes an equal part of the slots."""
    with contextlib.ExitStack() as opened:
        nodes = [opened.enter_context(redis.Redis.from_url(url, decode_responses=True)) for url in urls]
        borders = [SLOTS * i // len(nodes) for i in range(len(nodes) + 1)]
        for i, node in enumerate(nodes):
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            node.execute_command("CLUSTER", "ADDSLOTS", *range(borders[i], borders[i + 1]))
        for port in ports[1:]:
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        size = f"cluster_known_nodes:{len(nodes)}"

        def joined() -> bool:
            told = [str(node.execute_command("CLUSTER", "INFO")) for node in nodes]
            return all("cluster_state:ok" in text and size in text for text in told)

        wait_until(joined, 20, what="the nodes make a cluster")


@dataclass(frozen=True)
class Cluster:
    """Nodes with equal parts of the slots, the first slots on the first one."""

    nodes: Sequence[EmbeddedRedis]
    ports: Sequence[int]

    @property
    def url(self) -> str:
        """Where clients find it: by two of its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports[:2])

    def keys(self, node: int) -> set[str]:
        """The keys that lie on a node."""
        with redis.Redis.from_url(self.nodes[node].url, decode_responses=True) as client:
            return set(client.keys())


@contextlib.contextmanager
def start_cluster(server: ServerBinary, folder: Path, size: int = 3) -> Iterator[Cluster]:
    """Run the nodes of a cluster."""
    ports = [cluster_port() for _ in range(size)]
    with contextlib.ExitStack() as opened:
        nodes = [
            opened.enter_context(
                start(
                    folder / f"n{i}",
                    ephemeral=True,
                    server=server,
                    extra_args=("--appendonly", "no", *cluster_options(port)),
                )
            )
            for i, port in enumerate(ports)
        ]
        take_slots([node.url for node in nodes], ports)
        yield Cluster(nodes, ports)
