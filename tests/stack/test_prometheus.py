"""A real Prometheus and its promtool: they read what a real stack exports, and the rules that are made for it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from helpers import wait_until
from scraping import get
from stack_processes import Stack
from stoker import Client

FOLDER = Path(__file__).parents[2] / "ops" / "prometheus"
MISSING = [program for program in ("prometheus", "promtool") if not shutil.which(program)]
pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)} (Debian: apt install prometheus)"),
]


def promtool(*arguments: str, text: str | None = None) -> None:
    """Run a check, which must find nothing and say nothing bad."""
    done = subprocess.run(
        ["promtool", *arguments], input=text, cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr


def test_the_alert_rules_are_sound() -> None:
    promtool("check", "rules", "stoker.rules.yml")


def test_the_alert_rules_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", "stoker.rules.test.yml")


def test_the_scrape_configuration_is_sound() -> None:
    promtool("check", "config", "prometheus.yml")


def test_promtool_finds_nothing_wrong_with_either_exporter(exporting_stack: Stack, client: Client) -> None:
    exporting_stack.scheduler()
    exporting_stack.worker("worker")
    client.submit(prompt_tokens=[1], max_tokens=3).result(timeout=30)
    for name in ("scheduler", "worker"):
        status, text = get(exporting_stack.metrics_url(name))
        assert status == 200
        promtool("check", "metrics", text=text)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def prometheus(short_tmp: Path) -> Iterator[Callable[[str, str], str]]:
    """Starts a Prometheus on our configuration, with other targets and a shorter interval; gives its address."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(scheduler: str, worker: str) -> str:
        home = short_tmp / "prometheus"
        shutil.copytree(FOLDER, home)
        config = (home / "prometheus.yml").read_text().replace("127.0.0.1:9465", scheduler)
        (home / "prometheus.yml").write_text(re.sub(r"_interval: 15s", "_interval: 500ms", config))
        workers = (home / "workers.yml").read_text().replace("127.0.0.1:9466", worker)
        (home / "workers.yml").write_text(workers)
        address = f"127.0.0.1:{free_port()}"
        command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}"]
        with (short_tmp / "prometheus.log").open("wb") as log:
            command += [f"--storage.tsdb.path={short_tmp / 'data'}"]
            started.append(subprocess.Popen(command, cwd=home, stdout=log, stderr=log))
        return f"http://{address}"

    yield begin
    for process in started:
        process.kill()
        process.wait(10)


def queried(address: str, query: str) -> list[tuple[dict[str, str], float]]:
    """What the HTTP API answers: labels and values; nothing while it does not answer yet."""
    try:
        status, text = get(f"{address}/api/v1/query?query={quote(query)}")
    except OSError:
        return []
    if status != 200:
        return []
    return [(one["metric"], float(one["value"][1])) for one in json.loads(text)["data"]["result"]]


def test_a_real_prometheus_scrapes_a_stack_and_answers_with_its_series(
    exporting_stack: Stack, client: Client, prometheus: Callable[[str, str], str]
) -> None:
    stack = exporting_stack
    stack.scheduler()
    stack.worker("worker")
    jobs = [client.submit(prompt_tokens=[1] * 5, max_tokens=4, ignore_eos=True) for _ in range(6)]
    for job in jobs:
        job.result(timeout=30)
    targets = [urlsplit(stack.metrics_url(name)).netloc for name in ("scheduler", "worker")]
    address = prometheus(*targets)

    def answers(query: str, expected: float) -> None:
        wait_until(lambda: [value for _, value in queried(address, query)] == [expected], 60, poll=0.2, what=query)

    answers('sum(up{queue="default"})', 2)
    answers('sum(stoker_requests_finished_total{queue="default", model="sim", outcome="succeeded"})', 6)
    answers('sum(stoker_generation_tokens_total{model="sim"})', 24)
    answers('sum(stoker_engine_generation_tokens_total{job="stoker-worker", worker="worker"})', 24)
    answers('sum(stoker_e2e_request_latency_seconds_bucket{priority="normal", le="+Inf"})', 6)
    answers('sum(stoker_worker_state{state="serving"})', 1)
    p95 = "histogram_quantile(0.95, sum by (le) (stoker_time_to_first_token_seconds_bucket))"
    ((_, seconds),) = queried(address, p95)
    assert 0.001 < seconds < 60
    # The rules are loaded, and a healthy stack raises none of them.
    status, text = get(f"{address}/api/v1/rules")
    assert (status, text.count('"type":"alerting"')) == (200, len(re.findall("- alert:", rules())))
    assert queried(address, 'ALERTS{alertstate="firing"}') == []


def rules() -> str:
    return (FOLDER / "stoker.rules.yml").read_text()
