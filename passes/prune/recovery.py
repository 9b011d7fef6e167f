"""One pass over a pruned model that lets every layer make up for what its input lost."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ...ir.advance import advanced
from ...ir.cost import count
from ...ir.errors import SecateurError
from ...ir.graph import Graph, Node, Value, outer_reads
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array
from ..base import Context, Note, Pass, PassResult
from ..body_results import WITH_BODIES
from ..linear import mixtures
from ..linear.bodies import BodyError, SingleBody, WholeBody
from ..linear.find import drop_zero_biases, find_aim, find_layer, give_biases
from ..linear.layers import Layer, Solvable
from ..linear.levels import Levels
from ..linear.moments import Joint, Moments, Solver
from ..linear.opening import open_batch
from ..linear.recurrent import RecurrentLayer
from ..linear.threads import few_threads
from ..linear.walk import Recording, Walk
from ..samples import SampleArray, Samples
from ..sizes import CountedSizes, infer_sizes
from .equations import (
    BodyEquations,
    EquationRows,
    Equations,
    LayerEquations,
    RecurrentEquations,
    loses_sequences,
)
from .masking import PruningRecord, first_output
from .refinement import Refined, refine
from .scores import find_score_products

SAMPLES = 512
"""Samples that are used at most: twice as many gain little, and take twice as long."""

BATCH = 32
"""Samples in one run at most; there are several runs, half of which may be held back."""

VALUES = 2**31
"""Bytes of all values of a run together, beyond which it has fewer samples."""

ROWS = 16384
"""Rows, one for each position of an output, that a layer is solved from if there are as many."""

ROWS_FOR_EACH = 16
"""Rows for each unknown of an output, where that makes more than `ROWS`."""

ROUNDS = 2
"""Times that targets behind a clipping activation are adapted to what was reached."""

HELD_OUT = 8
"""One run in so many is not fitted, to judge by it what all layers together reach."""

COPIED = 1e11
"""Multiply-accumulates of a run over all samples, up to which images are fitted twice, mirrored
and tinted the second time; in more there are rows enough, and it would take too long."""

UNCHANGED = 1e-10
"""Error, as a share of the targets' variance, up to which a layer is left as it is."""

ROUNDING = 1e-6
"""Variance, as a share of the means' squares, that rounding to float32 leaves at most of values
that are the same in all samples."""


@dataclasses.dataclass(frozen=True)
class Recover(Pass):
    """Let the layers of a model that was pruned before make up for what is gone.

    Least squares on calibration samples: each layer, in execution order, comes as near as it
    can to what it put out in the original (`recover`). Then, with `refine`, all of them
    together come nearer to the original's outputs (`refinement.py`). Needs samples, and the
    original that the pass which pruned the model leaves behind; without them it changes nothing
    and says so.
    """

    refine: bool = True

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
        refined = Refined()
        with (
            few_threads(original),
            calibration_runs([original, model], arrays, seed) as runs,
        ):
            refines = self.refine and not pruned.rematch
            apart = range(HELD_OUT - 1, len(runs), HELD_OUT) if refines else range(0)
            held = [runs[k] for k in apart]
            fitted = [run for k, run in enumerate(runs) if k not in apart]
            found = recover(
                original,
                model,
                pruned.record,
                [*fitted, *_copies(original, fitted, seed)],
                seed=seed,
                rematch=pruned.rematch,
            )
            changed = any(layer.after != layer.before for layer in found.layers)
            if refines and changed:
                kept = pruned.record.values
                refined = refine(original, model, kept, fitted, held, seed=seed)
        if refined.reason:
            found.notes.append(Note("", self.name, f"layers together: {refined.reason}"))
        layers = [dataclasses.asdict(layer) for layer in found.layers]
        statistics = {"layers": layers, "together": dataclasses.asdict(refined)}
        return PassResult(changed, statistics, found.notes)


