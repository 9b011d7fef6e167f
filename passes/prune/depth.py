"""Residual branches that go whole: the sum that they end in keeps what they add on average.

Where every layer has a cost of its own, as latency has, one branch less may be worth more than
narrower layers everywhere (Veit et al., "Residual Networks Behave Like Ensembles of Relatively
Shallow Networks", 2016; Chen and Zhao, "Shallowing Deep Networks: Layer-Wise Pruning Based on
Feature Representations", 2018).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.cost import ShapeOf, node_macs
from ...ir.graph import Node, Value, node_reads, normalize_domain
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import FLOAT_TYPES, Array, Tensor
from ..linear.moments import Doubles
from ..matching import matches
from ..simplify.dead import remove_dead_nodes, remove_unused_initializers
from ..sizes import infer_sizes
from .budget import KernelCost

WIDEST = 65536
"""Indices at most of an axis along which a branch's mean is kept."""


@dataclass(frozen=True)
class Branch:
    """A summand of an Add with all that computes it and nothing else.

    `value` is the summand's name, `add` the label of the Add, `nodes` those of what goes with
    the branch; `macs` are their multiply-accumulates, `cost` is theirs in the goal's measure.
    """

    value: str
    add: str
    nodes: tuple[str, ...]
    macs: int
    cost: float


@dataclass(frozen=True)
class Mean:
    """What stands for a branch: `constant` broadcasts to its values.

    `lost` is the share of the sum's variance that the constant doesn't explain.
    """

    constant: Array
    lost: float


Cost = Callable[[Collection[Node]], float]
"""What goes of a model's cost with some nodes."""


def cost_of_nodes(
    model: Model, kind: str, shape_of: ShapeOf, kernels: Sequence[KernelCost] = ()
) -> Cost:
    """By the kind of a goal: in latency what their kernels cost, in parameters and bytes their
    weights' elements, in anything else their multiply-accumulates."""
    times: Counter[str] = Counter()
    if kind == "latency":
        every = [v for node in model.graph.all_nodes() for v in (*node.outputs, *node_reads(node))]
        shapes = {v.name: shape_of(v) or () for v in every if v is not None}
        seconds = {node.label: node.input(1) for node in model.graph.all_nodes()}
        second_shapes = {
            label: v.const.shape
            for label, v in seconds.items()
            if v is not None and v.const is not None
        }
        for kernel in kernels:
            sizes = {name: (shapes[name],) * 2 for name in kernel.values if name in shapes}
            times[kernel.node] += kernel.cost(sizes, second_shapes.get(kernel.node))

    def cost(nodes: Collection[Node]) -> float:
        if kind == "latency":
            return sum(times[node.label] for node in nodes)
        if kind in ("params", "bytes"):
            weights = {v for node in nodes for v in node_reads(node) if v.const is not None}
            return sum(
                v.const.size
                for v in weights
                if v.const is not None and all(use.user in nodes for use in v.uses)
            )
        return sum(node_macs(node, shape_of) or 0 for node in nodes)

    return cost


def find_branches(
    model: Model, shape_of: ShapeOf, cost_of: Cost, spared: Sequence[str] = ()
) -> list[Branch]:
    """The residual branches of a model's own graph, in its order.

    The other summand has the shape of the sum, and nothing that only the branch reads is an
    input of the model: no input is without effect once a branch is gone. Branches with a node
    or weight whose name one of the `spared` patterns matches are left out, and those without
    multiply-accumulates.
    """
    found = []
    for add in model.graph.nodes:
        if add.op_type != "Add" or normalize_domain(add.domain) != "":
            continue
        for value, other in (add.inputs, add.inputs[::-1]):
            nodes = _branch(model, add, value, other)
            if not nodes or any(matches(n, p) for n in _names(nodes) for p in spared):
                continue
            macs = sum(node_macs(node, shape_of) or 0 for node in nodes)
            if macs and value is not None:
                labels = tuple(node.label for node in nodes)
                found.append(Branch(value.name, add.label, labels, macs, cost_of(nodes)))
    return found


def _branch(model: Model, add: Node, value: Value | None, other: Value | None) -> list[Node]:
    """All that computes `value` and nothing else; nothing where that isn't a residual branch."""
    total = add.output(0)
    if value is None or other is None or total is None or value.producer is None:
        return []
    if value.dtype not in FLOAT_TYPES or len(value.uses) != 1:
        return []
    if value.shape is None or not value.shape or not value.shape == other.shape == total.shape:
        return []
    if model.constant(value) is not None or model.constant(other) is not None:
        return []
    nodes = {value.producer: None}
    pending = [value.producer]
    while pending:
        for read in node_reads(pending.pop()):
            producer = read.producer
            if producer is None or producer in nodes or producer.graph is not add.graph:
                continue
            uses = [use for v in producer.outputs if v is not None for use in v.uses]
            if all(use.user in nodes for use in uses):
                nodes[producer] = None
                pending.append(producer)
    inputs = {v for n in nodes for v in node_reads(n) if v.producer is None and v.const is None}
    if any(all(use.user in nodes for use in value.uses) for value in inputs):
        return []
    return list(nodes)


