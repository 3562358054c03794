"""A process with a tensor-parallel engine, which tests talk to: one JSON command a line in, one JSON answer a line out.

python group_process.py FOLDER RANKS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stoker_workers.engine import Admitted, Sampling, Tokens, Work
from stoker_workers.engines.transformers_cb import TransformersCbEngine


def make_work(fields: dict[str, Any]) -> Work:
    sampling = Sampling(**fields.pop("sampling", {}))
    return Work(batch="b", sampling=sampling, **{**fields, "stop": tuple(fields.get("stop", ()))})


def drive(engine: TransformersCbEngine, works: list[Work], cancel: dict[str, int]) -> dict[str, Any]:
    """Admit one each step, and cancel where that many steps are done; return the tokens and texts."""
    answers: dict[str, Any] = {}
    steps = 0
    while works or engine.resident():
        if works and isinstance(engine.admit(works[0]), Admitted):
            works.pop(0)
        for event in engine.step():
            answer = answers.setdefault(event.id, {"token_ids": [], "text": "", "end": ""})
            if isinstance(event, Tokens):
                answer["token_ids"] += event.token_ids
                answer["text"] += event.text
            else:
                answer["end"] = type(event).__name__
        steps += 1
        for name in [name for name, at in cancel.items() if at == steps]:
            engine.cancel(name)
            answers.pop(name, None)
    return answers


def main() -> None:
    folder, ranks = sys.argv[1:]
    engine = TransformersCbEngine(
        Path(folder), max_num_seqs=8, max_num_batched_tokens=64, kv_cache_tokens=2048, tensor_parallel=int(ranks)
    )
    card = engine.load()
    engine.warm_up()
    say({"loaded": card.identity})
    for line in sys.stdin:
        order = json.loads(line)
        if "works" in order:
            say(drive(engine, [make_work(fields) for fields in order["works"]], order.get("cancel", {})))
        elif "endless" in order:
            engine.admit(make_work(order["endless"]))
            engine.step()
            say({"stepping": True})
            while True:
                engine.step()
        else:
            break
    engine.close()
    say({"closed": True})


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
