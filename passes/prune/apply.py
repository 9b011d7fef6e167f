"""Rewrites a model for a selection: slices parameters, shape constants and attributes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ...ir.axes.dims import Axis, axis_size
from ...ir.axes.facts import Analysis, Axes, Parameter
from ...ir.axes.selection import Indices, Selection
from ...ir.axes.sizes import axes_of, evaluate, over_dims, ratio, selected, size_over_dims
from ...ir.graph import Node, Use, Value
from ...ir.model import Model
from ...ir.symbolic.expressions import Size
from ...ir.symbolic.facts import Contents
from ...ir.tensor import Array, Tensor
from ..initializers import separate_initializers


class Applier:
    """What an operator's rewrite may ask of a selection and do to its node."""

    def __init__(self, model: Model, selection: Selection) -> None:
        self.model = model
        self.selection = selection

    def size(self, axis: Axis) -> int:
        size = self.selection.size(axis)
        assert size is not None
        return size

    def indices(self, axis: Axis) -> Indices | None:
        return self.selection.indices(axis)

    def changes(self, *axes: Axis) -> bool:
        """Whether any of the axes loses an index."""
        return any(self.selection.changes(axis) for axis in axes)

    def set_constant(
        self, node: Node, index: int, array: npt.NDArray[Any], dtype: int | None = None
    ) -> None:
        """Let input `index` of a node read a new constant; others keep the old one."""
        old = node.input(index)
        if dtype is None and old is not None and old.const is not None:
            dtype = old.const.dtype
        name = self.model.fresh_name(f"{old.name if old is not None else node.label}_pruned")
        tensor = Tensor.from_array(array) if dtype is None else _cast(array, dtype)
        node.set_input(index, self.model.graph.add_initializer(name, tensor))

    def _set_elements(
        self, node: Node, index: int, changes: dict[int, _Change], content: Contents
    ) -> None:
        """Change elements of an integer vector that a node reads."""
        tensor = self.model.constant(node.input(index))
        if tensor is not None:
            array = tensor.numpy().copy()
            for position, change in changes.items():
                array[position] = change.number
            self.set_constant(node, index, array, tensor.dtype)
        else:
            self._compute_elements(node, index, changes, content.size)

    def match(
        self, node: Node, index: int, content: Contents, required: Sequence[Axis | int | None]
    ) -> None:
        """Make the elements of an integer input what they have to be now.

        Each is the size of an axis, a number, or None where any will do. Elements that
        follow the pruning by themselves, or say the same in another way (`content` holds
        what they mean), stay as they are.
        """
        changes = self._mismatches(content, required)
        if changes:
            self._set_elements(node, index, changes, content)

    def match_attribute(
        self, node: Node, name: str, content: Contents, required: Sequence[Axis | int | None]
    ) -> None:
        """The same for an attribute."""
        changes = self._mismatches(content, required)
        if changes:
            values = list(node.get(name))
            for position, change in changes.items():
                values[position] = change.number
            node.set(name, values)

    def _mismatches(
        self, content: Contents, required: Sequence[Axis | int | None]
    ) -> dict[int, _Change]:
        changes: dict[int, _Change] = {}
        sizes = selected(self.selection)
        for position, (element, wanted) in enumerate(zip(content.ravel(), required, strict=True)):
            if wanted is None or not self._may_differ(element, wanted):
                continue
            target = wanted if isinstance(wanted, int) else size_over_dims(wanted, sizes)
            actual = over_dims(element, sizes)
            if actual == target:
                continue
            if isinstance(target, int):
                changes[position] = _Change(number=target)
            else:
                factors = ratio(target, actual)
                assert factors is not None  # else locked by the analysis
                changes[position] = _Change(times=factors[0], over=factors[1])
        return changes

    def _may_differ(self, element: Size, wanted: Axis | int) -> bool:
        """Whether pruning changes what is required, or what the element says."""
        if isinstance(wanted, int):
            return evaluate(element, self.selection) is not None or self._depends(element)
        if self.changes(wanted) or self._depends(element):
            return True
        return isinstance(element, int) and axis_size(wanted) is not None

    def _depends(self, element: Size) -> bool:
        return self.changes(*axes_of(element))

    def _compute_elements(
        self, node: Node, index: int, changes: dict[int, _Change], size: int
    ) -> None:
        """Elements of a computed vector become vector / over * times + number."""
        old, graph = node.input(index), node.graph
        assert old is not None
        assert graph is not None
        over, times, number = (np.full(size, n, np.int64) for n in (1, 1, 0))
        for position, change in changes.items():
            over[position], times[position], number[position] = change
        value = old
        for op_type, array, neutral in (("Div", over, 1), ("Mul", times, 1), ("Add", number, 0)):
            if (array == neutral).all():
                continue
            name = self.model.fresh_name(f"{old.name}_pruned")
            constant = self.model.graph.add_initializer(
                self.model.fresh_name(f"{name}_{op_type.lower()}"),
                _cast(array, old.dtype or TensorProto.INT64),
            )
            result = Value(name, old.type)
            step = Node(op_type, [value, constant], [result], name=self.model.fresh_name(name))
            step.graph = graph
            graph.nodes.insert(graph.nodes.index(node), step)
            value = result
        node.set_input(index, value)


