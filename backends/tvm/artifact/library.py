"""Loading the shared objects that models are compiled to, and calling them."""

from __future__ import annotations

import _ctypes
import ctypes
import dataclasses
import json
import math
import os
import shutil
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....ir.errors import SecateurError
from ....ir.scratch import scratch_folder
from ....ir.tensor import Array
from ..faults import CALL_SHIFT, Fault, explain, refusal
from ..plan.memory import ALIGNMENT
from ..targets import missing_flags
from .caches import HeldMemory

_POINTERS = ctypes.POINTER(ctypes.c_void_p)
_SIZES = ctypes.POINTER(ctypes.c_int64)
_RUN_TYPES = (_POINTERS, _POINTERS, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int)
_RUN = ctypes.CFUNCTYPE(ctypes.c_int, *_RUN_TYPES)
_RUN_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, *_RUN_TYPES, _SIZES)
_RUN_DECIDED = ctypes.CFUNCTYPE(ctypes.c_int, *_RUN_TYPES, _SIZES, _SIZES)
_SHAPES = ctypes.CFUNCTYPE(ctypes.c_int, _SIZES, _SIZES, _SIZES)
_LEVEL = ctypes.CFUNCTYPE(ctypes.c_int)


class Library:
    """One compiled graph. `metadata` is what the compiler wrote into it of the `level` that is
    run here, a target's name."""

    def __init__(self, path: Path, threads: int) -> None:
        self._threads = threads
        library = self._library = load_library(path)
        # By its address: a function that the library hands out refers to itself, and would
        # keep the library until garbage is collected.
        run = _ctypes.dlsym(library._handle, "secateur_run")
        text = ctypes.addressof(ctypes.c_char.in_dll(library, "secateur_metadata"))
        self.metadata: dict[str, Any] = json.loads(ctypes.string_at(text))
        self.level = str(self.metadata["target"])
        if "levels" in self.metadata:
            self._take_level(_LEVEL(_ctypes.dlsym(library._handle, "secateur_level"))())
        self._others = (threads - 1) * int(self.metadata["scratch_bytes"])
        self._given: ctypes.Array[ctypes.c_int64] | None = None
        self._found: ctypes.Array[ctypes.c_int64] | None = None
        self._arena: Array | None = None
        if "size_checks" in self.metadata:
            self._run = (_RUN_DECIDED if "data_sizes" in self.metadata else _RUN_OPEN)(run)
            self._shapes = _SHAPES(_ctypes.dlsym(library._handle, "secateur_shapes"))
        else:
            self._run = _RUN(run)
            self._take_arena(int(self.metadata["arena_bytes"]))
        self._calls = len(self.metadata["calls"])
        self._outputs = [
            (o["name"], tuple(o["shape"]), np.dtype(o["dtype"])) for o in self.metadata["outputs"]
        ]
        self._names = [i["name"] for i in self.metadata["inputs"]]
        self.renew_lock()
        _libraries.add(self)
        self._input_pointers = (ctypes.c_void_p * len(self._names))()
        self._output_pointers = (ctypes.c_void_p * len(self._outputs))()

    def _take_level(self, level: int) -> None:
        """Be what an artifact of several levels is here. Raises SecateurError for none."""
        names = [str(own["target"]) for own in self.metadata["levels"]]
        if level < 0:
            least = self.metadata["levels"][-1]
            lacking = missing_flags(frozenset(map(str, least["cpu_flags"])))
            raise SecateurError(
                f"compiled for {', '.join(names)}, but this machine's CPU lacks "
                f"{', '.join(lacking) or 'instructions'} of the last"
            )
        shared = {key: value for key, value in self.metadata.items() if key != "levels"}
        self.metadata, self.level = {**self.metadata["levels"][level], **shared}, names[level]

    def renew_lock(self) -> None:
        """Forget who runs this: in a new process nobody does."""
        self._lock = threading.Lock()

    def invoke(
        self, feeds: Mapping[str, Array], held: HeldMemory | None = None
    ) -> dict[str, Array]:
        """Run on arrays of the right types and shapes; of what is `held` results are where it is.

        Raises SecateurError for what arrays hold.
        """
        with self._lock:
            try:
                _arrays, results = self._bind(feeds, held)
            except MemoryError as error:
                raise SecateurError(
                    f"inputs of these sizes take too much memory: {error}"
                ) from None
            self._make_calls(0, self._calls + 1)
            return results if self._found is None else self._cut(results)

    def time_calls(self, feeds: Mapping[str, Array]) -> list[float]:
        """Run as `invoke` does; the seconds of each call, without what calling from here takes."""
        seconds = []
        with self._lock:
            kept = self._bind(feeds)
            nothing = float("inf")
            for _ in range(3):
                start = time.perf_counter()
                self._make_calls(0, 0)
                nothing = min(nothing, time.perf_counter() - start)
            for index in range(self._calls):
                start = time.perf_counter()
                self._make_calls(index, index + 1)
                seconds.append(max(time.perf_counter() - start - nothing, 0.0))
            del kept
        return seconds

    def _bind(
        self, feeds: Mapping[str, Array], held: HeldMemory | None = None
    ) -> tuple[list[Array], dict[str, Array]]:
        """Point at inputs and results. What is returned must live as long as calls do."""
        inputs = {} if held is None else held.inputs
        arrays = [
            inputs[name][0] if name in inputs else np.asarray(feeds[name], order="C")
            for name in self._names
        ]
        for index, array in enumerate(arrays):
            self._input_pointers[index] = _address(array)
        shapes = [shape for _, shape, _ in self._outputs]
        if "size_checks" in self.metadata:
            pairs = zip(self._names, arrays, strict=True)
            given = [inputs[name][1] if name in inputs else array.shape for name, array in pairs]
            shapes = self._find_shapes(given, 0 if held is None else held.capacity)
        results = {}
        for index, ((name, _, dtype), shape) in enumerate(zip(self._outputs, shapes, strict=True)):
            if held is not None and name in held.outputs:
                result = results[name] = held.outputs[name][tuple(map(slice, shape))]
            else:
                result = results[name] = np.empty(shape, dtype)
            self._output_pointers[index] = _address(result)
        return arrays, results

    def _find_shapes(
        self, given: Sequence[tuple[int, ...]], capacity: int
    ) -> list[tuple[int, ...]]:
        """The shapes of the outputs for those of the inputs, and memory for a run."""
        sizes = [size for shape in given for size in shape]
        sizes += [capacity] * ("caches" in self.metadata)
        self._given = (ctypes.c_int64 * len(sizes))(*sizes)
        ranks = [len(shape) for _, shape, _ in self._outputs]
        found, arena = (ctypes.c_int64 * max(1, sum(ranks)))(), ctypes.c_int64()
        self._raise_if(self._shapes(self._given, found, ctypes.byref(arena)))
        self._take_arena(arena.value)
        if "data_sizes" in self.metadata:
            self._found = (ctypes.c_int64 * max(1, sum(ranks)))()
        dims = iter(found)
        return [tuple(next(dims) for _ in range(rank)) for rank in ranks]

    def _cut(self, results: dict[str, Array]) -> dict[str, Array]:
        """Results of the sizes that the run's data decided, without the memory for the largest."""
        assert self._found is not None
        dims = iter(self._found)
        cut = {}
        for name, shape, _ in self._outputs:
            sizes, whole = tuple(next(dims) for _ in shape), results[name]
            elements = math.prod(sizes)
            part = whole.reshape(-1)[:elements].reshape(sizes)
            cut[name] = whole if elements == whole.size and sizes == whole.shape else part.copy()
        return cut

    def _take_arena(self, nbytes: int) -> None:
        """Have an arena of at least so many bytes."""
        if self._arena is None or len(self._arena) < nbytes + self._others:
            self._arena = aligned(nbytes + self._others)
            self._arena_pointer = _address(self._arena)

    def _make_calls(self, first: int, last: int) -> None:
        """Make some calls; with `last` beyond them results are complete."""
        inputs, outputs = self._input_pointers, self._output_pointers
        arguments = (inputs, outputs, self._arena_pointer, self._threads, first, last)
        given = tuple(each for each in (self._given, self._found) if each is not None)
        self._raise_if(self._run(*arguments, *given))

    def _raise_if(self, status: int) -> None:
        """Raise SecateurError for a status that isn't 0."""
        if status & ((1 << CALL_SHIFT) - 1) == Fault.SIZE:
            check = self.metadata["size_checks"][status >> CALL_SHIFT]
            name = None if check["input"] is None else self._names[check["input"]]
            raise SecateurError(refusal(check["text"], name, check["axis"]))
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


