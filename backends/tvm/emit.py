"""From plan to schedule: layouts chosen for the whole graph, one kernel call per operation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import regions
from .choices import Choices
from .emit_concat import emit as emit_concat
from .emit_products import emit as emit_product
from .emit_recurrent import emit as emit_recurrent
from .emit_resize import emit as emit_resize
from .emit_rows import emit as emit_rows
from .kernels import convolution, depthwise, matmul, pooling, softmax, winograd
from .kernels import elementwise as elementwise_kernels
from .kernels.epilogue import Operand
from .layout import Blocked
from .layouts import choose_layouts, needed_pads
from .objects import digest
from .operators.base import emit as emit_loops
from .parts import Part, stays
from .plan import (
    ConcatOp,
    ConvolutionOp,
    ElementwiseOp,
    Fused,
    LoopsOp,
    MatMulOp,
    Operation,
    Plan,
    PoolingOp,
    ProductOp,
    QuantizedSoftmaxOp,
    RecurrentOp,
    RegionOp,
    ReshapeOp,
    ResizeOp,
    RowsOp,
    Tensor,
    View,
)
from .programs import Program
from .schedule import Buffer, Call, Schedule, nbytes
from .targets import Target
from .work import is_parallel, macs

Array = Any


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A call in the schedule. Of an operation's calls the last is its own kernel's; those
    before bring its operands into the layouts that it reads. What brings the model's
    outputs into theirs belongs to no operation."""

    operation: Operation | None
    kernel: str


