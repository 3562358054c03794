"""What a service's process does without."""

from __future__ import annotations

import sys


def leave_rich_out() -> None:
    """Import structlog without rich, which it takes for tracebacks that we format ourselves: 4 MB of a process.

    Who wants rich imports it afterwards, as ever.
    """
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # as importing says that there is none
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
