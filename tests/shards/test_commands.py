"""The commands on a queue of three shards, all on one Redis: one queue to who looks at it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from sdk.fleet import Fleet
from stoker import Client, Config, InferenceRequest
from stoker.cli import main
from stoker.store import scripts
from stoker.store.connection import Store

Cli = Callable[..., Result]
IDS = [f"r{i}" for i in range(12)]


@pytest.fixture
def config(redis_url: str) -> Config:
    return Config(redis_url=redis_url, shards=3, heartbeat_ms=100, backoff_min_ms=1, backoff_max_ms=1)


@pytest.fixture
def fleets(config: Config) -> Iterator[list[Fleet]]:
    """A scheduler and a worker for each shard."""
    with contextlib.ExitStack() as running:
        running.enter_context(contextlib.closing(Store(config.of(0)))).run(scripts.agree(3))
        yield [running.enter_context(Fleet(config.of(shard))) for shard in range(3)]


@pytest.fixture
def client(config: Config, fleets: list[Fleet]) -> Iterator[Client]:
    """A client of the queue, which has answered some requests and failed two."""
    with Client(config=config) as client:
        bad = {"do": "fail"}
        requests = [
            InferenceRequest(prompt_tokens=[1], request_id=found, metadata=bad if i < 2 else None)
            for i, found in enumerate(IDS)
        ]
        for job in client.submit_many(requests):
            job.response(10)  # type: ignore[union-attr]  # all are accepted
        yield client


@pytest.fixture
def cli(redis_url: str) -> Cli:
    """Runs `stoker` with these arguments."""

    def run(*arguments: str, shards: int = 3, code: int = 0) -> Result:
        settings = {"STOKER_REDIS_URL": redis_url, "STOKER_HEARTBEAT_MS": "100", "STOKER_SHARDS": str(shards)}
        result = CliRunner().invoke(main, arguments, env=settings | {"COLUMNS": "200"}, prog_name="stoker")
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.mark.usefixtures("client")
def test_figures_are_those_of_all_shards_or_of_one(cli: Cli) -> None:
    whole = json.loads(cli("stats", "--json").output)
    parts = [json.loads(cli("stats", "--json", "--shard", str(shard)).output) for shard in range(3)]
    assert whole["counts"]["submitted"] == sum(part["counts"]["submitted"] for part in parts) == len(IDS)
    assert all(part["counts"]["submitted"] for part in parts)
    assert whole["latency_ms"]["e2e"]["count"] == sum(part["latency_ms"]["e2e"]["count"] for part in parts)
    assert [worker["shard"] for worker in whole["workers"]] == [0, 1, 2]
    assert all(part["leader"] in whole["leader"] for part in parts)
    assert json.loads(cli("top", "--json", "--count", "1").output)["counts"] == whole["counts"]
    assert len(json.loads(cli("workers", "--json").output)) == 3
    assert cli("workers").output.splitlines()[1].split()[-1] == "shard"
    assert json.loads(cli("queue", "show", "--json").output)["dead_letters"] == 2


@pytest.mark.usefixtures("client")
def test_a_request_is_found_by_its_id(cli: Cli) -> None:
    for found in IDS[2:5]:
        assert cli("status", found).output == "succeeded\n"
        assert cli("result", found).output == "2 \n"
        assert "succeeded" in cli("explain", found).output
    for found in IDS[:2]:
        assert json.loads(cli("dead", "show", found, "--json").output)["id"] == found
    assert {letter["id"] for letter in json.loads(cli("dead", "list", "--json").output)} == set(IDS[:2])
    assert {line.split()[0] for line in cli("dead", "retry", "--all", "--yes").output.splitlines()} == set(IDS[:2])


def test_what_waits_is_cancelled_by_its_id(cli: Cli, client: Client, fleets: list[Fleet]) -> None:
    for fleet in fleets:
        fleet.open.clear()
    for found in ("x", "y", "z"):
        cli("submit", "hello", "--id", found, "--no-wait")
    assert cli("cancel", "x", "y", "z").output.count("cancelled") == 3
    assert client.job("y").status() == "cancelled"


@pytest.mark.usefixtures("client")
def test_what_looks_at_one_shard_says_so(cli: Cli) -> None:
    for words in (("queue", "preview"), ("doctor", "--no-torch"), ("profile",)):
        assert "one of the 3 shards of queue 'default'; say at which, with --shard" in cli(*words, code=2).output
    assert cli("queue", "preview", "--shard", "1").output


def test_batch_commands_are_about_all_shards(cli: Cli) -> None:
    assert cli("batch", "list").output
    for words in (("batch", "list"), ("batch-worker",)):
        assert (
            "batch files run on all shards of a queue; leave it out, got 1"
            in cli(*words, "--shard", "1", code=2).output
        )


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("shards", [1, 2])
def test_another_number_is_refused_by_every_command(cli: Cli, shards: int) -> None:
    for words in (
        *(("stats",), ("workers",), ("status", "r3"), ("explain", "r3"), ("cancel", "r3"), ("dead", "show", "r0")),
        *(("queue", "preview", "--shard", "0"), ("doctor", "--no-torch", "--shard", "0"), ("tenants", "list")),
        *(("top", "--count", "1"), ("submit", "x"), ("drain", "w")),
    ):
        assert f"queue 'default' has 3, got {shards}" in cli(*words, shards=shards, code=2).output, words


# --- another number ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("client")
def test_a_queue_with_workers_keeps_its_number(cli: Cli) -> None:
    said = "queue 'default' has 3, and in them 0 request(s) that have not ended and 1 worker(s)"
    assert said in cli("queue", "set-shards", "2", code=2).output
    cli("stats")


def test_a_queue_that_stands_still_gets_another_number(cli: Cli, config: Config) -> None:
    with Client(config=config) as client:
        job = client.submit(prompt="x")
        assert "1 request(s) that have not ended" in cli("queue", "set-shards", "2", code=2).output
        job.cancel()
    for before, number in ((3, 2), (2, 1), (1, 3)):
        said = cli("queue", "set-shards", str(number), shards=before).output
        assert said == f"queue default has {number} shard{'s' * (number > 1)}; it had {before}\n"
        cli("stats", shards=number)
        assert f"has {number}, got {before}" in cli("stats", shards=before, code=2).output


def test_a_number_that_cannot_be_is_refused(cli: Cli) -> None:
    said = cli("queue", "set-shards", "129", shards=1, code=2).output
    assert "shards: Input should be less than or equal to 128, got 129" in said


def test_who_only_looks_fixes_no_number(cli: Cli, config: Config) -> None:
    cli("stats", shards=3)
    with Client(config=config.model_copy(update={"shards": 2})) as client:
        client.submit(prompt="x")
    assert "has 2, got 3" in cli("stats", shards=3, code=2).output
