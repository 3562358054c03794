"""Replays a trace: arrivals, the scheduler's ticks and the workers' steps, in the order of a virtual clock."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace

from stoker.config import Config
from stoker.store.codec import affinity_digits, class_term_us
from stoker.store.records import BATCH, CLASSES, Held, Waiting, WorkerRecord, class_of, lane_of, tenant_of
from stoker_ops.simulate.engines import Row, Tally
from stoker_ops.simulate.policies import Policy
from stoker_ops.simulate.run import COMPLETED, DISPLACED, EXPIRED, REFUSED, Fate, Run
from stoker_ops.simulate.setup import Setup, engine_of, record_of, speeds_of
from stoker_ops.simulate.traces import Arrival
from stoker_ops.simulate.waiting import Backlog
from stoker_scheduler.batcher import Batch
from stoker_scheduler.preemption import givers
from stoker_scheduler.prices import Prices
from stoker_scheduler.reserve import BatchRoom
from stoker_scheduler.round import BLOCKED_HEADS, DEPTH, Round
from stoker_scheduler.service_time import Sizes, foretell

START_US = 1_000_000_000
"""When a trace begins: late enough that no stamp is taken for the beginning of time."""

CRITICAL = CLASSES[0]


class Replay:
    """One trace through one policy.

    1. A submit that the model card would refuse, for which there is no room, or whose deadline the forecast rules out,
       is refused. The forecast is a scheduler's that knows the profile, and the mean of what has ended.
    2. A tick orders what waits, and hands it out batch by batch, with the objects of a scheduler. It comes
       `overhead_ms` after what calls for it: a submit, rows that left, a linger that is over, a deadline.
    3. A worker begins what it got at its next step, or with its next batch.
    4. A request is past its deadline where it waits, or when its answer comes too late.
    5. BATCH has what the reserve leaves. A row that is preempted leaves at the end of the step, and waits again.
    """

    def __init__(self, arrivals: Sequence[Arrival], setup: Setup, policy: Policy, config: Config) -> None:
        self._arrivals = arrivals
        self._setup = setup
        self._policy = policy
        self._config = config
        profiles = [setup.profiles[number % len(setup.profiles)] for number in range(setup.workers)]
        self._engines = [engine_of(setup, profile, policy, config) for profile in profiles]
        self._fleet = [record_of(number, engine.capacity, setup.mode) for number, engine in enumerate(self._engines)]
        self._held_rows = [0] * setup.workers
        self._held_tokens = [0] * setup.workers
        self._held: list[dict[str, Held]] = [{} for _ in range(setup.workers)]  # rows that stay
        self._all_held = 0  # rows of all workers
        self._offline_rows = 0
        self._requests: dict[str, Waiting] = {}  # all that are not done
        self._left: Counter[str] = Counter()  # how often what was preempted had been begun
        self._prices = {
            record.inc: Prices(*astuple(profile)) for record, profile in zip(self._fleet, profiles, strict=True)
        }
        self._speeds = speeds_of(self._fleet, self._prices, arrivals)
        self._changed: set[int] = set()  # the workers whose records are not up to date
        self._places = {record.inc: number for number, record in enumerate(self._fleet)}
        self._largest = min(setup.max_model_len, self._fleet[0].capacity)
        self._classes: dict[tuple[str, str, float | None], tuple[str, int]] = {}
        self._backlog = Backlog()
        self._tenants = any(arrival.tenant for arrival in arrivals)
        self._rows: dict[str, Row] = {}
        self._events: list[tuple[float, int, int]] = []  # when, the worker or -1 for a tick, the number of its run
        self._runs = [0] * setup.workers
        self._busy_until: list[float | None] = [None] * setup.workers
        self._tick_at = math.inf
        self._ended = (0, 0, 0, 0)  # requests, their prompts, answers and max_tokens
        self._overhead_us = setup.overhead_ms * 1000
        self.run = Run(policy.name, [Fate() for _ in arrivals], Tally())

    def to_end(self) -> Run:
        """Run until every request has ended."""
        events, runs = self._events, self._runs
        self.run.began_s = self._arrivals[0].at_s
        coming = enumerate(self._arrivals)
        number, arrival = next(coming)
        arrives_us = START_US + arrival.at_s * 1e6
        while arrives_us < math.inf or events:
            if not events or arrives_us <= events[0][0]:
                self._submit(number, arrives_us)
                number, following = next(coming, (0, None))
                arrives_us = START_US + following.at_s * 1e6 if following else math.inf
                continue
            at_us, worker, turn = heapq.heappop(events)
            if worker < 0:
                if at_us == self._tick_at:
                    self._tick_at = math.inf
                    self._tick(at_us)
            elif turn == runs[worker]:
                self._end_run(worker, at_us)
        return self.run

    # --- what comes and goes --------------------------------------------------------------------------------------

    def _submit(self, number: int, now_us: float) -> None:
        arrival, setup = self._arrivals[number], self._setup
        fate = self.run.fates[number]
        fate.queued_s = _seconds(now_us)
        answer = 0 if setup.mode == "padded" else max(1, arrival.max_tokens)
        cost = arrival.prompt_tokens + answer
        if cost > self._largest:
            self._settle(number, REFUSED, now_us)
            return
        lane, term_us = self._class_of(arrival)
        late = setup.check_deadlines and self._too_late(arrival, now_us + term_us, answer)
        if late or (setup.max_waiting is not None and not self._has_room(setup.max_waiting, now_us + term_us, now_us)):
            self._settle(number, REFUSED, now_us)
            return
        name = str(number)
        affinity = int(affinity_digits(arrival.affinity_key.encode()), 16) if arrival.affinity_key else None
        score = now_us + term_us
        request = Waiting(name, lane, name, score, arrival.prompt_tokens, answer, True, affinity=affinity)
        self._requests[name] = request
        output = max(1, arrival.output_tokens)
        self._rows[name] = Row(number, arrival.prompt_tokens, output, cost, "", request.offline)
        self._wait(request, now_us)

    def _class_of(self, arrival: Arrival) -> tuple[str, int]:
        """Return the lane of a request, and what its score adds to its arrival; worked out once for all alike."""
        if not self._policy.classes:
            return "high", 0
        key = (arrival.priority, arrival.tenant, arrival.timeout)
        found = self._classes.get(key)
        if found is None:
            term_us = class_term_us(arrival.priority, arrival.timeout, self._config)
            found = self._classes[key] = lane_of(str(arrival.priority), arrival.tenant), term_us
        return found

    def _wait(self, request: Waiting, now_us: float) -> None:
        """Let a request wait, until its deadline."""
        place = int(request.id)
        timeout = self._arrivals[place].timeout
        deadline_us = None if timeout is None else START_US + (self.run.fates[place].queued_s + timeout) * 1e6
        self._backlog.add(request, deadline_us)
        self._wake(now_us + self._overhead_us)

    def _has_room(self, most: int, score: float, now_us: float) -> bool:
        """Return whether a request of this score may wait among `most`, if need be in the place of a worse one."""
        if len(self._backlog) < most:
            return True
        displaced = self._backlog.displace(score) if self._setup.displace else None
        if displaced:
            self._settle(int(displaced), DISPLACED, now_us)
        return displaced is not None

    def _too_late(self, arrival: Arrival, score: float, answer: int) -> bool:
        """Return whether the forecast rules out that the request is done in its time."""
        ended, prompts, answers, asked = self._ended
        if arrival.timeout is None or not ended:
            return False
        sizes = Sizes(prompts / ended, answers / ended, prompts / ended, asked / ended)
        known = [(record, self._prices[record.inc]) for record in self._fleet[: len(self._setup.profiles)]]
        ahead = self._backlog.before(score) * self._backlog.mean_cost
        forecast = foretell(known, sizes, self._setup.workers)
        return forecast.finish_us(ahead, arrival.prompt_tokens, answer) > arrival.timeout * 1e6

    def _settle(self, number: int, outcome: str, now_us: float) -> None:
        fate = self.run.fates[number]
        fate.outcome, fate.ended_s = outcome, _seconds(now_us)
        self.run.outcomes[outcome] += 1
        if outcome != REFUSED:
            del self._rows[str(number)]
            del self._requests[str(number)]

    def _end_run(self, worker: int, now_us: float) -> None:
        """Settle what ended at a worker, and let it go on."""
        begun, left = self._engines[worker].end(self.run.tally)
        now_s = _seconds(now_us)
        for row in begun:
            fate = self.run.fates[row.place]
            if math.isnan(fate.first_s):  # not one that was preempted
                fate.first_s = now_s
        if left:
            for row in left:
                timeout = self._arrivals[row.place].timeout
                late = timeout is not None and now_s > self.run.fates[row.place].queued_s + timeout
                self._settle(row.place, EXPIRED if late else COMPLETED, now_us)
                self._count(row)
                self._release(worker, str(row.place), row.cost)
            self._changed.add(worker)
            self.run.ended_s = now_s
            self._wake(now_us + self._overhead_us)
        self._begin(worker, now_us)

    def _count(self, row: Row) -> None:
        """Take in the size of a request that ended, for forecasts."""
        answer = row.cost - row.prompt
        requests, prompts, answers, asked = self._ended
        self._ended = (requests + 1, prompts + row.prompt, answers + (row.output if answer else 0), asked + answer)

    def _release(self, worker: int, name: str, cost: int) -> None:
        """Free what a row holds, but for one whose room was given away before."""
        if member := self._held[worker].pop(name, None):
            self._offline_rows -= member.offline
            self._held_tokens[worker] -= cost
            self._held_rows[worker] -= 1
            self._all_held -= 1

    def _begin(self, worker: int, now_us: float) -> None:
        engine = self._engines[worker]
        ends_ms = engine.begin(now_us / 1000)
        for row in engine.gone():
            self._left[str(row.place)] += 1
            self._wait(self._requests[str(row.place)], now_us)
        self._busy_until[worker] = None
        if ends_ms is not None:
            self._end_at(worker, ends_ms * 1000)

    def _end_at(self, worker: int, at_us: float) -> None:
        self._busy_until[worker] = at_us
        self._runs[worker] += 1
        heapq.heappush(self._events, (at_us, worker, self._runs[worker]))

    # --- the scheduler --------------------------------------------------------------------------------------------

    def _wake(self, at_us: float) -> None:
        if at_us < self._tick_at:
            self._tick_at = at_us
            heapq.heappush(self._events, (at_us, -1, 0))

    def _tick(self, now_us: float) -> None:
        """Hand out all that fits."""
        for name in self._backlog.expire(now_us):
            self._settle(int(name), EXPIRED, now_us)
        if not self._backlog:
            if self._tenants:
                self._policy.queue.share({}, 0)  # nobody waits: with the next ones their shares begin anew
            return
        more = True
        while more and (depth := self._depth()):
            pages = self._pages(depth)
            heads = self._backlog.heads(pages)
            took = self._dispatch(heads, depth, now_us) if heads else 0
            # What was cut off at the most entries that are ever read may fit as well, and what tenants' pages left out.
            more = False
            if took and (self._tenants or depth == DEPTH[self._setup.mode]):
                cut = [lane for lane, head in heads.items() if len(head) == pages[lane]]
                more = any(depth == DEPTH[self._setup.mode] or tenant_of(lane) for lane in cut)
        if (due_us := self._backlog.next_deadline_us()) is not None:
            self._wake(due_us)

    def _pages(self, depth: int) -> dict[str, int]:
        """Return how many entries to read of each lane, as a scheduler does."""
        sizes, queue = self._backlog.sizes(), self._policy.queue
        if not self._tenants:
            return dict.fromkeys(sizes, depth)
        return {lane: depth for lane in sizes if not tenant_of(lane)} | queue.share(sizes, depth)

    def _depth(self) -> int:
        """Return how many entries of each lane to look at: no more than could matter, none without a free row."""
        most = DEPTH[self._setup.mode]
        free = self._fleet[0].rows * self._setup.workers - self._all_held
        if self._policy.preemption:
            free += self._all_held if self._backlog.waits(CRITICAL) else self._offline_rows
        return min(most, free + BLOCKED_HEADS) if free and self._setup.mode == "continuous" else most * (free > 0)

    def _dispatch(self, heads: dict[str, list[Waiting]], depth: int, now_us: float) -> int:
        """Decide like a scheduler's tick; returns how many requests were handed out."""
        self._read_records()
        began, policy = time.process_time(), self._policy
        fleet = self._fleet if policy.refill else [replace(one, accepting=not one.held_rows) for one in self._fleet]
        order = policy.queue.order(heads, fleet)
        hand = Round(
            order.requests,
            fleet,
            balancer=policy.balancer,
            batcher=policy.batcher,
            shut=frozenset(),
            probing=frozenset(),
            linger_us=self._config.max_queue_delay_ms * 1000,
            now_us=int(now_us),
            speeds=self._speeds,
            rooms=self._rooms(order.requests, int(now_us)),
            largest=order.largest,
        )
        handed = self._hand_out(hand, now_us)
        preempts = policy.preemption and (self._offline_rows or order.urgent)
        blocked = hand.unplaced() if preempts else []
        if policy.preemption and (self._offline_rows or any(request.id in order.urgent for request in blocked)):
            able = hand.fleet if self._offline_rows else givers(hand.fleet, int(now_us))
            held = {record.inc: list(self._held[self._places[record.inc]].values()) for record in able}
            leaving = policy.preemption.choose(blocked, order.urgent, able, held, int(now_us))
            for inc, rows in leaving.items():
                self._make_room(inc, rows, now_us)
                hand.vacated(inc, rows)
            placed = self._hand_out(hand, now_us)
            if leaving and not placed:
                self._wake(now_us)
            handed += placed
        self.run.decision_s += time.process_time() - began
        self._deliver(handed, depth, now_us)
        if hand.linger_us:
            self._wake(now_us + hand.linger_us)
        return sum(len(batch.requests) for _, batch in handed)

    def _hand_out(self, hand: Round, now_us: float) -> list[tuple[WorkerRecord, Batch]]:
        """Give out batch by batch."""
        handed: list[tuple[WorkerRecord, Batch]] = []
        while chosen := hand.next():
            self._policy.queue.dispatched(chosen[1].requests, now_us=int(now_us))
            hand.done(*chosen, more=True)
            handed.append(chosen)
        return handed

    def _rooms(self, order: Sequence[Waiting], now_us: int) -> Mapping[str, BatchRoom]:
        if not self._policy.reserve:
            return {}
        self._policy.reserve.observe(self._fleet, order, now_us)
        offline = self._backlog.waits(BATCH)
        return self._policy.reserve.rooms(self._fleet, self._prices.__getitem__, now_us) if offline else {}

    def _make_room(self, inc: str, rows: Sequence[Held], now_us: float) -> None:
        """Free the room of rows, as `make_room` does; they leave when their step ends."""
        worker = self._places[inc]
        self.run.preempted += len(rows)
        for row in rows:
            self._release(worker, row.id, row.cost)
            self._engines[worker].leave(self._rows[row.id].place)
        self._changed.add(worker)
        self._cut(worker, now_us)

    def _read_records(self) -> None:
        """Bring the records up to what workers hold."""
        for worker in self._changed:
            record = self._fleet[worker]
            record.held_rows, record.held_tokens = self._held_rows[worker], self._held_tokens[worker]
            record.batch_rows = record.batch_tokens = 0
            if self._offline_rows:
                offline = [member.cost for member in self._held[worker].values() if member.offline]
                record.batch_rows, record.batch_tokens = len(offline), sum(offline)
        self._changed.clear()

    def _deliver(self, handed: list[tuple[WorkerRecord, Batch]], depth: int, now_us: float) -> None:
        """Give workers their rows; what runs goes on to the end of its step."""
        touched: dict[int, None] = {}
        run, now_s, at_us = self.run, _seconds(now_us), int(now_us)
        for record, batch in handed:
            worker = self._places[record.inc]
            touched[worker] = None
            held, give = self._held[worker], self._engines[worker].give
            self._all_held += len(batch.costs)
            self._held_rows[worker] += len(batch.costs)
            self._held_tokens[worker] += sum(batch.costs)
            run.batches += 1
            run.dispatched += len(batch.requests)
            delivery = str(run.batches)
            for request in batch.requests:
                row = self._rows[request.id]
                row.batch = delivery
                before = self._left[request.id] if self._left else 0
                held[request.id] = Held(request.id, delivery, row.cost, at_us, class_of(request.lane), before)
                self._offline_rows += row.offline
                fate = run.fates[row.place]
                if fate.worker < 0:
                    fate.begun_s = now_s
                fate.worker = worker
                give(row)
            self._backlog.take(batch.requests, depth)
        self._changed.update(touched)
        for worker in touched:
            if self._busy_until[worker] is None:
                self._begin(worker, now_us)
            else:
                self._cut(worker, now_us)

    def _cut(self, worker: int, now_us: float) -> None:
        """Let what runs end with its step."""
        until_us = self._busy_until[worker]
        if until_us is not None and (ends_us := self._engines[worker].cut(now_us / 1000) * 1000) < until_us:
            self._end_at(worker, ends_us)


def _seconds(at_us: float) -> float:
    return (at_us - START_US) / 1e6
