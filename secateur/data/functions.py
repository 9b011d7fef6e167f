"""Samples that a Python function yields: `module:function`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import helper

from ..ir.display import printable
from ..ir.errors import SecateurError
from ..ir.graph import Value
from ..ir.model import Model
from ..ir.plugins import imported
from ..ir.tensor import Array
from ..passes.samples import check_names
from .inputs import model_inputs
from .npz import DataError
from .streams import Spool

NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""What a function's name looks like."""


def read_function(name: str, model: Model, labels: str) -> dict[str, Array]:
    """Arrays, first axis samples, of what the function `name` yields; mapped, not in memory.

    It takes nothing, and yields one dict for each sample, or for each batch: arrays by input's
    name, in the input's shape or without its first axis, and perhaps one called `labels`.
    Raises DataError.
    """
    inputs = {value.name: value for value in model_inputs(model)}
    spools: dict[str, Spool] = {}
    function = imported(name, "data")
    number = 0
    for number, given in enumerate(_yielded(function, name), 1):
        try:
            if not isinstance(given, Mapping):
                raise DataError(f"yields {type(given).__name__}, no dict")
            check_names(model, set(given) - {labels})
            for key, rows in _rows(given, inputs, labels).items():
                for row in rows:
                    spool = spools.setdefault(key, Spool(row))
                    if (row.shape, row.dtype) != (spool.shape, spool.dtype):
                        raise DataError(
                            f"'{key}' is {row.dtype} of shape {list(row.shape)}, before it was "
                            f"{spool.dtype} of shape {list(spool.shape)}"
                        )
                    spool.append(row)
        except SecateurError as error:
            raise DataError(f"dict {number}: {error}") from None
    if number == 0:
        raise DataError("yields nothing")
    return {key: spool.array() for key, spool in spools.items()}


def _yielded(function: Any, name: str) -> Iterable[Any]:
    try:
        yield from function()
    except (SecateurError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # whatever the user's code raises
        text = printable(" ".join(str(error).split()))
        raise DataError(f"{name} failed: {type(error).__name__}: {text[:300]}") from error


def _rows(
    given: Mapping[str, Any], inputs: Mapping[str, Value], labels: str
) -> dict[str, list[Array]]:
    """The samples of one dict."""
    arrays = {key: np.asarray(array) for key, array in given.items()}
    for key, value in inputs.items():
        wanted = np.dtype(helper.tensor_dtype_to_np_dtype(value.dtype))
        if arrays[key].dtype != wanted and _safe(arrays[key], wanted):
            arrays[key] = arrays[key].astype(wanted)
    full = all(
        value.shape is None or arrays[key].ndim == len(value.shape) for key, value in inputs.items()
    )
    numbers = [key for key, value in inputs.items() if arrays[key].ndim == 0 and not value.shape]
    counts = {arrays[key].shape[:1] for key in inputs if key not in numbers}
    if not full or len(counts) != 1 or () in counts:
        return {key: [array] for key, array in arrays.items()}
    ((count,),) = counts
    for key in numbers:  # the same for all samples of a batch
        arrays[key] = np.broadcast_to(arrays[key], (count,))
    if labels in arrays and arrays[labels].shape[:1] != (count,):
        if count != 1:
            raise DataError(f"'{labels}' of shape {list(arrays[labels].shape)} for {count} samples")
        arrays[labels] = arrays[labels][None]
    return {key: list(array) for key, array in arrays.items()}


def _safe(array: Array, wanted: np.dtype[Any]) -> bool:
    """Whether a conversion is only one of Python's numbers or of NumPy's default types."""
    return array.dtype.kind == wanted.kind and array.dtype in (np.float64, np.int64)
