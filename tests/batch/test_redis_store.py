"""A batch whose files lie in Redis: no folder is shared, and any batch worker goes on with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch.conftest import Bench, by_id, framed, read, text_of
from helpers import wait_until
from sdk.fleet import Fleet
from stoker import AsyncClient
from stoker.batch import parts
from stoker.batch.redis_files import RedisFiles, StoreFull
from stoker.batch.sdk import Batch
from stoker.cli import main
from stoker.store.connection import Store

HOLD = {"metadata": {"do": "hold"}}
FAIL = {"metadata": {"do": "fail"}}


def submit(bench: Bench, *lines: object) -> Batch:
    """Submit lines from a file that is gone when the batch runs: its workers are on other machines."""
    batch = bench.submit(*lines, store="redis")
    (bench.folder / "in.jsonl").unlink()
    return batch


def test_every_line_is_answered_once_without_a_shared_file(bench: Bench, fleet: Fleet) -> None:
    batch = submit(bench, *(framed(f"c{i}", f"word {i}") for i in range(700)))
    assert bench.run(batch) == "completed"
    assert list(bench.folder.iterdir()) == []
    answers = by_id(list(batch.results()))
    assert {name: text_of(line) for name, line in answers.items()} == {f"c{i}": f"WORD {i} " for i in range(700)}
    assert list(batch.errors()) == []
    assert batch.status().store == "redis"


async def test_answers_and_errors_are_read_from_any_client(bench: Bench, fleet: Fleet) -> None:
    batch = submit(bench, framed("good", "a b"), b"oops\n")
    bench.run(batch)
    async with AsyncClient(config=bench.config) as client:
        handle = client.batches.get(batch.id)
        assert [text_of(line) async for line in handle.results()] == ["A B "]
        assert [line["error"]["code"] async for line in handle.errors()] == ["invalid_json"]


def test_another_machine_goes_on_and_knows_the_custom_ids_so_far(bench: Bench, fleet: Fleet) -> None:
    lines = [framed(f"c{i}", f"word {i}") for i in range(20)]
    batch = submit(bench, *lines, framed("held", **HOLD), framed("c3"))
    run = bench.start(batch)
    wait_until(lambda: batch.status().succeeded == 20, 30, what="all but the held line are answered")
    run.stop.set()
    assert run.result() == "queued"
    assert bench.config.state
    shutil.rmtree(bench.config.state / "batches")  # what the first machine had for itself
    fleet.release()
    assert bench.run(batch) == "completed"
    assert len(by_id(list(batch.results()))) == 21
    [error] = batch.errors()
    assert (error["error"]["code"], error["error"]["line"]) == ("duplicate_custom_id", 22)


def test_the_failed_lines_are_retried(bench: Bench, fleet: Fleet) -> None:
    batch = submit(bench, framed("a"), framed("bad", **FAIL))
    bench.run(batch)
    assert batch.status().failed == 1
    assert batch.retry() == 1
    bench.run(batch)
    assert [line["custom_id"] for line in batch.results()] == ["a"]
    assert [line["custom_id"] for line in batch.errors()] == ["bad"]


def test_files_go_by_themselves_after_the_window_and_the_retention(bench: Bench, fleet: Fleet) -> None:
    batch = submit(bench, "a", b"oops\n")
    bench.run(batch)
    client = bench.redis()
    keys = list(client.scan_iter("*file*"))
    longest = bench.config.batch_window_s + bench.config.batch_ttl_s
    assert {key.rpartition(b":")[2].decode() for key in keys} >= {"b", parts.INPUT, "checkpoint-1", "out-1", "err-1"}
    assert all(longest - 60 < client.ttl(key) <= longest for key in keys)
    client.close()


def test_an_input_that_is_too_big_for_redis_is_refused_naming_the_limit(bench: Bench) -> None:
    bench.client.config = bench.config.model_copy(update={"batch_store_bytes": 1 << 20})
    with pytest.raises(StoreFull, match="batch_store_bytes: a batch may keep 1048576 bytes in Redis"):
        submit(bench, "x" * (2 << 20))
    assert bench.client.batches.list() == []


def test_answers_that_are_too_big_for_redis_fail_the_batch_with_a_sentence(bench: Bench, fleet: Fleet) -> None:
    batch = submit(bench, *("word " * 1000 for _ in range(205)))
    bench.config = bench.config.model_copy(update={"batch_store_bytes": 1 << 20})
    assert bench.run(batch) == "failed"
    assert "batch_store_bytes" in batch.status().why


def test_the_command_waits_and_fetches_the_answers(bench: Bench, fleet: Fleet) -> None:
    source = bench.write(framed("good", "a b"), b"oops\n")
    environment = {"STOKER_REDIS_URL": str(bench.config.redis_url), "STOKER_STATE": str(bench.config.state)}
    sent = CliRunner().invoke(main, ["batch", "submit", str(source), "--store", "redis"], env=environment)
    batch = bench.client.batches.get(sent.stdout.partition(":")[0])
    assert f"stoker batch results {batch.id}" in sent.stdout
    bench.run(batch)
    batch.fetch()
    assert [text_of(line) for line in read(bench.folder / "in.output.jsonl")] == ["A B "]
    assert [line["error"]["line"] for line in read(bench.folder / "in.errors.jsonl")] == [2]
    shown = CliRunner().invoke(main, ["batch", "results", batch.id], env=environment)
    assert json.loads(shown.stdout)["custom_id"] == "good"
    with pytest.raises(FileExistsError):
        batch.fetch()


def test_a_file_is_read_from_any_place(bench: Bench, tmp_path: Path) -> None:
    store = Store(bench.config)
    files = RedisFiles(store, "b", lambda: 60)
    data = bytes(range(256)) * 10_000
    files.append("out-1", data[:100])
    RedisFiles(store, "b", lambda: 60).append("out-1", data[100:])
    with files.reader("out-1") as file:
        assert file.read() == data
        file.seek(1_500_000)
        assert file.read(10) == data[1_500_000:1_500_010]
    with pytest.raises(FileNotFoundError, match="keeps no file 'other'"):
        files.reader("other")
    store.close()
