"""transformers' continuous batching behind our interface: the same answers as alone, and none of its traps."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from answers import CONTEXT, VOCABULARY, Answer, alone, collect, finish, prompts, run, work
from stoker.errors import ConfigError
from stoker_workers.demo import demo_model_path
from stoker_workers.engine import Admitted, Full, Invalid, Sampling, Work
from stoker_workers.engines import make_engine, paged_batch
from stoker_workers.engines.transformers_cb import TransformersCbEngine

pytestmark = pytest.mark.torch

SMALL = {"max_num_seqs": 12, "max_num_batched_tokens": 64, "kv_cache_tokens": 2048}


def load(folder: Path | None = None, **options: Any) -> TransformersCbEngine:
    engine = TransformersCbEngine(folder or demo_model_path(), **{**SMALL, **options})
    engine.load()
    return engine


@pytest.fixture(scope="module")
def shared() -> TransformersCbEngine:
    """One engine for the tests that leave it empty."""
    torch.set_num_threads(1)
    return load()


@pytest.fixture
def engine(shared: TransformersCbEngine) -> Iterator[TransformersCbEngine]:
    """The shared engine; all its blocks are free before and after a test."""
    yield shared
    for name in shared.resident():
        shared.cancel(name)
    assert free(shared) == shared.capacity().tokens


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    """The same model, run by transformers."""
    return LlamaForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()


def free(engine: TransformersCbEngine) -> int:
    assert engine._batch is not None
    return engine._batch.free_tokens()


def module(engine: TransformersCbEngine) -> Any:
    assert engine._batch is not None
    return engine._batch.model


# --- the same answers as alone ----------------------------------------------------------------------------------------


@pytest.mark.untraced
def test_64_requests_that_join_and_leave_at_random_steps_answer_as_generate_does(
    engine: TransformersCbEngine, reference: Any
) -> None:
    numbers = random.Random(3)
    waiting = [work(str(i), prompt, numbers.randint(1, 40)) for i, prompt in enumerate(prompts(64, longest=90))]
    cancelled = {str(i) for i in range(5, 64, 10)}
    expected = {each.id: alone(reference, each.prompt, each.max_tokens) for each in waiting if each.id not in cancelled}
    answers: dict[str, Answer] = {}
    while waiting or engine.resident():
        for _ in range(numbers.randint(0, 3)):
            if waiting and isinstance(engine.admit(waiting[0]), Admitted):
                waiting.pop(0)
        collect(answers, engine.step())
        for name in cancelled & set(engine.resident()):
            if numbers.random() < 0.3:
                engine.cancel(name)
    assert {name: answer.token_ids for name, answer in answers.items() if name not in cancelled} == expected


SAMPLINGS = [
    Sampling(temperature=0.7, seed=1),
    Sampling(temperature=1.0, seed=2, top_k=20),
    Sampling(temperature=1.2, seed=3, top_p=0.8),
    Sampling(temperature=0.9, seed=4, top_k=50, top_p=0.9),
    Sampling(),
]


def test_each_request_is_sampled_its_own_way_the_same_alone_and_in_company(engine: TransformersCbEngine) -> None:
    works = [
        work(str(i), prompt, 25, sampling=SAMPLINGS[i % len(SAMPLINGS)]) for i, prompt in enumerate(prompts(10, seed=4))
    ]
    together = run(engine, *works)
    assert {each.id: run(engine, each)[each.id] for each in works} == together


def test_a_seed_gives_the_same_answer_as_in_the_torch_engine(engine: TransformersCbEngine) -> None:
    works = [
        work(str(i), prompt, 25, sampling=SAMPLINGS[i % len(SAMPLINGS)]) for i, prompt in enumerate(prompts(10, seed=6))
    ]
    other = make_engine("demo", engine="torch", device="cpu", max_num_seqs=12)
    other.load()
    assert run(engine, *works) == run(other, *works)


def test_other_seeds_give_other_answers(engine: TransformersCbEngine) -> None:
    works = [work(str(seed), [5, 6], 20, sampling=Sampling(temperature=1.5, seed=seed)) for seed in range(6)]
    assert len({tuple(answer.token_ids) for answer in run(engine, *works).values()}) == 6


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_continued_from_its_middle_goes_on_the_same(engine: TransformersCbEngine, sampling: Sampling) -> None:
    prompt = prompts(1)[0]
    whole = run(engine, work("a", prompt, 20, sampling=sampling, ignore_eos=True))["a"].token_ids
    rest = run(engine, work("a", prompt + whole[:8], 12, sampling=sampling, ignore_eos=True))["a"].token_ids
    assert whole[:8] + rest == whole


def test_a_prompt_in_chunks_answers_as_in_one(engine: TransformersCbEngine, reference: Any) -> None:
    prompt = prompts(1, seed=5, longest=1)[0] * 300
    assert run(engine, work("a", prompt, 12))["a"].token_ids == alone(reference, prompt, 12)


@pytest.mark.parametrize("windows", ["all", "mixed"])
def test_layers_that_see_a_window_only_answer_as_alone(tmp_path: Path, windows: str) -> None:
    torch.manual_seed(12)
    kinds = ["sliding_attention", "full_attention"] if windows == "mixed" else ["sliding_attention"] * 2
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
    }
    model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=16)).eval()
    if windows == "mixed":
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(**sizes, sliding_window=16, use_sliding_window=True, layer_types=kinds)
        model = Qwen2ForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    for file in demo_model_path().glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    given = prompts(5, seed=8)
    answers = run(load(tmp_path), *[work(str(i), prompt, 30) for i, prompt in enumerate(given)])
    for i, prompt in enumerate(given):
        assert answers[str(i)].token_ids == alone(model, prompt, 30)


def test_bfloat16_follows_float32_where_the_choice_is_clear(engine: TransformersCbEngine) -> None:
    prompt = prompts(1)[0]
    other = load(dtype="bfloat16")
    assert run(other, work("a", prompt, 1))["a"] == run(engine, work("a", prompt, 1))["a"]


# --- text and ends ----------------------------------------------------------------------------------------------------


def test_streamed_text_joins_to_the_whole_answer_decoded(engine: TransformersCbEngine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    works = [
        work(str(i), prompt, 60, sampling=Sampling(temperature=1.5, seed=i)) for i, prompt in enumerate(prompts(12))
    ]
    for answer in run(engine, *works).values():
        assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_a_stop_string_across_tokens_ends_the_answer_and_frees_its_blocks(engine: TransformersCbEngine) -> None:
    prompt = engine.encode("The with statement")
    plain = run(engine, work("a", prompt, 40, ignore_eos=True))["a"]
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    ends = [len(tokenizer.decode(plain.token_ids[:count])) for count in range(41)]
    last = next(n for n in range(10, 41) if ends[n] - ends[n - 1] > 1 and ends[n - 2] - ends[n - 3] > 1)
    stop = plain.text[ends[last - 2] - 1 : ends[last - 1] + 1]
    answer = run(engine, work("a", prompt, 40, ignore_eos=True, stop=("never this", stop)))["a"]
    assert answer.end == "stop"
    assert answer.text == plain.text[: plain.text.find(stop)]
    assert len(answer.token_ids) < 40
    assert free(engine) == engine.capacity().tokens


@pytest.mark.parametrize("max_tokens", [1, 20, 21, 75])
def test_max_tokens_is_the_requests_own(engine: TransformersCbEngine, max_tokens: int) -> None:
    answer = run(engine, work("a", [40, 41, 42], max_tokens, ignore_eos=True))["a"]
    assert (len(answer.token_ids), answer.end) == (max_tokens, "length")


def test_an_end_token_ends_the_answer_and_has_no_text(tmp_path: Path, engine: TransformersCbEngine) -> None:
    plain = run(engine, work("a", [50, 51], 30, ignore_eos=True))["a"].token_ids
    end = next(token for token in plain[5:] if plain.index(token) >= 5)
    place = plain.index(end)
    folder = shutil.copytree(demo_model_path(), tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [2, end]}))
    answers = run(load(folder), work("ends", [50, 51], 30), work("goes on", [50, 51], 30, ignore_eos=True))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert answers["ends"] == Answer(plain[: place + 1], tokenizer.decode(plain[:place]), "stop")
    assert answers["goes on"].token_ids == plain


# --- cancel, errors, duplicates ---------------------------------------------------------------------------------------


def test_a_cancelled_row_frees_its_blocks_at_once_wherever_it_is(engine: TransformersCbEngine) -> None:
    engine.admit(work("decoding", [7], 50, ignore_eos=True))
    engine.step()
    engine.admit(work("prefilling", [8] * 150))
    engine.step()
    engine.admit(work("waiting", [9]))
    whole = engine.capacity().tokens
    assert free(engine) < whole
    for name in ("decoding", "prefilling", "waiting"):
        engine.cancel(name)
        assert name not in engine.resident()
        assert name not in engine.scheduled()
    assert free(engine) == whole
    engine.cancel("unknown")
    assert engine.step() == []


def test_the_others_go_on_as_they_were_when_one_is_cancelled(engine: TransformersCbEngine, reference: Any) -> None:
    given = prompts(8, seed=9)
    for i, prompt in enumerate(given):
        engine.admit(work(str(i), prompt, 40))
    answers: dict[str, Answer] = {}
    for name in ("0", "4", "7"):
        for _ in range(3):
            collect(answers, engine.step())
        engine.cancel(name)
        answers.pop(name, None)
    finish(engine, answers)
    assert {name: answer.token_ids for name, answer in answers.items()} == {
        name: alone(reference, given[int(name)], 40) for name in ("1", "2", "3", "5", "6")
    }


def test_another_attempt_at_a_request_takes_the_place_of_the_first(engine: TransformersCbEngine) -> None:
    engine.admit(work("a", [7, 8], 30))
    engine.step()
    assert isinstance(engine.admit(work("a", [9, 10], 5, ignore_eos=True)), Admitted)
    assert engine.resident() == ["a"]
    again = finish(engine)["a"]
    assert again == run(engine, work("b", [9, 10], 5, ignore_eos=True))["b"]


def test_an_error_of_the_forward_comes_out_of_step_and_no_thread_is_left_to_die(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = load()
    before = set(threading.enumerate())
    for name in "ab":
        engine.admit(work(name, [7, 8], 30))
    engine.step()
    assert not set(threading.enumerate()) - before

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(module(engine), "forward", broken)
    with pytest.raises(RuntimeError, match="device lost"):
        engine.step()
    with pytest.raises(RuntimeError, match="device lost"):
        engine.step()
    assert engine.resident() == ["a", "b"]


def test_no_one_else_runs_the_model_while_the_batch_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    forward, caches = module(engine).forward, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        caches.append(kwargs.get("cache"))
        return forward(*args, **kwargs)

    monkeypatch.setattr(module(engine), "forward", watched)
    monkeypatch.setattr(module(engine), "_supports_logits_to_keep", lambda: True)
    engine.warm_up()
    run(engine, work("a", [7] * 100, 5), work("b", [8], 5))
    assert len(caches) >= 7
    assert all(isinstance(cache, PagedAttentionCache) for cache in caches)


# --- numbers that are none --------------------------------------------------------------------------------------------

POISON = 400


@pytest.fixture
def poisoned(engine: TransformersCbEngine) -> Iterator[TransformersCbEngine]:
    """An engine whose model makes no numbers of one token of the vocabulary."""

    def poison(_: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((given[0] == POISON)[..., None], float("nan"))

    hook = module(engine).get_input_embeddings().register_forward_hook(poison)
    try:
        yield engine
    finally:
        hook.remove()


def spread(poisoned: TransformersCbEngine) -> bool:
    """Whether one row's NaN reaches the others of a packed forward, as the test means to show."""
    assert poisoned._batch is not None
    poisoned._batch.add("x", [5, POISON], 2, [])
    poisoned._batch.add("y", [5, 6], 2, [])
    finite: dict[str, bool] = {}

    def look(logits: torch.Tensor, names: Any, positions: Any) -> list[int]:
        finite.update({name: bool(row.isfinite().all()) for name, row in zip(names, logits, strict=True)})
        return [7] * len(names)

    poisoned._batch.step(look)
    for name in "xy":
        poisoned._batch.drop(name)
    return not finite["y"]


