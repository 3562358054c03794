"""A wire between clients and a Redis that changes some words of the replies: another server than is installed here."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path


class _Wire(socketserver.BaseRequestHandler):
    """One connection, both ways."""

    server: _Between

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as redis:
            redis.connect(str(self.server.redis_socket))
            asking = threading.Thread(target=_pass_on, args=(self.request, redis))
            asking.start()
            with contextlib.suppress(OSError):
                while data := redis.recv(1 << 20):
                    self.request.sendall(data.replace(self.server.old, self.server.new))
            _hang_up(self.request)
            asking.join()


class _Between(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, redis_socket: Path, old: bytes, new: bytes) -> None:
        assert len(old) == len(new), "a reply says how many bytes it has"
        self.redis_socket, self.old, self.new = redis_socket, old, new
        super().__init__(str(path), _Wire)


@contextlib.contextmanager
def rewritten(redis_socket: Path, path: Path, old: bytes, new: bytes) -> Iterator[str]:
    """Listen at `path`; give the URL under which the Redis says `new` wherever it says `old` (of the same length)."""
    with _Between(path, redis_socket, old, new) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"unix://{path}?db=0"
        finally:
            server.shutdown()
            thread.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            target.sendall(data)
    _hang_up(target)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
