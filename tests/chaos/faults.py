"""The faults: each function does one and waits until it is recovered from; its docstring is its name in the table."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable

from chaos.arena import Arena, Recovery
from chaos.fleet import DRAIN_S, HUNG_BEATS, Machine
from chaos.models.chaos_model import POISON
from stoker import Client

Fault = Callable[[Arena], Recovery]
FAULTS: dict[str, Fault] = {}
DOWN_MS = 1500.0
"""How long something is away that has no time of its own in the table."""


def fault(act: Fault) -> Fault:
    """Add a fault to the table."""
    FAULTS[act.__name__.replace("_", "-")] = act
    return act


# --- workers ----------------------------------------------------------------------------------------------------------


@fault
def child_killed(arena: Arena) -> Recovery:
    """worker child killed"""
    machine, inc = arena.busy_worker()
    since = arena.now_us()
    os.kill(machine.child or machine.pid, signal.SIGKILL)
    return arena.freed(inc, since, 500)


@fault
def machine_lost(arena: Arena) -> Recovery:
    """worker's machine lost"""
    machine, inc = arena.busy_worker()
    since = arena.now_us()
    machine.kill()
    recovery = arena.freed(inc, since, 4 * arena.beat_ms)
    arena.start(machine)
    return recovery


@fault
def machine_and_leader_lost(arena: Arena) -> Recovery:
    """worker and leader on one lost machine"""
    leader, (machine, inc) = arena.leader(), arena.busy_worker()
    since = arena.now_us()
    machine.kill()
    leader.kill()
    recovery = arena.freed(inc, since, 4.5 * arena.beat_ms + arena.leader_ms)
    arena.start(machine)
    arena.start(leader)
    return recovery


@fault
def zombie(arena: Arena) -> Recovery:
    """zombie (stopped for 5T)"""
    machine, inc = arena.busy_worker()
    since, wake_at = arena.now_us(), time.monotonic() + 5 * arena.lease_ms / 1000
    machine.signal_all(signal.SIGSTOP)
    recovery = arena.freed(inc, since, 4 * arena.beat_ms)
    arena.sleep(1000 * (wake_at - time.monotonic()))
    machine.signal_all(signal.SIGCONT)
    _registers_anew(arena, machine, inc)
    return recovery


@fault
def short_pause(arena: Arena) -> Recovery:
    """short pause (stopped for 2H)"""
    machine, inc = arena.busy_worker()
    beats = "stoker:{default}:beats"
    last = arena.fleet.redis.zscore(beats, inc)
    # Right after a beat: else the pause and what was left of the interval are more than was meant.
    arena.until(lambda: arena.fleet.redis.zscore(beats, inc) != last, "a beat")
    since, began = arena.now_us(), time.monotonic()
    machine.signal_all(signal.SIGSTOP)
    arena.sleep(2 * arena.beat_ms)
    machine.signal_all(signal.SIGCONT)
    as_meant = time.monotonic() - began < 2.3 * arena.beat_ms / 1000
    arena.sleep(arena.lease_ms)
    return Recovery(broken=arena.lost_since(since, [inc]) if as_meant else "")


@fault
def child_hung(arena: Arena) -> Recovery:
    """hung child"""
    machine, inc = arena.busy_worker(least=2)
    child, since = machine.child, arena.now_us()
    os.kill(child or machine.pid, signal.SIGSTOP)
    hit = set(arena.record.held(inc))
    recovery = arena.freed(inc, since, (HUNG_BEATS + 2) * arena.beat_ms + 500)
    # They are suspects now: another one of these, while they are run apart, would convict them.
    arena.until(lambda: not hit & arena.record.live.keys(), "the suspects are acquitted")
    return recovery


@fault
def worker_told_to_end(arena: Arena) -> Recovery:
    """SIGTERM to a worker"""
    machine, inc = arena.busy_worker()
    since = arena.now_us()
    machine.terminate()
    recovery = arena.freed(inc, since, 1000 * DRAIN_S + arena.beat_ms)
    code = machine.wait()
    arena.start(machine)
    return Recovery(recovery.ms, recovery.bound_ms, "" if code == 0 else f"it ended with {code}")


