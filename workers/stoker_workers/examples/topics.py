"""A classifier to serve without a download: which topic of Python's own documentation is a text about?

Serve it with `stoker worker --model stoker_workers.examples.topics:TopicClassifier`, and send a question as `prompt` or
`inputs`. The answer to "What does the with statement do to a context manager?" is

    {"topic": "context-managers", "scores": {"context-managers": 0.2856, "with": 0.2466, ...}}

It is also the pattern for a model of your own: `load` what is expensive once, say what an input will `cost`, `predict`
a batch at a time, and put an exception in the place of an input that is no good.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pydoc_data import topics

from stoker import InvalidRequest

BEST = 5
"""How many topics an answer names."""

_WORD = re.compile(r"[a-z_]{2,}")


class TopicClassifier:
    """Compares texts with the documentation's topics by the words they share: cosine of TF-IDF weights."""

    version = "1"

    def __init__(self) -> None:
        """Start empty; `load` builds the index."""
        self._rarity: dict[str, float] = {}
        self._index: dict[str, list[tuple[str, float]]] = {}

    def load(self, device: str) -> None:
        """Build the index of all topics; arithmetic on words needs no particular `device`."""
        counts = {topic: Counter(_words(text)) for topic, text in topics.topics.items()}
        holders = Counter(word for words in counts.values() for word in words)
        self._rarity = {word: math.log(len(counts) / number) for word, number in holders.items()}
        index: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for topic, words in counts.items():
            for word, weight in self._weights(words).items():
                index[word].append((topic, weight))
        self._index = dict(index)

    def cost(self, inputs: object) -> int:
        """Return the number of words, for time grows with it."""
        return max(1, len(_words(inputs))) if isinstance(inputs, str) else 1

    def predict(self, batch: Sequence[object]) -> list[object]:
        """Return for each text its topic (None if it shares no word with any) and the scores of the best."""
        return [
            self._classify(text)
            if isinstance(text, str)
            else InvalidRequest("inputs", "must be a text", type(text).__name__)
            for text in batch
        ]

    def _classify(self, text: str) -> dict[str, object]:
        scores: dict[str, float] = defaultdict(float)
        for word, weight in self._weights(Counter(_words(text))).items():
            for topic, topic_weight in self._index[word]:
                scores[topic] += weight * topic_weight
        # By name where scores are equal, so that an answer is the same in every process.
        best = sorted(scores, key=lambda topic: (-scores[topic], topic))[:BEST]
        return {"topic": best[0] if best else None, "scores": {topic: round(scores[topic], 4) for topic in best}}

    def _weights(self, words: Counter[str]) -> dict[str, float]:
        """Return the weight of each known word, rare ones more, as a vector of length 1."""
        weights = {
            word: (1 + math.log(count)) * self._rarity[word]
            for word, count in words.items()
            if self._rarity.get(word, 0) > 0
        }
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}


def _words(text: str) -> list[str]:
    """Return the words of a text, without a plural's s: an exception and exceptions are one word."""
    return [word.removesuffix("s") for word in _WORD.findall(text.lower())]