def test_a_row_whose_logits_are_no_numbers_fails_and_the_others_go_on(
    poisoned: TransformersCbEngine, reference: Any
) -> None:
    assert spread(poisoned)
    good = prompts(6, seed=21, longest=40)
    good = [[token for token in prompt if token != POISON] or [5] for prompt in good]
    answers: dict[str, Answer] = {}
    for i, prompt in enumerate(good[:3]):
        poisoned.admit(work(str(i), prompt, 25))
    for _ in range(3):
        collect(answers, poisoned.step())
    poisoned.admit(work("bad", [5, POISON] * 10))
    for i, prompt in enumerate(good[3:], start=3):
        poisoned.admit(work(str(i), prompt, 25))
    poisoned.admit(work("also bad", [9, 9, POISON]))
    finish(poisoned, answers)
    assert answers.pop("bad").end == "failure: the model gave no finite logits at position 20"
    assert answers.pop("also bad").end == "failure: the model gave no finite logits at position 3"
    expected = {str(i): alone(reference, prompt, 25) for i, prompt in enumerate(good)}
    assert {name: answer.token_ids for name, answer in answers.items()} == expected


def test_a_long_prompt_that_is_no_number_poisons_nobody_while_it_is_prefilled(
    poisoned: TransformersCbEngine, reference: Any
) -> None:
    answers: dict[str, Answer] = {}
    poisoned.admit(work("good", [5, 6, 7], 25))
    collect(answers, poisoned.step())
    poisoned.admit(work("bad", [POISON] + [8] * 200))
    finish(poisoned, answers)
    assert answers["bad"].end.startswith("failure: the model gave no finite logits")
    assert answers["good"].token_ids == alone(reference, [5, 6, 7], 25)


