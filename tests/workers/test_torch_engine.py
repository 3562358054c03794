"""The torch engine answers as the model alone would, whoever joins and leaves meanwhile, and computes nothing twice."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from answers import Answer, alone, collect, finish, run, work
from stoker.errors import ConfigError, InvalidRequest
from stoker_workers.demo import demo_model_path
from stoker_workers.engine import Admitted, Full, Invalid, Sampling, Work
from stoker_workers.engines.kv_cache import BLOCK
from workers.torch_rig import CONTEXT, EOS, SIZES, VOCABULARY, load, make_llama, make_tokenizer, prompts

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a real tokenizer."""
    return make_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    """The same model, run by transformers."""
    return LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.mark.untraced
@pytest.mark.parametrize("model", ["random", "demo"])
def test_rows_that_join_at_random_steps_answer_as_generate_does_one_by_one(folder: Path, model: str) -> None:
    path = demo_model_path() if model == "demo" else folder
    reference = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    numbers = random.Random(3)
    waiting = [work(str(i), prompt, numbers.randint(1, 50)) for i, prompt in enumerate(prompts(32))]
    expected = {each.id: alone(reference, list(each.prompt), each.max_tokens) for each in waiting}
    engine = load(path, max_num_seqs=12, max_num_batched_tokens=48)
    answers: dict[str, Answer] = {}
    while waiting or engine.resident():
        for _ in range(numbers.randint(0, 3)):
            if waiting and isinstance(engine.admit(waiting[0]), Admitted):
                waiting.pop(0)
        collect(answers, engine.step())
    assert {name: answer.token_ids for name, answer in answers.items()} == expected


def test_every_prompt_token_is_computed_once(folder: Path) -> None:
    engine = load(folder, max_num_seqs=8, max_num_batched_tokens=16)
    works = [work(str(i), prompt) for i, prompt in enumerate(prompts(8))]
    run(engine, *works)
    assert engine.prefilled_tokens == sum(len(each.prompt) for each in works)


def test_a_short_request_that_comes_later_ends_before_a_long_one(folder: Path) -> None:
    engine = load(folder)
    engine.admit(work("long", [5, 6, 7], 100, ignore_eos=True))
    for _ in range(5):
        engine.step()
    engine.admit(work("short", [8, 9], 3, ignore_eos=True))
    steps = 0
    while "short" in engine.resident():
        engine.step()
        steps += 1
    assert steps == 3
    assert engine.resident() == ["long"]


def test_every_row_gets_a_token_in_every_step(folder: Path) -> None:
    engine = load(folder)
    for name in "abc":
        engine.admit(work(name, [7, 8], 10, ignore_eos=True))
    for _ in range(4):
        assert [event.id for event in engine.step()] == ["a", "b", "c"]


def test_a_prompt_in_chunks_answers_as_in_one(folder: Path) -> None:
    works = [work(str(i), prompt, 12) for i, prompt in enumerate(prompts(6, seed=5, longest=200))]
    assert run(load(folder, max_num_seqs=6, max_num_batched_tokens=7), *works) == run(load(folder), *works)


def test_a_step_stays_within_its_token_budget(folder: Path) -> None:
    engine = load(folder, max_num_seqs=4, max_num_batched_tokens=10)
    for name, size in (("a", 4), ("b", 20), ("c", 5), ("d", 1)):
        engine.admit(work(name, [7] * size, 20, ignore_eos=True))
    spent = []
    for _ in range(4):
        before = engine.prefilled_tokens
        tokens = len(engine.step())
        spent.append((engine.prefilled_tokens - before, tokens))
    # a and 6 of b; then 9 of b beside a; 5 of b and 4 of c; the rest of c and d.
    assert spent == [(10, 1), (9, 1), (9, 2), (2, 4)]


