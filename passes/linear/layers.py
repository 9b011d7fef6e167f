"""Nodes that are linear in their weights: what multiplies them, and where they are stored.

A layer's rows [groups, rows, in] times its matrix [groups, in, out] plus its bias
[groups, out] are its output, at the positions that were picked of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...ir.graph import Node, Value
from ...ir.model import Model
from ...ir.tensor import Array, Tensor
from .moments import Doubles

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BiasPlace:
    """The input of a node that holds a bias, and what it is multiplied by."""

    node: Node
    position: int
    factor: float = 1.0


class Solvable(ABC):
    """A node that is linear in its weights, or has a part that is.

    `position` is that of the weights among the node's inputs. `has_bias` tells whether a
    constant is added to the product, which `write` can replace.
    """

    has_bias = True

    def __init__(self, model: Model, node: Node, position: int = 1) -> None:
        self.model = model
        self.node = node
        self.position = position

    @property
    def weights(self) -> Tensor:
        """As they are now."""
        found = self.model.constant(self.node.input(self.position))
        assert found is not None
        return found

    @property
    def stored(self) -> Value:
        """The value that holds the weights."""
        value = self.node.input(self.position)
        assert value is not None
        return value

    @abstractmethod
    def read(self) -> tuple[Doubles, Doubles]:
        """The matrix and the bias."""

    @abstractmethod
    def write(self, matrix: Doubles, bias: Doubles) -> None:
        """Replace both. Weights that several nodes share change for all of them."""

    def _replace_weights(self, array: npt.NDArray[np.floating]) -> None:
        value = self.stored
        tensor = Tensor.from_array(array.astype(self.weights.numpy().dtype), self.weights.dtype)
        if value.const is not None:
            value.const = tensor
            value.set_tensor_type(tensor.dtype, tensor.shape)
            return
        name = self.model.fresh_name(f"{value.name}_recovered")
        new = self.model.graph.add_initializer(name, tensor)
        for user, position in list(value.uses):
            if isinstance(user, Node):
                user.set_input(position, new)


class Layer(Solvable):
    """A node, its input, and the output that its weights should make right.

    `place` holds its bias, if it has one.
    """

    place: BiasPlace | None = None

    def __init__(
        self, model: Model, node: Node, source: Value, result: Value, position: int = 1
    ) -> None:
        super().__init__(model, node, position)
        self.source = source
        self.result = result

    def samples(self, output: Array) -> int:
        """Parts of an output of which each gives rows at the positions that are picked."""
        return int(output.shape[0])

    @abstractmethod
    def places(self, output: Array) -> int:
        """Positions that each of these parts has, each of which gives a row."""

    @abstractmethod
    def rows(self, source: Array, output: Sequence[int], picked: Positions) -> Array:
        """What the weights multiply at the picked positions of an output of a shape."""

    @abstractmethod
    def targets(self, output: Array, picked: Positions) -> Array:
        """The output's values there: [groups, rows, out]."""

    def pick(self, generator: np.random.Generator, output: Array, wanted: float) -> Positions:
        """Positions that give about as many rows as are wanted of one output."""
        return pick(generator, self.places(output), wanted / max(self.samples(output), 1))


def replace(
    model: Model, node: Node, position: int, array: npt.NDArray[np.floating], like: Tensor
) -> None:
    """Let an input of a node, and no other node, read other values, of the type of a tensor."""
    tensor = Tensor.from_array(array.astype(like.numpy().dtype), like.dtype)
    old = node.input(position)
    if old is not None and old.const is not None and len(old.uses) == 1:
        old.const = tensor
        old.set_tensor_type(tensor.dtype, tensor.shape)
        return
    hint = f"{node.label}_recovered" if old is None else f"{old.name}_recovered"
    node.set_input(position, model.graph.add_initializer(model.fresh_name(hint), tensor))


def _vector(model: Model, node: Node, position: int, size: int) -> Doubles:
    """A constant vector that may be left out."""
    tensor = model.constant(node.input(position))
    return np.zeros(size) if tensor is None else np.asarray(tensor.numpy(), np.float64).reshape(-1)


