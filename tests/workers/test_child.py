"""The way from a supervisor to its child: what happens when nobody listens there."""

from __future__ import annotations

import asyncio
import sys

from stoker import Config
from stoker_workers.child import UNHEARD_BYTES, Child
from stoker_workers.messages import Drain, EngineOptions, Nudge, Stop

DEAF = (sys.executable, "-c", "import time; time.sleep(60)")


def test_nobody_waits_for_a_child_that_hears_nothing_and_what_it_is_told_stays_bounded() -> None:
    async def tell() -> tuple[int, int]:
        child = Child(Config(), EngineOptions("sim"), "w:1-x", "error")
        child._process = process = await asyncio.create_subprocess_exec(*DEAF, stdin=asyncio.subprocess.PIPE)
        assert process.stdin is not None
        named = Stop([[f"request-{i}", "1-abc-7"] for i in range(512)])
        for _ in range(1000):
            child.tell(named)
            child.tell(Nudge())
        before = process.stdin.transport.get_write_buffer_size()
        child.tell(Drain(0.0))
        after = process.stdin.transport.get_write_buffer_size()
        await child.end()
        return before, after

    before, after = asyncio.run(tell())
    assert before <= 1.1 * UNHEARD_BYTES
    assert after > before, "what is said once is never left out"
