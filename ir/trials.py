"""Trials: runs in ONNX Runtime that may end the process, in a process of their own.

Some of its kernels take for granted what inference would have refused, had it known the shapes:
an input of no rank, an empty one. What then ends the process is an error here.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import TensorProto

from .graph import Node, Value
from .model import Model
from .tensor import Array
from .trial_process import Interface

_START = "import sys; sys.path[:] = {path!r}; from {package}.trial_process import main; main()"


def may_end_process(model: Model) -> bool:
    """Whether ONNX Runtime may end its process where it runs a model.

    It doesn't where each value's number of axes is known, none is known to be empty, and no
    integers are divided by what only a run knows.
    """
    if model.functions:
        return True
    return any(
        not all(map(_has_elements, (*node.inputs, *node.outputs))) or _divides_integers(node, model)
        for node in model.all_nodes()
    )


def _has_elements(value: Value | None) -> bool:
    return value is None or (value.shape is not None and 0 not in value.shape)


def _divides_integers(node: Node, model: Model) -> bool:
    """The lowest integer by -1, say, which some CPUs trap at."""
    if node.op_type not in ("Div", "Mod"):
        return False
    divisor = node.input(1)
    return divisor is not None and divisor.dtype in _TRAPPED and model.constant(divisor) is None


_TRAPPED = (TensorProto.UNDEFINED, TensorProto.INT32, TensorProto.INT64)


class TrialSession:
    """What stands for an `onnxruntime.InferenceSession` whose model runs in another process.

    Where that process ends, the next run has a new one.
    """

    def __init__(self, source: bytes | str, *, optimize: bool, threads: int) -> None:
        self._request = {"source": source, "optimize": optimize, "threads": threads}
        self._number = next(_numbers)
        self._process: _Process | None = None
        self.interface: Interface = self._load()
        weakref.finalize(self, _gone.append, self._number)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Any]:
        """As `InferenceSession.run`. Raises RuntimeError, also where the process ends."""
        if self._process is not _current():
            if isinstance(self._request["source"], str):
                raise RuntimeError("it ended the process that had loaded the file")
            self._load()
        assert self._process is not None
        results: list[Any] = self._process.ask(self._number, (list(outputs), dict(feeds)))
        return results

    def _load(self) -> Any:
        self._process = process = _current() or _start()
        return process.ask(self._number, self._request)


class _Process:
    """A process that runs trials, until one ends it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.seconds = 0.0
        self.lock = threading.Lock()
        package = __name__.rpartition(".")[0]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path, package=package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, number: int, request: Any) -> Any:
        """The answer to a request for a session. Raises RuntimeError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            gone = [_gone.pop() for _ in range(len(_gone))]
            try:
                pickle.dump((number, request, gone), self.process.stdin, protocol=5)
                self.process.stdin.flush()
                problem, answer, self.seconds = pickle.load(self.process.stdout)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                raise RuntimeError(f"it ended its process ({self.end()})") from None
            except BaseException:  # interrupted in the middle of a message
                self.end()
                raise
        if problem is not None:
            raise RuntimeError(problem)
        return answer

    @property
    def is_alive(self) -> bool:
        return self.owner == os.getpid() and self.process.returncode is None

    def end(self) -> str:
        """End the process, if it hasn't ended itself; how it ended."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


_numbers = itertools.count()
_lock = threading.Lock()
_processes: list[_Process] = []
"""The one that runs trials now, if there is one."""


_gone: list[int] = []
"""Sessions that nobody has any more: the next request lets them go."""


def _current() -> _Process | None:
    with _lock:
        if _processes and not _processes[0].is_alive:
            _processes.clear()
        return _processes[0] if _processes else None


def _start() -> _Process:
    with _lock:
        if not _processes:
            _processes.append(_Process())
        return _processes[0]


def processor_seconds() -> float:
    """Of this process and those that it has started."""
    times, running = os.times(), _current()
    ended = times.children_user + times.children_system
    return times.user + times.system + ended + (running.seconds if running else 0.0)


@atexit.register
def _end() -> None:
    process = _current()
    if process is not None:
        process.end()
