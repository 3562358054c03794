"""`stoker explain`: what happened to one request, and what it waits for. Imports only click at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stoker.command import EXIT_FAILED, fail, print_json, queue_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stoker.config import Config
    from stoker.store.connection import Store
    from stoker.store.records import Waiting, WorkerRecord
    from stoker.store.traces import Trace
    from stoker_ops.look_ahead import LookAhead

KEPT_ATTEMPTS = 8
SUSPECT_LANE = "suspect"
NOWHERE: dict[str, Any] = {
    "position": None,
    "ahead": None,
    "score": None,
    "fairness": None,
    "held_back_by": [],
    "eta_s": None,
    "homes": [],
    "next_worker": None,
}
"""What is said of the place of a request that has none."""

NEVER = frozenset({"no_workers", "drained", "too_large"})
"""What doesn't pass by itself: no rate says how long it lasts."""


@click.command()
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@queue_options
def explain(config: Config, request_id: str, as_json: bool) -> None:
    """Say what happened to a request, and what it waits for.

    Its times, how its last 8 attempts ended and where, and why it is not answered yet. Exits with 1 where Redis knows
    nothing of it: it was never accepted, or its result has expired.

    \b
    Examples:  stoker explain 3f1c-17
               stoker explain 3f1c-17 --json
    """
    from stoker.config import check_name
    from stoker.store import traces
    from stoker.store.agreement import looking

    check_name("request_id", request_id)
    config = config.of_id(request_id)
    with looking(config) as store:
        found = store.read_patiently(traces.trace(store.keys, request_id))
        if found is None:
            kept = f"{config.result_ttl_s:g} s"
            fail(f"nothing is known of {request_id}: never accepted here, or ended more than {kept} ago", EXIT_FAILED)
        story = _told(found) | _now(config, store, found)
    if as_json:
        print_json(story)
    else:
        _print(story)


def _told(trace: Trace) -> dict[str, Any]:
    """Return what happened so far. Times are seconds of Unix time, spans are in ms."""
    start = trace.accepted_us
    return {
        "id": trace.id,
        "state": trace.state,
        "priority": trace.priority,
        "tenant": trace.tenant,
        "retry_of": trace.retry_of,
        "accepted_at_s": _seconds(start),
        "deadline_at_s": _seconds(trace.deadline_us),
        "queue_ms": _span_ms(start, trace.begun_us),
        "e2e_ms": _span_ms(start, trace.settled_us),
        "age_ms": _span_ms(start, trace.now_us),
        "attempts": trace.attempts,
        "failures": trace.failures,
        "losses": trace.losses,
        "history": [{"worker": inc.rpartition(":")[0], "inc": inc, "cause": cause} for inc, cause in trace.history],
        # A running or successful attempt has no entry of its own.
        "history_cut": len(trace.history) == KEPT_ATTEMPTS < trace.attempts,
        "reason": trace.reason,
        "message": trace.message,
    }


def _now(config: Config, store: Store, trace: Trace) -> dict[str, Any]:
    """Return where it is now, why, and what can be done about that."""
    from dataclasses import replace

    from stoker.store import lookups, traces, views
    from stoker_ops.checks import Finding, why_waiting
    from stoker_ops.facts import read_facts

    now: dict[str, Any] = {"worker": trace.worker, "why": None, "fix": None, **NOWHERE}
    if trace.state in ("dispatched", "running"):
        workers = store.read(lookups.workers(store.keys))
        inc = store.read(traces.holder(store.keys, trace.id, [worker.inc for worker in workers]))
        return now | {"worker": inc.rpartition(":")[0] if inc else None, "homes": _homes(trace, workers)}
    if trace.state not in ("queued", "delayed"):
        return now
    score = store.read(traces.place(store.keys, trace.id, trace.waiting))
    if score is None:
        return now | {"why": "it moves on just now"}
    if trace.waiting is None:
        due_s = max(0.0, (score - trace.now_us) / 1e6)
        why = f"tries again in {due_s:.1f} s, after its last attempt failed"
        return now | {"why": why, "held_back_by": ["backoff"]}
    waited_s = (trace.now_us - (trace.accepted_us or 0)) / 1e6
    facts = read_facts(config, ask_torch=False)
    most = 0 if views.all_padded(facts.workers) else trace.waiting.max_tokens
    waiting = replace(trace.waiting, score=score, max_tokens=most)
    verdict = why_waiting(facts, waiting, waited_s)
    fix = verdict.fix if isinstance(verdict, Finding) else None
    return now | {"why": verdict.what, "fix": fix} | _place(config, store, trace, waiting, facts.leader is not None)


def _place(config: Config, store: Store, trace: Trace, waiting: Waiting, led: bool) -> dict[str, Any]:
    """Return where in the order it is, what its score is made of, what holds it back and for about how long."""
    from stoker.store import traces
    from stoker_ops.look_ahead import look_ahead
    from stoker_scheduler.preview import held_back_by, next_worker, overtaken_by, terms

    seen = look_ahead(store, config)
    order = (seen.preview.suspects if waiting.lane == SUSPECT_LANE else seen.preview.order).requests
    place = next((number for number, one in enumerate(order) if one.id == trace.id), None)
    ahead = place
    if place is None:
        ahead = store.read(traces.ahead(store.keys, waiting.lane, waiting.score, seen.overview.tenant_lanes))
    parts = terms(config, waiting, trace.accepted_us or 0)
    held = held_back_by(seen.view, seen.preview, waiting, seen.overview.circuits)
    return {
        "position": None if place is None else place + 1,
        "ahead": ahead,
        "score": {
            "score_s": parts.score / 1e6,
            "arrival_s": parts.arrival / 1e6,
            "term_s": parts.term / 1e6,
            "window_s": parts.window / 1e6,
        },
        "fairness": _fairness(seen, waiting, overtaken_by(order, waiting)),
        "held_back_by": held if led else ["no_scheduler", *held],
        "eta_s": _eta_s(seen, ahead or 0, held) if led else None,
        "homes": _homes(trace, seen.view.workers),
        "next_worker": next_worker(seen.preview, trace.id),
    }


