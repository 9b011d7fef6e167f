"""The plan: a model as a list of fused operations, between ONNX nodes and kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..kernels.convolution.direct import Geometry, Upsampling
from ..kernels.recurrent import Recurrent
from .programs import Program
from .sampling import Taps

Array = Any


@dataclasses.dataclass(eq=False)
class Tensor:
    """A value at run time, or a constant where `const` is set.

    `readers` are the operations that read it, each once; `kept` says that something
    besides them needs it as it is (a graph output).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    const: Array | None = None
    producer: Operation | None = None
    readers: list[Operation] = dataclasses.field(default_factory=list)
    kept: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether the tensor may have the blocked layout: N, C, [H,] W."""
        return len(self.shape) in (3, 4)


@dataclasses.dataclass(eq=False)
class View:
    """How an elementwise operation reads a tensor: as it is, or through strides."""

    tensor: Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    offset: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> View:
        return cls(tensor, tensor.shape)

    @property
    def is_whole(self) -> bool:
        return self.strides is None and self.shape == self.tensor.shape

    @property
    def element_strides(self) -> tuple[int, ...]:
        """Elements between neighbours on each axis; 0 where the axis has one element."""
        found = row_major(self.shape) if self.strides is None else self.strides
        return tuple(s if size != 1 else 0 for s, size in zip(found, self.shape, strict=True))

    @property
    def first_channel(self) -> int | None:
        """Where the view is some channels of whole images in order, the first of them."""
        whole, part = self.tensor.shape, self.shape
        if not self.tensor.is_image or len(part) != len(whole) or not self.tensor.elements:
            return None
        if (part[0], *part[2:]) != (whole[0], *whole[2:]):
            return None
        steps = row_major(whole)
        own = zip(self.element_strides, steps, part, strict=True)
        first, rest = divmod(self.offset, steps[1])
        if rest or first + part[1] > whole[1] or any(n > 1 and s != t for s, t, n in own):
            return None
        return first


@dataclasses.dataclass(eq=False)
class Operation:
    """Base: what runs at one point of the plan. `label` names the ONNX node it came from."""

    label: str
    outputs: list[Tensor]

    @property
    def output(self) -> Tensor:
        return self.outputs[0]

    def reads(self) -> list[Tensor]:
        """All tensors read, constants included."""
        raise NotImplementedError


@dataclasses.dataclass(eq=False)
class Fused(Operation):
    """An operation that ends in a program; `operands` are the program's, after operand 0."""

    operands: list[Tensor]
    program: Program


@dataclasses.dataclass(eq=False)
class ConvolutionOp(Fused):
    """Convolution by constant weights [O, I / groups, KH, KW]; bias in accumulator type.

    For 8-bit inputs the bias already holds `-zero_point * sum(weights)`, and padding
    holds `fill`, the input's zero point. With `upsampling` weights and bias are those of
    all phases.
    """

    input: Tensor
    weights: Array
    bias: Array
    geometry: Geometry
    groups: int
    fill: float
    upsampling: Upsampling | None = None

    def reads(self) -> list[Tensor]:
        return [self.input, *self.operands]

    @property
    def is_depthwise(self) -> bool:
        channels = self.input.shape[1]
        return self.groups == channels == self.output.shape[1] and channels > 1


@dataclasses.dataclass(eq=False)
class PoolingOp(Fused):
    """Pooling; `counts` [OH, OW] divides averages, `fill` is what padding must hold."""

    input: Tensor
    kind: str
    geometry: Geometry
    element: Program
    counts: Array | None
    fill: float

    def reads(self) -> list[Tensor]:
        return [self.input, *self.operands]


@dataclasses.dataclass(eq=False)
class ResizeOp(Fused):
    """Resizing of rows and columns; `element` is what is done to each input element."""

    input: Tensor
    mode: str
    element: Program
    rows: Taps
    columns: Taps

    @property
    def suits_rows(self) -> bool:
        """Whether the kernel can, and should, run on row-major tensors near their readers.

        Channels are images to it then, and pixels are made one by one: as fast as a change of
        layout if there is little to compute, or if there are few channels for blocks.
        """
        shape = self.output.shape
        fits = all(t.elements == 1 or t.shape == shape for t in self.operands)
        floats = self.input.dtype == "float32" and self.columns.count <= 2
        return fits and (self.mode == "nearest" or floats or shape[1] <= 4)

    def reads(self) -> list[Tensor]:
        return [self.input, *self.operands]


@dataclasses.dataclass(eq=False)
class MatMulOp(Fused):
    """[..., depth] @ constant [depth, columns]; bias [columns] in accumulator type."""

    input: Tensor
    weights: Array
    bias: Array

    def reads(self) -> list[Tensor]:
        return [self.input, *self.operands]


