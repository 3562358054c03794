"""Calls of a user's `async generate`, all in one event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import queue
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from stoker.request import InferenceRequest
from stoker_workers.engine import Admitted, Capacity, Event, Failed, Finished, Full, OutOfMemory, Tokens, Work
from stoker_workers.engine_faults import is_out_of_memory, is_sticky, telling_memory
from stoker_workers.engines.outputs import check_output, check_text, describe, invalid, type_name

WAIT_S = 0.05
CLOSE_S = 5.0
_TOKENS_A_CALL = 1 << 20  # a call holds no memory that is known here: only their number is limited


class _Call:
    """One request that is being answered; `dropped` calls tell nobody anything any more."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.dropped = False
        self.task: asyncio.Task[None] | None = None


class AsyncCalls:
    """The calls that run, and what came of them since the last time."""

    def __init__(self, generate: Callable[[InferenceRequest], Any], most: int) -> None:
        """Start the loop; at most `most` calls run at once."""
        self.capacity = Capacity(rows=most, tokens=most * _TOKENS_A_CALL, budget=most * _TOKENS_A_CALL)
        self._generate = generate
        self._calls: dict[str, _Call] = {}
        self._lack: tuple[_Call, OutOfMemory] | None = None
        self._events: queue.SimpleQueue[tuple[_Call, Event | BaseException]] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="generate", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something else in the same loop, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def admit(self, work: Work, cost: int) -> Admitted | Full:
        """Begin a call, in the place of an earlier attempt at the same request."""
        self.drop(work.id)
        if len(self._calls) >= self.capacity.rows:
            return Full()
        call = self._calls[work.id] = _Call(work)
        self._loop.call_soon_threadsafe(self._begin, call)
        return Admitted(cost + work.max_tokens)

    def events(self) -> list[Event]:
        """Return what came, waiting for the first of it a moment; raises what ended the user's code for good.

        `OutOfMemory` is raised by the next call, so that what came before it is not lost.
        """
        events: list[Event] = []
        lack, self._lack = self._lack, None
        if lack and not lack[0].dropped:
            raise lack[1]
        with contextlib.suppress(queue.Empty):
            wait_s = WAIT_S if self._calls else 0.0
            while True:
                call, event = self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait()
                wait_s = 0.0
                if isinstance(event, OutOfMemory):
                    self._lack = (call, event)
                    break
                if isinstance(event, BaseException):
                    raise event
                if not call.dropped:
                    events.append(event)
                    if not isinstance(event, Tokens):
                        del self._calls[call.work.id]
        return events

    def next(self) -> Sequence[Work]:
        """Return all that is being answered."""
        return [call.work for call in self._calls.values()]

    def drop(self, request_id: str) -> None:
        """Cancel a call; unknown ids are ignored."""
        call = self._calls.pop(request_id, None)
        if call:
            call.dropped = True
            self._loop.call_soon_threadsafe(lambda: call.task and call.task.cancel())

    def resident(self) -> Sequence[str]:
        """Return the ids of what is being answered, in order of arrival."""
        return list(self._calls)

    def clear(self) -> None:
        """Cancel all calls and end the loop."""
        for request_id in list(self._calls):
            self.drop(request_id)
        if self._loop.is_running():
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result(CLOSE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_S)

    # --- in the loop --------------------------------------------------------------------------------------------------

    def _begin(self, call: _Call) -> None:
        if not call.dropped:
            call.task = self._loop.create_task(self._answer(call))

    async def _answer(self, call: _Call) -> None:
        """Tell what comes of a call; whatever its code raises is told too, never lost."""
        request_id = call.work.id
        try:
            with telling_memory():
                event = await self._run(call)
        except asyncio.CancelledError:
            event = Failed(request_id, "generate cancelled itself", "retry")
        except Exception as error:
            if is_out_of_memory(error) or is_sticky(error):
                self._events.put((call, error))
                return
            event = invalid(request_id, error) or Failed(request_id, f"generate raised {describe(error)}", "retry")
        except BaseException as error:  # SystemExit and its like end the process, as they would on its main thread
            self._events.put((call, error))
            return
        self._events.put((call, event))

    async def _run(self, call: _Call) -> Event:
        result = self._generate(_request(call.work))
        if not inspect.isasyncgen(result):
            output = await result
            if not isinstance(output, str):
                return _finished(call.work.id, output)
            return self._text(call, output) or Finished(call.work.id, "stop")
        async with contextlib.aclosing(result) as pieces:
            async for piece in pieces:
                if failed := self._text(call, piece):
                    return failed
        return Finished(call.work.id, "stop")

    def _text(self, call: _Call, piece: object) -> Failed | None:
        """Stream a piece; returns the failure that anything but text is."""
        request_id = call.work.id
        if not isinstance(piece, str):
            return Failed(request_id, f"generate yielded {type_name(piece)}, not str", "failure")
        if problem := check_text(piece, "a piece"):
            return Failed(request_id, f"generate yielded what cannot be sent: {problem}", "failure")
        if piece:
            self._events.put((call, Tokens(request_id, [], piece)))
        return None


def _request(work: Work) -> InferenceRequest:
    """Return the request as its client sent it, and always with a seed: every attempt is to sample the same answer."""
    if work.request is None:
        return InferenceRequest(request_id=work.id, inputs=work.inputs, max_tokens=work.max_tokens)
    return dataclasses.replace(work.request, seed=work.sampling.seed)


def _finished(request_id: str, output: object) -> Event:
    if problem := check_output(output):
        return Failed(request_id, f"generate returned what cannot be sent: {problem}", "failure")
    return Finished(request_id, "stop", output)


async def _end_tasks() -> None:
    """Cancel what still runs in this loop and wait for its end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
