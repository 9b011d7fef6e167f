"""The oracle of structured pruning: the original model with the same indices masked.

Removing an index must be the same as setting it to zero wherever it is produced, so
that no consumer sees it. `mask` builds that model without using what pruning did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ...ir.axes.analysis import Analysis, Parameter
from ...ir.axes.dims import Axis, axis_size
from ...ir.axes.selection import Indices, Selection
from ...ir.graph import Graph, Model, Node, Value
from ...ir.infer import infer_shapes
from ...ir.tensor import Array, Tensor

Keep = npt.NDArray[np.bool_]

_FLOATS: dict[int, type[np.floating[Any]]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
}


@dataclass(frozen=True)
class PruningRecord:
    """What was kept, in terms of names, so that it outlives the pruned model.

    `values`: for every value that lost elements, which ones stay along each axis (None:
    all). `constants`: for each use of a constant, by the reading node's first output and
    the position of the input, kept indices per axis of each block (equal parts along the
    first axis), and what stands for zero, broadcast to the constant.
    """

    values: dict[str, tuple[Keep | None, ...]]
    constants: dict[tuple[str, int], tuple[list[tuple[Indices | None, ...]], Array]]

    @classmethod
    def of(cls, analysis: Analysis, selection: Selection) -> PruningRecord:
        values = {}
        for value, axes in analysis.axes.items():
            kept = tuple(_keep(selection, axis) for axis in axes or ())
            if any(keep is not None for keep in kept):
                values[value.name] = kept
        constants = {}
        for use, parameter in analysis.parameters.items():
            blocks = [tuple(selection.indices(a) for a in block) for block in parameter.blocks]
            if any(indices is not None for block in blocks for indices in block):
                key = (first_output(parameter.node), use.position)
                constants[key] = (blocks, _zero_point(analysis.model, parameter))
        return cls(values, constants)


def _keep(selection: Selection, axis: Axis) -> Keep | None:
    indices, size = selection.indices(axis), axis_size(axis)
    if indices is None or size is None:
        return None
    keep = np.zeros(size, bool)
    keep[indices] = True
    return keep


_ZERO_POINTS = {
    "ConvInteger": {1: 3},
    "MatMulInteger": {0: 2, 1: 3},
    "QLinearConv": {3: 5},
    "QLinearMatMul": {0: 2, 3: 5},
}
"""Operator -> position of an integer operand -> position of its zero point."""

_FIRST_AXIS = {("ConvInteger", 1), ("QLinearConv", 3), ("MatMulInteger", 0), ("QLinearMatMul", 0)}
"""Operands whose zero points, if several, run along the first axis; else along the last."""


def _zero_point(model: Model, parameter: Parameter) -> Array:
    """What stands for zero in an integer weight, broadcast to its axes."""
    op_type, operand = parameter.node.op_type, parameter.use.position
    position = _ZERO_POINTS.get(op_type, {}).get(operand)
    tensor = None if position is None else model.constant(parameter.node.input(position))
    if tensor is None:
        return np.zeros((), np.int8)
    zero = tensor.numpy()
    if zero.ndim == 1 and (op_type, operand) in _FIRST_AXIS:
        return zero.reshape([-1] + [1] * (len(parameter.tensor.shape) - 1))
    return zero


def mask(model: Model, record: PruningRecord) -> Model:
    """A copy of the (unpruned) model in which removed indices are zero in every value."""
    masked = model.clone()
    infer_shapes(masked)
    for graph in list(masked.graph.all_graphs()):
        _mask_graph(masked, graph, record)
    return masked


def _mask_graph(model: Model, graph: Graph, record: PruningRecord) -> None:
    nodes: list[Node] = []
    for node in graph.nodes:
        for position, value in enumerate(node.inputs):
            entry = record.constants.get((first_output(node), position))
            tensor = model.constant(value)
            if entry is not None and tensor is not None and value is not None:
                name = model.fresh_name(f"{value.name}_masked")
                array = _mask_array(tensor.numpy(), *entry)
                constant = model.graph.add_initializer(name, Tensor.from_array(array, tensor.dtype))
                node.set_input(position, constant)
        nodes.append(node)
        for value in node.outputs:
            kept = record.values.get(value.name) if value is not None else None
            if value is not None and kept is not None and value.dtype in _FLOATS:
                nodes.extend(_mask_value(model, value, kept))
    graph.nodes = nodes
    for node in nodes:
        node.graph = graph


def first_output(node: Node) -> str:
    return next((v.name for v in node.outputs if v is not None), "")


def _mask_array(array: Array, blocks: list[tuple[Indices | None, ...]], zero: Array) -> Array:
    """Set what isn't kept to zero. Rows of equal blocks are masked block by block."""
    result = np.empty_like(array)
    result[...] = zero
    rows = array.shape[0] // len(blocks) if array.ndim else 0
    for number, kept in enumerate(blocks):
        part = slice(number * rows, (number + 1) * rows) if len(blocks) > 1 else slice(None)
        source, target = array[part], result[part]
        grid = np.ix_(
            *(
                np.arange(size) if indices is None else indices
                for size, indices in zip(source.shape, kept, strict=True)
            )
        )
        target[grid] = source[grid]
    return result


def _mask_value(model: Model, value: Value, kept: tuple[Keep | None, ...]) -> list[Node]:
    """Replace removed elements by zeros, one pruned axis after the other.

    Selecting, where the opset has Where, not multiplying: what is removed may be infinite.
    """
    readers = list(value.uses)
    nodes = []
    current = value

    def constant(role: str, array: Array) -> Value:
        name = model.fresh_name(f"{value.name}_{role}")
        return model.graph.add_initializer(name, Tensor.from_array(array))

    for axis, keep in enumerate(kept):
        if keep is None:
            continue
        keep = keep.reshape([-1 if i == axis else 1 for i in range(len(kept))])
        dtype = _FLOATS[value.dtype]
        result = Value(model.fresh_name(f"{value.name}_masked"), value.type)
        if model.opset >= 9:
            zero = constant("zero", np.zeros((), dtype))
            nodes.append(Node("Where", [constant("mask", keep), current, zero], [result]))
        else:
            nodes.append(Node("Mul", [current, constant("mask", keep.astype(dtype))], [result]))
        current = result
    for user, position in readers:
        if isinstance(user, Node):
            user.set_input(position, current)
        else:
            user.set_output(position, current)
    return nodes
