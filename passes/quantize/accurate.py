"""Quantization by a scheme, as accurate as the time that is given for it allows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ...ir.errors import RunError, SecateurError
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.tensor import Array
from ..base import Context, Note, Pass, PassResult
from ..inline import InlineFunctions
from ..linear.moments import Doubles
from ..pipeline import format_pass
from ..prune.recovery import calibration_runs
from ..retype import widen
from ..samples import Samples
from .advice import advice
from .calibrate import check_runs
from .decision import Decision
from .dynamic import QuantizeDynamic
from .errors import operator_errors
from .half import StoreFloat16
from .mixed import (
    REASON,
    RUNS,
    Sensitivity,
    by_harm,
    decibels,
    fewest_left,
    judge_of,
    sensitivities,
)
from .observers import calibrator
from .overrides import parse_override
from .parameters import ValueRange
from .restore import RestoreFloat, check_scales
from .rounding import Noise
from .schemes import SCHEMES, scheme_of
from .static import FROM_THE_START, QuantizeStatic, expected_placement

UNSEEN = (
    "without calibration samples nothing tells which values are too large for float16; "
    "give some (--calibration), or --float32 OPERATOR for what needs it"
)

SLOW = (
    "between activations of 16 bits products are computed in float32, here and in ONNX Runtime: "
    "the file is smaller, but runs are slower than without quantization"
)

TRIED = 256
"""Samples that ways are tried on at most."""

HELD_OUT = 4
"""One sample in so many is held back, to judge ways by."""

FEW = 16
"""Samples below which none is held back."""

AGAIN = (
    "the model was quantized before and is so anew, from what that has left of it; begin with its "
    "float original where there is one"
)

_CALIBRATOR = "mse"


_STACKS: dict[str, tuple[dict[str, Any], ...]] = {
    "fast": ({},),
    "good": (
        {"equalize": True, "correct_biases": True},
        {"correct_biases": True},
        {},
    ),
    "best": (
        {"equalize": True, "second_order": True},
        {"second_order": True},
        {"equalize": True, "second_order": True, "headroom": 0.25},
        {"second_order": True, "headroom": 0.25},
        {"equalize": True, "second_order": True, "calibrator": "min-max"},
        {"second_order": True, "calibrator": "min-max"},
        {"correct_biases": True},
        {},
    ),
}
"""Ways to try, the simplest last."""

_TURNS = {"fast": 1, "good": 1, "best": 4}
"""How often ways are judged, by other samples each time; after the first only finalists."""

FINALISTS = 2

ACCURACIES = tuple(_STACKS)
"""What `--accuracy` takes, the quickest first."""


@dataclasses.dataclass(frozen=True)
class Quantize(Pass):
    """Quantize by a scheme, with methods that `accuracy` allows time for.

    "fast" only chooses ranges. "good" also equalizes channels and corrects biases, "best"
    rounds weights by second moments and leaves headroom. Where there are several ways, all are
    gone with some of the samples, and the one whose outputs are nearest the original's on those
    held back, or a simpler one that is as near within the error of that, is gone again with all of
    them. `calibrator` chooses
    ranges, by default by the least squared error. `activation`, `per_channel`, `reduce_range`,
    `symmetric` and `equalize` are those of `QuantizeStatic` where they differ from the scheme's,
    `float32` that of `StoreFloat16`, and with `half_io` inputs and outputs are float16, too.

    What is float16 becomes float32 first. What is quantized already stays as it is; with
    `requantize` it becomes float, too.

    `max_drop` is the share that the model may lose, of what the context judges by: as few
    operators as that takes stay float, in the end all. `table` says whether what rounding does
    at each operator is measured.

    Statistics: those of `QuantizeStatic`, and `tried`, the ways with the signal to noise ratio
    (dB) that each gave; `max_drop`, what became of that limit; `operators` (`OperatorError`) and
    `warnings`.
    """

    scheme: str = "int8"
    accuracy: str = "good"
    calibrator: str | None = None
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    activation: str | None = None
    per_channel: bool = True
    reduce_range: bool = False
    symmetric: bool = False
    equalize: bool = False
    float32: tuple[str, ...] = ()
    half_io: bool = False
    requantize: bool = False
    max_drop: float | None = None
    table: bool = True

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Quantize `model` in place. Raises SecateurError as `QuantizeStatic` does."""
        original = model.clone()
        context = context or Context()
        InlineFunctions().run(model)  # what they hold is quantized, too
        check_scales(model)
        restored = self.requantize and RestoreFloat().run(model, context).changed
        if self._kind != "float16":
            infer_shapes(model)
            widen(model)
        try:
            done = self._best(model, context)
        except RunError:
            if context.calibration is not None:
                check_runs(original, Samples(original, context.calibration))
            raise
        if self.max_drop is not None:
            done = self._within(self.max_drop, original, done, context)
        statistics = done.result.statistics
        if self.table and statistics["quantized"] and isinstance(done, _Static):
            assert context.calibration is not None
            samples = Samples(done.decision.model, context.calibration)
            errors = operator_errors(done.decision, done.model, samples)
            statistics["operators"] = [dataclasses.asdict(error) for error in errors]
            statistics["warnings"] = advice(done.decision, errors)
        if self._kind == "float16" and not context.calibration:
            statistics["warnings"] = [UNSEEN]
        if isinstance(done, _Static) and done.way.activation.endswith("16"):
            statistics["warnings"] = [SLOW, *statistics.get("warnings", [])]
        if restored:
            statistics["warnings"] = [AGAIN, *statistics.get("warnings", [])]
        new = done.model
        model.graph, model.extra, model.functions = new.graph, new.extra, new.functions
        return done.result

    def check(self) -> None:
        """Raise SecateurError where an option is unknown, or means nothing with others."""
        self._ways()
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise SecateurError(f"max-drop {self.max_drop:g}: a share lies between 0 and 1")
        for way in self._ways():
            if isinstance(way, QuantizeStatic):
                calibrator(way.calibrator)
        for text in self.nodes:
            parse_override(text)

    def expected(self, model: Model) -> tuple[Counter[str], list[Note]]:
        """Which operators would be quantized, and why others would not, as far as that can be told
        without samples."""
        (way, *_) = self._ways()
        model = model.clone()
        InlineFunctions().run(model)
        if self.requantize:
            RestoreFloat().run(model)
        if self._kind != "float16":
            infer_shapes(model)
            widen(model)
        if isinstance(way, QuantizeStatic):
            return expected_placement(model, self.ignore, self.only, self.nodes)
        result = way.quantize(model, None)
        return Counter(result.statistics["quantized"]), result.notes

    def _best(self, model: Model, context: Context) -> _Done:
        """The model, quantized in the best of the ways."""
        ways = self._ways()
        (first, *others) = ways
        if not isinstance(first, QuantizeStatic):
            return _Plain(first.prepared(model, context), first).again((), context)
        if not others:
            return _quantized(model, first, context, judged=False)
        noise: dict[QuantizeStatic, list[Doubles]] = {}
        same: set[QuantizeStatic] = set()
        left = [way for way in ways if isinstance(way, QuantizeStatic)]
        for turn in range(_TURNS[self.accuracy]):
            fitted, held = _parted(model, context, turn)
            for way in left:
                if way in same:
                    continue
                done = _quantized(model, way, fitted, judged=fitted is not held)
                if way.equalize and not done.result.statistics["equalized"]:
                    same.add(dataclasses.replace(way, equalize=False))
                noise.setdefault(way, []).append(_noise(model, done.model, held))
            left = [way for way in left if way in noise]
            if fitted is held or len(left) == 1:
                break
            if turn + 1 < _TURNS[self.accuracy]:
                finalists = sorted(left, key=lambda way: _mean(noise[way]))[:FINALISTS]
                left = [way for way in left if way in finalists]
        best = simplest({way: noise[way] for way in left})
        done = _quantized(model, best, context, judged=fitted is not held)
        done.result.statistics["tried"] = [
            {"way": format_pass(way), "sqnr": decibels(_mean(found))}
            for way, found in noise.items()
        ]
        return done

    def _within(self, most: float, original: Model, done: _Done, context: Context) -> _Done:
        """With as many operators left in float as it takes to lose no more than `most`."""
        judge = judge_of(original, context)
        start = judge(done.model)
        if context.calibration is None and not start <= most:
            raise SecateurError(
                f"{100 * start:.3g} % is lost, more than max-drop: calibration samples are needed "
                "to tell which operators to leave float"
            )
        ranked = done.ranked(context) if not start <= most else []
        tried = [{"left": 0, "lost": start}]
        whole = done.integers

        def loss(left: Collection[int]) -> float:
            found = done.again(left, context)
            lost = judge(found.model)
            if found.integers:
                tried.append({"left": whole - found.integers, "lost": lost})
            return lost

        left, lost = fewest_left([one.place for one in ranked], loss, most, start)
        final = done.again(left, context) if left else done
        if not final.integers:  # as it was: equalized without being rounded is no gain
            final.model = original
            final.result.changed = False
        final.result.statistics["max_drop"] = {
            "asked": most,
            "lost": lost,
            "without": start,
            "left": whole - final.integers,
            "of": whole,
            "least": min(tried, key=lambda one: (one["lost"], one["left"])),
            "tried": tried,
            "sensitivity": [dataclasses.asdict(one) for one in ranked],
        }
        return final

    @property
    def _kind(self) -> str:
        return SCHEMES[scheme_of(self.scheme)].kind

    def _ways(self) -> list[QuantizeStatic | QuantizeDynamic | StoreFloat16]:
        if self.accuracy not in _STACKS:
            raise SecateurError(
                f"accuracy '{self.accuracy}' is unknown; there are: {', '.join(ACCURACIES)}"
            )
        scheme = SCHEMES[scheme_of(self.scheme)]
        self._refuse_meaningless(scheme.kind)
        names = {"ignore": self.ignore, "only": self.only}
        if scheme.kind == "float16":
            return [StoreFloat16(float32=self.float32, keep_io=not self.half_io, **names)]
        if scheme.kind == "dynamic":
            channels, limit = self.per_channel, self.reduce_range
            options = {**scheme.options, **names}
            return [QuantizeDynamic(per_channel=channels, reduce_range=limit, **options)]
        options = {**scheme.options, **names, "nodes": self.nodes}
        if self.activation is not None:
            options["activation"] = self.activation
        if not self.per_channel:
            options["per_channel"] = False
        for name in ("reduce_range", "symmetric", "equalize"):
            if getattr(self, name):
                options[name] = True
        found: list[QuantizeStatic] = []
        for stack in _STACKS[self.accuracy]:
            given = {"calibrator": _CALIBRATOR, **stack, **options}
            if self.calibrator is not None:
                given["calibrator"] = self.calibrator
            way = QuantizeStatic(**given)
            if way not in found:
                found.append(way)
        return [*found]

    def _refuse_meaningless(self, kind: str) -> None:
        """Raise SecateurError for an option that the scheme has no use for."""
        for field in dataclasses.fields(self):
            kinds = _MEANT_FOR.get(field.name)
            if kinds and kind not in kinds and getattr(self, field.name) != field.default:
                name = _OPTIONS.get(field.name, field.name.replace("_", "-"))
                raise SecateurError(f"{name} means nothing for scheme '{self.scheme}'")


