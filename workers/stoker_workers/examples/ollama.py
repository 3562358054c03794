"""An async proxy to serve: requests of a queue, answered by an Ollama server that runs already, token by token.

Serve it with `stoker worker --model stoker_workers.examples.ollama:Ollama`; OLLAMA_HOST (by default
http://127.0.0.1:11434) and OLLAMA_MODEL in the worker's environment say which server and which of its models.

It is also the pattern for a proxy of your own: `generate` answers one request and yields its text as it comes; up to
`max_concurrency` of them run at once in one event loop. An error is a failed attempt, tried again on any worker; an
`InvalidRequest` is the request's own fault. When a request is cancelled, `generate` is, and its connection closes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from stoker import InferenceRequest, InvalidRequest

CONNECT_S = 5.0
SILENCE_S = 300.0
"""How long the server may say nothing, for it may have to load its model first."""

LINE_BYTES = 1 << 20


class Ollama:
    """Passes prompts on to `/api/generate`, conversations to `/api/chat`."""

    version = "1"
    max_concurrency = 16
    parameters = frozenset({"max_tokens", "temperature", "top_p", "top_k", "seed", "stop"})

    async def load(self, device: str) -> None:
        """Look whether the server is there; the `device` is its own choice."""
        url = urlsplit(os.environ.get("OLLAMA_HOST", "http://127.0.0.1:11434"))
        self.model = os.environ.get("OLLAMA_MODEL", "llama3.2")
        self.host, self.port = url.hostname or "127.0.0.1", url.port or 11434
        _, writer = await asyncio.wait_for(asyncio.open_connection(self.host, self.port), CONNECT_S)
        writer.close()

    def cost(self, inputs: object) -> int:
        """Return about how many tokens a prompt has: four bytes are one."""
        return max(1, len(str(inputs).encode()) // 4)

    async def generate(self, request: InferenceRequest) -> AsyncIterator[str]:
        """Yield the server's pieces of text; the answer is whole when it says so."""
        path, body = self._question(request)
        async with self._post(path, body) as lines:
            async for line in lines:
                piece = json.loads(line)
                if "error" in piece:
                    raise RuntimeError(piece["error"])
                yield piece.get("response") or piece.get("message", {}).get("content", "")
                if piece.get("done"):
                    return
        raise ConnectionError("the server broke off in the middle of an answer")

    def _question(self, request: InferenceRequest) -> tuple[str, dict[str, Any]]:
        options = {
            "num_predict": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": (request.seed or 0) % (1 << 31),
            **({} if request.top_k is None else {"top_k": request.top_k}),
            **({} if request.stop is None else {"stop": list(request.stop)}),
        }
        body = {"model": self.model, "stream": True, "options": options}
        if request.messages is not None:
            return "/api/chat", body | {"messages": [dict(message) for message in request.messages]}
        prompt = request.prompt if request.prompt is not None else request.inputs
        if not isinstance(prompt, str):
            raise InvalidRequest("inputs", "must be a text", type(prompt).__name__)
        return "/api/generate", body | {"prompt": prompt}

    @asynccontextmanager
    async def _post(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send JSON and give the lines of the reply. HTTP/1.0, so that they come as they are, up to the end."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.0\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        connecting = asyncio.open_connection(self.host, self.port, limit=LINE_BYTES)
        reader, writer = await asyncio.wait_for(connecting, CONNECT_S)
        try:
            writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            status = int((await _line(reader)).split()[1])
            while (await _line(reader)).strip():
                pass  # its headers
            if 400 <= status < 500:
                raise InvalidRequest("request", f"was refused by Ollama with {status}", (await _line(reader)).decode())
            if status != 200:
                raise ConnectionError(f"Ollama answered {status}")
            yield _lines(reader)
        finally:
            writer.close()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while line := await _line(reader):
        yield line


async def _line(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readline(), SILENCE_S)
