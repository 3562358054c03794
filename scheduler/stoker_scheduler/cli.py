"""The command `stoker scheduler`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stoker.command import LOG_LEVELS, metrics_option, queue_options

if TYPE_CHECKING:
    from stoker.config import Config


@click.command()
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True)
@metrics_option
@queue_options
def scheduler(config: Config, log_level: str, metrics_port: int | None) -> None:
    """Schedule a queue: order what waits, form batches, watch the workers.

    Run as many as you like: one leads, the others stand by. Waits for a Redis that is down. Of a queue with shards it
    schedules all, or the one that --shard names.

    \b
    Examples:  stoker scheduler --redis redis://10.0.0.5:6379/0
               stoker scheduler --queue wide --shards 3 --shard 0
    """
    from stoker.light import leave_rich_out

    leave_rich_out()
    import uvloop

    from stoker.garbage import spare_what_stays
    from stoker.log import configure
    from stoker_scheduler.shards import schedule

    configure(log_level)
    if metrics_port is not None:
        config = config.model_copy(update={"metrics_port": metrics_port})
    spare_what_stays()
    uvloop.run(schedule(config))


commands: list[click.Command] = [scheduler]
