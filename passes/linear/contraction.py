"""Products of a value with one constant: MatMul from either side, Gemm, Einsum.

One description for all: every axis has a label, and which operands and results have a label
says whether the product sums over it, runs over it, or keeps it apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node, Value
from ...ir.model import Model
from ...ir.tensor import Array
from .layers import BiasPlace, Layer, Positions, replace
from .moments import Doubles

Label = int | str
Labels = tuple[Label | None, ...]
"""Of an array's axes; None for one of size 1 that stands for nothing."""


@dataclass(frozen=True)
class Labelling:
    """Labels of what is multiplied, of the weights and of the product."""

    source: Labels
    weights: Labels
    output: Labels

    def __post_init__(self) -> None:
        for labels in (self.source, self.weights, self.output):
            named = [label for label in labels if label is not None]
            if len(set(named)) < len(named):
                raise ValueError("an axis is repeated")
        s, w, o = (set(labels) - {None} for labels in (self.source, self.weights, self.output))
        if (s | w) - o - (s & w) or o - (s | w):
            raise ValueError("an operand is summed by itself")

    @property
    def groups(self) -> list[Label]:
        """In operands and product: each index is a product of its own."""
        return [x for x in self.output if x is not None and x in self.source and x in self.weights]

    @property
    def inner(self) -> list[Label]:
        """What is summed over, in the order of the weights."""
        return [x for x in self.weights if x is not None and x not in self.output]

    @property
    def outer(self) -> list[Label]:
        """Of the weights and the product alone."""
        return [x for x in self.output if x is not None and x not in self.source]

    @property
    def rows(self) -> list[Label]:
        """Of the value and the product alone: each index is a row."""
        return [x for x in self.output if x is not None and x not in self.weights]


class Contraction(Layer):
    """A product over labelled axes, times `scale`.

    `place` holds its bias: an input of a Gemm, the constant of an Add behind others. Without
    one there is none, and none can be written.
    """

    def __init__(
        self,
        model: Model,
        node: Node,
        source: Value,
        result: Value,
        position: int,
        labelling: Labelling,
        *,
        scale: float = 1.0,
        place: BiasPlace | None = None,
    ) -> None:
        super().__init__(model, node, source, result, position)
        self.labelling = labelling
        self.scale = scale
        self.place = place
        self.has_bias = place is not None

    def samples(self, output: Array) -> int:
        rows = self.labelling.rows
        return int(output.shape[self.labelling.output.index(rows[0])]) if rows else 1

    def places(self, output: Array) -> int:
        sizes = dict(zip(self.labelling.output, output.shape, strict=True))
        return math.prod(sizes[label] for label in self.labelling.rows[1:])

    def rows(self, source: Array, output: Sequence[int], picked: Positions) -> Array:
        return self._picked(source, self.labelling.source, self.labelling.inner, picked)

    def targets(self, output: Array, picked: Positions) -> Array:
        return self._picked(output, self.labelling.output, self.labelling.outer, picked)

    def _picked(
        self, array: Array, labels: Labels, columns: Sequence[Label], picked: Positions
    ) -> Array:
        groups, rows = self.labelling.groups, self.labelling.rows
        arranged = _arranged(array, labels, [*groups, *rows, *columns])
        sizes = arranged.shape
        count = math.prod(sizes[: len(groups)])
        first = sizes[len(groups)] if rows else 1
        width = math.prod(sizes[len(groups) + len(rows) :])
        rest = math.prod(sizes[len(groups) + 1 : len(groups) + len(rows)])
        split = arranged.reshape(count, first, rest, width)
        found: Array = np.ascontiguousarray(split[:, :, picked], np.float32)
        return found.reshape(count, first * len(picked), width)

    def read(self) -> tuple[Doubles, Doubles]:
        matrix = self.arrange(np.asarray(self.weights.numpy(), np.float64)) * self.scale
        return matrix, self._read_bias(matrix.shape[0], matrix.shape[2])

    def arrange(self, weights: Doubles) -> Doubles:
        """An array of the weights' shape as a matrix [groups, in, out], without `scale`."""
        order = [*self.labelling.groups, *self.labelling.inner, *self.labelling.outer]
        arranged = _arranged(weights, self.labelling.weights, order)
        groups = math.prod(arranged.shape[: len(self.labelling.groups)])
        outputs = math.prod(arranged.shape[len(order) - len(self.labelling.outer) :])
        return arranged.reshape(groups, -1, outputs)

    def restore(self, matrix: Doubles) -> Doubles:
        """The array that `arrange` makes a matrix of."""
        labelling = self.labelling
        order = [*labelling.groups, *labelling.inner, *labelling.outer]
        sizes = dict(zip(labelling.weights, self.weights.shape, strict=True))
        arranged = matrix.reshape([sizes[label] for label in order])
        named = [label for label in labelling.weights if label is not None]
        weights = arranged.transpose([order.index(label) for label in named])
        return weights.reshape(self.weights.shape)

    def write(self, matrix: Doubles, bias: Doubles) -> None:
        self._replace_weights(self.restore(matrix / self.scale))
        if self.place is not None:
            self._write_bias(bias / self.place.factor, self.place)

    def _bias_order(self) -> list[Label]:
        return [*self.labelling.groups, *self.labelling.outer]

    def _read_bias(self, groups: int, outputs: int) -> Doubles:
        tensor = None
        if self.place is not None:
            tensor = self.model.constant(self.place.node.input(self.place.position))
        if tensor is None or self.place is None:
            return np.zeros((groups, outputs))
        array = np.asarray(tensor.numpy(), np.float64)
        labels = self.labelling.output
        array = array.reshape([1] * (len(labels) - array.ndim) + list(array.shape))
        order = self._bias_order()
        axes = [labels.index(label) for label in order]
        rest = [axis for axis in range(len(labels)) if axis not in axes]
        found = array.transpose([*axes, *rest]).reshape([array.shape[axis] for axis in axes])
        sizes = dict(zip(self.labelling.weights, self.weights.shape, strict=True))
        whole = np.broadcast_to(found, [sizes[label] for label in order])
        return self.place.factor * whole.reshape(groups, outputs)

    @property
    def bias_shape(self) -> list[int]:
        """Of a constant that holds a bias, added to the product."""
        sizes = dict(zip(self.labelling.weights, self.weights.shape, strict=True))
        labels, order = self.labelling.output, self._bias_order()
        first = min((labels.index(label) for label in order), default=len(labels))
        return [sizes[x] if x in order else 1 for x in labels[first:]]

    def _write_bias(self, bias: Doubles, place: BiasPlace) -> None:
        sizes = dict(zip(self.labelling.weights, self.weights.shape, strict=True))
        order = self._bias_order()
        named = [label for label in self.labelling.output if label in order]
        arranged = bias.reshape([sizes[label] for label in order])
        arranged = arranged.transpose([order.index(label) for label in named])
        replace(
            self.model, place.node, place.position, arranged.reshape(self.bias_shape), self.weights
        )

    def is_bias(self, shape: Sequence[int]) -> bool:
        """Whether a constant of a shape, added to the product, is the same in all rows."""
        labels = self.labelling.output
        if len(shape) > len(labels):
            return False
        behind = labels[len(labels) - len(shape) :]
        return all(
            size == 1 or x in self._bias_order() for size, x in zip(shape, behind, strict=True)
        )


