"""The blocking client of a queue with several shards: a client for each, and requests go to theirs by their ids."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, TypeVar, Unpack

from stoker import _flows
from stoker._calls import Item, RequestFields
from stoker._flows import Flow, R, State
from stoker._link import Link
from stoker._merge import by_shard, figures, in_order, newest, parts_of, united
from stoker._windows import Windows, id_of
from stoker.client import Client, Job, P
from stoker.config import check_name
from stoker.errors import RedisUnavailable, StokerError
from stoker.request import InferenceResponse
from stoker.shards import shard_of
from stoker.stats import Stats
from stoker.store.durability import MEMORY
from stoker.store.lookups import DeadLetter
from stoker.store.reads import Card
from stoker.store.records import WorkerRecord

T = TypeVar("T")


class ShardedClient(Client):
    """All shards of a queue as one queue; `Client` is one of these where the settings say that there are several.

    A request belongs to a shard by its id alone. One without an id gets one of the shard whose turn it is.
    """

    def _open(self) -> None:
        self._clients = [Client(config=self.config.of(shard)) for shard in range(self.config.shards)]
        self._turns = itertools.count()

    def _here(self) -> Link:
        return self._clients[0]._here()

    def _of(self, request_id: str) -> Client:
        return self._clients[shard_of(check_name("request_id", request_id), self.config.shards)]

    def close(self) -> None:
        """Close all connections and end the readers; what waits in other threads raises. Requests go on."""
        for client in self._clients:
            client.close()

    # --- submitting ---------------------------------------------------------------------------------------------------

    def submit(
        self,
        request: Item | None = None,
        *,
        durability: str = MEMORY,
        block: bool = False,
        block_timeout: float | None = None,
        displace: bool = False,
        check_deadline: bool = True,
        **fields: Unpack[RequestFields],
    ) -> Job:
        """Submit a request to its shard; as `Client.submit`."""
        [shard] = by_shard([id_of(request, fields)], self.config.shards, next(self._turns))
        return self._clients[shard].submit(
            request,
            durability=durability,
            block=block,
            block_timeout=block_timeout,
            displace=displace,
            check_deadline=check_deadline,
            **fields,
        )

    def submit_many(
        self, requests: Iterable[Item], *, durability: str = MEMORY, displace: bool = False, check_deadline: bool = True
    ) -> list[Job | StokerError]:
        """Submit requests, to all shards at once; as `Client.submit_many`.

        Raises `RedisUnavailable` where none could be submitted; where one shard's Redis does not answer, its requests
        get that error.
        """
        items = list(requests)
        parts = parts_of([id_of(item, {}) for item in items], self.config.shards, next(self._turns))

        def send(shard: int, part: Sequence[int]) -> Sequence[Job | StokerError]:
            try:
                return self._clients[shard].submit_many(
                    [items[i] for i in part], durability=durability, displace=displace, check_deadline=check_deadline
                )
            except RedisUnavailable as error:
                return [error] * len(part)

        answers = together([functools.partial(send, shard, part) for shard, part in parts.items()])
        return in_order(parts.values(), answers)

    def map(self, items: Iterable[Item], **fields: Unpack[RequestFields]) -> Iterator[InferenceResponse]:
        """Run any number of prompts, token id lists or requests on all shards; as `Client.map`."""
        windows, source = Windows(self.config, fields), iter(items)
        links = [client._here() for client in self._clients]
        while not windows.finished:
            windows.take(source)
            for link in links:
                link.read_wakeups()
            flows = windows.advance([link.state for link in links])
            together([functools.partial(links[shard].drive, flow) for shard, flow in flows])
            yield from windows.ready()
            if windows.wants or windows.finished:
                continue
            shard, pending = windows.head
            if pending is None:
                links[shard].sleep(windows.pause_s or 0.0)
            else:
                links[shard].wait(pending, windows.pause_s)

    # --- operating ----------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return the figures of all shards together; the leader is None unless each has one."""
        return figures(self.config, self._all(_flows.survey))

    def workers(self) -> list[WorkerRecord]:
        """Return the registered workers of all shards and what they hold."""
        return [record for records in self._all(_flows.workers) for record in records]

    def queue_card(self) -> Card | None:
        """Return the card of the queue's model, None before its first worker."""
        return next(filter(None, self._all(_flows.card)), None)

    def drain(self, worker: str, drained: bool = True) -> bool:
        """Stop sending work to a worker, or go on with it, in whichever shard; gives whether it is there."""
        return any(self._all(_flows.drain, worker, drained))

    def tenants(self) -> dict[str, dict[str, float]]:
        """Return what is set for tenants, by tenant and setting; each shard has the same."""
        return united(self._all(_flows.tenants))

    def set_tenant(self, tenant: str, **values: float | None) -> None:
        """Set numbers for a tenant in each shard; a limit counts in each of them."""
        self._all(_flows.set_tenant, tenant, values)

    def set_model(self, identity: str, fields: Mapping[str, Any]) -> None:
        """Replace each shard's model card; raises `ModelMismatch` while workers of another model are registered."""
        self._all(_flows.set_model, identity, fields)

    def forget_model(self) -> None:
        """Let the next worker to register decide the queue's model; raises `ModelMismatch` while there are workers."""
        self._all(_flows.set_model, "", {})

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the newest dead letters of all shards."""
        return newest(self._all(_flows.dead_letters, limit), limit)

    def purge_dead(self, ids: Iterable[str]) -> int:
        """Forget dead letters; gives how many there were."""
        given = list(ids)
        return sum(
            client.purge_dead([found for found in given if self._of(found) is client]) for client in self._clients
        )

    def _all(self, flow: Callable[Concatenate[State, P], Flow[R]], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Return what a flow gives in each shard."""
        return together([functools.partial(client._drive, flow, *args, **kwargs) for client in self._clients])


def together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make blocking calls at the same time; gives what they gave, or raises the first one's error once all ended."""
    if len(calls) < 2:
        return [call() for call in calls]
    # Made anew each time: threads that wait for more would not be there after a fork.
    with ThreadPoolExecutor(len(calls), thread_name_prefix="stoker-shard") as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
