"""PROTOCOL.md says what the scripts do: its keys, transitions, answers and history are compared with them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import stoker_scheduler
from protocol import batches
from protocol.rig import A, B, H, Queue, T, ok, settlement, shapes
from protocol.test_all_scripts import BODIES, FENCED, PIECES, code, header, used
from stoker.config import Config
from stoker.store import reads
from stoker.store import scripts as s
from stoker.store.keys import Keys

TEXT = (Path(stoker_scheduler.__file__).parent / "PROTOCOL.md").read_text()
ALL_LUA = "\n".join(code(text) for text in [*BODIES.values(), *PIECES.values()])


def section(title: str, text: str = TEXT, level: str = "##") -> str:
    """Return what stands under a heading."""
    pattern = rf"^{level} {re.escape(title)}\n(.*?)(?=^#{{2,{len(level)}}} |\Z)"
    found = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@dataclass(frozen=True)
class Row:
    """A line of the table of keys. `name` is without its parts in angle brackets: `flight:`, `leader`."""

    key: str
    type: str
    ttl: str
    life: str

    @property
    def pattern(self) -> str:
        return re.sub(r"<\w+>", r"[^:]+", self.key.replace("<inc>", "<inc>:<start>"))

    @property
    def prefix(self) -> str:
        return self.key.partition("<")[0]


KEY_ROWS = [Row(cells[0].strip("`"), *cells[1:4]) for cells in rows(section("Keys"))]
TRANSITIONS = re.findall(r"^### (\w+)$", section("Transitions"), re.MULTILINE)
LINES = [(cells[0].strip("`"), cells[1]) for cells in rows(section("History"))]


def row_of(name: str) -> Row:
    """Return the line of the table that a key belongs to; the whole name of a key goes before a pattern."""
    found = [row for row in KEY_ROWS if row.key == name] or [row for row in KEY_ROWS if re.fullmatch(row.pattern, name)]
    assert len(found) == 1, (name, found)
    return found[0]


# --- keys ------------------------------------------------------------------------------------------------------------


def test_every_key_that_the_scripts_use_is_listed_and_no_other() -> None:
    in_lua = set(re.findall(r"K \.\. '([a-z]+:?)", ALL_LUA))
    listed = {row.prefix.replace("lane:suspect", "lane:") for row in KEY_ROWS}
    assert in_lua == listed


def test_every_key_of_the_python_side_is_listed() -> None:
    keys = Keys("q")
    plain = [value for name, value in vars(keys).items() if name != "prefix"]
    made = [getattr(keys, name)("x") for name in ("payload", "flight", "result", "dead", "reply", "batch")]
    made += [keys.lane("normal"), keys.lane("suspect"), keys.tokens("x", "n")]
    made += [getattr(keys, name)(A) for name in ("work", "stream", "void", "obituary")]
    for key in plain + made:
        assert row_of(key.removeprefix(keys.prefix))


def test_every_key_has_a_type_and_a_life() -> None:
    assert {row.type for row in KEY_ROWS} == {"string", "hash", "zset", "list", "stream", "none"}
    assert all(row.life for row in KEY_ROWS)
    assert len({row.key for row in KEY_ROWS}) == len(KEY_ROWS)


def test_what_is_for_good_has_no_ttl() -> None:
    assert all(row.ttl == "none" for row in KEY_ROWS if row.life.startswith("for good"))


def test_settings_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", TEXT))
    known = set(Config.model_fields) | {
        "max_tokens",
        "waiting_bytes",
        "waiting_tokens",
        "kept_bytes",
        "prompt_tokens",
        "generation_tokens",
    }
    assert named <= known | set(s.script_names())


# --- transitions -----------------------------------------------------------------------------------------------------


def test_every_script_is_a_transition_and_no_other() -> None:
    assert sorted(TRANSITIONS) == s.script_names()
    assert len(TRANSITIONS) == len(set(TRANSITIONS))


@pytest.mark.parametrize("name", s.script_names())
def test_a_transition_says_who_when_what_and_the_answers(name: str) -> None:
    text = section(name, section("Transitions"), "###")
    assert re.findall(r"^- \*\*(\w+)\*\*: \S", text, re.MULTILINE) == ["Caller", "Before", "After", "Replies"]


@pytest.mark.parametrize("name", s.script_names())
def test_a_transition_gives_the_answers_of_its_script(name: str) -> None:
    replies = section(name, section("Transitions"), "###").partition("**Replies**")[2]
    body = "".join(
        [BODIES[name], *(PIECES[piece] for piece in ("fence", "limits", "late") if piece in used(BODIES[name]))]
    )
    answers = {
        word
        for word in re.findall(r"\b[A-Z][A-Z_]+\b", header(BODIES[name]).partition("Returns")[2])
        if re.search(rf"'{word}:?'", code(body))
    }
    given = set(re.findall(r"\b[A-Z][A-Z_]+\b", replies))
    assert answers <= given
    assert given - answers <= {"FAILED", "QUEUED"}
    assert ("FENCED" in given) is (name in FENCED)


# --- history ---------------------------------------------------------------------------------------------------------


def grammar(line: str) -> str:
    """Return the pattern of a line of the history."""
    words = [r".*" if word == "<ids...>" else r"\S+" if word[0] == "<" else re.escape(word) for word in line.split()]
    return " ".join(words)


def test_every_kind_of_line_is_listed_with_the_scripts_that_write_it() -> None:
    kinds = {line.split()[1] for line, _ in LINES}
    assert set(re.findall(r"\bev\((?:id|'-'), '(\w+)'", ALL_LUA)) == kinds
    for line, writers in LINES:
        kind = line.split()[1]
        pieces = {piece for piece, text in PIECES.items() if f"'{kind}'" in text and "ev(" in text}
        found = {name for name, body in BODIES.items() if re.search(rf"\bev\((?:id|'-'), '{kind}'", code(body))}
        found |= {name for name, body in BODIES.items() if pieces & set(used(body))}
        if writers == "all that end a request":
            assert found == {name for name, body in BODIES.items() if "finish" in used(body)}
        else:
            assert found == set(writers.split(", ")), line


def test_scripts_without_a_history_are_named() -> None:
    silent = {name for name, body in BODIES.items() if "emit(" not in code(body)}
    sentence = re.search(r"([a-z_, ]+) and ([a-z_]+) write\s+nothing", section("History").replace("\n", " "))
    assert sentence
    assert silent == {*re.findall(r"[a-z_]+", sentence[1]), sentence[2]}


# --- a whole life ----------------------------------------------------------------------------------------------------


class Story:
    """A queue in which all happens once; after every step each key is compared with the table."""

    def __init__(self, q: Queue) -> None:
        self.q = q
        self.seen: set[str] = set()

    def look(self) -> None:
        """Compare every key with its line of the table."""
        for name, (kind, has_ttl) in shapes(self.q.redis, self.q.keys.prefix).items():
            row = row_of(name)
            self.seen.add(row.key)
            assert (kind, has_ttl) == (row.type, row.ttl != "none"), name

    def run(self) -> None:
        """Let all happen."""
        for step in (
            self._begin,
            self._batch,
            self._succeed,
            self._stream,
            self._fail,
            self._lose,
            self._crash,
            self._expire,
        ):
            step()
            self.look()
        self._end()
        self.look()

    def _begin(self) -> None:
        q = self.q
        q.lead()
        q.store.run(s.incarnate())
        q.tick(T + H)
        q.register(A)
        self.look()
        q.submit("a", "b", "c", tenant="t", timeout=500)

    def _batch(self) -> None:
        q = self.q
        batches.create(q)
        batches.enqueue(q)
        batches.lease(q)
        batches.write(q, b"x")
        q.submit("shed", sheddable=True)
        self.look()
        q.cancel("shed")
        batches.steer(q, "cancel")
        batches.end(q, state="cancelled")

    def _succeed(self) -> None:
        q = self.q
        q.submit("x", tenant="t")
        delivery = q.dispatch(A, "x")
        self.look()
        q.begin(A, delivery, "x")
        q.beat(A)
        q.settle(A, ok("x", delivery, first_token_us=5, text_bytes=3, prompt=1, completion=1))

    def _stream(self) -> None:
        q = self.q
        q.submit("s", stream=True)
        delivery = q.start(A, "s")
        q.store.run(s.flush(A, [s.Published("s", delivery, "n-s", 1, 0, b"H", "x")]))
        self.look()
        q.settle(A, ok("s", delivery))

    def _fail(self) -> None:
        q = self.q
        q.settle(A, settlement("a", q.start(A, "a"), "retry"))
        self.look()
        q.now += H
        q.promote()
        q.settle(A, settlement("a", q.start(A, "a"), "failure", attempt=2))
        self.look()
        q.store.run(s.retry_dead("a", "a2", "n-a2", "c"))
        q.hand_back(A, ("b", q.dispatch(A, "b")))
        q.submit("offline", priority="batch")
        q.store.run(s.make_room(q.token, A, [("offline", (asked := q.start(A, "offline")))]))
        self.look()
        q.hand_back(A, ("offline", asked))
        q.cancel("offline")
        q.store.run(s.refuse(q.token, q.waiting("b")))
        self.look()
        q.store.run(s.purge_dead(["b"]))
        q.cancel("a2")

    def _lose(self) -> None:
        q = self.q
        q.start(A, "c")
        q.store.run(s.drain("a", True))
        q.register("a:2-y")
        assert q.reclaim(A) == 0

    def _crash(self) -> None:
        q = self.q
        q.register(B)
        for inc in ("a:2-y", B):
            q.start(inc, "c")
            self.look()
            q.lose(inc, "crash", "c", obituary=b"why")
            self.look()
        assert q.dump()["result:c"]["reason"] == "poison"

    def _expire(self) -> None:
        q = self.q
        q.submit("late", "begun", timeout=1)
        q.register("c:1-x")
        delivery = q.dispatch("c:1-x", "begun")
        q.tick(2 * H, "c:1-x")
        assert q.begin("c:1-x", delivery, "begun") == ["LATE"]
        assert q.expire() == ["late"]
        q.submit("twice")
        q.redis.set(q.keys.result("twice"), "succeeded|n|d|twice|1||2|0||||0|", ex=9)
        q.cancel("twice")
        q.now -= 1
        q.lead()

    def _end(self) -> None:
        q = self.q
        q.redis.delete(q.keys.result("twice"))
        q.cancel("twice")
        q.store.run(s.purge_dead(["c"]))
        q.store.run(s.deregister("c:1-x"))
        q.store.run(s.resign(q.token))
        q.store.run(s.set_model("other", b"card"))
        q.store.run(s.set_tenant("t", {"weight": "2"}))
        assert q.store.run(s.agree(3, tickets=1)).word == "OK"
        q.store.read(reads.bell(q.keys, 0.01))


@pytest.fixture
def story(bare: Queue) -> Story:
    """A queue in which all has happened, and nothing is left to do."""
    bare.redis.hset(bare.keys.tenants, "t:max_waiting", 100)
    told = Story(bare)
    told.run()
    return told


def test_every_key_is_as_the_table_says_at_every_step(story: Story) -> None:
    assert {row.key for row in KEY_ROWS if row.type != "none"} - story.seen == set()


def test_in_the_end_only_what_is_for_good_has_no_ttl(story: Story) -> None:
    found = shapes(story.q.redis, story.q.keys.prefix)
    left = {name for name, (_, has_ttl) in found.items() if not has_ttl}
    for_good = {row.key for row in KEY_ROWS if row.life.startswith("for good")}
    # The bytes of results count until the results have lapsed.
    assert {name for name in left - for_good if not name.startswith("kept")} == set()
    assert for_good - left == set()
    assert "bell" not in found


def test_the_history_speaks_as_the_page_says(story: Story) -> None:
    patterns = {line: grammar(line) for line, _ in LINES}
    spoken = set()
    for script, _, _, *lines in story.q.dump()["events"]:
        for line in lines:
            [kind] = [known for known, pattern in patterns.items() if re.fullmatch(pattern, line)]
            writers = dict(LINES)[kind]
            assert writers == "all that end a request" or script in writers.split(", ")
            spoken.add(kind)
    assert spoken == set(patterns)


def test_who_acted_is_named_as_the_page_says(story: Story) -> None:
    by = {script: who for script, _, who, *_ in story.q.dump()["events"]}
    assert {by["submit"], by["cancel"], by["retry_dead"]} == {"-"}
    assert {by["dispatch"], by["promote"], by["reclaim"], by["expire"], by["refuse"], by["resign"]} == {story.q.token}
    assert by["lead"] == "s:1"
    assert by["drain"] == "a"
    assert {by["begin"], by["settle"], by["hand_back"], by["report"], by["deregister"]} <= {A, B, "a:2-y", "c:1-x"}


def test_what_was_submitted_is_what_ended(story: Story) -> None:
    counts = story.q.dump()["counts"]
    outcomes = sum(counts.get(state, 0) for state in ("succeeded", "failed", "expired", "cancelled"))
    assert counts["submitted"] == outcomes
    assert "waiting" not in counts