_MEANT_FOR = {
    "accuracy": ("static",),
    "calibrator": ("static",),
    "nodes": ("static",),
    "activation": ("static",),
    "per_channel": ("static", "dynamic"),
    "reduce_range": ("static", "dynamic"),
    "symmetric": ("static",),
    "equalize": ("static",),
    "float32": ("float16",),
    "half_io": ("float16",),
}
"""Kinds of schemes by the options that have a meaning for only some."""

_OPTIONS = {"per_channel": "per-tensor", "nodes": "node"}
"""What commands call options by another name."""


class _Done(Protocol):
    """A quantized model, what the pass said, and how to do it again in another measure."""

    model: Model
    result: PassResult

    @property
    def integers(self) -> int:
        """Nodes that compute with fewer bits."""

    def again(self, left: Collection[int], context: Context) -> _Done:
        """In the same way, with the nodes at these places left in float."""

    def ranked(self, context: Context) -> list[Sensitivity]:
        """The nodes that may be left, the one that outputs suffer most from first."""


@dataclasses.dataclass
class _Static:
    """Of `QuantizeStatic`; places are those of the decision's model."""

    model: Model
    result: PassResult
    way: QuantizeStatic
    known: dict[str, ValueRange]

    @property
    def decision(self) -> Decision:
        found: Decision = self.result.artifacts["decision"]
        return found

    @property
    def integers(self) -> int:
        return len(self.decision.units())

    def ranked(self, context: Context) -> list[Sensitivity]:
        return sensitivities(self.decision, context, **self.way.insertion)

    def again(self, left: Collection[int], context: Context) -> _Static:
        model = self.decision.model.clone()
        nodes, reasons = self.decision.nodes, self.decision.placement.reasons
        refused = {p: reasons[n] for p, n in enumerate(nodes) if reasons.get(n) in FROM_THE_START}
        refused |= dict.fromkeys(left, REASON)
        special = {nodes.index(node): each for node, each in self.decision.overrides.items()}
        way = dataclasses.replace(self.way, equalize=False, ignore=(), only=(), nodes=())
        result = way.quantize(model, context, refused=refused, known=self.known, special=special)
        for name in ("equalized", "opset", "tried"):
            if name in self.result.statistics:
                result.statistics[name] = self.result.statistics[name]
        return _Static(model, result, self.way, self.known)


