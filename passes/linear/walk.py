"""Running a model over many samples part by part, so that it can be changed on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ...ir.graph import outer_reads
from ...ir.model import Model
from ...ir.partition import extract
from ...ir.reference import Session, detached
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array

MEMORY = 2**29
"""Bytes of values that a walk keeps in memory; what is beyond lies in files."""

LARGEST_RECORDING = 3 * 2**30
"""Bytes of values that are recorded, those in files included."""

FOREVER = 2**62
"""A position after every node of a model: a value kept until then is kept to the end."""


class RunValues(Protocol):
    """Values of several runs, by name."""

    @property
    def runs(self) -> int: ...

    def value(self, name: str, run: int) -> Array: ...


class Walk:
    """A model's values at a position among its nodes, for each of several runs.

    `runs` holds the inputs of each. `advance` executes nodes, with the weights that they
    then have; a value is kept as long as a node that is to come reads it, or `keep` asks
    for it. `folder` takes what doesn't fit in `memory` bytes.
    """

    def __init__(
        self,
        model: Model,
        runs: Sequence[Mapping[str, Array]],
        folder: Path,
        *,
        memory: int = MEMORY,
    ) -> None:
        self.model = model
        self.position = 0
        self.runs = len(runs)
        self._readers = last_readers(model)
        self._until = dict(self._readers)
        self._store = _Store(folder, memory, runs)

    def keep(self, name: str, position: int = FOREVER) -> None:
        """Keep a value until the walk has gone past a position, whoever reads it."""
        self._until[name] = max(self._until.get(name, -1), position)

    def release(self, name: str) -> None:
        """Keep a value no longer than nodes read it."""
        self._until[name] = self._readers.get(name, -1)
        if self._until[name] < self.position:
            self._store.drop(name)

    def value(self, name: str, run: int) -> Array:
        """A value that is kept, in one of the runs."""
        return self._store.get(name, run)

    def advance(self, position: int) -> None:
        """Execute all nodes in front of a position."""
        if position <= self.position:
            return
        nodes = self.model.graph.nodes[self.position : position]
        made = [value for node in nodes for value in node.outputs if value is not None]
        outputs = [value for value in made if self._until.get(value.name, -1) >= position]
        if outputs:
            session = Session(extract(self.model, nodes, outputs)[0], threads=0)
            for run in range(self.runs):
                feeds = {name: self._store.get(name, run) for name in session.input_names}
                for name, array in session.run(feeds).items():
                    self._store.add(name, array)
        self.position = position
        for name in self._store.names():
            if self._until.get(name, -1) < position:
                self._store.drop(name)

    def rest(self) -> Session:
        """A session of all nodes that are to come; its inputs are values that are kept."""
        nodes = self.model.graph.nodes[self.position :]
        inside = set(nodes)
        outputs = [value for value in self.model.graph.outputs if value.producer in inside]
        return Session(extract(self.model, nodes, outputs)[0], threads=0)


class Recording:
    """Values of a model that doesn't change, for several passes over it in a row.

    Like `Walk`, but that a value which was asked for once is there at any time. What all of
    them take is bounded: `fits` tells whether it is less than `largest` bytes; where it isn't,
    there are no values.
    """

    def __init__(
        self,
        model: Model,
        runs: Sequence[Mapping[str, Array]],
        folder: Path,
        *,
        memory: int = MEMORY,
        largest: int = LARGEST_RECORDING,
    ) -> None:
        self.fits = True
        self.runs = len(runs)
        self._model = model
        self._inputs = runs
        self._store = _Store(folder, memory, runs)
        self._left = largest

    def keep(self, name: str, position: int = FOREVER) -> None:
        """Nothing that is recorded goes before the end."""

    def release(self, name: str) -> None:
        """See `keep`."""

    def advance(self, position: int) -> None:
        """All nodes were executed before."""

    def record(self, names: Collection[str]) -> bool:
        """Compute values that are to be asked for, unless they don't fit."""
        missing = set(names) - set(self._store.names())
        if not self.fits or not missing:
            return self.fits
        with scratch_folder() as folder:
            walk = Walk(self._model, self._inputs, folder, memory=MEMORY // 4)
            for position, node in enumerate(self._model.graph.nodes, 1):
                made = [v.name for v in node.outputs if v is not None and v.name in missing]
                if made:
                    for name in made:
                        walk.keep(name, position)
                    walk.advance(position)
                    self.fits = all(self._take(walk, name) for name in made)
                if not self.fits:
                    self._store.drop_all()
                    break
        return self.fits

    def _take(self, walk: Walk, name: str) -> bool:
        """Keep a value that a walk has got to, if there is room left for it."""
        for run in range(self.runs):
            array = walk.value(name, run)
            self._left -= array.nbytes
            if self._left < 0:
                return False
            self._store.add(name, array)
        return True

    def value(self, name: str, run: int) -> Array:
        """A value that was recorded, in one of the runs."""
        return self._store.get(name, run)


class _Store:
    """Arrays by name, one of each run; in files once there are more than fit in memory."""

    def __init__(self, folder: Path, memory: int, runs: Sequence[Mapping[str, Array]]) -> None:
        self._folder = folder
        self._memory = memory
        self._arrays: dict[str, list[Array | Path]] = {}
        self._used = 0
        self._files = 0
        for name in runs[0] if runs else ():
            for run in runs:
                self.add(name, run[name])

    def names(self) -> list[str]:
        return list(self._arrays)

    def add(self, name: str, array: Array) -> None:
        """Keep a value of the run behind those of which it is kept."""
        self._arrays.setdefault(name, []).append(self._placed(array))

    def get(self, name: str, run: int) -> Array:
        """A value; what lies in a file is mapped anew, and takes memory only while in use."""
        kept = self._arrays[name][run]
        if not isinstance(kept, Path):
            return kept
        mapped: Array = np.load(kept, mmap_mode="r", allow_pickle=False)
        return mapped

    def drop(self, name: str) -> None:
        for kept in self._arrays.pop(name, ()):
            if isinstance(kept, Path):
                kept.unlink(missing_ok=True)
            else:
                self._used -= kept.nbytes

    def drop_all(self) -> None:
        for name in self.names():
            self.drop(name)

    def _placed(self, array: Array) -> Array | Path:
        if self._used + array.nbytes <= self._memory or not array.nbytes:
            self._used += array.nbytes
            return detached(array)
        self._files += 1
        path = self._folder / f"{self._files}.npy"
        np.save(path, array, allow_pickle=False)
        return path


def last_readers(model: Model) -> dict[str, int]:
    """For each value of the main graph the position of the last node that reads it.

    Nodes of subgraphs read at the position of the node that they belong to. Outputs of the
    graph are read behind the last node.
    """
    graph = model.graph
    until: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        for value in outer_reads(node):
            until[value.name] = position
    for value in graph.outputs:
        until[value.name] = FOREVER
    return until
