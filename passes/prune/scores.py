"""What a product of two computed values makes up for: queries for what keys lose, or keys for it.

Where two values are multiplied over an axis that lost indices, such as queries and keys over the
size of a head, one of them can stand in for the other. Of the keys' lost elements that part which
their kept ones tell is multiplied with the lost elements of the queries all the same, if the
queries' layer puts out the sum of both (as in CORP, arXiv 2602.05243). What all keys have in
common moves a query's scores alike, and a softmax over them doesn't see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node, Value, normalize_domain
from ...ir.model import Model
from ...ir.partition import extract
from ...ir.reference import Session
from ...ir.tensor import Array
from ..linear.moments import RIDGE, Doubles
from ..linear.walk import RunValues
from .masking import Keep

Kept = Mapping[str, Sequence[Keep | None]]

_VIEWS = {"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_PARTS = {"Gather", "Slice", "Split"}


@dataclass(frozen=True)
class ScoreProduct:
    """A product, in `model`, the original, that a layer's output is an operand of by way of `path`.

    `ours` is the operand that the path leads to, `theirs` the other one; `heads` is how many
    lie side by side on their last axes, None where heads have an axis of their own. With
    `summed_last` the axis that is summed over is our last one, else the last but one; in theirs
    it is the other way round unless `alike`. `centred` tells that only differences count.
    """

    model: Model
    result: Value
    path: tuple[Node, ...]
    ours: Value
    theirs: Value
    heads: int | None
    summed_last: bool
    alike: bool
    centred: bool

    @property
    def reads(self) -> list[str]:
        return [self.result.name, self.theirs.name]

    def mixing(self, before: RunValues, kept: Kept) -> Array | None:
        """What the layer's output [.., all] is multiplied by to be what it should be [.., kept].

        None where heads can't be told from each other.
        """
        axes = kept[self.result.name]
        first = before.value(self.result.name, 0)
        width = first.shape[-1]
        keep = np.ones(width, bool) if axes[-1] is None else axes[-1].mask(width)
        if any(other is not None for other in axes[:-1]):
            return None
        indices = self._indices(first)
        if indices is None:
            return None
        sums: dict[bytes, _Sums] = {}
        for run in range(before.runs):
            theirs = self._arranged(before.value(self.theirs.name, run), ours=False)
            lead = np.broadcast_shapes(indices.shape[:-1], theirs.shape[:-2])
            channels = np.broadcast_to(indices, (*lead, indices.shape[-1]))
            theirs = np.broadcast_to(theirs, (*lead, *theirs.shape[-2:]))
            for place in np.ndindex(lead):
                key = channels[place].tobytes()
                sums.setdefault(key, _Sums(channels[place])).add(theirs[place])
        matrix = np.zeros((width, int(keep.sum())))
        matrix[np.flatnonzero(keep), np.arange(matrix.shape[1])] = 1
        places = np.cumsum(keep) - 1
        for one in sums.values():
            there = keep[one.channels]
            if there.all() or not there.any():
                continue
            mixed = one.told(there, centred=self.centred)
            lost, left = one.channels[~there], places[one.channels[there]]
            matrix[np.ix_(lost, left)] = mixed.T
        return matrix.astype(np.float32)

    def _indices(self, first: Array) -> Array | None:
        """For each place of our operand but the rows the channels on its summed axis."""
        if self.path:
            session = Session(extract(self.model, self.path, [self.ours])[0], threads=0)
            if session.input_names != [self.result.name]:
                return None
        numbers = np.arange(1, first.shape[-1] + 1, dtype=np.float32)
        found = []
        for array in (np.broadcast_to(numbers, first.shape), np.ones(first.shape, np.float32)):
            array = np.ascontiguousarray(array, first.dtype)
            if self.path:
                array = session.run({self.result.name: array})[self.ours.name]
            found.append(self._arranged(array, ours=True))
        moved, scale = found
        if not scale.size or not (scale == scale.flat[0]).all() or not scale.flat[0]:
            return None
        indices = np.round(moved / scale).astype(np.int64) - 1
        return indices[..., 0, :] if (indices == indices[..., :1, :]).all() else None

    def _arranged(self, array: Array, *, ours: bool) -> Array:
        """[.., rows, summed axis], with an axis of heads in front of these."""
        if self.heads is not None:
            array = array.reshape(*array.shape[:-1], self.heads, -1).swapaxes(-3, -2)
        summed_last = self.summed_last if ours or self.alike else not self.summed_last
        return array if summed_last else array.swapaxes(-1, -2)


class _Sums:
    """Moments of what one head's channels are multiplied with."""

    def __init__(self, channels: Array) -> None:
        self.channels = channels
        self._count = 0
        self._total: Doubles = np.zeros(len(channels))
        self._squares: Doubles = np.zeros((len(channels), len(channels)))

    def add(self, rows: Array) -> None:
        self._count += len(rows)
        self._total += rows.sum(axis=0, dtype=np.float64)
        self._squares += rows.T @ rows

    def told(self, there: Array, *, centred: bool) -> Doubles:
        """Coefficients [kept, lost] by which the kept channels tell the lost ones."""
        mean = self._total / self._count if centred else 0 * self._total
        moments = self._squares / self._count - np.outer(mean, mean)
        inner = moments[np.ix_(there, there)]
        ridge = RIDGE * float(np.trace(inner)) / len(inner) or 1.0
        across = moments[np.ix_(there, ~there)]
        return np.asarray(np.linalg.solve(inner + ridge * np.eye(len(inner)), across))


