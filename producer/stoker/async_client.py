"""The awaited client: the verbs of `Client`, for one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, Unpack, cast

from stoker import _flows
from stoker._async_link import AsyncLink
from stoker._calls import (
    Item,
    RequestFields,
    TokenReader,
    as_texts,
    classification_of,
    refused_error,
    unreached,
    vector_of,
)
from stoker._contact import client_config, seconds_left, stream_block_ms
from stoker._flows import Flow, R, State
from stoker._outstanding import Pending, Phase
from stoker._window import Window
from stoker.config import Config, check_name
from stoker.errors import DurabilityNotReached, ResultTimeout, StokerError
from stoker.request import Chunk, Classification, InferenceResponse
from stoker.stats import Stats
from stoker.store.durability import MEMORY, Durability
from stoker.store.lookups import DeadLetter
from stoker.store.reads import Card
from stoker.store.records import WorkerRecord

if TYPE_CHECKING:
    from stoker.batch.sdk import AsyncBatches

P = ParamSpec("P")


class AsyncClient:
    """A queue, seen by who submits to it from an event loop. Use with `async with`, or call `close`.

    Settings and errors are those of `Client`. One task reads for any number of awaits.
    """

    config: Config

    def __new__(cls, redis_url: str | None = None, *, queue: str | None = None, config: Config | None = None) -> Self:
        """Make one, of a queue with several shards one that holds a client for each."""
        kind: type[AsyncClient] = cls
        settings = client_config(redis_url, queue, config)
        if settings.spread and cls is AsyncClient:
            from stoker._async_sharded import ShardedAsyncClient

            kind = ShardedAsyncClient
        client = object.__new__(kind)
        client.config = settings
        return cast("Self", client)

    def __init__(self, redis_url: str | None = None, *, queue: str | None = None, config: Config | None = None) -> None:
        self._link: AsyncLink | None = None
        self._closed = False

    def _here(self) -> AsyncLink:
        """Return the link of this event loop; another loop, or a forked child, makes its own."""
        if self._closed:
            raise StokerError("this client is closed")
        link = self._link
        if link is None or link.pid != os.getpid() or link.loop is not asyncio.get_running_loop():
            link = self._link = AsyncLink(self.config)
        return link

    def _of(self, request_id: str) -> AsyncClient:
        """Return the client of the shard that a request belongs to."""
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections and end the tasks; who still waits gets an error. Requests go on."""
        self._closed = True
        if self._link is not None:
            await self._link.close()

    def __repr__(self) -> str:
        return f"<stoker.AsyncClient of queue {self.config.queue!r}>"

    # --- submitting ---------------------------------------------------------------------------------------------------

    async def submit(
        self,
        request: Item | None = None,
        *,
        durability: str = MEMORY,
        block: bool = False,
        block_timeout: float | None = None,
        displace: bool = False,
        check_deadline: bool = True,
        **fields: Unpack[RequestFields],
    ) -> AsyncJob:
        """Submit a request, given whole or by its fields.

        With `block` wait for room in a full queue, at most `block_timeout` seconds. With `displace` it takes the place
        of the worst sheddable request that waits there with a worse score, if any does. `durability`: `memory`,
        `fsync` (it is on the disk of Redis) or `replicated:n` (n replicas have it too); waits for it at most
        `config.durability_timeout_s`. Raises `InvalidRequest`, `IdempotencyConflict`, `QueueFull`,
        `DeadlineInfeasible` (where workers are known well enough, unless `check_deadline=False`), and
        `DurabilityNotReached`, whose `job` goes on.
        """
        wanted = Durability.parse(durability)
        link = self._here()
        flow = _flows.submit_one(
            link.state,
            request,
            fields,
            wanted,
            block,
            block_timeout,
            displace=displace,
            check_deadline=check_deadline,
        )
        job = AsyncJob(self, await link.drive(flow))
        if error := unreached(job, wanted):
            raise error
        return job

    async def submit_many(
        self, requests: Iterable[Item], *, durability: str = MEMORY, displace: bool = False, check_deadline: bool = True
    ) -> list[AsyncJob | StokerError]:
        """Submit requests in groups; gives in order a job for each, or the error that its own `submit` had raised."""
        wanted = Durability.parse(durability)
        outcomes = await self._drive(
            _flows.submit, list(requests), wanted, displace=displace, check_deadline=check_deadline
        )
        jobs: list[AsyncJob | StokerError] = [
            AsyncJob(self, outcome) if isinstance(outcome, Pending) else outcome for outcome in outcomes
        ]
        if wanted.level == MEMORY:
            return jobs
        return [(isinstance(job, AsyncJob) and unreached(job, wanted)) or job for job in jobs]

    async def map(self, items: Iterable[Item], **fields: Unpack[RequestFields]) -> AsyncIterator[InferenceResponse]:
        """Run any number of prompts, token id lists or requests; gives their responses in order.

        At most `config.in_flight` are taken from `items` and not yet given back; a full queue is waited out. An
        item's error is its response's `error`.
        """
        window, source, link = Window(self.config, fields), iter(items), self._here()
        while not window.finished:
            link.read_wakeups()
            await link.drive(window.advance(link.state, window.take(source)))
            for response in window.ready():
                yield response
            if window.wants or window.finished:
                continue
            pause = window.pause_s
            if window.head is None:
                await asyncio.sleep(pause or 0.0)
            else:
                await link.wait(window.head, pause)

    async def embed(self, texts: Iterable[Item], **fields: Unpack[RequestFields]) -> list[array[float]]:
        """Return a vector for each text, in order: an `array("f")` of norm 1, whose memory `numpy.asarray` shares.

        Runs through `map`, and raises the first error met there; `ModelMismatch` where the queue's model does not
        embed.
        """
        await self._drive(_flows.check_task, "embed")
        return [vector_of(response) async for response in self.map(as_texts(texts), **fields)]

    async def classify(self, texts: Iterable[Item], **fields: Unpack[RequestFields]) -> list[Classification]:
        """Return for each text, in order, its label and the scores of all labels.

        Runs through `map`, and raises the first error met there; `ModelMismatch` where the queue's model does not
        classify.
        """
        await self._drive(_flows.check_task, "classify")
        return [classification_of(response) async for response in self.map(as_texts(texts), **fields)]

    async def stream(
        self,
        request: Item | None = None,
        *,
        block: bool = False,
        block_timeout: float | None = None,
        **fields: Unpack[RequestFields],
    ) -> AsyncIterator[Chunk]:
        """Submit a request and give its answer piece by piece: `Chunk`, or `Restarted` when it begins anew.

        Raises what `AsyncJob.result` raises, after the last piece. Leaving the loop early cancels the request.
        """
        fields["stream"] = True
        job = await self.submit(request, block=block, block_timeout=block_timeout, **fields)
        try:
            async with contextlib.aclosing(job.stream()) as chunks:
                async for chunk in chunks:
                    yield chunk
        except Exception:
            raise
        except BaseException:  # the loop was left, or its task cancelled
            with contextlib.suppress(StokerError):
                await job.cancel()
            raise

    # --- waiting ------------------------------------------------------------------------------------------------------

    def job(self, request_id: str) -> AsyncJob:
        """Return the handle of a request by its id, whoever submitted it. Asks Redis nothing yet."""
        client = self._of(request_id)
        [pending] = client._here().state.book.expect([check_name("request_id", request_id)], Phase.FOREIGN)
        return AsyncJob(client, pending)

    async def as_completed(
        self,
        jobs: Iterable[AsyncJob | StokerError],
        timeout: float | None = None,  # noqa: ASYNC109 (as the other client's)
    ) -> AsyncIterator[InferenceResponse]:
        """Give responses as they come; errors among `jobs` (of `submit_many`) are responses too.

        Raises `ResultTimeout` when not all came within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        # What is not durable enough was accepted nevertheless.
        given = [job.job if isinstance(job, DurabilityNotReached) else job for job in jobs]
        owned = [(self._of(job.id), job) for job in given if not isinstance(job, StokerError)]
        pendings, links = [client._own(job) for client, job in owned], [client._here() for client, _ in owned]
        done: asyncio.Queue[int] = asyncio.Queue()
        callbacks = [functools.partial(done.put_nowait, i) for i in range(len(pendings))]
        left = set(range(len(pendings)))
        for link in dict.fromkeys(links):
            of = [i for i, other in enumerate(links) if other is link]
            await link.watch([pendings[i] for i in of], [callbacks[i] for i in of])
        try:
            for error in given:
                if isinstance(error, StokerError):
                    yield refused_error(error)
            while left:
                try:
                    async with asyncio.timeout(seconds_left(deadline)):
                        i = await done.get()
                except TimeoutError:
                    late = min(left)
                    raise ResultTimeout(pendings[late].id, timeout or 0.0) from links[late].contact.error
                response = pendings[i].response
                if response is None:
                    links[i].check(timeout)
                elif i in left:
                    left.remove(i)
                    yield response
        finally:
            for link, pending, callback in zip(links, pendings, callbacks, strict=True):
                link.state.book.off_done(pending, callback)

    def _own(self, job: AsyncJob) -> Pending:
        return job._pending if job._client is self else self.job(job.id)._pending

    # --- offline files ------------------------------------------------------------------------------------------------

    @property
    def batches(self) -> AsyncBatches:
        """Files of requests, as `Client.batches` has them."""
        self.config.check_batches()
        from stoker.batch.sdk import AsyncBatches

        return AsyncBatches(self)

    # --- operating ----------------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        """Return the queue's figures; see `stoker.stats.Stats`."""
        return await self._drive(_flows.queue_stats)

    async def workers(self) -> list[WorkerRecord]:
        """Return the registered workers and what they hold."""
        return await self._drive(_flows.workers)

    async def queue_card(self) -> Card | None:
        """Return the card of the queue's model, None before its first worker."""
        return await self._drive(_flows.card)

    async def drain(self, worker: str, drained: bool = True) -> bool:
        """Stop sending work to a worker, or go on with it; gives whether it is there."""
        return await self._drive(_flows.drain, worker, drained)

    async def tenants(self) -> dict[str, dict[str, float]]:
        """Return what is set for tenants, by tenant and setting; see `stoker.tenants.SETTINGS`."""
        return await self._drive(_flows.tenants)

    async def set_tenant(self, tenant: str, **values: float | None) -> None:
        """Set numbers for a tenant (`weight=4`), None: no longer; raises `InvalidRequest` naming a wrong one."""
        await self._drive(_flows.set_tenant, tenant, values)

    async def set_model(self, identity: str, fields: Mapping[str, Any]) -> None:
        """Replace the queue's model card; raises `ModelMismatch` while workers of another model are registered."""
        await self._drive(_flows.set_model, identity, fields)

    async def forget_model(self) -> None:
        """Let the next worker to register decide the queue's model; raises `ModelMismatch` while there are workers."""
        await self._drive(_flows.set_model, "", {})

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the newest dead letters: what failed for good, and why."""
        return await self._drive(_flows.dead_letters, limit)

    async def retry_dead(self, request_id: str) -> AsyncJob:
        """Submit a dead letter again, under a new id that links to it; raises `RequestLost` where there is none."""
        client = self._of(request_id)
        return AsyncJob(client, await client._drive(_flows.retry_dead, request_id))

    async def purge_dead(self, ids: Iterable[str]) -> int:
        """Forget dead letters; gives how many there were."""
        return await self._drive(_flows.purge_dead, list(ids))

    async def _drive(self, flow: Callable[Concatenate[State, P], Flow[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        link = self._here()
        return await link.drive(flow(link.state, *args, **kwargs))


class AsyncJob:
    """The handle of one request. Its result can be read by its id from any process, until it expires."""

    __slots__ = ("_client", "_pending")

    def __init__(self, client: AsyncClient, pending: Pending) -> None:
        self._client = client
        self._pending = pending

    @property
    def id(self) -> str:
        """The request's id."""
        return self._pending.id

    @property
    def nonce(self) -> str:
        """What tells this life of the id from others; empty while it is not known here."""
        return self._pending.nonce

    @property
    def durability(self) -> str | None:
        """How durable its acceptance is, as far as was asked; None where this process did not submit it."""
        return self._pending.durability

    def __repr__(self) -> str:
        return f"<stoker.AsyncJob {self.id}>"

    async def status(self) -> str:
        """Return queued, dispatched, running, delayed, succeeded, failed, expired, cancelled or unknown."""
        return await self._client._drive(_flows.status, self.id)

    async def response(self, timeout: float | None = None) -> InferenceResponse:  # noqa: ASYNC109 (as the other client's)
        """Return the outcome, whatever it is; raises `ResultTimeout` after `timeout` seconds.

        Without a timeout it waits as long as Redis can be reached; raises `RedisUnavailable` when it is away longer
        than `retry_timeout_s`.
        """
        link = self._client._here()
        response = self._pending.response
        if response is None and await link.wait(self._pending, timeout):
            response = self._pending.response
        if response is None:
            raise ResultTimeout(self.id, timeout or 0.0) from link.contact.error
        return response

    async def result(self, timeout: float | None = None) -> InferenceResponse:  # noqa: ASYNC109 (as the other client's)
        """Return the answer, as `response` does.

        Raises `RequestFailed`, `InvalidRequest`, `RequestExpired`, `RequestCancelled` or `RequestLost` where there is
        none.
        """
        return (await self.response(timeout)).unwrap()

    async def cancel(self) -> bool:
        """End the request at once; gives whether it is cancelled now, False when it ended before or is unknown."""
        return await self._client._drive(_flows.cancel, self._pending)

    async def stream(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 (as the other client's)
    ) -> AsyncGenerator[Chunk, None]:
        """Give the answer piece by piece, from its beginning. Raises what `result` raises, after the last piece.

        All of it must come within `timeout` seconds, else raises `ResultTimeout`. What was not submitted with
        `stream=True` comes in one piece.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        link, pending, reader = self._client._here(), self._pending, TokenReader()
        link.state.book.watch(pending)
        nonce = ""
        while True:
            nonce = nonce or await link.drive(_flows.stream_nonce(link.state, pending))
            block_ms = stream_block_ms(link.state.config.block_ms, pending, nonce, seconds_left(deadline))
            records = await link.streams.read((self.id, nonce, reader.after), block_ms)
            for chunk in filter(None, map(reader.feed, records)):
                yield chunk
            if reader.ended or not records:
                link.check_open()
                response = await link.drive(_flows.outcome(link.state, pending))
                if response is not None:
                    if rest := reader.rest(response.unwrap()):
                        yield rest
                    return
            if seconds_left(deadline) == 0:
                raise ResultTimeout(self.id, timeout or 0.0)
