"""One picture of a replay: latency by policy, and what waits and runs over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from stoker.errors import ConfigError
from stoker_ops.simulate.run import COMPLETED, Fate, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
MOST_POINTS = 2000
"""Points of a line: more make a file larger and a picture no better."""


def check_plot(path: Path) -> None:
    """Raise `ConfigError` for a file that cannot be drawn to, before a replay that takes long."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"plot: must end with {' or '.join(SUFFIXES)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ConfigError(f"plot: {path.parent} is no folder")
    try:
        import matplotlib  # noqa: F401  # asked for, not used here
    except ImportError:
        raise ConfigError('plot: needs matplotlib; pip install "stoker[simulate]"') from None


def draw(runs: Mapping[str, Run], path: Path) -> None:
    """Write a PNG or SVG; the first of `runs` is the one whose queue is drawn."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, run in runs.items():
        _latency(left, name, [fate for fate in run.fates if fate.outcome == COMPLETED])
    left.set(xlabel="time to first token, s", ylabel="share of requests", xscale="log", ylim=(0, 1))
    left.legend(loc="lower right")
    name, run = next(iter(runs.items()))
    _over_time(right, "waiting", [(fate.queued_s, fate.begun_s) for fate in run.fates if fate.begun_s == fate.begun_s])
    _over_time(right, "running", [(fate.begun_s, fate.ended_s) for fate in run.fates if fate.begun_s == fate.begun_s])
    right.set(xlabel="time, s", ylabel=f"requests ({name})", ylim=(0, None))
    right.legend(loc="upper right")
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    plt.close(figure)


def _latency(axes: Axes, name: str, fates: Sequence[Fate]) -> None:
    times = sorted(max(fate.first_s - fate.queued_s, 1e-6) for fate in fates)
    shares = [(place + 1) / len(times) for place in range(len(times))]
    every = max(1, len(times) // MOST_POINTS)
    axes.plot(times[::every], shares[::every], label=name)


def _over_time(axes: Axes, name: str, spans: Sequence[tuple[float, float]]) -> None:
    """Draw how many of the spans there are at each time."""
    changes = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    every = max(1, len(changes) // MOST_POINTS)
    times = [at for at, _ in changes][::every]
    axes.step(times, list(accumulate(change for _, change in changes))[::every], where="post", label=name)
