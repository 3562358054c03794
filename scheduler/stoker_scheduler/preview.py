"""What a scheduler would hand out next, by its own policy, without handing anything out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice

from stoker.config import Config
from stoker.store.codec import class_windows_us
from stoker.store.records import SUSPECT, Waiting, WorkerRecord, class_of
from stoker.store.views import QueueView
from stoker_scheduler.balancer import LoadBalancer
from stoker_scheduler.batcher import Batch, DynamicBatcher, Room
from stoker_scheduler.placement import Speed
from stoker_scheduler.queue import Order, RequestQueue, charged_cost, could_hold, largest_capacity
from stoker_scheduler.reserve import BatchRoom, held_back
from stoker_scheduler.round import NO_SPEEDS, NOTHING_KEPT, Round

OPEN = "open"


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch, and the worker that would get it: `now`, or once the worker has finished what it holds."""

    worker: str
    batch: Batch
    now: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """The order of what waits, as far as it was read, and the next batches out of it; `rooms`: what BATCH may take."""

    order: Order
    suspects: Order
    batches: tuple[Planned, ...]
    rooms: Mapping[str, BatchRoom]


def preview(
    config: Config,
    view: QueueView,
    queue: RequestQueue,
    circuits: Mapping[str, str],
    speeds: Mapping[str, Speed] = NO_SPEEDS,
    rooms: Mapping[str, BatchRoom] = NOTHING_KEPT,
    *,
    most: int = 8,
) -> Preview:
    """Return what would come next; `queue` knows the tenants' shares, `circuits` are those that are not closed.

    By incarnation, `speeds`: how quick workers are; `rooms`: what BATCH may take of them.
    """
    queue.shares.weigh(view.weights)
    order = queue.order(view.lanes, view.workers)
    shut = shut_by_circuits(view.workers, circuits) | ({view.quarantine} if view.quarantine else set())
    batches = tuple(islice(_batches(config, view, order.requests, shut, speeds, rooms), most))
    return Preview(order, queue.suspects(view.lanes, view.workers), batches, rooms)


def shut_by_circuits(workers: Sequence[WorkerRecord], circuits: Mapping[str, str]) -> Set[str]:
    """Return the incarnations that get nothing because their circuit is open; none where that would be all."""
    able = {worker.inc for worker in workers if worker.available}
    shut = {w.inc for w in workers if w.inc in able and circuits.get(w.worker, "").partition(",")[0] == OPEN}
    return shut if shut < able else set()


def _batches(
    config: Config,
    view: QueueView,
    waiting: Sequence[Waiting],
    shut: Set[str],
    speeds: Mapping[str, Speed],
    rooms: Mapping[str, BatchRoom],
) -> Iterator[Planned]:
    """Give batches until nothing is left that the fleet could take: those of now, then as if workers had finished."""
    fleet, now = view.workers, True
    balancer, batcher = LoadBalancer(config), DynamicBatcher(config)
    while waiting:
        hand = Round(
            waiting,
            fleet,
            balancer=balancer,
            batcher=batcher,
            shut=shut,
            probing=frozenset(),
            linger_us=config.max_queue_delay_ms * 1000,
            now_us=view.now_us,
            speeds=speeds,
            rooms=rooms,
        )
        taken: set[str] = set()
        while chosen := hand.next():
            worker, batch = chosen
            hand.done(worker, batch, more=True)
            taken.update(request.id for request in batch.requests)
            yield Planned(worker.worker, batch, now)
        if not taken and not now:
            return
        waiting = [request for request in waiting if request.id not in taken]
        fleet = [replace(worker, held_rows=0, held_tokens=0, longest=0) for worker in fleet]
        rooms = {inc: replace(room, held=0) for inc, room in rooms.items()}
        now = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What a score is made of, in microseconds: `score` is `arrival` plus `term`, `window` the class's longest."""

    score: float
    arrival: float
    term: float
    window: float


def terms(config: Config, request: Waiting, accepted_us: int) -> Terms:
    """Return what the request's score is made of; entries of one call differ by a microsecond each."""
    window = class_windows_us(config).get(class_of(request.lane), 0)
    return Terms(request.score, accepted_us, max(0.0, request.score - accepted_us), window)


def overtaken_by(order: Sequence[Waiting], request: Waiting) -> int:
    """Return how many of its class go before the request though they came behind it: other tenants' turns."""
    before = _before(order, request)
    return sum(one.score > request.score for one in before if class_of(one.lane) == class_of(request.lane))


def held_back_by(view: QueueView, found: Preview, request: Waiting, circuits: Mapping[str, str]) -> list[str]:
    """Return in words what keeps a waiting request from a worker now, the most important first."""
    live = [worker for worker in view.workers if worker.state == "live"]
    able = [worker for worker in live if worker.available]
    if not able:
        return ["drained" if live else "no_workers"]
    if not could_hold(request, largest_capacity(view.workers)):
        return ["too_large"]
    if request.lane == SUSPECT:
        return ["quarantine"]
    if any(one.id == request.id for planned in found.batches if planned.now for one in planned.batch.requests):
        return []
    order, shut = found.order.requests, shut_by_circuits(view.workers, circuits)
    words = _without_place(view, found, request, shut)
    if overtaken_by(order, request):
        words.append("fairness")
    if _before(order, request):
        words.append("order")
    return words or ["batching"]


def _without_place(view: QueueView, found: Preview, request: Waiting, shut: Set[str]) -> list[str]:
    """Return what keeps the request from each worker."""
    largest = largest_capacity(view.workers)
    cost = charged_cost(request, largest)
    able = [worker for worker in view.workers if worker.available]
    roomy = {one.inc for one in able if Room.of(one, share=one.rows + one.ahead, largest=largest).opens_to(cost)}
    if not roomy - shut:
        return ["credit", "circuit"] if shut else ["credit"]
    words = ["circuit"] if roomy & shut else []
    if held_back(request, view.now_us) and not any(_leaves(found.rooms, inc, cost) for inc in roomy - shut):
        words.append("reserve")
    return words


def next_worker(found: Preview, request_id: str) -> str | None:
    """Return who would get a request with the batches that are planned; None where it is in none of them."""
    return next(
        (one.worker for one in found.batches for request in one.batch.requests if request.id == request_id), None
    )


def _leaves(rooms: Mapping[str, BatchRoom], inc: str, cost: int) -> bool:
    return inc not in rooms or rooms[inc].admits(cost)


def _before(order: Sequence[Waiting], request: Waiting) -> Sequence[Waiting]:
    place = next((place for place, one in enumerate(order) if one.id == request.id), len(order))
    return order[:place]
