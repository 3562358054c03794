"""A TCP proxy in front of a Redis, which does what networks do: delays, silence, resets, replies that never arrive."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 16
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing sends a reset."""


class Proxy:
    """Passes connections on to the Redis whose socket is `target`; its faults hold for what comes from then on.

    - `target` may be changed: connections made later go there (a failover).
    - `delay_s`: how long each piece of data waits, each way.
    - `lost_share`: the share of replies in whose place the connection is reset: the command has run.
    - `open`: cleared, nothing passes either way, and nobody is told (a blackhole); set, all of it arrives late.
    """

    def __init__(self, target: Path, seed: int = 0) -> None:
        """Listen on a free port of loopback."""
        self.target = target
        self.delay_s = 0.0
        self.lost_share = 0.0
        self.lost = 0
        self.open = threading.Event()
        self.open.set()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._closed = False
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def reset_all(self) -> None:
        """Reset every connection that there is."""
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            self._end(each, reset=True)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.open.set()
        self.reset_all()
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with self._lock:
            self._sockets |= {client, server}
        try:
            server.connect(str(self.target))
        except OSError:  # nobody listens there: nor does anybody here
            self._end(server)
            self._end(client, reset=True)
            return
        self._start(self._pass_on, client, server, False)
        self._start(self._pass_on, server, client, True)

    def _pass_on(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self.open.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                if replies and self._random.random() < self.lost_share:
                    self.lost += 1
                    break
                target.sendall(data)
        if replies:
            self._end(source)
            self._end(target, reset=True)
        else:
            # What the server said before it hung up is still to come.
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    def _end(self, each: socket.socket, *, reset: bool = False) -> None:
        with self._lock:
            if each not in self._sockets:
                return
            self._sockets.remove(each)
        with contextlib.suppress(OSError):
            if reset and each.family == socket.AF_INET:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            # Wakes the thread that reads it, as closing alone does not.
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextlib.contextmanager
def proxy_to(target: Path, seed: int = 0) -> Iterator[Proxy]:
    """Run a proxy in front of the Redis that listens at a unix socket."""
    proxy = Proxy(target, seed)
    try:
        yield proxy
    finally:
        proxy.close()
