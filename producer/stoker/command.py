"""What all commands share: where Redis is, how errors are shown, and exit codes. Imports only click at the top."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from stoker import completion

if TYPE_CHECKING:
    from stoker.config import Config

F = TypeVar("F", bound=Callable[..., Any])

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_TIMEOUT = 4
EXIT_INTERRUPTED = 130

LOG_LEVELS = ("debug", "info", "warning", "error")
LOCAL_SOCKET = "redis.sock"


def state_dir(config: Config | None = None) -> Path:
    """Return the folder of this user's local stack: STOKER_STATE, else under XDG_STATE_HOME, else ~/.local/state."""
    if config and config.state:
        return config.state
    if own := os.environ.get("STOKER_STATE"):
        return Path(own)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "stoker"


def local_url(config: Config | None = None) -> str | None:
    """Return the URL of the stack that `stoker up` runs here, None where none ever ran."""
    socket = state_dir(config) / LOCAL_SOCKET
    return f"unix://{socket}?db=0" if socket.exists() else None


def queue_options(command: F) -> F:
    """Add `--redis`, `--queue`, `--shards` and `--shard`; the command gets a `config` of them and the environment."""

    @click.option(
        "--redis", "redis_url", metavar="URL", help="Redis to use; default: STOKER_REDIS_URL, else the stack here."
    )
    @click.option(
        "--queue",
        metavar="NAME",
        help="The queue; default: STOKER_QUEUE, else 'default'.",
        shell_complete=completion.queues,
    )
    @click.option("--shards", type=int, metavar="N", help="How many shards it has; default: STOKER_SHARDS, else 1.")
    @click.option("--shard", type=int, metavar="I", help="One of them, from 0; default: STOKER_SHARD, else all.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        redis_url: str | None,
        queue: str | None,
        shards: int | None,
        shard: int | None,
        **kwargs: Any,
    ) -> Any:
        return command(*args, config=make_config(redis_url, queue, shards=shards, shard=shard), **kwargs)

    return guarded(wrapped)  # type: ignore[return-value]  # the wrapper takes two options more than the command


def metrics_option(command: F) -> F:
    """Add `--metrics-port`."""
    return click.option(
        "--metrics-port",
        type=click.IntRange(0, 65_535),
        metavar="PORT",
        help="Where /metrics is, 0 for any free port; default: STOKER_METRICS_PORT (see `stoker config show`).",
    )(command)


def make_config(redis_url: str | None, queue: str | None, **settings: object) -> Config:
    """Return the settings; raises `ConfigError` for a password on the command line and where there is no Redis."""
    from stoker.config import load_config
    from stoker.config_file import has_password
    from stoker.errors import ConfigError

    if redis_url and has_password(redis_url):
        raise ConfigError("--redis: a password on the command line is seen by everybody here; use STOKER_REDIS_URL")
    config = load_config(redis_url=redis_url, queue=queue, **settings)
    if not config.redis_url:
        url = local_url(config)
        if not url:
            raise ConfigError("no Redis: start a stack here with `stoker up`, or give --redis or STOKER_REDIS_URL")
        config = load_config(redis_url=url, queue=queue, **settings)
    return config


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show the errors of this package in one line each, with their exit codes; Ctrl-C ends with 130."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from stoker import errors

        try:
            return command(*args, **kwargs)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(EXIT_INTERRUPTED)
        except errors.RedisUnavailable as error:
            fail(str(error), EXIT_UNREACHABLE)
        except (errors.ConfigError, errors.InvalidRequest, errors.ModelMismatch) as error:
            fail(str(error), EXIT_USAGE)
        except (errors.ResultTimeout, errors.QueueFull, errors.DeadlineInfeasible) as error:
            fail(str(error), EXIT_TIMEOUT)
        except errors.StokerError as error:
            fail(str(error), EXIT_FAILED)

    return wrapped


def fail(message: str, code: int) -> NoReturn:
    """Print the message, a problem a line, and exit."""
    for line in message.splitlines():
        click.echo(f"stoker: {line}", err=True)
    sys.exit(code)


def print_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, default=str))