def _names(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        yield node.label
        yield from (v.name for v in node_reads(node) if v.const is not None)


def branch_means(
    model: Model, branches: Sequence[Branch], runs: Sequence[Mapping[str, Array]]
) -> dict[str, Mean]:
    """What stands for each branch, by the name of its value: its mean over all runs.

    The mean is one for each index of the axis along which that explains most, of those of known
    size; the first axis counts samples. Branches with values that are not finite are left out.
    """
    if not branches:
        return {}
    probed = model.clone()
    values = {v.name: v for node in probed.graph.nodes for v in node.outputs if v is not None}
    totals = {}
    for branch in branches:
        (use,) = values[branch.value].uses
        assert isinstance(use.user, Node)
        totals[branch.value] = use.user.outputs[0].name  # type: ignore[union-attr]
    sums = {name: _AxisSums(values[name]) for name in dict.fromkeys([*totals, *totals.values()])}
    for name in sums:
        if not values[name].is_graph_output:
            probed.graph.add_output(values[name])
    session = Session(probed, threads=0)
    for run in runs:
        results = session.run(run)
        for name, sum_ in sums.items():
            sum_.add(results[name])
    found = {}
    for name, total in totals.items():
        axis, constant, rest = sums[name].best()
        spread = sums[total].rest(axis)
        if np.isfinite(constant).all() and np.isfinite(rest) and np.isfinite(spread):
            found[name] = Mean(constant, rest / spread if spread > 0 else float(rest > 0))
    return found


class _AxisSums:
    """Sums of a value's elements along each axis of known size but the first, and of their squares.

    Along axis 0 stands the sum of all.
    """

    def __init__(self, value: Value) -> None:
        assert value.shape is not None
        self._along: dict[int, Doubles] = {0: np.zeros(1)}
        for axis, size in enumerate(value.shape):
            if axis and isinstance(size, int) and size <= WIDEST:
                self._along[axis] = np.zeros(size)
        self._squares = 0.0
        self._count = 0
        self._rank = len(value.shape)
        self._type = np.dtype(np.float32)

    def add(self, array: Array) -> None:
        self._type = array.dtype
        self._count += array.size
        self._squares += float(np.square(array, dtype=np.float64).sum())
        for axis in self._along:
            over = tuple(k for k in range(array.ndim) if k != axis or not axis)
            self._along[axis] += array.sum(axis=over, dtype=np.float64)

    def rest(self, axis: int) -> float:
        """Mean square of the differences from the means along an axis; 0: from one mean of all."""
        sums, count = self._along[axis], max(self._count, 1)
        explained = np.square(sums).sum() * len(sums) / count
        return max(0.0, float(self._squares - explained) / count)

    def best(self) -> tuple[int, Array, float]:
        """The axis along which means leave least; these means, and what they leave."""
        axis = min(self._along, key=self.rest)
        means = self._along[axis] * len(self._along[axis]) / max(self._count, 1)
        shape = [1] * self._rank
        shape[axis] = len(means)
        return axis, means.reshape(shape).astype(self._type), self.rest(axis)


def drop_branches(model: Model, constants: Mapping[str, Array]) -> None:
    """Let constants stand for branches, by the names of their values, which the constants take.

    What computes nothing else any more is removed.
    """
    values = {v.name: v for node in model.graph.nodes for v in node.outputs if v is not None}
    places: dict[str, tuple[Node, int, int]] = {}
    for name in constants:
        (use,) = values[name].uses
        assert isinstance(use.user, Node)
        places[name] = use.user, use.position, values[name].dtype
        use.user.set_input(use.position, None)
    remove_dead_nodes(model)
    remove_unused_initializers(model)
    for name, (node, position, dtype) in places.items():
        constant = Tensor.from_array(constants[name], dtype)
        node.set_input(position, model.graph.add_initializer(name, constant))
    infer_sizes(model)


def kernels_left(kernels: Sequence[KernelCost], before: Model, after: Model) -> list[KernelCost]:
    """Those but for the kernels of nodes that are gone."""
    gone = {n.label for n in before.all_nodes()} - {n.label for n in after.all_nodes()}
    return [kernel for kernel in kernels if kernel.node not in gone]


def in_order(branches: Sequence[Branch], means: Mapping[str, Mean]) -> list[Branch]:
    """Those that lose least for what they cost first; any number from the first may go together.

    Of the branches of one sum only the first one is among them, and none that lies in another
    that comes before or has one in it.
    """
    known = [branch for branch in branches if branch.value in means]
    known.sort(key=lambda branch: means[branch.value].lost / max(branch.cost, 1))
    found: list[Branch] = []
    sums: set[str] = set()
    gone: set[str] = set()
    for branch in known:
        if branch.add in sums | gone or not gone.isdisjoint(branch.nodes):
            continue
        if not sums.isdisjoint(branch.nodes):
            continue
        found.append(branch)
        sums.add(branch.add)
        gone.update(branch.nodes)
    return found
