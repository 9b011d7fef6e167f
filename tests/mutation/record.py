"""Which lines each test runs, and how long it takes: a pytest plugin.

    SECATEUR_RECORD=lines.json python -m pytest -p tests.mutation.record tests/passes

Lines that run while a test is set up belong to all tests of its file: what is shared is made once,
for the first of them. Lines that run on import belong to no test.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("ir", "passes", "backends")

OFTEN = 500
"""Calls of a function within one test that are traced."""

Lines = set[tuple[str, int]]


class Recorder:
    """Traces the package's own files: the lines that ran since they were last taken.

    A function is traced until all its lines have run, or it has been called so often that the
    rest is unlikely to.
    """

    def __init__(self) -> None:
        self.lines: Lines = set()
        self._rest: dict[CodeType, set[int]] = {}
        self._calls: collections.Counter[CodeType] = collections.Counter()
        self._names: dict[str, str] = {}
        threading.settrace(self.trace)
        sys.settrace(self.trace)

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        name = self._names.get(code.co_filename)
        if name is None:
            name = self._names[code.co_filename] = own_name(code.co_filename)
        if not name:
            return None
        rest = self._rest.get(code)
        if rest is None:
            rest = self._rest[code] = {line for _, _, line in code.co_lines() if line is not None}
        self._calls[code] += 1
        if not rest or self._calls[code] > OFTEN:
            return None
        lines = self.lines
        lines.add((name, frame.f_lineno))
        rest.discard(frame.f_lineno)

        def trace_lines(inner: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                lines.add((name, inner.f_lineno))
                rest.discard(inner.f_lineno)
                inner.f_trace_lines = bool(rest)
            return trace_lines

        return trace_lines

    def take(self) -> Lines:
        """Lines that ran since the last call; where a debugger came between, tracing goes on."""
        sys.settrace(self.trace)
        found = set(self.lines)
        self.lines.clear()
        self._rest.clear()
        self._calls.clear()
        return found


def own_name(path: str) -> str:
    """Where a file lies in the project, or nothing for a file that isn't recorded."""
    real = Path(path).resolve()
    own = real.is_relative_to(ROOT) and real.relative_to(ROOT).parts[0] in FOLDERS
    return str(real.relative_to(ROOT)) if own else ""


class Record:
    """What each test ran, as hooks of pytest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recorder = Recorder()
        self.ran: dict[str, Lines] = {}
        self.shared: dict[str, Lines] = collections.defaultdict(set)
        self.seconds: dict[str, float] = {}
        self.useless: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self.recorder.take()
        self.seconds[item.nodeid] = -processor_seconds()
        yield
        self.shared[item.nodeid.partition("::")[0]] |= self.recorder.take()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        self.ran[item.nodeid] = self.recorder.take()
        yield
        self.seconds[item.nodeid] += processor_seconds()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:  # what is skipped, or fails without a mutant, notices none
            self.useless.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        self.write()

    def write(self) -> None:
        tests = [test for test in self.ran if test not in self.useless]
        lines: dict[str, dict[int, list[int]]] = {}
        for number, test in enumerate(tests):
            for name, line in self.ran[test] | self.shared[test.partition("::")[0]]:
                lines.setdefault(name, {}).setdefault(line, []).append(number)
        seconds = [round(self.seconds[test], 3) for test in tests]
        found = {"tests": tests, "seconds": seconds, "lines": lines}
        self.path.write_text(json.dumps(found), encoding="utf-8")


def processor_seconds() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Record(Path(os.environ["SECATEUR_RECORD"])))
