"""Running compiled models: loads an artifact, checks inputs, returns numpy arrays."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ....ir.errors import SecateurError
from ....ir.scratch import restore_interrupted
from ....ir.tensor import Array
from ..targets import missing_flags
from .caches import Caches, GrowingInput, HeldMemory, Shape
from .container import Container, is_container
from .library import Library


class Runtime:
    """A compiled model. Callers in several threads take turns.

    Kernels use `threads` threads, at most one for each CPU that the process may use.
    `inputs` and `outputs` map names to (dtype, shape), where None stands for what is not
    known beforehand, and text for open sizes: the names of those that inputs give, and how those
    of outputs follow from them. A value that is no tensor has the dtype None. `target` is what
    the model was compiled for, `level` the one of several targets whose code this CPU runs.

    Tensors of a sequence among the inputs are called `name[0]`, `name[1]`, ...; `run` takes them
    each by itself, or as a list under `name`. A sequence among the outputs is a list, an optional
    without an element None; `sequences` says of these, by name, what their elements are.

    Where the model has a batch, the first axis of the inputs and outputs that have samples
    is None, and arrays may hold any number of samples, none too, but all the same.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        path = Path(path)
        self.threads = _check_threads(threads)
        if not path.exists():
            restore_interrupted(path.parent)
        if not path.is_file():
            problem = "not a regular file" if path.exists() else "no such file"
            raise SecateurError(f"{path}: {problem}")
        try:
            self._program = _open(path, self.threads)
            metadata = self._program.metadata
            self._inputs = metadata["inputs"]
            self._outputs = metadata["outputs"]
            self._sliced = {i["name"] for i in self._inputs if i["batched"]}
            self._pieces = {o["name"] for o in self._outputs if o["batched"]}
            self.target, self.level = str(metadata["target"]), self._program.level
            self._sequences = _sequences(metadata)
            _check_machine(self.target, frozenset(map(str, metadata.get("cpu_flags", ()))))
        except SecateurError as error:
            raise SecateurError(f"{path}: {error}") from None
        except Exception as error:  # wrong architecture, not an artifact, missing functions
            text = " ".join(str(error).split())[-200:]
            raise SecateurError(f"{path}: not a model compiled for this machine ({text})") from None
        self.inputs = {i["name"]: (i["dtype"], self._shown(i)) for i in self._inputs}
        outputs: dict[str, Described] = {
            o["name"]: (o["dtype"], self._shown(o)) for o in self._outputs
        }
        self.sequences: dict[str, tuple[Described, ...] | None] = {
            name: None if names is None else tuple(outputs.pop(each) for each in names)
            for name, names in self._sequences.items()
        }
        self.outputs = {**outputs, **dict.fromkeys(self.sequences, (None, None))}

    def caches(self, capacity: int) -> Caches:
        """Memory for the inputs that outputs continue, with room for so many rows of each.

        Raises SecateurError where the model has none, or capacity is no size.
        """
        known = self._program.metadata.get("caches", ())
        if not known:
            raise SecateurError("no output of the model is an input and rows behind it")
        if not 1 <= capacity < 2**31:
            raise SecateurError(f"capacity: {capacity} is no number of rows")
        growing = []
        for each in known:
            dtype, shape = self.inputs[each["input"]]
            assert dtype is not None
            assert shape is not None
            growing.append(GrowingInput(each["input"], each["output"], each["axis"], dtype, shape))
        return Caches(growing, capacity)

    def run(self, feeds: Mapping[str, Array], caches: Caches | None = None) -> dict[str, Array]:
        """Run once. What `caches` hold are inputs, too; the outputs that continue them are left
        there and aren't among the results.

        Raises SecateurError for missing, unknown or ill-shaped inputs, and where a node can't
        take the values that it reads.
        """
        given = self._spread(feeds)
        if caches is not None:
            shapes = {name: shape for name, (_, shape) in self.inputs.items()}
            caches.take_memory(given, shapes)
            given = {**given, **caches}
        results: dict[str, Any] = self._run_tensors(self._check(given), caches)
        if caches is not None:
            caches.grow(results)
            for name in caches.outputs:
                del results[name]
        for name, names in self._sequences.items():
            results[name] = None if names is None else [results.pop(each) for each in names]
        return results

    def _spread(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors of lists that are given for sequences, by their own names."""
        found: dict[str, Array] = {}
        for name, given in feeds.items():
            if name in self.inputs or not isinstance(given, (list, tuple)):
                found[name] = given
                continue
            count = sum(1 for _ in itertools.takewhile(self.inputs.__contains__, _places(name)))
            if count != len(given) and count:
                raise SecateurError(f"input '{name}': {len(given)} tensors given, not {count}")
            found.update(zip(_places(name), given, strict=False) if count else {name: given})
        return found

    def _run_tensors(
        self, arrays: dict[str, Array], caches: Caches | None = None
    ) -> dict[str, Array]:
        if not self._sliced:
            return self._invoke(arrays, None if caches is None else caches.held())
        count = next(len(a) for n, a in arrays.items() if n in self._sliced)
        if count == 0:
            return self._run_no_sample(arrays)
        runs = [self._run_sample(arrays, index, caches) for index in range(count)]
        return {
            name: np.concatenate([r[name] for r in runs]) if name in self._pieces else array
            for name, array in runs[0].items()
        }

    def _invoke(self, arrays: Mapping[str, Array], held: HeldMemory | None) -> dict[str, Array]:
        if held is None:
            return self._program.invoke(arrays)
        assert isinstance(self._program, Library)
        return self._program.invoke(arrays, held)

    def _run_sample(
        self, arrays: Mapping[str, Array], index: int, caches: Caches | None = None
    ) -> dict[str, Array]:
        sample = {n: a[index : index + 1] if n in self._sliced else a for n, a in arrays.items()}
        try:
            return self._invoke(sample, None if caches is None else caches.held(index))
        except SecateurError as error:
            raise SecateurError(f"sample {index}: {error}") from None

    def _run_no_sample(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Empty results; those that don't depend on samples, or of unknown shape, of a zero one."""
        shapes = {o["name"]: o["shape"] for o in self._outputs}
        known = all(s and all(isinstance(d, int) for d in s) for s in shapes.values())
        if self._pieces == shapes.keys() and known:
            return {
                o["name"]: np.empty((0, *o["shape"][1:]), np.dtype(o["dtype"]))
                for o in self._outputs
            }
        zero = {
            n: np.zeros((1, *a.shape[1:]), a.dtype) if n in self._sliced else a
            for n, a in arrays.items()
        }
        results = self._run_sample(zero, 0)
        return {n: a[:0] if n in self._pieces else a for n, a in results.items()}

    def _check(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        unknown = [name for name in feeds if name not in self.inputs]
        if unknown:
            known = ", ".join(self.inputs)
            raise SecateurError(f"unknown input '{unknown[0]}'; the model's inputs: {known}")
        arrays = {}
        count: int | None = None
        for name, (dtype, shape) in self.inputs.items():
            if name not in feeds:
                raise SecateurError(f"input '{name}' is missing")
            if dtype is None:  # no tensor
                arrays[name] = feeds[name]
                continue
            array = arrays[name] = np.asarray(feeds[name])
            _check_array(name, array, dtype, shape)
            if name in self._sliced:
                if count not in (None, len(array)):
                    raise SecateurError(f"input '{name}': {len(array)} samples given, not {count}")
                count = len(array)
        return arrays

    def _shown(self, entry: Mapping[str, Any]) -> Shape | None:
        if entry["shape"] is None:
            return None
        shape: Shape = tuple(entry["shape"])
        return (None, *shape[1:]) if entry["batched"] else shape


def _check_threads(threads: int) -> int:
    """`threads`, or as many as this process may use CPUs. Raises SecateurError below 1."""
    if threads < 1:
        raise SecateurError(f"threads: {threads} is not a positive number")
    affinity = getattr(os, "sched_getaffinity", None)
    return min(threads, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)


@functools.lru_cache(maxsize=64)
def _type_name(dtype: np.dtype[Any]) -> str:
    return "object" if dtype.kind in "US" else str(dtype)


Described = tuple[str | None, Shape | None]
"""Type and shape of a tensor; None and None for what is none."""


def _places(name: str) -> Iterator[str]:
    """What the tensors of a sequence are called."""
    return (f"{name}[{index}]" for index in itertools.count())


def _sequences(metadata: Mapping[str, Any]) -> dict[str, list[str] | None]:
    """Names of the outputs that make up each sequence, of different names than its own."""
    known = [o["name"] for o in metadata["outputs"]]
    found: dict[str, list[str] | None] = {}
    for name, names in dict(metadata.get("sequences", {})).items():
        found[str(name)] = None if names is None else [str(each) for each in names]
    used = [each for names in found.values() for each in names or ()]
    if len(set(used)) < len(used) or not set(known).issuperset(used) or set(found) & set(known):
        raise SecateurError("an artifact whose sequences are malformed")
    return found


def _check_array(name: str, array: Array, dtype: str, shape: Shape | None) -> None:
    if _type_name(array.dtype) != dtype:
        raise SecateurError(f"input '{name}': {array.dtype} given, {dtype} expected")
    if shape is None or array.shape == shape:
        return
    fits = len(array.shape) == len(shape) and all(
        e is None or isinstance(e, str) or e == g for e, g in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise SecateurError(
            f"input '{name}': shape {list(array.shape)} given, "
            f"{[d if d is not None else 'any' for d in shape]} expected"
        )


def _check_machine(target: str, flags: frozenset[str]) -> None:
    """Raise SecateurError where the CPU lacks instructions that the artifact may use."""
    missing = missing_flags(flags)
    if missing:
        raise SecateurError(
            f"compiled for {target}, but this machine's CPU lacks {', '.join(missing)}"
        )


def _open(path: Path, threads: int) -> Library | Container:
    if is_container(path):
        return Container(path, functools.partial(Runtime, threads=threads), threads)
    return Library(path, threads)