class _Plain:
    """Of passes that decide by themselves; places are those of the float model."""

    def __init__(self, original: Model, way: QuantizeDynamic | StoreFloat16) -> None:
        self._original, self._way = original, way
        self._known: dict[str, ValueRange] = {}
        self._units: list[int] = []
        self.left: Collection[int] = ()
        self.model = original
        self.result = PassResult(changed=False)

    @property
    def integers(self) -> int:
        return len(self._units) - len(self.left)

    def again(self, left: Collection[int], context: Context) -> _Plain:
        found = _Plain(self._original, self._way)
        found.model, found.left, found._known = self._original.clone(), left, self._known
        found._units = self._units or self._way.units(self._original.clone(), context)
        refused = dict.fromkeys(left, REASON)
        found.result = self._way.quantize(found.model, context, refused=refused, known=self._known)
        return found

    def ranked(self, context: Context) -> list[Sensitivity]:
        assert context.calibration is not None
        found = []
        nodes = self._way.nodes(self._original)
        with calibration_runs([self._original], context.calibration, context.seed) as runs:
            noise = Noise(self._original, runs[:RUNS])
            for place in self._units:
                others = [p for p in self._units if p != place]
                node = nodes[place]
                share = noise(self.again(others, Context()).model)
                found.append(Sensitivity(place, node.label, node.op_type, decibels(share)))
        return by_harm(found)


