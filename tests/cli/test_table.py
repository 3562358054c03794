"""The one table style: fits the terminal, cuts nothing, and is one line a row in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stoker import table
from stoker.table import Column, FittedTable, compact, milliseconds, span

WORKERS = FittedTable(
    "workers",
    (Column("name", fold=True), Column("mode", drop=1), Column("model", drop=2), Column("rows", number=True)),
    [("w0", "continuous", "llama", "1/64"), ("a-machine-with-a-long-name.example-12345", "padded", "llama", "12/64")],
)


def drawn(shown: FittedTable, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(shown.fit(width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_table_has_a_title_heads_and_rows_without_lines_between() -> None:
    assert drawn(WORKERS, 100) == [
        "workers",
        "name                                      mode        model   rows",
        "w0                                        continuous  llama   1/64",
        "a-machine-with-a-long-name.example-12345  padded      llama  12/64",
    ]


def test_where_there_is_little_room_the_least_important_columns_leave_and_names_fold() -> None:
    narrow = drawn(WORKERS, 36)
    assert "model" not in narrow[1]
    assert "mode" in narrow[1]
    narrowest = drawn(WORKERS, 24)
    assert narrowest[1].split() == ["name", "rows"]
    assert all(len(line) <= 24 for line in narrowest)
    assert "".join(line.split()[0] for line in narrowest[3:]) == WORKERS.rows[1][0], "nothing of a name is lost"
    assert "12/64" in "".join(narrowest)


def test_cells_are_never_markup() -> None:
    assert drawn(FittedTable("[red]", [Column("a")], [["[bold]x[/bold]"]]), 80)[::2] == ["[red]", "[bold]x[/bold]"]


def test_in_a_pipe_each_row_is_one_line_without_blanks_at_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table.print_tables(FittedTable("t", [Column("a"), Column("b", fold=True)], [["x", "word " * 100], ["y", "z"]]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["x  " + ("word " * 100).strip(), "y  z"]


def test_on_a_terminal_it_says_which_columns_there_was_no_room_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    table.print_tables(WORKERS)
    said = " ".join(capsys.readouterr().out.splitlines()[-2:])
    assert said == "without model: a wider terminal or a pipe has all"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (compact(0), "0"),
        (compact(9_999), "9,999"),
        (compact(10_000), "10k"),
        (compact(262_144), "262k"),
        (compact(1_500_000), "1.5M"),
        (compact(2e9), "2.0G"),
        (compact(3e12), "3.0T"),
        (milliseconds(None), "-"),
        (milliseconds(0.81), "0.8 ms"),
        (milliseconds(12.4), "12 ms"),
        (milliseconds(1234), "1.2 s"),
        (milliseconds(300_000), "5 m"),
        (span(59), "59 s"),
        (span(7200), "2 h"),
        (span(-1), "0 s"),
    ],
)
def test_values_are_short(written: str, expected: str) -> None:
    assert written == expected
