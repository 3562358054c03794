"""The examples of users' own models, served by a whole stack as the documentation shows them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helpers import wait_until
from stack_processes import Stack
from stoker import Client, InvalidRequest, Restarted, UnsupportedParameter
from stoker_workers.examples import ollama, topics

DOCUMENT = Path(__file__).parents[2] / "docs" / "engines-callable.md"


class Ollama(ThreadingHTTPServer):
    """Speaks Ollama's protocol: says a prompt word by word, breaks off once for "break", waits for "wait"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, object]] = []
        self.broken = 0
        self.waiting = threading.Event()
        self.left = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Ollama

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, **asked})
        prompt = asked.get("prompt") or asked["messages"][-1]["content"]
        self.send_response(404 if prompt == "unknown" else 200)
        self.end_headers()
        if prompt == "unknown":
            self.wfile.write(b'{"error":"model not found"}\n')
            return
        for word in prompt.split():
            self._say(word + " ")
            if word == "break" and not self.server.broken:
                self.server.broken += 1
                return
            if word == "wait":
                self._until_left()
                return
        self.wfile.write(b'{"response":"","done":true}\n')

    def _say(self, text: str) -> None:
        piece = {"response": text} if self.path == "/api/generate" else {"message": {"content": text}}
        self.wfile.write(json.dumps(piece | {"done": False}).encode() + b"\n")
        self.wfile.flush()

    def _until_left(self) -> None:
        self.server.waiting.set()
        self.connection.settimeout(60)
        if self.connection.recv(1) == b"":
            self.server.left.set()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ollama]:
    with Ollama() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("OLLAMA_MODEL", "tiny")
        yield server
        server.shutdown()


@pytest.fixture
def proxied(stack: Stack, server: Ollama) -> Ollama:
    stack.scheduler()
    stack.worker("proxy", model="stoker_workers.examples.ollama:Ollama")
    return server


def test_a_proxy_streams_what_its_server_says(proxied: Ollama, client: Client) -> None:
    pieces = list(client.stream(prompt="one two three", max_tokens=7, temperature=0.5, stop="x", seed=3, timeout=60))
    assert "".join(piece.text for piece in pieces) == "one two three "
    answer = client.submit(messages=[{"role": "user", "content": "hi there"}]).result(timeout=60)
    assert (answer.text, answer.token_ids, answer.usage.completion_tokens) == ("hi there ", None, 2)
    first, second = proxied.asked
    assert first["options"] == {"num_predict": 7, "temperature": 0.5, "top_p": 1.0, "seed": 3, "stop": ["x"]}
    assert (first["path"], second["path"], second["model"]) == ("/api/generate", "/api/chat", "tiny")


def test_an_answer_that_breaks_off_is_tried_again_and_says_so(proxied: Ollama, client: Client) -> None:
    job = client.submit(prompt="do break now", stream=True)
    pieces = list(job.stream(timeout=60))
    kept = ""
    for piece in pieces:
        kept = piece.text if isinstance(piece, Restarted) else kept + piece.text
    assert kept == "do break now "
    assert (job.result(timeout=60).text, job.result().attempts) == ("do break now ", 2)


def test_a_cancelled_request_closes_its_connection(proxied: Ollama, client: Client) -> None:
    job = client.submit(prompt="please wait", stream=True)
    wait_until(proxied.waiting.is_set, 30)
    assert job.cancel()
    wait_until(proxied.left.is_set, 30)


def test_what_the_proxy_and_its_server_refuse_fails_by_name(proxied: Ollama, client: Client) -> None:
    with pytest.raises(UnsupportedParameter, match="ignore_eos"):
        client.submit(prompt="a", ignore_eos=True).result(timeout=60)
    with pytest.raises(InvalidRequest, match="must be a text"):
        client.submit(inputs=[1, 2]).result(timeout=60)
    with pytest.raises(InvalidRequest, match="was refused by Ollama with 404"):
        client.submit(prompt="unknown").result(timeout=60)
    assert client.dead_letters() == []


def test_a_classifier_answers_as_its_documentation_says(stack: Stack, client: Client) -> None:
    stack.scheduler()
    stack.worker("topics", model="stoker_workers.examples.topics:TopicClassifier")
    [question] = re.findall(r'stoker submit "(What .*)"', DOCUMENT.read_text())
    [topic] = re.findall(r'^\{"topic": "(.*?)"', DOCUMENT.read_text(), re.MULTILINE)
    good, none = client.map([question, "zzzzzz"])
    assert good.unwrap().output["topic"] == topic
    # The figures are those of one version of Python: each has other texts.
    assert next(iter(good.output["scores"])) == topic
    assert none.unwrap().output == {"topic": None, "scores": {}}
    with pytest.raises(InvalidRequest, match="must be a text"):
        client.submit(inputs=7).result(timeout=60)
    with pytest.raises(UnsupportedParameter, match="temperature"):
        client.submit(prompt=question, temperature=1.0).result(timeout=60)


def test_the_document_shows_the_examples_as_they_are() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    sources = [Path(str(module.__file__)).read_text() for module in (topics, ollama)]
    # They are methods, which the formatter spaces otherwise without their class.
    words = [(" ".join(block.split()), " ".join(source.split())) for block, source in zip(blocks, sources, strict=True)]
    assert [block in source for block, source in words] == [True, True]