def _homes(trace: Trace, workers: Sequence[WorkerRecord]) -> list[str]:
    """Return the workers that its affinity key prefers, the best first."""
    from stoker_scheduler.placement import Homes

    return [] if trace.affinity is None else list(Homes().of(trace.affinity, workers))


def _fairness(seen: LookAhead, waiting: Waiting, overtaken: int) -> dict[str, Any] | None:
    """Return what the request's tenant was served beside the others of its class; None where it has no others."""
    from stoker.store.records import class_of

    shares = seen.queue.shares
    served = shares.served()
    peers = [lane for lane in served if class_of(lane) == class_of(waiting.lane) and seen.view.lanes.get(lane)]
    if waiting.lane not in peers or len(peers) < 2:
        return None
    return {
        "served": served[waiting.lane],
        "lowest": min(served[lane] for lane in peers),
        "weight": shares.weight(waiting.lane),
        "tenants": len(peers),
        "overtaken_by": overtaken,
    }


def _eta_s(seen: LookAhead, ahead: int, held: Sequence[str]) -> float | None:
    """Return after how many seconds it would be handed out at the rate at which requests ended lately."""
    if not held or held == ["batching"]:
        return 0.0
    if NEVER.intersection(held) or not seen.drain_rate:
        return None
    return (ahead + 1) / seen.drain_rate


def _print(story: dict[str, Any]) -> None:
    shown = {
        "request": story["id"],
        "state": story["state"] + (f" on {story['worker']}" if story["worker"] else ""),
        "class": story["priority"],
        "tenant": story["tenant"],
        "retry of": story["retry_of"],
        "accepted": _moment(story["accepted_at_s"]),
        "deadline": _moment(story["deadline_at_s"]),
        "in queue": _length(story["queue_ms"]),
        "took": _length(story["e2e_ms"]),
        "age": None if story["e2e_ms"] is not None else _length(story["age_ms"]),
        "ahead of it": None if story["ahead"] is None else f"{story['ahead']:,} requests",
        "score": _score(story["score"]),
        "tenants": _shares(story["fairness"]),
        "held back": ", ".join(HELD_BACK[word] for word in story["held_back_by"]) or None,
        "its turn": None if story["eta_s"] is None else _turn(story["eta_s"]),
        "key prefers": ", ".join(story["homes"]) or None,
        "goes to": story["next_worker"],
        "why": story["why"],
        "fix": story["fix"],
        "attempts": _attempts(story),
        "failed as": story["reason"],
        "message": story["message"],
    }
    for name, value in shown.items():
        if value is not None:
            click.echo(f"{name:<12} {value}")
    if story["history_cut"]:
        click.echo(f"{'':<12} (how attempts before the last {KEPT_ATTEMPTS} ended is not kept)")
    for number, entry in enumerate(story["history"], 1):
        click.echo(f"{'ended' if number == 1 else '':<12} {entry['cause']} on {entry['worker']} ({entry['inc']})")


HELD_BACK = {
    "backoff": "a retry waits first",
    "no_scheduler": "no scheduler leads",
    "no_workers": "there are no workers",
    "drained": "all workers are drained or stopping",
    "too_large": "no worker could hold it",
    "quarantine": "suspects run one set at a time",
    "credit": "no worker has room for it",
    "circuit": "a worker's circuit is open",
    "fairness": "other tenants were served less",
    "order": "others are before it",
    "batching": "its batch may still become fuller",
    "reserve": "room is kept for other classes",
}


def _score(score: dict[str, Any] | None) -> str | None:
    if score is None:
        return None
    lifted = ", lifted by its deadline" if score["term_s"] < score["window_s"] - 1e-3 else ""
    return f"{_moment(score['score_s'])} = arrival + {score['term_s']:,.1f} s{lifted}"


def _shares(fairness: dict[str, Any] | None) -> str | None:
    if fairness is None:
        return None
    served = f"served {fairness['served']:,.0f} (tokens over weight {fairness['weight']:g})"
    lowest = f"lowest of {fairness['tenants']} tenants: {fairness['lowest']:,.0f}"
    return f"{served}; {lowest}; later ones of others before it: {fairness['overtaken_by']:,}"


def _turn(eta_s: float) -> str:
    return "now" if not eta_s else f"in about {eta_s:,.1f} s, at the rate of late"


def _attempts(story: dict[str, Any]) -> str:
    words = [f"{story['attempts']} begun"]
    words += [f"{story[name]} {name}" for name in ("failures", "losses") if story[name] is not None]
    return ", ".join(words)


def _seconds(at_us: int | None) -> float | None:
    return None if at_us is None else at_us / 1e6


def _span_ms(start_us: int | None, end_us: int | None) -> float | None:
    return None if start_us is None or end_us is None else (end_us - start_us) / 1000


def _moment(at_s: float | None) -> str | None:
    from datetime import datetime

    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s).astimezone().isoformat(sep=" ", timespec="milliseconds")


def _length(ms: float | None) -> str | None:
    return None if ms is None else f"{ms:,.1f} ms" if ms < 1000 else f"{ms / 1000:,.1f} s"
