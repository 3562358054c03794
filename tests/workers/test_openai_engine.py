"""The openai engine against a server that answers as told: each oddity fails one attempt, and is blamed rightly."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import wait_until
from odd_server import OddServer, Request, event, hang, raw, status, token, whole
from stoker.errors import ConfigError
from stoker_workers.demo import demo_model_path
from stoker_workers.engine import Admitted, Event, Failed, Finished, Full, Invalid, Remote, Tokens, Unavailable, Work
from stoker_workers.engines import make_engine
from stoker_workers.engines.openai import OpenAIEngine


@pytest.fixture
def server() -> Iterator[OddServer]:
    server = OddServer()
    yield server
    server.end()


@contextlib.contextmanager
def serving(server: OddServer, *, ready: bool = True, **options: Any) -> Iterator[OpenAIEngine]:
    engine = OpenAIEngine("m", base_url=server.url, **options)
    engine.load()
    try:
        if ready:
            wait_until(lambda: is_there(engine), what="the server was found")
        yield engine
    finally:
        engine.close()


@pytest.fixture
def engine(server: OddServer) -> Iterator[OpenAIEngine]:
    with serving(server) as engine:
        yield engine


def is_there(engine: OpenAIEngine) -> bool:
    return not engine._away


def work(name: str = "r", text: str | None = "Hi", **more: Any) -> Work:
    return Work(id=name, batch="b", text=text, **more)


def events(engine: OpenAIEngine, *works: Work) -> list[Event]:
    """Admit, and run until nothing is resident."""
    for item in works:
        assert isinstance(engine.admit(item), Admitted)
    seen: list[Event] = []

    def ended() -> bool:
        seen.extend(engine.step())
        return not engine.resident()

    wait_until(ended, 20, what="all rows ended")
    return seen


def answer(engine: OpenAIEngine, item: Work) -> tuple[str, Event]:
    """The text of an answer, and its last event."""
    *tokens, last = events(engine, item)
    return "".join(event.text for event in tokens if isinstance(event, Tokens)), last


def failure(engine: OpenAIEngine, item: Work | None = None) -> Failed:
    _, last = answer(engine, item or work())
    assert isinstance(last, Failed), last
    return last


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_text_goes_to_completions_and_a_conversation_to_chat(server: OddServer, engine: OpenAIEngine) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    events(engine, work(max_tokens=7))
    events(engine, work(text=None, messages=messages))
    first, second = server.posts
    assert (first.path, first.body["prompt"], first.body["max_tokens"]) == ("/v1/completions", "Hi", 7)
    assert (second.path, second.body["messages"]) == ("/v1/chat/completions", messages)


def test_the_key_of_the_environment_goes_out_as_a_bearer_token(
    server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with serving(server, api_key_env="MY_KEY") as engine:
        events(engine, work())
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sk-secret"}


def test_token_ids_are_refused_by_name_where_the_server_takes_text(engine: OpenAIEngine) -> None:
    refused = engine.admit(work(text=None, prompt=[1, 2]))
    assert isinstance(refused, Invalid)
    assert (refused.field, refused.unsupported) == ("prompt_tokens", True)
    assert "--tokenizer" in refused.limit


def test_token_ids_are_sent_as_they_are_when_asked(server: OddServer) -> None:
    with serving(server, send_token_ids=True) as engine:
        events(engine, work(text=None, prompt=[1, 2]))
    assert server.posts[0].body["prompt"] == [1, 2]


def test_token_ids_become_text_with_a_tokenizer(server: OddServer) -> None:
    with serving(server, tokenizer=demo_model_path()) as engine:
        ids = engine.encode("The with statement")
        events(engine, work(text=None, prompt=ids))
        outside = engine.admit(work(text=None, prompt=[5, 1024]))
    assert server.posts[0].body["prompt"] == "The with statement"
    assert isinstance(outside, Invalid)
    assert (outside.field, outside.limit) == ("prompt_tokens", "token ids must be from 0 to 1023")


def test_inputs_and_prompts_beyond_the_context_are_refused(server: OddServer) -> None:
    with serving(server, max_model_len=10, send_token_ids=True) as engine:
        refused = [
            engine.admit(work(text=None, inputs={"a": 1})),
            engine.admit(work(text=None, prompt=[1, 2, 3], max_tokens=8)),
        ]
    assert [item.field for item in refused if isinstance(item, Invalid)] == ["inputs", "max_tokens"]
    assert server.posts == []


# --- what is answered -------------------------------------------------------------------------------------------------


def test_an_answer_is_passed_on_piece_by_piece_with_the_servers_usage(server: OddServer, engine: OpenAIEngine) -> None:
    server.default = whole("a", "", "b", usage=(9, 4), reason="length")
    assert events(engine, work()) == [Tokens("r", [], "a"), Tokens("r", [], "b"), Finished("r", "length", None, 9, 4)]


def test_token_ids_of_the_server_are_passed_on(server: OddServer, engine: OpenAIEngine) -> None:
    server.default = raw(token("ab", token_ids=[5, 6]), token("", "stop", token_ids=[2]))
    assert events(engine, work()) == [Tokens("r", [5, 6], "ab"), Tokens("r", [2], ""), Finished("r", "stop")]


def test_without_a_usage_block_a_tokenizer_counts(server: OddServer) -> None:
    server.default = whole("The with ", "statement", usage=None)
    with serving(server, tokenizer=demo_model_path()) as engine:
        _, last = answer(engine, work())
        assert last == Finished("r", "stop", None, None, len(engine.encode("The with statement")))


def test_a_stream_may_end_without_done_but_not_without_a_finish_reason(server: OddServer, engine: OpenAIEngine) -> None:
    server.scripts = [raw(token("a", "length")), raw(token("a"))]
    assert answer(engine, work())[1] == Finished("r", "length")
    broken = failure(engine)
    assert (broken.kind, broken.reason) == ("retry", "the server ended the stream before the answer")


def test_an_error_after_the_finish_reason_takes_nothing_back(server: OddServer, engine: OpenAIEngine) -> None:
    server.default = raw(token("a", "stop"), b"data: {oops\n\n")
    assert answer(engine, work()) == ("a", Finished("r", "stop"))


def test_a_stop_string_across_pieces_is_cut_here_and_closes_the_connection(
    server: OddServer, engine: OpenAIEngine
) -> None:
    server.default = raw(token("one, t"), token("wo, "), token("three, four"), hang=True)
    assert answer(engine, work(stop=("two", "never"))) == ("one, ", Finished("r", "stop"))
    assert "stop" not in server.posts[0].body
    assert server.posts[0].closed.wait(10)


def test_text_held_back_for_a_stop_string_comes_at_the_end(server: OddServer, engine: OpenAIEngine) -> None:
    server.default = whole("one t", "w")
    assert answer(engine, work(stop=("two",)))[0] == "one tw"


def test_an_answer_follows_its_own_request_only(server: OddServer, engine: OpenAIEngine) -> None:
    async def echo(writer: asyncio.StreamWriter, request: Request) -> None:
        await whole(*request.body["prompt"])(writer, request)

    server.default = echo
    seen = events(engine, *[work(f"r{n}", text=f"answer {n}") for n in range(20)])
    for n in range(20):
        texts = [item.text for item in seen if isinstance(item, Tokens) and item.id == f"r{n}"]
        assert "".join(texts) == f"answer {n}"


# --- whose fault it is ------------------------------------------------------------------------------------------------


def test_a_400_is_the_requests_own_fault(server: OddServer, engine: OpenAIEngine) -> None:
    server.scripts = [status(400, '{"error": {"message": "too long"}}')]
    assert failure(engine) == Failed("r", "the model's server refuses it (too long)", "invalid", "HTTP 400")
    assert isinstance(answer(engine, work())[1], Finished)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(status(500, '{"error": "boom"}'), "HTTP 500: boom", id="500"),
        pytest.param(status(401), "refuses this worker's key", id="a wrong key"),
        pytest.param(status(302, location="http://127.0.0.2/v1"), "redirects", id="a redirect"),
        pytest.param(status(200, "{}", content_type="application/json"), "does not stream", id="no stream"),
        pytest.param(raw(token("a")), "before the answer", id="a stream that breaks off"),
        pytest.param(raw(b"data: {oops\n\n"), "no JSON", id="bad JSON"),
        pytest.param(raw(b"data: " + b"x" * (3 << 20)), "lost", id="a line of 3 MiB"),
        pytest.param(raw(event(error={"message": "CUDA"})), "CUDA", id="an error in the stream"),
        pytest.param(raw(*[token("x" * 500_000)] * 8), "more than max_tokens", id="text without end"),
    ],
)
def test_what_a_server_does_wrong_is_charged_to_it(
    server: OddServer, engine: OpenAIEngine, script: Any, reason: str
) -> None:
    server.scripts = [script]
    failed = failure(engine)
    assert failed.kind == "retry"
    assert reason in failed.reason
    wait_until(lambda: is_there(engine), what="its health showed that it is well")
    assert isinstance(answer(engine, work())[1], Finished)


def test_a_server_that_vanishes_in_mid_answer_loses_one_attempt_and_is_waited_for(
    server: OddServer, engine: OpenAIEngine
) -> None:
    server.default = raw(token("a"), hang=True)
    engine.admit(work())
    wait_until(lambda: engine.step(), what="the first token")
    server.vanish()
    lost = wait_until(lambda: engine.step(), what="the loss is seen")[0]
    assert isinstance(lost, Failed)
    assert lost.kind == "retry"
    assert engine.admit(work()) == Unavailable()
    server.listen()
    wait_until(lambda: is_there(engine), 10, what="it was found again")


def test_requests_that_no_server_took_are_given_back(server: OddServer, engine: OpenAIEngine) -> None:
    server.vanish()
    assert failure(engine).kind == "returned"
    assert engine.admit(work()) == Unavailable()


def test_an_overloaded_server_gets_its_pause_and_nobody_is_charged(server: OddServer, engine: OpenAIEngine) -> None:
    server.scripts = [status(429, retry_after="1")]
    assert failure(engine).kind == "returned"
    assert engine.admit(work()) == Unavailable()
    wait_until(lambda: is_there(engine), 10, what="the pause is over")
    *_, refused, asked_for_health, _ = server.requests
    assert (refused.method, asked_for_health.path) == ("POST", "/health")
    assert asked_for_health.arrived_s - refused.arrived_s > 0.9


def test_silence_beyond_the_limit_is_a_lost_connection(server: OddServer) -> None:
    server.default = raw(token("a"), hang=True)
    with serving(server, server_timeout=0.2) as engine:
        failed = failure(engine)
    assert (failed.kind, failed.reason) == ("retry", "the connection to the server was lost (TimeoutError)")


def test_a_server_that_never_answers_is_given_up(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker_workers.engines.openai_server.CONNECT_S", 0.1)
    server.default = hang
    with serving(server, server_timeout=0.1) as engine:
        assert failure(engine).kind == "retry"


def test_a_server_that_repeats_the_key_is_not_quoted(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server.default = status(400, '{"error": "bad sk-secret"}')
    with serving(server, api_key_env="MY_KEY") as engine:
        assert failure(engine).reason == "the model's server refuses it (bad ***)"


# --- credit, cancel, availability -------------------------------------------------------------------------------------


def test_credit_is_the_concurrency(server: OddServer) -> None:
    server.default = hang
    with serving(server, max_num_seqs=2) as engine:
        assert engine.capacity().rows == 2
        assert [type(engine.admit(work(name))) for name in "abc"] == [Admitted, Admitted, Full]


def test_cancel_closes_the_connection_and_no_event_follows(server: OddServer, engine: OpenAIEngine) -> None:
    server.default = raw(token("a"), hang=True)
    engine.admit(work())
    wait_until(lambda: engine.step(), what="the first token")
    engine.cancel("r")
    assert server.posts[0].closed.wait(10)
    assert (list(engine.resident()), engine.step()) == ([], [])


def test_another_attempt_takes_the_place_of_the_first(server: OddServer, engine: OpenAIEngine) -> None:
    server.scripts = [raw(token("old"), hang=True), whole("new")]
    engine.admit(work())
    wait_until(lambda: server.posts, what="the first attempt is there")
    text, last = answer(engine, work())
    assert (text, type(last)) == ("new", Finished)
    assert server.posts[0].closed.wait(10)


def test_whether_the_server_is_there_is_told_at_once_and_on_changes(server: OddServer) -> None:
    server.health = 503
    told: list[str] = []
    with serving(server, ready=False) as engine:
        assert isinstance(engine, Remote)
        engine.watch(told.append)
        wait_until(lambda: told and told[-1] == "the server answers HTTP 503 for its health")
        server.health = 404  # not every server has one: its models count then
        wait_until(lambda: told[-1] == "", what="it is there")
        server.vanish()
        failure(engine)
        wait_until(lambda: told[-1] != "", what="it is away")


@pytest.mark.parametrize(
    ("health", "models", "there"),
    [(200, 200, True), (404, 200, True), (200, 404, True), (404, 404, False), (200, 401, False), (500, 200, False)],
)
def test_health_and_models_say_whether_a_server_can_be_used(
    server: OddServer, health: int, models: int, there: bool
) -> None:
    server.health, server.models = health, models
    told: list[str] = []
    with serving(server, ready=False) as engine:
        engine.watch(told.append)
        wait_until(lambda: told and "not asked" not in told[-1])
    assert (told[-1] == "") == there


def test_step_returns_without_events(server: OddServer, engine: OpenAIEngine) -> None:
    server.default = hang
    engine.admit(work())
    assert engine.step() == []


def test_close_ends_the_thread_and_all_connections(server: OddServer) -> None:
    server.default = hang
    with serving(server) as engine:
        engine.admit(work())
        wait_until(lambda: server.posts, what="the request is there")
    assert server.posts[0].closed.wait(10)
    assert "openai" not in [thread.name for thread in threading.enumerate()]


# --- the card and the options -----------------------------------------------------------------------------------------


def test_the_card_names_the_server_and_servers_of_one_model_share_a_queue(server: OddServer) -> None:
    engines = [
        OpenAIEngine("m", base_url=server.url, max_model_len=4096),
        OpenAIEngine("m", base_url="http://127.0.0.1:1"),
        OpenAIEngine("other", base_url=server.url),
    ]
    one, other, third = [engine.load() for engine in engines]
    for engine in engines:
        engine.close()
    assert (one.name, one.context, one.mode) == (f"m at {server.url}", 4096, "continuous")
    assert other.name == "m at http://127.0.0.1:1/v1"
    assert one.identity == other.identity != third.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": None}, "needs --base-url"),
        ({"base_url": "gpu0:8000"}, "base_url: must be a URL"),
        ({"base_url": "ftp://gpu0"}, "base_url: must be a URL"),
        ({"base_url": "http://me:secret@gpu0"}, "base_url: must have no user"),
        ({"base_url": "http://gpu0?key=secret"}, "base_url: must have no user"),
        ({"api_key_env": "NOT_SET"}, "NOT_SET is not set"),
        ({"api_key_env": "TWO_LINES"}, "TWO_LINES holds no key"),
        ({"tokenizer": "/nowhere"}, "tokenizer: /nowhere/tokenizer.json cannot be read"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
    ],
)
def test_options_that_cannot_work_say_which_and_show_no_secret(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWO_LINES", "secret\r\nx: y")
    with pytest.raises(ConfigError, match=message) as caught:
        make_engine("m", engine="openai", **{"base_url": "http://127.0.0.1:1", **options})
    assert "secret" not in str(caught.value)


def test_options_of_the_openai_engine_are_refused_for_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base_url: belongs to --engine openai, and this is sim"):
        make_engine("sim", base_url="http://127.0.0.1:1", send_token_ids=False)