def _copies(
    original: Model, runs: Sequence[Mapping[str, Array]], seed: int
) -> list[dict[str, Array]]:
    _, shape_of = CountedSizes.usual(original)
    if count(original, shape_of).macs * sum(map(mixtures.rows, runs)) > COPIED:
        return []
    generator = np.random.default_rng(seed)
    return mixtures.Mixtures(Session(original, threads=0), runs, generator).copies()


@contextlib.contextmanager
def calibration_runs(
    models: Sequence[Model], arrays: Mapping[str, SampleArray], seed: int, *, opened: bool = True
) -> Iterator[list[dict[str, Array]]]:
    """Inputs of several runs of models that take the same, in a block in which they take them.

    Samples in random order, so that each run has some of every kind; many in one run where
    they are proven to be independent, and `opened` allows to change the models for that.
    """
    drawn = _drawn(models[0], arrays, seed)
    with contextlib.ExitStack() as stack:
        many = opened and all(stack.enter_context(open_batch(m, drawn)) for m in models)
        if opened and not many:
            stack.close()  # none or all
        samples = Samples(models[0], drawn)
        size = min(BATCH, len(samples) // 8, VALUES // _bytes_of_a_sample(models[0])) if many else 1
        yield [feeds for feeds, _ in samples.feeds(max(1, size))]


def _bytes_of_a_sample(model: Model) -> int:
    """What all values of the main graph take of one sample, floats of 32 bits."""
    _, shape_of = CountedSizes.usual(model)
    made = [v for node in model.graph.nodes for v in node.outputs if v is not None]
    shapes = [shape_of(value) for value in made]
    return max(1, sum(4 * math.prod(shape) for shape in shapes if shape is not None))


def _drawn(model: Model, arrays: Mapping[str, SampleArray], seed: int) -> dict[str, Array]:
    count = len(Samples(model, arrays))
    chosen = np.random.default_rng(seed).permutation(count)[:SAMPLES]
    names = [value.name for value in model.graph.inputs if value.const is None]
    return {name: np.asarray(arrays[name][chosen if arrays[name].ndim else ()]) for name in names}


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
    rematch: bool = False,
    recording: Recording | None = None,
) -> Recovery:
    """Solve, in execution order, every layer of `pruned` whose input or weights lost something.

    `runs` are inputs of both models, several of them each a batch. `record` says what of
    `original` is left. `rounds` is how often targets behind activations are adapted. With
    `rematch` layers get the means and deviations of their outputs back, and nothing is solved.
    `recording` holds what the original computes on these runs, for several recoveries. Changes
    the weights of `pruned` in place.
    """
    added = give_biases(pruned)
    touched = _touched(pruned, record)
    with scratch_folder() as first, scratch_folder() as second:
        walks = Walk(original, runs, first), Walk(pruned, runs, second)
        pass_ = _Pass(original, pruned, record, walks, recording, seed, rounds, rematch)
        found = pass_.run(touched)
    drop_zero_biases(pruned, added)
    return found


def _touched(model: Model, record: PruningRecord) -> set[Node]:
    """Nodes that a removed index or branch may have a part in, those of subgraphs included.

    Where it has a part in one of several that share weights, it has in all: what is made up for
    in one changes the others.
    """
    changed: set[str] = {*record.values, *record.dropped}
    cut = {first for first, _ in record.constants}
    found: set[Node] = set()
    while True:
        count = len(found)
        for node in model.all_nodes():
            outputs = [v.name for v in node.outputs if v is not None]
            inner = {n for graph in node.subgraphs() for n in graph.all_nodes()}
            names = {v.name for v in outer_reads(node)}
            if node in found or names & changed or cut & set(outputs) or inner & found:
                found.add(node)
                changed.update(outputs)
                changed.update(v.name for graph in node.subgraphs() for v in graph.inputs)
        if len(found) == count:
            return found
        for layer in list(_sharing(model, found)):
            found.update(use.user for use in layer.stored.uses if isinstance(use.user, Node))


def _sharing(model: Model, nodes: Collection[Node]) -> Iterator[Solvable]:
    for node in nodes:
        layer = find_layer(model, node)
        if isinstance(layer, Solvable) and len(layer.stored.uses) > 1:
            yield layer


