"""What people see: tables on stdout, progress on stderr (only on a terminal)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

import click
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PIPE_WIDTH = 200
"""Columns of output that goes to no terminal: tables there keep their lines whole."""


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1
) -> None:
    """A table on stdout; the first `text_columns` are text, the rest numbers."""
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_json(content: object) -> None:
    from ..report import to_json

    click.echo(to_json(content), nl=False)


class StageProgress:
    """Shows the stages of a run (a `pipeline.Observer`); silent where stderr is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="*"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> StageProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, stage: str) -> None:
        self._current = self._progress.add_task(stage, total=None)

    def end(self) -> None:
        self._progress.update(self._current, total=1, completed=1)
