"""Text comes in whole characters, equals the whole answer decoded at once, and ends before a stop string."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stoker_workers.text import Detokenizer

# Token ids 0-255 are single bytes; then some tokens of several bytes, whole characters or not; then one that is
# special, so that it has no text.
WORDS = [
    b"the ",
    b" cat",
    b"END",
    b"\n\n",
    "é".encode(),
    "✓ ".encode(),
    b" \xf0\x9f",
    b"\x98\x80!",
    "日本".encode(),
    b"\xe6",
]
BYTES = [bytes([number]) for number in range(256)] + WORDS + [b""]

any_tokens = st.lists(st.integers(0, len(BYTES) - 1), max_size=200)
chunk_sizes = st.integers(1, 5)


def decode(token_ids: list[int]) -> str:
    return b"".join(BYTES[token] for token in token_ids).decode(errors="replace")


def decode_with_byte_fallback(token_ids: list[int]) -> str:
    """Decode as SentencePiece does: a run of byte tokens that is no valid UTF-8 as a whole gives U+FFFD for each byte;
    and the answer's first space is dropped.
    """
    text, run = "", b""
    for token in [*token_ids, None]:
        if token is not None and token < 256:
            run += BYTES[token]
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(run)
        text, run = text + (BYTES[token].decode() if token is not None else ""), b""
    return text.removeprefix(" ")


def cut(text: str, stops: list[str]) -> str:
    """Return `text` before the stop string that is complete first, found the slow way."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def pieces(detokenizer: Detokenizer, token_ids: list[int], size: int = 1) -> list[str]:
    pushed = [detokenizer.push(token_ids[start : start + size]) for start in range(0, len(token_ids), size)]
    return [*pushed, detokenizer.finish()]


@given(any_tokens, chunk_sizes)
@example([0x80] * 200, 1)
@example([0xF0, 0x9F, 0x98] * 60, 1)
@example([0xE2, *[len(BYTES) - 1] * 20, 0x9C, 0x93], 1)
def test_the_pieces_join_to_the_text_of_all_tokens_whatever_the_bytes(token_ids: list[int], size: int) -> None:
    assert "".join(pieces(Detokenizer(decode), token_ids, size)) == decode(token_ids)


@pytest.mark.untraced
@given(st.text(max_size=100))
def test_a_text_in_single_bytes_comes_in_whole_characters(text: str) -> None:
    text = text.replace("\ufffd", "")
    got = pieces(Detokenizer(decode), list(text.encode()))
    assert "".join(got) == text
    assert not any("\ufffd" in piece for piece in got)
    assert got[-1] == ""


def test_a_character_is_shown_as_soon_as_its_last_byte_is_there() -> None:
    assert pieces(Detokenizer(decode), list("a✓😀".encode())) == ["a", "", "", "✓", "", "", "", "😀", ""]


def test_bytes_that_never_become_a_character_are_not_held_for_ever() -> None:
    detokenizer = Detokenizer(decode)
    shown = "".join(detokenizer.push([0x80]) for _ in range(100))
    assert len(shown) >= 95


words_and_characters = st.lists(
    st.one_of(
        st.sampled_from([256, 257, 258, 259]).map(lambda token: [token]),
        st.characters().map(lambda c: list(c.encode())),
    ),
    max_size=80,
).map(lambda parts: [token for part in parts for token in part])


@given(words_and_characters)
@example(list("✓😀✓😀 日本 😀".encode()) * 5)
@example([257] * 50)
def test_a_tokenizer_with_byte_fallback_loses_no_character_and_no_space(token_ids: list[int]) -> None:
    whole = decode_with_byte_fallback(token_ids)
    assert "".join(pieces(Detokenizer(decode_with_byte_fallback), token_ids)) == whole


def test_the_cost_of_a_token_does_not_grow_with_the_answer() -> None:
    sizes = []

    def spy(token_ids: list[int]) -> str:
        sizes.append(len(token_ids))
        return decode(token_ids)

    pieces(Detokenizer(spy), [256, 0xE2, 0x9C, 0x93, 257] * 400)
    pieces(Detokenizer(spy), [0x80] * 2000)
    pieces(Detokenizer(spy), [len(BYTES) - 1] * 2000)
    assert max(sizes) <= 64
    assert len(sizes) <= 2.5 * 6000


stop_strings = st.lists(
    st.one_of(
        st.sampled_from(["END", "the c", "\n\n", "é", "at END", "aaa", "\ufffd"]),
        st.text("ab✓", min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)
likely_tokens = st.lists(
    st.one_of(st.sampled_from([97, 98, *range(256, len(BYTES))]), st.integers(0, 255)), max_size=80
)


@given(likely_tokens, stop_strings, chunk_sizes)
@example([97, 98, 97, 98, 99], ["abc", "b✓"], 1)
def test_the_text_ends_before_the_first_stop_string_however_it_was_cut(
    token_ids: list[int], stops: list[str], size: int
) -> None:
    detokenizer = Detokenizer(decode, stops)
    expected = cut(decode(token_ids), stops)
    assert "".join(pieces(detokenizer, token_ids, size)) == expected
    assert detokenizer.stopped == (expected != decode(token_ids))


@given(likely_tokens, stop_strings)
def test_nothing_that_belongs_to_a_stop_string_was_ever_shown(token_ids: list[int], stops: list[str]) -> None:
    expected = cut(decode(token_ids), stops)
    shown = ""
    for piece in pieces(Detokenizer(decode, stops), token_ids):
        shown += piece
        assert expected.startswith(shown)


def test_only_what_could_begin_a_stop_string_is_held_back() -> None:
    assert pieces(Detokenizer(decode, ["abcd"]), list(b"xabyabc")) == ["x", "", "", "aby", "", "", "", "abc"]


def test_a_stop_string_across_tokens_is_cut_with_what_follows_it() -> None:
    detokenizer = Detokenizer(decode, ["tEND"])
    assert pieces(detokenizer, [256, 257, 258, 97]) == ["the ", " ca", "", "", ""]
    assert detokenizer.stopped


def test_of_two_stop_strings_complete_at_once_the_longer_is_cut() -> None:
    assert "".join(pieces(Detokenizer(decode, ["cd", "bcd"]), list(b"abcde"))) == "a"


def test_a_stop_string_can_show_up_in_what_finish_flushes() -> None:
    detokenizer = Detokenizer(decode, ["\ufffd"])
    assert pieces(detokenizer, [97, 0xE2]) == ["a", "", ""]
    assert detokenizer.stopped


@pytest.mark.parametrize("stop", [(), ("END",)])
def test_no_tokens_give_no_text(stop: tuple[str, ...]) -> None:
    detokenizer = Detokenizer(decode, stop)
    assert detokenizer.push([]) == ""
    assert detokenizer.finish() == ""
    assert not detokenizer.stopped
