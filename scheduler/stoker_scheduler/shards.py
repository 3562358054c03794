"""A scheduler for each shard of a queue, in one process."""

from __future__ import annotations

import asyncio
import signal

from stoker.config import Config
from stoker_scheduler.service import Scheduler


async def schedule(config: Config) -> None:
    """Schedule the shard that `config` names, else all, until a signal comes; raises what `Scheduler.serve` raises.

    The metrics of each are on a port of its own, one behind the other.
    """
    if not config.spread:
        await Scheduler(config).run()
        return
    schedulers = [Scheduler(_settings(config, shard)) for shard in range(config.shards)]

    def stop() -> None:
        for scheduler in schedulers:
            scheduler.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    tasks = [asyncio.create_task(scheduler.serve()) for scheduler in schedulers]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop()
    await asyncio.wait(tasks)
    for task in tasks:
        task.result()


def _settings(config: Config, shard: int) -> Config:
    port = config.metrics_port and config.metrics_port + shard
    return config.of(shard).model_copy(update={"metrics_port": port})