@dataclasses.dataclass
class _Name:
    """The file that a name stands for while it is loaded, by inode and time, and its users."""

    identity: tuple[int, ...]
    users: int = 0


_loaded: dict[Path, _Name] = {}
"""The names under which something is loaded now."""

_loading = threading.RLock()
"""Reentrant, since collecting garbage in between may unload."""


def load_library(path: Path) -> ctypes.CDLL:
    """Load a shared object, also where an earlier one of this name was replaced since.

    The dynamic loader hands out what it has loaded under a name whatever has become of
    the file, so a replaced file is loaded as a copy of another name. What nobody refers to
    any more is unloaded; functions must not outlive the object that they come from.
    """
    path = path.resolve()
    with _loading:
        status = path.stat()
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
        name = _loaded.get(path, _Name(identity))
        by_name = name.identity == identity
        if by_name:
            library = ctypes.CDLL(str(path))
            _loaded[path] = name
            name.users += 1
        else:
            with scratch_folder() as folder:
                library = ctypes.CDLL(str(shutil.copy(path, folder)))
    finalizer = weakref.finalize(library, _unload, library._handle, path if by_name else None)
    finalizer.atexit = False  # threads may still run it then
    return library


def _unload(handle: int, path: Path | None) -> None:
    with _loading:
        if path is not None:
            _loaded[path].users -= 1
            if _loaded[path].users == 0:
                del _loaded[path]
        _ctypes.dlclose(handle)


_libraries: weakref.WeakSet[Library] = weakref.WeakSet()
"""Libraries whose locks a fork may find taken by threads that don't come along."""


def _renew_locks() -> None:
    global _loading
    _loading = threading.RLock()
    for library in list(_libraries):
        library.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
