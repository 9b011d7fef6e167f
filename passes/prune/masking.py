"""The oracle of structured pruning: the original model with the same indices masked.

Removing an index must be the same as setting it to zero wherever it is produced, so
that no consumer sees it. `mask` builds that model without using what pruning did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from ...ir.axes.analysis import Analysis
from ...ir.axes.selection import Indices, Selection
from ...ir.graph import Model, Node, Value
from ...ir.tensor import Tensor

_FLOATS: dict[int, type[np.floating[Any]]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
}


@dataclass(frozen=True)
class PruningRecord:
    """Kept indices per axis (None: all) of every value that lost some, by name.

    `parameters` are those of integer weights, which are masked themselves since
    integer activations can't be multiplied by a mask.
    """

    values: dict[str, tuple[Indices | None, ...]]
    parameters: dict[str, tuple[Indices | None, ...]]

    @classmethod
    def of(cls, analysis: Analysis, selection: Selection) -> PruningRecord:
        values = {}
        for value, axes in analysis.axes.items():
            kept = tuple(selection.indices(axis) for axis in axes or ())
            if any(indices is not None for indices in kept):
                values[value.name] = kept
        parameters = {}
        for parameter in analysis.parameters.values():
            if parameter.tensor.dtype in _FLOATS or len(parameter.blocks) > 1:
                continue
            kept = tuple(selection.indices(axis) for axis in parameter.blocks[0])
            if len(kept) > 1 and any(indices is not None for indices in kept):
                parameters[parameter.value.name] = kept
        return cls(values, parameters)


def mask(model: Model, record: PruningRecord) -> Model:
    """A copy of the (unpruned) model in which removed indices are zero in every value."""
    masked = model.clone()
    graph = masked.graph
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.append(node)
        for value in node.outputs:
            kept = record.values.get(value.name) if value is not None else None
            if value is None or kept is None or value.dtype not in _FLOATS:
                continue
            nodes.extend(_mask_value(masked, value, kept))
    graph.nodes = nodes
    for node in nodes:
        node.graph = graph
    for name, kept in record.parameters.items():
        parameter = graph.initializers.get(name)
        if parameter is not None and parameter.const is not None:
            array = parameter.const.numpy().copy()
            for axis, indices in enumerate(kept):
                if indices is not None:
                    removed = np.setdiff1d(np.arange(array.shape[axis]), indices)
                    array[(slice(None),) * axis + (removed,)] = 0
            parameter.const = Tensor.from_array(array, parameter.const.dtype)
    return masked


def _mask_value(model: Model, value: Value, kept: tuple[Indices | None, ...]) -> list[Node]:
    """Multiply a value by a 0/1 mask per pruned axis; its readers read the product."""
    readers = list(value.uses)
    nodes = []
    current = value
    for axis, indices in enumerate(kept):
        size = value.shape[axis] if value.shape is not None else None
        if indices is None or not isinstance(size, int):
            continue
        ones = np.zeros(size, _FLOATS[value.dtype])
        ones[indices] = 1
        ones = ones.reshape([size if i == axis else 1 for i in range(len(kept))])
        constant = model.graph.add_initializer(
            model.fresh_name(f"{value.name}_mask"), Tensor.from_array(ones, value.dtype)
        )
        result = Value(model.fresh_name(f"{value.name}_masked"), value.type)
        nodes.append(Node("Mul", [current, constant], [result]))
        current = result
    for user, position in readers:
        if isinstance(user, Node):
            user.set_input(position, current)
    return nodes
