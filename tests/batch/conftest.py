"""Fixtures of the tests of batch files: a queue that answers in this process, and batches of its own files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sdk.fleet import Fleet
from stoker.batch.run import run_batch
from stoker.batch.sdk import Batch
from stoker.client import Client
from stoker.config import Config


@dataclass
class Bench:
    """Submits batches and runs them in threads of the test, as RQ would in processes."""

    config: Config
    client: Client
    folder: Path
    stops: list[threading.Event] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def write(self, *lines: Any, name: str = "in.jsonl") -> Path:
        """A file of these lines: bytes as they are, objects as JSON, texts as prompts."""
        path = self.folder / name
        whole = [line if isinstance(line, bytes) else json.dumps(as_line(line)).encode() for line in lines]
        path.write_bytes(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in whole))
        return path

    def submit(self, *lines: Any, **options: Any) -> Batch:
        options.setdefault("batch_id", "b")
        return self.client.batches.create(self.write(*lines), output=self.folder / "out.jsonl", **options)

    def run(self, batch: Batch, stop: threading.Event | None = None) -> str:
        return run_batch(self.config, batch.id, stop or threading.Event())

    def start(self, batch: Batch) -> Outcome:
        """Run in another thread; `stop` ends it."""
        outcome = Outcome()
        thread = threading.Thread(target=outcome.run, args=(self.config, batch.id), name="run", daemon=True)
        thread.start()
        self.stops.append(outcome.stop)
        self.threads.append(thread)
        return outcome

    def lapse(self, batch: Batch) -> None:
        """Have the lease lapse, as if its run had died five seconds ago."""
        with closing(self.redis()) as redis:
            redis.hset(f"stoker:{{{self.config.queue}}}:batch:{batch.id}", "until", 0)

    def redis(self) -> Any:
        import redis

        return redis.Redis.from_url(str(self.config.redis_url))

    def answers(self) -> dict[str, dict[str, Any]]:
        """The output: custom_id -> line. Fails if one is there twice."""
        return by_id(read(self.folder / "out.jsonl"))

    def errors(self) -> dict[int, dict[str, Any]]:
        """The errors: number of the line -> line."""
        path = self.folder / "out.errors.jsonl"
        found = read(path) if path.exists() else []
        numbers = [line["error"]["line"] for line in found]
        assert len(set(numbers)) == len(numbers)
        return dict(zip(numbers, found, strict=True))

    def codes(self) -> dict[int, str]:
        return {number: line["error"]["code"] for number, line in self.errors().items()}


@dataclass
class Outcome:
    """What a run in another thread came to."""

    state: str = ""
    error: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, config: Config, batch_id: str) -> None:
        try:
            self.state = run_batch(config, batch_id, self.stop)
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def result(self) -> str:
        assert self.done.wait(30), "the run does not end"
        assert self.error is None, self.error
        return self.state


def as_line(value: Any) -> Any:
    return {"prompt": value, "temperature": 0} if isinstance(value, str) else value


def framed(custom_id: str, prompt: Any = "hello", **body: Any) -> dict[str, Any]:
    """An OpenAI line."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": prompt, "temperature": 0} | body,
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_id(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        assert line["custom_id"] not in found, f"{line['custom_id']} is there twice"
        found[line["custom_id"]] = line
    return found


def text_of(line: dict[str, Any]) -> str:
    return str(line["response"]["body"]["choices"][0]["text"])


@pytest.fixture
def config(redis_url: str, short_tmp: Path) -> Config:
    """Settings that make heartbeats and retries short."""
    return Config(redis_url=redis_url, heartbeat_ms=100, backoff_min_ms=1, backoff_max_ms=1, state=short_tmp / "state")


@pytest.fixture
def fleet(config: Config) -> Iterator[Fleet]:
    """A scheduler and a worker that run."""
    with Fleet(config) as fleet:
        yield fleet


@pytest.fixture
def bench(config: Config, tmp_path: Path) -> Iterator[Bench]:
    """A client, and a folder for files."""
    with Client(config=config) as client:
        bench = Bench(config, client, tmp_path)
        yield bench
        for stop in bench.stops:
            stop.set()
        for thread in bench.threads:
            thread.join(20)
            assert not thread.is_alive()
