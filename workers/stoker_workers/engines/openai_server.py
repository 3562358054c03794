"""The connection to an OpenAI-compatible server: one request a call, every wait with a deadline, every size bounded."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import ClientConnectorError, ClientError, ClientResponse, ClientTimeout
from aiohttp.http import HttpProcessingError
from yarl import URL

from stoker.errors import ConfigError
from stoker_workers.engines.openai_api import (
    DONE,
    SHORTEST_PAUSE_S,
    Piece,
    ServerError,
    judge,
    read_event,
    read_piece,
)

CONNECT_S = 10.0
PROBE_S = 10.0
LAST_WORDS_S = 5.0
"""How long a server may take between the last token and the end of its stream, where it says the usage."""

MAX_LINE = 1 << 20
MAX_ERROR = 1 << 16
MAX_HEAD = 1 << 20
MAX_BYTES_A_TOKEN = 1 << 12
_IDLE_S = 2.0  # shorter than servers keep an idle connection, so that none is closed under a request
_EVENTS = "text/event-stream"
_NOT_THERE = (404, 405, 501)


class Server:
    """An OpenAI-compatible server. Made, used and closed on one event loop.

    Redirects are not followed, certificates are checked, proxies of the environment are not used.
    """

    def __init__(self, base_url: URL, key: str | None, *, concurrency: int, timeout_s: float) -> None:
        """Speak to `base_url`, whose longest silence is `timeout_s`. `key` goes out as a bearer token, nowhere else."""
        self._base = base_url
        self._timeout_s = timeout_s
        self._key = key
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=concurrency + 2, keepalive_timeout=_IDLE_S),
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_S),
            read_bufsize=MAX_LINE // 2,  # readline refuses lines of twice that
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def answer(self, path: str, body: dict[str, Any], take: Callable[[Piece], bool]) -> None:
        """Post `body` and pass each piece of the answer to `take`, until it returns True or the answer is whole.

        Raises `ServerError` for everything that goes wrong. Cancelling, and `take`'s True, close the connection.
        """
        finished = False

        def note(piece: Piece) -> bool:
            nonlocal finished
            finished = finished or piece.finish_reason is not None
            return take(piece)

        try:
            async with asyncio.timeout(CONNECT_S + self._timeout_s) as limit:
                async with self._session.post(self._base / path, json=body, allow_redirects=False) as response:
                    await self._check(response)
                    finished = await self._read(response, body["max_tokens"], note, limit) or finished
        except ServerError as error:
            if not finished:
                raise self._without_key(error) from None
        except (ClientConnectorError, aiohttp.ConnectionTimeoutError, ssl.SSLError) as error:
            reason = f"no connection to the server ({_name(error)})"
            raise ServerError(reason, "nobody", pause_s=SHORTEST_PAUSE_S) from error
        # OSError includes timeouts; a line that is too long is one of the last two, by aiohttp's version.
        except (ClientError, OSError, HttpProcessingError, ValueError) as error:
            if not finished:
                raise ServerError(f"the connection to the server was lost ({_name(error)})", "server") from error
        if not finished:
            raise ServerError("the server ended the stream before the answer", "server")

    async def problem(self) -> str:
        """Return why the server cannot be used now, empty if it can: it is asked for its health and its models."""
        try:
            health = await self._status(self._base.origin() / "health")
            models = await self._status(self._base / "models")
        except (ClientError, OSError, HttpProcessingError, ValueError) as error:
            return f"no answer from {self._base} ({_name(error)})"
        if health >= 500 and health not in _NOT_THERE:
            return f"the server answers HTTP {health} for its health"
        if 200 <= models < 300 or (models in _NOT_THERE and 200 <= health < 300):
            return ""
        return f"the server answers HTTP {models} for its models"

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _status(self, url: URL) -> int:
        async with asyncio.timeout(PROBE_S), self._session.get(url, allow_redirects=False) as response:
            return response.status

    async def _check(self, response: ClientResponse) -> None:
        if response.status != 200:
            body = await response.content.read(MAX_ERROR)
            raise judge(response.status, response.headers.get("Retry-After"), body)
        if response.content_type != _EVENTS:
            raise ServerError(f"the server does not stream: it answers with {response.content_type[:80]!r}", "server")

    async def _read(
        self, response: ClientResponse, max_tokens: int, take: Callable[[Piece], bool], limit: asyncio.Timeout
    ) -> bool:
        """Read the stream to its end. Whether that was said, or `take` has enough."""
        loop = asyncio.get_running_loop()
        left = MAX_HEAD + max_tokens * MAX_BYTES_A_TOKEN
        silence_s = self._timeout_s
        while True:
            limit.reschedule(loop.time() + silence_s)
            line = await response.content.readline()
            left -= len(line)
            if left < 0:
                raise ServerError("the server sends more than max_tokens could be", "server")
            if not line:
                return False
            data = read_event(line)
            if data == DONE:
                return True
            if data:
                piece = read_piece(data)
                if take(piece):
                    return True
                if piece.finish_reason is not None:
                    silence_s = min(silence_s, LAST_WORDS_S)

    def _without_key(self, error: ServerError) -> ServerError:
        """Return the error, in whose text a server may have repeated the key."""
        if not self._key or self._key not in str(error):
            return error
        text = str(error).replace(self._key, "***")
        return ServerError(text, error.blame, status=error.status, pause_s=error.pause_s)


def parse_base_url(text: str) -> URL:
    """Return the URL under which the API lies, with `/v1` where no path is given; raises `ConfigError`."""
    try:
        url = URL(text)
        port = url.port
    except ValueError:
        url, port = URL(), None
    if url.scheme not in ("http", "https") or not url.host or not port:
        raise ConfigError("base_url: must be a URL like http://127.0.0.1:8000/v1")
    if url.user is not None or url.password is not None or url.query_string or url.fragment:
        # Not shown: it may hold a secret.
        raise ConfigError(
            "base_url: must have no user, password, query or fragment; a key goes into --api-key-env NAME"
        )
    path = url.path.rstrip("/")
    return url.with_path(path or "/v1")


def _name(error: BaseException) -> str:
    """Return an error's kind and the system's word for it; never what was sent or received."""
    cause = getattr(error, "os_error", error)
    detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else ""
    return f"{type(error).__name__}: {detail}"[:200] if detail else type(error).__name__
