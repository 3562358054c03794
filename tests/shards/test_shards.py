"""Which shard a request belongs to, and where the keys of shards lie."""

from __future__ import annotations

import re
import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker import Config, ConfigError, InvalidRequest
from stoker._calls import fresh_id, unique
from stoker._merge import by_shard, in_order, parts_of
from stoker.config import NAME
from stoker.errors import RedisUnavailable
from stoker.shard_choice import alive, fewest
from stoker.shards import MOST_SHARDS, SLOTS, shard_of, slot_of, tag_of

names = st.from_regex(NAME, fullmatch=True)
many = st.integers(2, MOST_SHARDS)


@pytest.mark.parametrize(("text", "slot"), [("123456789", 12739), ("foo", 12182), ("", 0)])
def test_a_slot_is_that_of_redis(text: str, slot: int) -> None:
    assert slot_of(text) == slot


@given(names, many)
def test_an_id_has_one_shard_among_those_that_there_are(request_id: str, shards: int) -> None:
    assert shard_of(request_id, shards) == shard_of("".join(request_id), shards) < shards
    assert shard_of(request_id, 1) == 0


@pytest.mark.parametrize("shards", [2, 3, 4, 7, 16])
@pytest.mark.parametrize(
    "ids",
    [
        [unique() for _ in range(8000)],
        [f"req-{i}" for i in range(8000)],
        [f"{i:08d}" for i in range(8000)],
        [str(uuid.UUID(int=i * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128)) for i in range(8000)],
    ],
    ids=["ours", "numbers", "padded", "uuids"],
)
def test_ids_are_spread_evenly(ids: list[str], shards: int) -> None:
    found = Counter(shard_of(request_id, shards) for request_id in ids)
    mean = len(ids) / shards
    assert len(found) == shards
    assert all(0.8 * mean < number < 1.2 * mean for number in found.values())


@given(names.filter(lambda name: len(name) <= 120), many)
def test_the_tags_of_shards_are_names_of_which_each_lies_in_a_part_of_its_own(queue: str, shards: int) -> None:
    tags = [tag_of(queue, shards, shard) for shard in range(shards)]
    assert tags[0] == queue
    assert all(NAME.fullmatch(tag) for tag in tags)
    assert {slot_of(tag) * shards // SLOTS for tag in tags} == set(range(shards))


@given(st.text(), many, st.data())
def test_an_id_made_for_a_shard_belongs_to_it(prefix: str, shards: int, data: st.DataObject) -> None:
    shard = data.draw(st.integers(0, shards - 1))
    assert shard_of(fresh_id(Config(shards=shards, shard=shard)), shards) == shard


@given(st.lists(st.none() | names), many, st.integers(0, 1 << 40))
def test_requests_go_by_their_ids_and_by_turns_and_come_back_in_order(
    ids: list[str | None], shards: int, turn: int
) -> None:
    parts = parts_of(ids, shards, turn)
    assert sorted(i for part in parts.values() for i in part) == list(range(len(ids)))
    for shard, part in parts.items():
        assert all(ids[i] is None or shard_of(str(ids[i]), shards) == shard for i in part)
    assert in_order(parts.values(), parts.values()) == list(range(len(ids)))
    turns = Counter(by_shard([None] * len(ids), shards, turn))
    assert not ids or max(turns.values()) - min(turns.values(), default=0) <= 1


def test_a_redis_that_never_answered_is_an_error_and_one_of_several_is_an_answer() -> None:
    gone = RedisUnavailable("gone")
    assert in_order([[1], [0]], [[gone], ["job"]]) == ["job", gone]
    with pytest.raises(RedisUnavailable):
        in_order([[1], [0]], [[gone], [gone]])


@given(st.lists(st.integers(0, 3), min_size=1), st.integers(0, 1000))
def test_a_worker_goes_where_fewest_are_and_those_that_come_together_go_apart(workers: list[int], ticket: int) -> None:
    least = workers.count(min(workers))
    chosen = [fewest(workers, ticket + i) for i in range(least)]
    assert len(set(chosen)) == least
    assert all(workers[shard] == min(workers) for shard in chosen)


def test_only_who_beats_counts() -> None:
    assert alive({"killed": 5.0, "lives": 5.0}, {"killed": 5.0, "lives": 6.0, "new": 6.0}) == 2


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shards": 0}, "shards: Input should be greater than or equal to 1, got 0"),
        ({"shards": 129}, "shards: Input should be less than or equal to 128, got 129"),
        ({"shards": True}, "shards: must not be true or false"),
        ({"shards": 3, "shard": 3}, "shard: must be under shards (3), got 3"),
        ({"shard": 1}, "shard: must be under shards (1), got 1"),
        ({"shard": -1}, "shard: Input should be greater than or equal to 0, got -1"),
        ({"shards": 2, "queue": "q" * 121}, "queue: must have at most 120 characters with shards over 1, got 121"),
    ],
)
def test_what_cannot_be_is_refused_by_field_limit_and_value(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Config(**settings)


def test_one_shard_is_the_queue_itself() -> None:
    config = Config(queue="q")
    assert config.tag == "q"
    assert config.of(0) is config
    assert config.of_id("a") is config
    assert not config.spread


def test_settings_of_all_shards_name_no_keys() -> None:
    with pytest.raises(ConfigError, match="one of the 3 shards of queue 'default'; say at which, with --shard"):
        _ = Config(shards=3).tag


def test_settings_of_a_request_are_those_of_its_shard_unless_one_is_named() -> None:
    config = Config(shards=3)
    assert config.of_id("a").shard == shard_of("a", 3)
    other = config.of((shard_of("a", 3) + 1) % 3)
    assert other.of_id("a") is other
    with pytest.raises(InvalidRequest, match="request_id: must belong to shard"):
        other.check_shard("a")
