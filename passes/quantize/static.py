"""Static 8-bit quantization: float32 operators between QuantizeLinear/DequantizeLinear pairs.

Follows what ONNX Runtime and TVM run on integers: uint8 or int8 activations per tensor
with a zero point, symmetric int8 weights per channel, int32 biases.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from ...ir.errors import SecateurError
from ...ir.graph import Node, Value
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ..base import Context, Note, Pass, PassResult
from ..initializers import separate_initializers
from ..linear.threads import few_threads
from ..matching import matches, refuse_unmatched
from ..prune.recovery import HELD_OUT, calibration_runs
from ..samples import Samples
from .bodies import hidden
from .calibrate import at_sample, calibrate
from .decision import Decision
from .equalize import Equalized, equalize
from .insert import insert
from .magnitudes import RangeModel
from .observers import calibrator, holds_all
from .opset import QDQ_OPSET, raise_opset
from .overrides import Override, channels_of, overrides_of, parse_override
from .parameters import QuantParams, ValueRange, range_of, widened
from .place import Placement, notes, place
from .restore import ALREADY, already_quantized, given_params
from .rounding import Noise, give_biases, solve_weights
from .rules import Constants, clip_bounds, possible_range
from .weights import FULL_RANGE, REDUCED_RANGE

_TYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("uint8", "int8", "uint16", "int16")
}

OPSET_OF_16_BITS = 21
"""QuantizeLinear gives 16 bits from that operator set on."""

AS_ASKED = "kept float as asked"
NOT_ASKED = "is not among those asked for"
FROM_THE_START = (AS_ASKED, NOT_ASKED, ALREADY)
"""Reasons of nodes that stay as they are whatever comes of the rest."""


@dataclasses.dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Quantize to int8 with ranges measured on `Context.calibration`.

    `per_channel`: one weight scale per output channel instead of one per tensor. `activation`:
    "uint8" or "int8"; `symmetric`: its ranges reach as far below zero as above. `reduce_range`:
    weights within [-64, 64], for x86 processors without VNNI, whose 8-bit products saturate
    otherwise. `ignore`: patterns (shell style) of nodes that stay float, by their names or those
    of their weights; `only`: patterns of those that may become integer, and no others; `nodes`:
    what else holds for some (`overrides.py`). `calibrator`: how ranges come from the samples
    (`observers.CALIBRATORS`); `headroom`: by which share they reach further than samples show, as
    others may, but not beyond what an operator can put out. `equalize`: scale channels first, so
    that one step suits them all (`equalize.py`). `correct_biases`: let biases make up for what
    rounding changes of outputs' means; `second_order`: round weights so that outputs change least,
    by the inputs' second
    moments (`rounding.py`), which corrects biases, too.

    Statistics: counts by operator of `quantized`, `absorbed` and `skipped` nodes,
    the numbers of `activations` quantized and calibration `samples`, the names of activations
    that were `constant` over all of these, regions that were `equalized`, and `opset` where it
    was raised.
    """

    per_channel: bool = True
    activation: str = "uint8"
    reduce_range: bool = False
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    calibrator: str = "min-max"
    symmetric: bool = False
    equalize: bool = False
    correct_biases: bool = False
    second_order: bool = False
    headroom: float = 0.0

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Quantize `model` in place.

        Raises SecateurError without usable calibration samples, where activations
        become NaN or infinite. What is quantized already stays as it is.
        """
        return self.quantize(model, context)

    def quantize(
        self,
        model: Model,
        context: Context | None,
        *,
        refused: Mapping[int, str] | None = None,
        known: MutableMapping[str, ValueRange] | None = None,
        special: Mapping[int, Override] | None = None,
        judged: bool = False,
    ) -> PassResult:
        """As `run`. `refused` are nodes, by their place, that stay float, with the reason;
        `special` says what holds for some; `known` ranges, by the values' names, are not measured
        again, and those that are come to them. What is `judged` by other samples solves for
        weights and biases with all that there are, and is not judged by some of them.

        The artifact "decision" tells what became of the float model's nodes.
        """
        if self.activation not in _TYPES:
            raise SecateurError(
                f"activation type '{self.activation}': choose one of {', '.join(_TYPES)}"
            )
        if not 0 <= self.headroom < np.inf:
            raise SecateurError(f"headroom {self.headroom:g}: a share of the range from 0 on")
        calibrator(self.calibrator)
        samples = _samples(model, context)
        feeds, _ = next(samples.feeds(1))
        wide = _TYPES[self.activation].itemsize > 1
        raised = raise_opset(model, feeds, OPSET_OF_16_BITS if wide else QDQ_OPSET)
        separate_initializers(model)
        infer_shapes(model)
        model.separate_names()
        # Patterns are of the names that weights have before they change.
        own = overridden(model, self.nodes)
        places = list(model.graph.all_nodes())
        own |= {places[place]: override for place, override in (special or {}).items()}
        kept = kept_float(model, self.ignore, self.only, own)
        kept |= {places[place]: why for place, why in (refused or {}).items()}
        even = self._equalize(model, samples) if self.equalize else []
        constants = Constants(model)
        ranges = {} if known is None else known
        placement, affines, seen = self._decide(model, constants, samples, kept, ranges, own)
        decision = Decision.of(model, placement, affines, own)
        if self.correct_biases or self.second_order:
            give_biases(model, constants, placement)
            original = model.clone()
        quantized = Counter(node.op_type for node in placement.nodes)
        absorbed = Counter(node.op_type for node in placement.absorbed.values())
        left = notes(model, placement)
        insert(
            model,
            constants,
            placement,
            affines,
            **self.insertion,
            channels=channels_of(own),
        )
        decision.follow(model, placement)
        statistics: dict[str, Any] = {}
        if self.correct_biases or self.second_order:
            assert context is not None
            statistics["solved"] = self._solve(original, model, context, judged)
        statistics |= {
            "quantized": dict(sorted(quantized.items())),
            "absorbed": dict(sorted(absorbed.items())),
            "skipped": dict(sorted(Counter(note.op_type for note in left).items())),
            "activations": len(placement.values),
            "samples": len(samples),
            "constant": sorted(value.name for value, r in seen.items() if r.low == r.high),
        }
        if self.equalize:
            statistics["equalized"] = [dataclasses.asdict(region) for region in even]
        if raised:
            statistics["opset"] = model.opset
        changed = raised or bool(even) or bool(quantized)
        return PassResult(changed, statistics, left, {"decision": decision})

    def _equalize(self, model: Model, samples: Samples) -> list[Equalized]:
        limits = np.iinfo(_TYPES[self.activation])
        ranges = RangeModel(
            steps=float(limits.max) - float(limits.min),
            clips=not holds_all(self.calibrator),
            headroom=self.headroom,
            symmetric=self.symmetric,
        )
        return equalize(model, samples, per_channel=self.per_channel, ranges=ranges)

    def _decide(
        self,
        model: Model,
        constants: Constants,
        samples: Samples,
        refused: dict[Node, str],
        known: MutableMapping[str, ValueRange],
        special: Mapping[Node, Override],
    ) -> tuple[Placement, dict[Value, QuantParams], dict[Value, ValueRange]]:
        """Placement, parameters, and the ranges that were measured.

        Repeats where ranges show that a decision won't do.
        """
        standalone: set[Node] = set()
        ranges: dict[Value, ValueRange] = {}
        while True:
            placement = place(model, constants, refused, standalone)
            changing = _changing(model, placement, constants)
            if changing:
                refused.update(changing)
                continue
            sources = list(dict.fromkeys(placement.sources.values()))
            ranges.update(self._measure(model, constants, sources, known, samples, special))
            unfit = _unseen(placement, ranges) or _infinite(placement, ranges)
            if unfit:
                refused.update(unfit)
                continue
            affines = {
                value: self._params_of(value, model, constants, ranges[value]) for value in sources
            }
            clipping = _still_clipping(placement, constants, affines)
            if not clipping:
                seen = {v: r for v, r in ranges.items() if constants.get(v) is None}
                return placement, affines, seen
            standalone |= clipping

    def _measure(
        self,
        model: Model,
        constants: Constants,
        sources: list[Value],
        known: MutableMapping[str, ValueRange],
        samples: Samples,
        special: Mapping[Node, Override],
    ) -> dict[Value, ValueRange]:
        """Ranges of sources; those of computed ones that are measured become known."""
        found: dict[Value, ValueRange] = {}
        computed = []
        for value in sources:
            tensor = constants.get(value)
            if tensor is not None:
                found[value] = range_of(tensor.numpy())
            elif value.name in known:
                found[value] = known[value.name]
            else:
                computed.append(value)
        if computed:
            own = {value: _calibrator_of(value, special) or self.calibrator for value in computed}
            observers = {value: calibrator(name) for value, name in own.items()}
            measured = calibrate(model, computed, samples, observers=observers)
            found.update(measured)
            known.update({value.name: range for value, range in measured.items()})
        return found

    @property
    def insertion(self) -> dict[str, Any]:
        """Options of `insert`."""
        return {
            "cover": self._params,
            "weight_limit": self._limit,
            "per_channel": self.per_channel,
        }

    @property
    def _limit(self) -> int:
        return REDUCED_RANGE if self.reduce_range else FULL_RANGE

    def _solve(
        self, original: Model, model: Model, context: Context, judged: bool
    ) -> list[dict[str, Any]]:
        """Solve for integers; on samples held back, what it gives must be better, or it goes,
        unless it is judged elsewhere."""
        assert context.calibration is not None
        tried = model.clone()
        models = [original, model, tried]
        with (
            few_threads(original),
            calibration_runs(models, context.calibration, context.seed) as runs,
        ):
            held = [] if judged else runs[HELD_OUT - 1 :: HELD_OUT]
            fitted = [run for k, run in enumerate(runs) if k % HELD_OUT != HELD_OUT - 1 or not held]
            order = self.second_order
            layers = solve_weights(
                original, tried, fitted, limit=self._limit, second_order=order, seed=context.seed
            )
            if not judged:
                noise = Noise(original, held or runs)
                if not noise(tried) < noise(model):
                    return []
        model.graph, model.extra, model.functions = tried.graph, tried.extra, tried.functions
        return [dataclasses.asdict(layer) for layer in layers]

    def _params_of(
        self, value: Value, model: Model, constants: Constants, range: ValueRange
    ) -> QuantParams:
        """Those by which the value is rounded anyway, if there are some of this type."""
        given = given_params(value, model)
        if given is not None and given.dtype == _TYPES[self.activation]:
            return given
        if self.headroom and constants.get(value) is None:
            range = widened(range, self.headroom, possible_range(value, constants))
        return self._params(range)

    def _params(self, range: ValueRange) -> QuantParams:
        dtype = _TYPES[self.activation]
        if self.symmetric:
            reach = max(-range.low, range.high)
            range = ValueRange(-reach, reach)
        return QuantParams.covering(range, dtype)


def _calibrator_of(value: Value, special: Mapping[Node, Override]) -> str | None:
    """What is asked for at the node that makes a value, or else at those that read it."""
    nodes = value.users if value.producer is None else [value.producer]
    names = [special[node].calibrator for node in nodes if node in special]
    return next((name for name in names if name is not None), None)


def expected_placement(
    model: Model, ignore: Sequence[str] = (), only: Sequence[str] = (), nodes: Sequence[str] = ()
) -> tuple[Counter[str], list[Note]]:
    """Which operators would become integer, and why others would not, as far as that can be
    told without samples."""
    placement = place(
        model, Constants(model), kept_float(model, ignore, only, overridden(model, nodes)), set()
    )
    return Counter(node.op_type for node in placement.nodes), notes(model, placement)


def kept_float(
    model: Model, ignore: Sequence[str], only: Sequence[str], special: Mapping[Node, Override]
) -> dict[Node, str]:
    """Nodes that patterns, and what is quantized already, keep as they are, with the reason.
    Raises SecateurError where a pattern matches nothing."""
    names = _names(model)
    _refuse_unmatched(names, "ignore", ignore)
    _refuse_unmatched(names, "only", only)

    def matched(own: Sequence[str], patterns: Sequence[str]) -> bool:
        return any(matches(name, pattern) for name in own for pattern in patterns)

    found = already_quantized(model)
    for node, own in names.items():
        if node in found:
            continue
        if matched(own, ignore) or (node in special and special[node].is_float):
            found[node] = AS_ASKED
        elif only and not matched(own, only):
            found[node] = NOT_ASKED
    return found


def overridden(model: Model, texts: Sequence[str]) -> dict[Node, Override]:
    """What holds for single nodes. Raises SecateurError where a pattern matches nothing."""
    names = _names(model)
    _refuse_unmatched(names, "node", [parse_override(text).pattern for text in texts])
    return overrides_of(names, texts)


def _names(model: Model) -> dict[Node, list[str]]:
    """What patterns may name: of each node its own name and those of its constants."""
    return {
        node: [node.label, *(v.name for v in node.inputs if v is not None and v.const)]
        for node in model.graph.all_nodes()
    }


def _refuse_unmatched(
    names: Mapping[Node, Sequence[str]], option: str, patterns: Sequence[str]
) -> None:
    known = {name for own in names.values() for name in own}
    for pattern in patterns:
        refuse_unmatched(pattern, known, option)


def _samples(model: Model, context: Context | None) -> Samples:
    if context is None or context.calibration is None:
        raise SecateurError("quantization needs calibration samples: one array for each input")
    try:
        return Samples(model, context.calibration)
    except SecateurError as error:
        raise SecateurError(f"calibration: {error}") from None


def _changing(model: Model, placement: Placement, constants: Constants) -> dict[Node, str]:
    """Nodes that can't be integer since what they touch may change its size from step to step of a
    loop, so that its steps are not seen from outside."""
    sources = set(placement.sources.values())
    unknown = {v for v in sources if constants.get(v) is None and hidden(model, v)}
    bad = {v for v, source in placement.sources.items() if source in unknown}
    return {
        node: f"nothing tells that '{value.name}' has one size in all steps of a loop"
        for node, value in _touching(placement, bad)
    }


def _unseen(placement: Placement, ranges: dict[Value, ValueRange]) -> dict[Node, str]:
    """Nodes that can't be integer since they touch what no sample has elements of, as in a branch
    that none of them takes."""
    bad = {v for v, source in placement.sources.items() if not ranges[source].seen}
    return {
        node: f"no calibration sample shows values of '{value.name}'"
        for node, value in _touching(placement, bad)
    }


def _touching(placement: Placement, bad: Container[Value]) -> Iterator[tuple[Node, Value]]:
    """Nodes that become integer and read, or return, one of these values, perhaps clipped."""
    for node, operands in placement.nodes.items():
        results = [v for v in node.outputs if v is not None]
        clips = [placement.absorbed[v] for v in results if v in placement.absorbed]
        results += [v for clip in clips for v in clip.outputs if v is not None]
        inputs = [node.input(position) for position in operands.activations]
        for value in (*inputs, *results):
            if value is not None and value in bad:
                yield node, value


def _infinite(placement: Placement, ranges: dict[Value, ValueRange]) -> dict[Node, str]:
    """Nodes that can't be integer since a value they touch becomes infinite.

    Masks do that on purpose, next to cheap operators, which can stay float. In front of
    or behind a convolution or product it is an error in the model or the samples.
    """
    bad = {v for v, source in placement.sources.items() if not _is_finite(ranges[source])}
    refused: dict[Node, str] = {}
    for node, value in _touching(placement, bad):
        if placement.nodes[node].role.is_compute:
            sample = at_sample(ranges[placement.sources[value]])
            raise SecateurError(
                f"calibration: value '{value.name}' at node '{node.label}' "
                f"({node.op_type}) becomes infinite{sample}; "
                "check the samples and the model"
            )
        refused[node] = f"'{value.name}' becomes infinite on the calibration samples"
    return refused


def _is_finite(range: ValueRange) -> bool:
    return math.isfinite(range.low) and math.isfinite(range.high)


def _still_clipping(
    placement: Placement, constants: Constants, affines: dict[Value, QuantParams]
) -> set[Node]:
    """Absorbed nodes whose bounds lie inside of what their result's integers can tell."""
    clipping: set[Node] = set()
    for node in placement.absorbed.values():
        bounds, result = clip_bounds(node, constants), node.outputs[0]
        assert bounds is not None
        assert result is not None
        if result in placement.sources:
            affine = affines[placement.sources[result]]
            if not affine.makes_redundant(bounds):
                clipping.add(node)
    return clipping
