"""One event a line on stderr: for people on a terminal, JSON elsewhere. Never a prompt."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: str = "info", *, pretty: bool | None = None) -> None:
    """Set up logging of this process from `level` on; `pretty` is for people, by default where stderr is a terminal."""
    pretty = sys.stderr.isatty() if pretty is None else pretty
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if pretty else "iso", utc=not pretty),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
