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
        """Run on arrays of the right types and shapes."""
        with self._lock:
            return self._invoke(feeds, None)

    def time_calls(self, feeds: Mapping[str, Array]) -> list[float]:
        """Run as `invoke` does; the seconds of each call."""
        seconds: list[float] = []
        with self._lock:
            self._invoke(feeds, seconds)
        return seconds

    def _invoke(self, feeds: Mapping[str, Array], seconds: list[float] | None) -> dict[str, Array]:
        inputs, outputs = self._input_pointers, self._output_pointers
        arrays = [feeds[name] for name in self._names]
        for index, array in enumerate(arrays):
            if not array.flags.c_contiguous:
                array = arrays[index] = np.ascontiguousarray(array)
            inputs[index] = _address(array)
        results = {}
        for index, (name, shape, dtype) in enumerate(self._outputs):
            result = results[name] = np.empty(shape, dtype)
            outputs[index] = _address(result)
        common = inputs, outputs, self._arena_pointer, self._threads
        count = self._calls
        status = 0
        if seconds is not None:
            for index in range(count):
                start = time.perf_counter()
                status = status or self._run(*common, index, index + 1)
                seconds.append(time.perf_counter() - start)
        status = status or self._run(*common, 0 if seconds is None else count, count + 1)
        if status:
            raise SecateurError("a kernel failed: not enough memory")
        return results


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
