"""An engine in front of an OpenAI-compatible server: the model runs there, and Stoker stands in front of it.

The engine's event loop has a thread of its own: a task a request streams the answer, and one more asks a server that
failed whether it is back. `step` passes on what arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from stoker.errors import ConfigError
from stoker_workers.engine import (
    GENERATION,
    Admitted,
    Capacity,
    Event,
    Failed,
    Finished,
    Full,
    Invalid,
    ModelCard,
    Tokens,
    Unavailable,
    Work,
)
from stoker_workers.engines.openai_api import Piece, ServerError, body_of
from stoker_workers.engines.openai_server import Server, parse_base_url
from stoker_workers.engines.openai_text import ServerTokenizer
from stoker_workers.text import StopStrings

log = structlog.get_logger()

STEP_S = 0.05
PROBE_EVERY_S = 1.0
CONTEXT = 131_072
"""The context that credit is counted with where none is given."""

BYTES_PER_TOKEN = 4
_LOAD_S = 30.0


class _Row:
    """One request at the server: how its answer goes on. The loop's thread alone changes it."""

    def __init__(self, work: Work, prompt: str | list[int] | None) -> None:
        self.work = work
        self.prompt = prompt
        self.task: asyncio.Task[None] | None = None
        self.stops = StopStrings(work.stop)
        self.with_ids: bool | None = None  # None: no token came yet
        self.texts: list[str] = []  # what was passed on, to be counted
        self.finish_reason = "stop"
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def take(self, piece: Piece) -> Tokens | None:
        """Add a piece of the answer; return the event that it makes."""
        if piece.prompt_tokens is not None:
            self.prompt_tokens = piece.prompt_tokens
        if piece.completion_tokens is not None:
            self.completion_tokens = piece.completion_tokens
        if piece.finish_reason is not None:
            self.finish_reason = piece.finish_reason
        if self.with_ids is None and (piece.text or piece.token_ids):
            self.with_ids = piece.token_ids is not None
        ids = piece.token_ids or [] if self.with_ids else []
        if not piece.text and not ids:
            return None
        return self._tokens(ids, self.stops.push(piece.text))

    def rest(self) -> Tokens | None:
        """Return the text held back, once no more follows."""
        text = self.stops.finish()
        return self._tokens([], text) if text else None

    def _tokens(self, ids: list[int], text: str) -> Tokens:
        self.texts.append(text)
        return Tokens(self.work.id, ids, text)


