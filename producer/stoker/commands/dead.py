"""`stoker dead`: what failed for good, and is kept."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stoker import completion
from stoker.command import EXIT_FAILED, fail, print_json, queue_options

if TYPE_CHECKING:
    from stoker.client import Client
    from stoker.config import Config
    from stoker.store.lookups import DeadLetter
    from stoker.table import FittedTable

F = TypeVar("F", bound=Callable[..., Any])

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EVERY_LETTER = 1 << 31
SHOWN_CHARACTERS = 500


def seconds_of(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of a time span like 90s, 15m, 2h or 7d."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
    if not found:
        raise click.BadParameter(f"{value!r} is no time span; write 90s, 15m, 2h or 7d", ctx, param)
    return float(found[1]) * SECONDS[found[2]]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; None means any."""

    reason: str | None
    tenant: str | None
    older_than_s: float | None

    @property
    def given(self) -> bool:
        """Whether it leaves anything out."""
        return any(value is not None for value in (self.reason, self.tenant, self.older_than_s))

    def passes(self, letter: DeadLetter, now_s: float) -> bool:
        """Return whether a letter is meant."""
        return (
            self.reason in (None, letter.reason)
            and self.tenant in (None, letter.tenant)
            and (self.older_than_s is None or now_s - letter.at_s > self.older_than_s)
        )


def filter_options(command: F) -> F:
    """Add the options of a `Filter`."""
    for option in (
        click.option(
            "--older-than",
            "older_than_s",
            callback=seconds_of,
            metavar="AGE",
            help="Only those that failed longer ago, e.g. 2h.",
        ),
        click.option("--tenant", metavar="NAME", help="Only those of this tenant."),
        click.option("--reason", metavar="WORD", help="Only those that failed for this reason, e.g. poison."),
    ):
        command = option(command)
    return command


def choice_options(command: F) -> F:
    """Add what says which letters to act on: ids, or all that pass a filter."""
    command = click.option("--yes", is_flag=True, help="Do not ask before acting on all.")(command)
    command = click.option("--all", "every", is_flag=True, help="All, or all that the filters leave.")(command)
    return click.argument("ids", nargs=-1, metavar="[ID...]", shell_complete=completion.dead_ids)(
        filter_options(command)
    )


@click.group()
def dead() -> None:
    """Look at requests that failed for good, try them again, or forget them.

    \b
    Examples:  stoker dead list
               stoker dead retry --all --reason worker_lost
    """


@dead.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most letters to print.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def list_letters(config: Config, limit: int, as_json: bool, **options: Any) -> None:
    """Print dead letters, the newest first.

    \b
    Examples:  stoker dead list
               stoker dead list --reason poison --tenant acme --older-than 2h
    """
    from stoker.client import Client

    chosen = Filter(**options)
    with Client(config=config) as client:
        # A filter looks at all: what it leaves may lie behind any number of newer ones.
        letters, now_s = _letters(client, chosen, EVERY_LETTER if chosen.given else limit)
    letters = letters[:limit]
    if as_json:
        print_json([dataclasses.asdict(letter) for letter in letters])
    elif letters:
        from stoker.table import print_tables

        print_tables(_table(letters, now_s))
    else:
        click.echo("no dead letters" + (" that the filters leave" if chosen.given else ""))


@dead.command()
@click.argument("request_id", shell_complete=completion.dead_ids)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all of the request.")
@queue_options
def show(config: Config, request_id: str, as_json: bool) -> None:
    """Print one dead letter: why it failed, where it ran, and what was asked.

    \b
    Example:  stoker dead show 3f1c-17
    """
    from stoker.config import check_name
    from stoker.store import inspections, lookups
    from stoker.store.agreement import looking

    check_name("request_id", request_id)
    with looking(config.of_id(request_id)) as store:
        letters = store.read_patiently(lookups.dead_letters(store.keys, [request_id]))
        request = store.read_patiently(inspections.dead_request(store.keys, request_id))
    if not letters or request is None:
        fail(f"no dead letter {request_id}", EXIT_FAILED)
    facts = dataclasses.asdict(letters[0]) | {"history": _history(letters[0])}
    asked = {name: value for name, value in dataclasses.asdict(request).items() if value is not None}
    if as_json:
        print_json(facts | {"request": asked})
        return
    facts = {name: value for name, value in facts.items() if value != ""}
    shown = facts | {"at_s": _when(letters[0].at_s), "history": "; ".join(facts["history"]) or "-"}
    for name, value in (shown | {name: _short(asked[name]) for name in asked if name not in _IN_LETTER}).items():
        click.echo(f"{_LABELS.get(name, name.replace('_', ' ')):<14} {'-' if value is None else value}")


