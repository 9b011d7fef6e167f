"""If whose branches only a run can choose from: a plan for each, of which it makes one.

Those whose results have equal sizes are computed both, and chosen from afterwards, where that can't
end a run by what it isn't about (`graph/unroll.py`).
"""

from __future__ import annotations

import functools

from ....ir.errors import UnsupportedError
from ....ir.graph import Node
from ..errors import UnsupportedNodesError
from ..graph.loop_sizes import OpenLoop
from ..graph.loops import is_read
from ..graph.open_sizes import OpenSizes
from ..plan.operations import BranchOp, LoopsOp, Plan
from ..plan.tensors import PlanTensor
from .context import Lowering, Stored
from .loop import LowerBody
from .loops.sizes import store_sizes


def lower_branches(lowering: Lowering, node: Node, lower_body: LowerBody) -> None:
    """Add both branches of an If to the plan. Raises UnsupportedError with the reason."""
    sizes = lowering.sizes
    if sizes is None or node not in sizes.branches:
        found = sizes.refused.get(node) if sizes is not None else None
        raise UnsupportedError(
            found
            or f"node '{node.label}' (If): a run decides it, and its branches give sequences, or "
            "tensors whose shapes nothing tells; --input-value fixes an input"
        )
    condition = node.input(0)
    assert condition is not None
    lower = functools.partial(_lower_branch, lowering, node, sizes, lower_body)
    plans = tuple(map(lower, sizes.branches[node]))
    wanted = [value is not None and is_read(value) for value in node.outputs]
    is_counted = lowering.is_counted(node)
    for plan in plans:
        every = [tensor for _, tensor in plan.outputs]
        plan.outputs = [pair for pair, own in zip(plan.outputs, wanted, strict=True) if own]
        if is_counted:
            numbers = tuple(size for tensor in every for size in tensor.shape)
            told = PlanTensor(f"{node.label}/sizes", "int64", (len(numbers),))
            build = functools.partial(store_sizes, numbers, "int64")
            plan.operations.append(
                LoopsOp(node.label, [told], [], build, ("sizes", "int64", numbers))
            )
            plan.outputs.append((told.name, told))
        plan.link()
    results = []
    for value, own in zip(node.outputs, wanted, strict=True):
        if value is not None and own:
            results.append(lowering.tensor(value))
            lowering.items[value] = Stored(results[-1])
    if is_counted:
        results.append(PlanTensor(f"{node.label}/sizes", "int64", plans[0].outputs[-1][1].shape))
    captured = tuple(
        [
            (lowering.stored(outer), inner)
            for outer, inner in zip(branch.body.captured, plan.inputs, strict=True)
        ]
        for branch, plan in zip(sizes.branches[node], plans, strict=True)
    )
    (yes, no), (read, other) = plans, captured
    taken = lowering.stored(condition)
    lowering.add(BranchOp(node.label, results, taken, (yes, no), (read, other)))
    if is_counted:
        lowering.read_sizes(node, node.label, results[-1])
    for plan in plans:
        lowering.plan.operators.update(plan.operators)
        lowering.plan.equal += plan.equal


def _lower_branch(
    lowering: Lowering, node: Node, sizes: OpenSizes, lower_body: LowerBody, branch: OpenLoop
) -> Plan:
    try:
        return lower_body(lowering, branch.body, branch.prepared, sizes.inside(branch))
    except UnsupportedNodesError as error:
        raise UnsupportedError(f"node '{node.label}' (If): in a branch: {error}") from None
