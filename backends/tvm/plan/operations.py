"""The plan: a model as a list of fused operations, between ONNX nodes and kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

from ....ir.symbolic.expressions import Atom
from ....ir.tensor import Array
from .blocked import Fill
from .geometry import Counted, Geometry, Upsampling
from .programs import Program
from .recurrent import Recurrent
from .sampling import OpenTaps, Taps
from .tensors import Operation, PlanTensor, View


@dataclasses.dataclass(eq=False)
class Fused(Operation):
    """An operation that ends in a program; `operands` are the program's, after operand 0."""

    operands: list[PlanTensor]
    program: Program


@dataclasses.dataclass(eq=False)
class ConvolutionOp(Fused):
    """Convolution by constant weights [O, I / groups, KH, KW]; bias in accumulator type.

    For 8-bit inputs the bias already holds `-zero_point * sum(weights)`, and padding
    holds `fill`, the input's zero point; one that a run computes is an operand, too. With
    `upsampling` weights and bias are those of all phases.
    """

    input: PlanTensor
    weights: Array
    bias: Array
    geometry: Geometry
    groups: int
    fill: Fill
    upsampling: Upsampling | None = None

    def reads(self) -> list[PlanTensor]:
        return [self.input, *self.operands]

    @property
    def is_depthwise(self) -> bool:
        channels = self.input.shape[1]
        return self.groups == channels == self.output.shape[1] and channels > 1


@dataclasses.dataclass(eq=False)
class PoolingOp(Fused):
    """Pooling; `counts` [OH, OW] divides averages, `fill` is what padding must hold."""

    input: PlanTensor
    kind: str
    geometry: Geometry
    element: Program
    counts: Array | Counted | None
    fill: float

    def reads(self) -> list[PlanTensor]:
        return [self.input, *self.operands]


@dataclasses.dataclass(eq=False)
class ResizeOp(Fused):
    """Resizing of rows and columns; `element` is what is done to each input element."""

    input: PlanTensor
    mode: str
    element: Program
    rows: Taps | OpenTaps
    columns: Taps | OpenTaps

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

    def reads(self) -> list[PlanTensor]:
        tables = (t for taps in (self.rows, self.columns) for t in taps.reads())
        return [self.input, *self.operands, *tables]


@dataclasses.dataclass(eq=False)
class MatMulOp(Fused):
    """[..., depth] @ constant [depth, columns]; bias [columns] in accumulator type.

    Bytes as weights may have zero points [columns], where the target multiplies bytes.
    """

    input: PlanTensor
    weights: Array
    bias: Array
    weight_zeros: Array | None = None

    def reads(self) -> list[PlanTensor]:
        return [self.input, *self.operands]


@dataclasses.dataclass(eq=False)
class BlockProductOp(Fused):
    """float32 [..., depth] @ constants of `bits` each: numbers [columns, blocks, block] along the
    depth, scales [columns, blocks] and zero points, which are half of the range where None.

    What the last block has past the depth counts nothing. `rounds` lets activations be bytes,
    with a scale for each block of a row.
    """

    input: PlanTensor
    numbers: Array
    scales: Array
    zeros: Array | None
    bits: int
    rounds: bool

    def reads(self) -> list[PlanTensor]:
        return [self.input, *self.operands]


@dataclasses.dataclass(eq=False)
class ProductOp(Fused):
    """left [..., rows, depth] @ right [..., depth, columns], both run-time values.

    Views have the rank of `shape`, the product's; leading axes of size 1 broadcast. 8-bit
    operands have zero points, numbers or tensors of one element. `strides`, where given, are
    those of the product's axes in the output, whose axes are in another order.
    """

    left: View
    right: View
    left_zero: int | PlanTensor
    right_zero: int | PlanTensor
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def zeros(self) -> list[PlanTensor]:
        """The zero points that a run computes."""
        return [z for z in (self.left_zero, self.right_zero) if isinstance(z, PlanTensor)]

    def reads(self) -> list[PlanTensor]:
        return [self.left.tensor, self.right.tensor, *self.zeros, *self.operands]


