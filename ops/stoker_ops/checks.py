"""The checks of `stoker doctor`: each decides on the facts alone, and says what is wrong and how it is put right."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from stoker.store.codec import class_windows_us
from stoker.store.records import SUSPECT, Waiting, WorkerRecord, class_of
from stoker.store.requirements import evicts, too_old, version_name
from stoker_ops.facts import Facts
from stoker_scheduler.batcher import Room
from stoker_scheduler.queue import charged_cost, could_hold, largest_capacity

OLDEST_CLIENT = (8, 0)
MEMORY_SHARE = 0.8
"""Above this share of its limit, Redis soon refuses what is submitted."""

MEDIAN_PING_MS = 10.0
CLOCK_S = 60.0
SILENT_BEATS = 2
HANDED_OVER_S = 1.0
"""A scheduler hands over within milliseconds; a padded batch may be waited for somewhat longer."""

PATIENCE_S = 60.0
"""How long a request may wait for room, where its class has no longer window."""

NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something is wrong: what, and what puts it right."""

    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class Fine:
    """Nothing is wrong. `seen` is False where it was not allowed to look."""

    what: str
    seen: bool = True


Verdict = Finding | Fine
UNSEEN = "not allowed to look: this Redis user may not use {}"


def version(facts: Facts) -> Verdict:
    """Scripts need the commands of Redis 6.2."""
    if facts.server.info is None:
        return Fine(UNSEEN.format("INFO"), seen=False)
    problem = too_old(facts.server.info)
    return Finding(problem.what, problem.fix) if problem else Fine(version_name(facts.server.info))


def role(facts: Facts) -> Verdict:
    """A replica refuses every write."""
    if facts.server.info is None:
        return Fine(UNSEEN.format("INFO"), seen=False)
    if facts.server.info.get("role") == "slave":
        primary = f"{facts.server.info.get('master_host')}:{facts.server.info.get('master_port')}"
        return Finding("this Redis is a replica, and refuses writes", f"set STOKER_REDIS_URL to its primary, {primary}")
    return Fine("a primary")


