"""What the bench of streams makes of its figures; nothing here is timed."""

from __future__ import annotations

from stream import redis_share


def test_the_share_of_redis_is_for_the_wanted_rate() -> None:
    assert redis_share({"redis, %": 30.0, "tokens/s": 5_000.0}, wanted=10_000.0) == 60.0
    assert redis_share({"redis, %": 30.0, "tokens/s": 10_500.0}, wanted=10_000.0) == 30.0
