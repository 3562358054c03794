"""`stoker submit`, `status`, `result`, `cancel`: one request, from a shell."""

from __future__ import annotations

import dataclasses
import json
import sys
from array import array
from typing import TYPE_CHECKING, Any

import click

from stoker.command import EXIT_FAILED, fail, print_json, queue_options

if TYPE_CHECKING:
    from stoker.client import Client, Job
    from stoker.config import Config
    from stoker.request import InferenceResponse

PRIORITIES = ("critical", "high", "normal", "low", "batch")
WAIT_S = 300.0
MAX_TOKENS = 128


@click.command()
@click.argument("text", required=False)
@click.option("--max-tokens", type=int, help=f"Most tokens of the answer.  [default: {MAX_TOKENS}]")
@click.option("--file", "source", type=click.File("rb"), help="Read the prompt from a file.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@click.option("--timeout", type=float, metavar="S", help="The request's time to live, in seconds.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int)
@click.option("--seed", type=int, help="Makes a sampled answer repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.")
@click.option("--tenant", metavar="NAME")
@click.option("--affinity-key", metavar="KEY", help="Requests of one key prefer one worker (a session, a prefix).")
@click.option("--id", "request_id", metavar="ID", help="The request's id: the same id is the same request.")
@click.option(
    "--durability",
    default="memory",
    show_default=True,
    metavar="LEVEL",
    help="Accepted means: in memory, on disk (fsync), or on n replicas too (replicated:n).",
)
@click.option("--sheddable", is_flag=True, help="A better newcomer to a full queue may take its place.")
@click.option("--displace", is_flag=True, help="Take the place of a worse sheddable request if the queue is full.")
@click.option(
    "--check-deadline/--no-check-deadline",
    default=True,
    show_default=True,
    help="Refuse at once what could not be done within --timeout.",
)
@click.option("--chat", is_flag=True, help="Send the text as a user's message through the model's chat template.")
@click.option("--system", metavar="TEXT", help="What the model is told before the user's message; means --chat.")
@click.option("--no-wait", is_flag=True, help="Print the id and leave; `stoker result ID` has the answer.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is whole.")
@click.option(
    "--wait-timeout", type=float, default=WAIT_S, show_default=True, metavar="S", help="Most seconds to wait."
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole response.")
@queue_options
def submit(config: Config, text: str | None, source: Any, **options: Any) -> None:
    """Submit a prompt; wait for its answer and print it as it comes.

    TEXT is the prompt; `-` reads it from standard input.

    \b
    Examples:  stoker submit "The with statement"
               echo "Lambda expressions" | stoker submit - --max-tokens 40
               stoker submit --system "Answer in one word." "What is a tuple?"
               stoker submit --file prompt.txt --no-wait
    """
    from stoker.client import Client

    no_wait, no_stream = options.pop("no_wait"), options.pop("no_stream")
    as_json, wait_s = options.pop("as_json"), options.pop("wait_timeout")
    how = {name: options.pop(name) for name in ("durability", "displace", "check_deadline")}
    fields = _fields(_prompt(text, source, config.payload_bytes), options)
    with Client(config=config) as client:
        if "max_tokens" not in fields and _generates(client):
            fields["max_tokens"] = MAX_TOKENS
        stream = not (no_wait or no_stream or as_json)
        job, missed = _accepted(client, how, fields | {"stream": stream})
        if no_wait:
            print_json({"id": job.id}) if as_json else click.echo(job.id)
            if missed:
                sys.exit(EXIT_FAILED)
            return
        _warn_without_workers(client)
        if stream:
            _print_pieces(job, wait_s)
        else:
            _print_response(job.response(timeout=wait_s), as_json)


@click.command()
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def status(config: Config, request_id: str, as_json: bool) -> None:
    """Print the state of a request: queued, dispatched, running, delayed, its outcome, or unknown.

    \b
    Example:  stoker status 3f1c-17
    """
    from stoker.client import Client

    with Client(config=config) as client:
        state = client.job(request_id).status()
    print_json({"id": request_id, "status": state}) if as_json else click.echo(state)
    if state == "unknown":
        sys.exit(EXIT_FAILED)


@click.command()
@click.argument("request_id")
@click.option("--wait-timeout", type=float, default=0.0, show_default=True, metavar="S", help="Most seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole response.")
@queue_options
def result(config: Config, request_id: str, wait_timeout: float, as_json: bool) -> None:
    """Print the answer of a request, whoever submitted it.

    \b
    Example:  stoker result 3f1c-17 --wait-timeout 60
    """
    from stoker.client import Client

    with Client(config=config) as client:
        _print_response(client.job(request_id).response(timeout=wait_timeout), as_json)


@click.command()
@click.argument("request_ids", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def cancel(config: Config, request_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel requests: each ends at once, and what runs stops within a heartbeat.

    \b
    Example:  stoker cancel 3f1c-17 3f1c-18
    """
    from stoker.client import Client

    with Client(config=config) as client:
        cancelled = {request_id: client.job(request_id).cancel() for request_id in request_ids}
    if as_json:
        print_json({request_id: bool(done) for request_id, done in cancelled.items()})
    else:
        for request_id, done in cancelled.items():
            click.echo(f"{request_id}: {'cancelled' if done else 'had ended, or is unknown'}")
    if not all(cancelled.values()):
        sys.exit(EXIT_FAILED)


def _prompt(text: str | None, source: Any, most_bytes: int) -> str:
    if (text is None) == (source is None):
        raise click.UsageError("give the prompt as TEXT, as `-` for standard input, or with --file")
    if source is None and text == "-":
        source = sys.stdin.buffer
    return str(text) if source is None else _read_text(source, most_bytes)


def _read_text(source: Any, most_bytes: int) -> str:
    """Return what a file has; not all of it where it is too large for a request anyway, or never ends."""
    from stoker.errors import InvalidRequest, PayloadTooLarge

    data = source.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise PayloadTooLarge("prompt", f"must have at most payload_bytes ({most_bytes}) bytes", f"{len(data)} or more")
    try:
        return str(data.decode())
    except UnicodeDecodeError as error:
        place = f"byte {error.start}: {data[error.start : error.end].hex()}"
        raise InvalidRequest("prompt", "must be UTF-8 text", place) from None


def _fields(prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the request that the options ask for."""
    others = ("chat", "system", "stop")
    fields = {name: value for name, value in options.items() if value is not None and name not in others}
    if options["stop"]:
        fields["stop"] = list(options["stop"])
    system = options["system"]
    if not options["chat"] and system is None:
        return fields | {"prompt": prompt}
    before = [] if system is None else [{"role": "system", "content": system}]
    return fields | {"messages": [*before, {"role": "user", "content": prompt}]}


def _accepted(client: Client, how: dict[str, Any], fields: dict[str, Any]) -> tuple[Job, bool]:
    """Submit; gives the job, and whether it is less durable than asked, which was said."""
    from stoker.errors import DurabilityNotReached

    try:
        return client.submit(**how, **fields), False
    except DurabilityNotReached as error:
        click.echo(f"stoker: {error}; it goes on", err=True)
        return error.job, True


def _generates(client: Client) -> bool:
    """Whether max_tokens means something to the queue's model; without a card it may."""
    card = client.queue_card()
    return card is None or not card.padded


def _warn_without_workers(client: Client) -> None:
    if not any(worker.available for worker in client.workers()):
        click.echo("stoker: no workers are registered; the request waits (start one: stoker worker)", err=True)


def _print_pieces(job: Job, wait_s: float) -> None:
    from stoker.request import Restarted

    for chunk in job.stream(timeout=wait_s):
        if isinstance(chunk, Restarted):
            click.echo("\n[a worker was lost; the answer begins anew]", err=True)
        click.echo(chunk.text, nl=False)
    output = job.response(timeout=wait_s).output
    click.echo("" if output is None else _printed(output))


def _print_response(response: InferenceResponse, as_json: bool) -> None:
    if as_json:
        shown = {field.name: getattr(response, field.name) for field in dataclasses.fields(response)}
        shown["usage"] = dataclasses.asdict(response.usage) | {"total_tokens": response.usage.total_tokens}
        shown["timings"] = dataclasses.asdict(response.timings)
        shown["error"] = None if response.error is None else str(response.error)
        shown["output"] = list(response.output) if isinstance(response.output, array) else response.output
        print_json(shown)
        if response.error is not None:
            sys.exit(EXIT_FAILED)
        return
    if response.error is not None:
        fail(str(response.error), EXIT_FAILED)
    click.echo(response.text if response.output is None else _printed(response.output))


def _printed(output: Any) -> str:
    """Return what a model returned on one line: a text as it is, all else as JSON."""
    if isinstance(output, str):
        return output
    return json.dumps(list(output) if isinstance(output, array) else output, ensure_ascii=False, default=str)