class ConvolutionLayer(Layer):
    """Conv and ConvTranspose in any number of dimensions, with groups."""

    def __init__(self, model: Model, node: Node, source: Value, result: Value) -> None:
        super().__init__(model, node, source, result)
        self.transposed = node.op_type == "ConvTranspose"
        self.place = BiasPlace(node, 2)
        self.kernel = self.weights.shape[2:]
        self.groups = int(node.get("group", 1))
        self._indices: tuple[tuple[int, ...], tuple[int, ...], Positions] | None = None

    def places(self, output: Array) -> int:
        return math.prod(output.shape[2:])

    def rows(self, source: Array, output: Sequence[int], picked: Positions) -> Array:
        taps = self._taps(tuple(source.shape[2:]), tuple(output[2:]))[picked]
        return _gathered(source, taps, self.groups)

    def targets(self, output: Array, picked: Positions) -> Array:
        return _gathered(output, picked[:, None], self.groups)

    def read(self) -> tuple[Doubles, Doubles]:
        matrix = self.arrange(np.asarray(self.weights.numpy(), np.float64))
        out = matrix.shape[-1]
        bias = _vector(self.model, self.node, 2, self.groups * out)
        return matrix, bias.reshape(self.groups, out)

    def arrange(self, weights: Doubles) -> Doubles:
        """An array of the weights' shape as the matrix [groups, in, out]."""
        first, second = weights.shape[:2]
        split = weights.reshape(self.groups, first // self.groups, second, -1)
        # [groups, in, out, taps] or [groups, out, in, taps]
        matrix = split.transpose((0, 1, 3, 2) if self.transposed else (0, 2, 3, 1))
        return matrix.reshape(self.groups, -1, matrix.shape[-1])

    def restore(self, matrix: Doubles) -> Doubles:
        """The array that `arrange` makes a matrix of."""
        split = matrix.reshape(self.groups, -1, math.prod(self.kernel), matrix.shape[-1])
        order = (0, 1, 3, 2) if self.transposed else (0, 3, 1, 2)
        return split.transpose(order).reshape(self.weights.shape)

    def write(self, matrix: Doubles, bias: Doubles) -> None:
        self._replace_weights(self.restore(matrix))
        replace(self.model, self.node, 2, bias.reshape(-1), self.weights)

    def _taps(self, source: tuple[int, ...], output: tuple[int, ...]) -> Positions:
        """[positions, taps]: the element of the input under each tap, -1 where there is none."""
        if self._indices is not None and self._indices[:2] == (source, output):
            return self._indices[2]
        rank = len(self.kernel)
        strides = self.node.get("strides") or [1] * rank
        dilations = self.node.get("dilations") or [1] * rank
        begins = self._begins(source, output, strides, dilations)
        axes = []
        for size, out, kernel, stride, dilation, begin in zip(
            source, output, self.kernel, strides, dilations, begins, strict=True
        ):
            at, tap = np.arange(out)[:, None], np.arange(kernel)[None, :]
            if self.transposed:
                moved = at + begin - tap * dilation
                place = np.where(moved % stride == 0, moved // stride, -1)
            else:
                place = at * stride - begin + tap * dilation
            axes.append(np.where((place >= 0) & (place < size), place, -1))
        taps = np.zeros((1, 1), np.int64)
        outside = np.zeros((1, 1), bool)
        for size, place in zip(source, axes, strict=True):
            joined = taps[:, None, :, None] * size + place[None, :, None, :]
            missing = outside[:, None, :, None] | (place < 0)[None, :, None, :]
            taps = joined.reshape(taps.shape[0] * place.shape[0], -1)
            outside = missing.reshape(taps.shape)
        taps = np.where(outside, -1, taps)
        self._indices = (source, output, taps)
        return taps

    def _begins(
        self,
        source: tuple[int, ...],
        output: tuple[int, ...],
        strides: Sequence[int],
        dilations: Sequence[int],
    ) -> list[int]:
        """Padding in front of each spatial axis (ONNX, Conv and ConvTranspose: auto_pad)."""
        rank = len(self.kernel)
        auto = self.node.get("auto_pad", "NOTSET")
        explicit = self.node.get("pads")
        if auto in ("NOTSET", "") and (
            not self.transposed or "output_shape" not in self.node.attributes
        ):
            return list(explicit[:rank]) if explicit else [0] * rank
        if auto == "VALID":
            return [0] * rank
        begins = []
        extra = self.node.get("output_padding") or [0] * rank
        for axis in range(rank):
            reach = (self.kernel[axis] - 1) * dilations[axis] + 1
            if self.transposed:
                whole = strides[axis] * (source[axis] - 1) + extra[axis] + reach
                total = max(whole - output[axis], 0)
            else:
                total = max((output[axis] - 1) * strides[axis] + reach - source[axis], 0)
            smaller = total // 2
            # SAME_UPPER puts the odd one behind, ConvTranspose's other modes in front
            lower = auto != "SAME_UPPER" if self.transposed else auto == "SAME_LOWER"
            begins.append(total - smaller if lower else smaller)
        return begins


def _gathered(images: Array, places: Positions, groups: int) -> Array:
    """Elements of [batch, channels, ...] as rows [groups, batch * rows, channels * elements].

    `places` [rows, elements] are places in a channel, -1 for a zero beside it.
    """
    batch, channels = images.shape[:2]
    flat = np.zeros((channels, math.prod(images.shape[2:]) + 1), np.float32)
    found = np.empty((groups, batch, len(places), channels // groups, places.shape[1]), np.float32)
    for number, image in enumerate(images):
        flat[:, :-1] = image.reshape(channels, -1)
        picked = np.take(flat, places, axis=1).reshape(groups, -1, *places.shape)
        found[:, number] = picked.transpose(0, 2, 1, 3)
    return found.reshape(groups, batch * len(places), -1)


class Normalization(Layer):
    """Scale and shift behind a normalization: each channel for itself.

    BatchNormalization is an affine function of its input; the others divide by statistics of
    it, which `normalized` computes. Where it is `by_element`, it takes rows [channels, rows, 1] of
    the input. `place` holds the shift, where there is one.
    """

    def __init__(
        self,
        model: Model,
        node: Node,
        source: Value,
        result: Value,
        axis: int,
        normalized: Callable[[Array], Array],
        *,
        by_element: bool = False,
        position: int = 1,
        place: BiasPlace | None = None,
    ) -> None:
        super().__init__(model, node, source, result, position)
        self.by_element = by_element
        self.has_bias = place is not None
        self.place = place
        self.axis = axis  # of the channels
        self.normalized = normalized

    def places(self, output: Array) -> int:
        return math.prod(output.shape[1:]) // int(output.shape[self.axis])

    def rows(self, source: Array, output: Sequence[int], picked: Positions) -> Array:
        if self.by_element:
            return self.normalized(self.targets(source, picked)).astype(np.float32, copy=False)
        return self.targets(self.normalized(source), picked)

    def targets(self, output: Array, picked: Positions) -> Array:
        channels = output.shape[self.axis]
        return _gathered(np.moveaxis(output, self.axis, 1), picked[:, None], channels)

    def read(self) -> tuple[Doubles, Doubles]:
        scale = np.asarray(self.weights.numpy(), np.float64)
        bias = np.zeros(scale.size)
        if self.place is not None:
            bias = _vector(self.model, self.place.node, self.place.position, scale.size)
        return scale.reshape(-1, 1, 1), bias.reshape(-1, 1)

    def write(self, matrix: Doubles, bias: Doubles) -> None:
        self._replace_weights(matrix.reshape(self.weights.shape))
        if self.place is not None:
            node, position = self.place.node, self.place.position
            held = self.model.constant(node.input(position))
            shape = (-1,) if held is None or held.size != bias.size else held.shape
            replace(self.model, node, position, bias.reshape(shape), self.weights)


def pick(generator: np.random.Generator, places: int, wanted: float) -> Positions:
    """Some of an output's positions in ascending order, all of them where that is too few."""
    count = max(1, math.ceil(wanted))
    if count >= places:
        return np.arange(places)
    return np.sort(generator.choice(places, count, replace=False))
