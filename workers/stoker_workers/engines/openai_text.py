"""The tokenizer of a server's model, read from a folder: counts text, and turns token ids into the text to send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stoker.errors import ConfigError
from stoker_workers.engine import Invalid

FILE = "tokenizer.json"


class ServerTokenizer:
    """The tokenizer in `folder`. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Read it; raises `ConfigError`."""
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise ConfigError(f'tokenizer: needs {error.name}: pip install "stoker[openai]"') from error
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(f"tokenizer: {folder / FILE} cannot be read: {str(error)[:200]}") from error
        self.vocabulary: int = self._tokenizer.get_vocab_size()
        """How many token ids there are."""
        self._prefix: list[int] = self._tokenizer.encode("").ids

    def encode(self, text: str) -> list[int]:
        """Return the text's token ids, special tokens added."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def count(self, text: str) -> int:
        """Return how many tokens an answer has."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, prompt: Sequence[int]) -> str | Invalid:
        """Return the text of token ids, without what the server puts before every text itself."""
        high = max(prompt, default=0)
        if high >= self.vocabulary:
            return Invalid("prompt_tokens", f"token ids must be from 0 to {self.vocabulary - 1}", high)
        ids = list(prompt)
        if self._prefix and ids[: len(self._prefix)] == self._prefix:
            ids = ids[len(self._prefix) :]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text or Invalid("prompt_tokens", "must be the tokens of some text", list(prompt))
