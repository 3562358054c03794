"""The same decisions as before: whatever makes the policy faster must not change what it decides."""

from __future__ import annotations

import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from stoker import RequestPriority
from stoker.config import Config
from stoker_ops.simulate.policies import policies
from stoker_ops.simulate.replay import Replay
from stoker_ops.simulate.setup import H100_8B, Setup
from stoker_ops.simulate.traces import Arrival, read_trace, shaped

TRACE = Path(__file__).parents[2] / "bench" / "data" / "trace.csv"
CONFIG = Config()
SETUP = Setup(
    mode="continuous",
    workers=1,
    profiles=[H100_8B],
    max_model_len=131_072,
    max_num_seqs=64,
    max_num_batched_tokens=8192,
    kv_cache_tokens=131_072,
)
PADDED = replace(SETUP, mode="padded", max_num_seqs=512, max_num_batched_tokens=16_384)

# A deliberate change of the policy changes these; the message of a failure says the new ones.
EXPECTED = {
    "calm": "3507329ce57ffec2",
    "all waiting": "c0d92865bb41066d",
    "classes and tenants": "e486f0f56399d854",
    "padded": "9d83192288045c50",
}


def loads() -> dict[str, list[Arrival]]:
    trace = read_trace(TRACE)[:600]
    rng = random.Random(1)
    mixed = [
        replace(
            one,
            priority=rng.choice(list(RequestPriority)),
            tenant=rng.choice(["", "a", "b"]),
            timeout=rng.choice([None, 20.0]),
        )
        for one in trace
    ]
    options = {"repeat": 1, "max_tokens": None, "timeout": None}
    return {
        "calm": shaped(trace, rate=1.0, **options),  # type: ignore[arg-type]  # by name
        "all waiting": shaped(trace, rate=None, **options),  # type: ignore[arg-type]  # by name
        "classes and tenants": shaped(mixed, rate=8.0, **options),  # type: ignore[arg-type]  # by name
        "padded": shaped(mixed, rate=60.0, **options),  # type: ignore[arg-type]  # by name
    }


@pytest.mark.parametrize("load", EXPECTED)
def test_the_decisions_on_a_trace_are_those_that_were_written_down(load: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, deliver = sha256(), Replay._deliver

    def watched(self: Replay, handed: list[tuple[object, object]], *rest: object) -> None:
        for worker, batch in handed:
            ids = [request.id for request in batch.requests]  # type: ignore[attr-defined]  # batches
            found.update(repr((worker.inc, ids, batch.costs)).encode())  # type: ignore[attr-defined]  # records
        deliver(self, handed, *rest)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(Replay, "_deliver", watched)
    setup = PADDED if load == "padded" else SETUP
    Replay(loads()[load], setup, policies(CONFIG, setup.mode)["stoker"], CONFIG).to_end()
    assert found.hexdigest()[:16] == EXPECTED[load]
