"""Sample data for a model: arrays by input name whose first axis counts samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from onnx import TensorProto, helper

from ..ir.errors import SecateurError
from ..ir.graph import Value
from ..ir.model import Model
from ..ir.tensor import Array


class Described(Protocol):
    """An array, or what is known of one before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


class SampleArray(Described, Protocol):
    """An array whose first axis counts samples, perhaps one that is read when it is asked for.

    `array[k]` is one sample, `array[slice]` and `array[indices]` are several.
    """

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: int | slice | tuple[()] | Array, /) -> Array: ...


class Samples:
    """Arrays `[samples, ...]` that were checked against a model's inputs.

    An input whose first axis is the batch takes rows of its array. One that has no such
    axis (a setting, a recurrent state of several layers) has an array with one axis more, and
    takes one element of it in a run; a single number does for all runs.

    `batch` is the number of rows that a run takes, or None where it is free. Raises
    SecateurError where an array is missing, unknown, empty, or of another type or
    shape than its input. A model without inputs has one sample, of nothing.
    """

    def __init__(self, model: Model, arrays: Mapping[str, SampleArray]) -> None:
        self.count = check_samples(model, arrays)
        inputs = _inputs(model)
        self._whole = {name for name, value in inputs.items() if _is_whole(value, arrays[name])}
        rows = [value for name, value in inputs.items() if name not in self._whole]
        sizes = {v.shape[0] for v in rows if v.shape and isinstance(v.shape[0], int)}
        if len(sizes) > 1:
            raise SecateurError(
                f"the inputs' first axes differ in size {sorted(sizes)}, so none counts samples; "
                "give all arrays one axis more, in front"
            )
        self.arrays: dict[str, SampleArray] = {
            name: arrays[name] if arrays[name].ndim else np.repeat(arrays[name][()], self.count)
            for name in inputs
        }
        self.batch: int | None = sizes.pop() if sizes else None
        if self._whole:
            if self.batch is not None and self.batch != 1 and rows:
                raise SecateurError(
                    f"array {_listed(sorted(self._whole))} holds one element a run, and a run "
                    f"takes {self.batch} rows of the others; give all arrays one axis more"
                )
            self.batch = 1

    def __len__(self) -> int:
        return self.count

    def rows(self, feed: Mapping[str, Array]) -> int:
        """The number of samples in one run's inputs."""
        return next((len(a) for name, a in feed.items() if name not in self._whole), 1)

    def feeds(self, batch: int) -> Iterator[tuple[dict[str, Array], int]]:
        """Yield `batch` samples at a time, with the number that count.

        With a fixed `self.batch` the last ones are filled up by repeating samples;
        only the leading ones count.
        """
        size = self.batch or batch
        for start in range(0, self.count, size):
            valid = min(size, self.count - start)
            yield self.take(start, size if self.batch is not None else valid), valid

    def take(self, start: int, size: int) -> dict[str, Array]:
        """A run of `size` samples from `start` on, after the last one again from the first."""
        rows: slice | Array = slice(start, start + size)
        if start + size > self.count:
            rows = np.arange(start, start + size) % self.count
        return {
            name: np.ascontiguousarray(array[rows])
            if name not in self._whole
            else np.array(array[start])
            for name, array in self.arrays.items()
        }


def _is_whole(value: Value, array: Described) -> bool:
    """Whether each element of an array is an input of its own, and not a row of one."""
    shape = value.shape
    return shape is not None and (not shape or len(array.shape) == len(shape) + 1)


def check_samples(model: Model, arrays: Mapping[str, Described]) -> int:
    """The number of samples that arrays hold. Raises SecateurError where a model can't take them.

    The arrays themselves need not be there yet.
    """
    inputs = _inputs(model)
    check_names(model, arrays)
    for name, value in inputs.items():
        _check_array(value, arrays[name])
    counts = {name: arrays[name].shape[0] for name in inputs if arrays[name].shape}
    if len(set(counts.values())) > 1:
        raise SecateurError(f"arrays differ in their number of samples: {counts}")
    return next(iter(counts.values()), 1)


def _inputs(model: Model) -> dict[str, Value]:
    return {v.name: v for v in model.graph.inputs if v.const is None}


def check_names(model: Model, given: Collection[str]) -> None:
    """Raise SecateurError where these aren't the names of the model's inputs."""
    inputs = _inputs(model)
    wanted = f"the model's inputs are {_listed(inputs)}"
    missing = [name for name in inputs if name not in given]
    if missing:
        raise SecateurError(f"no array for input {_listed(missing)}; given: {_listed(given)}")
    unknown = [name for name in given if name not in inputs]
    if unknown:
        raise SecateurError(f"array {_listed(unknown)} matches no input; {wanted}")


def _check_array(value: Value, array: Described) -> None:
    name, shape = value.name, value.shape
    if value.dtype == TensorProto.UNDEFINED:
        raise SecateurError(f"input '{name}' is not a tensor, and samples can only be tensors")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.dtype))
    if array.dtype != dtype:
        raise SecateurError(f"array '{name}' is {array.dtype}, the input takes {dtype}")
    if not array.shape and shape == ():
        return
    if not array.shape:
        raise SecateurError(f"array '{name}' has no axis that counts samples")
    if array.shape[0] == 0:
        raise SecateurError(f"array '{name}' holds no samples")
    if shape is None:
        return
    wanted = shape if _is_whole(value, array) else shape[1:]
    fits = len(wanted) == len(array.shape) - 1 and all(
        not isinstance(want, int) or want == have
        for want, have in zip(wanted, array.shape[1:], strict=True)
    )
    if not fits:
        expected = ", ".join(["samples", *(str(s or "?") for s in shape[1:])])
        raise SecateurError(
            f"array '{name}' has shape {list(array.shape)}, the input takes [{expected}]"
        )


def _listed(names: Collection[str]) -> str:
    listed = [f"'{name[:_LONGEST]}'" for name in list(names)[:_LISTED]]
    if len(names) > _LISTED:
        listed.append(f"{len(names) - _LISTED} more")
    return ", ".join(listed) or "none"


_LISTED, _LONGEST = 8, 200
"""Names in a message, and characters of each: files may hold any number of any length."""
