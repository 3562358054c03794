"""`client.batches`, blocking and awaited: what it takes, what it refuses, and what it gives back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from batch.conftest import Bench, framed, text_of
from sdk.fleet import Fleet
from stoker.async_client import AsyncClient
from stoker.batch.flows import BatchNotReady, BatchUnknown
from stoker.batch.submission import prepare
from stoker.errors import IdempotencyConflict, InvalidRequest, ResultTimeout, StokerError


def test_an_iterable_of_lines_and_prompts_is_a_batch(bench: Bench, fleet: Fleet) -> None:
    lines = (line for line in [framed("a", "one"), "two three", {"custom_id": "c", "prompt": "four"}])
    batch = bench.client.batches.create(lines, max_tokens=1)
    outcome = bench.start(batch)
    assert batch.wait(timeout=30).state == "completed"
    outcome.result()
    assert {line["custom_id"]: text_of(line) for line in batch.results()} == {
        "a": "ONE ",
        "line-2": "TWO ",
        "c": "FOUR ",
    }
    assert Path(batch.status().output).is_relative_to(bench.config.state or "/")


def test_an_item_without_a_json_form_is_refused_by_its_number(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="item 2"):
        bench.client.batches.create(["a", {"prompt": object()}])


def test_the_output_of_a_file_is_beside_it(bench: Bench, fleet: Fleet) -> None:
    batch = bench.client.batches.create(str(bench.write("a", b"oops", name="some.jsonl")))
    bench.run(batch)
    status = batch.status()
    assert (status.output, status.errors_file) == (
        str(bench.folder / "some.output.jsonl"),
        str(bench.folder / "some.errors.jsonl"),
    )
    assert Path(status.output).exists()
    assert [line["error"]["line"] for line in batch.errors()] == [2]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"output": "in.jsonl"}, "output"),
        ({"output": "there.jsonl"}, "output"),
        ({"output": "no/folder/out.jsonl"}, "output"),
        ({"batch_id": "a.b"}, "batch"),
        ({"batch_id": ""}, "batch"),
        ({"batch_id": "x" * 65}, "batch"),
        ({"priority": "urgent"}, "priority"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": True}, "max_in_flight"),
        ({"max_token": 5}, "defaults"),
    ],
)
def test_what_cannot_be_a_batch_is_refused_before_anything_is_made(
    bench: Bench, options: dict[str, object], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    bench.write("a")
    (bench.folder / "there.jsonl").write_text("yours")
    with pytest.raises(InvalidRequest) as caught:
        bench.client.batches.create("in.jsonl", **options)
    assert caught.value.field == field
    assert (bench.folder / "there.jsonl").read_text() == "yours"
    assert sorted(path.name for path in bench.folder.iterdir()) == ["in.jsonl", "there.jsonl"]
    assert bench.client.batches.list() == []


def test_an_output_by_another_name_of_the_input_is_refused(bench: Bench) -> None:
    (bench.folder / "link.jsonl").symlink_to(bench.write("a"))
    with pytest.raises(InvalidRequest, match="another file than the input"):
        bench.client.batches.create(bench.folder / "in.jsonl", output=bench.folder / "link.jsonl")


def test_the_same_batch_again_is_the_same_and_another_one_a_conflict(bench: Bench) -> None:
    spec = prepare(bench.write("a"), bench.config, batch_id="b")
    bench.client.batches.submit(spec)
    bench.client.batches.submit(spec)
    other = prepare(bench.write("x", name="y.jsonl"), bench.config, batch_id="b")
    with pytest.raises(IdempotencyConflict):
        bench.client.batches.submit(other)
    assert [status.id for status in bench.client.batches.list()] == ["b"]


def test_batches_are_listed_the_newest_first(bench: Bench) -> None:
    for name in ("one", "two"):
        bench.client.batches.create([name], batch_id=name)
    assert [status.id for status in bench.client.batches.list()] == ["two", "one"]


def test_an_unknown_batch_is_an_error_of_its_own(bench: Bench) -> None:
    batch = bench.client.batches.get("nobody")
    for ask in (batch.status, batch.cancel, batch.retry, batch.wait, lambda: list(batch.results())):
        with pytest.raises(BatchUnknown, match="nobody"):
            ask()


def test_what_is_over_cannot_be_steered_and_what_is_whole_not_retried(bench: Bench, fleet: Fleet) -> None:
    batch = bench.submit("a")
    with pytest.raises(BatchNotReady, match="not over"):
        batch.retry()
    bench.run(batch)
    for ask in (batch.cancel, batch.pause, batch.resume):
        with pytest.raises(BatchNotReady, match="is over"):
            ask()
    with pytest.raises(BatchNotReady, match="no failed lines"):
        batch.retry()


def test_waiting_has_a_deadline(bench: Bench) -> None:
    with pytest.raises(ResultTimeout):
        bench.submit("a").wait(timeout=0.01)


def test_a_place_without_a_batchs_files_cannot_be_adopted(bench: Bench) -> None:
    with pytest.raises(StokerError, match="no batch left files"):
        bench.client.batches.adopt(bench.folder / "x.jsonl")


def test_a_status_says_that_no_batch_worker_is_there(bench: Bench) -> None:
    batch = bench.submit("a")
    with bench.redis() as server:
        server.hincrby("stoker:{default}:batch:b", "created", -6_000_000)
    assert "stoker batch-worker" in batch.status().why


async def test_the_awaited_client_does_the_same(bench: Bench, fleet: Fleet) -> None:
    async with AsyncClient(config=bench.config) as client:
        batch = await client.batches.create(["one", "two"], batch_id="mine")
        outcome = bench.start(bench.client.batches.get("mine"))
        status = await batch.wait(timeout=30)
        assert (status.state, status.succeeded) == ("completed", 2)
        outcome.result()
        assert {line["custom_id"] async for line in batch.results()} == {"line-1", "line-2"}
        assert [line async for line in batch.errors()] == []
        assert [status.id for status in await client.batches.list()] == ["mine"]
        with contextlib.suppress(BatchNotReady):
            await client.batches.get("mine").retry()
        for ask in (batch.cancel, batch.pause, batch.resume):
            with pytest.raises(BatchNotReady):
                await ask()


async def test_the_awaited_client_adopts_too(bench: Bench) -> None:
    bench.submit("a")
    with bench.redis() as server:
        server.flushall()
    async with AsyncClient(config=bench.config) as client:
        batch = await client.batches.adopt(bench.folder / "out.jsonl")
        assert (await batch.status()).state == "queued"
        with pytest.raises(ResultTimeout):
            await batch.wait(timeout=0.01)


def test_a_spec_is_what_its_record_says(bench: Bench) -> None:
    spec = prepare(bench.write("a"), bench.config, batch_id="b", defaults={"temperature": 0})
    assert type(spec).from_dict(json.loads(spec.to_json())) == spec
    assert spec.parts == bench.folder / ".in.output.jsonl.b"
