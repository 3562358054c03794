"""Scripts with wrong arguments: one that fails has written nothing, one that does not leaves a sound queue."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from redis.exceptions import ResponseError

from fuzz.cases import NASTY, fuzz, mutated, words
from protocol.rig import CLOCK, START, A, Queue, settlement
from stoker.store import scripts as s
from stoker.store.views import queue_view

# The first three, which everything passes through, twice as often.
SCRIPTS = ("submit", "begin", "settle", "flush", "hand_back", "cancel", "retry_dead", "beat")
Arguments = list[bytes]

texts = st.sampled_from(NASTY) | words
pieces = texts.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=8)


def a_busy_queue(queue: Queue) -> dict[str, Arguments]:
    """Make one request of every kind anew, and give good arguments for each script."""
    queue.redis.flushdb()
    queue.now, queue.n = START, 0
    queue.lead()
    queue.register(A)
    queue.submit("waits", "held", "runs", "streams", "fails", timeout=500)
    queue.submit("streaming", stream=True, tenant="t")
    held = queue.dispatch(A, "held")
    runs = queue.start(A, "runs", "streaming", "fails")
    queue.settle(A, settlement("fails", runs, "failure"))
    [bell, *_] = queue.read(A)
    new = queue.encode("new", timeout=5, tenant="t", stream=True)
    tokens = s.Published("streaming", runs, "n-streaming", 1, 0, b"H\x01\x00", "x")
    ends = [settlement("runs", runs, "retry"), settlement("streaming", runs, "ok")]
    beat = s.Beat(inc=A, generation="g", accepting=True, capacity=100, figures={"steps": 1}, costs={("runs", runs): 5})
    calls: list[s.Call[Any]] = [
        s.submit("g", 10**9, [new, queue.encode("other")]),
        s.begin(A, bell.entry, held, ["held"]),
        s.settle(A, 0.5, ends),
        s.flush(A, [tokens, tokens]),
        s.hand_back(A, [("held", held), ("runs", runs)]),
        s.cancel("runs", "n-runs"),
        s.retry_dead("fails", "again", "n2", "c"),
        s.beat(beat, queue.config),
    ]
    return {call.script: [_bytes(argument) for argument in call.args] for call in calls}


def _bytes(argument: s.Arg) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()


WAYS = ["replace", "replace", "mutate", "mutate", "mutate", "drop", "insert", "repeat", "cut"]


@st.composite
def changed(draw: st.DrawFn, arguments: Arguments) -> Arguments:
    """Some arguments after one change, or a few."""
    out = list(arguments)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        way = draw(st.sampled_from(WAYS))
        # Sampled, for Hypothesis draws integers near the ends of their range far too often.
        at = draw(st.sampled_from(range(max(1, len(out)))))
        match way:
            case "replace" if out:
                out[at] = draw(pieces)
            case "mutate" if out:
                out[at] = draw(mutated(out[at]))
            case "drop":
                del out[at : at + 1]
            case "insert":
                out.insert(at, draw(pieces))
            case "repeat":
                out += out[at : at + 3]
            case "cut":
                del out[at:]
    return out


@fuzz(8, shrink=False, name=st.sampled_from((*SCRIPTS, *SCRIPTS[:3])), data=st.data())
def test_a_script_that_fails_has_written_nothing_and_one_that_does_not_leaves_a_sound_queue(
    queue: Queue, name: str, data: Any
) -> None:
    arguments = data.draw(changed(a_busy_queue(queue)[name]))
    source = s.load_scripts(queue.config, CLOCK)[name].source
    before = _raw(queue)
    try:
        queue.redis.eval(source, 1, queue.keys.prefix, *arguments)
    except ResponseError:
        assert _raw(queue) == before
    else:
        _is_sound(queue)


@fuzz(3, shrink=False, which=st.sampled_from([0, 1]), data=st.data())
def test_a_changed_header_is_refused_or_what_the_scheduler_and_the_worker_can_read(
    queue: Queue, which: int, data: Any
) -> None:
    arguments = a_busy_queue(queue)["submit"]
    fields = arguments[3 + 3 * which].split(b"|")
    for _ in range(data.draw(st.integers(1, 2))):
        fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(pieces)
    arguments[3 + 3 * which] = b"|".join(fields)
    source = s.load_scripts(queue.config, CLOCK)["submit"].source
    before = _raw(queue)
    try:
        queue.redis.eval(source, 1, queue.keys.prefix, *arguments)
    except ResponseError:
        assert _raw(queue) == before
    else:
        _is_sound(queue)


def _raw(queue: Queue) -> dict[bytes, bytes | None]:
    """Every key as Redis itself would write it down."""
    keys = sorted(queue.redis.keys())
    return {key: queue.redis.dump(key) for key in keys}


def _is_sound(queue: Queue) -> None:
    """What the scheduler reads has its form, and the books agree with what lies there."""
    first = queue.store.read(queue_view(queue.keys, depth=100))
    known, shared = first.workers, dict.fromkeys(first.active, 100)
    view = queue.store.read(queue_view(queue.keys, depth=100, known=known, shared=shared))
    assert {lane: len(view.lanes[lane]) for lane in first.active} == first.active
    counts = {field.decode(): int(number) for field, number in queue.redis.hgetall(queue.keys.counts).items()}
    waiting = sum(map(len, view.lanes.values())) + queue.redis.zcard(queue.keys.delayed)
    assert counts.get("waiting", 0) == waiting
    for worker in view.workers:
        held = queue.redis.hvals(queue.keys.work(worker.inc))
        assert worker.held_tokens == sum(int(member.split(b"|")[1]) for member in held)
    keys = queue.keys
    for key in (keys.deadlines, keys.delayed, keys.beats, *map(keys.lane, view.lanes)):
        # Above that a score is not exact, and "inf" is no time.
        assert all(0 <= score <= 1 << 53 for _, score in queue.redis.zrange(key, 0, -1, withscores=True)), key
    for entries in view.lanes.values():
        assert all(queue.redis.exists(queue.keys.payload(entry.id)) for entry in entries)