def test_rows_can_be_cancelled_and_admitted_while_the_guilty_one_is_sought(
    poisoned: TransformersCbEngine, reference: Any
) -> None:
    for name, prompt in (("a", [5]), ("b", [6]), ("bad", [POISON]), ("c", [7]), ("d", [8])):
        poisoned.admit(work(name, prompt, 10))
    assert poisoned.step() == []
    assert poisoned.scheduled() == ["a"]
    poisoned.cancel("a")
    poisoned.cancel("c")
    poisoned.admit(work("new", [9], 10))
    poisoned.admit(work("newer", [9], 10))
    poisoned.cancel("newer")
    answers = finish(poisoned)
    assert answers.pop("bad").end.startswith("failure")
    expected = {name: alone(reference, prompt, 10) for name, prompt in (("b", [6]), ("d", [8]), ("new", [9]))}
    assert {name: answer.token_ids for name, answer in answers.items()} == expected


# --- room -------------------------------------------------------------------------------------------------------------


def test_the_cache_is_as_large_as_asked_in_whole_pages() -> None:
    engine = load(kv_cache_tokens=1000)
    capacity = engine.capacity()
    assert (capacity.rows, capacity.tokens, capacity.budget, capacity.cache) == (12, 992, 64, "paged")
    assert engine.admit(work("a", [5] * 40, 20)) == Admitted(64)
    assert engine.admit(work("b", [5] * 900, 20)) == Admitted(928)
    assert engine.admit(work("c", [5], 1)) == Full()
    assert isinstance(engine.admit(work("d", [5] * 990, 3)), Invalid)
    engine.cancel("a")
    assert engine.admit(work("c", [5], 1)) == Admitted(16)


