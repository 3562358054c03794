"""How many cases a fuzz test runs, how they are counted, and what cases are made of."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

CASES: Counter[str] = Counter()
"""How many cases each test has run in this process."""

settings.register_profile("fuzz", settings())
MANY, FEW = 1000, 20
COMMON = settings(deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


def fuzz(
    times: int, *, shrink: bool = True, **strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a test its cases: `times` 1,000 under the profile `fuzz`, else `times` 20, always the same.

    Without `shrink` the first case that fails is shown as it is: where each takes milliseconds, making it smaller would
    take minutes.
    """
    many = settings.get_current_profile_name() == "fuzz"
    phases = [phase for phase in Phase if shrink or phase not in (Phase.shrink, Phase.explain)]
    number = settings(COMMON, max_examples=times * (MANY if many else FEW), derandomize=not many, phases=phases)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(*arguments: Any, **keywords: Any) -> None:
            CASES[test.__name__] += 1
            test(*arguments, **keywords)

        return pytest.mark.untraced(number(given(**strategies)(counted)))

    return decorate


NASTY = [
    *("", "0", "-1", "1.5", "nan", "inf", "-inf", "1e300", "9" * 400, "0x10", " 1", "1 ", "١", "true", "None"),  # noqa: RUF001  # a digit that int() takes
    *("a|b", "a:b", "a b", "a\nb", "a\r\nb", "a\0b", "%s", "{}", "x" * 129, "x" * 600, "\ud800", "é", "*", "-", "1-1"),
    *(str(1 << 53), str(1 << 63), str((1 << 64) - 1), "18446744073709551616-0"),
]
"""Texts that some code takes for what they are not."""

digits = st.sampled_from([1, 2, 10, 15, 16, 17, 20, 39, 310, 400]).map(lambda length: "9" * length)
words = st.sampled_from(NASTY) | digits | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)
"""Any text, often one that is nearly right."""


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes after a change, or a few: another number, or bytes put over, in or out, cut off, doubled."""
    changed = bytearray(data)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        numbers = [number.span() for number in re.finditer(rb"\d+", changed)]
        # What is of the right form gets farthest.
        if numbers and draw(st.booleans()):
            start, end = draw(st.sampled_from(numbers))
            changed[start:end] = draw(digits).encode()
            continue
        at = draw(st.sampled_from(range(len(changed) + 1)))
        piece = draw(st.binary(max_size=6) | st.sampled_from([b"|", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x04\x00\x00"]))
        match draw(st.sampled_from(["over", "in", "out", "off", "double"])):
            case "over":
                changed[at : at + len(piece)] = piece
            case "in":
                changed[at:at] = piece
            case "out":
                del changed[at : at + draw(st.integers(1, 8))]
            case "off":
                del changed[at:]
            case "double":
                changed += changed[at : at + 100]
    return bytes(changed)