@dataclasses.dataclass(eq=False)
class ProductOp(Fused):
    """left [..., rows, depth] @ right [..., depth, columns], both run-time values.

    Views have the rank of `shape`, the product's; leading axes of size 1 broadcast. 8-bit
    operands have zero points. `strides`, where given, are those of the product's axes in
    the output, whose axes are in another order.
    """

    left: View
    right: View
    left_zero: int
    right_zero: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def reads(self) -> list[Tensor]:
        return [self.left.tensor, self.right.tensor, *self.operands]


@dataclasses.dataclass(eq=False)
class RowsOp(Fused):
    """A float32 kernel over one axis of the input seen as `extents`, [outer, size, inner].

    `kind` as in `kernels.rows.Rows`. Operands are single numbers, for all but reductions
    also of the output's size or one number for each element of a row.
    """

    input: Tensor
    kind: str
    extents: tuple[int, int, int]
    epsilon: float = 0.0

    def reads(self) -> list[Tensor]:
        return [self.input, *self.operands]


@dataclasses.dataclass(eq=False)
class RecurrentOp(Operation):
    """A recurrent layer whose inputs are projected already, for each direction.

    Outputs are Y, Y_h and for LSTM Y_c; `weights` [directions, gates * hidden, hidden];
    `late_bias` [directions, hidden] is added before GRU's reset gate multiplies.
    """

    layer: Recurrent
    projections: list[Tensor]
    weights: Array
    late_bias: Array | None
    states: list[Tensor]

    def reads(self) -> list[Tensor]:
        return [*self.projections, *self.states]


@dataclasses.dataclass(eq=False)
class ElementwiseOp(Operation):
    """A program over broadcast views; all its operands are explicit."""

    views: list[View]
    program: Program

    def reads(self) -> list[Tensor]:
        return [v.tensor for v in self.views]


@dataclasses.dataclass(eq=False)
class ConcatOp(Operation):
    inputs: list[Tensor]
    axis: int

    def reads(self) -> list[Tensor]:
        return list(self.inputs)


@dataclasses.dataclass(eq=False)
class ReshapeOp(Operation):
    """The same elements in row-major order under another shape."""

    input: Tensor

    def reads(self) -> list[Tensor]:
        return [self.input]


@dataclasses.dataclass(eq=False)
class QuantizedSoftmaxOp(Operation):
    """Softmax over the last axis of an 8-bit tensor."""

    input: Tensor
    input_scale: float
    output_scale: float
    output_zero: int

    def reads(self) -> list[Tensor]:
        return [self.input]


@dataclasses.dataclass(eq=False)
class LoopsOp(Operation):
    """A kernel of plain loops over row-major tensors; `build` makes it.

    Without outputs it only checks what it reads.
    Kernels of equal `key`, where it isn't None, and equal types are the same.
    """

    inputs: list[Tensor]
    build: Callable[[], Any]
    key: Any = None

    def reads(self) -> list[Tensor]:
        return list(self.inputs)


@dataclasses.dataclass
class Plan:
    """Operations in execution order, with the graph's inputs and outputs.

    `operators` maps the labels of nodes to their operators.
    """

    inputs: list[Tensor]
    outputs: list[tuple[str, Tensor]]
    operations: list[Operation]
    operators: dict[str, str] = dataclasses.field(default_factory=dict)

    def link(self) -> None:
        """Recompute producers and readers, dropping operations whose results nothing reads."""
        needed = {id(t) for _, t in self.outputs}
        alive: list[Operation] = []
        for op in reversed(self.operations):
            if not op.outputs or any(id(t) in needed for t in op.outputs):
                alive.append(op)
                needed.update(id(t) for t in op.reads())
        self.operations = alive[::-1]
        for op in self.operations:
            for tensor in (*op.outputs, *op.reads()):
                tensor.readers = []
                tensor.kept = False
        for op in self.operations:
            for tensor in op.outputs:
                tensor.producer = op
            for tensor in dict.fromkeys(op.reads()):
                tensor.readers.append(op)
        for _, tensor in self.outputs:
            tensor.kept = True


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours on each axis of a tensor without gaps."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def broadcast_strides(tensor: Tensor, shape: Sequence[int]) -> list[int]:
    """A tensor's strides over a shape that it broadcasts to."""
    own = row_major(tensor.shape)
    strides = [s if size != 1 else 0 for s, size in zip(own, tensor.shape, strict=True)]
    return [0] * (len(shape) - len(strides)) + strides


def numpy_dtype(onnx_dtype: int) -> str | None:
    """The name of an ONNX element type, or None where kernels have no such type."""
    names = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
    names |= {9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}
    return names.get(onnx_dtype)


def check_int32(values: Array) -> Array:
    """Bias values as int32, wrapping as 32-bit accumulators do."""
    return np.asarray(values, np.int64).astype(np.int32)