class Emitter:
    """Makes a plan's schedule and kernels.

    `functions` are the kernels' TensorIR by name, `digests` those of their content.
    """

    def __init__(self, plan: Plan, target: Target, choices: Choices | None = None) -> None:
        self.plan, self.target = plan, target
        self.choices = choices or Choices(target)
        self.schedule = Schedule()
        self.kernels: dict[Any, str] = {}
        self.functions: dict[str, Any] = {}
        self.digests: dict[str, str] = {}
        self.calls: list[KernelCall] = []
        self.current: Operation | None = None
        self.layouts, self.parts = choose_layouts(plan, self.choices)
        self.shared: dict[Tensor, Buffer] = {}
        self.buffers: dict[tuple[Tensor, Blocked | None], Buffer] = {}

    def emit(self) -> Schedule:
        for index, tensor in enumerate(self.plan.inputs):
            size = nbytes(tensor.shape, tensor.dtype)
            self.buffers[tensor, None] = Buffer(size, input=index)
        for op in self.plan.operations:
            self.operation(op)
        self.current = None
        self.schedule.outputs = [self.read(t, None) for _, t in self.plan.outputs]
        return self.schedule

    def describe_calls(self) -> list[dict[str, Any]]:
        """All calls of kernels in order, each with its node and the multiply-accumulates."""
        own = {id(call.operation): index for index, call in enumerate(self.calls)}
        result = []
        for index, call in enumerate(self.calls):
            op = call.operation
            result.append(
                {
                    "kernel": call.kernel,
                    "operation": op.label if op is not None else "outputs",
                    "dtype": next((t.dtype for t in op.reads()), "") if op is not None else "",
                    "macs": macs(op) if op is not None and own[id(op)] == index else 0,
                }
            )
        return result

    # --- buffers ---

    def allocate(self, shape: Sequence[int], dtype: str) -> Buffer:
        """Memory for a tensor, which its first call writes."""
        return Buffer(nbytes(shape, dtype))

    def constant(self, array: Array) -> Buffer:
        """An array's elements, row-major."""
        return Buffer(array.nbytes, array=array)

    def read(self, tensor: Tensor, layout: Blocked | None) -> Buffer:
        """The buffer holding a tensor in a layout, converting it (once) where needed."""
        key = (tensor, layout)
        if key in self.buffers:
            return self.buffers[key]
        if tensor.const is not None and layout is None:
            result = self.constant(np.asarray(tensor.const, tensor.dtype))
        else:
            result = self.copy(tensor, layout)
        self.buffers[key] = result
        return result

    def copy(self, tensor: Tensor, layout: Blocked | None, into: Buffer | None = None) -> Buffer:
        """A tensor in another layout or place."""
        op = ElementwiseOp(tensor.name, [tensor], [View.of(tensor)], Program((tensor.dtype,)))
        return self.elementwise(op, layout, into)

    def own(self, tensor: Tensor) -> Blocked | None:
        """The layout that a tensor's producer writes."""
        return self.layouts.get(tensor)

    def blocked(
        self, tensor: Tensor, pads: Sequence[int] = (0, 0, 0, 0), fill: float = 0
    ) -> tuple[Buffer, Blocked]:
        """A blocked buffer that has at least these pads, and its layout."""
        own = self.own(tensor)
        if own is None or not own.covers(pads, fill):
            own = Blocked.of(tensor.shape, self.target.block, tensor.dtype).with_pads(pads, fill)
        return self.read(tensor, own), own

    def define(self, tensor: Tensor, buffer: Buffer) -> None:
        self.buffers[tensor, self.own(tensor)] = buffer

    def place(self, tensor: Tensor) -> Buffer | None:
        """The part of a buffer where a tensor must be written; None where it has its own."""
        part = self.parts.get(tensor)
        return None if part is None else self.view(part, self.layouts[tensor])

    def view(self, part: Part, layout: Blocked) -> Buffer:
        """What lies at a part of a buffer, in a layout with the buffer's padding."""
        whole, dtype = part.whole, part.whole.dtype
        shape = self.layouts[whole].shape
        if whole not in self.shared:
            self.shared[whole] = self.allocate(shape, dtype)
        offset = part.first_block * nbytes(shape[1:], dtype)
        return self.shared[whole].part(offset, nbytes(layout.shape, dtype))

    # --- kernels ---

    def produce(
        self,
        tensor: Tensor,
        key: Any,
        build: Callable[[], Any],
        arguments: Sequence[Buffer],
        scratch: Sequence[tuple[Sequence[int], str]] = (),
    ) -> None:
        """As `call`, for a kernel that writes a blocked tensor."""
        shape, into = self.layouts[tensor].shape, self.place(tensor)
        self.define(tensor, self.call(key, build, arguments, shape, tensor.dtype, scratch, into))

    def call(
        self,
        key: Any,
        build: Callable[[], Any],
        arguments: Sequence[Buffer],
        shape: Sequence[int],
        dtype: str,
        scratch: Sequence[tuple[Sequence[int], str]] = (),
        into: Buffer | None = None,
    ) -> Buffer:
        """Call the kernel that `key` describes, building it where no call has yet.

        `scratch` are shapes and types of buffers that the kernel takes after its result,
        which it writes to the buffer `into`, if given.
        """
        return self.call_all(key, build, arguments, [(shape, dtype), *scratch], into)[0]

    def call_all(
        self,
        key: Any,
        build: Callable[[], Any],
        arguments: Sequence[Buffer],
        results: Sequence[tuple[Sequence[int], str]],
        into: Buffer | None = None,
    ) -> list[Buffer]:
        """As `call`, for all buffers that the kernel writes."""
        if key not in self.kernels:
            kind = key[0] if isinstance(key[0], str) else type(key[0]).__name__.lower()
            self.kernels[key] = self.add_function(kind, build())
        written = [self.allocate(shape, dtype) for shape, dtype in results]
        if into is not None:
            written[0] = into
        self.call_function(self.kernels[key], [*arguments, *written])
        return written

    def add_function(self, kind: str, function: Any) -> str:
        """The function's name, which is its content's.

        Equal functions, in whatever model, have the same name and the same object file.
        """
        content = digest(function)
        name = f"{kind}_{content[:16]}"
        self.digests[name] = content
        self.functions[name] = function
        return name

    def call_function(self, name: str, arguments: Sequence[Buffer]) -> None:
        """Call a function on all of its buffers."""
        self.calls.append(KernelCall(self.current, name))
        self.schedule.calls.append(Call(name, tuple(arguments)))

    # --- operations ---

    def operation(self, op: Operation) -> None:
        self.current = op
        if isinstance(op, ConvolutionOp):
            self.convolution(op)
        elif isinstance(op, PoolingOp):
            self.pooling(op)
        elif isinstance(op, ResizeOp):
            emit_resize(self, op)
        elif isinstance(op, MatMulOp):
            self.matmul(op)
        elif isinstance(op, ProductOp):
            emit_product(self, op)
        elif isinstance(op, RowsOp):
            emit_rows(self, op)
        elif isinstance(op, RecurrentOp):
            emit_recurrent(self, op)
        elif isinstance(op, ElementwiseOp):
            into = self.place(op.output)
            if into is None or not stays(op, self.parts, self.layouts):
                into = self.elementwise(op, self.own(op.output), into)
            self.define(op.output, into)
        elif isinstance(op, ConcatOp):
            emit_concat(self, op)
        elif isinstance(op, ReshapeOp):
            self.define(op.output, self.read(op.input, None))
        elif isinstance(op, QuantizedSoftmaxOp):
            self.softmax(op)
        elif isinstance(op, RegionOp):
            self.region(op)
        elif isinstance(op, LoopsOp):
            emit_loops(self, op)
        else:
            raise TypeError(type(op).__name__)

    def convolution(self, op: ConvolutionOp) -> None:
        x, layout = self.blocked(op.input, needed_pads(op, self.choices), op.fill)
        y = self.layouts[op.output]
        if op.is_depthwise:
            self.depthwise(op, x, layout)
            return
        if self.choices.by_winograd(op):
            self.winograd(op, x, layout)
            return
        channels = max(y.padded_channels, self.target.lanes)
        operands, arguments = self.operands(op, y, channels)
        conv = convolution.Convolution(
            layout,
            op.input.dtype,
            y,
            op.geometry,
            op.groups,
            op.program,
            operands,
            _weight_range(op.weights),
            op.upsampling,
        )
        tile = self.choices.convolution(op, conv)
        dot = conv.dot(self.target)
        values, bias = op.weights, op.bias
        if dot.input_offset:
            sums = op.weights.reshape(op.weights.shape[0], -1).astype(np.int64).sum(1)
            bias = (bias.astype(np.int64) - dot.input_offset * sums).astype(np.int32)
        if op.upsampling is not None:
            width = conv.phase_vectors(self.target) * self.target.lanes
            values, bias = (_padded_phases(a, op.upsampling.phases, width) for a in (values, bias))
        bias = _padded(bias, conv.vectors(self.target) * self.target.lanes, dot.accumulator)
        weights = convolution.pack_weights(conv, self.target, tile, values)
        starts = convolution.start_table(conv, self.target, tile)
        extra = [self.constant(starts)] if starts is not None else []
        parallel = is_parallel(op, self.target)
        self.produce(
            op.output,
            (conv, tile, parallel),
            lambda: convolution.build(conv, self.target, tile, parallel),
            [x, self.constant(weights), self.constant(bias), *arguments, *extra],
        )

    def depthwise(self, op: ConvolutionOp, x: Any, layout: Blocked) -> None:
        y = self.layouts[op.output]
        operands, arguments = self.operands(op, y, y.padded_channels)
        kernel = depthwise.Depthwise(
            layout,
            op.input.dtype,
            y,
            op.geometry,
            op.program,
            operands,
            _weight_range(op.weights),
        )
        bias = op.bias
        if kernel.by_dot_product(self.target) and op.input.dtype == "int8":
            sums = op.weights.reshape(op.weights.shape[0], -1).astype(np.int64).sum(1)
            bias = (bias.astype(np.int64) - 128 * sums).astype(np.int32)
        bias = _padded(bias, y.padded_channels, kernel.accumulator)
        weights = depthwise.pack_weights(kernel, self.target, op.weights)
        parallel = is_parallel(op, self.target)
        self.produce(
            op.output,
            (kernel, parallel),
            lambda: depthwise.build(kernel, self.target, parallel),
            [x, self.constant(weights), self.constant(bias), *arguments],
        )

    def winograd(self, op: ConvolutionOp, x: Any, layout: Blocked) -> None:
        y = self.layouts[op.output]
        operands, arguments = self.operands(op, y, y.padded_channels)
        kernel = winograd.Winograd(layout, y, op.geometry, op.program, operands)
        parallel = is_parallel(op, self.target)
        self.produce(
            op.output,
            (kernel, parallel),
            lambda: winograd.build(kernel, self.target, parallel),
            [
                x,
                self.constant(winograd.pack_weights(kernel, op.weights)),
                self.constant(_padded(op.bias, y.padded_channels, "float32")),
                *arguments,
            ],
            scratch=[(shape, "float32") for shape in kernel.scratch],
        )

    def operands(
        self, op: Fused, output: Blocked, channels: int
    ) -> tuple[tuple[Operand, ...], list[Any]]:
        """The operands of a program over a blocked output, and their variables."""
        operands, arguments = [], []
        for tensor in op.operands:
            if tensor.elements == 1:
                operands.append(Operand(tensor.dtype))
                arguments.append(self.read(tensor, None))
            elif tensor.const is not None and tensor.elements == output.channels:
                operands.append(Operand(tensor.dtype, per_channel=True))
                values = _padded(tensor.const.reshape(-1), channels, tensor.dtype)
                arguments.append(self.constant(values))
            else:
                shape = (1,) * (len(op.output.shape) - len(tensor.shape)) + tensor.shape
                if shape != tensor.shape:
                    reshaped = Tensor(tensor.name, tensor.dtype, shape, tensor.const)
                    self.buffers[reshaped, None] = self.read(tensor, None)
                    tensor = reshaped
                variable, layout = self.blocked(tensor)
                operands.append(Operand(tensor.dtype, layout))
                arguments.append(variable)
        return tuple(operands), arguments

    def pooling(self, op: PoolingOp) -> None:
        x, layout = self.blocked(op.input, op.geometry.pads, op.fill)
        y = self.layouts[op.output]
        operands, arguments = self.operands(op, y, y.padded_channels)
        divisor, table = 0.0, []
        if op.counts is not None:
            if (op.counts == op.counts.flat[0]).all():
                divisor = float(op.counts.flat[0])
            else:
                table = [self.constant(np.ascontiguousarray(op.counts).reshape(-1))]
        kernel = pooling.Pooling(
            op.kind,
            layout,
            op.input.dtype,
            y,
            op.geometry,
            op.element,
            divisor,
            op.program,
            operands,
        )
        parallel = is_parallel(op, self.target)
        self.produce(
            op.output,
            (kernel, parallel),
            lambda: pooling.build(kernel, self.target, parallel),
            [x, *table, *arguments],
        )

    def matmul(self, op: MatMulOp) -> None:
        shape = op.output.shape
        depth, columns = op.weights.shape
        rows = math.prod(shape) // columns
        lanes = self.target.lanes
        padded = -(-columns // lanes) * lanes
        operands, arguments = [], []
        for tensor in op.operands:
            if tensor.elements == 1:
                operands.append(matmul.MatrixOperand(tensor.dtype, 1, 0, 0))
                arguments.append(self.read(tensor, None))
            elif tensor.elements == columns and tensor.const is not None:
                operands.append(matmul.MatrixOperand(tensor.dtype, padded, 0, 1))
                arguments.append(
                    self.constant(_padded(tensor.const.reshape(-1), padded, tensor.dtype))
                )
            else:
                step = columns if tensor.elements != columns else 0
                operands.append(matmul.MatrixOperand(tensor.dtype, tensor.elements, step, 1))
                arguments.append(self.read(tensor, None))
        kernel = matmul.MatMul(
            rows,
            depth,
            columns,
            op.input.dtype,
            op.program,
            tuple(operands),
            _weight_range(op.weights),
        )
        tile = self.choices.product(op, kernel)
        dot = kernel.dot(self.target)
        bias = op.bias
        if dot.input_offset:
            sums = op.weights.astype(np.int64).sum(0)
            bias = (bias.astype(np.int64) - dot.input_offset * sums).astype(np.int32)
        parallel = is_parallel(op, self.target)
        variable = self.call(
            (kernel, tile, parallel),
            lambda: matmul.build(kernel, self.target, tile, parallel),
            [
                self.read(op.input, None),
                self.constant(matmul.pack_weights(kernel, self.target, tile, op.weights)),
                self.constant(_padded(bias, padded, dot.accumulator)),
                *arguments,
            ],
            (rows * columns,),
            op.output.dtype,
        )
        self.define(op.output, variable)

    def elementwise(
        self, op: ElementwiseOp, layout: Blocked | None, into: Buffer | None = None
    ) -> Buffer:
        shape = op.output.shape
        if op.output.elements == 0:
            return self.allocate(shape, op.program.dtype)
        sources, arguments = [], []
        for view in op.views:
            source, argument = self.source(view, shape, layout)
            sources.append(source)
            arguments.append(argument)
        kernel = elementwise_kernels.Elementwise(shape, layout, tuple(sources), op.program)
        out = layout.shape if layout is not None else (math.prod(shape),)
        parallel = is_parallel(op, self.target)
        return self.call(
            (kernel, parallel),
            lambda: elementwise_kernels.build(kernel, self.target, parallel),
            arguments,
            out,
            op.program.dtype,
            into=into,
        )

    def source(
        self, view: View, shape: tuple[int, ...], layout: Blocked | None
    ) -> tuple[elementwise_kernels.Source, Any]:
        """How a kernel writing `layout` reads a view, and the variable that it reads."""
        tensor = view.tensor
        padded = (1,) * (len(shape) - len(view.shape)) + view.shape
        own = self.own(tensor)
        first = view.first_channel if own is not None else None
        if own is not None and first is not None and view.shape == shape != tensor.shape:
            fits = layout is None or layout.block == own.block
            if fits and first % own.block == 0:
                source = elementwise_kernels.Source(tensor.dtype, padded, own)
                part = dataclasses.replace(source, first_block=first // own.block)
                return part, self.read(tensor, own)
        if not view.is_whole:
            assert view.strides is not None
            strides = (0,) * (len(shape) - len(view.shape)) + view.strides
            source = elementwise_kernels.Source(
                tensor.dtype, padded, None, strides, view.offset, tensor.elements
            )
            return source, self.read(tensor, None)
        full = tensor.shape == shape
        matches = len(padded) in (3, 4) and padded[1] == shape[1] if len(shape) in (3, 4) else False
        if (
            own is not None
            and len(tensor.shape) == len(shape)
            and (
                (layout is not None and matches and own.block == layout.block)
                or (layout is None and full)
            )
        ):
            return elementwise_kernels.Source(tensor.dtype, padded, own), self.read(tensor, own)
        return elementwise_kernels.Source(tensor.dtype, padded), self.read(tensor, None)

    def softmax(self, op: QuantizedSoftmaxOp) -> None:
        rows, size = op.output.shape
        kernel = softmax.QuantizedSoftmax(
            rows, size, op.output.dtype, op.output_scale, op.output_zero
        )
        table = softmax.exponentials(kernel, op.input_scale)
        variable = self.call(
            (kernel,),
            lambda: softmax.build(kernel),
            [self.read(op.input, None), self.constant(table)],
            (rows * size,),
            op.output.dtype,
        )
        self.define(op.output, variable)

    def region(self, op: RegionOp) -> None:
        results = regions.call(self, op.converted, [self.read(t, None) for t in op.inputs])
        for tensor, buffer in zip(op.outputs, results, strict=True):
            self.define(tensor, buffer)


def _weight_range(weights: Array) -> tuple[int, int]:
    """8 bits unless integer weights need more."""
    if weights.dtype == np.float32 or (weights.min() >= -128 and weights.max() <= 127):
        return -128, 127
    return int(weights.min()), int(weights.max())


def _padded_phases(values: Array, phases: int, width: int) -> Array:
    """[phases * channels, ...] with zeros up to `width` channels in each phase."""
    split = values.reshape(phases, -1, *values.shape[1:])
    padded = np.zeros((phases, width, *values.shape[1:]), values.dtype)
    padded[:, : split.shape[1]] = split
    return padded.reshape(phases * width, *values.shape[1:])


def _padded(values: Array, count: int, dtype: str) -> Array:
    padded = np.zeros(count, dtype)
    padded[: values.size] = values
    return padded
