"""From token ids to text, piece by piece: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no whole character, or not yet."""

_PARTIAL_TOKENS = (
    4  # a character has at most four bytes and a token at least one: by then it is whole, or never will be
)
_PARTIAL_CHARS = 3  # so many BROKEN at the end may be the first bytes of one character
_WINDOW = 16  # tokens decoded again with every new one, before the older half is let go
_WINDOW_LIMIT = 64  # ... even where no clean cut was found


class StopStrings:
    """Cuts text that comes piece by piece before the first stop string, wherever the pieces' borders lie."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """End at any of `stop`."""
        self.stopped = False
        """Whether a stop string appeared; no text follows it."""
        self._stops = tuple(stop)
        self._held = ""  # could begin a stop string

    def push(self, piece: str) -> str:
        """Return what may be shown of the text held back and `piece`; hold back what could begin a stop string."""
        if not self._stops or self.stopped:
            return "" if self.stopped else piece
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            # The one complete first, however the text was cut into tokens; of several at once the longest.
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = len(text) - self._could_begin(text)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """Return the text held back, for none follows."""
        text, self._held = self._held, ""
        return text

    def _could_begin(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest


class Detokenizer:
    """Turns the tokens of one answer into text as they come.

    The pieces that `push` and `finish` return join to `decode(all tokens)`, cut before the stop string that was
    complete first. `decode` is called on a short window of the newest tokens, so that a token's cost does not grow with
    the answer. Where a tokenizer rewrites text it gave before (SentencePiece's byte fallback, on invalid bytes), what
    was returned stands.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        """Use `decode`, which maps token ids to text with U+FFFD for broken bytes, and end at any of `stop`."""
        self._decode = decode
        self._stops = StopStrings(stop)
        self._window: list[int] = []
        self._ready = 0  # characters of the window's text that were passed on
        self._broken_for = 0  # tokens since the text last ended in a whole character

    @property
    def stopped(self) -> bool:
        """Whether a stop string appeared; no text follows it."""
        return self._stops.stopped

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; return the text that is now certain."""
        return "".join([self._push_one(token) for token in token_ids if not self.stopped])

    def finish(self) -> str:
        """Return the text held back, for no token follows; may set `stopped` too."""
        if self.stopped:
            return ""
        rest = self._decode(self._window)[self._ready :] if self._broken_for else ""
        self._broken_for = 0
        return self._stops.push(rest) + self._stops.finish()

    def _push_one(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        self._broken_for = self._broken_for + 1 if text.endswith(BROKEN) else 0
        ready = text[self._ready : self._certain(text)]
        self._ready += len(ready)
        if len(self._window) > _WINDOW:
            self._shift(text)
        return self._stops.push(ready)

    def _certain(self, text: str) -> int:
        """Return how many characters of the window's text no later token can change."""
        if not self._broken_for:
            return len(text)
        if self._broken_for > _PARTIAL_TOKENS:
            return len(text) - _PARTIAL_CHARS
        return text.find(BROKEN, self._ready)

    def _shift(self, text: str) -> None:
        """Let the older half of the window go, if its newer half alone decodes to the same end of the text."""
        forced = len(self._window) >= _WINDOW_LIMIT
        if 0 < self._broken_for <= _PARTIAL_TOKENS and not forced:
            return
        newer = self._window[len(self._window) // 2 :]
        end = self._decode(newer)
        waiting = len(text) - self._ready
        # More characters than a cut within the last one could leave: the cut lies before what still waits.
        if forced or (len(end) >= waiting + _PARTIAL_CHARS and text.endswith(end)):
            self._window = newer
            self._ready = max(0, len(end) - waiting)
