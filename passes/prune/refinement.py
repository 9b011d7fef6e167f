"""All layers together: a pruned model learns what the original puts out, without labels.

Recovery solves one layer after another, each towards its own output in the original. What
that leaves, steps down the gradient of the divergence of the outputs reduce (distillation:
Hinton et al., "Distilling the Knowledge in a Neural Network", 2015), and of the distance of what
layers put out, since that says more of a sample than some class scores do (Romero et al., "FitNets:
Hints for Thin Deep Nets", 2015). A few hundred samples are learned by heart in no time, so that
the steps take inputs made of them (`mixtures.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.advance import advanced
from ...ir.cost import count
from ...ir.errors import UnsupportedError
from ...ir.graph import Value
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array, Tensor
from ..linear.divergence import Distances, is_distribution, probabilities
from ..linear.find import drop_zero_biases, find_layer, give_biases
from ..linear.gradient_rules import Builder
from ..linear.gradients import Gradients, Loss
from ..linear.layers import Layer
from ..linear.mixtures import Mixtures, rows
from ..linear.moments import Doubles, Moments
from ..linear.walk import Walk
from ..opset import ConvertOpset
from ..sizes import CountedSizes, infer_sizes
from .features import Features, feature_of, squared_error, variance_of
from .masking import Keep

STEPS = 1000
"""Steps that are taken at most."""

FEWEST = 20
"""Steps below which nothing is tried."""

STEPS_FOR_EACH = 0.75
"""Steps for each sample, where that is fewer: more would learn the samples by heart."""

STEPS_FOR_EACH_MOVED = 2.5
"""The same where samples are images that are moved."""

FEWEST_SAMPLES = 48
"""Samples with which nothing is tried, if there are fewer."""

NEGLIGIBLE = 1e-6
"""Divergence at which nothing is tried."""

MACS = 3e12
"""Multiply-accumulates that all steps may take: about three minutes of one processor core."""

OLDEST_OPSET = 11
"""Version of the operator set from which on gradients are made of the operators as they are:
before, Slice had its bounds as attributes and Gemm needed a third operand."""

SINGLE_RUNS = 2000
"""Runs of a model that takes one sample at a time."""

RATE = 2e-2
"""Of a step, as a share of the root mean square of what it changes."""

FIRST_DECAY, SECOND_DECAY = 0.9, 0.99
"""Of the averages of Adam (Kingma and Ba 2015)."""

BATCH = 32
"""Samples of a step, if a run has no more."""

ROWS, ROWS_FOR_EACH = 4096, 4
"""Rows, at least and for each unknown, from which the inputs of a layer are known."""

DAMPING = 1e-2
"""Of the mean variance of a layer's inputs, what is added to that of each."""


@dataclasses.dataclass(frozen=True)
class Refined:
    """Steps that were taken, and the divergence on samples held out, before and after.

    `layers` is the number of layers that changed; `reason` says why there are none, or not
    all.
    """

    steps: int = 0
    before: float = 0.0
    after: float = 0.0
    layers: int = 0
    reason: str = ""


