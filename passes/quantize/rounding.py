"""Weights and biases of a quantized model, solved for layer by layer.

The quantized model runs beside the original. Each layer sees its input as the integers before
it have made it, and should put out what the original's does: least squares by the second
moments that recovery after pruning uses. Second-order rounding then brings the weights onto
their grid, one input after the other, and lets those to come make up for each error (Frantar
et al., "Optimal Brain Compression", 2022, and "GPTQ", 2023). From there single weights move to
other multiples of their steps until none gains (Behdin et al., "QuantEase", 2023; Nair and
Suggala, "CDQuant", 2024): AdaRound's own objective (Nagel et al., "Up or Down?", 2020, equation
21), by exact moves in place of a relaxation. The bias takes what is left of the mean (Nagel et
al., "Data-Free Quantization", 2019, section 4.2, measured).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ...ir.graph import Node, Value
from ...ir.model import Model
from ...ir.reference import Session, detached
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array, Tensor
from ..linear.contraction import Contraction
from ..linear.find import find_layer
from ..linear.layers import ConvolutionLayer
from ..linear.moments import Doubles, Joint, Moments, Solver
from ..linear.walk import Walk
from .calibrate import exposing
from .place import Placement
from .rules import Bias, Constants, Role

ROWS = 16384
"""Rows that a layer is solved from, if there are as many."""

ROWS_FOR_EACH = 16
"""Rows for each unknown of an output, where that makes more than `ROWS`."""

WIDEST = 4608
"""Inputs of a layer up to which weights are rounded by second moments: their matrix is inverted."""

BLOCK = 128
"""Inputs that are rounded before what they leave over is spread to all others."""

PASSES = 16
"""Times that all weights of a layer are gone through at most, until none changes."""

_Linear = ConvolutionLayer | Contraction


@dataclass(frozen=True)
class Solved:
    """Mean squared error of a layer as a share of its target's variance, before and after."""

    node: str
    op_type: str
    before: float
    after: float


@dataclass
class _Quantized:
    """A node of the quantized model: its constants' integers and scales, the original's layer."""

    node: Node
    layer: _Linear
    source: str
    result: str
    integers: Value
    scale: Array
    axis: int | None
    bias: Value | None
    bias_scale: Array

    def restoring(self) -> list[Node]:
        """The nodes that read the integers; they come before the node itself."""
        values = [value for value in (self.integers, self.bias) if value is not None]
        return [use.user for value in values for use in value.uses if isinstance(use.user, Node)]


