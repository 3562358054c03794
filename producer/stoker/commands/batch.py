"""`stoker batch` and `stoker batch-worker`: files of requests."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stoker import completion
from stoker.command import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    LOG_LEVELS,
    fail,
    print_json,
    queue_options,
)
from stoker.commands.requests import PRIORITIES

if TYPE_CHECKING:
    from stoker.batch.sdk import Batch
    from stoker.batch.status import BatchStatus
    from stoker.config import Config

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds that an option means: a number, or one with s, m, h or d behind it."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value)
    if not found or float(found[1]) <= 0:
        raise click.BadParameter(f"{value!r} is no time; for instance 90s, 30m, 2h or 3d", ctx, param)
    return float(found[1]) * UNITS[found[2] or "s"]


WINDOW = click.option("--window", callback=_seconds, metavar="TIME", help="Time it has: 30m, 2h, 3d; default: 24h.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
ID = click.argument("batch_id", metavar="ID", shell_complete=completion.batches)


@click.group()
def batch() -> None:
    """Run files of requests: JSON lines in, JSON lines out, resumable.

    \b
    Exit codes of submit --wait and watch: 0 every line has its answer, 1 some
    have an error (see `stoker batch errors`), or it was cancelled or failed;
    4 its window ended.

    \b
    Examples:  stoker batch submit requests.jsonl --wait
               stoker batch watch ID
               stoker batch retry ID
    """


@batch.command()
@click.argument("source", metavar="FILE")
@click.option("--output", metavar="OUT", help="Where answers go; default: beside FILE; - prints them.")
@click.option("--id", "batch_id", metavar="ID", help="The batch's id; default: a new one.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="batch", show_default=True)
@WINDOW
@click.option("--max-in-flight", type=click.IntRange(1), help="Most requests that are in the queue at a time.")
@click.option("--max-tokens", type=int, help="For lines that do not say.")
@click.option("--temperature", type=float, help="For lines that do not say; default: the model's, else 1.")
@click.option("--any-model", is_flag=True, help="Take lines that name another model.")
@click.option(
    "--store",
    type=click.Choice(["folder", "redis"]),
    help="Where it lies: in a folder that batch workers share, or in Redis; default: batch_store.",
)
@click.option("--wait", is_flag=True, help="Watch it until it is over.")
@JSON
@queue_options
def submit(config: Config, source: str, wait: bool, as_json: bool, window: float | None, **options: Any) -> None:
    """Submit a file: OpenAI batch lines, `{"prompt": ...}` lines, or a .txt file with a prompt a line.

    FILE may be - for standard input. Bad lines become errors, and the good ones run.

    \b
    Examples:  stoker batch submit requests.jsonl
               stoker batch submit prompts.txt --max-tokens 64 --wait
               cat in.jsonl | stoker batch submit - --output - > out.jsonl
    """
    from stoker.batch.submission import prepare
    from stoker.client import Client

    printed = options["output"] == "-"
    defaults = {name: options.pop(name) for name in ("max_tokens", "temperature")}
    options["defaults"] = {name: value for name, value in defaults.items() if value is not None}
    options["output"] = None if printed else options["output"]
    with Client(config=config) as client:
        spec = prepare(sys.stdin.buffer if source == "-" else source, config, **options)
        handle = client.batches.submit(spec, window)
        if not (wait or printed):
            shown = {"id": spec.id, "output": spec.output, "errors": spec.errors}
            where = f"in {spec.output}" if spec.store == "folder" else f"in Redis: stoker batch results {spec.id}"
            print_json(shown) if as_json else click.echo(f"{spec.id}: answers will be {where}")
            return
        click.echo(f"{spec.id} is submitted", err=True)
        status = _watch(handle, quiet=as_json)
        if printed:
            _copy(handle, errors=False)
        elif spec.store == "redis":
            handle.fetch()
        if as_json and not printed:
            print_json(_shown(status))
        _finish(status)


@batch.command()
@ID
@JSON
@queue_options
def status(config: Config, batch_id: str, as_json: bool) -> None:
    """Print how a batch stands.

    \b
    Example:  stoker batch status ID
    """
    from stoker.client import Client

    with Client(config=config) as client:
        found = client.batches.get(batch_id).status()
    if as_json:
        print_json(_shown(found))
        return
    click.echo(_line(found))
    for code, count in sorted(found.errors.items()):
        click.echo(f"  {code}: {count:,}")
    for name, count in sorted(found.workers.items()):
        click.echo(f"  {name}: {count:,} answers")
    in_redis = found.store == "redis"
    click.echo(f"  output: {f'stoker batch results {found.id}' if in_redis else found.output}")
    if found.failed:
        click.echo(f"  errors: {f'stoker batch errors {found.id}' if in_redis else found.errors_file}")


@batch.command()
@ID
@queue_options
def watch(config: Config, batch_id: str) -> None:
    """Watch a batch until it is over: progress, tokens a second, failures by kind, each worker's share.

    \b
    Example:  stoker batch watch ID
    """
    from stoker.client import Client

    with Client(config=config) as client:
        _finish(_watch(client.batches.get(batch_id)))


@batch.command("list")
@JSON
@queue_options
def list_(config: Config, as_json: bool) -> None:
    """Print the batches of the queue, the newest first.

    \b
    Example:  stoker batch list
    """
    from stoker.client import Client

    with Client(config=config) as client:
        found = client.batches.list()
    if as_json:
        print_json([_shown(one) for one in found])
        return
    for one in found:
        click.echo(_line(one))
    if not found:
        click.echo("no batches", err=True)


@batch.command()
@ID
@queue_options
def cancel(config: Config, batch_id: str) -> None:
    """Give up what is not done; finished answers are kept, the other lines become errors.

    \b
    Example:  stoker batch cancel ID
    """
    _steer(config, batch_id, "cancel")


@batch.command()
@ID
@queue_options
def pause(config: Config, batch_id: str) -> None:
    """Send nothing more until `stoker batch resume`; what is in the queue goes on.

    \b
    Example:  stoker batch pause ID
    """
    _steer(config, batch_id, "pause")


@batch.command()
@click.argument("batch_id", metavar="ID|OUT", shell_complete=completion.batches)
@WINDOW
@queue_options
def resume(config: Config, batch_id: str, window: float | None) -> None:
    """Go on after a pause, after a failure such as a full disk, or with the files of a batch that Redis forgot.

    OUT is the output that the forgotten batch was to write.

    \b
    Examples:  stoker batch resume ID
               stoker batch resume answers.jsonl
    """
    from stoker.batch.spec import BATCH_ID
    from stoker.client import Client

    if BATCH_ID.fullmatch(batch_id) and not Path(batch_id).exists():
        _steer(config, batch_id, "resume")
        return
    with Client(config=config) as client:
        click.echo(client.batches.adopt(batch_id, window).id)


@batch.command()
@ID
@WINDOW
@queue_options
def retry(config: Config, batch_id: str, window: float | None) -> None:
    """Run the failed lines of a batch that is over again, and those alone.

    \b
    Example:  stoker batch retry ID
    """
    from stoker.client import Client

    with Client(config=config) as client:
        count = client.batches.get(batch_id).retry(window)
    click.echo(f"{batch_id}: {count:,} lines run again")


@batch.command()
@ID
@queue_options
def results(config: Config, batch_id: str) -> None:
    """Print the answers so far, a line each.

    \b
    Example:  stoker batch results ID > answers.jsonl
    """
    from stoker.client import Client

    with Client(config=config) as client:
        _copy(client.batches.get(batch_id), errors=False)


@batch.command()
@ID
@queue_options
def errors(config: Config, batch_id: str) -> None:
    """Print the errors so far, a line each, with the file and the line at fault.

    \b
    Example:  stoker batch errors ID
    """
    from stoker.client import Client

    with Client(config=config) as client:
        _copy(client.batches.get(batch_id), errors=True)


@batch.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--max-tokens", type=int, help="For lines that do not say.")
@JSON
@queue_options
def estimate(config: Config, source: Path, max_tokens: int | None, as_json: bool) -> None:
    """Print how much a file is: lines, errors, tokens, and the time at the workers' measured rate. Nothing is sent.

    \b
    Example:  stoker batch estimate requests.jsonl
    """
    import dataclasses

    from stoker.batch.estimate import estimate_file
    from stoker.client import Client

    with Client(config=config) as client:
        found = estimate_file(client, source, {} if max_tokens is None else {"max_tokens": max_tokens})
    if as_json:
        print_json(dataclasses.asdict(found) | {"seconds": found.seconds})
        return
    click.echo(f"{found.lines:,} lines, {found.failed:,} with errors")
    for message in found.examples:
        click.echo(f"  {message}")
    click.echo(f"about {found.prompt_tokens:,} prompt tokens, at most {found.max_tokens:,} tokens of answers")
    if found.seconds is None:
        click.echo("the workers have no measured rate yet")
    else:
        click.echo(f"at most {_duration(found.seconds)} at {found.tokens_per_s:,.0f} tokens/s")


@click.command("batch-worker")
@click.option("--runs", type=click.IntRange(1, 64), default=2, show_default=True, help="Batches at a time.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True)
@queue_options
def batch_worker(config: Config, runs: int, log_level: str) -> None:
    """Run the batch files of a queue. Needs the extra stoker[batch]; `stoker up` starts one too.

    It must see the same files as who submits them, but for those that lie in Redis.
    SIGTERM leaves batches to their next run.

    \b
    Example:  stoker batch-worker --redis redis://10.0.0.5:6379/0
    """
    from importlib.util import find_spec

    from stoker.log import configure

    if not find_spec("rq"):
        fail('batch files need RQ; pip install "stoker[batch]" adds it', EXIT_USAGE)
    from stoker.batch.supervisor import Supervisor

    configure(log_level)
    config.check_batches()
    Supervisor(config, runs=runs, log_level=log_level).run()


# --- shared -----------------------------------------------------------------------------------------------------------


def _steer(config: Config, batch_id: str, word: str) -> None:
    from stoker.client import Client

    with Client(config=config) as client:
        handle = client.batches.get(batch_id)
        getattr(handle, word)()
        click.echo(_line(handle.status()))


def _watch(handle: Batch, *, quiet: bool = False) -> BatchStatus:
    from stoker.batch.watch import watch_lines, watch_live

    if quiet:
        return handle.wait()
    return watch_live(handle) if sys.stderr.isatty() else watch_lines(handle, lambda line: click.echo(line, err=True))


def _finish(status: BatchStatus) -> None:
    """Exit as the batch ended."""
    if status.state == "failed":
        fail(f"batch {status.id} failed: {status.why}; then `stoker batch resume {status.id}`", EXIT_FAILED)
    if status.failed:
        kinds = ", ".join(f"{code} {count:,}" for code, count in sorted(status.errors.items()))
        line = f"stoker: {status.failed:,} of {status.total:,} lines failed: {kinds}; see {status.errors_file}"
        click.echo(line, err=True)
    code = EXIT_TIMEOUT if status.state == "expired" else EXIT_FAILED if status.failed else EXIT_OK
    sys.exit(EXIT_FAILED if status.state == "cancelled" else code)


def _copy(handle: Batch, *, errors: bool) -> None:
    out = sys.stdout.buffer
    for piece in handle.raw_errors() if errors else handle.raw_results():
        out.write(piece)
    out.flush()


def _shown(status: BatchStatus) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(status)


def _line(status: BatchStatus) -> str:
    from stoker.batch.watch import summary

    return summary(status)


def _duration(seconds: float) -> str:
    from stoker.batch.watch import duration

    return duration(seconds)
