"""A local stack for a program that has only pipes to it: `python -P -m stoker_ops.local`.

One JSON object a line, settings on standard input, for everybody can read arguments. The starter first writes

    {"parent": its process id, "options": {"model": ..., the other options of `stoker worker`}, "workers": 2,
     "redis_url": null or a URL, "queue": null or a name, "ready_timeout_s": 600, "worker_path": [folders]}

If its model is null, `{"folder": path}` answers, a private folder that is removed at the end, and the starter writes
`{"model": path}` once it has put one there. Then comes `{"ready": {"redis_url", "queue", "workers", "devices"}}`, or
`{"failed": {"error": a class of stoker.errors, "message": ...}}`, also later, when the stack cannot go on.

Any other line means stop, and so does the end of standard input, or of the parent, should something that it forked
hold the pipe open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass

from stoker import errors
from stoker.config import Config, load_config
from stoker.errors import ConfigError, StokerError
from stoker_ops.interrupt import interruptible, parent_ends
from stoker_ops.local import LocalStack
from stoker_ops.settings import StackSettings
from stoker_workers.messages import EngineOptions

MAX_LINE = 1 << 20


def main() -> int:
    """Run a stack as standard input says; returns the exit code."""
    from stoker.log import configure

    configure("warning")
    with contextlib.suppress(asyncio.CancelledError, BrokenPipeError):  # both: nobody wants the stack any more
        return asyncio.run(_serve())
    return 0


async def _serve() -> int:
    orders = await _open_orders()
    first = await orders.readline()
    if not first:
        return 0
    try:
        await _run(_parse(first), orders)
    except StokerError as error:
        say("failed", {"error": _public_name(error), "message": str(error)})
        return 1
    return 0


@dataclass(frozen=True, slots=True)
class _Request:
    """The starter's settings. `needs_model`: whether it will put one into a folder of ours."""

    parent: int
    config: Config
    settings: StackSettings
    needs_model: bool


async def _run(request: _Request, orders: asyncio.StreamReader) -> None:
    """Run the stack until it is told to stop, or something ends it, which raises."""
    stack = LocalStack(request.config, request.settings)
    parent = asyncio.create_task(parent_ends(request.parent))
    with interruptible(stack) as interrupt:
        parent.add_done_callback(interrupt)
        try:
            if request.needs_model:
                stack.start_redis()
                say("folder", str(stack.private_folder("model")))
                model = json.loads(await orders.readline() or b"{}").get("model")
                if model is None:
                    return
                stack.use_model(model)
            end = asyncio.create_task(orders.readline())
            end.add_done_callback(interrupt)
            await stack.start()
            ready = {"redis_url": stack.config.redis_url, "queue": stack.config.queue}
            say("ready", ready | {"workers": stack.workers, "devices": stack.devices})
            await stack.wait()
        finally:
            await stack.stop()


def _parse(line: bytes) -> _Request:
    try:
        said = json.loads(line)
        config = load_config(queue=said.get("queue"))
        # The environment's Redis is for clients of it; a stack uses another than its own only when it is told to.
        config = config.model_copy(update={"redis_url": said.get("redis_url")})
        model = said["options"]["model"]
        settings = StackSettings(
            options=EngineOptions(**{**said["options"], "model": model or ""}),
            workers=said.get("workers"),
            quiet=True,
            ready_timeout_s=said["ready_timeout_s"],
            worker_path=tuple(said.get("worker_path", ())),
        )
        return _Request(int(said["parent"]), config, settings, needs_model=model is None)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"settings: {error!r}") from error


async def _open_orders() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_LINE)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    return reader


def say(what: str, value: object) -> None:
    """Write one line to the starter."""
    sys.stdout.write(json.dumps({what: value}) + "\n")
    sys.stdout.flush()


def _public_name(error: StokerError) -> str:
    """Return the nearest class of the error that the starter knows and can make from a message alone."""
    known = (ConfigError, errors.RedisUnavailable)
    return next((kind.__name__ for kind in known if isinstance(error, kind)), StokerError.__name__)
