"""What every operation's emission needs: buffers in layouts, kernels built once, calls."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np

from ....ir.symbolic.expressions import single
from ....ir.tensor import Array
from ..bounds import Verdict, Verdicts, constant_arguments
from ..errors import UnprovenError
from ..kernels.epilogue import Operand
from ..kernels.movement import elementwise
from ..kernels.movement.sources import Elementwise, Source
from ..plan.aliases import Alias
from ..plan.blocked import Blocked, Fill
from ..plan.layouts import choose_layouts
from ..plan.operations import (
    AppendOp,
    ConcatOp,
    ElementwiseOp,
    Fused,
    LoopsOp,
    Plan,
    ReadSizesOp,
)
from ..plan.programs import Program
from ..plan.schedule import Buffer, KernelCall, OpenShapes, Schedule, nbytes
from ..plan.size_facts import facts_of
from ..plan.sizes import is_open, may_be_none
from ..plan.tensors import Operation, PlanTensor, View
from ..targets import Target
from ..tensorir.digest import digest, kernel_name
from ..tensorir.sizes import sizes_of, to_size
from ..tensorir.types import PrimFunc
from .choices import Choices
from .work import is_parallel, macs

Key: TypeAlias = tuple[Hashable, ...]
"""What decides a kernel, its kind first: calls of equal keys share it."""

log = logging.getLogger(__name__)


class Emission:
    """A plan's schedule and kernels in the making.

    `functions` are the kernels' TensorIR by name, `digests` those of their content,
    `proofs` what was proven of the accesses that each makes to its buffers.

    `origins` are the operations that the schedule's calls belong to. Of an operation's calls
    the last is its own kernel's; those before bring its operands into the layouts that it
    reads. What brings the model's outputs into theirs belongs to no operation. `open_steps` are
    the names of the steps of loops whose bodies are being emitted, from the outermost in.
    """

    def __init__(
        self,
        plan: Plan,
        target: Target,
        choices: Choices | None = None,
        verdicts: Verdicts | None = None,
        *,
        threads: bool,
    ) -> None:
        self.target, self.threads = target, threads
        self.verdicts = verdicts or Verdicts()
        self.choices = choices or Choices(target)
        self.schedule = Schedule()
        self.kernels: dict[Key, str] = {}
        self.functions: dict[str, PrimFunc] = {}
        self.digests: dict[str, str] = {}
        self.proofs: dict[str, Verdict] = {}
        self.origins: list[Operation | None] = []
        self.current: Operation | None = None
        self.operators = plan.operators
        self.layouts: dict[PlanTensor, Blocked] = {}
        self.aliases: dict[PlanTensor, Alias] = {}
        self.enter(plan)
        self.open_steps: list[str] = []
        self.shared: dict[PlanTensor, Buffer] = {}
        self.constants: dict[tuple[str, tuple[int, ...], bytes], Buffer] = {}
        self.buffers: dict[tuple[PlanTensor, Blocked | None], Buffer] = {
            (tensor, None): Buffer(nbytes(tensor.shape, tensor.dtype), input=index)
            for index, tensor in enumerate(plan.inputs)
        }
        reads_sizes = any(isinstance(op, ReadSizesOp) for op in plan.operations)
        if reads_sizes or any(is_open(*tensor.shape) for tensor in plan.inputs):
            inputs = tuple(tensor.shape for tensor in plan.inputs)
            outputs = tuple(plan.output_shapes())
            elements = {t.elements: None for t in plan.inputs if is_open(t.elements)}
            self.schedule.open = OpenShapes(inputs, outputs, tuple(plan.equal), elements)

    def enter(self, plan: Plan) -> None:
        """Choose the layouts of a plan, which is the whole or the body of a loop."""
        layouts, aliases = choose_layouts(plan, self.target.block, self.choices.needed_pads)
        self.layouts.update(layouts)
        self.aliases.update(aliases)

    def is_parallel(self, op: Operation) -> bool:
        """Whether the operation's kernel is to be shared out among threads."""
        return self.threads and is_parallel(op, self.target)

    def describe_calls(self) -> list[dict[str, Any]]:
        """All calls of kernels in order, each with its node, operator and multiply-accumulates."""
        own = {id(op): index for index, op in enumerate(self.origins)}
        result = []
        calls = zip(self.schedule.calls, self.origins, strict=True)
        for index, (call, op) in enumerate(calls):
            result.append(
                {
                    "kernel": call.kernel,
                    "operation": op.label if op is not None else "outputs",
                    "operator": self.operators.get(op.label, "") if op is not None else "",
                    "dtype": next((t.dtype for t in op.reads()), "") if op is not None else "",
                    "macs": macs(op) if op is not None and own[id(op)] == index else 0,
                }
            )
        return result

    # --- buffers ---

    def allocate(self, shape: Sequence[int], dtype: str) -> Buffer:
        """Memory for a tensor, which its first call writes."""
        elements = math.prod(shape)
        if self.schedule.open is not None and is_open(elements):
            self.schedule.open.elements[elements] = None
        return Buffer(nbytes(shape, dtype))

    def constant(self, array: Array) -> Buffer:
        """An array's elements, row-major. Equal ones are one buffer, however many read it."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = (array.dtype.str, array.shape, hashlib.sha256(content.data).digest())
        return self.constants.setdefault(key, Buffer(array.nbytes, array=array))

    def read(self, tensor: PlanTensor, layout: Blocked | None) -> Buffer:
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

    def copy(
        self, tensor: PlanTensor, layout: Blocked | None, into: Buffer | None = None
    ) -> Buffer:
        """A tensor in another layout or place."""
        op = ElementwiseOp(tensor.name, [tensor], [View.of(tensor)], Program((tensor.dtype,)))
        return self.elementwise(op, layout, into)

    def own(self, tensor: PlanTensor) -> Blocked | None:
        """The layout that a tensor's producer writes."""
        return self.layouts.get(tensor)

    def blocked(
        self,
        tensor: PlanTensor,
        pads: Sequence[int] = (0, 0, 0, 0),
        fill: Fill = 0,
        block: int = 1,
    ) -> tuple[Buffer, Blocked]:
        """A blocked buffer that has at least these pads and this block, and its layout."""
        own = self.own(tensor)
        if own is None or own.block < block or not own.covers(pads, fill):
            own = Blocked.of(tensor.shape, self.target.block, tensor.dtype).with_pads(pads, fill)
            own = dataclasses.replace(own, block=max(own.block, block))
        return self.read(tensor, own), own

    def define(self, tensor: PlanTensor, buffer: Buffer) -> None:
        self.buffers[tensor, self.own(tensor)] = buffer

    def place(self, tensor: PlanTensor) -> Buffer | None:
        """The part of a buffer where a tensor must be written; None where it has its own."""
        alias = self.aliases.get(tensor)
        return None if alias is None else self.view(alias, self.layouts[tensor])

    def view(self, alias: Alias, layout: Blocked) -> Buffer:
        """What lies at a part of a buffer, in a layout with the buffer's padding."""
        whole, dtype = alias.whole, alias.whole.dtype
        shape = self.layouts[whole].shape
        if whole not in self.shared:
            self.shared[whole] = self.allocate(shape, dtype)
        offset = alias.first_block * nbytes(shape[1:], dtype)
        return self.shared[whole].part(offset, nbytes(layout.shape, dtype))

    # --- kernels ---

    def produce(
        self,
        tensor: PlanTensor,
        key: Key,
        build: Callable[[], PrimFunc],
        arguments: Sequence[Buffer],
        scratch: Sequence[tuple[Sequence[int], str]] = (),
    ) -> None:
        """As `call`, for a kernel that writes a blocked tensor."""
        shape, into = self.layouts[tensor].shape, self.place(tensor)
        self.define(tensor, self.call(key, build, arguments, shape, tensor.dtype, scratch, into))

    def call(
        self,
        key: Key,
        build: Callable[[], PrimFunc],
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
        key: Key,
        build: Callable[[], PrimFunc],
        arguments: Sequence[Buffer],
        results: Sequence[tuple[Sequence[int], str]],
        into: Buffer | None = None,
    ) -> list[Buffer]:
        """As `call`, for all buffers that the kernel writes."""
        if key not in self.kernels:
            kind = key[0] if isinstance(key[0], str) else type(key[0]).__name__.lower()
            name = self.kernels[key] = self.add_function(kind, build())
            log.debug("%s: new kernel %s: %s", self.where(), name, key)
        written = [self.allocate(shape, dtype) for shape, dtype in results]
        if into is not None:
            written[0] = into
        self.call_function(self.kernels[key], [*arguments, *written])
        return written

    def add_function(self, kind: str, function: PrimFunc) -> str:
        """The function's name, which is its content's and the target's.

        Equal functions, in whatever model, have the same name and the same object file, so
        that a program which links several models has one of each.
        """
        content = digest(function)
        name = kernel_name(kind, content, json.dumps(self.target.llvm(), sort_keys=True))
        self.digests[name] = content
        self.functions[name] = function
        return name

    def call_function(self, name: str, arguments: Sequence[Buffer]) -> None:
        """Call a function on all of its buffers.

        Raises UnprovenError where it isn't proven that the function stays within them.
        """
        function, constants = self.functions[name], constant_arguments(arguments)
        sizes = sizes_of(function)
        equal = self.schedule.open.equal if self.schedule.open is not None else ()
        takes_empty, verdict = False, None
        takes = isinstance(self.current, (AppendOp, ConcatOp, LoopsOp))
        if takes and any(may_be_none(single(atom)) for atom in sizes):
            facts = facts_of(sizes, equal, with_empty=True)
            verdict = self.verdicts.of(function, self.digests[name], constants, facts)
            takes_empty = not verdict.unproven
        for further in (False, True):
            if verdict is None or verdict.unproven:
                facts = facts_of(sizes, equal, further=further)
                verdict = self.verdicts.of(function, self.digests[name], constants, facts)
        assert verdict is not None
        if verdict.unproven:
            del self.functions[name], self.digests[name]
            self.kernels = {key: own for key, own in self.kernels.items() if own != name}
            raise UnprovenError(
                self.current.label if self.current is not None else "",
                f"{self.where()}: kernel {name} can't be proven to stay within its buffers: "
                f"{verdict.unproven[0]}",
            )
        self.proofs[name] = verdict
        _check_sizes(f"{self.where()}: kernel {name}", function, verdict, arguments, equal)
        self.origins.append(self.current)
        written = tuple(arguments[index] for index in verdict.writes)
        label = self.current.label if self.current is not None else ""
        call = KernelCall(name, tuple(arguments), tuple(sizes), written, takes_empty, label)
        self.schedule.calls.append(call)

    def where(self) -> str:
        """The operation being emitted, for messages."""
        if self.current is None:
            return "the graph's outputs"
        label = self.current.label
        return f"node '{label}' ({self.operators.get(label, 'part of it')})"

    def operands(
        self, op: Fused, output: Blocked, channels: int
    ) -> tuple[tuple[Operand, ...], list[Buffer]]:
        """The operands of a program over a blocked output, and their buffers."""
        operands, arguments = [], []
        for tensor in op.operands:
            if tensor.elements == 1:
                operands.append(Operand(tensor.dtype))
                arguments.append(self.read(tensor, None))
            elif tensor.const is not None and tensor.elements == output.channels:
                operands.append(Operand(tensor.dtype, per_channel=True))
                values = padded(tensor.const.reshape(-1), channels, tensor.dtype)
                arguments.append(self.constant(values))
            else:
                shape = (1,) * (len(op.output.shape) - len(tensor.shape)) + tensor.shape
                if shape != tensor.shape:
                    reshaped = PlanTensor(tensor.name, tensor.dtype, shape, tensor.const)
                    self.buffers[reshaped, None] = self.read(tensor, None)
                    tensor = reshaped
                buffer, layout = self.blocked(tensor)
                operands.append(Operand(tensor.dtype, layout))
                arguments.append(buffer)
        return tuple(operands), arguments

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
        if layout is not None and isinstance(layout.fill, PlanTensor):
            arguments.append(self.read(layout.fill, None))
        kernel = Elementwise(shape, layout, tuple(sources), op.program)
        out = layout.shape if layout is not None else (math.prod(shape),)
        parallel = self.is_parallel(op)
        return self.call(
            (kernel, parallel),
            lambda: elementwise.build(kernel, self.target, parallel),
            arguments,
            out,
            op.program.dtype,
            into=into,
        )

    def source(
        self, view: View, shape: tuple[int, ...], layout: Blocked | None
    ) -> tuple[Source, Buffer]:
        """How a kernel writing `layout` reads a view, and the buffer that it reads."""
        tensor = view.tensor
        padded = (1,) * (len(shape) - len(view.shape)) + view.shape
        own = self.own(tensor)
        first = view.first_channel if own is not None else None
        if own is not None and first is not None and view.shape == shape != tensor.shape:
            fits = layout is None or layout.block == own.block
            if fits and first % own.block == 0:
                source = Source(tensor.dtype, padded, own)
                part = dataclasses.replace(source, first_block=first // own.block)
                return part, self.read(tensor, own)
        if not view.is_whole:
            assert view.strides is not None
            strides = (0,) * (len(shape) - len(view.shape)) + view.strides
            source = Source(tensor.dtype, padded, None, strides, view.offset, tensor.elements)
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
            return Source(tensor.dtype, padded, own), self.read(tensor, own)
        return Source(tensor.dtype, padded), self.read(tensor, None)


def _check_sizes(
    where: str,
    function: PrimFunc,
    verdict: Verdict,
    arguments: Sequence[Buffer],
    equal: Sequence[tuple[int, int]],
) -> None:
    """That buffers are as large as the function takes them to be, but for what it leaves alone."""
    buffers = function.params[: len(arguments)]
    for index, (parameter, buffer) in enumerate(zip(buffers, arguments, strict=True)):
        dtype = str(parameter.dtype)
        elements = math.prod(to_size(d) for d in parameter.shape)
        declared = nbytes([elements], dtype)
        others = [b for pair in equal if elements in pair for b in pair]
        known = (declared, *(nbytes([b], dtype) for b in others))
        if buffer.nbytes not in known and index in (*verdict.reads, *verdict.writes):
            raise AssertionError(
                f"{where} takes {declared} bytes as {parameter.name} and is given {buffer.nbytes}"
            )


def padded(values: Array, count: int, dtype: str) -> Array:
    """Values with zeros behind them."""
    padded = np.zeros(count, dtype)
    padded[: values.size] = values
    return padded
