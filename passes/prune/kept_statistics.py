"""Statistics over kept indices only: what normalizations of the masked original compute.

Zeros in the place of removed channels would count in a mean. Where statistics run over an
axis that loses indices (`prune --normalized`) the operator gets the kept ones alone, and
its results are spread over all indices again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...ir.graph import Dimension, Node, Value
from ...ir.model import Model
from ...ir.tensor import Tensor

Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

_OVER_LAST = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_FROM_AXIS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_GROUPS = {"GroupNormalization": "num_groups", "GroupNorm": "groups"}

_WHOLE = (0, 3)
"""Results of the shape of the first input; others are statistics."""


def statistic_axes(model: Model, node: Node) -> list[int]:
    """Axes of a node's first input that its statistics run over; none for other operators.

    Axes that never lose indices, as rows and columns under GroupNormalization, are left out,
    and nodes whose attributes make no sense, which lose none.
    """
    data = node.input(0)
    rank = None if data is None else data.rank
    try:
        return _statistic_axes(model, node, rank) if rank else []
    except (TypeError, ValueError):
        return []


def _statistic_axes(model: Model, node: Node, rank: int) -> list[int]:
    if node.op_type in _OVER_LAST:
        return [rank - 1]
    if node.op_type in _FROM_AXIS:
        return list(range(int(node.get("axis", -1)) % rank, rank))
    if node.op_type in _GROUPS:
        return [rank - 1 if node.op_type == "GroupNorm" and node.get("channels_last", 1) else 1]
    if node.op_type == "ReduceMean":
        axes = node.get("axes")
        tensor = model.constant(node.input(1))
        if axes is None and tensor is not None:
            axes = tensor.numpy().tolist()
        if axes is None and node.input(1) is not None:
            return []  # computed, from sizes as a rule: they say which of them stay
        return [int(a) % rank for a in axes] if axes else list(range(rank))
    return []


class KeptStatistics:
    """Nodes that compute one node on kept indices; `masks` leads from axes of its first
    input, counted from the last one, to what tells those from the others."""

    def __init__(self, model: Model, node: Node, masks: Mapping[int, Mask]) -> None:
        self._model, self._node, self._masks = model, node, masks
        self._kept = {behind: np.flatnonzero(mask) for behind, mask in masks.items()}
        self.nodes: list[Node] = []

    def build(self) -> list[Node]:
        """The nodes that take the place of the node, whose results keep their names."""
        node = self._node
        data = node.input(0)
        rank = 0 if data is None else data.rank or 0
        inputs = [self._narrow(value, index) for index, value in enumerate(node.inputs)]
        results = [v if v is None else Value(self._fresh(v.name)) for v in node.outputs]
        attributes = dict(node.attributes)
        outputs = node.outputs
        node.detach_inputs()
        copy = Node(node.op_type, inputs, results, attributes, domain=node.domain)
        groups = _GROUPS.get(node.op_type)
        if groups is not None:
            copy.set(groups, self._kept_groups(int(node.get(groups))))
        self.nodes.append(copy)
        for index, (value, result) in enumerate(zip(outputs, results, strict=True)):
            if value is None or result is None:
                continue
            if index in _WHOLE and node.op_type != "ReduceMean":
                self._widen(value, result, rank)
            else:
                self.nodes.append(Node("Identity", [result], [value]))
        return self.nodes

    def _narrow(self, value: Value | None, index: int) -> Value | None:
        """Take the kept indices of an input: of data and of what is broadcast to it."""
        if value is None or (self._node.op_type == "ReduceMean" and index > 0):
            return value
        if self._node.op_type in _GROUPS and index > 0:
            return self._take(value, 1, self._kept_of_channels(value))
        for behind, kept in self._kept.items():
            rank = value.rank or 0
            if rank >= behind and _size(value, behind) != 1:
                value = self._take(value, behind, kept)
        return value

    def _kept_of_channels(self, vector: Value) -> Indices:
        """Kept indices of a scale or bias with an element for each channel or group."""
        (mask,) = self._masks.values()
        count = _size(vector, 1)
        assert isinstance(count, int)
        return np.flatnonzero(mask.reshape(count, -1).any(axis=1))

    def _kept_groups(self, groups: int) -> int:
        (mask,) = self._masks.values()
        return int(np.count_nonzero(mask.reshape(groups, -1).any(axis=1)))

    def _take(self, value: Value, behind: int, kept: Indices) -> Value:
        rank = value.rank
        assert rank is not None
        result = Value(self._fresh(value.name))
        shape = list(value.shape or ())
        shape[rank - behind] = len(kept)
        result.set_tensor_type(value.dtype, shape)
        return self._gather(value, kept, rank - behind, result)

    def _widen(self, value: Value, result: Value, rank: int) -> None:
        """Spread a result over all indices; those that were removed repeat a kept one, since
        the mask that follows makes zeros of them."""
        for number, (behind, mask) in enumerate(self._masks.items()):
            places = np.maximum(np.cumsum(mask) - 1, 0)
            final = number == len(self._masks) - 1
            wide = value if final else Value(self._fresh(value.name))
            result = self._gather(result, places, rank - behind, wide)

    def _gather(self, value: Value, indices: Indices, axis: int, result: Value) -> Value:
        name = self._fresh(f"{value.name}_indices")
        array = Tensor.from_array(indices.astype(np.int64))
        node = Node("Gather", [value, self._model.graph.add_initializer(name, array)], [result])
        node.set("axis", axis)
        self.nodes.append(node)
        return result

    def _fresh(self, name: str) -> str:
        return self._model.fresh_name(f"{name}_kept")


def _size(value: Value, behind: int) -> Dimension:
    """The size of an axis counted from the last one, which is 1."""
    shape = value.shape
    return None if shape is None else shape[len(shape) - behind]
