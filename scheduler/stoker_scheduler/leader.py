"""Who schedules: one lease in Redis, renewed three times a heartbeat."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import structlog

from stoker.config import Config
from stoker.errors import ConfigError
from stoker.store import scripts
from stoker.store.connection import AsyncStore, new_id
from stoker.store.records import Waiting
from stoker.store.scripts import NOTHING_TOLD, Call, Dispatched, Told

log = structlog.get_logger()

CLAIMS = 3
"""How often a heartbeat the lease is claimed, by a standby too. A tick that is older than H starts a grace, in which no
lease lapses: one claim may fail, or be late by two thirds of H, before that."""


class Leadership:
    """This process's claim to lead a queue.

    1. `tick` takes or renews the lease, as a standby too: every call leaves the tick that gaps are measured from.
    2. Numbers the dispatches of this leadership, so that a repeated one is known for what it is.
    3. After it was fenced, or found another Redis history, claims under a new nonce: no delivery id is ever made twice.
    """

    def __init__(self, store: AsyncStore, config: Config, told: Callable[[], Told] = lambda: NOTHING_TOLD) -> None:
        """Lead the queue of `config`; `told` is what to leave in Redis with each claim."""
        self._told = told
        self._store = store
        self._config = config
        self._node = f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
        self._nonce = new_id()
        self._generation = ""
        self._n = 0
        self.token = ""
        self.leads = asyncio.Event()

    async def tick(self) -> None:
        """Take or renew the lease; raises `ConfigError` when the queue runs with another H."""
        me = f"{self._node}:{self._nonce}"
        answer = await self._store.run(scripts.lead(me, self._generation, new_id(), self._config, self._told()))
        match answer.word:
            case "LEADER":
                self._generation = answer.generation
                if answer.token != self.token:
                    self.token, self._n = answer.token, 0
                    log.info("leading", queue=self._config.queue, token=answer.token)
                self.leads.set()
            case "STANDBY":
                self._generation = answer.generation
                if self.token:
                    self.lost(f"{answer.token} leads")
            case "VOID":
                log.warning("redis has another history", generation=answer.generation)
                self.lost("another history")
                self._generation = ""
            case _:
                theirs = int(answer.detail) // 1000
                raise ConfigError(f"heartbeat_ms: the queue runs with {theirs}, got {self._config.heartbeat_ms}")

    def dispatch(self, inc: str, requests: list[tuple[Waiting, int]]) -> Call[Dispatched]:
        """Return the next numbered dispatch."""
        self._n += 1
        return scripts.dispatch(self.token, self._n, inc, requests)

    def lost(self, why: str) -> None:
        """Stop leading: another's token stands in Redis. The next claim is made under a new nonce."""
        if self.token:
            log.warning("no longer leading", token=self.token, reason=why)
        self.token, self._nonce = "", new_id()
        self.leads.clear()

    async def resign(self) -> None:
        """Give the lease up, so that a standby need not wait."""
        if self.token:
            await self._store.run(scripts.resign(self.token))
            self.token = ""
            self.leads.clear()
