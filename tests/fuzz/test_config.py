"""Settings of any value: refused with a line that names the setting, or a whole life of a request works with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from fuzz.cases import fuzz, words
from protocol.rig import CLOCK, START, A, Queue, ok, settlement
from stoker.config import MOST, MOST_BY_UNIT, Config
from stoker.errors import ConfigError
from stoker.store import codec
from stoker.store.connection import Store

NUMBERS = [name for name, field in Config.model_fields.items() if field.annotation in (int, float)]
edges = st.sampled_from(["0", "1", "2", "20", "0.001", "1e-9", "1e9", str(MOST), *map(str, MOST_BY_UNIT.values())])
numbers = edges | st.integers(0, 1 << 51).map(str) | st.floats(0, 1e9).map(str)
settings = st.dictionaries(st.sampled_from(NUMBERS), numbers | words, max_size=6)


@fuzz(2, given=settings, events=st.booleans())
def test_any_settings_work_or_are_refused_by_name(queue: Queue, given: dict[str, str], events: bool) -> None:
    try:
        config = Config(redis_url=queue.config.redis_url, events=events, **given)  # type: ignore[arg-type]  # texts
    except ConfigError as error:
        for line in str(error).splitlines():
            assert line.partition(":")[0] in Config.model_fields, line
        return
    a_life(queue, config)


def a_life(queue: Queue, config: Config) -> None:
    """Submit, dispatch, begin and end: a success, a retry and a cancel, under these settings."""
    queue.redis.flushdb()
    usual = queue.config, queue.store
    queue.config, queue.store, queue.token = config, Store(config, clock=CLOCK), ""
    try:
        queue.now, queue.n = START, 0
        queue.lead()
        queue.register(A)
        names = ["ends", "again", "goes"]
        sent = [queue.encode(name, stream=True, timeout=min(5, config.max_age_s)) for name in names]
        words = [word for item in sent for word in queue.submit_all([item])]
        taken = [name for name, word in zip(names, words, strict=True) if word == "ACCEPTED"]
        assert set(words) <= {"ACCEPTED", "FULL"}
        assert taken
        delivery = queue.start(A, *taken)
        ends: list[Any] = [ok("ends", delivery)] * ("ends" in taken) + [settlement("again", delivery, "retry")]
        assert set(queue.settle(A, *ends)) <= {"OK", "DUPLICATE"}
        if "goes" in taken:
            assert queue.cancel("goes") == "OK"
        queue.promote()
        queue.expire()
        queue.reclaim(A)
    finally:
        queue.store.close()
        queue.config, queue.store = usual


@fuzz(1, given=st.dictionaries(st.sampled_from([*Config.model_fields, "queu", "x"]), words, max_size=5))
def test_the_environment_is_refused_by_the_names_of_its_variables(given: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            try:
                patch.setenv(f"STOKER_{name.upper()}", value)
            except (ValueError, UnicodeEncodeError):  # no environment can hold it
                return
        try:
            config = Config()
        except ConfigError as error:
            for line in str(error).splitlines():
                assert line.startswith(tuple(f"STOKER_{name.upper()}: " for name in Config.model_fields)) or (
                    line.partition(":")[0] in Config.model_fields
                )
        else:
            assert codec.class_windows_us(config)["batch"] >= 0
