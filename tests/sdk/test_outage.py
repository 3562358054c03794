"""One line when Redis is lost, one when it is back, whoever in a process notices."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from stoker.errors import RedisUnavailable
from stoker.every import Outage, every


def test_several_parts_that_lose_redis_say_so_once_and_once_when_the_last_has_it_again() -> None:
    outage = Outage()
    with capture_logs() as logs:
        outage.back("beat")
        outage.lost("beat", RedisUnavailable("gone"))
        outage.lost("beat", RedisUnavailable("gone"))
        outage.lost("start", RedisUnavailable("gone"))
        outage.back("beat")
        assert [line["event"] for line in logs] == ["redis unavailable"]
        outage.back("start")
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("redis unavailable", "warning"),
        ("redis is back", "info"),
    ]
    assert logs[0]["error"] == "gone"
    assert logs[1]["after_s"] >= 0


def test_a_loop_goes_on_through_an_outage_and_says_so_once() -> None:
    async def run() -> int:
        stop, ticks = asyncio.Event(), 0

        async def tick() -> None:
            nonlocal ticks
            ticks += 1
            if ticks == 6:
                stop.set()
            if 2 <= ticks <= 4:
                raise RedisUnavailable("gone")

        await asyncio.wait_for(every(0.001, tick, stop), 5)
        return ticks

    with capture_logs() as logs:
        assert asyncio.run(run()) == 6
    assert [line["event"] for line in logs] == ["redis unavailable", "redis is back"]


def test_a_loop_ends_at_once_when_it_is_stopped_while_it_rests() -> None:
    async def run() -> None:
        stop, ticked = asyncio.Event(), asyncio.Event()

        async def tick() -> None:
            ticked.set()

        loop = asyncio.create_task(every(3600, tick, stop))
        await ticked.wait()
        stop.set()
        await asyncio.wait_for(loop, 30)

    asyncio.run(run())