def _arranged(array: Array, labels: Labels, order: Sequence[Label]) -> Array:
    """The array with the axes of given labels, and no others, in their order."""
    named = [label for label in labels if label is not None]
    squeezed = array.reshape(
        [size for size, label in zip(array.shape, labels, strict=True) if label is not None]
    )
    found: Array = squeezed.transpose([named.index(label) for label in order])
    return found


def gemm_labelling(node: Node, weights_position: int) -> Labelling:
    """Of a Gemm whose operand at a position is the constant."""
    left: Labels = ("k", "m") if node.get("transA", 0) else ("m", "k")
    right: Labels = ("n", "k") if node.get("transB", 0) else ("k", "n")
    operands = (left, right)
    return Labelling(operands[1 - weights_position], operands[weights_position], ("m", "n"))


def matmul_labelling(source: Value, weights: Sequence[int], weights_position: int) -> Labelling:
    """Of a MatMul. Raises ValueError where sizes are open that decide what multiplies what."""
    shape = source.shape
    if shape is None or not shape or not weights:
        raise ValueError("the rank of what it multiplies is unknown")
    first: list[Label] = ["k"] if len(weights) == 1 else ["m", "k"]
    if weights_position == 0:
        ours = first
        theirs: list[Label] = ["k"] if len(shape) == 1 else ["k", "n"]
    else:
        ours = ["k"] if len(weights) == 1 else ["k", "n"]
        theirs = ["k"] if len(shape) == 1 else ["m", "k"]
    output: list[Label | None] = [x for x in (*theirs, *ours) if x != "k"]
    output.sort(key=str)  # m in front of n
    mine: list[Label | None] = list(ours)
    its: list[Label | None] = list(theirs)
    outer_weights = list(weights[: len(weights) - len(ours)])
    outer_shape = list(shape[: len(shape) - len(theirs)])
    for axis in range(1, max(len(outer_weights), len(outer_shape)) + 1):
        w = outer_weights[-axis] if axis <= len(outer_weights) else None
        s = outer_shape[-axis] if axis <= len(outer_shape) else None
        label: Label = axis
        has_w, has_s = w is not None and w != 1, axis <= len(outer_shape) and s != 1
        if has_w and has_s and w != s:
            raise ValueError("which of its axes are of size 1 is known only at run time")
        if w is not None:
            mine.insert(0, label if has_w else None)
        if axis <= len(outer_shape):
            its.insert(0, label if has_s or not has_w else None)
        output.insert(0, label if has_w or axis <= len(outer_shape) else None)
    return Labelling(tuple(its), tuple(mine), tuple(output))


def einsum_labelling(node: Node, weights_position: int) -> Labelling:
    """Of an Einsum of two operands. Raises ValueError where it isn't a product of this kind."""
    equation = str(node.get("equation", "")).replace(" ", "")
    if "." in equation or len(node.inputs) != 2:
        raise ValueError("only products of two operands without an ellipsis are")
    operands, _, output = equation.partition("->")
    terms = operands.split(",")
    if len(terms) != 2:
        raise ValueError("its equation doesn't fit its operands")
    if "->" not in equation:
        both = "".join(terms)
        output = "".join(sorted(x for x in set(both) if both.count(x) == 1))
    source, weights = terms[1 - weights_position], terms[weights_position]
    return Labelling(tuple(source), tuple(weights), tuple(output))
