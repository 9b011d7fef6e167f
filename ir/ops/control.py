"""Control flow: If, Loop and Scan are followed through their bodies."""

from __future__ import annotations

from ..axes.dims import Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from .records import Trait, rule
from .reduction import normalized

ITERATIONS = "one entry per iteration"


@rule("If")
def if_(r: NodeAxes) -> None:
    """Both branches define the same outputs."""
    r.lock_all(r.axes(0), "decides which branch runs")
    branches = [r.body(r.get(name)) for name in ("then_branch", "else_branch")]
    for index, (a, b) in enumerate(zip(*branches, strict=True)):
        r.unify_all(a, b)
        r.set(a, index)


@rule("Loop", traits=Trait.STATEFUL)
def loop(r: NodeAxes) -> None:
    """Carried values have the same axes before, during and after all iterations."""
    body = r.get("body")
    carried = [r.axes(i) for i in range(2, len(r.node.inputs))]
    if len(body.inputs) != 2 + len(carried):
        raise Opaque(f"a body of {len(body.inputs)} inputs for {len(carried)} carried values")
    outs = r.body(body, [(), (), *carried])
    r.lock_all(outs[0], "decides whether the loop goes on")
    _close(r, carried, outs[1 : 1 + len(carried)])
    for index, axes in enumerate(outs[1 + len(carried) :], len(carried)):
        r.set((_iterations(r, index, 0), *axes), index)


@rule("Scan", traits=Trait.STATEFUL)
def scan(r: NodeAxes) -> None:
    """States are carried; every iteration sees one slice of each scanned input."""
    body = r.get("body")
    scanned = int(r.get("num_scan_inputs", 0))
    states = len(r.node.inputs) - scanned
    if r.opset < 9 or states < 0 or len(body.inputs) != len(r.node.inputs):
        raise Opaque("Scan as before opset 9, or a body of another number of inputs")
    carried = [r.axes(i) for i in range(states)]
    slices = []
    for number, index in enumerate(range(states, len(r.node.inputs))):
        axes = r.axes(index)
        along = normalized(_entry(r, "scan_input_axes", number), len(axes))
        r.lock(axes[along], ITERATIONS)
        slices.append(axes[:along] + axes[along + 1 :])
    outs = r.body(body, [*carried, *slices])
    _close(r, carried, outs[:states])
    for number, axes in enumerate(outs[states:]):
        index = states + number
        along = normalized(_entry(r, "scan_output_axes", number), len(axes) + 1)
        r.set((*axes[:along], _iterations(r, index, along), *axes[along:]), index)


def _entry(r: NodeAxes, name: str, number: int) -> int:
    values = r.get(name)
    return int(values[number]) if values else 0


def _close(r: NodeAxes, before: list[Axes], after: list[Axes]) -> None:
    for index, (a, b) in enumerate(zip(before, after, strict=True)):
        r.unify_all(a, b)
        r.set(a, index)


def _iterations(r: NodeAxes, index: int, along: int) -> Axis:
    shape = r.out_shape(index)
    size = shape[along] if shape is not None and along < len(shape) else None
    return r.literal(size if isinstance(size, int) else None, ITERATIONS)
