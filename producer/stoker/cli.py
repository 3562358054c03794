"""The command `stoker`: a group that the packages of this project join by the entry-point group `stoker.commands`."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from stoker.commands import batch, completion, dead, operate, queues, requests, settings, tenants, top

GROUP = "stoker.commands"


class Commands(click.Group):
    """A group whose other commands come from entry points: a module is imported when its command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        return sorted({*super().list_commands(ctx), *self._joined()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command, None where there is no such; what joins a group of ours by its name is added to it."""
        own = super().get_command(ctx, cmd_name)
        if own and not isinstance(own, click.Group):
            return own
        joined = self._joined().get(cmd_name)
        if isinstance(own, click.Group) and isinstance(joined, click.Group):
            own.commands.update(joined.commands)
        return own or joined

    def _joined(self) -> dict[str, click.Command]:
        found: dict[str, click.Command] = {}
        for point in entry_points(group=GROUP):
            for command in point.load():
                found[command.name] = command
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="stoker")
def main() -> None:
    """Stoker keeps GPUs fed: a distributed queue for model inference on Redis.

    \b
    Exit codes: 0 ok, 1 a request failed, 2 usage, 3 Redis unreachable,
    4 no workers or out of time, 130 interrupted.

    \b
    Start a whole stack here:      stoker up
    Ask it something:              stoker submit "The with statement"
    """


for _command in (
    *(requests.submit, requests.status, requests.result, requests.cancel),
    *(queues.stats, queues.queue, top.top, operate.workers, operate.drain, dead.dead, settings.config),
    tenants.tenants,
    completion.completion,
    *(batch.batch, batch.batch_worker),
):
    main.add_command(_command)
