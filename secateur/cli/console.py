"""What people see: tables on stdout, progress on stderr (only on a terminal)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import click
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..ir.advance import listening
from ..ir.display import printable
from . import QUIET, TRACEBACK

PIPE_WIDTH = 200
"""Columns of output that goes to no terminal: tables there keep their lines whole."""


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1
) -> None:
    """A table on stdout; the first `text_columns` are text, the rest numbers."""
    if is_quiet():
        return
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(
            printable(name), justify="left" if index < text_columns else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)


def is_quiet() -> bool:
    """Whether results are printed as JSON only, and errors."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def say(line: str) -> None:
    """A line on stdout. Whatever in it came from a file can't do harm."""
    if not is_quiet():
        click.echo(printable(line))


def print_json(content: object) -> None:
    from ..reporting.report import to_json

    click.echo(to_json(content), nl=False)


@contextlib.contextmanager
def native_stderr_dropped() -> Iterator[None]:
    """Drops what the process writes to file descriptor 2: compilers' warnings, in C++ too.

    `sys.stderr` itself goes on to where it went before. Does nothing where there is no
    such descriptor or `sys.stderr` is something else.
    """
    stream = sys.stderr
    try:
        if stream is None or stream.fileno() != 2:
            raise OSError
        stream.flush()
        kept = os.dup(2)
    except OSError:  # also io.UnsupportedOperation, of streams without a descriptor
        yield
        return
    with open(kept, "w", buffering=1, encoding=stream.encoding, errors="replace") as copy:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        sys.stderr = copy
        try:
            yield
        finally:
            sys.stderr = stream
            copy.flush()
            os.dup2(kept, 2)


class StageProgress:
    """Shows the stages of a run (a `pipeline.Observer`); silent where stderr is no terminal.

    Within a stage, work that knows how much it is has a bar, with the time that is left.
    Warnings that native code writes meanwhile are dropped (see `native_stderr_dropped`),
    except where tracebacks are asked for.
    """

    def __init__(self) -> None:
        self._current: TaskID | None = None

    def __enter__(self) -> StageProgress:
        self._exit = contextlib.ExitStack()
        if not os.environ.get(TRACEBACK):
            self._exit.enter_context(native_stderr_dropped())
        console = Console(file=sys.stderr)
        self._progress = Progress(
            SpinnerColumn(finished_text="*"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            BarColumn(bar_width=24),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal or is_quiet(),
        )
        self._progress.start()
        self._exit.callback(self._progress.stop)
        self._exit.enter_context(listening(self._advance))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A block that is a stage of its own."""
        self.begin(name)
        yield
        self.end()

    def begin(self, stage: str) -> None:
        self._current = self._progress.add_task(printable(stage), total=None)

    def end(self) -> None:
        if self._current is not None:
            self._progress.update(self._current, total=1, completed=1)

    def _advance(self, done: int, total: int) -> None:
        if self._current is not None:
            self._progress.update(self._current, total=max(total, 1), completed=done)