def test_the_default_cache_is_sized_from_the_model_and_not_from_all_memory() -> None:
    engine = load(kv_cache_tokens=None, max_num_seqs=2)
    assert 2 * CONTEXT <= engine.capacity().tokens <= 2 * CONTEXT + 32


def test_random_loads_stay_within_the_cache_and_nothing_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(kv_cache_tokens=512, max_num_seqs=8)
    assert engine._batch is not None
    monkeypatch.setattr(
        engine._batch._processor.offloading_manager, "offload_requests", lambda: pytest.fail("the cache ran full")
    )
    numbers = random.Random(17)
    waiting = [work(str(i), prompt, numbers.randint(1, 90), ignore_eos=True) for i, prompt in enumerate(prompts(40))]
    costs: dict[str, int] = {}
    answers: dict[str, Answer] = {}
    full = 0
    while waiting or engine.resident():
        while waiting:
            answer = engine.admit(waiting[0])
            if isinstance(answer, Full):
                full += 1
                break
            assert isinstance(answer, Admitted)
            costs[waiting.pop(0).id] = answer.cost
        held = sum(costs[name] for name in engine.resident())
        assert held <= 512
        collect(answers, engine.step())
        assert free(engine) >= 512 - held
    assert full > 0
    assert len(answers) == 40


