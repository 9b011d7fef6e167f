"""Memory for inputs of a model that its outputs continue, such as keys and values of attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

from ....ir.errors import SecateurError
from ....ir.tensor import Array

Shape: TypeAlias = tuple[int | str | None, ...]
"""Sizes of a tensor; what is open by its name, what is unknown as None."""


@dataclasses.dataclass(frozen=True)
class GrowingInput:
    """An input that an output continues along an axis; `shape` has the names of open sizes."""

    input: str
    output: str
    axis: int
    dtype: str
    shape: Shape


@dataclasses.dataclass(frozen=True)
class HeldMemory:
    """Memory with room for `capacity` rows: of inputs, each with the shape of what it holds, and of
    outputs."""

    capacity: int
    inputs: Mapping[str, tuple[Array, tuple[int, ...]]]
    outputs: Mapping[str, Array]


class Caches(Mapping[str, Array]):
    """The inputs of a model that its outputs continue, in memory with room for `capacity` rows.

    A run with them reads what they hold and leaves in the same memory what its outputs would be:
    rows that are there stay where they are. They lead from the names of inputs to what they hold
    now, which the next run changes. `Runtime.caches` makes them; they are for one run at a time.
    """

    def __init__(self, growing: Iterable[GrowingInput], capacity: int) -> None:
        self.capacity = capacity
        self._growing = {each.input: each for each in growing}
        self._memory: dict[str, Array] = {}
        self._rows = dict.fromkeys(self._growing, 0)

    def __getitem__(self, name: str) -> Array:
        if name not in self._memory:
            raise KeyError(name)
        return self._memory[name][self._held(name, self._rows[name])]

    def __iter__(self) -> Iterator[str]:
        return iter(self._memory)

    def __len__(self) -> int:
        return len(self._memory)

    @property
    def outputs(self) -> dict[str, str]:
        """The input that each output continues, by their names."""
        return {each.output: each.input for each in self._growing.values()}

    def fill(self, arrays: Mapping[str, Array]) -> None:
        """Hold copies of arrays, by the names of inputs. Raises SecateurError for others."""
        for name, given in arrays.items():
            if name not in self._growing:
                known = ", ".join(self._growing)
                raise SecateurError(f"no output continues '{name}'; such inputs are {known}")
            own, array = self._growing[name], np.asarray(given)
            if array.ndim != len(own.shape) or str(array.dtype) != own.dtype:
                raise SecateurError(f"input '{name}': {array.dtype}{list(array.shape)} given")
            self._take(name, array.shape)
            rows = array.shape[own.axis]
            if rows > self.capacity:
                raise SecateurError(
                    f"input '{name}': {rows} rows; there is room for {self.capacity}"
                )
            self._memory[name][self._held(name, rows)] = array
            self._rows[name] = rows

    def reset(self) -> None:
        """Hold nothing, in the same memory."""
        self._rows = dict.fromkeys(self._growing, 0)

    def take_memory(self, feeds: Mapping[str, Array], shapes: Mapping[str, Shape | None]) -> None:
        """Have memory for all, where open sizes are those of other inputs' `feeds`, which have
        these `shapes`. Raises SecateurError where nothing says how large one is."""
        sizes: dict[str | None, int] = {}
        for name, array in feeds.items():
            for known, size in zip(shapes[name] or (), array.shape, strict=False):
                if not isinstance(known, int):
                    sizes[known] = size
        for name, own in self._growing.items():
            if name in self._memory:
                continue
            shape = [size if isinstance(size, int) else sizes.get(size, -1) for size in own.shape]
            shape[own.axis] = 0
            if -1 in shape:
                unknown = own.shape[shape.index(-1)]
                raise SecateurError(
                    f"input '{name}': no other input says how large '{unknown}' is: fill the cache"
                )
            self._take(name, tuple(shape))

    def held(self, sample: int | None = None) -> HeldMemory:
        """What one run reads and writes: all, or of a batch one sample's part."""
        part = slice(None) if sample is None else slice(sample, sample + 1)
        inputs = {
            name: (self._memory[name][part], array[part].shape) for name, array in self.items()
        }
        outputs = {output: inputs[name][0] for output, name in self.outputs.items()}
        return HeldMemory(self.capacity, inputs, outputs)

    def grow(self, results: Mapping[str, Array]) -> None:
        """Note what all hold after a run, by its results."""
        for own in self._growing.values():
            self._rows[own.input] = results[own.output].shape[own.axis]

    def _take(self, name: str, shape: tuple[int, ...]) -> None:
        own = self._growing[name]
        whole = (*shape[: own.axis], self.capacity, *shape[own.axis + 1 :])
        if name not in self._memory or self._memory[name].shape != whole:
            self._memory[name] = np.zeros(whole, own.dtype)
            self._rows[name] = 0

    def _held(self, name: str, rows: int) -> tuple[slice, ...]:
        return (*(slice(None),) * self._growing[name].axis, slice(rows))
