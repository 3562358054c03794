"""What a replay finds: what became of each request, and of all together."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from stoker_ops.simulate.engines import Tally

COMPLETED, EXPIRED, REFUSED, DISPLACED = "completed", "expired", "refused", "displaced"


@dataclass(slots=True)
class Fate:
    """What became of one request; times in seconds after the beginning, NaN where it never came so far.

    `worker`: the number of the worker that had it last, -1 for none.
    """

    outcome: str = ""
    queued_s: float = math.nan
    begun_s: float = math.nan
    first_s: float = math.nan
    ended_s: float = math.nan
    worker: int = -1


@dataclass(slots=True)
class Run:
    """All that a replay found. `decision_s` is real time, everything else virtual."""

    policy: str
    fates: list[Fate]
    tally: Tally
    began_s: float = 0.0
    ended_s: float = 0.0
    batches: int = 0
    dispatched: int = 0
    preempted: int = 0
    decision_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