def test_rows_that_leave_anywhere_leave_the_others_as_they_were(folder: Path, reference: Any) -> None:
    given = prompts(10, seed=9)
    engine = load(folder, max_num_seqs=10, max_num_batched_tokens=64)
    for i, prompt in enumerate(given):
        engine.admit(work(str(i), prompt, 40))
    answers: dict[str, Answer] = {}
    for cancelled in ("0", "4", "9", "5", "1"):
        for _ in range(3):
            collect(answers, engine.step())
        engine.cancel(cancelled)
    finish(engine, answers)
    for name in ("2", "3", "6", "7", "8"):
        assert answers[name].token_ids == alone(reference, given[int(name)], 40)


def test_rows_that_leave_while_a_prompt_is_half_prefilled_do_not_disturb_it(folder: Path, reference: Any) -> None:
    long = prompts(1, seed=2, longest=1)[0] * 150
    engine = load(folder, max_num_seqs=4, max_num_batched_tokens=16)
    for name, prompt in (("a", [9, 10]), ("b", [11]), ("c", [12, 13]), ("long", long)):
        engine.admit(work(name, prompt, 60, ignore_eos=True))
    answers: dict[str, Answer] = {}
    for name in ("a", "c", "b"):
        collect(answers, engine.step())
        engine.cancel(name)
    assert "long" not in answers
    finish(engine, answers)
    wanted = alone(reference, long, 60)
    assert answers["long"].token_ids[: len(wanted)] == wanted


def test_a_cancelled_row_makes_room_at_once_wherever_it_is(folder: Path) -> None:
    engine = load(folder, max_num_seqs=3, max_num_batched_tokens=8)
    engine.admit(work("decoding", [7], 50, ignore_eos=True))
    engine.step()
    engine.admit(work("prefilling", [8] * 40))
    engine.step()
    engine.admit(work("waiting", [9]))
    for name in ("decoding", "prefilling", "waiting"):
        assert engine.admit(work("new", [10])) == Full()
        engine.cancel(name)
        assert name not in engine.resident()
        assert isinstance(engine.admit(work(f"after {name}", [10])), Admitted)
    engine.cancel("unknown")
    assert set(finish(engine)) == {"after decoding", "after prefilling", "after waiting"}


def test_another_attempt_at_a_request_takes_the_place_of_the_first(folder: Path) -> None:
    engine = load(folder, max_num_seqs=1)
    engine.admit(work("a", [7, 8], 30))
    engine.step()
    assert isinstance(engine.admit(work("a", [7, 8], 5, ignore_eos=True)), Admitted)
    assert len(finish(engine)["a"].token_ids) == 5


SAMPLINGS = [
    Sampling(temperature=0.7, seed=1),
    Sampling(temperature=1.0, seed=2, top_k=20),
    Sampling(temperature=1.2, seed=3, top_p=0.8),
    Sampling(temperature=0.9, seed=4, top_k=50, top_p=0.9),
    Sampling(),
]


def test_seeded_answers_are_the_same_alone_and_in_company(folder: Path) -> None:
    works = [
        work(str(i), prompt, 25, sampling=SAMPLINGS[i % len(SAMPLINGS)]) for i, prompt in enumerate(prompts(10, seed=4))
    ]
    engine = load(folder, max_num_batched_tokens=64)
    together = run(engine, *works)
    assert {each.id: run(engine, each)[each.id] for each in works} == together


def test_other_seeds_give_other_answers(folder: Path) -> None:
    works = [work(str(seed), [5, 6], 20, sampling=Sampling(temperature=1.0, seed=seed)) for seed in range(6)]
    assert len({tuple(answer.token_ids) for answer in run(load(folder), *works).values()}) == 6


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_continued_from_its_middle_goes_on_the_same(folder: Path, sampling: Sampling) -> None:
    engine = load(folder)
    prompt = prompts(1)[0]
    whole = run(engine, work("a", prompt, 20, sampling=sampling, ignore_eos=True))["a"].token_ids
    rest = run(engine, work("a", prompt + whole[:8], 12, sampling=sampling, ignore_eos=True))["a"].token_ids
    assert whole[:8] + rest == whole