def test_a_step_stays_within_its_token_budget(engine: TransformersCbEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    hook = (
        module(engine).get_input_embeddings().register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    )
    run(engine, *[work(str(i), [7] * 50, 10, ignore_eos=True) for i in range(10)])
    hook.remove()
    assert max(sizes) == 64
    assert sum(sizes) == 10 * (50 + 9)


def test_scheduled_names_the_rows_that_the_next_step_touches(engine: TransformersCbEngine) -> None:
    assert engine.scheduled() == []
    engine.admit(work("a", [5] * 20, ignore_eos=True))
    engine.admit(work("b", [5] * 120, ignore_eos=True))
    engine.admit(work("c", [5], ignore_eos=True))
    assert engine.scheduled() == ["a", "b"]
    engine.step()
    assert engine.scheduled() == ["a", "b"]
    engine.step()
    assert engine.scheduled() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("request_", "field_", "value"),
    [
        (work("a", [5] * 1000, CONTEXT - 999), "max_tokens", CONTEXT - 999),
        (work("a", [5], 0), "max_tokens", 0),
        (work("a", [5, VOCABULARY, 6]), "prompt_tokens", VOCABULARY),
        (work("a", []), "prompt", 0),
        (work("a", [], inputs={"x": 1}), "inputs", {"x": 1}),
    ],
)
def test_what_can_never_run_is_refused_with_the_field_and_the_value(
    engine: TransformersCbEngine, request_: Work, field_: str, value: object
) -> None:
    answer = engine.admit(request_)
    assert isinstance(answer, Invalid)
    assert (answer.field, answer.value) == (field_, value)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_warming_up_leaves_nothing_and_a_step_without_rows_does_nothing(engine: TransformersCbEngine) -> None:
    engine.warm_up()
    assert engine.resident() == []
    assert engine.step() == []


def test_a_version_of_transformers_that_was_not_tested_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_batch, "TESTED", ("4.1", "4.2"))
    found = transformers.__version__
    with pytest.raises(
        ConfigError, match=f"tested with transformers 4.1.x or 4.2.x, found {found}; use --engine torch"
    ):
        load()


def test_a_model_that_answers_otherwise_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = paged_batch._reference
    monkeypatch.setattr(paged_batch, "_reference", lambda *given: [(ids, -logits) for ids, logits in real(*given)])
    with pytest.raises(ConfigError, match=r"its logits differ by 200% in a shared cache\); try --engine torch"):
        load()


def test_layers_that_it_does_not_know_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(demo_model_path(), tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_types": ["chunked_attention"] * 4}))
    with pytest.raises(ConfigError, match=r"cannot be run by transformers-cb .*; try --engine torch"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_tokens": 8}, "kv_cache_tokens: must be at least a page of 16 tokens, got 8"),
        ({"tensor_parallel": 0}, "tensor_parallel: must be at least 1, got 0"),
        ({"max_num_batched_tokens": 4}, "max_num_batched_tokens: must be at least max_num_seqs"),
        ({"kv_cache_tokens": 1 << 50}, "kv_cache_tokens, max_num_batched_tokens: more than memory allows"),
    ],
)
def test_limits_that_cannot_work_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**options)


def test_a_closed_engine_holds_nothing() -> None:
    engine = load()
    engine.admit(work("a", [5]))
    engine.close()
    assert engine.resident() == []
    with pytest.raises(RuntimeError, match="not loaded"):
        engine.admit(work("a", [5]))