@dataclasses.dataclass(eq=False)
class RowsOp(Fused):
    """A float32 kernel over one axis of the input seen as `extents`, [outer, size, inner].

    `kind` is softmax, log_softmax, normalize ((x - mean) / sqrt(variance + epsilon)) or
    root_mean_square (x / sqrt(mean square + epsilon)), whose result has the input's shape;
    else it names a reduction, whose result is [outer, inner]. Operands are single numbers,
    for all but reductions also of the output's size or one number for each element of a row.
    """

    input: PlanTensor
    kind: str
    extents: tuple[int, int, int]
    epsilon: float = 0.0

    @property
    def reduces(self) -> bool:
        return self.kind not in ("softmax", "log_softmax", "normalize", "root_mean_square")

    def reads(self) -> list[PlanTensor]:
        return [self.input, *self.operands]


@dataclasses.dataclass(eq=False)
class RecurrentOp(Operation):
    """A recurrent layer whose inputs are projected already, for each direction.

    Outputs are Y, Y_h and for LSTM Y_c; `weights` [directions, gates * hidden, hidden], of bytes
    with `scales` [directions, gates * hidden]; `late_bias` [directions, hidden] is added before
    GRU's reset gate multiplies.
    """

    layer: Recurrent
    projections: list[PlanTensor]
    weights: Array
    scales: Array | None
    late_bias: Array | None
    states: list[PlanTensor]

    def reads(self) -> list[PlanTensor]:
        return [*self.projections, *self.states]


@dataclasses.dataclass(eq=False)
class ElementwiseOp(Operation):
    """A program over broadcast views; all its operands are explicit."""

    views: list[View]
    program: Program

    def reads(self) -> list[PlanTensor]:
        return [v.tensor for v in self.views]


@dataclasses.dataclass(eq=False)
class ConcatOp(Operation):
    """Tensors one after the other along an axis."""

    inputs: list[PlanTensor]
    axis: int

    def reads(self) -> list[PlanTensor]:
        return list(self.inputs)


@dataclasses.dataclass(eq=False)
class AppendOp(Operation):
    """`new` written into a cache, the result, behind the rows of `past` along an axis.

    Those are there already, and are left as they are.
    """

    past: PlanTensor
    new: PlanTensor
    axis: int

    def reads(self) -> list[PlanTensor]:
        return [self.new]


@dataclasses.dataclass(eq=False)
class ReshapeOp(Operation):
    """The same elements in row-major order under another shape."""

    input: PlanTensor

    def reads(self) -> list[PlanTensor]:
        return [self.input]


@dataclasses.dataclass(eq=False)
class QuantizationRangeOp(Operation):
    """Scale (float32) and zero point (uint8) of a float32 tensor's range, as
    DynamicQuantizeLinear finds them."""

    input: PlanTensor

    def reads(self) -> list[PlanTensor]:
        return [self.input]


@dataclasses.dataclass(eq=False)
class QuantizedSoftmaxOp(Operation):
    """Softmax over the last axis of an 8-bit tensor."""

    input: PlanTensor
    input_scale: float
    output_scale: float
    output_zero: int

    def reads(self) -> list[PlanTensor]:
        return [self.input]


@dataclasses.dataclass(eq=False)
class LoopsOp(Operation):
    """A kernel of plain loops over row-major tensors; `build` makes it.

    Without outputs it only checks what it reads.
    Kernels of equal `key`, where it isn't None, and equal types are the same.
    """

    inputs: list[PlanTensor]
    build: Callable[[], object]
    key: Hashable = None

    def reads(self) -> list[PlanTensor]:
        return list(self.inputs)


