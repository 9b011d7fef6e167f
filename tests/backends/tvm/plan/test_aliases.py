"""Which tensors share buffers: plans are run on symbols, one for each channel."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.plan.aliases import Alias, Padding, choose_aliases, is_in_place, pieces
from secateur.backends.tvm.plan.blocked import Blocked
from secateur.backends.tvm.plan.operations import ConcatOp, ElementwiseOp, Plan
from secateur.backends.tvm.plan.programs import Program
from secateur.backends.tvm.plan.tensors import Operation, PlanTensor, View

BLOCK = 16
PADDINGS = (Padding(), Padding(), Padding((1, 0, 2, 0), 0.0), Padding((0, 3, 1, 0), 7.0))


@st.composite
def plans(draw: Any) -> Plan:
    """Tensors that are computed, cut and joined; some of them are returned."""
    batch = draw(st.sampled_from((1, 1, 1, 1, 2)))
    source = PlanTensor("x", "float32", (batch, BLOCK, 2, 2))
    made, operations = [source], []
    for index in range(draw(st.integers(2, 14))):
        recent = made[-5:]
        kind = draw(st.sampled_from(("make", "make", "slice", "concat", "concat")))
        x = draw(st.sampled_from(recent))
        channels = draw(st.sampled_from((16, 16, 32, 48, 20, 3)))
        views: list[View] = []
        if kind == "slice":
            start = draw(st.sampled_from([c for c in (0, 16, 32, 5) if c < x.shape[1]]))
            channels = min(channels, x.shape[1] - start)
            shape, strides = (batch, channels, 2, 2), (x.shape[1] * 4, 4, 2, 1)
            views = [View(x, shape, strides, start * 4)]
        elif kind == "make":
            views = [View.of(x), View.of(draw(st.sampled_from(recent)))]
        else:
            aliases = draw(st.lists(st.sampled_from(recent), min_size=1, max_size=4))
            channels = sum(t.shape[1] for t in aliases)
        y = PlanTensor(f"t{index}", "float32", (batch, channels, 2, 2))
        if kind == "concat":
            operations.append(ConcatOp("", [y], aliases, 1))
        else:
            operations.append(ElementwiseOp("", [y], views, Program(("float32",) * len(views))))
        made.append(y)
    outputs = [("", t) for t in made[1:] if t is made[-1] or draw(st.integers(0, 3)) == 0]
    plan = Plan([source], outputs, operations)
    plan.link()
    return plan


class Memory:
    """Runs a plan in buffers of channels; every tensor that is read must be there."""

    def __init__(
        self, aliases: dict[PlanTensor, Alias], layouts: dict[PlanTensor, Blocked]
    ) -> None:
        self.aliases, self.layouts = aliases, layouts
        self.cells: dict[tuple[PlanTensor, int], Any] = {}
        self.contents: dict[PlanTensor, list[Any]] = {}

    def at(self, tensor: PlanTensor, channel: int) -> tuple[PlanTensor, int]:
        alias = self.aliases.get(tensor, Alias(tensor, 0))
        return alias.whole, alias.first_block * BLOCK + channel

    def check(self, tensor: PlanTensor) -> None:
        channels = tensor.shape[1]
        found = [self.cells[self.at(tensor, c)] for c in range(-(-channels // BLOCK) * BLOCK)]
        assert found[:channels] == self.contents[tensor]
        assert not any(found[channels:])  # lanes that other channels may fill with infinities

    def write(self, tensor: PlanTensor, first: int = 0, end: int | None = None) -> None:
        """Whole blocks, whose last lanes may be anything."""
        end = tensor.shape[1] if end is None else end
        for c in range(first, first - (first - end) // BLOCK * BLOCK):
            self.cells[self.at(tensor, c)] = self.contents[tensor][c] if c < end else None

    def run(self, op: Operation) -> None:
        y = op.output
        for tensor in op.reads():
            self.check(tensor)
        self.contents[y] = [(y.name, c) for c in range(y.shape[1])]
        if isinstance(op, ConcatOp):
            self.contents[y] = [c for t in op.inputs for c in self.contents[t]]
            for tensors, block in pieces(op, self.layouts[y].block):
                there = self.aliases[y].at(block) if y in self.aliases else None
                if [self.aliases.get(t) for t in tensors] != [there] or there is None:
                    first = block * BLOCK
                    self.write(y, first, first + sum(t.shape[1] for t in tensors))
            return
        assert isinstance(op, ElementwiseOp)
        if len(op.views) == 1:
            first = op.views[0].first_channel
            assert first is not None
            source = self.contents[op.views[0].tensor]
            self.contents[y] = source[first : first + y.shape[1]]
        if not is_in_place(op, self.aliases, self.layouts):
            self.write(y)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(plans(), st.data())
def test_tensors_are_where_they_are_read(plan: Plan, data: Any) -> None:
    made = [op.output for op in plan.operations]
    layouts = {t: Blocked.of(t.shape, BLOCK, t.dtype) for t in made}
    own = {t: data.draw(st.sampled_from(PADDINGS)) for t in made}
    paddings = dict(own)
    aliases = choose_aliases(plan, layouts, paddings)
    for tensor, alias in aliases.items():
        assert alias.whole.shape[0] == 1
        assert layouts[alias.whole].block == layouts[tensor].block
        shared = paddings[alias.whole]
        assert own[tensor].fill in (None, shared.fill)
        assert all(map(int.__ge__, shared.pads, own[tensor].pads))
    memory = Memory(aliases, layouts)
    for tensor in plan.inputs:
        memory.contents[tensor] = [(tensor.name, c) for c in range(tensor.shape[1])]
        memory.write(tensor)
    for op in plan.operations:
        memory.run(op)
    for _, tensor in plan.outputs:
        memory.check(tensor)


def test_nothing_is_no_channels() -> None:
    assert View.of(PlanTensor("x", "float32", (1, 3, 5, 0))).first_channel is None
