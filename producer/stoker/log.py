"""One event a line on stderr: for people on a terminal, JSON elsewhere. Never a prompt.

What other libraries say, warnings, and exceptions that nobody caught are events too.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import structlog

TRUSTED = (OSError, MemoryError, RuntimeError, ImportError)
"""Exceptions whose message is logged: the machine, the driver or torch wrote it. Any other one may quote a request."""

log = structlog.get_logger()


def configure(level: str = "info", *, pretty: bool | None = None) -> None:
    """Set up logging of this process from `level` on; `pretty` is for people, by default where stderr is a terminal."""
    pretty = sys.stderr.isatty() if pretty is None else pretty
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if pretty else "iso", utc=not pretty),
            _format_exception,
            structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Others()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


class _Others(logging.Handler):
    """Makes events of what other libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record as one of ours."""
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), trace)
    else:
        log.critical("uncaught exception", exc_info=error)


def _format_exception(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Put the text of an exception into the event, with its causes."""
    given = event.pop("exc_info", None)
    error = (
        given if isinstance(given, BaseException) else (sys.exc_info() if given is True else given or (None,) * 3)[1]
    )
    if error is not None:
        event["exception"] = "\n".join(_described(each) for each in reversed([*_chain(error)]))
    return event


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give an exception, what caused it, and so on."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _described(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{frames}{name}: {error}" if isinstance(error, TRUSTED) else f"{frames}{name}"