class _Change(NamedTuple):
    """An element becomes element / over * times + number."""

    over: int = 1
    times: int = 0
    number: int = 0


def apply_selection(analysis: Analysis, selection: Selection) -> None:
    """Rewrite the analyzed model in place so that only the selected indices remain."""
    model = analysis.model
    if selection:
        separate_initializers(model)
    changed = _sliced_types(analysis, selection)
    _slice_parameters(analysis, selection)
    rewriter = Applier(model, selection)
    for rewrite in analysis.rewrites:
        rewrite(rewriter)
    for value, shape in changed.items():
        value.set_tensor_type(value.dtype, shape)
    _remove_unused(model)


def _sliced_types(analysis: Analysis, selection: Selection) -> dict[Value, list[int | str | None]]:
    """New shapes of the values that get smaller."""
    changed = {}
    for value, axes in analysis.axes.items():
        if axes is None or value.shape is None or value.const is not None:
            continue
        if any(selection.changes(axis) for axis in axes):
            changed[value] = [
                selection.size(axis) if selection.changes(axis) else old
                for old, axis in zip(value.shape, axes, strict=True)
            ]
    return changed


def _slice_parameters(analysis: Analysis, selection: Selection) -> None:
    """Slice constants use by use; uses that need the same slice share one constant."""
    model = analysis.model
    by_value: dict[Value, list[Parameter]] = defaultdict(list)
    for parameter in analysis.parameters.values():
        by_value[parameter.value].append(parameter)
    for value, parameters in by_value.items():
        variants: dict[tuple[object, ...], list[Parameter]] = defaultdict(list)
        for parameter in parameters:
            variants[_slice_key(parameter.blocks, selection)].append(parameter)
        sliced = {key: uses for key, uses in variants.items() if any(k is not None for k in key)}
        if not sliced:
            continue
        whole = len(sliced) == 1 and sum(map(len, sliced.values())) == len(value.uses)
        for uses in sliced.values():
            tensor = Tensor.from_array(
                slice_blocks(uses[0].tensor.numpy(), uses[0].blocks, selection),
                uses[0].tensor.dtype,
            )
            if whole and value.const is not None:
                value.const = tensor
                value.set_tensor_type(tensor.dtype, tensor.shape)
                continue
            new = model.graph.add_initializer(model.fresh_name(f"{value.name}_pruned"), tensor)
            for parameter in uses:
                parameter.node.set_input(parameter.use.position, new)


def _slice_key(blocks: Sequence[Axes], selection: Selection) -> tuple[object, ...]:
    """What tells slices of one constant apart; all None where nothing is cut."""
    indices = [selection.indices(axis) for axes in blocks for axis in axes]
    return tuple(None if i is None else i.tobytes() for i in indices)


def slice_blocks(array: Array, blocks: Sequence[Axes], selection: Selection) -> Array:
    """Keep the selected indices of every block (equal parts along the first axis)."""
    rows = array.shape[0] // len(blocks) if array.ndim else 0
    parts = []
    for number, axes in enumerate(blocks):
        part = array[number * rows : (number + 1) * rows] if len(blocks) > 1 else array
        for position, axis in enumerate(axes):
            indices = selection.indices(axis)
            if indices is not None:
                part = np.take(part, indices, axis=position)
        parts.append(part)
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _cast(array: npt.NDArray[Any], dtype: int) -> Tensor:
    from onnx import helper

    return Tensor.from_array(array.astype(helper.tensor_dtype_to_np_dtype(dtype)), dtype)


def _remove_unused(model: Model) -> None:
    """Drop constants that nothing reads since their uses got slices of their own."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if not value.uses and not value.is_input:
            del graph.initializers[name]
    constants = [n for n in graph.nodes if n.op_type == "Constant"]
    dead = [n for n in constants if not any(v is not None and v.uses for v in n.outputs)]
    graph.remove_nodes(dead)


__all__ = ["Applier", "Use", "apply_selection", "slice_blocks"]