@dataclasses.dataclass(eq=False)
class State:
    """What each step of a loop hands to the next: `initial` is read before the first, `inner` by
    the body, which makes `after`; the loop's result is `last`."""

    initial: PlanTensor
    inner: PlanTensor
    after: PlanTensor
    last: PlanTensor


@dataclasses.dataclass(eq=False)
class Row:
    """`inner` is the row of `whole` along its first axis of the same number as the step, counted
    from the end where `backward`."""

    whole: PlanTensor
    inner: PlanTensor
    backward: bool


@dataclasses.dataclass(eq=False)
class LoopOp(Operation):
    """The operations of `body` again and again, as many times as `steps`, a size, says.

    Where that is None, `limit` does, a tensor of one number, or nobody. `proceeds` are truth
    values: whether to make the first step, and, of the body's, whether to make another one.
    `read` are rows that the body reads, `made` those that it makes; `captured` lead from tensors
    around the loop to the body's inputs that stand for them. Outputs are what states end as, then
    what is stacked.
    """

    body: Plan
    steps: int | None
    limit: PlanTensor | None
    proceeds: tuple[PlanTensor | None, PlanTensor] | None
    states: list[State]
    read: list[Row]
    made: list[Row]
    captured: list[tuple[PlanTensor, PlanTensor]]

    def reads(self) -> list[PlanTensor]:
        found = [state.initial for state in self.states]
        found += [row.whole for row in self.read]
        found += [outer for outer, _ in self.captured]
        first = self.proceeds[0] if self.proceeds is not None else None
        return [*found, *(t for t in (self.limit, first) if t is not None)]


@dataclasses.dataclass(eq=False)
class BranchOp(Operation):
    """One of two plans, the first where a truth value holds. Outputs are copies of what that has;
    `captured` lead from tensors around it to the inputs of each that stand for them."""

    condition: PlanTensor
    plans: tuple[Plan, Plan]
    captured: tuple[list[tuple[PlanTensor, PlanTensor]], list[tuple[PlanTensor, PlanTensor]]]

    def reads(self) -> list[PlanTensor]:
        return [self.condition, *(outer for pairs in self.captured for outer, _ in pairs)]


@dataclasses.dataclass(eq=False)
class ReadSizesOp(Operation):
    """Elements of a tensor, as numbers that sizes of later operations follow from."""

    input: PlanTensor
    sizes: dict[Atom, int]
    """The place of each number in the tensor."""

    def reads(self) -> list[PlanTensor]:
        return [self.input]


@dataclasses.dataclass(frozen=True)
class GrowingCache:
    """An output of the model that is one of its inputs, `past`, and more rows along an axis.

    In memory both may have room for more rows than they hold: `tensor` is the output with that
    room, and `rows` is how many it holds.
    """

    past: PlanTensor
    tensor: PlanTensor
    axis: int
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's shape."""
        shape = self.tensor.shape
        return (*shape[: self.axis], self.rows, *shape[self.axis + 1 :])


@dataclasses.dataclass
class Plan:
    """Operations in execution order, with the graph's inputs and outputs.

    `operators` maps the labels of nodes to their operators, `equal` are sizes that are equal in
    all runs that aren't refused. `sequences` names the outputs that together are a sequence
    of the model, by its name; None is an optional without an element.
    """

    inputs: list[PlanTensor]
    outputs: list[tuple[str, PlanTensor]]
    operations: list[Operation]
    operators: dict[str, str] = dataclasses.field(default_factory=dict)
    equal: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    sequences: dict[str, list[str] | None] = dataclasses.field(default_factory=dict)
    caches: list[GrowingCache] = dataclasses.field(default_factory=list)

    def output_shapes(self) -> list[tuple[int, ...]]:
        """Those of the model's outputs, of caches without the rows that nothing holds."""
        held = {cache.tensor: cache.shape for cache in self.caches}
        return [held.get(tensor, tensor.shape) for _, tensor in self.outputs]

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
