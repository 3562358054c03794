"""What the child of a worker does: reads its doorbells, runs the engine, reports what came of it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import structlog

from stoker.config import Config
from stoker.errors import InvalidRequest, UnsupportedParameter
from stoker.every import Outage
from stoker.request import RequestPriority
from stoker.store.connection import Store
from stoker.store.scripts import Settlement
from stoker_workers.ahead import aged, in_turn, overdue
from stoker_workers.board import Board
from stoker_workers.engine import (
    Admitted,
    Engine,
    Event,
    Failed,
    Finished,
    Full,
    Invalid,
    OutOfMemory,
    Remote,
    Tokens,
    Unavailable,
)
from stoker_workers.engine_faults import free_memory
from stoker_workers.intake import Row
from stoker_workers.messages import (
    Away,
    Costs,
    Drain,
    Drained,
    Holds,
    Message,
    Nudge,
    Serve,
    Stop,
    to_line,
)
from stoker_workers.pacing import Pacer
from stoker_workers.reader import Reader
from stoker_workers.reporter import Reporter
from stoker_workers.reports import OUTCOMES, answer_of, failure, published, too_large
from stoker_workers.room import Room, part
from stoker_workers.session import Key, Session
from stoker_workers.tallies import INTER_TOKEN, OUTPUT_TOKEN, STEP, STEP_ROWS

log = structlog.get_logger()

LAST_REPORTS_S = 5.0
"""How long a process whose engine failed waits for Redis to take the results it has."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Into the step loop: attempts that the reader opened."""

    session: Session
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Leave:
    """Into the step loop: attempts that the scheduler wants back, for others wait for their room."""

    session: Session
    keys: list[Key]


Inbox = queue.SimpleQueue[Arrived | Leave | Message]


