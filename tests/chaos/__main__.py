"""Breaks a running stack at random, and says whether anything was lost: `python -m chaos --seed 1 --faults 100`.

Ends with 0 if nothing is wrong, with 1 if anything is. The same seed gives the same faults in the same order.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TextIO

from chaos.arena import Arena, Recovery, Stuck
from chaos.faults import FAULTS
from chaos.fleet import Fleet
from chaos.record import Record
from chaos.verdict import Verdict, judge, late, table

CLIENTS = 2
QUIET_S = 120.0
# What may be there when nothing waits and nothing runs; all else that a request leaves has its own end.
EMPTY = ("lane:", "payload:", "flight:", "work:", "delayed", "deadlines", "tokens:", "active")


def plan(rng: random.Random, faults: int, kinds: list[str]) -> list[str]:
    """Return which faults to do: every kind once before any comes again, in random order."""
    chosen: list[str] = []
    while len(chosen) < faults:
        chosen += rng.sample(kinds, min(len(kinds), faults - len(chosen)))
    return chosen


class Run:
    """One run, from the first process to the verdict."""

    def __init__(self, options: argparse.Namespace, directory: Path, out: TextIO) -> None:
        self.rng = random.Random(options.seed)
        self.plan = plan(self.rng, options.faults, options.kinds)
        self.recoveries: dict[str, list[Recovery]] = defaultdict(list)
        # Poison is a request too, and REQUESTS counts every one.
        sent = options.requests - self.plan.count("poison")
        self.shares = [(sent + i) // CLIENTS for i in range(CLIENTS)]
        self.fleet = Fleet(directory, self.rng, workers=options.workers, shares=self.shares)
        self.record = Record(self.fleet.redis, self.fleet.config)
        self.arena = Arena(self.fleet, self.record, self.rng, sent)
        self._sent, self._out, self._deadline = sent, out, time.monotonic() + options.minutes * 60

    def go(self) -> None:
        """Do all faults under load, then wait until everything has ended; raises `Stuck`."""
        self.fleet.start()
        for machine in self.fleet.workers:
            self.arena.until(lambda name=machine.name: self.record.incarnation(name), f"{machine.name} registers")
        for number, kind in enumerate(self.plan, 1):
            if time.monotonic() > self._deadline:
                raise Stuck(f"out of time after {number - 1} faults")
            # One share is left over, for faults that need more than theirs.
            self.arena.share(self._sent * number // (len(self.plan) + 1))
            began = time.monotonic()
            recovery = FAULTS[kind](self.arena)
            self.recoveries[FAULTS[kind].__doc__ or kind].append(recovery)
            self._say(f"{number:4} {time.monotonic() - began:6.1f} s  {kind}  {_told(recovery)}")
        self.arena.share(self._sent)
        self.arena.until(self._ended, "every request has ended", max(QUIET_S, self._deadline - time.monotonic()))

    def judge(self, slack: float) -> Verdict:
        """Look at everything."""
        self.record.read()
        asked = [
            f"{client.name}-{i}" for client, n in zip(self.fleet.clients, self.shares, strict=True) for i in range(n)
        ]
        ledgers = {client.name: _read(self.fleet.ledger(client.name)) for client in self.fleet.clients}
        verdict = judge(self.record.checker, asked, self.arena.planted, ledgers, self._left())
        verdict.violations += late(self.recoveries, slack)
        return verdict

    def _ended(self) -> bool:
        clients_done = all(client.process is not None and client.process.poll() == 0 for client in self.fleet.clients)
        return clients_done and not self.record.live and not self._left()

    def _left(self) -> list[str]:
        """What Redis should not hold once everything has ended."""
        left: list[str] = []
        with contextlib.suppress(OSError):
            keys = [key.decode().partition("}:")[2] for key in self.fleet.redis.scan_iter(count=5000)]
            left = [key for key in keys if key.startswith(EMPTY)]
            credit = self.fleet.redis.hgetall("stoker:{default}:credit")
            left += [f"credit of {inc.decode()}" for inc, tokens in credit.items() if int(tokens)]
        return left

    def _say(self, line: str) -> None:
        self._out.write(f"{line}\n")
        self._out.flush()


def _told(recovery: Recovery) -> str:
    took = "" if recovery.ms is None else f"{recovery.ms:,.0f} ms"
    return f"{took}{'' if recovery.bound_ms is None else f' of {recovery.bound_ms:,.0f}'} {recovery.broken}".strip()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def report(run: Run, verdict: Verdict, options: argparse.Namespace, out: TextIO) -> None:
    """Print the table, what is wrong, and the last line."""
    totals = run.record.checker.totals()
    faults = sum(map(len, run.recoveries.values()))
    out.write(f"\n{table(run.recoveries)}\n\n")
    out.write(f"requests {totals['submitted']}: {dict(Counter(totals))}\n")
    out.write(f"poison planted {len(run.arena.planted)}\n")
    for text in [*verdict.lost, *verdict.doubled, *verdict.convicted_wrongly, *verdict.violations][:50]:
        out.write(f"VIOLATION {text}\n")
    exact = faults == options.faults and totals["submitted"] == options.requests
    out.write(
        f"chaos: seed={options.seed} faults={faults} requests={totals['submitted']} lost={len(verdict.lost)}"
        f" doubled={len(verdict.doubled)} convicted_wrongly={len(verdict.convicted_wrongly)}"
        f" {'ok' if verdict.ok and exact else 'FAILED'}\n"
    )


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=15, help="give up after so long")
    parser.add_argument(
        "--slack", type=float, default=1, help="bounds count so many times: for a machine with other work"
    )
    parser.add_argument("--kinds", nargs="*", default=[], choices=sorted(FAULTS), help="these alone; default: all")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    options = parser.parse_args(arguments)
    options.kinds = options.kinds or sorted(FAULTS)
    return options


def main(arguments: list[str], out: TextIO = sys.stdout) -> int:
    """Run, report, and return the exit code."""
    options = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    directory = Path(tempfile.mkdtemp(prefix="stoker-c-", dir="/tmp"))
    with contextlib.ExitStack() as cleanup:
        if not options.keep:
            cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        run = Run(options, directory, out)
        cleanup.callback(run.fleet.end)
        stuck = ""
        try:
            run.go()
        except Stuck as error:
            stuck = str(error)
        verdict = run.judge(options.slack)
        verdict.violations += [f"I1: {stuck}"] if stuck else []
        report(run, verdict, options, out)
        done = sum(map(len, run.recoveries.values())) == options.faults
        return 0 if verdict.ok and done and len(run.record.checker.latest) == options.requests else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