class _Pass:
    """One walk through both models, layer by layer, that solves for weights on the way."""

    def __init__(
        self,
        original: Model,
        pruned: Model,
        record: PruningRecord,
        walks: tuple[Walk, Walk],
        recording: Recording | None,
        seed: int,
        rounds: int,
        rematch: bool,
    ) -> None:
        self.rounds = rounds
        self.rematch = rematch
        self.original = original
        self.pruned = pruned
        self.record = record
        self.seed = seed
        self.before: Walk | Recording
        self.before, self.now = walks
        self.recording = recording
        self.positions = {node: i for i, node in enumerate(pruned.graph.nodes)}
        self.twins = {first_output(node): node for node in original.all_nodes()}
        self.made = {v.name: -1 for v in original.graph.inputs}
        for position, node in enumerate(original.graph.nodes):
            self.made.update((v.name, position) for v in node.outputs if v is not None)
        self.notes: list[Note] = []
        found = find_score_products(original, record.values)
        self.products = {product.result.name: product for product in found}

    def run(self, touched: set[Node]) -> Recovery:
        layers: list[Recovered] = []
        plan = self._plan(touched)
        reads = [[name for e in uses for name in e.reads_before] for uses in plan]
        ends = [max((self.made[name] for name in names), default=-1) + 1 for names in reads]
        waiting = Counter(name for names in reads for name in names)
        if self.recording is not None and self.recording.record(waiting):
            self.before = self.recording
        for uses in plan:
            for equations in uses:
                for name in equations.reads_before:
                    self.before.keep(name)
                for name in equations.reads_now:
                    self.now.keep(name, self._position(uses[0].layer.node))
        for uses, names, end in advanced(zip(plan, reads, ends, strict=True), len(plan)):
            node = uses[0].layer.node
            self.now.advance(self._position(node))
            self.before.advance(end)
            try:
                found = self._rematch(uses) if self.rematch else self._solve(uses)
            except BodyError as error:
                self._leave(node, str(error))
            else:
                layers.append(found)
                if found.remark:
                    self.notes.append(Note.at(node, found.remark))
            for name in names:
                waiting[name] -= 1
                if not waiting[name]:
                    self.before.release(name)
        return Recovery(layers, self.notes)

    def _plan(self, touched: set[Node]) -> list[list[Equations]]:
        """What is solved, in order: equations of one layer, or of several that share weights."""
        layers: dict[Node, Solvable] = {}
        for node in (n for n in self._in_order() if n in touched):
            layer = find_layer(self.pruned, node)
            if isinstance(layer, str):
                self._leave(node, layer)
            elif layer is not None:
                layers[node] = layer
        found: list[list[Equations]] = []
        seen: set[Value] = set()
        for node, layer in layers.items():
            uses = layer.stored.uses
            if len(uses) > 1 and not self._alike(layer, layers):
                self._leave(node, "other nodes read its weights, too, in another way")
                continue
            if layer.stored in seen:
                continue
            seen.add(layer.stored)
            together = [other for other in layers.values() if other.stored is layer.stored]
            equations = [self._equations(one, foreseen=one is not layer) for one in together]
            why = [e for e in equations if isinstance(e, str)]
            if why:
                self._leave(node, why[0])
            else:
                found.append([e for e in equations if isinstance(e, Equations)])
        return found

    def _in_order(self) -> Iterator[Node]:
        for node in self.pruned.graph.nodes:
            for graph in node.subgraphs():
                yield from graph.all_nodes()
            yield node

    def _position(self, node: Node) -> int:
        """That of a node among those of the main graph, or of the one that it lies in."""
        while node not in self.positions:
            assert node.graph is not None
            assert node.graph.parent is not None
            node = node.graph.parent
        return self.positions[node]

    def _alike(self, layer: Solvable, layers: Mapping[Node, Solvable]) -> bool:
        """Whether all that reads a layer's weights multiplies by the same matrix."""
        matrix, _ = layer.read()
        for use in layer.stored.uses:
            other = layers.get(use.user) if isinstance(use.user, Node) else None
            if other is None or other.position != use.position:
                return False
            if other.has_bias != layer.has_bias or not np.array_equal(other.read()[0], matrix):
                return False
        return True

    def _leave(self, node: Node, reason: str) -> None:
        self.notes.append(Note.at(node, f"not solved anew: {reason}"))

    def _equations(self, layer: Solvable, *, foreseen: bool) -> Equations | str:
        """Those of a layer, or why there are none."""
        graph = layer.node.graph
        assert graph is not None
        if graph.parent is None:
            found = self._equations_of(layer, self.positions, foreseen=foreseen)
        else:
            positions = {node: i for i, node in enumerate(graph.nodes)}
            found = self._equations_of(layer, positions, foreseen=foreseen)
            if isinstance(found, Equations):
                found = self._in_body(found, graph)
        if isinstance(found, str) or all(name in self.made for name in found.reads_before):
            return found
        return "the original has no such value"

    def _equations_of(
        self, layer: Solvable, positions: Mapping[Node, int], *, foreseen: bool
    ) -> Equations | str:
        if isinstance(layer, RecurrentLayer):
            twin = self.twins.get(first_output(layer.node))
            original = None if twin is None else find_layer(self.original, twin)
            if not isinstance(original, RecurrentLayer):
                return "the original has no such node"
            if loses_sequences(original, self.record.values):
                return "it loses some of its sequences"
            return RecurrentEquations(layer, original, self.record.values)
        assert isinstance(layer, Layer)
        aim = find_aim(self.pruned, layer, {} if foreseen else positions)
        product = None if foreseen or aim.beside else self.products.get(aim.value.name)
        return LayerEquations(layer, aim, self.record.values, foreseen=foreseen, product=product)

    def _in_body(self, within: Equations, graph: Graph) -> Equations | str:
        """Equations of a layer in a subgraph, for all times that it runs."""
        parent = graph.parent
        assert parent is not None
        if parent not in self.positions or parent.op_type not in WITH_BODIES:
            deeper = "" if parent in self.positions else ", itself in a subgraph"
            return f"it lies in a subgraph of '{parent.label}' ({parent.op_type}){deeper}"
        twin = self.twins.get(first_output(parent))
        if twin is None or twin.graph is not self.original.graph:
            return "the original has no such node"
        own = twin.subgraphs()[parent.subgraphs().index(graph)]
        try:
            before = WholeBody(self.original, own, within.reads_before)
            reads = within.reads_now
            now = SingleBody(self.pruned, graph, reads) if reads else None
        except BodyError as error:
            return str(error)
        return BodyEquations(within, before, now, self.record.values)

    def _rematch(self, uses: Sequence[Equations]) -> Recovered:
        """Give each output channel its mean and deviation back; of weights that several nodes
        share the first one's deviations count."""
        layer = uses[0].layer
        before = [self._levels(use, len(uses)) for use in uses]
        rows, unknowns = sum(levels.rows for levels in before), layer.read()[0].shape[1] + 1

        def report(share: float) -> Recovered:
            node = layer.node
            return Recovered(node.label, node.op_type, _mean_share(before), share, rows, unknowns)

        self._check_finite(layer.node, _mean_share(before))
        if _mean_share(before) <= UNCHANGED:
            return report(_mean_share(before))
        factor = before[0].factor(biased=layer.has_bias)
        for use, levels in zip(uses, before, strict=True):
            matrix, bias = use.layer.read()
            matrix = matrix if use is not uses[0] else matrix * factor[:, None, :]
            use.layer.write(matrix, levels.bias(bias, factor) if layer.has_bias else bias)
        return report(_mean_share([self._levels(use, len(uses)) for use in uses]))

    def _levels(self, use: Equations, uses: int) -> Levels:
        matrix, bias = use.layer.read()
        levels = Levels.zeros(matrix.shape[0], matrix.shape[2])
        for rows in self._rows(use, matrix.shape[1], uses):
            reached = rows.inputs @ matrix.astype(np.float32)
            levels.add(reached + bias[:, None].astype(np.float32), rows.targets)
        _check_reached(levels.rows)
        return levels

    def _check_finite(self, node: Node, error: float) -> None:
        if not math.isfinite(error):
            raise SecateurError(
                f"recovery: values around node '{node.label}' ({node.op_type}) are not finite"
            )

    def _solve(self, uses: Sequence[Equations]) -> Recovered:
        layer = uses[0].layer
        matrix, _ = layer.read()
        biases = [use.layer.read()[1] for use in uses]
        groups, width, outputs = matrix.shape
        moments = Joint(
            [Moments.zeros(groups, width, outputs, centred=layer.has_bias) for _ in uses]
        )
        for use, sums in zip(uses, moments.uses, strict=True):
            for rows in self._rows(use, width, len(uses)):
                sums.add(rows.inputs, rows.targets)
            _check_reached(sums.rows)
        spread = moments.spread()
        moved = moments.covariance() @ matrix
        before = _share(moments.error(matrix, biases, moved), spread)

        def report(after: float, remark: str = "") -> Recovered:
            node = layer.node
            return Recovered(
                node.label, node.op_type, before, after, moments.rows, width + 1, remark
            )

        self._check_finite(layer.node, before)
        if before <= UNCHANGED:
            return report(before)
        clipped = any((use.low, use.high) != (-np.inf, np.inf) for use in uses)
        rounds = self.rounds if clipped else 0
        solver = Solver(moments, once=not rounds)
        new, shifts, reached = solver.solve(moments, matrix, moved)
        for _ in range(rounds):
            for use, sums, shift in zip(uses, moments.uses, shifts, strict=True):
                sums.reset_targets()
                for rows in self._rows(use, width, len(uses)):
                    made = rows.inputs @ new.astype(np.float32)
                    made += shift[:, None].astype(np.float32)
                    sums.add_targets(rows.inputs, _adapted(rows, made, use))
            new, shifts, reached = solver.solve(moments, matrix, moved)
        after = _share(moments.error(new, shifts, reached), spread)
        for use, shift in zip(uses, shifts, strict=True):
            use.layer.write(new, shift)
        return report(after, _remark(moments, width + 1))

    def _rows(self, equations: Equations, width: int, uses: int) -> Iterator[EquationRows]:
        """Those of each run; of several uses of the same weights as many together."""
        generator = np.random.default_rng(self.seed)
        wanted = max(ROWS, ROWS_FOR_EACH * width) / self.now.runs / uses
        for run in range(self.now.runs):
            yield from equations.rows(self.before, self.now, run, generator, wanted)


