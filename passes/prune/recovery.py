"""One pass over a pruned model that lets every layer make up for what its input lost."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...ir.errors import SecateurError
from ...ir.graph import Node, outer_reads
from ...ir.model import Model
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array
from ..base import Context, Note, Pass, PassResult
from ..linear.find import Aim, drop_zero_biases, find_aim, find_layer, give_biases
from ..linear.layers import Layer
from ..linear.moments import Moments, Solver
from ..linear.opening import open_batch
from ..linear.walk import Walk
from ..samples import Samples
from ..sizes import infer_sizes
from .masking import Keep, PruningRecord

SAMPLES = 512
"""Samples that are used at most: twice as many gain little, and take twice as long."""

BATCH = 32
"""Samples in one run at most; there are several runs, half of which may be held back."""

ROWS = 16384
"""Rows, one for each position of an output, that a layer is solved from if there are as many."""

ROWS_FOR_EACH = 16
"""Rows for each unknown of an output, where that makes more than `ROWS`."""

ROUNDS = 2
"""Times that targets behind a clipping activation are adapted to what was reached."""

UNCHANGED = 1e-10
"""Error, as a share of the targets' variance, up to which a layer is left as it is."""


@dataclasses.dataclass(frozen=True)
class Recover(Pass):
    """Let the layers of a model that was pruned before make up for what is gone.

    Least squares on calibration samples: each layer, in execution order, comes as near as it
    can to what it put out in the original (`recover`). Needs samples, and the original that
    the pass which pruned the model leaves behind; without them it changes nothing and says so.
    """

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        if context is None or not context.calibration or context.pruned is None:
            why = "nothing was recovered: no calibration samples, or nothing pruned before"
            return PassResult(False, notes=[Note("", self.name, why)])
        pruned = context.pruned
        if pruned.helps is False:
            why = "not recovered: on samples held back it made outputs worse"
            return PassResult(False, notes=[Note("", self.name, why)])
        original = pruned.original.clone()
        infer_sizes(original)
        arrays, seed = context.calibration, context.seed
        with calibration_runs([original, model], arrays, seed) as runs:
            found = recover(original, model, pruned.record, runs, seed=seed)
        layers = [dataclasses.asdict(layer) for layer in found.layers]
        changed = any(layer.after != layer.before for layer in found.layers)
        return PassResult(changed, {"layers": layers}, found.notes)


