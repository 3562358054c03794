"""The one style of every table: a bold title, dim heads, no lines. Imported by commands when they have one to print.

A table fits where it goes. On a terminal the least important columns are left out until it does, then long names fold;
nothing is ever cut. Elsewhere (a pipe, a file) each row is one line, whatever its length.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2
PIPED_WIDTH = 100_000
NARROWEST = 8
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `number`: aligned right. `drop`: the highest leaves first where the width is short, 0 never does.

    `fold`: long values go on in the next line, for there is nothing shorter to say.
    """

    name: str
    number: bool = False
    drop: int = 0
    fold: bool = False


Row = Sequence[str | Text]


def make_console() -> Console:
    """Return where tables go: standard output; as wide as any row where that is no terminal, unless COLUMNS is set."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = PIPED_WIDTH
    return console


def print_tables(*tables: FittedTable) -> None:
    """Print tables, an empty line between two."""
    console = make_console()
    for number, table in enumerate(tables):
        if number:
            console.print()
        show(console, table.fit(console.width))
        kept = table.fitting(console.width)
        if left_out := [column.name for index, column in enumerate(table.columns) if index not in kept]:
            console.print(Text(f"without {', '.join(left_out)}: a wider terminal or a pipe has all", "dim"))


def show(console: Console, shown: RenderableType) -> None:
    """Print; where that is no terminal, without the blanks that fill a table's lines up."""
    if console.is_terminal:
        console.print(shown)
        return
    with console.capture() as captured:
        console.print(shown)
    for line in captured.get().splitlines():
        console.out(line.rstrip(), highlight=False)


@dataclass(frozen=True, slots=True)
class FittedTable:
    """Columns and rows, of which `fit` makes a table for some width. Cells are plain text, never markup.

    Where no column has a name there are no heads.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def fit(self, width: int) -> Group:
        """Return the title and the table for `width` characters."""
        kept = self.fitting(width)
        heads = any(column.name for column in self.columns)
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim", show_header=heads)
        for index in kept:
            column = self.columns[index]
            table.add_column(
                Text(column.name),
                justify="right" if column.number else "left",
                no_wrap=not column.fold,
                overflow="fold",
                min_width=min(self._width(index), NARROWEST) if column.fold else self._width(index),
            )
        for row in self.rows:
            table.add_row(*(_text(row[index]) for index in kept))
        # Not rich's own title, which folds to the width of the table.
        return Group(*([Text(self.title, "bold", overflow="fold")] if self.title else []), table)

    def fitting(self, width: int) -> list[int]:
        """Return which columns there is room for in `width` characters, by their places."""
        kept = list(range(len(self.columns)))
        droppable = sorted((i for i in kept if self.columns[i].drop), key=lambda i: self.columns[i].drop)
        while droppable and self._needed(kept) > width:
            kept.remove(droppable.pop())
        return kept

    def _needed(self, kept: Sequence[int]) -> int:
        widths = [min(self._width(i), NARROWEST * 2) if self.columns[i].fold else self._width(i) for i in kept]
        return sum(widths) + GAP * (len(widths) - 1)

    def _width(self, index: int) -> int:
        cells = [self.columns[index].name, *(str(row[index]) for row in self.rows)]
        return max(cell_len(line) for cell in cells for line in cell.split("\n"))


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


# --- how values are written ------------------------------------------------------------------------------------------


def span(seconds: float) -> str:
    """Return a time span in its largest unit: 5 s, 12 m, 3 h, 4 d."""
    unit = next((name for name in ("d", "h", "m") if seconds >= SECONDS[name]), "s")
    return f"{max(0, int(seconds / SECONDS[unit]))} {unit}"


def milliseconds(value: float | None) -> str:
    """Return a duration with two or three digits that count: 0.8 ms, 12 ms, 1.2 s, 5 m; - where there is none."""
    if value is None:
        return "-"
    if value < 10:
        return f"{value:.1f} ms"
    if value < 1000:
        return f"{value:.0f} ms"
    return f"{value / 1000:.1f} s" if value < 100_000 else span(value / 1000)


def compact(number: float) -> str:
    """Return a number in at most five characters: 950, 9,500, 95k, 9.5M."""
    if number < 10_000:
        return f"{number:,.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if number < size * 999.5:
            return f"{number / size:.1f}{unit}" if number < size * 9.95 else f"{number / size:.0f}{unit}"
    return f"{number / 1e12:.1f}T"
