"""Shared objects for TVM's virtual machine: loading and calling them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from .threads import use_threads

Array = Any


class Library:
    """One compiled graph. `metadata` is what the compiler wrote into it."""

    def __init__(self, path: Path, threads: int) -> None:
        self._threads = threads
        self._machine = relax.VirtualMachine(_load(path.resolve()), tvm.cpu())
        self.metadata: dict[str, Any] = json.loads(str(self._machine["secateur_metadata"]()))
        self._main = self._machine["main"]
        self._outputs = [o["name"] for o in self.metadata["outputs"]]
        # Inputs keep their memory, aligned as kernels need it, from run to run.
        inputs = self.metadata["inputs"]
        self._tensors = [tvm.runtime.empty(i["shape"], i["dtype"]) for i in inputs]
        self._views = {
            i["name"]: np.from_dlpack(t) for i, t in zip(inputs, self._tensors, strict=True)
        }

    def invoke(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on arrays of the right types and shapes."""
        for name, view in self._views.items():
            view[...] = feeds[name]
        use_threads(self._threads)
        results = self._main(*self._tensors)
        return {
            name: np.array(np.from_dlpack(r))
            for name, r in zip(self._outputs, results, strict=True)
        }

    def instrument(self, watch: Callable[..., int]) -> None:
        """Call `watch` before and after each kernel (see `relax.VirtualMachine`)."""
        self._machine.set_instrument(watch)


_loaded: dict[Path, tuple[int, int]] = {}
"""Files loaded so far, with the inode and time of change that each had."""


def _load(path: Path) -> Any:
    """Load a shared object, also where an earlier one of this name was replaced since.

    The dynamic loader hands out what it has loaded under a name whatever has become of
    the file, so a replaced file is loaded as a copy of another name.
    """
    from tvm.runtime import load_module

    status = path.stat()
    identity = (status.st_ino, status.st_mtime_ns)
    if _loaded.setdefault(path, identity) == identity:
        return load_module(str(path))
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        return load_module(shutil.copy(path, folder))
