"""The process of a worker's child.

`python -m stoker_workers.process` is started by the supervisor and by nobody else: settings come in on standard input,
news go out on the pipe whose number is the first argument, and both end with the supervisor.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import structlog

from stoker.config import Config
from stoker.errors import ConfigError
from stoker.garbage import spare_what_stays
from stoker.log import configure
from stoker_workers.board import Board
from stoker_workers.engine import Remote
from stoker_workers.engine_faults import EXIT_DEVICE, is_sticky
from stoker_workers.engines import make_engine
from stoker_workers.messages import EngineOptions, Loaded, Refused, from_line, to_line
from stoker_workers.worker import Inbox, Worker

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1
EXIT_ENGINE = 1
EXIT_REFUSED = 3


def main() -> None:
    """Load the model the supervisor asks for, say so, and serve."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    news, board = os.fdopen(int(sys.argv[1]), "wb"), Board(os.fdopen(int(sys.argv[2]), "r+b"))
    orders = sys.stdin.buffer
    config = Config.model_validate_json(orders.readline())
    level, style = orders.readline().decode().split()
    configure(level, pretty=style == "pretty")
    faulthandler.enable()  # so that the last words of a crash say where it was
    options = cast("EngineOptions", from_line(orders.readline()))
    inbox: Inbox = queue.SimpleQueue()
    # From here on, so that a supervisor's end is heard while a model loads.
    threading.Thread(target=_listen, args=(orders, inbox), name="control", daemon=True).start()
    try:
        engine = make_engine(**dataclasses.asdict(options))
        card = engine.load()
        engine.warm_up()
    except ConfigError as error:
        news.write(to_line(Refused(str(error))))
        news.flush()
        sys.exit(EXIT_REFUSED)
    spare_what_stays()
    news.write(to_line(Loaded.of(card, engine.capacity())))
    news.flush()
    # A model that runs elsewhere paces its own steps, and a padded batch is one step.
    paced = card.mode == "continuous" and not isinstance(engine, Remote)
    Worker(config, engine, board, news, inbox, paced=paced).run()
    engine.close()


def _listen(orders: BinaryIO, inbox: Inbox) -> None:
    """Pass on what the supervisor says; its end is ours."""
    for line in orders:
        inbox.put(from_line(line))
    os._exit(1)


def die_with_parent() -> None:
    """Ask the kernel to kill this process with its parent, where it can: a step that hangs hears no pipe."""
    if Path("/proc").exists():
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run() -> NoReturn:
    """Run `main`, and end without the interpreter's shutdown: it aborts over the thread that reads standard input."""
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException as error:
        log.exception("engine failed")
        code = EXIT_DEVICE if is_sticky(error) else EXIT_ENGINE
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else EXIT_ENGINE)


if __name__ == "__main__":
    run()