def _quantized(model: Model, way: QuantizeStatic, context: Context, *, judged: bool) -> _Static:
    copy, known = model.clone(), dict[str, ValueRange]()
    return _Static(copy, way.quantize(copy, context, known=known, judged=judged), way, known)


def _parted(model: Model, context: Context, turn: int) -> tuple[Context, Context]:
    """Some of the samples to try ways on, and others, in each turn another part, to judge them by:
    what neither ranges nor weights were chosen by shows what they leave out. Where samples are
    few, all are for both."""
    if context.calibration is None:
        return context, context
    arrays = Samples(model, context.calibration).arrays
    count = min((len(array) for array in arrays.values()), default=0)
    drawn = np.random.default_rng(context.seed).permutation(count)[:TRIED]
    if len(drawn) < FEW:
        return context, context
    held = np.arange(len(drawn)) % HELD_OUT == turn

    def part(chosen: Array) -> Context:
        taken = {name: np.asarray(array[chosen]) for name, array in arrays.items()}
        return dataclasses.replace(context, calibration=taken)

    return part(drawn[~held]), part(drawn[held])


def _noise(model: Model, candidate: Model, context: Context) -> Doubles:
    """How far a candidate is from a model on all samples, by runs of some of them."""
    assert context.calibration is not None
    original = model.clone()
    with calibration_runs([original, candidate], context.calibration, context.seed) as runs:
        return Noise(original, runs).by_run(candidate)


def _mean(turns: Sequence[Doubles]) -> float:
    """Noise on all samples of a turn, of several in the mean."""
    return float(np.mean([runs.sum() for runs in turns]))


def simplest(noise: Mapping[QuantizeStatic, Sequence[Doubles]]) -> QuantizeStatic:
    """Of ways, the simplest last, the last one that is within a standard error of the least noise:
    on a few samples the best of several is often so by chance."""
    best = min(noise, key=lambda way: _mean(noise[way]))

    def as_near(way: QuantizeStatic) -> bool:
        further = np.concatenate(noise[way]) - np.concatenate(noise[best])
        error = np.std(further, ddof=1) / np.sqrt(len(further)) if len(further) > 1 else 0.0
        return bool(np.mean(further) <= error)

    return next(way for way in reversed(list(noise)) if as_near(way))
