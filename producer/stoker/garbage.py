"""How often a service's process looks for garbage."""

from __future__ import annotations

import gc

THRESHOLD = 20_000
"""New containers between two collections: a group of requests makes thousands, and nearly all go by themselves."""


def spare_what_stays() -> None:
    """Let no collection look at what was made up to now: modules, and a model, live as long as the process."""
    gc.freeze()
    gc.set_threshold(THRESHOLD)
