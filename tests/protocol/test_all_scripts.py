"""What holds for every script: tested here, headed by its contract, made of the pieces that it names, one key."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from protocol.rig import CLOCK
from stoker.config import Config
from stoker.store import batches
from stoker.store import scripts as s
from stoker.store.keys import Keys

LUA = Path(str(resources.files("stoker.store"))) / "lua"
PIECES = {file.stem: file.read_text() for file in (LUA / "pieces").glob("*.lua")}
BODIES = {name: (LUA / f"{name}.lua").read_text() for name in s.script_names()}
FENCED = {"dispatch", "make_room", "reclaim", "expire", "refuse", "promote"}
REDIS_WORDS = {"COUNT", "CREATE", "HEAD", "LIMIT", "MAXLEN", "MKSTREAM", "NOMKSTREAM", "NX", "PX"}
"""Arguments of Redis commands, not answers of scripts."""


def used(body: str) -> list[str]:
    """Return the pieces that a script says it uses, at its beginning or further down."""
    found = re.match(r"-- use: ([a-z ]+)\n", body)
    return [*(found[1].split() if found else []), *re.findall(r"^ *-- include: (\w+)$", body, re.MULTILINE)]


def header(body: str) -> str:
    """Return the comment that a script begins with."""
    return "\n".join(re.findall(r"\A(?:--.*\n)+", body))


def code(body: str) -> str:
    """Return a script without its comments."""
    return re.sub(r"--.*", "", body)


def names(text: str) -> set[str]:
    """Return the names that a text uses, without its strings and without fields."""
    bare = re.sub(r"'[^'\n]*'", "", code(text))
    return set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", bare))


def defined(text: str) -> set[str]:
    """Return the names that a piece gives to what follows it."""
    functions = re.findall(r"^local function (\w+)", code(text), re.MULTILINE)
    variables = re.findall(r"^local (?!function)([\w, ]+)", code(text), re.MULTILINE)
    return {*functions, *(name for group in variables for name in re.findall(r"\w+", group))}


def own(text: str) -> set[str]:
    """Return the names that a text makes for itself, at any depth."""
    plain = code(text)
    groups = re.findall(r"local (?!function)([\w, ]+)", plain) + re.findall(r"for ([\w, ]+) (?:in|=)", plain)
    groups += re.findall(r"function ?\w*\(([\w, ]*)\)", plain) + re.findall(r"local function (\w+)", plain)
    return {name for group in groups for name in re.findall(r"\w+", group)}


def calls(text: str) -> list[str]:
    """Return the first argument after the command of each call of Redis."""
    return re.findall(r"call\('[A-Z]+', ?(?:'CREATE', )?([^,)]+)", code(text))


def test_there_is_a_module_of_tests_for_every_script_and_none_without_one() -> None:
    here = {file.stem.removeprefix("test_") for file in Path(__file__).parent.glob("test_*.py")}
    assert here - set(s.script_names()) == {
        "all_scripts",
        "fakeredis",
        "out_of_memory",
        "protocol_document",
        "queue_view",
    }
    assert set(s.script_names()) - here == set()


def test_every_script_has_a_typed_call() -> None:
    source = Path(s.__file__).read_text() + Path(batches.__file__).read_text()
    assert set(re.findall(r'\bCall\("(\w+)"', source)) == set(s.script_names())


@pytest.mark.parametrize("name", s.script_names())
def test_a_script_begins_with_its_contract(name: str) -> None:
    lines = header(BODIES[name]).splitlines()
    prose = [line for line in lines if not re.match(r"-- (use:|KEYS|ARGV|Returns| )", line)]
    assert len(" ".join(prose)) > 20
    assert re.match(r"-- [A-Z]", prose[0])
    assert "-- KEYS[1] prefix" in lines
    assert any(re.match(r"-- ARGV    \S", line) for line in lines)
    assert any(re.match(r"-- Returns \S", line) for line in lines)


@pytest.mark.parametrize("name", s.script_names())
def test_the_contract_names_every_answer_and_no_other(name: str) -> None:
    contract = header(BODIES[name]).partition("Returns")[2]
    text = "".join(PIECES[piece] for piece in used(BODIES[name]) if piece in ("fence", "limits", "late")) + BODIES[name]
    body = re.sub(r"(redis\.error_reply|call)\('[A-Z]+", "(", code(text))
    answers = set(re.findall(r"'([A-Z][A-Z_]+):?'", body)) - REDIS_WORDS
    promised = set(re.findall(r"\b[A-Z][A-Z_]{1,}\b", contract)) - {"EXPIRED"}
    assert answers == promised


@pytest.mark.parametrize("name", s.script_names())
def test_a_script_uses_the_pieces_that_it_names_and_no_others(name: str) -> None:
    body = BODIES[name]
    around = [*s.IMPLICIT_PIECES, *used(body)]
    assert len(set(around)) == len(around)
    needed = names(body) - own(body)
    for at, piece in enumerate(around):
        given = defined(PIECES[piece])
        later = set().union(*(names(PIECES[other]) for other in around[at + 1 :]))
        if piece not in (*s.IMPLICIT_PIECES, "fence"):
            assert given & (needed | later), f"{name} does not use {piece}"
    for piece in PIECES.keys() - set(around):
        strangers = defined(PIECES[piece]) - set().union(*(defined(PIECES[other]) for other in around))
        assert not strangers & needed, f"{name} uses {piece} without naming it"


@pytest.mark.parametrize("name", s.script_names())
def test_pieces_stand_in_the_order_in_which_they_need_each_other(name: str) -> None:
    known = {"KEYS", "ARGV"} | set(s.IMPLICIT_PIECES)
    everything = set().union(*(defined(text) for text in PIECES.values()))
    for piece in [*s.IMPLICIT_PIECES, *used(BODIES[name])]:
        missing = (names(PIECES[piece]) - own(PIECES[piece])) & everything - known
        assert not missing, f"{piece} needs {missing} before it in {name}"
        known |= defined(PIECES[piece])


@pytest.mark.parametrize("name", s.script_names())
def test_scripts_of_the_leader_begin_with_the_fence(name: str) -> None:
    fenced = "fence" in used(BODIES[name])
    assert fenced is (name in FENCED)
    if fenced:
        assert used(BODIES[name])[:2] == ["events", "fence"]
        assert "call(" not in code(PIECES["events"]).partition("local function emit")[0]
        assert "leader's token" in header(BODIES[name])


@pytest.mark.parametrize("name", [*s.script_names(), *(f"pieces/{piece}" for piece in sorted(PIECES))])
def test_every_key_begins_with_the_one_that_is_declared(name: str) -> None:
    text = (LUA / f"{name}.lua").read_text()
    assert "KEYS[2]" not in text
    assert ("KEYS[1]" in code(text)) is (name == "pieces/base")
    # Variables that hold keys are all made of the prefix.
    holders = {"key", "sizes", "work", "delayed", "lane(f", "keys[2 * i - 1]", "keys[2 * i]"}
    holders |= {f"unpack({name}" for name in ("keys", "gone", "wanted", "sets", "payloads", "flight_keys")}
    for argument in calls(text):
        assert argument.startswith("K .. '") or argument in holders, argument


def test_all_keys_of_a_queue_share_one_hash_tag() -> None:
    keys = Keys("some.queue")
    made = [value for value in vars(keys).values() if isinstance(value, str)]
    for name in ("lane", "payload", "flight", "result", "dead", "work", "stream", "void", "reply", "batch"):
        made.append(getattr(keys, name)("x"))
    made.append(keys.tokens("x", "n"))
    assert all(key.startswith("stoker:{some.queue}:") for key in made)
    assert len(set(made)) == len(made)


def test_limits_stand_in_the_text_in_microseconds_and_milliseconds() -> None:
    config = Config(heartbeat_ms=200, max_age_s=2, result_ttl_s=3, backoff_min_ms=4, backoff_max_ms=5, events=True)
    first, events, *_ = s.load_scripts(config)["submit"].source.splitlines()
    found, values = first.removeprefix("local ").split(" = ")
    limits = dict(zip(found.split(", "), values.split(", "), strict=True))
    assert limits["H"] == "200000"
    assert (limits["T"], limits["L"]) == ("660000", "600000")
    assert (limits["MAX_AGE"], limits["RESULT_TTL"]) == ("2000000", "3000")
    assert (limits["BACKOFF_MIN"], limits["BACKOFF_MAX"]) == ("4000", "5000")
    assert limits["MAX_TOKENS"] == "nil"
    assert events == "local EVENTS = true"


def test_a_replaced_clock_is_another_script_and_the_real_one_reads_the_time_once() -> None:
    config = Config()
    real, tested = s.load_scripts(config), s.load_scripts(config, CLOCK)
    assert all(real[name].sha != tested[name].sha for name in s.script_names())
    assert all(script.source.count("'TIME'") == 1 for script in real.values())
    assert all("'TIME'" not in script.source for script in tested.values())
