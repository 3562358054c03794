"""`client.batches`: offline files from Python, blocking and awaited."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stoker.batch import flows
from stoker.batch.answers import answer_pieces, error_pieces
from stoker.batch.source import whole_lines
from stoker.batch.spec import Spec
from stoker.batch.status import BatchStatus, status_of
from stoker.batch.submission import Source, lay_out, left_by, prepare
from stoker.errors import ResultTimeout

if TYPE_CHECKING:
    from stoker.async_client import AsyncClient
    from stoker.client import Client

POLL_S = 0.5
SOME = 256
"""Lines that the awaited iterators read at once, away from the event loop."""


class Batches:
    """The batches of a client's queue."""

    def __init__(self, client: Client) -> None:
        """Use `client` for all calls."""
        self._client = client

    def create(
        self,
        source: Source,
        *,
        output: str | os.PathLike[str] | None = None,
        batch_id: str | None = None,
        priority: str = "batch",
        window: float | None = None,
        max_in_flight: int | None = None,
        any_model: bool = False,
        store: Literal["folder", "redis"] | None = None,
        **defaults: Any,
    ) -> Batch:
        """Submit a file by its path, or an iterable of its lines (objects, or prompts).

        `window`: seconds until what is not done is given up, by default `batch_window_s`. `defaults` (max_tokens,
        temperature, ...) stand for what a line leaves out. A batch worker must see the same files, unless the `store`
        (default: `batch_store`) is "redis", which takes the input and keeps the answers. Raises `InvalidRequest` for
        what cannot be a batch, `StoreFull` for a file that is too big for Redis; bad lines become errors instead.
        """
        spec = prepare(
            source,
            self._client.config,
            output=output,
            batch_id=batch_id,
            priority=priority,
            max_in_flight=max_in_flight,
            any_model=any_model,
            store=store,
            defaults=defaults,
        )
        return self.submit(spec, window)

    def submit(self, spec: Spec, window: float | None = None) -> Batch:
        """Submit a prepared batch."""
        window_s = window or self._client.config.batch_window_s
        lay_out(spec, self._client.config, window_s)
        self._client._drive(flows.create, spec, window_s)
        return Batch(self._client, spec.id)

    def get(self, batch_id: str) -> Batch:
        """Return the handle of a batch by its id. Asks Redis nothing yet."""
        return Batch(self._client, batch_id)

    def list(self) -> list[BatchStatus]:
        """Return all batches that are remembered, the newest first."""
        return [status_of(record) for record in self._client._drive(flows.records)]

    def adopt(self, place: str | os.PathLike[str], window: float | None = None) -> Batch:
        """Go on with the files that a batch left beside its output `place`, when Redis knows it no more."""
        spec, epoch, round_ = left_by(Path(place).absolute())
        self._client._drive(flows.create, spec, window or self._client.config.batch_window_s, epoch, round_)
        return Batch(self._client, spec.id)


