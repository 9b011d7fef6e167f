"""Shared objects that were made of models: loading and calling them."""

from __future__ import annotations

import ctypes
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import SecateurError
from .schedule import ALIGNMENT
from .threads import use_threads

Array = Any

_SERVICES = (
    "TVMBackendAllocWorkspace",
    "TVMBackendFreeWorkspace",
    "TVMBackendParallelLaunch",
    "TVMBackendParallelBarrier",
)
"""What kernels call, through pointers of the same names after two underscores."""


class Library:
    """One compiled graph. `metadata` is what the compiler wrote into it."""

    def __init__(self, path: Path, threads: int) -> None:
        self._threads = threads
        library = load_library(path.resolve())
        self._run = library.secateur_run
        pointers = ctypes.POINTER(ctypes.c_void_p)
        self._run.argtypes = [pointers, pointers, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        text = ctypes.addressof(ctypes.c_char.in_dll(library, "secateur_metadata"))
        self.metadata: dict[str, Any] = json.loads(ctypes.string_at(text))
        self._arena = aligned(int(self.metadata["arena_bytes"]))
        self._calls = len(self.metadata["calls"])
        self._outputs = [
            (o["name"], tuple(o["shape"]), np.dtype(o["dtype"])) for o in self.metadata["outputs"]
        ]
        self._names = [i["name"] for i in self.metadata["inputs"]]
        self._input_pointers = (ctypes.c_void_p * len(self._names))()
        self._output_pointers = (ctypes.c_void_p * len(self._outputs))()

    def invoke(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on arrays of the right types and shapes."""
        return self._invoke(feeds, None)

    def time_calls(self, feeds: Mapping[str, Array]) -> list[float]:
        """Run as `invoke` does; the seconds of each call."""
        seconds: list[float] = []
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
        use_threads(self._threads)
        arena, count = self._arena.ctypes.data, self._calls
        status = 0
        if seconds is not None:
            for index in range(count):
                start = time.perf_counter()
                status = status or self._run(inputs, outputs, arena, index, index + 1)
                seconds.append(time.perf_counter() - start)
        status = status or self._run(
            inputs, outputs, arena, 0 if seconds is None else count, count + 1
        )
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
        library = ctypes.CDLL(str(path))
    else:
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            library = ctypes.CDLL(shutil.copy(path, folder))
    for name, address in _services().items():
        try:
            ctypes.c_void_p.in_dll(library, f"__{name}").value = address
        except ValueError:  # no kernel of this library calls it
            continue
    return library


@functools.cache
def _services() -> dict[str, int | None]:
    from tvm.libinfo import find_libtvm_runtime

    runtime = ctypes.CDLL(find_libtvm_runtime())
    return {
        name: ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value for name in _SERVICES
    }