def _check_reached(rows: int) -> None:
    if not rows:
        raise BodyError("no sample gets to the subgraph that it lies in")


def _mean_share(levels: Sequence[Levels]) -> float:
    return float(np.mean([_share(one.error, one.spread) for one in levels]))


def _remark(moments: Joint, unknowns: int) -> str:
    variance = np.einsum("gii->gi", moments.covariance()).sum()
    if variance <= ROUNDING * sum(np.square(use.mean).sum() for use in moments.uses):
        return "what it reads is the same in all samples, so only its bias was adapted"
    if moments.rows < unknowns:
        return (
            f"fewer rows ({moments.rows}) than unknowns ({unknowns}), so it stays near its weights"
        )
    return ""


def _adapted(rows: EquationRows, reached: Array, equations: Equations) -> Array:
    """Targets beyond a limit become what was reached, where that is beyond it, too."""
    wanted, reached = rows.targets + rows.beside, reached + rows.beside
    if equations.low > -np.inf:
        wanted = np.where(wanted > equations.low, wanted, np.minimum(reached, equations.low))
    if equations.high < np.inf:
        wanted = np.where(wanted < equations.high, wanted, np.maximum(reached, equations.high))
    found: Array = np.asarray(wanted - rows.beside, np.float32)
    return found


def _share(error: float, spread: float) -> float:
    if not (math.isfinite(error) and math.isfinite(spread)):
        return math.inf
    return error / spread if spread > 0 else (0.0 if error == 0 else 1.0)
