"""The command line. Each command lives in a module that is imported when it is run."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import os
import resource
import shlex
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from ..ir.display import printable
from ..ir.errors import RuleError, SecateurError
from .signals import interruptible

COMMANDS = {
    "optimize": "Simplify, prune, quantize and compile a model for a target.",
    "simplify": "Fold constants and remove what a model computes for nothing.",
    "prune": "Remove channels from a model.",
    "quantize": "Quantize a model to int8.",
    "compile": "Compile a model for a target.",
    "report": "Make a run's report.html again, and open it.",
    "inspect": "Show what a model is made of and what it costs.",
    "print": "Print a model as text, or what passes change in it.",
    "verify": "Check that a model is well formed and runs.",
    "compare": "Compare the outputs of two models or artifacts.",
    "data": "Look at samples, and whether a model was made for them.",
    "benchmark": "Measure the latency of models and artifacts, in turns.",
    "completion": "Print a script that completes commands in a shell.",
    "doctor": "Show versions, CPU, compilers and cache, for bug reports.",
    "targets": "List the targets that models can be compiled for.",
    "recipe": "Write and check recipes: files with options of optimize.",
    "cmake-dir": "Print the folder of the CMake package.",
    "bazel-dir": "Print the folder of the Bazel rules.",
}
"""Every command and its help, so that listing them imports none of them."""

TRACEBACK = "SECATEUR_TRACEBACK"
"""Environment variable that shows a failure's traceback, and native code's warnings."""


COMMAND = "secateur.command"
"""Key of the command line in a context's `meta`."""


QUIET = "secateur.quiet"
"""Key of whether only errors are printed."""


class _Commands(click.Group):
    """Imports a command when it is run, and turns failures into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name.replace('-', '_')}", __name__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[COMMAND] = shlex.join(["secateur", *args])
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"No such command '{printable(name)}'.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with interruptible() as interruption, readable_warnings():
            try:
                return self._run(ctx)
            except BaseException as error:
                # Native code may have made another error of the interruption.
                if interruption.number and not isinstance(error, click.exceptions.Exit):
                    click.echo(f"Error: {interruption.message}", err=True)
                    raise click.exceptions.Exit(interruption.exit_code) from None
                raise

    def _run(self, ctx: click.Context) -> Any:
        limit = address_space()
        if limit is not None and limit < LEAST_ADDRESS_SPACE:
            least = f"at least {LEAST_ADDRESS_SPACE >> 20} MiB are needed"
            raise click.ClickException(f"{_limited_to(limit)}: {least}")
        try:
            return super().invoke(ctx)
        except (SecateurError, MemoryError, OSError) as error:
            if os.environ.get(TRACEBACK) or isinstance(error, BrokenPipeError):
                raise
            text = "not enough memory" if isinstance(error, MemoryError) else _one_line(error)
            known = isinstance(error, SecateurError) and not isinstance(error, RuleError)
            raise click.ClickException(text + ("" if known else memory_limit())) from error
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except Exception as error:
            if os.environ.get(TRACEBACK):
                raise
            raise click.ClickException(
                f"internal error, a bug in secateur: {type(error).__name__}: {_one_line(error)}"
                f"{memory_limit()} (set {TRACEBACK}=1 to see where)"
            ) from error


@contextlib.contextmanager
def readable_warnings() -> Iterator[None]:
    """Show Python's warnings, which may quote names of a model, as lines without controls."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        click.echo(f"Warning: {printable(str(message))}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


class _Lines(logging.Formatter):
    """Records as lines without controls: names of a model are not to be trusted."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _ToStderr(logging.Handler):
    """Writes to what `sys.stderr` is when a record comes: a run with a bar puts another there."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")  # `print` is the command's module here


def log_to(ctx: click.Context, handler: logging.Handler, level: int) -> None:
    """Hand what the package's loggers say from a level on to a handler until the command ends."""
    logger = logging.getLogger("secateur")
    timed = isinstance(handler, logging.FileHandler)
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s" if timed else "%(name)s: %(message)s"
    handler.setFormatter(_Lines(text))
    handler.setLevel(level)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level, before or level))

    def restore() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()

    ctx.call_on_close(restore)


LEAST_ADDRESS_SPACE = 400 * 2**20
"""Bytes of address space below which NumPy or ONNX Runtime may end the process while they load."""


def address_space() -> int | None:
    """Bytes that the process's address space is limited to, if it is."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def memory_limit() -> str:
    """What to say of a limit on the process's address space, which libraries bear badly."""
    limit = address_space()
    return "" if limit is None else f"; {_limited_to(limit)}"


def _limited_to(limit: int) -> str:
    return f"the address space is limited to {limit >> 20} MiB (ulimit -v)"


def _one_line(error: BaseException) -> str:
    named = isinstance(error, OSError) and error.strerror and error.filename is not None
    text = f"{error.filename}: {error.strerror}" if named else str(error)  # type: ignore[attr-defined]
    text = printable(" ".join(text.split()))
    return text or type(error).__name__


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secateur")
@click.option(
    "-v",
    "--verbose",
    count=True,
    help="Say on stderr what ran and what it did; -vv: what is decided, node by node.",
)
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Append what is decided, and where, to a file.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print results of --json, and errors, only.")
@click.pass_context
def main(ctx: click.Context, verbose: int, log_file: str | None, quiet: bool) -> None:
    """Prune, quantize and compile ONNX models for edge devices."""
    if verbose and quiet:
        raise click.UsageError("Give --verbose or --quiet, not both.")
    ctx.meta[QUIET] = quiet
    if verbose:
        log_to(ctx, _ToStderr(), logging.DEBUG if verbose > 1 else logging.INFO)
    if log_file is not None:
        log_to(ctx, logging.FileHandler(log_file, encoding="utf-8"), logging.DEBUG)