@fault
def doorbell_lost(arena: Arena) -> Recovery:
    """doorbell lost"""
    keys, client = "stoker:{default}:", arena.fleet.redis
    machine, inc = arena.busy_worker()
    # Whoever reads the stream loses the connection over it, until nothing is there to be read; all else goes on.
    machine.link.lose_replies(1.0, b"delivery")
    try:
        closed = arena.record.checker.closed
        with arena.pressed():
            arena.until(lambda: arena.record.held(inc, "dispatched") or inc in closed, "something is handed over")
        waiting, since = arena.record.held(inc, "dispatched"), arena.now_us()
        client.xtrim(f"{keys}stream:{inc}", 0, approximate=False)
    finally:
        machine.link.heal()

    def begun() -> list[int] | None:
        seen = {line.id: line.time_us for line in arena.record.since(since) if line.word in ("begin", "requeue", "end")}
        return [since, *(seen[name] for name in waiting)] if set(waiting) <= seen.keys() else None

    return arena.recovery(since, max(arena.until(begun, "rung again")), arena.lease_ms + 2 * arena.beat_ms)


@fault
def poison(arena: Arena) -> Recovery:
    """poison"""
    name, since = f"poison-{len(arena.planted)}", arena.now_us()
    arena.planted.add(name)
    with Client(config=arena.fleet.config) as client:
        client.submit(request_id=name, inputs=f"{POISON} {name}")
    ended = arena.happened(since, "the conviction", lambda line: line.id == name and line.word == "end")
    deaths = _deaths(arena, name, since)
    most = math.ceil(math.log2(max(deaths, default=1))) + 2
    broken = "" if len(deaths) <= most else f"{len(deaths)} workers died of {name}, at most {most} may"
    return Recovery((ended - since) / 1000, None, broken)


def _deaths(arena: Arena, name: str, since: int) -> list[int]:
    """The sizes of the crash sets in which a request was."""
    reports = [line for line in arena.record.since(since) if line.word == "report"]
    return [int(line.rest[2]) for line in reports if name in line.rest[3:]]


# --- schedulers -------------------------------------------------------------------------------------------------------


@fault
def leader_killed(arena: Arena) -> Recovery:
    """leader killed"""
    leader = arena.leader()
    since = arena.now_us()
    leader.kill()
    recovery = arena.taken_over(since, arena.leader_ms + arena.beat_ms / 2)
    arena.start(leader)
    return recovery


@fault
def leader_stopped(arena: Arena) -> Recovery:
    """leader stopped for 5L"""
    leader = arena.leader()
    since, wake_at = arena.now_us(), time.monotonic() + 5 * arena.leader_ms / 1000
    leader.signal_all(signal.SIGSTOP)
    recovery = arena.taken_over(since, arena.leader_ms + arena.beat_ms / 2)
    arena.sleep(1000 * (wake_at - time.monotonic()))
    leader.signal_all(signal.SIGCONT)
    return recovery


@fault
def leader_told_to_end(arena: Arena) -> Recovery:
    """SIGTERM to the leader"""
    leader = arena.leader()
    since = arena.now_us()
    leader.terminate()
    recovery = arena.taken_over(since, 500)
    code = leader.wait()
    arena.start(leader)
    return Recovery(recovery.ms, recovery.bound_ms, "" if code == 0 else f"it ended with {code}")


@fault
def schedulers_down(arena: Arena) -> Recovery:
    """both schedulers down"""
    for scheduler in arena.fleet.schedulers:
        scheduler.kill()
    arena.sleep(DOWN_MS)
    since = arena.now_us()
    for scheduler in arena.fleet.schedulers:
        arena.start(scheduler)
    # How long a process takes to start is the machine's business: from the new leader on it is ours.
    return arena.resumed(arena.happened(since, "a leader", lambda line: line.word == "leader"))


# --- Redis ------------------------------------------------------------------------------------------------------------


@fault
def redis_killed(arena: Arena) -> Recovery:
    """Redis killed and restarted"""
    arena.busy_worker()
    arena.fleet.kill_redis()
    time.sleep(arena.rng.uniform(0.1, 1.5))
    arena.fleet.restart_redis()
    return arena.resumed(arena.now_us())


@fault
def redis_stalled(arena: Arena) -> Recovery:
    """Redis stalls for 2T"""
    arena.busy_worker()
    before, server = arena.now_us(), arena.fleet.redis_pid()
    os.kill(server, signal.SIGSTOP)
    time.sleep(2 * arena.lease_ms / 1000)
    os.kill(server, signal.SIGCONT)
    recovery = arena.resumed(arena.now_us())
    return Recovery(recovery.ms, recovery.bound_ms, arena.lost_since(before))


