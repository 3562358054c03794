"""What `stoker doctor` looks at, read once; the checks decide on it without asking anybody."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stoker.config import Config
from stoker.store import inspections, lookups, views
from stoker.store.agreement import agree
from stoker.store.connection import Store
from stoker.store.inspections import VOID, Server
from stoker.store.records import Waiting, WorkerRecord
from stoker_ops.gpus import DEVICE_FILES, DEVICES

PINGS = 100
KEYS_A_PAGE = 1000
MOST_PAGES = 100
"""A Redis may hold millions of keys: the doctor looks at the first 100,000."""

TORCH_TIMEOUT_S = 120.0
BUCKETS_MS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 200.0)
PACKAGES = ("stoker", "redis", "hiredis", "transformers")

_ASK_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print(json.dumps({"built_for": torch.version.cuda or torch.version.hip, "devices": names}))
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long PINGs took, in ms, sorted."""

    pings_ms: Sequence[float]

    def percentile(self, share: float) -> float:
        """Return the time that `share` of the PINGs stayed under."""
        return self.pings_ms[min(int(share * len(self.pings_ms)), len(self.pings_ms) - 1)]

    def histogram(self) -> dict[str, int]:
        """Return how many PINGs took up to so many ms, and longer than those of the bucket before."""
        edges = (*BUCKETS_MS, float("inf"))
        lows = (0.0, *BUCKETS_MS)
        counts = [sum(low < ms <= high for ms in self.pings_ms) for low, high in zip(lows, edges, strict=True)]
        return {f"{edge:g}": count for edge, count in zip(edges, counts, strict=True) if count}


@dataclass(frozen=True, slots=True)
class KeysSeen:
    """Which names lie under the queue's prefix: how many were looked at, whether those are all, and the odd ones.

    `lost` are the workers whose last start was lost or died, and that did not come back since.
    """

    looked_at: int
    complete: bool
    strangers: Sequence[str]
    lost: Sequence[str]


@dataclass(frozen=True, slots=True)
class Oldest:
    """The request that has waited longest, and for how long; `number` wait in all."""

    request: Waiting
    waited_s: float
    number: int


@dataclass(frozen=True, slots=True)
class Torch:
    """What torch is on this machine. `built_for` is its CUDA or ROCm, None for a CPU build."""

    version: str | None
    built_for: str | None = None
    devices: Sequence[str] = ()
    has_gpu: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the checks decide on. `keys` is None where an ACL forbids to look, `torch` where nobody asked it.

    `redis_ahead_s` is the clock of Redis less that of this machine; `heartbeat_us` the queue's own, None before its
    first scheduler; `leader` None where no scheduler has the lease.
    """

    config: Config
    server: Server
    latency: Latency
    redis_ahead_s: float
    keys: KeysSeen | None
    heartbeat_us: int | None
    leader: str | None
    workers: Sequence[WorkerRecord]
    quarantine: str | None
    oldest: Oldest | None
    torch: Torch | None
    versions: dict[str, str]


def read_facts(config: Config, *, ask_torch: bool = True) -> Facts:
    """Look at everything; raises `RedisUnavailable`. Asking torch takes seconds."""
    store = Store(config)
    try:
        agree(store, patiently=False)
        overview = store.read(lookups.overview(store.keys))
        known = store.read(lookups.workers(store.keys))
        # The second look has what each of the workers of the first one holds.
        shared = dict.fromkeys(overview.tenant_lanes, 1)
        view = store.read(views.queue_view(store.keys, depth=1, known=known, shared=shared))
        return Facts(
            config=config,
            server=store.read(inspections.server()),
            latency=_latency(store),
            redis_ahead_s=_redis_ahead_s(store),
            keys=_keys(store, {worker.worker for worker in view.workers}),
            heartbeat_us=store.read(inspections.heartbeat(store.keys)),
            leader=overview.leader if overview.leader_until_us > overview.now_us else None,
            workers=view.workers,
            quarantine=view.quarantine,
            oldest=_oldest(store, [entries[0] for entries in view.lanes.values() if entries], overview.lanes),
            torch=_torch() if ask_torch else None,
            versions=_versions(),
        )
    finally:
        store.close()


def _latency(store: Store) -> Latency:
    took: list[float] = []
    for _ in range(PINGS):
        began = time.perf_counter()
        store.read(inspections.ping())
        took.append((time.perf_counter() - began) * 1000)
    return Latency(sorted(took))


def _redis_ahead_s(store: Store) -> float:
    """Return the difference of the clocks, as if Redis had looked at its own halfway through the call."""
    before = time.time()
    redis_s = store.read(inspections.clock()) / 1e6
    return redis_s - (before + time.time()) / 2


def _keys(store: Store, registered: set[str]) -> KeysSeen | None:
    names: set[str] = set()
    cursor = 0
    for _ in range(MOST_PAGES):
        page = store.read(inspections.key_page(store.keys, cursor, KEYS_A_PAGE))
        if page is None:
            return None
        names.update(page.names)
        cursor = page.cursor
        if not cursor:
            break
    incs = [name.removeprefix(VOID) for name in names if name.startswith(VOID) and inspections.is_ours(name)]
    return KeysSeen(
        looked_at=len(names),
        complete=not cursor,
        strangers=sorted(name for name in names if not inspections.is_ours(name)),
        lost=_lost(store.read(inspections.voids(store.keys, incs)), registered),
    )


def _lost(voids: dict[str, str], registered: set[str]) -> list[str]:
    """Return the workers whose latest start ended badly and that are not registered."""
    latest: dict[str, tuple[int, str]] = {}
    for inc, why in voids.items():
        worker, _, start = inc.rpartition(":")
        latest[worker] = max(latest.get(worker, (-1, "")), (int(start.partition("-")[0]), why))
    return sorted(worker for worker, (_, why) in latest.items() if why in ("lost", "dead") and worker not in registered)


def _oldest(store: Store, heads: Sequence[Waiting], lanes: Mapping[str, int]) -> Oldest | None:
    """Return which of the heads of all lanes was accepted first."""
    times = store.read(inspections.accepted(store.keys, [head.id for head in heads]))
    waiting = [(times[head.id], head) for head in heads if head.id in times]
    if not waiting:
        return None
    at_us, request = min(waiting, key=lambda pair: pair[0])
    waited_s = max(0.0, (store.read(inspections.clock()) - at_us) / 1e6)
    return Oldest(request, waited_s, max(sum(lanes.values()), len(waiting)))


def _torch() -> Torch:
    """Ask torch in a process of its own: importing it would take 200 MB of this one, and may end it."""
    if importlib.util.find_spec("torch") is None:
        return Torch(None, has_gpu=_has_gpu())
    version = importlib.metadata.version("torch")
    ask = [sys.executable, "-P", "-c", _ASK_TORCH]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=TORCH_TIMEOUT_S).stdout
        answer = json.loads(said)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or [f"it ended with code {error.returncode}"]
        return Torch(version, has_gpu=_has_gpu(), error=last[0])
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return Torch(version, has_gpu=_has_gpu(), error=str(error))
    return Torch(version, answer["built_for"], answer["devices"], _has_gpu())


def _has_gpu() -> bool:
    return any(next(DEVICES.glob(pattern), None) for pattern in DEVICE_FILES)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
