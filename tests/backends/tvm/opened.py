"""Models with their sizes left open, and inputs of other sizes, for checks of open sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from secateur.ir.trials import TrialSession

from ...onnx_runtime import session_of

SIZES: tuple[Callable[[int], int], ...] = (lambda n: n, lambda n: n + 1, lambda n: 2 * n + 3)
"""The sizes that a model is run at, made of its own."""


def open_model(
    given: onnx.ModelProto, feeds: Mapping[str, Any]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A model with the sizes open in which ONNX Runtime takes others, and what `feeds`
    have for each. Short vectors of integers, and scales, which give results their sizes, are
    constants."""
    model = onnx.ModelProto()
    model.CopyFrom(given)
    for value in list(model.graph.input):
        array = feeds.get(value.name)
        if isinstance(array, np.ndarray) and _is_parameter(value.name, array):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
            model.graph.input.remove(value)
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    sizes = _open(model, feeds, lambda size: True)
    if reference(model, kept(feeds, model)) is None:
        return model, sizes
    free = {}
    for name, size in sizes.items():
        changed = {**sizes, name: size + 1}
        if reference(model, resized(feeds, model, changed)) is not None:
            free[name] = size
    return model, _open(model, feeds, lambda size: f"d{size}" in free)


def _is_parameter(name: str, given: np.ndarray[Any, Any]) -> bool:
    integers = given.dtype.kind in "iu" and given.ndim <= 1 and given.size <= 16
    return integers or name in ("scales", "roi", "sizes")


def _open(
    model: onnx.ModelProto, feeds: Mapping[str, Any], chosen: Callable[[int], bool]
) -> dict[str, int]:
    """Name the inputs' sizes that are larger than 1 and chosen."""
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        given = feeds.get(value.name)
        if not isinstance(given, np.ndarray) or not value.type.HasField("tensor_type"):
            continue
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in given.shape:
            if size > 1 and chosen(size):
                sizes[f"d{size}"] = size
                shape.dim.add(dim_param=f"d{size}")
            else:
                shape.dim.add(dim_value=size)
    return sizes


def kept(feeds: Mapping[str, Any], model: onnx.ModelProto) -> dict[str, Any]:
    """Those of the model's inputs."""
    return {v.name: feeds[v.name] for v in model.graph.input if v.name in feeds}


def resized(
    feeds: Mapping[str, Any], model: onnx.ModelProto, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Inputs of other sizes, made of the elements of those given."""
    made = kept(feeds, model)
    for value in model.graph.input:
        array = feeds.get(value.name)
        if isinstance(array, np.ndarray) and value.type.HasField("tensor_type"):
            dims = value.type.tensor_type.shape.dim
            shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims]
            made[value.name] = (
                np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)
            )
    return made


def reference(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any] | None:
    """What ONNX Runtime computes; None where it doesn't run the model on these inputs.

    Some of its kernels end the process where an input is empty: such runs have another one.
    """
    empty = any(isinstance(a, np.ndarray) and not a.size for a in feeds.values())
    try:
        if empty:
            session = TrialSession(model.SerializeToString(), optimize=True, threads=1)
            return list(session.run([v.name for v in model.graph.output], feeds))
        return list(session_of(model).run(None, dict(feeds)))
    except Exception:  # ONNX Runtime raises a family of unrelated types
        return None
