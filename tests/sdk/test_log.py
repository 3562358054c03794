"""Events on stderr: what becomes one, and what an exception may say there."""

from __future__ import annotations

import json
import subprocess
import sys

HEAD = "import logging, threading, warnings\nimport structlog\nfrom stoker.log import configure\nconfigure()\n"


def events(code: str) -> list[dict[str, str]]:
    """What a program writes to stderr, a line an event."""
    run = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=60)
    return [json.loads(line) for line in run.stderr.splitlines()]


def test_what_other_libraries_log_and_warn_is_an_event() -> None:
    said = events("logging.getLogger('other').warning('slow %s', 'disk')\nwarnings.warn('old')\nlogging.info('no')")
    assert (said[0]["event"], said[0]["logger"], said[0]["level"]) == ("slow disk", "other", "warning")
    assert "old" in said[1]["event"]
    assert len(said) == 2


def test_an_exception_that_nobody_caught_is_an_event_in_whatever_thread() -> None:
    for code in ("1 / 0", "t = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()"):
        [said] = events(code)
        assert (said["event"], said["level"]) == ("uncaught exception", "critical")
        assert said["exception"].endswith("ZeroDivisionError")


def test_the_message_of_an_exception_is_left_out_unless_the_machine_wrote_it() -> None:
    raising = (
        "try:\n  try:\n    raise {0}('words of a prompt')\n  except Exception as e:\n    raise {1}('full') from e\n"
    )
    logging = "except Exception:\n  structlog.get_logger().exception('failed')"
    [said] = events(raising.format("ValueError", "OSError") + logging)
    assert "words of a prompt" not in said["exception"]
    assert said["exception"].endswith("OSError: full")
    assert "ValueError" in said["exception"]
    [told] = events("structlog.get_logger().warning('it', exc_info=KeyError('words of a prompt'))")
    assert told["exception"] == "KeyError"