class Batch:
    """The handle of one batch. Everything can be asked by its id from any process."""

    def __init__(self, client: Client, batch_id: str) -> None:
        """Name the batch."""
        self._client = client
        self.id = batch_id

    def __repr__(self) -> str:
        return f"<stoker.Batch {self.id}>"

    def status(self) -> BatchStatus:
        """Return how it stands; raises `BatchUnknown`."""
        return status_of(self._client._drive(flows.record, self.id))

    def wait(self, timeout: float | None = None) -> BatchStatus:
        """Wait until it is over, or paused; raises `ResultTimeout` after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ((status := self.status()).over or status.state == "paused"):
            if deadline is not None and time.monotonic() >= deadline:
                raise ResultTimeout(self.id, timeout or 0.0)
            time.sleep(POLL_S)
        return status

    def results(self) -> Iterator[dict[str, Any]]:
        """Give the answers so far, each as its line in the output says; the order is that of their ends."""
        return map(json.loads, whole_lines(answer_pieces(self._spec(), self._client.config)))

    def errors(self) -> Iterator[dict[str, Any]]:
        """Give the errors so far."""
        return map(json.loads, whole_lines(error_pieces(self._spec(), self._client.config)))

    def raw_results(self) -> Iterator[bytes]:
        """Give the answers so far as bytes of their file, in pieces that end anywhere."""
        return answer_pieces(self._spec(), self._client.config)

    def raw_errors(self) -> Iterator[bytes]:
        """Give the errors so far as bytes of their file, in pieces that end anywhere."""
        return error_pieces(self._spec(), self._client.config)

    def fetch(self) -> BatchStatus:
        """Write the answers of a batch that lies in Redis, and its errors, into the files it was submitted with.

        Gives its status. Raises `FileExistsError`: nothing is overwritten.
        """
        status = self.status()
        _save(self.raw_results(), status.output)
        if status.failed:
            _save(self.raw_errors(), status.errors_file)
        return status

    def cancel(self) -> str:
        """Give up what is not done; what is done is kept. Gives the state; raises `BatchNotReady` when it is over."""
        return self._client._drive(flows.steer, self.id, "cancel")

    def pause(self) -> str:
        """Send nothing more until `resume`."""
        return self._client._drive(flows.steer, self.id, "pause")

    def resume(self) -> str:
        """Go on, after a pause or after it failed as a whole."""
        return self._client._drive(flows.steer, self.id, "resume")

    def retry(self, window: float | None = None) -> int:
        """Run the failed lines again; gives how many."""
        return self._client._drive(flows.retry, self.id, window or self._client.config.batch_window_s)

    def _spec(self) -> Spec:
        return Spec.from_dict(self._client._drive(flows.record, self.id).spec)


class AsyncBatches:
    """The batches of an awaited client's queue; as `Batches`."""

    def __init__(self, client: AsyncClient) -> None:
        """Use `client` for all calls."""
        self._client = client

    async def create(
        self,
        source: Source,
        *,
        output: str | os.PathLike[str] | None = None,
        batch_id: str | None = None,
        priority: str = "batch",
        window: float | None = None,
        max_in_flight: int | None = None,
        any_model: bool = False,
        store: Literal["folder", "redis"] | None = None,
        **defaults: Any,
    ) -> AsyncBatch:
        """Submit a file by its path, or an iterable of its lines, as `Batches.create` does."""
        spec = await asyncio.to_thread(
            prepare,
            source,
            self._client.config,
            output=output,
            batch_id=batch_id,
            priority=priority,
            max_in_flight=max_in_flight,
            any_model=any_model,
            store=store,
            defaults=defaults,
        )
        window_s = window or self._client.config.batch_window_s
        await asyncio.to_thread(lay_out, spec, self._client.config, window_s)
        await self._client._drive(flows.create, spec, window_s)
        return AsyncBatch(self._client, spec.id)

    def get(self, batch_id: str) -> AsyncBatch:
        """Return the handle of a batch by its id. Asks Redis nothing yet."""
        return AsyncBatch(self._client, batch_id)

    async def list(self) -> list[BatchStatus]:
        """Return all batches that are remembered, the newest first."""
        return [status_of(record) for record in await self._client._drive(flows.records)]

    async def adopt(self, place: str | os.PathLike[str], window: float | None = None) -> AsyncBatch:
        """Go on with the files that a batch left beside its output `place`, when Redis knows it no more."""
        spec, epoch, round_ = await asyncio.to_thread(left_by, Path(place))
        window_s = window or self._client.config.batch_window_s
        await self._client._drive(flows.create, spec, window_s, epoch, round_)
        return AsyncBatch(self._client, spec.id)


class AsyncBatch:
    """The handle of one batch, awaited; as `Batch`."""

    def __init__(self, client: AsyncClient, batch_id: str) -> None:
        """Name the batch."""
        self._client = client
        self.id = batch_id

    def __repr__(self) -> str:
        return f"<stoker.AsyncBatch {self.id}>"

    async def status(self) -> BatchStatus:
        """Return how it stands; raises `BatchUnknown`."""
        return status_of(await self._client._drive(flows.record, self.id))

    async def wait(self, timeout: float | None = None) -> BatchStatus:  # noqa: ASYNC109 (as the other client's)
        """Wait until it is over, or paused; raises `ResultTimeout` after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ((status := await self.status()).over or status.state == "paused"):
            if deadline is not None and time.monotonic() >= deadline:
                raise ResultTimeout(self.id, timeout or 0.0)
            await asyncio.sleep(POLL_S)
        return status

    async def results(self) -> AsyncIterator[dict[str, Any]]:
        """Give the answers so far, each as its line in the output says; the order is that of their ends."""
        lines = whole_lines(answer_pieces(await self._spec(), self._client.config))
        while some := await asyncio.to_thread(_some, lines):
            for value in some:
                yield value

    async def errors(self) -> AsyncIterator[dict[str, Any]]:
        """Give the errors so far."""
        lines = whole_lines(error_pieces(await self._spec(), self._client.config))
        while some := await asyncio.to_thread(_some, lines):
            for value in some:
                yield value

    async def cancel(self) -> str:
        """Give up what is not done; what is done is kept. Gives the state; raises `BatchNotReady` when it is over."""
        return await self._client._drive(flows.steer, self.id, "cancel")

    async def pause(self) -> str:
        """Send nothing more until `resume`."""
        return await self._client._drive(flows.steer, self.id, "pause")

    async def resume(self) -> str:
        """Go on, after a pause or after it failed as a whole."""
        return await self._client._drive(flows.steer, self.id, "resume")

    async def retry(self, window: float | None = None) -> int:
        """Run the failed lines again; gives how many."""
        return await self._client._drive(flows.retry, self.id, window or self._client.config.batch_window_s)

    async def _spec(self) -> Spec:
        return Spec.from_dict((await self._client._drive(flows.record, self.id)).spec)


def _save(pieces: Iterator[bytes], place: str) -> None:
    with Path(place).open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _some(lines: Iterator[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in itertools.islice(lines, SOME)]
