"""Shared objects that were made of models: loading and calling them."""

from __future__ import annotations

import ctypes
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import SecateurError
from .faults import explain
from .schedule import ALIGNMENT

Array = Any


class Library:
    """One compiled graph. `metadata` is what the compiler wrote into it."""

    def __init__(self, path: Path, threads: int) -> None:
        self._threads = threads
        library = load_library(path.resolve())
        self._run = library.secateur_run
        pointers = ctypes.POINTER(ctypes.c_void_p)
        self._run.argtypes = [pointers, pointers, ctypes.c_void_p, *[ctypes.c_int] * 3]
        text = ctypes.addressof(ctypes.c_char.in_dll(library, "secateur_metadata"))
        self.metadata: dict[str, Any] = json.loads(ctypes.string_at(text))
        self._arena = aligned(int(self.metadata["arena_bytes"]))
        self._arena_pointer = _address(self._arena)
        self._calls = len(self.metadata["calls"])
        self._outputs = [
            (o["name"], tuple(o["shape"]), np.dtype(o["dtype"])) for o in self.metadata["outputs"]
        ]
        self._names = [i["name"] for i in self.metadata["inputs"]]
        self._lock = threading.Lock()
        self._input_pointers = (ctypes.c_void_p * len(self._names))()
        self._output_pointers = (ctypes.c_void_p * len(self._outputs))()

    def invoke(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on arrays of the right types and shapes. Raises SecateurError for what they hold."""
        with self._lock:
            _arrays, results = self._bind(feeds)
            self._make_calls(0, self._calls + 1)
        return results

    def time_calls(self, feeds: Mapping[str, Array]) -> list[float]:
        """Run as `invoke` does; the seconds of each call."""
        seconds = []
        with self._lock:
            kept = self._bind(feeds)
            for index in range(self._calls):
                start = time.perf_counter()
                self._make_calls(index, index + 1)
                seconds.append(time.perf_counter() - start)
            del kept
        return seconds

    def _bind(self, feeds: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
        """Point at inputs and new results. What is returned must live as long as calls do."""
        arrays = [np.asarray(feeds[name], order="C") for name in self._names]
        for index, array in enumerate(arrays):
            self._input_pointers[index] = _address(array)
        results = {}
        for index, (name, shape, dtype) in enumerate(self._outputs):
            result = results[name] = np.empty(shape, dtype)
            self._output_pointers[index] = _address(result)
        return arrays, results

    def _make_calls(self, first: int, last: int) -> None:
        """Make some calls; with `last` beyond them results are complete."""
        inputs, outputs = self._input_pointers, self._output_pointers
        status = self._run(inputs, outputs, self._arena_pointer, self._threads, first, last)
        if status:
            index, reason = explain(status)
            call = self.metadata["calls"][index]
            operator = f" ({call['operator']})" if call["operator"] else ""
            raise SecateurError(f"node '{call['operation']}'{operator}: {reason}")


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def aligned(nbytes: int) -> Array:
    """Bytes that begin at a cache line."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -_address(memory) % ALIGNMENT
    return memory[start : start + nbytes]


_loaded: dict[Path, tuple[int, int]] = {}
"""Files loaded so far, with the inode and time of change that each had."""


def load_library(path: Path) -> ctypes.CDLL:
    """Load a shared object, also where an earlier one of this name was replaced since.

    The dynamic loader hands out what it has loaded under a name whatever has become of
    the file, so a replaced file is loaded as a copy of another name.
    """
    status = path.stat()
    identity = (status.st_ino, status.st_mtime_ns)
    if _loaded.setdefault(path, identity) == identity:
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        return ctypes.CDLL(shutil.copy(path, folder))
