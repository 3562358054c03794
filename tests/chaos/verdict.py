"""What a run proved: pure, from the history, the clients' ledgers and the recoveries. A wrong system must not pass."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.arena import Recovery
from stoker_ops.history import OUTCOMES, HistoryChecker


@dataclass(slots=True)
class Verdict:
    """Counts of what must be none, and every violation in words."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    convicted_wrongly: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.doubled or self.convicted_wrongly or self.violations)


def judge(
    checker: HistoryChecker,
    asked: Iterable[str],
    planted: Iterable[str],
    ledgers: Mapping[str, str],
    left: Sequence[str] = (),
) -> Verdict:
    """Return what is wrong.

    `asked`: the ids that clients were to submit; `planted`: the poison; `ledgers`: what each client wrote down; `left`:
    the keys that Redis should not hold any more.
    """
    verdict = Verdict(violations=list(checker.violations))
    asked, planted = list(asked), set(planted)
    told = _told(ledgers)
    for name in asked:
        _judge_one(verdict, checker, name, told.get(name, []))
    for name in planted:
        life = checker.latest.get(name)
        if life is None or (life.state, life.reason) != ("failed", "poison"):
            verdict.violations.append(f"I8: poison {name} is {life.state if life else 'unknown'}, not convicted")
    lives: dict[str, int] = defaultdict(int)
    for request_id, _ in checker.lives:
        lives[request_id] += 1
    verdict.doubled += [f"{name} was accepted {n} times" for name, n in lives.items() if n > 1]
    verdict.doubled += [text for text in checker.violations if ": I2:" in text or ": I3:" in text]
    if unknown := checker.latest.keys() - set(asked) - planted:
        verdict.violations.append(f"I9: {len(unknown)} requests that nobody sent: {sorted(unknown)[:3]}")
    verdict.violations += [f"I10: {key} is left" for key in left]
    return verdict


def _judge_one(verdict: Verdict, checker: HistoryChecker, name: str, told: list[str]) -> None:
    """Compare what the history has of a request with what its client was told."""
    life = checker.latest.get(name)
    if life is None or not life.over:
        verdict.lost.append(f"{name} is {life.state if life else 'unknown to the history'}")
        return
    if life.state == "failed":
        verdict.convicted_wrongly.append(f"{name} failed: {life.reason}")
    outcomes = {line for line in told if not line.startswith("cancel-ok")}
    if not outcomes or any(line.split(" ")[0] not in OUTCOMES for line in outcomes):
        verdict.lost.append(f"{name} is {life.state}, its client was told {sorted(outcomes) or 'nothing'}")
    elif len(outcomes) > 1 or life.state not in {line.split(" ")[0] for line in outcomes}:
        verdict.doubled.append(f"{name} is {life.state}, its client was told {sorted(outcomes)}")
    if any(line.endswith("wrong") for line in outcomes):
        verdict.violations.append(f"I7: {name} has another result than its input gives")
    if any(line.startswith("cancel-ok") for line in told) and life.state != "cancelled":
        verdict.violations.append(f"I14: cancel of {name} was answered OK, it is {life.state}")


def _told(ledgers: Mapping[str, str]) -> dict[str, list[str]]:
    told: dict[str, list[str]] = defaultdict(list)
    for text in ledgers.values():
        for line in text.splitlines():
            name, _, outcome = line.partition(" ")
            told[name].append(outcome)
    return told


def late(recoveries: Mapping[str, Sequence[Recovery]], slack: float) -> list[str]:
    """Return in words what took longer than its bound, `slack` times, and what must not have happened."""
    found = []
    for kind, all_of_it in recoveries.items():
        for recovery in all_of_it:
            if recovery.ms is not None and recovery.bound_ms is not None and recovery.ms > slack * recovery.bound_ms:
                found.append(f"I12: {kind}: {recovery.ms:,.0f} ms, bound {recovery.bound_ms:,.0f} ms")
            if recovery.broken:
                found.append(f"{kind}: {recovery.broken}")
    return found


def table(recoveries: Mapping[str, Sequence[Recovery]]) -> str:
    """Return the faults by kind, with how long recovery took, in milliseconds."""
    rows = [("fault", "n", "p50 ms", "p99 ms", "max ms", "bound ms")]
    for kind, all_of_it in sorted(recoveries.items()):
        times = sorted(recovery.ms for recovery in all_of_it if recovery.ms is not None)
        bounds = [recovery.bound_ms for recovery in all_of_it if recovery.bound_ms is not None]
        figures = (
            [f"{value:,.0f}" for value in (statistics.median(times), _p99(times), times[-1])] if times else ["-"] * 3
        )
        rows.append((kind, str(len(all_of_it)), *figures, _range(bounds)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_row(row, widths) for row in [rows[0], rule, *rows[1:]])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join([first.strip().ljust(widths[0]), *others])} |"


def _p99(times: Sequence[float]) -> float:
    return times[min(len(times) - 1, int(0.99 * len(times)))]


def _range(bounds: Sequence[float]) -> str:
    """The bound, from and to where a grace made some longer."""
    if not bounds:
        return "-"
    low, high = min(bounds), max(bounds)
    return f"{low:,.0f}" if low == high else f"{low:,.0f}..{high:,.0f}"
