"""The commands `stoker worker`, `stoker profile` and `stoker demo-model`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stoker import completion
from stoker.command import LOG_LEVELS, guarded, metrics_option, queue_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from stoker.config import Config


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what model runs, and how; `up` and `demo` pass the same on."""
    options = [
        click.option("--model", metavar="NAME", help="demo, sim, a folder, module:Class, or a server's name for it."),
        click.option(
            "--engine",
            type=click.Choice(["auto", "torch", "transformers-cb", "callable", "openai", "sim"]),
            default="auto",
            show_default=True,
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0 ..."),
        click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True),
        click.option(
            "--task",
            type=click.Choice(["auto", "generate", "embed", "classify"]),
            default="auto",
            show_default=True,
            help="What a folder's model is to do; auto: what its config says.",
        ),
        click.option(
            "--pooling",
            type=click.Choice(["auto", "mean", "last", "cls"]),
            default="auto",
            show_default=True,
            help="How embed makes one vector of a text's; auto: as the folder says, else mean.",
        ),
        click.option("--profile", metavar="FILE|zero|instant", help="What a step of the sim engine costs (JSON, ms)."),
        click.option("--max-num-seqs", type=click.IntRange(1), help="Most requests that run at once."),
        click.option(
            "--max-num-batched-tokens", type=click.IntRange(1), help="Most tokens of one step or padded batch."
        ),
        click.option("--kv-cache-tokens", type=click.IntRange(1), help="Most tokens that the cache holds."),
        *_server_options(),
        click.option(
            "--tensor-parallel-size",
            "tensor_parallel",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Ranks over which a model is split; one worker all the same.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _server_options() -> list[Callable[..., Any]]:
    """Return the options of the openai engine."""
    folder = click.Path(exists=True, file_okay=False)
    return [
        click.option(
            "--base-url", metavar="URL", help="openai: where the server's API lies, like http://gpu0:8000/v1."
        ),
        click.option("--api-key-env", metavar="NAME", help="openai: the environment variable that holds the key."),
        click.option("--tokenizer", type=folder, help="openai: folder with tokenizer.json, to send token ids as text."),
        click.option("--send-token-ids", is_flag=True, help="openai: send token ids as they are; vLLM takes them."),
        click.option("--max-model-len", type=click.IntRange(2), help="openai: the model's context, in tokens."),
        click.option("--server-timeout", type=click.FloatRange(1), help="openai: longest silence, in s; default 300."),
    ]


@click.command()
@engine_options
@click.option("--name", metavar="NAME", help="Unique in the queue; default: host and process id.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True)
@metrics_option
@queue_options
def worker(config: Config, name: str | None, log_level: str, metrics_port: int | None, **options: Any) -> None:
    """Run a model and serve a queue with it.

    Waits for a Redis that is down. SIGTERM drains: what runs is finished or given back. Of a queue with shards it
    serves the one that --shard names, else the one with the fewest workers.

    \b
    Examples:  stoker worker --model demo
               stoker worker --model /models/llama --device cuda:0 --name gpu0
               stoker worker --model my_models:Classifier
               stoker worker --engine openai --base-url http://gpu0:8000/v1
    """
    import asyncio

    from stoker.light import leave_rich_out

    leave_rich_out()
    from stoker.log import configure
    from stoker.shard_choice import with_shard
    from stoker_workers.messages import EngineOptions
    from stoker_workers.supervisor import Supervisor

    if not options["model"]:
        options["model"] = {"sim": "sim", "openai": ""}.get(options["engine"], "demo")
    configure(log_level)

    async def run() -> None:
        engine = EngineOptions(**options)
        settings = await with_shard(config)
        await Supervisor(settings, engine, name=name, log_level=log_level, metrics_port=metrics_port).run()

    asyncio.run(run())


@click.command()
@click.argument("worker_name", metavar="[WORKER]", required=False, shell_complete=completion.workers)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file, not to stdout.")
@click.option("--load/--no-load", default=True, show_default=True, help="Submit loads, or watch what runs anyway.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="How often each load is run.")
@click.option("--seconds", type=click.FloatRange(1), default=60, show_default=True, help="How long to watch.")
@queue_options
def profile(
    config: Config, worker_name: str | None, output: Path | None, load: bool, rounds: int, seconds: float
) -> None:
    """Measure what a step of a running worker costs, for the sim engine.

    Prints JSON that `--engine sim --profile FILE` reads, in ms: what each step
    costs, each prefilled token, each row and each resident token. Best on a
    queue that does nothing else. Without WORKER: the queue's only one.

    \b
    Examples:  stoker profile --output gpu0.json
               stoker profile gpu0 --no-load --seconds 120
    """
    import dataclasses
    import json

    from stoker.client import Client
    from stoker_workers.cost_fit import fit
    from stoker_workers.profiling import Profiler

    total = rounds if load else int(seconds)
    with Client(config=config.of(config.one_shard)) as client:
        profiler = Profiler(client, worker_name)
        with click.progressbar(length=total, label="profiling", file=sys.stderr) as bar:

            def progress(done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            samples = profiler.under_load(rounds, progress) if load else profiler.watching(seconds, progress)
    found = fit(samples)
    text = json.dumps({name: round(value, 6) for name, value in dataclasses.asdict(found.profile).items()}, indent=2)
    if output:
        output.write_text(text + "\n")
    else:
        click.echo(text)
    errors = f"off by {found.median_error:.1%} in the median, {found.largest_error:.1%} at most"
    click.echo(f"{profiler.name}: {found.samples} samples, {errors}", err=True)


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


commands: list[click.Command] = [worker, profile, demo_model]
