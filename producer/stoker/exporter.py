"""What a process shows of itself over HTTP: /metrics for Prometheus, /healthz and /readyz for whoever runs it.

On threads of its own, so that a scrape never waits for the process's work nor the work for a scrape.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app
from prometheus_client.registry import Collector

from stoker.config import Config

log = structlog.get_logger()

DEADLINE_S = 10.0
"""The longest that one answer may take, the reading of its request included: Prometheus gives up then, too."""

CONNECTIONS = 16
"""Requests answered at once; more are closed unanswered, so that threads and memory stay bounded."""

LOOK_S = 0.1
"""How often to look whether an answer takes too long, while one is under way."""

TURN_S = 2.0
"""How long the event loop may be busy with one thing before the process counts as hung."""

WORKER_PORTS = 64
"""How many ports behind the scheduler's workers look through for a free one."""

Probe = Callable[[], str]
"""Returns why not, empty where all is well."""


def scheduler_ports(config: Config) -> Sequence[int]:
    """Return the port of a scheduler; 0 stands for any free one."""
    return (config.metrics_port,)


def worker_ports(config: Config, port: int | None = None) -> Sequence[int]:
    """Return the ports that a worker tries in turn: `port` alone if given, else those behind the scheduler's.

    So n workers of one machine have the first n of them, whichever started first.
    """
    if port is not None:
        return (port,)
    base = config.metrics_port
    return range(base + 1, base + 1 + WORKER_PORTS) if base else (0,)


def loop_turns(loop: asyncio.AbstractEventLoop) -> Probe:
    """Return the probe of /healthz: whether the event loop still gets round to things."""

    def probe() -> str:
        turned = threading.Event()
        try:
            loop.call_soon_threadsafe(turned.set)
        except RuntimeError:
            return "the event loop has ended"
        return "" if turned.wait(TURN_S) else f"the event loop has not turned for {TURN_S:g} s"

    return probe


@contextlib.contextmanager
def exporting(
    config: Config, ports: Iterable[int], collector: Collector, *, alive: Probe, ready: Probe
) -> Iterator[str]:
    """Export what `collector` gives while the block runs; gives the URL of /metrics.

    Where `metrics` is off, or no port can be had, it does nothing and gives an empty one: no queue stands still
    because nobody can look at it.
    """
    exporter = (
        Exporter.open(config.metrics_host, ports, collector, alive=alive, ready=ready) if config.metrics else None
    )
    if exporter is None:
        yield ""
        return
    log.info("metrics", url=exporter.url)
    try:
        yield exporter.url
    finally:
        exporter.close()


class Exporter:
    """An HTTP server for /metrics, /healthz and /readyz, from `open` to `close`."""

    def __init__(self, server: _Server, app: _App) -> None:
        """Serve `app` with `server`, which is bound."""
        self._server = server
        server.set_app(app)
        self._thread = threading.Thread(target=server.serve_until_closed, name="metrics", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls, host: str, ports: Iterable[int], collector: Collector, *, alive: Probe, ready: Probe
    ) -> Exporter | None:
        """Serve on the first of `ports` that is free; None, with one line in the log, where there is none."""
        tried = list(ports)
        for port in tried:
            try:
                server = _Server(host, port)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port != tried[-1]:
                    continue
                taken = f"{tried[0]} to {tried[-1]}" if len(tried) > 1 else str(port)
                log.warning(
                    "no metrics: the port cannot be had; give another with --metrics-port or STOKER_METRICS_PORT",
                    host=host,
                    port=taken,
                    error=str(error),
                )
                return None
            return cls(server, _App(collector, alive, ready))
        return None

    @property
    def url(self) -> str:
        """Where /metrics is."""
        host, port = self._server.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{name}:{port}/metrics"

    def close(self) -> None:
        """End, and free the port."""
        self._server.stop()
        self._thread.join()
        self._server.server_close()


class _App:
    """The WSGI application."""

    def __init__(self, collector: Collector, alive: Probe, ready: Probe) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        # They double the number of series, and no query needs them.
        disable_created_metrics()
        self._metrics = make_wsgi_app(registry)
        self._probes = {"/healthz": alive, "/readyz": ready}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        try:
            if path == "/metrics":
                return list(self._metrics(environ, start))
            if path not in self._probes:
                return _text(start, "404 Not Found", "here are /metrics, /healthz and /readyz")
            reason = self._probes[path]()
            return _text(start, "503 Service Unavailable" if reason else "200 OK", reason or "ok")
        except Exception:  # whatever is wrong with a figure is no reason to answer nothing, or to end
            log.exception("cannot answer", path=path)
            return _text(start, "500 Internal Server Error", "see the log of this process")


def _text(start: Callable[..., Any], status: str, line: str) -> list[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{line}\n".encode()]


class _Handler(WSGIRequestHandler):
    """Logs no requests: there is one every few seconds."""

    timeout = DEADLINE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread a request, each with an end in time."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self._ends: dict[Any, float] = {}
        self._stopped = False
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server for our name, which may take long and is of no use."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # typed for IPv4 only
        self.setup_environ()

    def serve_until_closed(self) -> None:
        """Answer until `stop`; it wakes up for a request, and for the ends of those that are being answered."""
        while not self._stopped:
            self.timeout = LOOK_S if self._ends else None
            self.handle_request()
            self.service_actions()

    def stop(self) -> None:
        """End the serving, by a connection that wakes it up."""
        self._stopped = True
        with contextlib.suppress(OSError):
            socket.create_connection((str(self.server_address[0]), self.server_port), DEADLINE_S).close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a new thread, unless too many are at it."""
        if len(self._ends) >= CONNECTIONS:
            self.shutdown_request(request)
            return
        self._ends[request] = time.monotonic() + DEADLINE_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the request."""
        self._ends.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End what takes too long, however slowly it goes on."""
        now = time.monotonic()
        for request, end in list(self._ends.items()):
            if end < now:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say little of those who hang up or say nothing."""
        log.debug("metrics: a request ended early", exc_info=True)
