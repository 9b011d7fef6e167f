"""Running compiled models: loads a shared object, checks inputs, returns numpy arrays."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import SecateurError
from .threads import check_threads, use_threads

Array = Any


class Runtime:
    """A compiled model, for one caller at a time.

    Kernels use `threads` threads, at most one for each CPU that the process may use.
    `inputs` and `outputs` map names to (dtype, shape).

    Where the model's batch dimension was symbolic, the first axis of every shape is
    None and arrays may hold any number of samples.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        path = Path(path)
        self.threads = check_threads(threads)
        if not path.is_file():
            raise SecateurError(f"{path}: no such file")
        try:
            self._open(_load(path.resolve()))
        except Exception as error:  # wrong architecture, not an artifact, missing functions
            text = " ".join(str(error).split())[-200:]
            raise SecateurError(f"{path}: not a model compiled for this machine ({text})") from None

    def _open(self, module: Any) -> None:
        import tvm
        from tvm import relax

        self._machine = relax.VirtualMachine(module, tvm.cpu())
        metadata = json.loads(str(self._machine["secateur_metadata"]()))
        self._main = self._machine["main"]
        self._inputs = metadata["inputs"]
        self._outputs = metadata["outputs"]
        self._batched = bool(metadata["batched"])
        self.target = str(metadata["target"])
        # Inputs keep their memory, aligned as kernels need it, from run to run.
        self._tensors = [tvm.runtime.empty(i["shape"], i["dtype"]) for i in self._inputs]
        self._views = [np.from_dlpack(t) for t in self._tensors]
        self.inputs = {i["name"]: (i["dtype"], self._shown(i)) for i in self._inputs}
        self.outputs = {o["name"]: (o["dtype"], self._shown(o)) for o in self._outputs}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises SecateurError for missing, unknown or ill-shaped inputs."""
        arrays = self._check(feeds)
        if not self._batched:
            return self._invoke(arrays)
        count = arrays[0].shape[0]
        runs = [self._invoke([a[i : i + 1] for a in arrays]) for i in range(count)]
        return {name: np.concatenate([r[name] for r in runs]) for name in self.outputs}

    def _invoke(self, arrays: list[Array]) -> dict[str, Array]:
        for view, array in zip(self._views, arrays, strict=True):
            view[...] = array
        use_threads(self.threads)
        results = self._main(*self._tensors)
        return {
            o["name"]: np.array(np.from_dlpack(r))
            for o, r in zip(self._outputs, results, strict=True)
        }

    def _check(self, feeds: Mapping[str, Array]) -> list[Array]:
        unknown = [name for name in feeds if name not in self.inputs]
        if unknown:
            known = ", ".join(self.inputs)
            raise SecateurError(f"unknown input '{unknown[0]}'; the model's inputs: {known}")
        arrays = []
        count: int | None = None
        for name, (dtype, shape) in self.inputs.items():
            if name not in feeds:
                raise SecateurError(f"input '{name}' is missing")
            array = np.asarray(feeds[name])
            if str(array.dtype) != dtype:
                raise SecateurError(f"input '{name}': {array.dtype} given, {dtype} expected")
            fits = len(array.shape) == len(shape) and all(
                e is None or e == g for e, g in zip(shape, array.shape, strict=True)
            )
            if not fits:
                raise SecateurError(
                    f"input '{name}': shape {list(array.shape)} given, "
                    f"{[d if d is not None else 'any' for d in shape]} expected"
                )
            if self._batched:
                if array.shape[0] < 1 or count not in (None, array.shape[0]):
                    raise SecateurError(f"input '{name}': {array.shape[0]} samples given")
                count = array.shape[0]
            arrays.append(array)
        return arrays

    def _shown(self, entry: Mapping[str, Any]) -> tuple[int | None, ...]:
        shape: tuple[int | None, ...] = tuple(entry["shape"])
        return (None, *shape[1:]) if self._batched else shape


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