def find_score_products(model: Model, kept: Kept) -> list[ScoreProduct]:
    """Those of the original over axes that lose indices, at most one for each layer's result."""
    found: dict[str, ScoreProduct] = {}
    for node in model.graph.nodes:
        for product in _products(model, node):
            there = product.ours.name in kept and product.result.name in kept
            if there and product.result.name not in found:
                found[product.result.name] = product
                break
    return list(found.values())


def _products(model: Model, node: Node) -> list[ScoreProduct]:
    """A node as a product, first with its first operand as the one that is adapted."""
    a, b = node.input(0), node.input(1)
    if a is None or b is None or model.constant(a) is not None or model.constant(b) is not None:
        return []
    kind = normalize_domain(node.domain), node.op_type
    heads: int | None = None
    if kind == ("", "MatMul"):
        if not a.rank or not b.rank or min(a.rank, b.rank) < 2:
            return []
        sides = [(a, b, True, _softmax_follows(node)), (b, a, False, False)]
        alike = False
    elif kind == ("", "Attention") or kind == ("com.microsoft", "MultiHeadAttention"):
        if a.rank == 3:
            name = "num_heads" if kind[0] else "q_num_heads"
            heads = int(node.get(name, 0))
            if not heads or int(node.get("kv_num_heads", heads) or heads) != heads:
                return []
        elif a.rank != 4:
            return []
        if a.rank != b.rank or (kind[0] and node.input(3) is not None):
            return []
        sides, alike = [(a, b, True, True)], True
    else:
        return []
    found = []
    for ours, theirs, summed_last, centred in sides:
        path = _path(model, ours)
        if path is not None:
            result, nodes = path
            found.append(
                ScoreProduct(model, result, nodes, ours, theirs, heads, summed_last, alike, centred)
            )
    return found


def _path(model: Model, value: Value) -> tuple[Value, tuple[Node, ...]] | None:
    """The value that an operand is a view or a part of, and the nodes in between."""
    nodes: list[Node] = []
    shared = False
    while True:
        if len(value.uses) > 1 and not shared:
            return None
        node = value.producer
        if node is None:
            return None
        source = _viewed(model, node)
        if source is None:
            return value, tuple(reversed(nodes))
        shared = node.op_type in _PARTS
        nodes.append(node)
        value = source


def _viewed(model: Model, node: Node) -> Value | None:
    if normalize_domain(node.domain) != "":
        return None
    if node.op_type in _VIEWS or node.op_type in _PARTS:
        rest = [v for v in node.inputs[1:] if v is not None]
        return node.input(0) if all(model.constant(v) is not None for v in rest) else None
    if node.op_type in ("Mul", "Div"):
        first, second = node.input(0), node.input(1)
        for x, by in ((first, second), (second, first)):
            tensor = model.constant(by)
            if tensor is not None and tensor.size == 1 and (x is first or node.op_type == "Mul"):
                return x
    return None


def _softmax_follows(node: Node) -> bool:
    """Whether a softmax over the last axis is all that reads a product, once scaled or masked."""
    value = node.output(0)
    while value is not None and len(value.uses) == 1 and value.users:
        user = value.users[0]
        if user.op_type == "Softmax":
            rank = value.rank
            return user.get("axis", -1) in (-1, None if rank is None else rank - 1)
        if user.op_type not in ("Add", "Div", "Mul", "Where"):
            return False
        value = user.output(0)
    return False