@fault
def redis_full(arena: Arena) -> Recovery:
    """Redis is out of memory"""
    arena.fleet.redis.config_set("maxmemory", 1)
    arena.sleep(DOWN_MS)
    arena.fleet.redis.config_set("maxmemory", 0)
    return arena.resumed(arena.now_us(), "submit")


@fault
def redis_demoted(arena: Arena) -> Recovery:
    """Redis is read-only"""
    arena.fleet.redis.replicaof("127.0.0.1", "1")
    arena.sleep(DOWN_MS)
    arena.fleet.redis.replicaof("NO", "ONE")
    return arena.resumed(arena.now_us())


# --- the network ------------------------------------------------------------------------------------------------------


@fault
def worker_cut_off(arena: Arena) -> Recovery:
    """blackhole before a worker (5T)"""
    machine, inc = arena.busy_worker()
    since, heal_at = arena.now_us(), time.monotonic() + 5 * arena.lease_ms / 1000
    machine.link.hold()
    try:
        recovery = arena.freed(inc, since, 4 * arena.beat_ms)
        arena.sleep(1000 * (heal_at - time.monotonic()))
    finally:
        machine.link.heal()
    _registers_anew(arena, machine, inc)
    return recovery


@fault
def leader_cut_off(arena: Arena) -> Recovery:
    """blackhole before the leader (5L)"""
    leader = arena.leader()
    since, heal_at = arena.now_us(), time.monotonic() + 5 * arena.leader_ms / 1000
    leader.link.hold()
    try:
        recovery = arena.taken_over(since, arena.leader_ms + arena.beat_ms / 2)
        arena.sleep(1000 * (heal_at - time.monotonic()))
    finally:
        leader.link.heal()
    return recovery


@fault
def connections_reset(arena: Arena) -> Recovery:
    """all connections reset, five times"""
    machine, _ = arena.busy_worker()
    for _ in range(5):
        for hit in (machine, *arena.fleet.schedulers, *arena.fleet.clients):
            hit.link.reset()
        arena.sleep(arena.beat_ms)
    return arena.resumed(arena.now_us(), worker=machine.name)


@fault
def latency(arena: Arena) -> Recovery:
    """latency of 200 ms before a worker (2 s)"""
    machine, _ = arena.busy_worker()
    machine.link.delay()
    arena.sleep(2000)
    machine.link.heal()
    return arena.resumed(arena.now_us(), worker=machine.name)


@fault
def worker_replies_lost(arena: Arena) -> Recovery:
    """a worker's replies lost (1 s)"""
    machine, _ = arena.busy_worker()
    machine.link.lose_replies(0.3)
    arena.sleep(1000)
    machine.link.heal()
    return arena.resumed(arena.now_us(), worker=machine.name)


@fault
def scheduler_replies_lost(arena: Arena) -> Recovery:
    """the leader's replies lost (1 s)"""
    leader = arena.leader()
    leader.link.lose_replies(0.3)
    arena.sleep(1000)
    leader.link.heal()
    return arena.resumed(arena.now_us())


# --- clients ----------------------------------------------------------------------------------------------------------


@fault
def client_replies_lost(arena: Arena) -> Recovery:
    """a client's replies lost (1 s)"""
    client = arena.rng.choice(arena.fleet.clients)
    client.link.lose_replies(0.3)
    arena.sleep(1000)
    client.link.heal()
    return arena.resumed(arena.now_us(), "submit")


@fault
def client_killed(arena: Arena) -> Recovery:
    """client killed after submit"""
    client = arena.rng.choice(arena.fleet.clients)
    arena.busy_worker()
    since = arena.now_us()
    client.kill()
    arena.record.read()
    left = {name for name in arena.record.live if name.startswith(f"{client.name}-")}
    arena.until(lambda: not left & arena.record.live.keys(), "its requests end without it")
    ends = [line.time_us for line in arena.record.since(since) if line.id in left and line.word == "end"]
    arena.start(client)
    return Recovery((max(ends, default=since) - since) / 1000)


def _registers_anew(arena: Arena, machine: Machine, inc: str) -> None:
    """Wait until a worker that was declared lost came back by itself, under another incarnation."""
    arena.until(lambda: arena.record.incarnation(machine.name) not in ("", inc), f"{machine.name} registers anew")
