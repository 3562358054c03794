"""Prompts of BATCH beside other classes: spread over steps, behind the others, and never stuck."""

from __future__ import annotations

from typing import Any

from stoker import Config, InferenceRequest
from stoker.store.codec import encode
from stoker.store.scripts import Begun
from stoker_workers.engines.sim import SimEngine, load_profile
from stoker_workers.intake import Row, open_row
from stoker_workers.pacing import Pacer

CONFIG = Config(redis_url="redis://127.0.0.1:1/0", batch_prefill_tokens=64, reserve_idle_s=60)
ENGINE = SimEngine(load_profile("zero"))


def row(name: str, prompt: int = 64, priority: Any = "batch") -> Row:
    request = InferenceRequest(prompt_tokens=[1] * prompt, max_tokens=2, priority=priority)
    submission = encode(request, request_id=name, nonce="n", reply="", config=CONFIG)
    payload = b"1795533457829043" + submission.header + submission.body
    return open_row(Begun(name, "RUN", payload, 1), "d", ENGINE, lambda: 0.0, 4 << 20)


def steps_until_taken(pacer: Pacer, one: Row, now_s: float) -> int:
    steps = 0
    while not pacer.takes(one, idle=False, now_s=now_s):
        pacer.stepped()
        steps += 1
    return steps


def test_without_other_classes_prompts_of_batch_go_in_at_once() -> None:
    pacer = Pacer(CONFIG)
    rows = [row(f"b{i}") for i in range(20)]
    pacer.observe(rows, [], 0.0)
    assert all(pacer.takes(one, idle=False, now_s=0.0) for one in rows)


def test_other_classes_go_in_at_once() -> None:
    pacer = Pacer(CONFIG)
    rows = [row("b0"), row("n0", priority="normal"), row("n1", 10_000, priority="low")]
    pacer.observe(rows, [], 0.0)
    assert all(pacer.takes(one, idle=False, now_s=0.0) for one in rows[1:])


def test_a_step_that_begins_another_prompt_begins_none_of_batch() -> None:
    pacer = Pacer(CONFIG)
    offline, interactive = row("b", 8), row("n", priority="normal")
    pacer.observe([offline, interactive], [row("m", priority="high")], 0.0)
    assert pacer.takes(interactive, idle=False, now_s=0.0)
    assert not pacer.takes(offline, idle=False, now_s=0.0)
    pacer.observe([offline], [interactive], 0.0)
    assert pacer.takes(offline, idle=False, now_s=0.0)


def test_a_row_of_batch_that_waited_for_long_is_begun_beside_another_prompt() -> None:
    pacer = Pacer(CONFIG)
    pacer.observe([row("b"), row("n", priority="normal")], [], 0.0)
    assert not pacer.takes(row("b"), idle=False, now_s=0.0)
    assert pacer.takes(row("b"), idle=False, now_s=0.0, aged=True)
    assert not pacer.takes(row("b"), idle=False, now_s=0.0, aged=True), "but at its pace"


def test_beside_other_classes_prompts_of_batch_are_spread_over_steps() -> None:
    pacer = Pacer(CONFIG)
    pacer.observe([row("b")], [row("n", priority="normal")], 0.0)
    taken = [steps_until_taken(pacer, row("b", prompt), 0.0) for prompt in (64, 64, 640, 64)]
    assert taken == [0, 1, 1, 10]


def test_many_small_prompts_share_a_step() -> None:
    pacer = Pacer(CONFIG)
    pacer.observe([row("b")], [row("n", priority="normal")], 0.0)
    assert [steps_until_taken(pacer, row("b", 16), 0.0) for _ in range(8)] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_the_pace_is_kept_until_no_other_class_was_there_for_the_idle_time() -> None:
    pacer = Pacer(CONFIG)
    pacer.observe([row("n", priority="normal")], [], 100.0)
    long = row("b", 6400)
    pacer.observe([long], [], 159.0)
    assert pacer.takes(long, idle=False, now_s=159.0)
    assert not pacer.takes(long, idle=False, now_s=159.9)
    assert pacer.takes(long, idle=False, now_s=160.0)


def test_a_worker_that_has_nothing_else_to_do_takes_the_next() -> None:
    pacer = Pacer(CONFIG)
    pacer.observe([row("b")], [row("n", priority="normal")], 0.0)
    assert pacer.takes(row("b0", 6400), idle=False, now_s=0.0)
    assert not pacer.takes(row("b1", 6400), idle=False, now_s=0.0)
    assert pacer.takes(row("b1", 6400), idle=True, now_s=0.0)
