"""Quantization by a scheme, as accurate as the time that is given for it allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from ...ir.errors import SecateurError
from ...ir.model import Model
from ..base import Context, Pass, PassResult
from ..pipeline import format_pass
from ..prune.recovery import HELD_OUT, calibration_runs
from ..samples import Samples
from .advice import advice
from .decision import Decision
from .errors import operator_errors
from .mixed import REASON, fewest_left, judge_of, sensitivities
from .observers import calibrator
from .overrides import parse_override
from .parameters import ValueRange
from .rounding import Noise
from .schemes import SCHEMES, scheme_of
from .static import BY_PATTERN, QuantizeStatic

_CALIBRATOR = "mse"

_GOOD: tuple[dict[str, Any], ...] = (
    {"equalize": True, "correct_biases": True},
    {"correct_biases": True},
)

_STACKS: dict[str, tuple[dict[str, Any], ...]] = {
    "fast": ({},),
    "good": _GOOD,
    "best": (
        *_GOOD,
        {"equalize": True, "second_order": True},
        {"second_order": True},
        {"equalize": True, "second_order": True, "calibrator": "min-max"},
        {"second_order": True, "calibrator": "min-max"},
    ),
}

ACCURACIES = tuple(_STACKS)
"""What `--accuracy` takes, the quickest first."""


@dataclasses.dataclass(frozen=True)
class Quantize(Pass):
    """Quantize by a scheme, with methods that `accuracy` allows time for.

    "fast" only chooses ranges. "good" also equalizes channels and corrects biases, "best"
    rounds weights by second moments. Where there are several ways, all are gone, and the one
    whose outputs are nearest the original's on samples held back is taken. `calibrator` chooses
    ranges, by default by the least squared error. `activation`, `per_channel`, `reduce_range`,
    `symmetric` and `equalize` are those of `QuantizeStatic` where they differ from the scheme's.

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
    max_drop: float | None = None
    table: bool = True

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Quantize `model` in place. Raises SecateurError as `QuantizeStatic` does."""
        original = model.clone()
        done = self._best(model, context)
        if self.max_drop is not None:
            assert context is not None
            done = self._within(self.max_drop, original, done, context)
        if self.table and done.result.statistics["quantized"]:
            assert context is not None
            assert context.calibration is not None
            decision: Decision = done.result.artifacts["decision"]
            samples = Samples(decision.model, context.calibration)
            errors = operator_errors(decision, done.model, samples)
            done.result.statistics["operators"] = [dataclasses.asdict(error) for error in errors]
            done.result.statistics["warnings"] = advice(decision, errors)
        new = done.model
        model.graph, model.extra, model.functions = new.graph, new.extra, new.functions
        return done.result

    def check(self) -> None:
        """Raise SecateurError where an option is unknown."""
        for way in self._ways():
            calibrator(way.calibrator)
        for text in self.nodes:
            parse_override(text)

    def _best(self, model: Model, context: Context | None) -> _Done:
        """The model, quantized in the best of the ways."""
        ways = self._ways()
        best: tuple[float, _Done] | None = None
        tried: list[dict[str, Any]] = []
        seen: set[tuple[str, ...]] = set()
        for way in ways:
            if _without(way) in seen:
                continue
            candidate = model.clone()
            known: dict[str, ValueRange] = {}
            result = way.quantize(candidate, context, known=known)
            if way.equalize and not result.statistics["equalized"]:
                seen.add(_without(way))
            if len(ways) == 1:
                return _Done(candidate, result, way, known)
            assert context is not None
            noise = _held_noise(model, candidate, context)
            ratio = None if noise <= 0 or not math.isfinite(noise) else -10 * math.log10(noise)
            tried.append({"way": format_pass(way), "sqnr": ratio})
            if best is None or noise < best[0]:
                best = noise, _Done(candidate, result, way, known)
        assert best is not None
        best[1].result.statistics["tried"] = tried
        return best[1]

    def _within(self, most: float, original: Model, done: _Done, context: Context) -> _Done:
        """With as many operators left in float as it takes to lose no more than `most`."""
        judge = judge_of(original, context)
        decision: Decision = done.result.artifacts["decision"]
        places = decision.units()
        start = judge(done.model)
        ranked = []
        if start > most and places:
            ranked = sensitivities(decision, context, **done.way.insertion)
        tried = [{"left": 0, "lost": start}]

        def loss(left: Collection[int]) -> float:
            found = done.again(left, context)
            lost = judge(found.model)
            if found.integers:
                tried.append({"left": len(places) - found.integers, "lost": lost})
            return lost

        left, lost = fewest_left([one.place for one in ranked], loss, most, start)
        final = done.again(left, context) if left else done
        if not final.integers:  # as it was: equalized without being rounded is no gain
            final = dataclasses.replace(final, model=original)
            final.result.changed = False
        final.result.statistics["max_drop"] = {
            "asked": most,
            "lost": lost,
            "without": start,
            "left": len(places) - final.integers,
            "of": len(places),
            "least": min(tried, key=lambda one: (one["lost"], one["left"])),
            "tried": tried,
            "sensitivity": [dataclasses.asdict(one) for one in ranked],
        }
        return final

    def _ways(self) -> list[QuantizeStatic]:
        if self.accuracy not in _STACKS:
            raise SecateurError(
                f"accuracy '{self.accuracy}' is unknown; there are: {', '.join(ACCURACIES)}"
            )
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise SecateurError(f"max-drop {self.max_drop:g}: a share lies between 0 and 1")
        options = {
            **SCHEMES[scheme_of(self.scheme)].options,
            "ignore": self.ignore,
            "only": self.only,
            "nodes": self.nodes,
        }
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
        return found


@dataclasses.dataclass
class _Done:
    """A quantized model, what the pass said, which way it was, and the ranges that it measured."""

    model: Model
    result: PassResult
    way: QuantizeStatic
    known: dict[str, ValueRange]

    @property
    def integers(self) -> int:
        """Nodes that compute with integers."""
        decision: Decision = self.result.artifacts["decision"]
        return len(decision.units())

    def again(self, left: Collection[int], context: Context) -> _Done:
        """In the same way, with more nodes in float: `left`, by their places in the decision."""
        decision: Decision = self.result.artifacts["decision"]
        model = decision.model.clone()
        nodes = decision.model.graph.nodes
        refused = {
            place: decision.placement.reasons[node]
            for place, node in enumerate(nodes)
            if decision.placement.reasons.get(node) in BY_PATTERN
        }
        refused |= dict.fromkeys(left, REASON)
        special = {nodes.index(node): each for node, each in decision.overrides.items()}
        way = dataclasses.replace(self.way, equalize=False, ignore=(), only=(), nodes=())
        result = way.quantize(model, context, refused=refused, known=self.known, special=special)
        for name in ("equalized", "opset", "tried"):
            if name in self.result.statistics:
                result.statistics[name] = self.result.statistics[name]
        return _Done(model, result, way, self.known)


def _without(way: QuantizeStatic) -> tuple[str, ...]:
    """What tells ways apart besides equalization."""
    return way.calibrator, str(way.correct_biases), str(way.second_order)


def _held_noise(model: Model, candidate: Model, context: Context) -> float:
    """Noise on samples held back, that nothing was solved for."""
    assert context.calibration is not None
    original = model.clone()
    with calibration_runs([original, candidate], context.calibration, context.seed) as runs:
        return Noise(original, runs[HELD_OUT - 1 :: HELD_OUT] or runs)(candidate)
