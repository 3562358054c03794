"""A queue of three shards over the three nodes of a cluster: the clients' verbs on all of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
import redis

from helpers import MARK, wait_until
from ports import free_port
from redis_cluster import Cluster, start_cluster
from sdk.fleet import Fleet
from stoker import AsyncClient, Client, Config, ConfigError, InferenceRequest, InvalidRequest, RedisUnavailable
from stoker.batch.run import run_batch
from stoker.shards import shard_of
from stoker.store import scripts
from stoker.store.connection import Store
from stoker.store.keys import Keys
from stoker_ops.embedded import ServerBinary

SHARDS = 3
IDS = [f"r{i}" for i in range(30)]


@pytest.fixture(scope="module")
def cluster(server_binary: ServerBinary) -> Iterator[Cluster]:
    """Three nodes, for all tests of this module."""
    folder = Path(tempfile.mkdtemp(prefix="stoker-t-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MARK, raising=False)
        with start_cluster(server_binary, folder) as nodes:
            yield nodes
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def config(cluster: Cluster) -> Config:
    """Settings of the whole queue, on empty nodes."""
    for node in cluster.nodes:
        with redis.Redis.from_url(node.url) as server:
            server.flushall()
    return Config(redis_url=cluster.url, shards=SHARDS, heartbeat_ms=100, backoff_min_ms=1, backoff_max_ms=1)


@pytest.fixture
def client(config: Config) -> Iterator[Client]:
    with Client(config=config) as client:
        yield client


@pytest_asyncio.fixture
async def aclient(config: Config) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(config=config) as client:
        yield client


@pytest.fixture
def fleets(config: Config) -> Iterator[list[Fleet]]:
    """A scheduler and a worker for each shard."""
    with contextlib.ExitStack() as running:
        running.enter_context(contextlib.closing(Store(config.of(0)))).run(scripts.agree(SHARDS))
        yield [running.enter_context(Fleet(config.of(shard))) for shard in range(SHARDS)]


def requests(ids: list[str] = IDS) -> list[InferenceRequest]:
    return [InferenceRequest(prompt_tokens=[i + 1], request_id=request_id) for i, request_id in enumerate(ids)]


def payloads(cluster: Cluster) -> list[set[str]]:
    """The ids of the requests that lie on each node."""
    keys = [cluster.keys(node) for node in range(len(cluster.nodes))]
    return [{key.rpartition(":")[2] for key in some if ":payload:" in key} for some in keys]


# --- where things lie ------------------------------------------------------------------------------------------------


def test_each_shard_lies_on_a_node_of_its_own(client: Client, cluster: Cluster) -> None:
    client.submit_many(requests())
    found = payloads(cluster)
    assert sorted(map(sorted, found)) == sorted(sorted(x for x in IDS if shard_of(x, 3) == i) for i in range(SHARDS))
    assert all(found)


def test_requests_without_an_id_get_one_of_the_shard_that_they_lie_in(client: Client, cluster: Cluster) -> None:
    ids = [client.submit(prompt="x").id for _ in range(6)]
    ids += [job.id for job in client.submit_many(["x"] * 6)]  # type: ignore[union-attr]  # all are accepted
    assert [len(part) for part in payloads(cluster)] == [4, 4, 4]
    assert all(len({shard_of(found, 3) for found in part}) == 1 for part in payloads(cluster))
    assert {client.job(found).status() for found in ids} == {"queued"}


def test_the_same_id_is_the_same_request_through_any_client(client: Client, config: Config, cluster: Cluster) -> None:
    client.submit_many(requests())
    with Client(config=config) as other:
        other.submit_many(requests())
        assert other.stats()["counts"]["submitted"] == len(IDS)
    assert sum(map(len, payloads(cluster))) == len(IDS)


# --- the verbs -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fleets")
def test_all_verbs_reach_all_shards(client: Client) -> None:
    jobs = client.submit_many([*requests(), InferenceRequest(prompt_tokens=[7], request_id="r0")])
    assert [job.result(10).token_ids[0] for job in jobs[:-1]] == list(range(2, 32))
    assert "r0" in str(jobs[-1])
    assert [client.job(found).result(5).token_ids[0] for found in IDS] == list(range(2, 32))
    prompts = [[i % 900 + 1] for i in range(2000)]
    assert [response.token_ids[0] for response in client.map(prompts)] == [i % 900 + 2 for i in range(2000)]
    done = client.as_completed(client.submit_many(prompts[:20]), timeout=10)
    assert sorted(response.token_ids[0] for response in done) == list(range(2, 22))
    assert "".join(chunk.text for chunk in client.stream(prompt="a b c")) == "A B C "
    assert len(client.workers()) == SHARDS
    assert client.stats()["counts"]["succeeded"] == len(IDS) + 2000 + 20 + 1
    assert client.queue_card() is not None


@pytest.mark.usefixtures("fleets")
async def test_all_verbs_reach_all_shards_awaited(aclient: AsyncClient) -> None:
    jobs = await aclient.submit_many(requests())
    assert [(await job.result(10)).token_ids[0] for job in jobs] == list(range(2, 32))
    assert [(await aclient.job(found).result(5)).token_ids[0] for found in IDS] == list(range(2, 32))
    prompts = [[i % 900 + 1] for i in range(2000)]
    assert [response.token_ids[0] async for response in aclient.map(prompts)] == [i % 900 + 2 for i in range(2000)]
    done = aclient.as_completed(await aclient.submit_many(prompts[:20]), timeout=10)
    assert sorted([response.token_ids[0] async for response in done]) == list(range(2, 22))
    assert "".join([chunk.text async for chunk in aclient.stream(prompt="a b c")]) == "A B C "
    assert len(await aclient.workers()) == SHARDS
    assert (await aclient.stats())["counts"]["succeeded"] == len(IDS) + 2000 + 20 + 1


def test_what_waits_can_be_cancelled_by_its_id(client: Client) -> None:
    client.submit_many(requests())
    assert all(client.job(found).cancel() for found in IDS)
    assert client.stats()["counts"]["cancelled"] == len(IDS)


@pytest.mark.usefixtures("fleets")
def test_dead_letters_of_all_shards_are_one_list(client: Client) -> None:
    bad = [InferenceRequest(prompt_tokens=[1], request_id=found, metadata={"do": "fail"}) for found in IDS[:6]]
    jobs = client.submit_many(bad)
    assert {job.response(10).status for job in jobs} == {"failed"}
    letters = client.dead_letters()
    assert {letter.id for letter in letters} == set(IDS[:6])
    assert [letter.at_s for letter in letters] == sorted((letter.at_s for letter in letters), reverse=True)
    assert len(client.dead_letters(2)) == 2
    again = client.retry_dead(IDS[0])
    assert client.job(again.id).response(10).status == "failed"
    assert client.purge_dead(IDS[1:6]) == 5


def test_what_is_set_for_a_tenant_is_set_in_all_shards(client: Client, config: Config) -> None:
    client.set_tenant("acme", weight=4)
    assert client.tenants() == {"acme": {"weight": 4}}
    for shard in range(SHARDS):
        with Client(config=config.of(shard)) as one:
            assert one.tenants() == {"acme": {"weight": 4}}


@pytest.mark.usefixtures("fleets")
def test_a_model_is_changed_in_all_shards_or_none(client: Client) -> None:
    wait_until(lambda: len(client.workers()) == SHARDS)
    with pytest.raises(Exception, match="has workers of another model"):
        client.forget_model()
    assert client.queue_card() is not None


# --- one shard, and another number -----------------------------------------------------------------------------------


def test_a_client_of_one_shard_refuses_ids_of_others(config: Config) -> None:
    shard = shard_of("a", SHARDS)
    with Client(config=config.of(shard)) as own, Client(config=config.of((shard + 1) % SHARDS)) as other:
        assert own.submit(prompt="x", request_id="a").status() == "queued"
        with pytest.raises(InvalidRequest, match=f"request_id: must belong to shard {other.config.shard}, not to"):
            other.submit(prompt="x", request_id="a")


@pytest.mark.parametrize("number", [1, 2, 4])
def test_another_number_of_shards_is_refused(config: Config, client: Client, number: int) -> None:
    client.submit(prompt="x")
    with (
        Client(config=Config(redis_url=config.redis_url, shards=number)) as other,
        pytest.raises(ConfigError, match=f"shards: queue 'default' has 3, got {number}; set STOKER_SHARDS"),
    ):
        other.submit(prompt="x")


async def test_another_number_of_shards_is_refused_awaited(config: Config, aclient: AsyncClient) -> None:
    await aclient.submit(prompt="x")
    async with AsyncClient(config=Config(redis_url=config.redis_url)) as other:
        with pytest.raises(ConfigError, match="shards: queue 'default' has 3, got 1"):
            await other.job("x").status()


def test_a_queue_in_use_as_one_shard_is_not_cut(config: Config) -> None:
    one = Config(redis_url=config.redis_url)
    with Client(config=one) as client, Client(config=config) as sharded:
        client.submit(prompt="x")
        with pytest.raises(ConfigError, match="has 1, got 3"):
            sharded.submit(prompt="x")


def test_batch_files_are_not_those_of_one_shard(config: Config) -> None:
    with (
        Client(config=config.of(1)) as client,
        pytest.raises(ConfigError, match="shard: batch files run on all shards of a queue; leave it out, got 1"),
    ):
        _ = client.batches


LINES = 60


def write_lines(path: Path) -> Path:
    """A batch file."""
    path.write_text("".join(json.dumps({"custom_id": f"c{i}", "prompt_tokens": [i + 1]}) + "\n" for i in range(LINES)))
    return path


def succeeded(config: Config) -> list[int]:
    """How many requests each shard answered."""
    found = []
    for each in config.each():
        with Client(config=each) as client:
            found.append(client.stats()["counts"].get("succeeded", 0))
    return found


@pytest.mark.usefixtures("fleets")
@pytest.mark.parametrize("store", ["folder", "redis"])
def test_a_batch_file_runs_on_all_shards(client: Client, tmp_path: Path, store: Literal["folder", "redis"]) -> None:
    batch = client.batches.create(write_lines(tmp_path / "in.jsonl"), store=store)
    assert run_batch(client.config, batch.id, threading.Event()) == "completed"
    assert {line["custom_id"] for line in batch.results()} == {f"c{i}" for i in range(LINES)}
    assert sum(succeeded(client.config)) == LINES
    assert all(succeeded(client.config))


def test_a_shard_that_is_full_holds_up_no_lines_of_others(config: Config, tmp_path: Path) -> None:
    config = config.model_copy(update={"max_waiting": 5})
    with contextlib.ExitStack() as running, Client(config=config) as client:
        running.enter_context(contextlib.closing(Store(config.of(0)))).run(scripts.agree(SHARDS))
        for shard in (0, 1):
            running.enter_context(Fleet(config.of(shard)))
        batch = client.batches.create(write_lines(tmp_path / "in.jsonl"))
        pool = running.enter_context(ThreadPoolExecutor(1))
        state = pool.submit(run_batch, config, batch.id, threading.Event())
        lines = Counter(shard_of(f"{batch.id}-{number}-0", SHARDS) for number in range(1, LINES + 1))
        wait_until(lambda: succeeded(config) == [lines[0], lines[1], 0], 20, what="the lines of two shards are done")
        assert lines[2] > 5
        with Fleet(config.of(2)):
            assert state.result(30) == "completed"
        assert len(list(batch.results())) == LINES


# --- the cluster -----------------------------------------------------------------------------------------------------


def test_a_connection_follows_its_slot_to_another_node(cluster: Cluster, config: Config) -> None:
    with Client(config=config.of(1)) as client:
        assert client.queue_card() is None
        with moved(cluster, Keys(config.of(1).tag).prefix) as node:
            job = client.submit(prompt="x")
            assert payloads(cluster)[node] == {job.id}


@contextlib.contextmanager
def moved(cluster: Cluster, key: str) -> Iterator[int]:
    """Give the slot of an empty shard to another node for a while; gives that node's number."""
    with contextlib.ExitStack() as opened:
        nodes = [opened.enter_context(redis.Redis.from_url(node.url, decode_responses=True)) for node in cluster.nodes]
        slot = int(nodes[0].execute_command("CLUSTER", "KEYSLOT", key))
        before = 3 * slot // 16384
        ids = [str(node.execute_command("CLUSTER", "MYID")) for node in nodes]

        def give(i: int) -> None:
            for node in [nodes[i], *nodes]:
                node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[i])

        give((before + 1) % 3)
        yield (before + 1) % 3
        nodes[(before + 1) % 3].flushall()
        give(before)


def test_a_server_of_the_cluster_named_alone_says_how_to_name_it(cluster: Cluster, config: Config) -> None:
    plain = [f"redis://127.0.0.1:{port}" for port in cluster.ports]
    errors = list(filter(None, (refusal(url) for url in plain)))
    assert len(errors) == 2
    assert all("on another node" in error and "redis+cluster://" in error for error in errors)


def refusal(url: str) -> str:
    with Client(config=Config(redis_url=url, retry_timeout_s=0)) as client:
        try:
            client.submit(prompt="x")
        except RedisUnavailable as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    "url", ["redis+cluster://", "redis+cluster://h:x", "redis+cluster://:pw@h/3", "redis+cluster://h?a=b"]
)
def test_a_cluster_url_of_another_form_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(ConfigError, match=r"must have the form redis\+cluster://.*host:port,host:port") as error:
        Client(url)
    assert "pw" not in str(error.value).partition("got")[2]


def test_a_cluster_none_of_whose_nodes_answers_is_unavailable() -> None:
    config = Config(redis_url=f"redis+cluster://127.0.0.1:{free_port()}", retry_timeout_s=0)
    with Client(config=config) as client, pytest.raises(RedisUnavailable, match="does not answer"):
        client.submit(prompt="x")
