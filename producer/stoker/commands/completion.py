"""`stoker completion`: what makes a shell complete our commands, options, workers, dead letters and queues."""

from __future__ import annotations

import click

PROGRAM = "stoker"
VARIABLE = "_STOKER_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete commands, options and names.

    \b
    Examples:
      stoker completion bash > ~/.local/share/bash-completion/completions/stoker
      stoker completion zsh > ~/.zfunc/_stoker
      stoker completion fish > ~/.config/fish/completions/stoker.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None  # noqa: S101  # click has these three
    click.echo(made(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