def solve_weights(
    original: Model,
    quantized: Model,
    runs: Sequence[Mapping[str, Array]],
    *,
    limit: int,
    second_order: bool,
    seed: int = 0,
) -> list[Solved]:
    """Choose integers of weights and biases anew, in place, so that outputs come out right.

    `quantized` is `original` after insertion, which left names of values as they were; `runs`
    are inputs of both. Without `second_order` only biases change. Weights keep to
    [-limit, limit], and their scales.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not solved for
        return _solve_all(original, quantized, runs, limit, second_order, seed)


def _solve_all(
    original: Model,
    quantized: Model,
    runs: Sequence[Mapping[str, Array]],
    limit: int,
    second_order: bool,
    seed: int,
) -> list[Solved]:
    made = {v.name: i for i, n in enumerate(original.graph.nodes) for v in n.outputs if v}
    tried = (_find(original, made, quantized, node) for node in quantized.graph.nodes)
    layers = [one for one in tried if one is not None]
    positions = {node: i for i, node in enumerate(quantized.graph.nodes)}
    starts = {one.node: min(positions[n] for n in one.restoring()) for one in layers}
    found = []
    with scratch_folder() as first, scratch_folder() as second:
        before, now = Walk(original, runs, first), Walk(quantized, runs, second)
        for one in layers:
            before.keep(one.result, made[one.result] + 1)
            now.keep(one.source, starts[one.node])
        for one in sorted(layers, key=lambda one: starts[one.node]):
            now.advance(starts[one.node])
            before.keep(one.result)
            before.advance(made[one.result] + 1)
            solved = _solve(one, before, now, limit=limit, second_order=second_order, seed=seed)
            before.release(one.result)
            if solved is not None:
                found.append(solved)
    return found


def give_biases(model: Model, constants: Constants, placement: Placement) -> None:
    """Give layers that will be integer and have no bias one of zeros, which can be solved for."""
    for node, operands in list(placement.nodes.items()):
        weights = constants.get(node.input(1)) if operands.weight is not None else None
        if weights is None or operands.bias is not None or node.graph is not model.graph:
            continue
        if operands.role is Role.RECURRENT or node.op_type == "MatMul":
            continue
        if node.op_type == "ConvTranspose":
            size = weights.shape[1] * int(node.get("group", 1))
        else:
            size = weights.shape[1 if node.op_type == "Gemm" and not node.get("transB", 0) else 0]
        name = model.fresh_name(f"{node.label}_bias")
        zeros = model.graph.add_initializer(name, Tensor.from_array(np.zeros(size, np.float32)))
        node.set_inputs([node.inputs[0], node.inputs[1], zeros])
        placement.nodes[node] = dataclasses.replace(operands, bias=Bias(2))


class Noise:
    """Tells how far models are from an original on the same runs.

    Mean squared error of float outputs as a share of their mean square, over all of them. In
    front of a Softmax or Sigmoid: behind it a few undecided samples would outweigh the rest.
    """

    def __init__(self, original: Model, runs: Sequence[Mapping[str, Array]]) -> None:
        self._names = list(dict.fromkeys(_decided(v).name for v in original.graph.outputs))
        self._runs = runs
        session = Session(exposing(original, self._names), threads=0)
        self._wanted = [
            {n: detached(a) for n, a in session.run(run).items() if a.dtype.kind == "f"}
            for run in runs
        ]

    def __call__(self, other: Model) -> float:
        return float(self.by_run(other).sum())

    def by_run(self, other: Model) -> Doubles:
        """What each run adds to it."""
        session = Session(exposing(other, self._names), threads=0)
        noise: dict[str, list[float]] = {}
        signal: dict[str, float] = {}
        for run, wanted in zip(self._runs, self._wanted, strict=True):
            found = session.run(run)
            for name, array in wanted.items():
                square = np.square(array.astype(np.float64) - found[name]).sum()
                noise.setdefault(name, []).append(float(square))
                power = float(np.square(array, dtype=np.float64).sum())
                signal[name] = signal.get(name, 0.0) + power
        shares = [np.array(noise[n]) / signal[n] for n in noise if signal[n] > 0]
        return np.asarray(np.mean(shares or [np.zeros(len(self._runs))], axis=0))


def _decided(value: Value) -> Value:
    """What an output is a monotonic function of, if it is one of a single value."""
    producer = value.producer
    squashes = producer is not None and producer.op_type in ("LogSoftmax", "Sigmoid", "Softmax")
    source = producer.input(0) if producer is not None and squashes else None
    return value if source is None or source.producer is None else source


def _find(
    original: Model, made: Mapping[str, int], quantized: Model, node: Node
) -> _Quantized | None:
    """What there is to solve for at a node; None where it isn't a layer with integer weights.

    `made` has the positions of the original's nodes by the names of what they put out.
    """
    result = node.output(0)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or result is None:
        return None
    twin = original.graph.nodes[made[result.name]] if result.name in made else None
    layer = find_layer(original, twin) if twin is not None else None
    if twin is None or not isinstance(layer, _Linear) or len(layer.stored.uses) > 1:
        return None
    restored = node.input(layer.position)
    integers = _stored(restored)
    source = node.input(1 - layer.position if isinstance(layer, Contraction) else 0)
    if restored is None or integers is None or source is None or source.const is not None:
        return None
    restore = restored.producer
    if integers.const is None or integers.const.dtype != TensorProto.INT8 or restore is None:
        return None
    scale = quantized.constant(restore.input(1))
    bias, bias_scale = _stored(node.input(2)), None
    if bias is not None:
        user = next(iter(bias.uses)).user
        assert isinstance(user, Node)
        bias_scale = quantized.constant(user.input(1))
    if scale is None or (node.input(2) is not None and bias_scale is None):
        return None
    return _Quantized(
        node,
        layer,
        source.name,
        result.name,
        integers,
        np.asarray(scale.numpy()),
        int(restore.get("axis", 1)) if len(scale.shape) else None,
        bias if bias_scale is not None else None,
        np.asarray(1.0 if bias_scale is None else bias_scale.numpy()),
    )


def _stored(value: Value | None) -> Value | None:
    """The integers behind a DequantizeLinear that nothing else reads."""
    restore = value.producer if value is not None else None
    if value is None or restore is None or restore.op_type != "DequantizeLinear":
        return None
    integers = restore.input(0)
    if integers is None or integers.const is None:
        return None
    return integers if len(integers.uses) == len(value.uses) == 1 else None


def _solve(
    one: _Quantized, before: Walk, now: Walk, *, limit: int, second_order: bool, seed: int
) -> Solved | None:
    layer = one.layer
    assert one.integers.const is not None
    integers = one.integers.const.numpy()
    shape = [1] * integers.ndim
    if one.axis is not None:
        shape[one.axis] = -1
    steps = np.broadcast_to(one.scale.astype(np.float64).reshape(shape), integers.shape)
    grid = layer.arrange(steps)
    matrix = layer.arrange(integers * steps)
    groups, width, outputs = matrix.shape
    biased = one.bias is not None
    orders = second_order and width <= WIDEST
    if not (biased or orders):
        return None
    old, old_bias = layer.read()
    sums: Moments | Residuals = Residuals.zeros(matrix)
    if orders:
        sums = Moments.zeros(groups, width, outputs, centred=biased)

    def error(weights: Doubles) -> float:
        bias = _bias_of(one) if biased else np.zeros((groups, outputs))
        return sums.error(bias) if isinstance(sums, Residuals) else sums.error(weights, bias)

    offsets = []
    wanted = max(ROWS, ROWS_FOR_EACH * width) / now.runs
    for rows, targets in _rows(one, before, now, wanted, seed):
        sums.add(rows, targets)
        offsets.append(_offset(rows, targets, old) - old_bias)
    if not sums.rows:
        return None
    spread, start = sums.spread(), error(matrix)
    if not (math.isfinite(spread) and math.isfinite(start)) or spread <= 0:
        return None
    new = matrix
    if isinstance(sums, Moments):
        joint = Joint([sums])
        solver = Solver(joint)
        wished, *_ = solver.solve(joint, old, joint.covariance() @ old)
        new = np.stack(
            [
                round_second_order(w, g, c + r * np.eye(width), limit)
                for w, g, c, r in zip(wished, grid, sums.covariance(), solver.ridge, strict=True)
            ]
        )
        new = new if _error(sums, new, biased) < _error(sums, matrix, biased) else matrix
    if biased:
        best = sums.bias() if isinstance(sums, Residuals) else sums.bias(new)
        _write_bias(one, best - (1 - certain_share(offsets)) * np.mean(offsets, axis=0))
    if new is not matrix:
        found = np.rint(layer.restore(new) / steps).astype(np.int8)
        one.integers.const = Tensor.from_array(found)
    return Solved(one.node.label, one.node.op_type, start / spread, error(new) / spread)


@dataclass
class Residuals:
    """What targets are above the products of rows and weights [groups, in, out], in sums.

    All that biases are solved by; unlike of second moments there are no more sums than outputs.
    """

    weights: Doubles
    rows: int
    sums: Doubles  # [groups, out]
    squares: Doubles  # [groups, out]
    targets: Doubles  # [groups, out]
    energy: Doubles  # [groups, out], sums of squares of the targets

    @classmethod
    def zeros(cls, weights: Doubles) -> Residuals:
        groups, _, outputs = weights.shape
        return cls(weights, 0, *(np.zeros((groups, outputs)) for _ in range(4)))

    def add(self, inputs: Array, targets: Array) -> None:
        """Take in rows [groups, rows, in] and targets [groups, rows, out]."""
        left = targets - inputs @ self.weights.astype(np.float32)
        self.rows += inputs.shape[1]
        self.sums += left.sum(axis=1, dtype=np.float64)
        self.squares += np.square(left, dtype=np.float64).sum(axis=1)
        self.targets += targets.sum(axis=1, dtype=np.float64)
        self.energy += np.square(targets, dtype=np.float64).sum(axis=1)

    def bias(self) -> Doubles:
        """The best one [groups, out]."""
        return np.asarray(self.sums / self.rows)

    def error(self, bias: Doubles) -> float:
        """Mean squared distance from the targets with a bias, summed over outputs."""
        moved = (self.squares - 2 * bias * self.sums) / self.rows + np.square(bias)
        return float(np.maximum(moved, 0.0).sum())

    def spread(self) -> float:
        """Variance of the targets, summed over them."""
        variance = self.energy / self.rows - np.square(self.targets / self.rows)
        return float(np.maximum(variance, 0.0).sum())


def _offset(rows: Array, targets: Array, matrix: Doubles) -> Doubles:
    """What targets [groups, rows, out] are above the products of rows, in the mean."""
    mean = rows.mean(axis=1, dtype=np.float64)
    product = np.einsum("gi,gio->go", mean, matrix)
    return np.asarray(targets.mean(axis=1, dtype=np.float64) - product)


def certain_share(offsets: Sequence[Doubles]) -> Doubles:
    """The share of the mean offset of runs that isn't due to which samples there are.

    What moves biases by chance adds up from layer to layer. Each run has other samples, which tells
    the error of the mean: the larger it is beside the mean, the less is left of that (James and
    Stein, 1961). Of one run all is left.
    """
    if len(offsets) == 1:
        return np.ones_like(offsets[0])
    error = np.var(offsets, axis=0, ddof=1) / len(offsets)
    square = np.square(np.mean(offsets, axis=0))
    return np.asarray(1 - np.divide(error, square, out=np.ones_like(error), where=square > error))


def _error(moments: Moments, matrix: Doubles, biased: bool) -> float:
    bias = moments.bias(matrix) if biased else np.zeros((matrix.shape[0], matrix.shape[2]))
    return moments.error(matrix, bias)


def _rows(
    one: _Quantized, before: Walk, now: Walk, wanted: float, seed: int
) -> Iterator[tuple[Array, Array]]:
    """What the weights multiply in the quantized model, and what should come out."""
    generator = np.random.default_rng(seed)
    for run in range(now.runs):
        target = before.value(one.result, run)
        if target.size:
            picked = one.layer.pick(generator, target, wanted)
            source = now.value(one.source, run)
            rows = one.layer.rows(source, target.shape, picked)
            yield rows, one.layer.targets(target, picked)


def round_second_order(wished: Doubles, grid: Doubles, moments: Doubles, limit: int) -> Doubles:
    """Weights [in, out] on the grid of multiples, at most `limit`, of their steps [in, out].

    `moments` [in, in], positive definite, weigh errors. Inputs with the largest come first,
    and what one leaves over goes to those after it. An output for which that is no better
    than rounding to the nearest keeps the nearest.
    """
    nearest = _on_grid(wished, grid, limit)
    order = np.argsort(-np.diagonal(moments), kind="stable")
    try:
        inverse = np.linalg.inv(moments[np.ix_(order, order)])
        upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    except np.linalg.LinAlgError:  # singular, or not definite to rounding
        return nearest
    rest, steps = wished[order].copy(), grid[order]
    found = np.empty_like(rest)
    for start in range(0, len(rest), BLOCK):
        end = min(start + BLOCK, len(rest))
        errors = np.empty((end - start, rest.shape[1]))
        for i in range(start, end):
            found[i] = _on_grid(rest[i], steps[i], limit)
            error = errors[i - start] = (rest[i] - found[i]) / upper[i, i]
            rest[i + 1 : end] -= upper[i, i + 1 : end, None] * error
        rest[end:] -= upper[start:end, end:].T @ errors
    placed = np.empty_like(found)
    placed[order] = found
    better = _weighed(placed - wished, moments) < _weighed(nearest - wished, moments)
    return descend(np.where(better, placed, nearest), wished, grid, moments, limit)


def descend(
    start: Doubles, wished: Doubles, grid: Doubles, moments: Doubles, limit: int
) -> Doubles:
    """Weights [in, out] on the grid that a change of any single one brings no nearer.

    One input after the other takes the multiple of its step that is best beside all others, so
    that the error by `moments`, positive on the diagonal, never grows.
    """
    found, diagonal = start.copy(), np.diagonal(moments)
    gradient = moments @ (found - wished)
    for _ in range(PASSES):
        before = found.copy()
        for first in range(0, len(found), BLOCK):
            end = min(first + BLOCK, len(found))
            inner, own = moments[first:end, first:end], gradient[first:end].copy()
            for i in range(first, end):
                pull = own[i - first]
                step = _on_grid(found[i] - pull / diagonal[i], grid[i], limit) - found[i]
                step[step * (2 * pull + diagonal[i] * step) >= 0] = 0.0
                found[i] += step
                own += inner[:, i - first, None] * step
            gradient += moments[:, first:end] @ (found[first:end] - before[first:end])
        if np.array_equal(found, before):
            break
    return found


def _weighed(errors: Doubles, moments: Doubles) -> Doubles:
    return np.asarray(np.einsum("io,io->o", errors, moments @ errors))


def _on_grid(weights: Doubles, steps: Doubles, limit: int) -> Doubles:
    return np.asarray(np.clip(np.rint(weights / steps), -limit, limit) * steps)


def _bias_of(one: _Quantized) -> Doubles:
    assert one.bias is not None
    assert one.bias.const is not None
    array = one.bias.const.numpy() * one.bias_scale.astype(np.float64)
    groups = one.layer.groups if isinstance(one.layer, ConvolutionLayer) else 1
    return np.asarray(array.reshape(groups, -1))


def _write_bias(one: _Quantized, bias: Doubles) -> None:
    assert one.bias is not None
    assert one.bias.const is not None
    old = one.bias.const.numpy()
    limits = np.iinfo(np.int32)
    integers = np.rint(bias.reshape(old.shape) / one.bias_scale.astype(np.float64))
    clipped = np.clip(integers, limits.min, limits.max).astype(np.int32)
    one.bias.const = Tensor.from_array(clipped)
