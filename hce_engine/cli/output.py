"""What commands show and write: tables on stdout, progress on stderr, JSON into files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..atomic import atomic_write

SCHEMA_VERSION = 1


def write_json(path: Path | None, command: str, values: Mapping[str, Any]) -> None:
    """Writes the result of ``command`` to ``path``, whole or not at all; ``-`` is stdout, None is nowhere."""
    if path is None:
        return
    document = {"schema_version": SCHEMA_VERSION, "command": command, **values}
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with atomic_write(path) as file:
        file.write(text.encode())


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], quiet: bool = False) -> None:
    """A table on stdout; the first column is text, the others are aligned to the right."""
    if quiet:
        return
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    # A file or a pipe has no width; rows must not be broken there.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


def say(text: str) -> None:
    """One line on stderr: notes that are not the result."""
    print(text, file=sys.stderr)


class Bar:
    """One progress bar on stderr, silent where stderr is no terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int) -> None:
        self._progress.advance(self._task, steps)


@contextmanager
def progress_bar(text: str, total: int | None) -> Iterator[Bar]:
    """A bar over ``total`` images (None: unknown)."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(text, total=total))


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def amount(value: float, units: Sequence[str] = ("", " k", " M", " G")) -> str:
    """1234567 -> ``1.23 M``; three significant digits, factors of 1000."""
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 and float(value).is_integer() else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}{units[power]}"
