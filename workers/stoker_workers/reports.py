"""How attempts are told to the queue: new tokens, answers, failures."""

from __future__ import annotations

from typing import Literal

from stoker.errors import InvalidRequest
from stoker.store.codec import encode_answer, encode_failure
from stoker.store.pack import pack_tokens
from stoker.store.scripts import Published, Settlement
from stoker_workers.engine import Finished
from stoker_workers.intake import Row, prompt_bytes

Outcome = Literal["ok", "bad", "failure", "retry"]
OUTCOMES: dict[str, Outcome] = {"invalid": "bad", "retry": "retry", "failure": "failure"}
"""What settle calls the kinds of `Failed`."""


def published(row: Row) -> Published:
    """Return the row's tokens since the last time, and note that they are out.

    Those of an answer that nobody streams are published once, when its attempt is given back.
    """
    new = row.token_ids[row.published :]
    # The first text is what earlier attempts gave.
    text = "".join(row.unpublished_text if row.stream else row.texts[1:])
    item = Published(*row.key, row.payload.nonce, row.payload.attempt, row.published, pack_tokens(new), text)
    row.published = row.tokens
    row.unpublished_text.clear()
    return item


def answer_of(row: Row, event: Finished, most_bytes: int) -> Settlement:
    """Return how a finished attempt is reported: as a failure where its result cannot be sent."""
    request = row.payload.request
    prompt = len(row.work.prompt) if event.prompt_tokens is None else event.prompt_tokens
    completion = row.tokens if event.completion_tokens is None else event.completion_tokens
    text_only = row.tokens > len(row.token_ids)
    try:
        body = encode_answer(
            text="".join(row.texts),
            token_ids=row.token_ids if event.output is None and not text_only else None,
            output=event.output,
            finish_reason=event.finish_reason,
            prompt=prompt,
            completion=completion,
            first_token_us=row.first_token_us,
            metadata=request.metadata,
        )
    except InvalidRequest as error:
        return failure(row, "failure", "result_invalid", str(error))
    if len(body) > most_bytes:
        message = f"the result has {len(body)} bytes, over result_bytes ({most_bytes})"
        return failure(row, "failure", "result_too_large", message)
    return Settlement(
        *row.key,
        row.payload.nonce,
        "ok",
        "",
        body,
        row.payload.attempt,
        row.first_token_us,
        prompt,
        completion,
        prompt_bytes(row) if prompt else 0,  # nobody counted its tokens: nothing is learned from it
    )


def too_large(row: Row, lack: str) -> str:
    """Return what to say of a request for which an engine has too little memory even when it runs alone."""
    size = f"prompt of {len(row.work.prompt)} tokens, max_tokens {row.work.max_tokens}, cost {row.cost}"
    return f"too large for this worker's memory even alone ({size}): {lack}"


def failure(row: Row, outcome: Outcome, reason: str, message: str, error: InvalidRequest | None = None) -> Settlement:
    """Return how an attempt without an answer is reported."""
    body = encode_failure(message, error)
    return Settlement(*row.key, row.payload.nonce, outcome, reason, body, row.payload.attempt)
