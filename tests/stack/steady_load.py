"""A client that keeps requests in flight for as long as a test looks on."""

from __future__ import annotations

import threading
from collections import deque

from stoker import Client, InferenceResponse, Job


class SteadyLoad:
    """Keeps `live` requests in flight: as soon as the oldest is answered comes a new one."""

    def __init__(self, client: Client, *, live: int, max_tokens: int) -> None:
        self.responses: list[InferenceResponse] = []
        self._client, self._live, self._max_tokens = client, live, max_tokens
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> SteadyLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        jobs = deque(self._submit(i) for i in range(self._live))
        while jobs:
            self.responses.append(jobs.popleft().response(timeout=120))
            if not self._over.is_set():
                jobs.append(self._submit(len(self.responses)))

    def _submit(self, number: int) -> Job:
        return self._client.submit(prompt_tokens=[number + 1], max_tokens=self._max_tokens)
