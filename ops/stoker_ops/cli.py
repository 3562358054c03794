"""The commands `stoker up` and `stoker demo`, and all others of this package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stoker.command import EXIT_INTERRUPTED, EXIT_OK, EXIT_TIMEOUT, LOG_LEVELS, fail, guarded
from stoker_ops.doctor import doctor
from stoker_ops.explain import explain
from stoker_ops.preview import queue
from stoker_ops.simulate.command import simulate
from stoker_workers.cli import engine_options

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from stoker.config import Config
    from stoker_ops.local import LocalStack
    from stoker_ops.settings import StackSettings
    from stoker_workers.messages import EngineOptions

DEMO_READY_S = 180.0
"""How long a demo waits for its workers, unless STOKER_LOAD_TIMEOUT_S says otherwise."""


@click.command()
@click.option(
    "--workers", type=click.IntRange(1), help="How many workers; default: one for each GPU, else one a shard."
)
@engine_options
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Say in JSON when it is ready, and where.")
@click.option(
    "--redis", "redis_url", metavar="URL", help="Redis to use; default: STOKER_REDIS_URL, else one of its own."
)
@click.option("--queue", metavar="NAME", help="The queue; default: STOKER_QUEUE, else 'default'.")
@click.option("--shards", type=int, metavar="N", help="How many shards it has; default: STOKER_SHARDS, else 1.")
@guarded
def up(
    workers: int | None,
    log_level: str,
    as_json: bool,
    redis_url: str | None,
    queue: str | None,
    shards: int | None,
    **options: Any,
) -> None:
    """Start a stack on this machine: a Redis, a scheduler, workers, and what runs batch files (with stoker[batch]).

    Runs until Ctrl-C.

    The Redis keeps its data in STOKER_STATE (default: ~/.local/state/stoker), and other commands find it there.
    Ctrl-C lets the workers finish what they run; a second one makes them give it back.

    \b
    Examples:  stoker up --workers 2
               stoker up --model /models/llama
               stoker up --model my_models:Classifier --redis redis://10.0.0.5
    """
    from importlib.util import find_spec

    from stoker.command import state_dir
    from stoker.log import configure
    from stoker_ops.settings import StackSettings

    configure(log_level)
    config = _config(redis_url, queue, shards)
    settings = StackSettings(
        options=_engine(options, lambda line: click.echo(line, err=as_json)),
        workers=workers,
        home=state_dir(config),
        log_level=log_level,
        batch=find_spec("rq") is not None,
    )
    _run(lambda: _up(config, settings, as_json=as_json))


async def _up(config: Config, settings: StackSettings, *, as_json: bool) -> int:
    from asyncio import CancelledError
    from signal import SIGINT

    from stoker_ops.interrupt import interruptible
    from stoker_ops.local import LocalStack

    stack = LocalStack(config, settings)
    with interruptible(stack) as interrupt:
        try:
            async with stack:
                click.echo(_ready_json(stack, settings) if as_json else _ready_line(stack, settings))
                await _wait(stack)
        except CancelledError:
            return EXIT_INTERRUPTED if interrupt.reason is SIGINT else EXIT_OK
    return EXIT_OK


async def _wait(stack: LocalStack) -> None:
    from asyncio import CancelledError

    try:
        await stack.wait()
    except CancelledError:
        click.echo("stopping: workers finish what they run; a second Ctrl-C makes them give it back", err=True)
        raise


@click.command()
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="How many workers.")
@engine_options
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Requests to push, as JSON lines with the fields of a request; default: some hundred that the model knows.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="warning", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, and nothing else to standard output.")
@guarded
def demo(workers: int, prompts: Path | None, log_level: str, as_json: bool, **options: Any) -> None:
    """Start a whole stack here for a moment, push requests through it, and show how it did.

    Nothing is left of it at the end. Exits with 1 if a request failed.

    \b
    Examples:  stoker demo
               stoker demo --model /models/llama --prompts prompts.jsonl --json
    """
    from stoker.config import load_config
    from stoker.log import configure
    from stoker_ops.demo import read_prompts, run_demo
    from stoker_ops.settings import StackSettings

    configure(log_level)
    engine = _engine(options, lambda line: click.echo(line, err=as_json))
    requests = read_prompts(prompts)
    # A stack of its own, whatever Redis the environment names.
    config = load_config().model_copy(update={"redis_url": None})
    limit_s = config.load_timeout_s if "load_timeout_s" in config.model_fields_set else DEMO_READY_S
    settings = StackSettings(options=engine, workers=workers, share_gpus=True, quiet=True, ready_timeout_s=limit_s)
    _run(lambda: run_demo(config, settings, requests, as_json=as_json))


def _run(main: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Run to the end and exit."""
    import asyncio

    from stoker_ops.local import NotReady

    try:
        sys.exit(asyncio.run(main()))
    except NotReady as error:
        fail(str(error), EXIT_TIMEOUT)


def _config(redis_url: str | None, queue: str | None, shards: int | None = None) -> Config:
    """Return the settings; their `redis_url` is None where a Redis of its own is to be started."""
    from stoker.command import make_config
    from stoker.config import load_config

    config = load_config(queue=queue, shards=shards)
    return make_config(redis_url, queue, shards=shards) if redis_url or config.redis_url else config


def _engine(options: dict[str, Any], tell: Callable[[str], object]) -> EngineOptions:
    """Return what workers are to run; without a model's name the best that is installed here."""
    from importlib.util import find_spec

    from stoker_workers.demo import DEMO
    from stoker_workers.engines import OPENAI, SIM
    from stoker_workers.messages import EngineOptions

    if not options["model"] and options["engine"] != OPENAI:
        missing = [name for name in ("torch", "transformers") if not find_spec(name)]
        if missing and options["engine"] != SIM:
            tell(f'without {missing[0]} no model runs, so the sim engine answers; pip install "stoker[worker]" adds it')
        options["model"] = SIM if missing or options["engine"] == SIM else DEMO
    return EngineOptions(**options)


def _ready_json(stack: LocalStack, settings: StackSettings) -> str:
    """Return where it is as JSON, on one line: whoever starts it reads a line and goes on."""
    import json

    from stoker.store.address import redact

    where = {"redis_url": redact(stack.config.redis_url or ""), "queue": stack.config.queue}
    return json.dumps(where | {"model": settings.options.model, "workers": stack.workers, "devices": stack.devices})


def _ready_line(stack: LocalStack, settings: StackSettings) -> str:
    from stoker.store.address import redact

    config = stack.config
    url = redact(config.redis_url or "")
    words = ["stoker", "submit", *(["--queue", config.queue] if config.queue != "default" else [])]
    words += ["--shards", str(config.shards)] if config.shards > 1 else []
    if not stack.owns_redis:
        words += ["--redis", url]
    names = ", ".join(stack.workers)
    return f'ready at {url}: {names} serve {settings.options.model}. Try: {" ".join(words)} "The with statement"'


commands: list[click.Command] = [up, demo, doctor, explain, queue, simulate]