class Worker:
    """One engine and the loop around it.

    1. A reader thread takes doorbells, begins what they name, checks and tokenizes it.
    2. The main thread admits, steps, and sorts the events into answers; it alone touches engine and rows.
    3. A reporter thread settles, publishes tokens and hands back; it repeats until Redis answers.
    4. A control thread hears the supervisor: a new incarnation, rows that moved on, the end.
    """

    def __init__(
        self, config: Config, engine: Engine, board: Board, news: BinaryIO, inbox: Inbox, *, paced: bool = False
    ) -> None:
        """Run `engine`, which is loaded; count on `board`; tell the supervisor on `news`, hear it through `inbox`.

        `paced`: whether prompts of BATCH are spread over steps, for an engine that prefills beside its answers.
        """
        self._config = config
        self._engine = engine
        self._board = board
        self._news = news
        self._inbox = inbox
        self._session: Session | None = None
        self._outage = Outage()
        self._reader = Reader(
            config,
            engine,
            board.tallies.timed,
            lambda *arrived: inbox.put(Arrived(*arrived)),
            lambda *leaving: inbox.put(Leave(*leaving)),
            self._outage,
        )
        capacity = engine.capacity()
        self._rows = capacity.rows
        self._room = Room(capacity.tokens, capacity.cache)
        self._pacer = Pacer(config) if paced else None
        self._drain_at = float("inf")
        self._flushed_at = 0.0
        self._begun: list[Row] = []

    def run(self) -> None:
        """Serve until a drain is done. When the engine fails, hand over first what it finished before."""
        try:
            self._serve_on()
        except BaseException:
            if session := self._session:
                session.reading = False
                session.reporter.finish(LAST_REPORTS_S)
            raise

    def _serve_on(self) -> None:
        if isinstance(self._engine, Remote):
            self._engine.watch(lambda reason: self._inbox.put(Away(reason)))
        while True:
            self._hear(block=not self._busy())
            session = self._session
            if session is None:
                continue
            if session.draining and self._finish_drain(session):
                return
            if self._room.grow(time.monotonic()):
                self._tell(Holds(self._room.tokens))
            self._admit(session)
            if self._engine.resident():
                self._step(session)
                self._publish(session)

    def _busy(self) -> bool:
        session = self._session
        return bool(session and (session.rows or session.waiting or session.draining))

    # --- what came in ---------------------------------------------------------------------------------------------

    def _hear(self, *, block: bool) -> None:
        """Take all that waits in the inbox; sleep for the first when there is nothing to do."""
        with contextlib.suppress(queue.Empty):
            self._take(self._inbox.get(block=block))
            while True:
                self._take(self._inbox.get_nowait())

    def _take(self, item: Arrived | Leave | Message) -> None:
        match item:
            case Arrived(session, rows) if session.open and session.draining:
                session.give_back([row.key for row in rows])
            case Arrived(session, rows) if session.open:
                # What the supervisor named meanwhile is handed back already.
                session.waiting += [row for row in rows if row.key in session.begun]
            case Leave(session, keys) if session.open:
                self._leave(session, keys)
            case Serve(inc):
                self._serve(inc)
            case Stop(named) if self._session:
                self._stop(self._session, {(request_id, delivery) for request_id, delivery in named})
            case Drain(grace_s) if self._session:
                self._session.draining = True
                self._drain_at = min(self._drain_at, time.monotonic() + grace_s)
            case Nudge(ahead):
                self._board.add("progress")
                self._board.publish()
                if self._session:
                    self._let_go(self._session, ahead)
            case Away():
                self._tell(item)
            case _:
                pass

    def _serve(self, inc: str) -> None:
        """Begin a session; the rows of the one before belong to nobody any more."""
        structlog.contextvars.bind_contextvars(inc=inc)
        if self._session:
            self._session.open = self._session.reading = False
            self._session.reporter.close()
            for request_id in list(self._session.rows):
                self._engine.cancel(request_id)
        store = Store(self._config)
        store.timed = self._board.tallies.timed
        reporter = Reporter(store, inc, self._config, self._moved_on, self._outage)
        self._session = Session(inc, reporter)
        self._session.reader = threading.Thread(
            target=self._reader.read, args=(self._session,), name="reader", daemon=True
        )
        self._session.reader.start()

    def _moved_on(self, keys: list[Key]) -> None:
        self._inbox.put(Stop([list(key) for key in keys]))

    def _stop(self, session: Session, named: set[Key]) -> None:
        """Drop the rows of attempts that moved on, and hand them back: their memory is free."""
        self._drop(session, named)
        session.give_back(sorted(named))

    def _leave(self, session: Session, keys: list[Key]) -> None:
        """Hand rows back with their tokens: the next attempt goes on behind them, where the engine can."""
        rows = self._drop(session, set(keys))
        kept = [published(row) for row in rows if row.published < len(row.token_ids)] if self._engine.resumes else []
        if kept:
            session.reporter.publish(kept)
        session.give_back(keys)

    def _let_go(self, session: Session, ahead: int) -> None:
        """Give back what it would not take ahead any more: rows stay longer now, and other workers may be free."""
        back = overdue(session.waiting, self._rows + ahead - len(session.rows), time.monotonic())
        if back:
            self._drop(session, {row.key for row in back})
            session.give_back([row.key for row in back])

    def _drop(self, session: Session, named: set[Key]) -> list[Row]:
        """Take attempts out of the engine and out of what waits for it; returns the rows that were in the engine."""
        rows = [row for key in named if (row := session.rows.get(key[0])) and row.key == key]
        for row in rows:
            self._engine.cancel(row.payload.id)
            session.drop(row)
        session.waiting = [row for row in session.waiting if row.key not in named]
        return rows

    def _finish_drain(self, session: Session) -> bool:
        """Give back what is not begun; at the end of the grace all. Whether nothing is left."""
        late = time.monotonic() >= self._drain_at
        back = [*session.waiting, *(session.rows.values() if late else ())]
        if late:
            for row in list(session.rows.values()):
                self._engine.cancel(row.payload.id)
                session.drop(row)
        session.waiting.clear()
        if back:
            session.give_back([row.key for row in back])
        if session.rows:
            return False
        session.reading = False
        if session.reader:
            session.reader.join()
        self._hear(block=False)
        session.reporter.finish()
        self._tell(Drained())
        return True

    # --- the engine -----------------------------------------------------------------------------------------------

    def _admit(self, session: Session) -> None:
        """Hand the engine what waits; what does not fit stays until rows leave."""
        if not session.waiting or len(session.rows) >= self._rows:
            return
        now, costs = time.monotonic(), []
        waiting = self._take_waiting(session, now)
        for place, row in enumerate(waiting):
            if not self._paced(session, row, now):
                session.waiting.append(row)
                continue
            answer = self._offer(session, row)
            if isinstance(answer, Full) and session.rows:
                session.waiting += waiting[place:]
                break
            if isinstance(answer, Admitted):
                if before := session.rows.get(row.payload.id):
                    session.drop(before)
                row.cost = answer.cost
                session.take(row)
                if row.estimated:
                    costs.append([*row.key, answer.cost])
            elif isinstance(answer, Unavailable):
                session.give_back([row.key])
            else:
                self._refuse(session, row, answer)
        if costs:
            self._tell(Costs(costs))

    def _take_waiting(self, session: Session, now: float) -> list[Row]:
        """Take out what waits. Where all of it fits nobody has to wait for a turn: a padded batch keeps its order."""
        waiting, session.waiting = session.waiting, []
        if self._pacer or len(session.rows) + len(waiting) > self._rows:
            waiting = in_turn(waiting, now)
        if self._pacer:
            self._pacer.observe(waiting, session.rows.values(), now)
        return waiting

    def _paced(self, session: Session, row: Row, now: float) -> bool:
        """Return whether the pace of prompts of BATCH lets a row in."""
        return not self._pacer or self._pacer.takes(row, idle=not session.rows, now_s=now, aged=aged(row, now))

    def _offer(self, session: Session, row: Row) -> Admitted | Full | Invalid | Unavailable:
        """Ask the engine to take a row, unless that would be more than it had memory for."""
        if self._room.reduced and not self._room.takes([held.cost for held in session.rows.values()], row.cost):
            return Full()
        return self._engine.admit(row.work)

    def _refuse(self, session: Session, row: Row, answer: Invalid | Full) -> None:
        """Fail what the engine will never take; Full of an empty engine means the same."""
        if isinstance(answer, Full):
            answer = Invalid("prompt", "prompt and max_tokens must fit this worker's cache", len(row.work.prompt))
        kind = UnsupportedParameter if answer.unsupported else InvalidRequest
        error = kind(answer.field, answer.limit, answer.value)
        session.settle([failure(row, "bad", "invalid", str(error), error)])

    def _step(self, session: Session) -> None:
        started = time.monotonic_ns()
        scheduled, lack = self._engine.scheduled(), ""
        self._board.begin_step(scheduled, started // 1000)
        rows, tokens = len(session.rows), session.resident_tokens
        try:
            events = self._engine.step()
        except OutOfMemory as error:
            events, lack = [], str(error)
        took_us = (time.monotonic_ns() - started) // 1000
        if self._pacer:
            self._pacer.stepped()
        self._board.add("steps")
        self._board.add("row_steps", rows)
        self._board.add("token_steps", tokens)
        self._board.add("busy_us", took_us)
        self._board.end_step()
        self._board.tallies.observe(STEP, "", took_us)
        self._board.tallies.observe(STEP_ROWS, "", rows)
        self._sort(session, events)
        if lack:
            self._take_less(session, scheduled, lack)
        # There may be no next step for a while, and what this one brought counts now.
        self._board.publish()

    def _take_less(self, session: Session, in_step: Sequence[str], lack: str) -> None:
        """Go on with half of the rows of a step that found no memory, and give the others back, charged to nobody."""
        rows = list(session.rows.values())
        for row in rows:
            self._engine.cancel(row.payload.id)
            session.drop(row)
        free_memory()
        parted = part(rows, in_step, resumes=self._engine.resumes)
        log.warning("out of memory", inc=session.inc, in_step=len(parted.ran), kept=len(parted.kept), error=lack)
        if parted.alone:
            self._board.add("faults")
            session.settle([failure(row, "retry", "out_of_memory", too_large(row, lack)) for row in parted.ran])
        else:
            self._room.shrink([row.cost for row in parted.ran], time.monotonic())
            self._tell(Holds(self._room.tokens))
        session.waiting = [*parted.kept, *session.waiting]
        if parted.back:
            session.give_back([row.key for row in parted.back])

    def _sort(self, session: Session, events: list[Event]) -> None:
        """Take in what a step brought. All its tokens came now; what ended is reported together."""
        now, made, faulty = time.monotonic(), 0, False
        ended: list[Settlement] = []
        # How many rows of a class had their token before this one at the same moment: most of them with the last step.
        since: dict[tuple[RequestPriority, float], int] = {}
        rows = session.rows
        for event in events:
            row = rows.get(event.id)
            if row is None:
                continue
            if isinstance(event, Tokens):
                if row.first_token_us < 0:
                    self._first_token(session, row, now)
                else:
                    moment = (row.priority, row.last_token_s)
                    since[moment] = since.get(moment, 0) + 1
                made += row.add(event)
                row.last_token_s = now
            else:
                faulty |= isinstance(event, Failed) and event.kind == "retry"
                ended += self._end(session, row, event)
        session.resident_tokens += made
        for (priority, moment_s), n in since.items():
            self._board.tallies.observe(INTER_TOKEN, priority, int((now - moment_s) * 1e6), n)
        self._board.add("generation_tokens", made)
        if faulty:
            self._board.add("faults")
        if ended:
            session.settle(ended)

    def _end(self, session: Session, row: Row, event: Finished | Failed) -> list[Settlement]:
        """Drop the row; returns what is to be reported of it, nothing where it is given back."""
        session.drop(row)
        if row.stream and row.published < row.tokens:
            session.reporter.publish([published(row)])
        if isinstance(event, Finished):
            self._board.add("successes")
            self._board.add("finished")
            made = row.tokens - len(row.work.generated)
            if made > 1:
                decode_us = max(0, int((row.last_token_s - row.begun_s) * 1e6) - row.first_token_us)
                per_token_us = decode_us // (made - 1)
                self._board.tallies.observe(OUTPUT_TOKEN, row.priority, per_token_us)
            return [answer_of(row, event, self._config.result_bytes)]
        if event.kind == "returned":
            session.give_back([row.key])
            return []
        if event.kind == "invalid":
            error = InvalidRequest("request", event.reason, event.value)
            return [failure(row, "bad", "invalid", str(error), error)]
        return [failure(row, OUTCOMES[event.kind], "error", event.reason)]

    def _first_token(self, session: Session, row: Row, now: float) -> None:
        row.first_token_us = int((now - row.begun_s) * 1e6)
        session.resident_tokens += row.resident_tokens
        self._board.add("prompt_tokens", len(row.work.prompt))
        if row.stream:
            self._begun.append(row)

    def _publish(self, session: Session) -> None:
        """Publish new tokens of streaming rows: the first of each at once, those of all together at intervals."""
        now, rows = time.monotonic(), self._begun
        self._begun = []
        if now - self._flushed_at >= self._config.flush_ms / 1000:
            self._flushed_at, rows = now, list(session.rows.values())
        new = [published(row) for row in rows if row.stream and row.published < row.tokens]
        if new:
            session.reporter.publish(new)

    def _tell(self, message: Message) -> None:
        self._news.write(to_line(message))
        self._news.flush()