@contextlib.contextmanager
def calibration_runs(
    models: Sequence[Model], arrays: Mapping[str, Array], seed: int, *, opened: bool = True
) -> Iterator[list[dict[str, Array]]]:
    """Inputs of several runs of models that take the same, in a block in which they take them.

    Samples in random order, so that each run has some of every kind; many in one run where
    they are proven to be independent, and `opened` allows to change the models for that.
    """
    arrays = _drawn(models[0], arrays, seed)
    with contextlib.ExitStack() as stack:
        many = opened and all(stack.enter_context(open_batch(m, arrays)) for m in models)
        if opened and not many:
            stack.close()  # none or all
        samples = Samples(models[0], arrays)
        size = max(1, min(BATCH, len(samples) // 8)) if many else 1
        yield [feeds for feeds, _ in samples.feeds(size)]


def _drawn(model: Model, arrays: Mapping[str, Array], seed: int) -> dict[str, Array]:
    count = len(Samples(model, arrays))
    chosen = np.random.default_rng(seed).permutation(count)[:SAMPLES]
    names = [value.name for value in model.graph.inputs if value.const is None]
    return {name: arrays[name][chosen] if arrays[name].ndim else arrays[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Recovered:
    """Error of a layer as a share of its target's variance, before and after it was solved."""

    node: str
    op_type: str
    before: float
    after: float
    rows: int
    unknowns: int
    remark: str = ""
    """Why less came of it than could have."""


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What became of every layer behind something pruned."""

    layers: list[Recovered]
    notes: list[Note]


def recover(
    original: Model,
    pruned: Model,
    record: PruningRecord,
    runs: Sequence[Mapping[str, Array]],
    *,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> Recovery:
    """Solve, in execution order, every layer of `pruned` whose input or weights lost something.

    `runs` are inputs of both models, several of them each a batch. `record` says what of
    `original` is left. `rounds` is how often targets behind activations are adapted. Changes
    the weights of `pruned` in place.
    """
    added = give_biases(pruned)
    touched = _touched(pruned, record)
    with scratch_folder() as first, scratch_folder() as second:
        pass_ = _Pass(original, pruned, record, runs, (first, second), seed, rounds)
        found = pass_.run(touched)
    drop_zero_biases(pruned, added)
    return found


def _touched(model: Model, record: PruningRecord) -> set[Node]:
    """Nodes of the main graph that a removed index may have a part in."""
    changed: set[str] = set(record.values)
    cut = {first for first, _ in record.constants}
    found = set()
    for node in model.graph.nodes:
        names = {v.name for v in outer_reads(node)}
        outputs = [v.name for v in node.outputs if v is not None]
        if names & changed or cut & set(outputs):
            found.add(node)
            changed.update(outputs)
    return found


class _Pass:
    def __init__(
        self,
        original: Model,
        pruned: Model,
        record: PruningRecord,
        runs: Sequence[Mapping[str, Array]],
        folders: tuple[Path, Path],
        seed: int,
        rounds: int,
    ) -> None:
        self.rounds = rounds
        self.pruned = pruned
        self.record = record
        self.runs = len(runs)
        self.seed = seed
        self.before = Walk(original, runs, folders[0])
        self.now = Walk(pruned, runs, folders[1])
        self.positions = {node: i for i, node in enumerate(pruned.graph.nodes)}
        self.made = {
            value.name: position
            for position, node in enumerate(original.graph.nodes)
            for value in node.outputs
            if value is not None
        }

    def run(self, touched: set[Node]) -> Recovery:
        layers: list[Recovered] = []
        notes: list[Note] = []
        plan: list[tuple[Layer, Aim]] = []
        for node in self.pruned.graph.nodes:
            if node not in touched:
                continue
            layer = find_layer(self.pruned, node)
            if node.subgraphs():
                layer = "it runs subgraphs, whose layers keep their weights"
            if isinstance(layer, str):
                notes.append(Note.at(node, f"not solved anew: {layer}"))
            elif layer is not None:
                aim = find_aim(self.pruned, layer, self.positions)
                if aim.value.name in self.made:
                    plan.append((layer, aim))
                else:
                    notes.append(Note.at(node, "not solved anew: the original has no such value"))
        waiting = Counter(aim.value.name for _, aim in plan)
        for layer, aim in plan:
            self.before.keep(aim.value.name)
            if aim.beside is not None:
                self.now.keep(aim.beside.name, self.positions[layer.node])
        for layer, aim in plan:
            name = aim.value.name
            self.now.advance(self.positions[layer.node])
            self.before.advance(self.made[name] + 1)
            found = self._solve(layer, aim)
            layers.append(found)
            if found.remark:
                notes.append(Note.at(layer.node, found.remark))
            waiting[name] -= 1
            if not waiting[name]:
                self.before.release(name)
        return Recovery(layers, notes)

    def _solve(self, layer: Layer, aim: Aim) -> Recovered:
        matrix, bias = layer.read()
        groups, width, outputs = matrix.shape
        moments = Moments.zeros(groups, width, outputs, centred=layer.has_bias)
        for rows, targets, _ in self._rows(layer, aim, width):
            moments.add(rows, targets)
        spread = moments.spread()
        before = _share(moments.error(matrix, bias), spread)

        def report(after: float, remark: str = "") -> Recovered:
            node, rows = layer.node, moments.rows
            return Recovered(node.label, node.op_type, before, after, rows, width + 1, remark)

        if not math.isfinite(before):
            raise SecateurError(
                f"recovery: values around node '{layer.node.label}' ({layer.node.op_type}) are "
                "not finite"
            )
        if before <= UNCHANGED:
            return report(before)
        solver = Solver(moments)
        new, shift = solver.solve(moments, matrix)
        after = _share(moments.error(new, shift), spread)
        if (aim.low, aim.high) != (-np.inf, np.inf):
            for _ in range(self.rounds):
                moments.reset_targets()
                for rows, targets, beside in self._rows(layer, aim, width):
                    predicted = rows @ new.astype(np.float32) + shift[:, None].astype(np.float32)
                    adapted = _adapted(targets, predicted, beside, aim)
                    moments.add_targets(rows, adapted)
                new, shift = solver.solve(moments, matrix)
            after = _share(moments.error(new, shift), spread)
        layer.write(new, shift)
        return report(after, _remark(moments, width + 1))

    def _rows(
        self, layer: Layer, aim: Aim, width: int
    ) -> Iterator[tuple[Array, Array, Array | float]]:
        """Of each run: rows, targets, and what is added to both before they are clipped."""
        kept = self.record.values.get(aim.value.name, ())
        generator = np.random.default_rng(self.seed)
        wanted = max(ROWS, ROWS_FOR_EACH * width) / self.runs
        for run in range(self.runs):
            target = take(self.before.value(aim.value.name, run), kept)
            source = self.now.value(layer.source.name, run)
            picked = layer.pick(generator, target, wanted)
            rows = layer.rows(source, target.shape, picked)
            targets = layer.targets(target, picked)
            beside: Array | float = 0.0
            if aim.beside is not None:
                beside = layer.targets(self.now.value(aim.beside.name, run), picked)
                targets = targets - beside
            yield rows, targets, beside


def _remark(moments: Moments, unknowns: int) -> str:
    variance = np.einsum("gii->gi", moments.covariance()).sum()
    if variance <= UNCHANGED * np.square(moments.mean).sum():
        return "what it reads is the same in all samples, so only its bias was adapted"
    if moments.rows < unknowns:
        return (
            f"fewer rows ({moments.rows}) than unknowns ({unknowns}), so it stays near its weights"
        )
    return ""


def _adapted(targets: Array, predicted: Array, beside: Array | float, aim: Aim) -> Array:
    """Targets beyond a limit become what was reached, where that is beyond it, too."""
    wanted, reached = targets + beside, predicted + beside
    if aim.low > -np.inf:
        wanted = np.where(wanted > aim.low, wanted, np.minimum(reached, aim.low))
    if aim.high < np.inf:
        wanted = np.where(wanted < aim.high, wanted, np.maximum(reached, aim.high))
    found: Array = np.asarray(wanted - beside, np.float32)
    return found


def take(array: Array, kept: Sequence[Keep | None]) -> Array:
    """The elements of an original value that the pruned one still has."""
    for axis, keep in enumerate(kept):
        if keep is not None:
            array = np.compress(keep.mask(array.shape[axis]), array, axis=axis)
    return array


def _share(error: float, spread: float) -> float:
    if not (math.isfinite(error) and math.isfinite(spread)):
        return math.inf
    return error / spread if spread > 0 else (0.0 if error == 0 else 1.0)
