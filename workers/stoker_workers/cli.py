"""The commands `stoker worker` and `stoker demo-model`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stoker.command import LOG_LEVELS, guarded, queue_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from stoker.config import Config


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what model runs, and how; `up` and `demo` pass the same on."""
    options = [
        click.option("--model", metavar="NAME", help="demo, sim, a folder, or module:Class of your own."),
        click.option(
            "--engine",
            type=click.Choice(["auto", "torch", "transformers-cb", "callable", "sim"]),
            default="auto",
            show_default=True,
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0 ..."),
        click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True),
        click.option("--profile", metavar="FILE|zero", help="What a step of the sim engine costs (JSON, ms)."),
        click.option("--max-num-seqs", type=click.IntRange(1), help="Most requests that run at once."),
        click.option(
            "--max-num-batched-tokens", type=click.IntRange(1), help="Most tokens of one step or padded batch."
        ),
        click.option("--kv-cache-tokens", type=click.IntRange(1), help="Most tokens that the cache holds."),
        click.option(
            "--tensor-parallel",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Ranks over which a model is split; one worker all the same.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@engine_options
@click.option("--name", metavar="NAME", help="Unique in the queue; default: host and process id.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True)
@queue_options
def worker(config: Config, name: str | None, log_level: str, **options: Any) -> None:
    """Run a model and serve a queue with it.

    Waits for a Redis that is down. SIGTERM drains: what runs is finished or given back.

    \b
    Examples:  stoker worker --model demo
               stoker worker --model /models/llama --device cuda:0 --name gpu0
               stoker worker --model my_models:Classifier
    """
    from stoker.log import configure
    from stoker_workers.messages import EngineOptions
    from stoker_workers.supervisor import Supervisor

    if not options["model"]:
        options["model"] = "sim" if options["engine"] == "sim" else "demo"
    configure(log_level)

    async def run() -> None:
        await Supervisor(config, EngineOptions(**options), name=name, log_level=log_level).run()

    asyncio.run(run())


@click.command("demo-model")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--train", is_flag=True, help="Train it anew instead of copying it; takes some minutes.")
@guarded
def demo_model(directory: Path, train: bool) -> None:
    """Write the demo model to DIRECTORY, in Hugging Face format.

    \b
    Examples:  stoker demo-model ./demo
               stoker demo-model ./demo --train
    """
    import shutil

    from stoker.errors import ConfigError
    from stoker_workers.demo import demo_model_path

    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory}: exists and is not empty; nothing is overwritten")
    if not train:
        shutil.copytree(demo_model_path(), directory, dirs_exist_ok=True)
    else:
        from stoker_workers.demo import train as trainer

        with click.progressbar(length=trainer.STEPS, label="training", file=sys.stderr) as bar:
            trainer.train(directory, progress=lambda step: bar.update(step.step - bar.pos))
    click.echo(str(directory))


commands: list[click.Command] = [worker, demo_model]
