"""Takes a worker's doorbells: begins what they name, and opens it for the step loop."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from stoker.config import Config
from stoker.errors import InvalidRequest, RedisUnavailable
from stoker.every import Outage
from stoker.store import reads, scripts
from stoker.store.codec import encode_failure
from stoker.store.connection import Store
from stoker.store.payloads import Payloads
from stoker.store.reads import TokenRecord
from stoker.store.scripts import Begun, Settlement
from stoker_workers.engine import Engine
from stoker_workers.intake import Row, nonce_of, open_row
from stoker_workers.session import Key, Session

log = structlog.get_logger()

DOORBELLS = 16


class Reader:
    """Runs on a thread of its own for each session, beside the steps; of the engine it calls only the tokenizer."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        timed: Callable[[str, float], None],
        arrived: Callable[[Session, list[Row]], None],
        leave: Callable[[Session, list[Key]], None],
        outage: Outage,
    ) -> None:
        """Give opened attempts to `arrived`, those to give back to `leave`, and the time of Redis' calls to `timed`."""
        self._outage = outage
        self._config = config
        self._payloads = Payloads()
        self._engine = engine
        self._timed = timed
        self._arrived = arrived
        self._leave = leave

    def read(self, session: Session) -> None:
        """Take doorbells while the session is open. After every error the own pending entries come first."""
        store = Store(self._config, block_s=self._config.block_ms / 1000)
        store.timed = self._timed
        own = True
        while session.reading:
            try:
                bells = store.read(
                    reads.doorbells(store.keys, session.inc, own=own, block_ms=self._config.block_ms, count=DOORBELLS)
                )
                for bell in bells:
                    self._answer(store, session, bell)
                if own and not bells:
                    self._take_stock(store, session)
                own = own and bool(bells)
                self._outage.back("reader")
            except RedisUnavailable as error:
                self._outage.lost("reader", error)
                own = True
                time.sleep(0.1)
            except Exception as error:  # a stream that is gone (an emptied Redis) heals by a new incarnation
                log.warning("doorbells unreadable", inc=session.inc, error=str(error)[:200])
                own = True
                time.sleep(0.5)
        store.close()

    def _answer(self, store: Store, session: Session, bell: reads.Doorbell) -> None:
        """Begin what a doorbell names, and pass it on; what is to leave goes first, to make room."""
        if bell.leave:
            self._leave(session, list(bell.leave))
        ids = [i for i in bell.ids if (i, bell.delivery) not in session.begun]
        begun = [item for item in self._begin(store, session, bell, ids) if item.payload]
        session.begun.update((item.id, bell.delivery) for item in begun)
        log.debug("begun", inc=session.inc, delivery=bell.delivery, ids=[item.id for item in begun])
        given = self._given(store, session, begun)
        costs = dict(zip(bell.ids, bell.costs, strict=False))
        opened = (
            self._open(session, item, bell.delivery, given.get(item.id, []), costs.get(item.id)) for item in begun
        )
        rows = [row for row in opened if row]
        if rows:
            self._arrived(session, rows)

    def _take_stock(self, store: Store, session: Session) -> None:
        """Give back what Redis says runs here and does not.

        A Redis that came back without its last second (a disk that stalled, a failover) holds rows again that ended
        long ago. Nobody else would ever take them from a worker that beats, and their room would be gone. What is being
        reported goes first through the same queue, so that giving it back changes nothing.
        """
        gone = [key for key in store.read(reads.running(store.keys, session.inc)) if key not in session.begun]
        if gone:
            log.warning("redis forgot that these ended, giving them back", inc=session.inc, requests=len(gone))
            session.give_back(gone)

    def _begin(self, store: Store, session: Session, bell: reads.Doorbell, ids: list[str]) -> list[Begun]:
        """Begin until Redis answers: the doorbell goes with the first call, so that nothing rings for these again."""
        while session.open:
            try:
                return store.run(scripts.begin(session.inc, bell.entry, bell.delivery, ids))
            except RedisUnavailable as error:
                self._outage.lost("reader", error)
                time.sleep(0.1)
        return []

    def _given(self, store: Store, session: Session, begun: list[Begun]) -> dict[str, list[TokenRecord]]:
        """Read what earlier attempts published. They are begun now: nothing rings for them again, so it is tried on."""
        again = [(item.id, nonce_of(item)) for item in begun if item.attempt > 1 and self._engine.resumes]
        while again and session.open:
            try:
                streams = store.read(reads.published(store.keys, again))
            except RedisUnavailable:
                time.sleep(0.1)
            else:
                return {request_id: records for (request_id, _), records in zip(again, streams, strict=True)}
        return {}

    def _open(
        self, session: Session, item: Begun, delivery: str, given: list[TokenRecord], cost: int | None
    ) -> Row | None:
        """Check and tokenize; whatever is wrong with a request fails it alone, and the worker lives."""
        try:
            most_bytes = self._config.payload_bytes
            return open_row(item, delivery, self._engine, time.monotonic, most_bytes, given, cost, self._payloads)
        except InvalidRequest as error:
            wrong = error
        except Exception as error:  # a template or a tokenizer of any model may raise anything
            wrong = InvalidRequest("prompt", f"cannot be tokenized ({type(error).__name__})", str(error)[:80])
        body = encode_failure(str(wrong), wrong)
        session.settle([Settlement(item.id, delivery, nonce_of(item), "bad", "invalid", body, item.attempt)])
        return None
