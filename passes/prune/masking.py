"""The oracle of structured pruning: the original model with the same indices masked.

Removing an index must be the same as setting it to zero in every value that depends on
the inputs, so that no consumer sees it. Constants, and what is computed from constants
only, stay as they are: that pruning cuts them mustn't change what is left. `mask` builds
that model without using what pruning did.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ...ir.axes.dims import Axis, around_unknown, axis_size
from ...ir.axes.facts import Analysis, Parameter
from ...ir.axes.selection import Indices, Selection
from ...ir.graph import Graph, Node, Value
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.ops import Trait, traits
from ...ir.tensor import Array, Tensor
from .kept_statistics import KeptStatistics, statistic_axes

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Keep:
    """Which elements of an axis stay: the row-major product of masks.

    At most one of them is None: all of a number of elements known only at run time.
    """

    factors: tuple[Mask | None, ...]

    def mask(self, size: int) -> Mask:
        """For an axis of `size` elements."""
        unknown = size // math.prod(len(f) for f in self.factors if f is not None)
        result = np.ones(1, bool)
        for factor in self.factors:
            result = np.outer(result, np.ones(unknown, bool) if factor is None else factor).ravel()
        return result


_FLOATS: dict[int, type[np.floating[Any]]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
}


_INNER = Trait.INNER_AXES | Trait.STATEFUL
"""Operators with removed indices inside, which no mask of their results reaches.

