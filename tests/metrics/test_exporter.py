"""The HTTP server for /metrics, /healthz and /readyz."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.core import GaugeMetricFamily
from structlog.testing import capture_logs

from helpers import wait_until
from scraping import beside, get
from stoker import exporter as module
from stoker.config import Config
from stoker.exporter import Exporter, exporting, loop_turns, scheduler_ports, worker_ports


class One:
    """A collector of one figure."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("stoker_one", "One.", value=1.0)


def fine() -> str:
    return ""


@pytest.fixture
def url() -> Iterator[str]:
    with exporting(Config(), [0], One(), alive=fine, ready=lambda: "loading") as url:
        yield url


def test_metrics_are_served_on_loopback_in_the_text_format(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    assert get(url) == (200, "# HELP stoker_one One.\n# TYPE stoker_one gauge\nstoker_one 1.0\n")


def test_probes_answer_200_or_503_with_the_reason(url: str) -> None:
    assert get(beside(url, "/healthz")) == (200, "ok\n")
    assert get(beside(url, "/readyz")) == (503, "loading\n")


def test_another_path_is_not_found_and_says_which_there_are(url: str) -> None:
    status, text = get(beside(url, "/"))
    assert (status, "/metrics" in text) == (404, True)


def test_a_collector_that_fails_answers_500_is_logged_and_the_next_request_is_served() -> None:
    class Sometimes(One):
        broken = True

        def collect(self) -> Iterator[GaugeMetricFamily]:
            if self.broken:
                raise RuntimeError("no figures")
            return super().collect()

    collector = Sometimes()
    Sometimes.broken = False
    with exporting(Config(), [0], collector, alive=fine, ready=fine) as url, capture_logs() as logs:
        Sometimes.broken = True
        assert get(url)[0] == 500
        Sometimes.broken = False
        assert get(url)[0] == 200
    assert [(line["log_level"], line["path"]) for line in logs if line["event"] == "cannot answer"] == [
        ("error", "/metrics")
    ]


def test_a_taken_port_is_one_clear_line_and_no_obstacle() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, capture_logs() as logs:
        port = other.getsockname()[1]
        with exporting(Config(), [port], One(), alive=fine, ready=fine) as url:
            assert url == ""
    assert [(line["log_level"], line["port"]) for line in logs] == [("warning", str(port))]
    assert "--metrics-port" in logs[0]["event"]


def test_an_address_that_is_not_ours_is_one_clear_line_too() -> None:
    with (
        capture_logs() as logs,
        exporting(Config(metrics_host="192.0.2.1"), [0], One(), alive=fine, ready=fine) as url,
    ):
        assert url == ""
    assert [line["host"] for line in logs] == ["192.0.2.1"]


def test_the_first_free_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with exporting(Config(), [taken, 0], One(), alive=fine, ready=fine) as url:
            assert get(url)[0] == 200


def test_metrics_can_be_switched_off() -> None:
    with exporting(Config(metrics=False), [0], One(), alive=fine, ready=fine) as url:
        assert url == ""


def test_the_port_is_free_again_at_the_end() -> None:
    with exporting(Config(), [0], One(), alive=fine, ready=fine) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
    with exporting(Config(), [port], One(), alive=fine, ready=fine) as again:
        assert again == url


def test_workers_take_the_ports_behind_the_schedulers_and_an_own_one_alone() -> None:
    config = Config(metrics_port=7000)
    assert list(scheduler_ports(config)) == [7000]
    assert list(worker_ports(config))[:2] == [7001, 7002]
    assert list(worker_ports(config, 9)) == [9]
    assert list(worker_ports(Config(metrics_port=0))) == [0]


def test_who_says_nothing_or_little_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte after byte, each in time, but the whole too late."""
    monkeypatch.setattr(module, "DEADLINE_S", 0.5)
    exporter = Exporter.open("127.0.0.1", [0], One(), alive=fine, ready=fine)
    assert exporter
    host, port = exporter.url.removeprefix("http://").removesuffix("/metrics").split(":")
    with contextlib.closing(exporter), socket.create_connection((host, int(port)), 20) as slow:

        def hung_up() -> bool:
            try:
                slow.sendall(b"G")
            except OSError:
                return True
            slow.settimeout(0.05)
            try:
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(hung_up, 20, poll=0.05)
        assert get(exporter.url)[0] == 200


def test_more_requests_at_once_than_the_limit_are_closed_and_the_others_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 1)
    held = threading.Event()
    inside = threading.Event()

    def slowly() -> str:
        inside.set()
        held.wait(20)
        return ""

    with exporting(Config(), [0], One(), alive=slowly, ready=fine) as url:
        answers: list[tuple[int, str]] = []
        first = threading.Thread(target=lambda: answers.append(get(beside(url, "/healthz"))))
        first.start()
        assert inside.wait(20)
        with pytest.raises((OSError, http.client.HTTPException)):
            get(url)
        held.set()
        first.join(20)
        assert answers == [(200, "ok\n")]
        wait_until(lambda: answered(url), 20)


def answered(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


async def test_a_process_whose_event_loop_stands_still_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_S", 0.2)
    probe = loop_turns(asyncio.get_running_loop())
    assert await asyncio.to_thread(probe) == ""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(probe()))
    thread.start()
    thread.join(20)  # which keeps the loop from turning
    assert said == ["the event loop has not turned for 0.2 s"]


def test_no_host_name_is_looked_up_to_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> str:
        raise AssertionError("asked for a name")

    monkeypatch.setattr(socket, "getfqdn", fail)
    with exporting(Config(), [0], One(), alive=fine, ready=fine) as url:
        assert get(url)[0] == 200


def test_opening_and_closing_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with exporting(Config(), [0], One(), alive=fine, ready=fine) as url:
        get(url)
    wait_until(lambda: threading.active_count() <= before, 10)
