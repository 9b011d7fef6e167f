"""Products and convolutions of a plan in 16 bits: their operands are rounded, their sums are not.

A tensor that is multiplied is stored in 16 bits, by the operation that computes it where fusion
can; those that only add to it or apply functions read it so, too, where that leaves no reader of
its float32 form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from .copies import is_copy
from .operations import (
    ConcatOp,
    ConvolutionOp,
    ElementwiseOp,
    MatMulOp,
    Plan,
    ProductOp,
    ReshapeOp,
)
from .programs import Program, compose
from .sizes import is_open
from .tensors import Operation, PlanTensor, View

STORED = {"bfloat16": "uint16", "float16": "float16"}
"""The type of tensors in memory: bfloat16 as its bits."""


def may_be_halves(op: Operation) -> bool:
    """Whether an operation multiplies float32 tensors: images, and two values of a run, where
    their sizes are known."""
    if isinstance(op, ConvolutionOp):
        is_known = not is_open(*op.input.shape, *op.output.shape)
        return is_known and op.input.dtype == "float32" and not op.is_depthwise
    if isinstance(op, MatMulOp):
        return op.input.dtype == "float32"
    if isinstance(op, ProductOp):
        tensors = [op.left.tensor, op.right.tensor, op.output]
        return all(t.dtype == "float32" and not is_open(*t.shape) for t in tensors)
    return False


def use_halves(plan: Plan, dtype: str, operations: Iterable[Operation]) -> None:
    """Let some operations multiply `bfloat16` or `float16`; before fusion."""
    plan.link()
    _Halves(plan, dtype, set(operations)).apply()
    plan.link()


class _Halves:
    """The tensors of a plan in 16 bits, and the operations that make them, by what they follow."""

    def __init__(self, plan: Plan, dtype: str, chosen: set[Operation]) -> None:
        self.plan, self.dtype, self.chosen = plan, dtype, chosen
        self.stored = STORED[dtype]
        self.found: dict[PlanTensor, PlanTensor] = {}
        self.after: dict[Operation | None, list[Operation]] = {}
        self.casts: dict[PlanTensor, ElementwiseOp] = {}

    def apply(self) -> None:
        for op in self.chosen:
            if isinstance(op, ProductOp):
                op.left, op.right = self.view(op.left), self.view(op.right)
            else:
                assert isinstance(op, (ConvolutionOp, MatMulOp))
                op.input = self.narrowed(op.input)
        operations = list(self.after.get(None, []))
        for op in self.plan.operations:
            operations += [op, *self.after.get(op, [])]
        self.plan.operations = operations
        self.plan.link()
        for tensor, cast in self.casts.items():
            self.share(tensor, cast)

    def narrow(self) -> Program:
        """From float32."""
        program = Program(("float32",))
        if self.dtype == "bfloat16":
            return program.then("to_bfloat", self.stored)
        return program.then("cast", self.stored)

    def widen(self) -> Program:
        """To float32."""
        name = "from_bfloat" if self.dtype == "bfloat16" else "cast"
        return Program((self.stored,)).then(name, "float32")

    def view(self, view: View) -> View:
        return dataclasses.replace(view, tensor=self.narrowed(view.tensor))

    def narrowed(self, tensor: PlanTensor) -> PlanTensor:
        """A tensor in 16 bits: what copies move is rounded before them."""
        if tensor in self.found:
            return self.found[tensor]
        half = PlanTensor(f"{tensor.name}/{self.dtype}", self.stored, tensor.shape)
        self.found[tensor] = half
        if tensor.const is not None:
            rounded = tensor.const.astype(ml_dtypes.bfloat16 if self._is_bits else np.float16)
            half.const = rounded.view(np.uint16) if self._is_bits else rounded
            return half
        producer = tensor.producer
        made = self.moved(producer, tensor, half)
        if made is None:
            made = ElementwiseOp(tensor.name, [half], [View.of(tensor)], self.narrow())
            made.label = producer.label if producer is not None else tensor.name
            self.casts[tensor] = made
        self.after.setdefault(producer, []).append(made)
        return half

    @property
    def _is_bits(self) -> bool:
        return self.dtype == "bfloat16"

    def moved(
        self, producer: Operation | None, tensor: PlanTensor, half: PlanTensor
    ) -> Operation | None:
        """What only moves elements to `tensor`, moving those in 16 bits."""
        if isinstance(producer, ReshapeOp):
            return ReshapeOp(producer.label, [half], self.narrowed(producer.input))
        if isinstance(producer, ElementwiseOp) and is_copy(producer):
            views = [self.view(producer.views[0])]
            return ElementwiseOp(producer.label, [half], views, Program((self.stored,)))
        if (
            isinstance(producer, ConcatOp)
            and not tensor.kept
            and self.chosen.issuperset(tensor.readers)
        ):
            inputs = [self.narrowed(t) for t in producer.inputs]
            return ConcatOp(producer.label, [half], inputs, producer.axis)
        return None

    def share(self, tensor: PlanTensor, cast: ElementwiseOp) -> None:
        """Let elementwise readers of a tensor read its 16 bits, if nothing else reads it then."""
        others = [op for op in tensor.readers if op is not cast]
        if tensor.kept or tensor.producer is None or not others:
            return
        for op in others:
            if not isinstance(op, ElementwiseOp):
                return
        for op in others:
            assert isinstance(op, ElementwiseOp)
            at = [i for i, view in enumerate(op.views) if view.tensor is tensor]
            op.program = compose(op.program, {i: self.widen() for i in at})
            for i in at:
                op.views[i] = dataclasses.replace(op.views[i], tensor=cast.output)