class OpenAIEngine:
    """Runs each request on a server: as many at once as `max_num_seqs`.

    Whose fault an error is, is judged in `openai_api`. After every fault of the server the engine is away, and takes
    nothing in until the server answers a question for its health.
    """

    raw = False
    resumes = False
    parameters = GENERATION - {"top_k", "ignore_eos"}  # not of the API: a server may ignore them without a word

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key_env: str | None = None,
        tokenizer: str | Path | None = None,
        send_token_ids: bool = False,
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        server_timeout: float = 300.0,
    ) -> None:
        """Serve the server's `model`.

        `base_url` ends in `/v1` as a rule. `api_key_env` names the environment variable that holds the key.
        `tokenizer` is a folder with the model's tokenizer.json. `server_timeout`: the server's longest silence, in
        seconds. Raises `ConfigError`.
        """
        if max_num_seqs < 1 or (max_model_len is not None and max_model_len < 2) or not server_timeout > 0:
            raise ConfigError("max_num_seqs, max_model_len, server_timeout: must be at least 1, at least 2 and over 0")
        self._model = model
        self._base_url = parse_base_url(base_url)
        self._key = _key(api_key_env)
        self._tokenizer = ServerTokenizer(Path(tokenizer)) if tokenizer is not None else None
        self._send_token_ids = send_token_ids
        self._context = max_model_len or 0
        self._timeout_s = server_timeout
        self._rows: dict[str, _Row] = {}
        self._events: queue.SimpleQueue[tuple[_Row, Event]] = queue.SimpleQueue()
        self._max_num_seqs = max_num_seqs
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._server: Server | None = None
        self._away = "the server was not asked yet"
        self._pause_until = 0.0
        self._doubt = asyncio.Event()
        self._tell: Callable[[str], None] = lambda reason: None

    # --- what the worker's thread calls ---------------------------------------------------------------------------

    def load(self) -> ModelCard:
        """Start to ask for the server; one that is down is waited for later, so that the worker stands ready."""
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="openai", daemon=True)
        self._thread.start()
        if not started.wait(_LOAD_S):
            raise ConfigError("openai: the event loop did not start")
        return ModelCard(
            name=f"{self._model} at {self._base_url}",
            # Not of the URL: servers of one model share a queue, and take over from each other.
            identity=hashlib.sha256(f"openai\0{self._model}".encode()).hexdigest(),
            dtype="none",
            vocabulary=self._tokenizer.vocabulary if self._tokenizer else 0,
            context=self._context,
            mode="continuous",
        )

    def warm_up(self) -> None:
        """Do nothing: the server is warm, or will be."""

    def watch(self, tell: Callable[[str], None]) -> None:
        """Call `tell` with why the server is away, "" when it is back: now, and on changes."""

        def set_tell() -> None:
            self._tell = tell
            tell(self._away)

        self._loop.call_soon_threadsafe(set_tell)

    def encode(self, prompt: str) -> list[int]:
        """Return the text's token ids to count them, none without a tokenizer."""
        return self._tokenizer.encode(prompt) if self._tokenizer else []

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of the contents, about as many as the conversation has."""
        return self.encode("\n".join(message["content"] for message in messages))

    def admit(self, work: Work) -> Admitted | Full | Invalid | Unavailable:
        """Send a request to the server, if it is there."""
        prompt = self._prompt_of(work)
        if isinstance(prompt, Invalid):
            return prompt
        if self._away:
            return Unavailable()
        self.cancel(work.id)  # another attempt at the same request takes the place of the first
        if len(self._rows) >= self._max_num_seqs:
            return Full()
        row = _Row(work, prompt)
        self._rows[work.id] = row
        self._loop.call_soon_threadsafe(self._start, row)
        tokens = len(work.prompt) or _estimate(work)
        return Admitted(min(tokens + work.max_tokens, self.capacity().tokens))

    def step(self) -> list[Event]:
        """Return what arrived, after at most 50 ms."""
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError("the thread of the openai engine ended")
        arrived = []
        with contextlib.suppress(queue.Empty):
            arrived.append(self._events.get(timeout=STEP_S))
            while True:
                arrived.append(self._events.get_nowait())
        events = []
        for row, event in arrived:
            if self._rows.get(event.id) is row:  # of a row that was cancelled nothing is told
                events.append(event)
                if not isinstance(event, Tokens):
                    del self._rows[event.id]
        return events

    def scheduled(self) -> Sequence[str]:
        """Return all resident ids: any may be the next whose answer arrives."""
        return list(self._rows)

    def cancel(self, request_id: str) -> None:
        """Close the request's connection, by which the server learns of it."""
        row = self._rows.pop(request_id, None)
        if row is not None:
            self._loop.call_soon_threadsafe(self._end, row)

    def resident(self) -> Sequence[str]:
        """Return the ids at the server, in order of arrival."""
        return list(self._rows)

    def capacity(self) -> Capacity:
        """Return the concurrency as rows; tokens never are what is short, for the server keeps that account itself."""
        tokens = self._max_num_seqs * (self._context or CONTEXT)
        return Capacity(rows=self._max_num_seqs, tokens=tokens, budget=tokens)

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._rows.clear()
        if self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        elif self._thread is None:
            self._loop.close()

    def _prompt_of(self, work: Work) -> str | list[int] | Invalid | None:
        """Return the prompt as the server takes it, None for a conversation."""
        if work.inputs is not None:
            return Invalid("inputs", "this model generates text: give a prompt, messages or prompt_tokens", work.inputs)
        if work.prompt and self._context and len(work.prompt) + work.max_tokens > self._context:
            limit = f"a prompt of {len(work.prompt)} tokens + max_tokens must be at most {self._context}"
            return Invalid("max_tokens", limit, work.max_tokens)
        if work.messages is not None:
            return None
        if work.text is not None:
            return work.text
        if self._send_token_ids:
            return list(work.prompt)
        if self._tokenizer is None:
            limit = "this worker sends text: start it with --tokenizer DIR or --send-token-ids"
            return Invalid("prompt_tokens", limit, list(work.prompt), unsupported=True)
        return self._tokenizer.decode(work.prompt)

    # --- on the loop's thread -------------------------------------------------------------------------------------

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        watching = self._loop.create_task(self._watch_server(started))
        watching.add_done_callback(lambda task: task.cancelled() or self._loop.stop())
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.close()

    def _start(self, row: _Row) -> None:
        row.task = self._loop.create_task(self._answer(row))

    def _end(self, row: _Row) -> None:
        if row.task is not None:
            row.task.cancel()

    async def _answer(self, row: _Row) -> None:
        """Stream one answer; whatever happens, the row's last event ends it."""
        assert self._server is not None  # noqa: S101  # rows come after `load`

        def take(piece: Piece) -> bool:
            event = row.take(piece)
            if event is not None:
                self._events.put((row, event))
            return row.stops.stopped

        chat = row.work.messages is not None
        body = body_of(row.work, self._model, row.prompt)
        try:
            await self._server.answer("chat/completions" if chat else "completions", body, take)
        except ServerError as error:
            self._events.put((row, self._failed(row, error)))
        except Exception as error:  # a mistake of ours fails one attempt, and is seen
            # Without its traceback, in whose locals are the prompt and the key.
            log.error("answer failed", id=row.work.id, error=type(error).__name__)
            self._events.put((row, Failed(row.work.id, f"{type(error).__name__} while the answer was read", "retry")))
        else:
            rest = row.rest()
            if rest is not None:
                self._events.put((row, rest))
            self._events.put((row, self._finished(row)))

    def _finished(self, row: _Row) -> Finished:
        completion = row.completion_tokens
        if completion is None and not row.with_ids and self._tokenizer:
            completion = self._tokenizer.count("".join(row.texts))
        reason = "stop" if row.stops.stopped else row.finish_reason
        return Finished(row.work.id, reason, None, row.prompt_tokens, completion)

    def _failed(self, row: _Row, error: ServerError) -> Failed:
        if error.blame == "request":
            return Failed(row.work.id, str(error), "invalid", f"HTTP {error.status}")
        self._set_away(str(error))
        self._pause_until = max(self._pause_until, time.monotonic() + error.pause_s)
        self._doubt.set()
        return Failed(row.work.id, str(error), "returned" if error.blame == "nobody" else "retry")

    async def _watch_server(self, started: threading.Event) -> None:
        """Ask the server whether it is there: at the start, and after every fault until it is back."""
        self._server = Server(self._base_url, self._key, concurrency=self._max_num_seqs, timeout_s=self._timeout_s)
        started.set()
        while True:
            self._doubt.clear()
            await asyncio.sleep(max(0.0, self._pause_until - time.monotonic()))
            reason = await self._server.problem()
            if reason:
                self._set_away(reason)
                await asyncio.sleep(PROBE_EVERY_S)
            elif not self._doubt.is_set():
                self._set_away("")
                await self._doubt.wait()

    def _set_away(self, reason: str) -> None:
        if reason == self._away:
            return
        if bool(reason) != bool(self._away):
            if reason:
                log.warning("model server away", base_url=str(self._base_url), reason=reason)
            else:
                log.info("model server there", base_url=str(self._base_url))
        self._away = reason
        self._tell(reason)


def _estimate(work: Work) -> int:
    """Return about how many tokens a text has that nobody counted."""
    texts = [work.text or ""] if work.messages is None else [message["content"] for message in work.messages]
    return max(1, sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN)


def _key(variable: str | None) -> str | None:
    """Return the key in the environment variable; raises `ConfigError` without showing it."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        problem = "is not set" if not key else "holds no key (printable ASCII without spaces)"
        raise ConfigError(f"api_key_env: the environment variable {variable} {problem}")
    return key
