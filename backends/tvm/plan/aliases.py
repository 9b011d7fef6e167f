"""In-place Concat and Split: tensors that lie in other tensors' buffers.

Of one image successive blocks of channels are one piece of memory. So the operands of a
concatenation can lie in its result's buffer, where their producers write them, and a slice
can lie in the tensor that it is cut from; whoever reads them doesn't see the difference.
Several concatenations of the same tensors, as in DenseNet, share one buffer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from .blocked import Blocked, Fill
from .copies import is_copy
from .operations import ConcatOp, ConvolutionOp, ElementwiseOp, Plan, PoolingOp, ResizeOp
from .tensors import Operation, PlanTensor

_WRITERS = (ConcatOp, ConvolutionOp, ElementwiseOp, PoolingOp, ResizeOp)
"""Operations that write their results to where these lie."""


@dataclasses.dataclass(frozen=True)
class Padding:
    """Physical padding that readers need: top, left, bottom, right; no `fill` where none."""

    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: Fill | None = None

    def agrees(self, other: Padding) -> bool:
        """Whether one border can serve both. One that a run fills is its tensor's own."""
        if any(isinstance(fill, PlanTensor) for fill in (self.fill, other.fill)):
            return False
        return self.fill is None or other.fill is None or self.fill == other.fill

    def union(self, other: Padding) -> Padding:
        top, left, bottom, right = map(max, self.pads, other.pads)
        return Padding((top, left, bottom, right), other.fill if self.fill is None else self.fill)


@dataclasses.dataclass(frozen=True)
class Alias:
    """Where a tensor lies: in the buffer of `whole`, from one of its blocks on."""

    whole: PlanTensor
    first_block: int

    def at(self, block: int) -> Alias:
        """What lies at a block of this alias."""
        return Alias(self.whole, self.first_block + block)


def choose_aliases(
    plan: Plan, layouts: Mapping[PlanTensor, Blocked], paddings: dict[PlanTensor, Padding]
) -> dict[PlanTensor, Alias]:
    """Where each tensor lies that shares a buffer; tensors that don't are left out.

    The plan must be linked. `paddings` are those that each tensor's own readers need;
    those of whole tensors become what all tensors in the buffer need together. Tensors
    that need different fills don't share a buffer.
    """
    placing = _Placing(layouts, paddings)
    for op in plan.operations:
        placing.slice(op)
    for op in reversed(plan.operations):  # so that the last of nested ones holds all
        placing.concat(op)
    return placing.shared()


def pieces(op: ConcatOp, block: int) -> Iterator[tuple[list[PlanTensor], int]]:
    """Operands that share no block with their neighbours, else those that do together.

    With each the block of the result in which it begins.
    """
    channel, first = 0, 0
    piece: list[PlanTensor] = []
    for tensor in op.inputs:
        piece.append(tensor)
        channel += tensor.shape[1]
        if channel % block == 0 or channel == op.output.shape[1]:
            yield piece, first
            piece, first = [], channel // block


def is_in_place(
    op: ElementwiseOp, aliases: Mapping[PlanTensor, Alias], layouts: Mapping[PlanTensor, Blocked]
) -> bool:
    """Whether an operation's result lies in its operand, so that there is nothing to do."""
    if not is_copy(op):
        return False
    source, first = aliases.get(op.views[0].tensor), op.views[0].first_channel
    if source is None or first is None or op.output not in aliases:
        return False
    return aliases[op.output] == source.at(first // layouts[op.output].block)


class _Placing:
    """Where each tensor lies so far: at first in a buffer of its own."""

    def __init__(
        self, layouts: Mapping[PlanTensor, Blocked], paddings: dict[PlanTensor, Padding]
    ) -> None:
        self.layouts, self.paddings = layouts, paddings
        self.aliases = {
            tensor: Alias(tensor, 0)
            for tensor, layout in layouts.items()
            if layout.batch == 1 and isinstance(tensor.producer, _WRITERS)
        }
        self.members = {tensor: [tensor] for tensor in self.aliases}

    def shared(self) -> dict[PlanTensor, Alias]:
        return {t: alias for t, alias in self.aliases.items() if len(self.members[alias.whole]) > 1}

    def slice(self, op: Operation) -> None:
        """Let whole blocks cut from a tensor stay where they are."""
        if not isinstance(op, ElementwiseOp) or not is_copy(op):
            return
        view, y = op.views[0], op.output
        source, alias = self.aliases.get(view.tensor), self.aliases.get(y)
        first = view.first_channel
        if source is None or alias is None or first is None or view.shape != y.shape:
            return
        block = self.layouts[y].block
        end = first + y.shape[1]
        whole = end % block == 0 or end == view.tensor.shape[1]
        if first % block == 0 and whole and block == self.layouts[view.tensor].block:
            self._move(y, source.at(first // block))

    def concat(self, op: Operation) -> None:
        """Move operands to where they are joined, or the result to where they are already."""
        if not isinstance(op, ConcatOp) or op.output not in self.aliases:
            return
        y, layout = op.output, self.layouts[op.output]
        runs = list(self._runs(op, layout.block))
        if len(runs) == 1 and self.aliases[y].whole is y and self._spans(runs[0][0], y):
            self._move(y, self.aliases[runs[0][0][0]])
            return
        for tensors, first in runs:
            whole = self.aliases[tensors[0]].whole
            if self._spans(tensors, whole):
                self._move(whole, self.aliases[y].at(first))

    def _runs(self, op: ConcatOp, block: int) -> Iterator[tuple[list[PlanTensor], int]]:
        """Operands of whole blocks, those together that follow each other in a buffer.

        With each run the block of the result in which it begins.
        """
        run: list[PlanTensor] = []
        start = 0
        for piece, first in pieces(op, block):
            tensor = piece[0]
            if len(piece) > 1 or tensor not in self.aliases or self.layouts[tensor].block != block:
                continue
            if run and self.aliases[tensor] == self.aliases[run[0]].at(first - start):
                run.append(tensor)
                continue
            if run:
                yield run, start
            run, start = [tensor], first
        if run:
            yield run, start

    def _spans(self, tensors: Sequence[PlanTensor], whole: PlanTensor) -> bool:
        """Whether tensors that follow each other have all channels of another."""
        return sum(t.shape[1] for t in tensors) == whole.shape[1]

    def _move(self, whole: PlanTensor, to: Alias) -> None:
        """Let a buffer's tensors lie in another one, if one padding can serve both."""
        ours, theirs = self.paddings[whole], self.paddings[to.whole]
        if not ours.agrees(theirs):
            return
        self.paddings[to.whole] = theirs.union(ours)
        for tensor in self.members.pop(whole):
            self.aliases[tensor] = to.at(self.aliases[tensor].first_block)
            self.members[to.whole].append(tensor)
