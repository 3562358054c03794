"""The parts that a run is made of: its source, its ledger, its files, the ids that it saw."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest

from stoker.batch import parts
from stoker.batch.checkpoint import Checkpoint, Tally
from stoker.batch.files import Folder
from stoker.batch.flight import target
from stoker.batch.ledger import Ledger, numbers
from stoker.batch.seen import SeenIds
from stoker.batch.source import check_input, count_lines, kind_of, lines, whole_lines
from stoker.errors import InvalidRequest, StokerError

# --- source -----------------------------------------------------------------------------------------------------------


def test_lines_come_with_their_places_and_can_be_read_from_any() -> None:
    data = b"one\r\n\nthree"
    found = list(lines(io.BytesIO(data), 100))
    assert [(line.number, line.offset, line.data) for line in found] == [
        (1, 0, b"one\r\n"),
        (2, 5, b"\n"),
        (3, 6, b"three"),
    ]
    assert list(lines(io.BytesIO(data), 100, number=3, offset=6)) == found[2:]
    assert count_lines(io.BytesIO(data)) == 3
    assert count_lines(io.BytesIO(data + b"\n")) == 3


def test_a_line_over_the_limit_is_passed_over_without_being_held() -> None:
    class Watched(io.BytesIO):
        most = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            piece = super().readline(size)
            self.most = max(self.most, len(piece))
            return piece

    file = Watched(b"a\n" + b"x" * (20 << 20) + b"\nb\n")
    found = list(lines(file, 1000))
    assert [(line.number, line.data, line.size) for line in found] == [
        (1, b"a\n", 2),
        (2, None, (20 << 20) + 1),
        (3, b"b\n", 2),
    ]
    assert file.most <= 1 << 20


def test_a_line_of_just_the_limit_is_read() -> None:
    assert [line.data for line in lines(io.BytesIO(b"x" * 10 + b"\n" + b"y" * 10), 10)] == [
        b"x" * 10 + b"\n",
        b"y" * 10,
    ]
    assert [line.data for line in lines(io.BytesIO(b"x" * 12 + b"\n" + b"y" * 12), 10)] == [None, None]


FILES = {
    "gzip": (b"\x1f\x8b\x08\x00rest", "gunzip"),
    "zstandard": (b"\x28\xb5\x2f\xfdrest", "zstd"),
    "bzip2": (b"BZh91AY", "bzip2"),
    "zip": (b"PK\x03\x04rest", "zip"),
    "utf-16": ("{}".encode("utf-16"), "UTF-16"),
    "binary": (b"\x7fELF\x00\x01", "binary"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_of_lines_is_refused_saying_what_it_is(tmp_path: Path, name: str) -> None:
    data, word = FILES[name]
    path = tmp_path / "input"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=word) as caught:
        check_input(path)
    assert str(path)[:40] in str(caught.value)


def test_a_folder_a_pipe_and_nothing_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="folder"):
        check_input(tmp_path)
    with pytest.raises(InvalidRequest, match="no such file"):
        check_input(tmp_path / "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="regular file"):
        check_input(tmp_path / "pipe")


def test_the_name_says_how_lines_are_read() -> None:
    assert (kind_of(Path("a.TXT")), kind_of(Path("a.jsonl")), kind_of(Path("a"))) == ("text", "jsonl", "jsonl")


# --- ledger -----------------------------------------------------------------------------------------------------------


def test_the_low_mark_follows_the_oldest_line_that_is_not_done() -> None:
    ledger = Ledger()
    for number in range(1, 5):
        assert ledger.read(number, number * 10 - 10, 10)
    ledger.done(2)
    ledger.done(4)
    assert (ledger.number, ledger.offset, ledger.ranges(), ledger.span) == (1, 0, [[2, 2], [4, 4]], 4)
    ledger.done(1)
    assert (ledger.number, ledger.offset, ledger.ranges()) == (3, 20, [[4, 4]])
    ledger.done(3)
    assert (ledger.number, ledger.offset, ledger.ranges(), ledger.span) == (5, 40, [], 0)


def test_a_ledger_goes_on_from_any_moment_of_another_one() -> None:
    dice = random.Random(5)
    ledger, done, read = Ledger(), set(), 0
    for _ in range(3000):
        if read < 500 and dice.random() < 0.5:
            read += 1
            ledger.read(read, read * 7, 7)
        elif read > len(done):
            number = dice.choice([n for n in range(max(1, read - 40), read + 1) if n not in done] or [0])
            if number:
                ledger.done(number)
                done.add(number)
        if dice.random() < 0.02:
            again = Ledger(ledger.number, ledger.offset, numbers(ledger.ranges()))
            left = [n for n in range(again.number, read + 1) if again.read(n, n * 7, 7)]
            assert left == [n for n in range(1, read + 1) if n not in done]


# --- seen -------------------------------------------------------------------------------------------------------------


def test_an_id_belongs_to_the_first_line_that_has_it(tmp_path: Path) -> None:
    seen = SeenIds(tmp_path / "ids", 1000)
    assert [seen.first(f"id-{i}", i) for i in range(1, 1001)] == list(range(1, 1001))
    assert seen.first("id-7", 2000) == 7
    assert seen.first("id-7", 7) == 7
    seen.sync()
    seen.close()


def test_a_table_that_is_ahead_knows_a_line_again(tmp_path: Path) -> None:
    first = SeenIds(tmp_path / "ids", 10)
    for number in (1, 2, 3):
        first.first(f"c{number}", number)
    first.close()
    again = SeenIds(tmp_path / "ids", 10)
    assert [again.first(f"c{number}", number) for number in (2, 3, 4)] == [2, 3, 4]
    assert again.first("c3", 5) == 3
    again.close()


def test_a_full_page_goes_on_in_the_next_and_round_the_end(tmp_path: Path) -> None:
    seen = SeenIds(tmp_path / "ids", 1)
    for number in range(1, 1000):
        assert seen.first(f"x{number}", number) == number
    assert [seen.first(f"x{number}", 5000) for number in range(1, 1000)] == list(range(1, 1000))
    seen.close()


# --- files ------------------------------------------------------------------------------------------------------------


def wrote(files: Folder, epoch: int, before: Checkpoint, *answers: bytes, commit: bool = True) -> Checkpoint:
    writer = parts.Writer(files, epoch, before)
    for line in answers:
        writer.answer(line)
    writer.flush()
    checkpoint = Checkpoint(round=0, outputs=writer.segments("out"), errors=writer.segments("err"))
    if commit:
        writer.commit(checkpoint)
    return checkpoint


def test_only_what_a_checkpoint_counts_is_read(tmp_path: Path) -> None:
    files = Folder(tmp_path / "parts")
    first = wrote(files, 1, Checkpoint(round=0), b"a\n", b"b\n")
    wrote(files, 1, Checkpoint(round=0), b"torn", commit=False)
    assert parts.last_checkpoint(files) == first
    assert b"".join(parts.read_segments(files, first.outputs)) == b"a\nb\n"


def test_a_run_that_was_thought_dead_is_in_nobodys_way(tmp_path: Path) -> None:
    zombie, files = Folder(tmp_path / "parts"), Folder(tmp_path / "parts")
    first = wrote(zombie, 1, Checkpoint(round=0), b"a\n")
    second = wrote(files, 2, first, b"b\n")
    wrote(zombie, 1, Checkpoint(round=0), b"late\n")
    assert parts.last_checkpoint(files) == second
    assert b"".join(parts.read_segments(files, second.outputs)) == b"a\nb\n"


def test_one_run_alone_publishes_its_own_file_and_several_a_copy(tmp_path: Path) -> None:
    files = Folder(tmp_path / "parts")
    first = wrote(files, 1, Checkpoint(round=0), b"a\n")
    assert parts.merged(files, "out", first.outputs, 1) == ("out-1", 2)
    second = wrote(files, 3, first, b"b\n")
    assert parts.merged(files, "out", second.outputs, 3) == ("all-out-3", 4)
    assert parts.merged(files, "out", first.outputs, 2) == ("all-out-2", 2)
    assert parts.merged(files, "err", (), 3) == ("all-err-3", 0)


def test_a_segment_that_lost_bytes_is_no_silent_loss(tmp_path: Path) -> None:
    files = Folder(tmp_path / "parts")
    checkpoint = wrote(files, 1, Checkpoint(round=0), b"abc\n")
    (files.path / "out-1").write_bytes(b"ab")
    with pytest.raises(StokerError, match="shorter"):
        list(parts.read_segments(files, checkpoint.outputs))


def test_publishing_replaces_our_own_file_and_nobody_elses(tmp_path: Path) -> None:
    files, output = Folder(tmp_path / "parts"), tmp_path / "out.jsonl"
    for epoch, data in ((1, b"a\n"), (2, b"b\n")):
        files.append(f"out-{epoch}", data)
        parts.publish(files, f"out-{epoch}", output)
        parts.publish(files, f"out-{epoch}", output)
        assert output.read_bytes() == data
    output.unlink()
    output.write_bytes(b"yours")
    with pytest.raises(parts.OutputTaken, match=r"out\.jsonl"):
        parts.publish(files, "out-2", output)
    parts.withdraw(files, output)
    assert output.read_bytes() == b"yours"
    assert not [name for name in files.names() if name.startswith("publish-")]


def test_a_disk_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    files, output = Folder(tmp_path / "parts"), tmp_path / "out.jsonl"
    files.append("out-1", b"a\n")
    parts.publish(files, "out-1", output)
    parts.publish(files, "out-1", output)
    assert output.read_bytes() == b"a\n"


def test_a_checkpoint_survives_its_json() -> None:
    tally = Tally(succeeded=3)
    tally.errors["x"] = 2
    checkpoint = Checkpoint(
        round=1, number=5, offset=50, done=((7, 8),), outputs=(("out-1", 9),), tally=tally.to_dict(), input=(1, 2)
    )
    assert Checkpoint.from_json(checkpoint.to_json()) == checkpoint
    assert Tally.from_dict(checkpoint.tally) == tally
    with pytest.raises(StokerError, match="checkpoint"):
        Checkpoint.from_json(b'{"round":')


def test_pieces_that_end_anywhere_become_lines() -> None:
    assert list(whole_lines([b"a\nb", b"", b"c\n", b"d"])) == [b"a", b"bc", b"d"]


# --- window -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "rows", "per_s", "expected"),
    [(4096, 0, 0, 64), (4096, 128, 10, 256), (4096, 1, 900, 1800), (100, 128, 9, 100)],
)
def test_the_window_is_two_seconds_of_work_and_never_less_than_the_rows_need(
    most: int, rows: int, per_s: float, expected: int
) -> None:
    assert target(most, rows, per_s) == expected