def refine(
    original: Model,
    pruned: Model,
    kept: Mapping[str, tuple[Keep | None, ...]],
    fitted: Sequence[Mapping[str, Array]],
    held: Sequence[Mapping[str, Array]],
    *,
    seed: int = 0,
    macs: float = MACS,
) -> Refined:
    """Bring the outputs of `pruned` nearer to those of `original` on inputs like `fitted`.

    `kept` says what is left of the values of `original` that lost something. `fitted` and
    `held` are inputs of both models, each a batch; the latter only judge. `macs` is how many
    multiply-accumulates all steps may take. Changes the weights of `pruned` in place, unless
    that makes the divergence on what is held out worse, beyond chance.
    """
    opened = _takes_any_number(pruned)
    samples = sum(rows(run) if opened else 1 for run in fitted)
    if not held or samples < FEWEST_SAMPLES:
        return Refined(reason=f"{samples} samples are too few, {FEWEST_SAMPLES} are needed")
    group = max(1, math.ceil(BATCH / rows(fitted[0]))) if opened else BATCH
    cost = _cost(original, pruned) * BATCH
    steps = min(STEPS, int(macs // max(cost, 1)))
    if not opened:
        steps = min(steps, SINGLE_RUNS // BATCH)
    if steps < FEWEST:
        return Refined(reason=f"time for {steps} steps only, with so many multiply-accumulates")
    teacher = Session(original, threads=0)
    mixtures = Mixtures(teacher, fitted, np.random.default_rng(seed))
    for_each = STEPS_FOR_EACH_MOVED if mixtures.moves else STEPS_FOR_EACH
    steps = min(steps, round(for_each * samples))
    wanted = [teacher.run(run) for run in held]
    try:
        student = _student(pruned)
    except UnsupportedError as error:
        return Refined(reason=f"it has no form that has gradients: {error}")
    state = _Learners(student, fitted, seed)
    features = Features(original, student, kept, state.features(), fitted)
    losses = {**_losses(student, wanted), **features.losses()}
    gradients = Gradients(features.student, losses, state.names())
    state.hold(gradients.parameters)
    stopped = ", ".join(sorted(gradients.stopped))
    if not state.layers:
        why = (
            f"none passes through {stopped}"
            if stopped
            else "none is of float32 outside of subgraphs"
        )
        return Refined(reason=f"no gradient reaches any weights: {why}")
    unrefined = Distances(wanted, student, held)
    before = unrefined.mean
    if before < NEGLIGIBLE:
        return Refined(0, before, before, reason="there was nothing left to gain")
    for step in advanced(range(steps), steps):
        total: dict[str, Array] = {}
        for _ in range(group):
            feeds = mixtures.draw()
            found = features.teacher.run(feeds)
            targets = {n: _target(n, features.cut(n, a), losses) for n, a in found.items()}
            for name, part in gradients.run(feeds, targets, state.write()).items():
                total[name] = total.get(name, 0.0) + part / (group * rows(feeds))
        if not all(np.isfinite(part).all() for part in total.values()):
            return Refined(step, before, before, reason="gradients are not finite")
        state.step(total, RATE * _course(step, steps))
    state.write()
    refined = Distances(wanted, student, held)
    if refined.is_worse(unrefined):
        return Refined(steps, before, before, reason="it made outputs on samples held out worse")
    added = give_biases(pruned)
    for node in pruned.graph.nodes:
        layer = find_layer(pruned, node)
        if isinstance(layer, Layer) and layer.result.name in state.layers:
            learner = state.layers[layer.result.name]
            layer.write(learner.matrix, learner.bias)
    drop_zero_biases(pruned, added)
    reason = f"no gradient passes through {stopped}" if stopped else ""
    return Refined(steps, before, refined.mean, len(state.layers), reason)


def _student(pruned: Model) -> Model:
    """A copy in which each layer has a bias, in operators that gradients can be made of."""
    student = pruned.clone()
    give_biases(student)
    if student.opset < OLDEST_OPSET:
        ConvertOpset(OLDEST_OPSET).run(student)
        infer_sizes(student)
    return student


def _course(step: int, steps: int) -> float:
    """The share of the full rate: it rises over the first tenth, then falls to 0."""
    return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2


class _Learners:
    """The layers of a model that steps change.

    Steps are those of Adam in coordinates in which a layer's inputs are uncorrelated and of
    unit variance: there, unlike in those of the weights, no direction is much steeper than
    others (as in Shampoo, Gupta et al. 2018, and SOAP, Vyas et al. 2024).
    """

    def __init__(self, model: Model, runs: Sequence[Mapping[str, Array]], seed: int) -> None:
        self.layers: dict[str, _Learner] = {}
        """By the names of the values that they put out."""
        self._steps = 0
        plan = []
        for node in model.graph.nodes:
            layer = find_layer(model, node)
            if isinstance(layer, Layer) and len(layer.stored.uses) == 1:
                layer.write(*layer.read())  # so that there are constants of its own
                plan.append(layer)
        positions = {node: k for k, node in enumerate(model.graph.nodes)}
        with scratch_folder() as folder:
            walk = Walk(model, runs, folder)
            ends = []
            for layer in plan:
                assert layer.result.producer is not None
                ends.append(positions[layer.result.producer] + 1)
                walk.keep(layer.source.name, ends[-1])
                walk.keep(layer.result.name, ends[-1])
            for layer, end in sorted(zip(plan, ends, strict=True), key=lambda p: p[1]):
                walk.advance(end)
                self.layers[layer.result.name] = _Learner(layer, _moments(layer, walk, seed))

    def features(self) -> list[str]:
        """Names of what becomes of the layers' outputs."""
        return list(dict.fromkeys(feature_of(x.layer.result).name for x in self.layers.values()))

    def names(self) -> list[str]:
        return [name for learner in self.layers.values() for name in learner.names]

    def hold(self, names: Sequence[str]) -> None:
        """Only layers both of whose constants are among those of some names change."""
        given = set(names)
        self.layers = {k: v for k, v in self.layers.items() if given.issuperset(v.names)}

    def write(self) -> dict[str, Array]:
        """Write the weights into the model; what its constants are then, by name."""
        return {n: a for learner in self.layers.values() for n, a in learner.write().items()}

    def step(self, gradients: Mapping[str, Array], rate: float) -> None:
        self._steps += 1
        for learner in self.layers.values():
            learner.step([gradients[name] for name in learner.names], rate, self._steps)


class _Learner:
    """A layer with the averages that Adam keeps of it."""

    def __init__(self, layer: Layer, moments: Moments) -> None:
        self.layer = layer
        self.matrix, self.bias = layer.read()
        place = layer.place
        bias = None if place is None else place.node.input(place.position)
        self._constants = [v for v in (layer.stored, bias) if v is not None]
        self.names = [value.name for value in self._constants]
        stored = np.square(layer.weights.numpy(), dtype=np.float64).sum()
        self._factors = (
            float(np.square(self.matrix).sum() / stored) if stored > 0 else 1.0,
            1.0 if place is None else place.factor**2,
        )
        covariance = moments.covariance()
        width = covariance.shape[1]
        mean_variance = np.einsum("gii->gi", covariance).mean(axis=1)
        floor = np.where(mean_variance > 0, DAMPING * mean_variance, 1.0)
        values, vectors = np.linalg.eigh(covariance + floor[:, None, None] * np.eye(width))
        values = np.maximum(values, floor[:, None])
        turned = vectors.transpose(0, 2, 1)
        self._whiten = (vectors / np.sqrt(values)[:, None, :]) @ turned
        spread = (vectors * np.sqrt(values)[:, None, :]) @ turned
        self._mean = moments.mean
        white = spread @ self.matrix
        self._scale = float(np.sqrt(np.square(white).mean()))
        self._averages = [[np.zeros_like(a), np.zeros_like(a)] for a in (white, self.bias)]

    def write(self) -> dict[str, Array]:
        """Write the weights into the model; the layer's constants, by name."""
        self.layer.write(self.matrix, self.bias)
        return {value.name: _tensor(value).numpy() for value in self._constants}

    def _gradient(self, gradients: Sequence[Array]) -> tuple[Doubles, Doubles]:
        """By the matrix and the bias: read as if they were the constants.

        What is read is the constants in another order, times a factor, by which a gradient has
        to be divided instead.
        """
        held = [_tensor(value) for value in self._constants]
        for value, gradient, tensor in zip(self._constants, gradients, held, strict=True):
            value.const = Tensor.from_array(gradient, tensor.dtype)
        matrix, bias = self.layer.read()
        for value, tensor in zip(self._constants, held, strict=True):
            value.const = tensor
        return matrix / self._factors[0], bias / self._factors[1]

    def step(self, gradients: Sequence[Array], rate: float, steps: int) -> None:
        matrix, bias = self._gradient(gradients)
        centred = matrix - self._mean[:, :, None] * bias[:, None, :]
        moves = []
        for gradient, averages in zip((self._whiten @ centred, bias), self._averages, strict=True):
            first, second = averages
            first += (1 - FIRST_DECAY) * (gradient - first)
            second += (1 - SECOND_DECAY) * (np.square(gradient) - second)
            mean = first / (1 - FIRST_DECAY**steps)
            deviation = np.sqrt(second / (1 - SECOND_DECAY**steps))
            floor = 1e-6 * float(deviation.max(initial=0.0)) or 1.0
            moves.append(rate * self._scale * mean / (deviation + floor))
        change = self._whiten @ moves[0]
        self.matrix -= change
        self.bias -= moves[1] - np.einsum("gi,gio->go", self._mean, change)


def _tensor(value: Value) -> Tensor:
    assert value.const is not None
    return value.const


def _moments(layer: Layer, walk: Walk, seed: int) -> Moments:
    """Of a layer's inputs, at some positions of its outputs."""
    groups, width, outputs = layer.read()[0].shape
    moments = Moments.zeros(groups, width, outputs)
    generator = np.random.default_rng(seed)
    wanted = max(ROWS, ROWS_FOR_EACH * width) / walk.runs
    for run in range(walk.runs):
        result = walk.value(layer.result.name, run)
        picked = layer.pick(generator, result, wanted)
        rows = layer.rows(walk.value(layer.source.name, run), result.shape, picked)
        moments.add(rows, layer.targets(result, picked))
    return moments


def _takes_any_number(model: Model) -> bool:
    """Whether first axes count samples: as in runs of models opened for that."""
    inputs = [v for v in model.graph.inputs if v.const is None]
    return all(v.shape and not isinstance(v.shape[0], int) for v in inputs)


def _cost(original: Model, pruned: Model) -> int:
    """Multiply-accumulates for a sample: the original's, and three times those of the other."""
    costs = []
    for model in (original, pruned):
        _, shape_of = CountedSizes.usual(model)
        costs.append(count(model, shape_of).macs)
    return costs[0] + 3 * costs[1]


def _losses(model: Model, outputs: Sequence[Mapping[str, Array]]) -> dict[str, Loss]:
    """For each output what `Divergence` measures of it; none for those that don't count."""
    losses: dict[str, Loss] = {}
    for value in model.graph.outputs:
        arrays = [run[value.name] for run in outputs]
        if any(array.dtype != np.float32 or not array.size for array in arrays):
            continue
        if arrays[0].ndim == 2 and arrays[0].shape[1] > 1:
            chances = all(is_distribution(array) for array in arrays)
            losses[value.name] = _of_probabilities if chances else _of_scores
        else:
            variance = float(np.mean([variance_of(array) for array in arrays]))
            losses[value.name] = squared_error(1 / variance if variance > 0 else 1.0)
    return losses


def _target(name: str, array: Array, losses: Mapping[str, Loss]) -> Array:
    return probabilities(array) if losses.get(name) is _of_scores else array


def _of_scores(b: Builder, output: Value, target: Value) -> Value:
    return b.op("Sub", b.op("Softmax", output, axis=1), target)


def _of_probabilities(b: Builder, output: Value, target: Value) -> Value:
    return b.op("Neg", b.op("Div", target, b.op("Add", output, b.number(1e-7))))
