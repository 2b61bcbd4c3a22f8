"""What a training run shows and records while it works: a bar on stderr, and one JSON line per epoch."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hce_engine.errors import WriteError

from . import distributed
from .checkpoint import write_bytes


class TrainingProgress:
    """A progress bar per phase, on stderr; silent with ``enabled=False`` and plain lines where there is no terminal.

    Of several processes that train one network only the first shows anything.
    """

    def __init__(self, enabled: bool = True) -> None:
        enabled = enabled and distributed.is_first()
        self._progress = Progress(
            TextColumn("{task.description:<9}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=Console(stderr=True), disable=not enabled, transient=True,
        )
        self._enabled = enabled
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def phase(self, name: str, steps: int, done: int = 0) -> None:
        """Starts the bar of one phase; ``done`` steps were made before a resume."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=steps, completed=done, note="")

    def at(self, done: int, note: str) -> None:
        """``done`` steps of the phase are made."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, note=note)

    def line(self, text: str) -> None:
        if self._enabled:
            self._progress.console.print(text, highlight=False)


class MetricsLog:
    """``metrics.jsonl``: one object per finished epoch, with at least ``phase`` and ``epoch``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """The whole records; a line cut short by a crash is not one."""
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def rewind(self, phase: str, epoch: int) -> None:
        """Forgets ``phase`` from ``epoch`` on: a resumed run writes these lines again."""
        if self.path.exists():
            kept = [r for r in self.lines() if not (r["phase"] == phase and r["epoch"] >= epoch)]
            write_bytes(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line, of several processes the first one's; raises WriteError when the disk is full."""
        if not distributed.is_first():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise WriteError(f"writing {self.path}", expected="a writable file with free space", got=error.strerror or str(error),
                             fix="free some space and run the same command: it goes on from the last whole epoch") from None