def test_streamed_text_joins_to_the_whole_answer_decoded(folder: Path) -> None:
    engine = load(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    works = [
        work(str(i), prompt, 60, sampling=Sampling(temperature=1.5, seed=i)) for i, prompt in enumerate(prompts(12))
    ]
    for answer in run(engine, *works).values():
        assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_a_stop_string_across_tokens_ends_the_answer_and_is_left_out(folder: Path) -> None:
    engine = load(folder)
    plain = run(engine, work("a", [40, 41, 42], 40, ignore_eos=True))["a"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ends = [len(tokenizer.decode(plain.token_ids[:count])) for count in range(41)]
    whole = [not tokenizer.decode(plain.token_ids[:count]).endswith("\ufffd") for count in range(41)]
    # The end of one token, all of the next and the start of a third, where no character spans tokens.
    last = next(n for n in range(3, 41) if all(whole[n - 3 : n + 1]) and ends[n] - ends[n - 1] > 1)
    start, end = ends[last - 2] - 1, ends[last - 1] + 1
    stop = plain.text[start:end]
    assert plain.text.find(stop) == start, "the test's own text repeats itself"
    answer = run(engine, work("a", [40, 41, 42], 40, ignore_eos=True, stop=("never this", stop)))["a"]
    assert (answer.text, answer.end) == (plain.text[:start], "stop")
    assert answer.token_ids == plain.token_ids[:last]


def test_all_of_max_tokens_is_given_and_what_was_held_back_too(folder: Path) -> None:
    engine = load(folder)
    plain = run(engine, work("a", [40, 41, 42], 10, ignore_eos=True))["a"]
    answer = run(engine, work("a", [40, 41, 42], 10, ignore_eos=True, stop=(plain.text[-1] + "\0",)))["a"]
    assert answer == plain
    assert (len(plain.token_ids), plain.end) == (10, "length")


def with_eos(folder: Path, target: Path, eos: int | list[int]) -> Path:
    shutil.copytree(folder, target)
    file = target / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": eos}))
    return target


@pytest.mark.parametrize("several", [False, True])
def test_an_end_token_ends_the_answer_and_has_no_text(folder: Path, tmp_path: Path, several: bool) -> None:
    plain = run(load(folder), work("a", [50, 51], 30, ignore_eos=True))["a"].token_ids
    end = next(token for token in plain[5:] if plain.index(token) >= 5)
    place = plain.index(end)
    engine = load(with_eos(folder, tmp_path / "model", [EOS, end] if several else end))
    answers = run(engine, work("ends", [50, 51], 30), work("goes on", [50, 51], 30, ignore_eos=True))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert answers["ends"] == Answer(plain[: place + 1], tokenizer.decode(plain[:place]), "stop")
    assert answers["goes on"].token_ids == plain


@pytest.mark.parametrize(
    ("request_", "field_", "value"),
    [
        (work("a", [5] * 200, CONTEXT - 199), "max_tokens", CONTEXT - 199),
        (work("a", [5], 0), "max_tokens", 0),
        (work("a", [5, VOCABULARY, 6]), "prompt_tokens", VOCABULARY),
        (work("a", []), "prompt", 0),
        (work("a", [], inputs={"x": 1}), "inputs", {"x": 1}),
    ],
)
def test_what_can_never_run_is_refused_with_the_field_and_the_value(
    folder: Path, request_: Work, field_: str, value: object
) -> None:
    answer = load(folder).admit(request_)
    assert isinstance(answer, Invalid)
    assert (answer.field, answer.value) == (field_, value)


def test_the_whole_context_can_be_used(folder: Path) -> None:
    answer = run(load(folder), work("a", [5] * 200, CONTEXT - 200, ignore_eos=True))["a"]
    assert len(answer.token_ids) == CONTEXT - 200


def test_room_is_the_sum_of_blocks(folder: Path) -> None:
    engine = load(folder, kv_cache_tokens=4 * BLOCK + 5)
    assert engine.capacity().tokens == 4 * BLOCK
    assert engine.admit(work("a", [5] * BLOCK, BLOCK)) == Admitted(2 * BLOCK)
    assert engine.admit(work("b", [5], 5)) == Admitted(BLOCK)
    assert engine.admit(work("c", [5] * BLOCK, 1)) == Full()
    assert engine.admit(work("c", [5], BLOCK - 1)) == Admitted(BLOCK)
    assert engine.admit(work("d", [5], 5)) == Full()
    assert isinstance(engine.admit(work("e", [5] * 2 * BLOCK, 2 * BLOCK + 1)), Invalid)
    assert {answer.end for answer in finish(engine).values()} <= {"length", "stop"}
    assert engine.admit(work("c", [5] * 3 * BLOCK, BLOCK - 10)) == Admitted(4 * BLOCK)


def test_a_cache_of_less_than_a_block_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"kv_cache_tokens: must be at least one block \\({BLOCK}\\), got 63"):
        load(folder, kv_cache_tokens=63)


def test_the_default_cache_holds_every_row_at_full_length(folder: Path) -> None:
    capacity = load(folder, max_num_seqs=3, max_num_batched_tokens=100).capacity()
    assert (capacity.rows, capacity.tokens, capacity.budget, capacity.cache) == (3, 3 * CONTEXT, 100, "paged")


def test_scheduled_names_the_rows_that_the_next_step_touches(folder: Path) -> None:
    engine = load(folder, max_num_seqs=4, max_num_batched_tokens=8)
    assert engine.scheduled() == []
    engine.admit(work("a", [5] * 3, ignore_eos=True))
    engine.admit(work("b", [5] * 10, ignore_eos=True))
    engine.admit(work("c", [5], ignore_eos=True))
    assert engine.scheduled() == ["a", "b"]
    engine.step()
    assert engine.scheduled() == ["a", "b", "c"]


def test_a_row_whose_logits_are_no_numbers_fails_alone(folder: Path) -> None:
    engine = load(folder, max_num_seqs=3)
    expected = run(engine, work("good", [5, 6, 7]), work("after", [9] * 3))
    embeddings = engine._model._model.get_input_embeddings().weight  # type: ignore[union-attr]
    with torch.no_grad():
        embeddings[400] = float("nan")
        # Only the input is poisoned: this model's output has weights of its own.
        assert not engine._model._model.get_output_embeddings().weight.isnan().any()  # type: ignore[union-attr]
    answers = run(engine, work("bad", [5, 400] * 10), work("good", [5, 6, 7]))
    assert answers["bad"].end == "failure: the model gave no finite logits at position 20"
    assert answers["good"] == expected["good"]
    assert run(engine, work("after", [9] * 3))["after"] == expected["after"]


def test_warming_up_leaves_no_trace(folder: Path) -> None:
    engine = load(folder)
    engine.warm_up()
    assert (engine.resident(), engine.prefilled_tokens) == ([], 0)


def test_without_rows_a_step_does_nothing(folder: Path) -> None:
    assert load(folder).step() == []


def test_a_text_is_encoded_while_the_engine_runs(folder: Path) -> None:
    engine = load(folder)
    engine.admit(work("a", [5], 100, ignore_eos=True))
    text = "An assignment — to names. " * 20
    with ThreadPoolExecutor(4) as pool:
        encoded = [pool.submit(engine.encode, text) for _ in range(100)]
        answers = finish(engine)
    assert len({tuple(future.result()) for future in encoded}) == 1
    assert len(answers["a"].token_ids) == 100
    assert PreTrainedTokenizerFast.from_pretrained(folder).decode(engine.encode(text)) == text


def test_a_conversation_goes_through_the_models_template(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        load(folder).encode_chat([{"role": "user", "content": "hi"}])
    target = tmp_path / "chat"
    shutil.copytree(folder, target)
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (target / "chat_template.jinja").write_text(template)
    engine = load(target)
    ids = engine.encode_chat([{"role": "user", "content": "hi"}])
    assert ids[0] == 1
    assert PreTrainedTokenizerFast.from_pretrained(folder).decode(ids[1:]) == "user: hi\nassistant:"
    with pytest.raises(InvalidRequest, match="no system role"):
        engine.encode_chat([{"role": "system", "content": "be good"}])


def test_layers_that_see_a_window_only_answer_as_alone(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(12)
    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)).eval()
    model.save_pretrained(tmp_path / "sliding")
    make_tokenizer().save_pretrained(tmp_path / "sliding")
    given = prompts(5, seed=8)
    engine = load(tmp_path / "sliding", max_num_batched_tokens=64)
    answers = run(engine, *[work(str(i), prompt, 30) for i, prompt in enumerate(given)])
    for i, prompt in enumerate(given):
        assert answers[str(i)].token_ids == alone(model, prompt, 30)


@pytest.mark.untraced
def test_bfloat16_follows_float32_where_the_choice_is_clear() -> None:
    """Teacher-forced: each position of a float32 answer is chosen again in bfloat16, in a batch of mixed lengths."""
    exact = LlamaForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()
    engine = load(demo_model_path(), dtype="bfloat16", max_num_seqs=32)
    chosen, gaps, wanted = [], [], []
    lines = [json.loads(line) for line in (demo_model_path().parent / "prompts.jsonl").read_text().splitlines()]
    for text in [line["prompt"] for line in lines if "prompt" in line][:20]:
        prompt = engine.encode(text)
        whole = prompt + alone(exact, prompt, 40)
        with torch.inference_mode():
            best = exact(input_ids=torch.tensor([whole])).logits[0, len(prompt) - 1 : -1].topk(2)
        gaps += (best.values[:, 0] - best.values[:, 1]).tolist()
        wanted += best.indices[:, 0].tolist()
        starts = range(len(prompt), len(whole))
        for some in (starts[0::2], starts[1::2]):
            answers = run(engine, *[work(str(end), whole[:end], 1) for end in some])
            chosen += [(answers[str(end)].token_ids[0], end) for end in some]
        chosen[-len(starts) :] = sorted(chosen[-len(starts) :], key=lambda pair: pair[1])
    differing = [gap for (token, _), right, gap in zip(chosen, wanted, gaps, strict=True) if token != right]
    assert len(differing) <= len(wanted) // 100
    assert max(differing, default=0.0) < 0.1


def test_a_long_prompt_delays_no_token_of_those_that_decode(tmp_path: Path) -> None:
    engine = load(demo_model_path(), max_num_seqs=20, max_num_batched_tokens=256)
    for i in range(16):
        engine.admit(work(str(i), [20 + i] * 8, 60, ignore_eos=True))
    engine.step()
    engine.admit(work("long", [7] * 1900, 4, ignore_eos=True))
    steps = 0
    while engine.prefilled_tokens < 16 * 8 + 1900:
        before = engine.prefilled_tokens
        tokens = engine.step()
        steps += 1
        # Each step has a token for each of them, and is never longer than its budget.
        assert [event.id for event in tokens][:16] == [str(i) for i in range(16)]
        assert engine.prefilled_tokens - before + 16 <= 256
    assert steps == -(-1900 // 240)


def test_a_closed_engine_holds_nothing(folder: Path) -> None:
    engine = load(folder)
    engine.admit(work("a", [5]))
    engine.close()
    assert engine.resident() == []
    with pytest.raises(RuntimeError, match="not loaded"):
        engine.admit(work("a", [5]))