_LABELS = {"at_s": "failed at"}
_IN_LETTER = ("request_id", "priority", "tenant")


@dead.command()
@choice_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def retry(config: Config, ids: tuple[str, ...], every: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Submit dead letters again, each under a new id that is linked to the old one.

    Prints the new ids; `stoker result` waits for them. A letter is used up by that.

    \b
    Examples:  stoker dead retry 3f1c-17
               stoker dead retry --all --reason worker_lost --yes
    """
    from stoker.client import Client
    from stoker.errors import RequestLost

    missing = 0
    retried: list[dict[str, str | None]] = []
    with Client(config=config) as client:
        for request_id in _chosen(client, ids, every, yes, Filter(**options), "Submit {} again?"):
            try:
                new_id = client.retry_dead(request_id).id
            except RequestLost:
                new_id, missing = None, missing + 1
            retried.append({"id": request_id, "new_id": new_id})
            # As it goes: what was submitted is known, whatever happens to the rest.
            if not as_json:
                click.echo(f"{request_id} -> {new_id}" if new_id else f"{request_id}: no such dead letter")
    if as_json:
        print_json(retried)
    if missing:
        sys.exit(EXIT_FAILED)


@dead.command()
@choice_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def purge(config: Config, ids: tuple[str, ...], every: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Forget dead letters. What they asked for is gone then.

    \b
    Examples:  stoker dead purge 3f1c-17 3f1c-18
               stoker dead purge --all --older-than 7d
    """
    from stoker.client import Client

    with Client(config=config) as client:
        chosen = _chosen(client, ids, every, yes, Filter(**options), "Forget {} for good?")
        purged = client.purge_dead(chosen)
    print_json({"purged": purged}) if as_json else click.echo(f"{purged} purged")
    if ids and purged < len(chosen):
        fail(f"{len(chosen) - purged} of the ids are no dead letters", EXIT_FAILED)


def _chosen(client: Client, ids: tuple[str, ...], every: bool, yes: bool, chosen: Filter, ask: str) -> list[str]:
    """Return the ids to act on, after a yes where nobody named each."""
    if bool(ids) == every:
        raise click.UsageError("name dead letters by their ids, or all of them with --all")
    if ids:
        if chosen.given:
            raise click.UsageError("--reason, --tenant and --older-than choose among --all")
        # Twice the same is one letter.
        return list(dict.fromkeys(ids))
    letters, _ = _letters(client, chosen, EVERY_LETTER)
    words = f"{len(letters)} dead letter{'s' if len(letters) != 1 else ''}"
    if letters and not yes and not click.confirm(ask.format(words), err=True):
        fail("nothing was changed", EXIT_FAILED)
    return [letter.id for letter in letters]


def _letters(client: Client, chosen: Filter, limit: int) -> tuple[list[DeadLetter], float]:
    """Return the newest letters that pass, and the time by the clock that stamped them."""
    from stoker.store import inspections
    from stoker.store.connection import Store

    letters = client.dead_letters(limit)
    store = Store(client.config.of(client.config.shard or 0))
    try:
        now_s = store.read_patiently(inspections.clock()) / 1e6
    finally:
        store.close()
    return [letter for letter in letters if chosen.passes(letter, now_s)], now_s


def _table(letters: list[DeadLetter], now_s: float) -> FittedTable:
    from stoker.table import Column, FittedTable, span

    columns = (
        Column("id", fold=True),
        Column("failed"),
        Column("reason", fold=True),
        Column("attempts", number=True),
        Column("losses", number=True, drop=2),
        Column("class"),
        Column("tenant", drop=1, fold=True),
    )
    rows = [
        (
            *(letter.id, f"{span(now_s - letter.at_s)} ago", letter.reason),
            *(str(letter.attempts), str(letter.losses), letter.priority, letter.tenant or "-"),
        )
        for letter in letters
    ]
    return FittedTable("dead letters", columns, rows)


def _when(at_s: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at_s).astimezone().isoformat(sep=" ", timespec="seconds")


def _history(letter: DeadLetter) -> list[str]:
    """Return how the last attempts ended, a sentence each."""
    entries = (entry.rpartition(",") for entry in letter.history.split(";") if entry)
    return [f"{inc.rsplit(':', 1)[0]}: {cause}" for inc, _, cause in entries]


def _short(value: Any) -> str:
    text = str(value)
    more = len(text) - SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:SHOWN_CHARACTERS]}... ({more:,} more characters; --json has all)"