Their constant operands are masked.
"""


@dataclass(frozen=True)
class PruningRecord:
    """What was kept, in terms of names, so that it outlives the pruned model.

    `values`: for every value that lost elements, which ones stay along each axis (None:
    all). `constants`: for each use of a constant, by the reading node's first output and
    the position of the input, kept indices per axis of each block (equal parts along the
    first axis), and what stands for zero, broadcast to the constant. `statistics`: for
    nodes whose statistics run over axes that lose indices, by their first output, which
    stay of those axes of their first input, by position counted from the last axis.
    `fixed`: values that are computed from constants only. `dropped`: constants, by the names
    of the values that they stand for now (`depth.py`).
    """

    values: dict[str, tuple[Keep | None, ...]]
    constants: dict[tuple[str, int], tuple[list[tuple[Indices | None, ...]], Array]]
    statistics: dict[str, dict[int, Mask]]
    fixed: frozenset[str]
    dropped: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, analysis: Analysis, selection: Selection) -> PruningRecord:
        values = {}
        for value, axes in analysis.axes.items():
            kept = tuple(kept_elements(selection, axis) for axis in axes or ())
            if any(keep is not None for keep in kept):
                values[value.name] = kept
        constants = {}
        for use, parameter in analysis.parameters.items():
            blocks = [tuple(selection.indices(a) for a in block) for block in parameter.blocks]
            if any(indices is not None for block in blocks for indices in block):
                key = (first_output(parameter.node), use.position)
                constants[key] = (blocks, _zero_point(analysis.model, parameter))
        statistics = {}
        for node in analysis.model.all_nodes():
            over = _kept_statistics(analysis, selection, node)
            if over:
                statistics[first_output(node)] = over
        fixed = frozenset(v.name for v in analysis.fixed if v.name in values)
        return cls(values, constants, statistics, fixed)


def _kept_statistics(analysis: Analysis, selection: Selection, node: Node) -> dict[int, Mask]:
    data = node.input(0)
    axes = None if data is None else analysis.axes.get(data)
    if axes is None:
        return {}
    return {
        len(axes) - position: _mask_of(selection, axes[position])
        for position in statistic_axes(analysis.model, node)
        if axis_size(axes[position]) is not None and selection.changes(axes[position])
    }


def kept_elements(selection: Selection, axis: Axis) -> Keep | None:
    """Which elements of an axis a selection leaves, None where all."""
    if not selection.changes(axis):
        return None
    if axis_size(axis) is not None:
        return Keep((_mask_of(selection, axis),))
    around = around_unknown(axis)
    assert around is not None  # locked by the analysis
    before, behind = (_mask_of(selection, part) for part in around)
    return Keep((before, None, behind))


def _mask_of(selection: Selection, axis: Axis) -> Mask:
    indices, size = selection.indices(axis), axis_size(axis)
    assert size is not None
    mask = np.zeros(size, bool)
    mask[slice(None) if indices is None else indices] = True
    return mask


_ZERO_POINTS = {
    "ConvInteger": {1: 3},
    "MatMulInteger": {0: 2, 1: 3},
    "QGemm": {0: 2, 3: 5},
    "QLinearConv": {3: 5},
    "QLinearMatMul": {0: 2, 3: 5},
}
"""Operators with integer results: position of an operand -> position of its zero point."""


def _zero_point(model: Model, parameter: Parameter) -> Array:
    """What stands for zero in a weight, broadcast to its axes: one in a divisor.

    Zero points, if several, run along the axis that isn't contracted: the first of the
    weights of a convolution, of a left and of a transposed right operand, else the last.
    """
    node, operand = parameter.node, parameter.use.position
    if node.op_type in ("Div", "Mod") and operand == 1:
        return np.ones((), np.int8)
    position = _ZERO_POINTS.get(node.op_type, {}).get(operand)
    tensor = None if position is None else model.constant(node.input(position))
    if tensor is None:
        return np.zeros((), np.int8)
    zero = tensor.numpy()
    first = operand == 0 or "Conv" in node.op_type or bool(node.get("transB", 0))
    rank = len(parameter.tensor.shape)
    return zero.reshape([-1] + [1] * (rank - 1)) if zero.ndim == 1 and first else zero


def mask(model: Model, record: PruningRecord) -> Model:
    """A copy of the (unpruned) model in which removed indices are zero.

    Its values have to be named as `name_values` does it (`names.py`).
    In every value that depends on the inputs, and in constants where there are no such
    values to mask: at operators with axes inside, and at those with integer results. What
    reads a dropped value reads the constant that stands for it.
    """
    masked = model.clone()
    for value in list(masked.graph.values()):
        if value.name in record.dropped:
            constant = Tensor.from_array(record.dropped[value.name], value.dtype)
            name = masked.fresh_name(f"{value.name}_dropped")
            value.replace_uses(masked.graph.add_initializer(name, constant))
    infer_shapes(masked)
    for node in masked.all_nodes():
        _guess_types(node)
    for graph in list(masked.graph.all_graphs()):
        _mask_graph(masked, graph, record)
    return masked


def _mask_graph(model: Model, graph: Graph, record: PruningRecord) -> None:
    nodes: list[Node] = []
    for node in graph.nodes:
        if _hides_axes(node, record):
            for position, value in enumerate(node.inputs):
                if value is not None:
                    nodes.extend(_mask_operand(model, node, position, value, record))
        over = record.statistics.get(first_output(node))
        results = node.outputs
        nodes.extend(KeptStatistics(model, node, over).build() if over else [node])
        for value in results:
            kept = record.values.get(value.name) if value is not None else None
            if value is None or kept is None or value.name in record.fixed:
                continue
            if value.dtype in _FLOATS:
                nodes.extend(_mask_value(model, value, kept))
    graph.nodes = nodes
    for node in nodes:
        node.graph = graph


def _guess_types(node: Node) -> None:
    """Give results of which inference finds no type that of the first operand that may be it."""
    floats = [v.dtype for v in node.inputs if v is not None and v.dtype in _FLOATS]
    for value in node.outputs:
        if value is not None and value.type is None and floats:
            value.set_tensor_type(floats[0], value.shape)


def _hides_axes(node: Node, record: PruningRecord) -> bool:
    """Whether masks of a node's results don't reach all that its operands bring in."""
    outputs = [v for v in node.outputs if v is not None and v.name not in record.fixed]
    is_float = all(v.dtype in _FLOATS for v in outputs)
    return bool(outputs) and (bool(traits(node) & _INNER) or not is_float)


def _mask_operand(
    model: Model, node: Node, position: int, value: Value, record: PruningRecord
) -> list[Node]:
    """Mask what one node reads of a constant, or of what is computed from constants."""
    entry = record.constants.get((first_output(node), position))
    tensor = model.constant(value)
    if entry is not None and tensor is not None:
        array = _mask_array(tensor.numpy(), *entry)
        name = model.fresh_name(f"{value.name}_masked")
        constant = Tensor.from_array(array, tensor.dtype)
        node.set_input(position, model.graph.add_initializer(name, constant))
        return []
    kept: tuple[Keep | None, ...] = ()
    if entry is not None:  # folded since: what the analysis saw as a constant
        (indices,), _ = entry
        kept = _keep_indices(value, indices)
    elif value.name in record.fixed:
        kept = record.values[value.name]
    if not any(kept) or value.dtype not in _FLOATS:
        return []
    writer = _MaskWriter(model, value)
    node.set_input(position, writer.apply(value, kept))
    return writer.nodes


def _keep_indices(value: Value, indices: tuple[Indices | None, ...]) -> tuple[Keep | None, ...]:
    shape = value.shape or ()
    kept: list[Keep | None] = []
    for size, index in zip(shape, indices, strict=False):
        if index is None or not isinstance(size, int):
            kept.append(None)
            continue
        found = np.zeros(size, bool)
        found[index] = True
        kept.append(Keep((found,)))
    return tuple(kept)


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
    """Replace removed elements by zeros, one pruned axis after the other."""
    readers = list(value.uses)
    writer = _MaskWriter(model, value)
    masked = writer.apply(value, kept)
    for user, position in readers:
        if isinstance(user, Node):
            user.set_input(position, masked)
        elif user is not model.graph:
            user.set_output(position, masked)
    return writer.nodes


class _MaskWriter:
    """Adds the nodes that mask one value."""

    def __init__(self, model: Model, value: Value) -> None:
        self._model = model
        self._value = value
        self.nodes: list[Node] = []

    def apply(self, x: Value, kept: tuple[Keep | None, ...]) -> Value:
        """Zero what isn't kept along all axes."""
        for axis, keep in enumerate(kept):
            if keep is not None:
                x = self.along(x, axis, len(kept), keep)
                x.type = self._value.type
        return x

    def along(self, x: Value, axis: int, rank: int, keep: Keep) -> Value:
        """Zero what isn't kept along an axis; x has the value's shape."""
        after = rank - axis - 1
        if len(keep.factors) == 1 and keep.factors[0] is not None:
            return self._select(x, keep.factors[0], after)
        sizes = self._add("Shape", self._value)
        factors = [-1 if f is None else len(f) for f in keep.factors]
        parts = [
            self._sizes(sizes, range(axis)),
            [self._constant(np.array(factors, np.int64))],
            self._sizes(sizes, range(axis + 1, rank)),
        ]
        x = self._add("Reshape", x, self._add("Concat", *itertools.chain(*parts), axis=0))
        for position, factor in enumerate(keep.factors):
            if factor is not None:
                x = self._select(x, factor, len(factors) - position - 1 + after)
        return self._add("Reshape", x, sizes)

    def _sizes(self, sizes: Value, axes: range) -> list[Value]:
        return (
            [self._add("Gather", sizes, self._constant(np.array(axes, np.int64)))] if axes else []
        )

    def _select(self, x: Value, mask: Mask, after: int) -> Value:
        """By Where, if the opset has it, not by Mul: what is removed may be infinite."""
        aligned = mask.reshape([-1] + [1] * after)
        dtype = _FLOATS[self._value.dtype]
        if self._model.opset >= 9:
            zero = self._constant(np.zeros((), dtype))
            return self._add("Where", self._constant(aligned), x, zero)
        return self._add("Mul", x, self._constant(aligned.astype(dtype)))

    def _constant(self, array: Array) -> Value:
        name = self._model.fresh_name(f"{self._value.name}_constant")
        return self._model.graph.add_initializer(name, Tensor.from_array(array))

    def _add(self, op_type: str, *inputs: Value, **attributes: int) -> Value:
        result = Value(self._model.fresh_name(f"{self._value.name}_masked"))
        node = Node(op_type, inputs, [result])
        for name, attribute in attributes.items():
            node.set(name, attribute)
        self.nodes.append(node)
        return result