def persistence(facts: Facts) -> Verdict:
    """What was accepted must outlive a crash of Redis."""
    info, appendfsync = facts.server.info, facts.server.appendfsync
    if info is None:
        return Fine(UNSEEN.format("INFO"), seen=False)
    if info.get("aof_enabled") != "1":
        return Finding(
            "the append-only file is off: a crash of Redis loses requests that it accepted",
            "CONFIG SET appendonly yes, and the same in redis.conf",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding("the append-only file could not be written", "look at the disk of Redis: it may be full")
    if appendfsync == "no":
        return Finding(
            "the append-only file is written whenever the system likes: a crash of the machine loses half a minute",
            "CONFIG SET appendfsync everysec (or always), and the same in redis.conf",
        )
    return Fine(f"append-only file, synced {appendfsync or '(not allowed to look how often)'}")


def eviction(facts: Facts) -> Verdict:
    """A Redis that evicts throws away requests, silently."""
    info = facts.server.info
    if info is None or "maxmemory_policy" not in info:
        return Fine(UNSEEN.format("INFO"), seen=False)
    problem = evicts(info)
    return Finding(problem.what, problem.fix) if problem else Fine("noeviction")


def memory(facts: Facts) -> Verdict:
    """A full Redis refuses what is submitted."""
    if facts.server.info is None:
        return Fine(UNSEEN.format("INFO"), seen=False)
    used, limit, machine = (
        int(facts.server.info.get(name, 0)) for name in ("used_memory", "maxmemory", "total_system_memory")
    )
    bound, of = (limit, "maxmemory") if limit else (machine, "its machine's memory (no maxmemory is set)")
    words = f"{_size(used)} used of {_size(bound)}, {of}" if bound else f"{_size(used)} used"
    if bound and used > MEMORY_SHARE * bound:
        return Finding(
            f"{words}: Redis soon refuses what is submitted" if limit else f"{words}: Redis may soon be killed",
            "raise maxmemory, lower STOKER_RESULT_TTL_S, or purge dead letters (stoker dead purge)",
        )
    return Fine(words)


def latency(facts: Facts) -> Verdict:
    """Every step is a round trip, and a leader must renew its lease in time."""
    p50, p99 = facts.latency.percentile(0.5), facts.latency.percentile(0.99)
    parts = ", ".join(f"{count} up to {edge} ms" for edge, count in facts.latency.histogram().items())
    words = f"{len(facts.latency.pings_ms)} PINGs: p50 {p50:.2f} ms, p99 {p99:.2f} ms ({parts})"
    if p50 > MEDIAN_PING_MS:
        return Finding(f"Redis is far: {words}", "bring clients, schedulers and workers into the network of Redis")
    if p99 > facts.config.heartbeat_ms / 4:
        return Finding(
            f"Redis stalls: {words}, and a lease is renewed each {facts.config.heartbeat_ms / 4:g} ms",
            "look for slow commands (SLOWLOG GET), swapping, or a busy machine; else raise STOKER_HEARTBEAT_MS",
        )
    return Fine(words)


def clock(facts: Facts) -> Verdict:
    """All times are those of Redis."""
    ahead = facts.redis_ahead_s
    words = f"Redis is {abs(ahead):.1f} s {'ahead of' if ahead >= 0 else 'behind'} this machine"
    if abs(ahead) > CLOCK_S:
        return Finding(
            f"{words}: the times that it stamps mislead who reads them here",
            "let NTP set both clocks (timedatectl shows whether it does)",
        )
    return Fine(words)


def keys(facts: Facts) -> Verdict:
    """Nothing but the queue's own may lie under its prefix."""
    seen = facts.keys
    if seen is None:
        return Fine(UNSEEN.format("SCAN"), seen=False)
    if seen.strangers:
        return Finding(
            f"{len(seen.strangers)} keys of somebody else's lie under this queue's prefix: {_some(seen.strangers)}",
            "find what writes them (CLIENT LIST, MONITOR), and give it another prefix or database",
        )
    return Fine(f"{seen.looked_at:,} keys, all of them the queue's" + ("" if seen.complete else " (others not seen)"))


def heartbeat(facts: Facts) -> Verdict:
    """All processes of a queue must beat alike."""
    if facts.heartbeat_us is None:
        return Fine(f"{facts.config.heartbeat_ms} ms here; the queue has none yet")
    queue_ms = facts.heartbeat_us // 1000
    if queue_ms != facts.config.heartbeat_ms:
        return Finding(
            f"heartbeat_ms is {facts.config.heartbeat_ms} here, but the queue runs with {queue_ms}:"
            " schedulers and workers with these settings are refused",
            f"set STOKER_HEARTBEAT_MS={queue_ms}",
        )
    return Fine(f"{queue_ms} ms, as the queue's")


def leader(facts: Facts) -> Verdict:
    """Without a leader nothing is handed to workers."""
    if facts.leader is None:
        return Finding("no scheduler leads this queue: nothing is handed to workers", "start one: stoker scheduler")
    return Fine(facts.leader)


def workers(facts: Facts) -> Verdict:
    """Somebody must answer."""
    live = [worker for worker in facts.workers if worker.state == "live"]
    drained = [worker.worker for worker in live if worker.drained]
    if not live:
        return Finding("no workers are registered", "start one: stoker worker")
    if len(drained) == len(live):
        return Finding(
            f"all workers are drained: {_some(drained)}", f"send them work again: stoker drain {drained[0]} --undo"
        )
    return Fine(f"{len(live)} registered" + (f", {len(drained)} of them drained: {_some(drained)}" if drained else ""))


def silence(facts: Facts) -> Verdict:
    """A worker that does not beat is stopped, hung, or cut off."""
    silent = [worker.worker for worker in facts.workers if worker.state == "live" and _silent(worker, facts)]
    if silent:
        return Finding(
            f"silent for more than {SILENT_BEATS} heartbeats: {_some(silent)}",
            "look whether the process is stopped or its machine cut off; end it, and its work goes to others",
        )
    lost = facts.keys.lost if facts.keys else ()
    if lost:
        return Finding(
            f"lost within the last hour, and not back since: {_some(lost)}",
            "look at the worker's log and its machine, and start it again: stoker worker --name ...",
        )
    return Fine("all workers are heard of" if facts.workers else "no worker was lost")


def waiting(facts: Facts) -> Verdict:
    """What waits must have a reason that passes."""
    oldest = facts.oldest
    if oldest is None:
        return Fine("nothing waits")
    words = (
        f"{oldest.number:,} wait; the oldest is {oldest.request.id} ({oldest.request.lane}), {oldest.waited_s:.1f} s"
    )
    verdict = why_waiting(facts, oldest.request, oldest.waited_s)
    return replace(verdict, what=f"{words}: {verdict.what}")


def why_waiting(facts: Facts, request: Waiting, waited_s: float) -> Verdict:
    """Return why a request is not on a worker, and what can be done about it where that does not pass by itself."""
    live = [worker for worker in facts.workers if worker.state == "live" and not _silent(worker, facts)]
    able = [worker for worker in live if worker.available]
    if facts.leader is None:
        return Finding("no scheduler leads", "start one: stoker scheduler")
    if not live:
        return Finding("there are no workers", "start one: stoker worker")
    if not able:
        return Finding("all workers are drained or stopping", "start one, or: stoker drain NAME --undo")
    largest = largest_capacity(live) or 0
    if not could_hold(request, largest):
        return Finding(
            f"it needs {request.cost:,} tokens, and the largest worker holds {largest:,}",
            f"start a larger worker (--kv-cache-tokens), or: stoker cancel {request.id}",
        )
    roomy = [worker.worker for worker in able if _has_room(worker, request, largest, facts.quarantine)]
    if roomy and request.offline and waited_s < facts.config.window_batch_s:
        return Fine(
            "the reserve: what is free is kept for the other classes, whose last request came"
            f" less than {facts.config.reserve_idle_s:g} s ago"
        )
    if roomy and waited_s > HANDED_OVER_S:
        return Finding(
            f"it is not handed over, though {_some(roomy)} has room",
            "look at the scheduler's log: the worker's circuit may be open after faults (stoker workers counts them)",
        )
    if roomy:
        return Fine("about to be handed over")
    patience_s = max(class_windows_us(facts.config).get(class_of(request.lane), 0) / 1e6, PATIENCE_S)
    if waited_s > patience_s:
        return Finding("no worker has had room for it", "the queue gets more than it can do: add workers")
    return Fine("until a worker has room")


def torch(facts: Facts) -> Verdict:
    """A worker here must find its device."""
    here = facts.torch
    if here is None:
        return Fine("not asked", seen=False)
    if here.error:
        return Finding(f"torch {here.version} cannot be used: {here.error}", 'pip install "stoker[worker]" again')
    if here.version is None:
        return Fine('not installed: only the sim engine runs here; pip install "stoker[worker]" adds it')
    built = f"torch {here.version} ({here.built_for or 'for CPUs'})"
    if here.has_gpu and not here.devices:
        return Finding(
            f"{built} finds no GPU, though this machine has one",
            "install the torch build for the device, and a driver that is new enough for it",
        )
    return Fine(f"{built}: {', '.join(here.devices) or 'no GPU on this machine'}")


def versions(facts: Facts) -> Verdict:
    """The client library must be one that the store was written for."""
    words = ", ".join(f"{name} {number}" for name, number in facts.versions.items())
    if _numbers(facts.versions.get("redis", "")) < OLDEST_CLIENT:
        return Finding(f"the Redis client is too old ({words})", 'pip install "redis[hiredis]>=8.0"')
    return Fine(words)


CHECKS: Mapping[str, Callable[[Facts], Verdict]] = {
    check.__name__: check
    for check in (
        *(version, role, persistence, eviction, memory, latency, clock, keys, heartbeat),
        *(leader, workers, silence, waiting, torch, versions),
    )
}
"""All checks by their names, in the order in which they are shown."""


def examine(facts: Facts) -> dict[str, Verdict]:
    """Return the verdict of each check."""
    return {name: check(facts) for name, check in CHECKS.items()}


def _silent(worker: WorkerRecord, facts: Facts) -> bool:
    return worker.beat_age_us > SILENT_BEATS * (facts.heartbeat_us or facts.config.heartbeat_ms * 1000)


def _has_room(worker: WorkerRecord, request: Waiting, largest: int, quarantine: str | None) -> bool:
    """Return whether dispatch would hand the request to this worker now."""
    if request.lane == SUSPECT:
        return worker.held_rows == 0 and quarantine in (None, worker.inc)
    room = Room.of(worker, share=worker.rows + worker.ahead, largest=largest)
    return worker.inc != quarantine and room.opens_to(charged_cost(request, largest))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _size(number: int) -> str:
    value, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"
