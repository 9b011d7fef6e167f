"""Storage in float16: weights and activations in half the bytes, wherever their values allow it.

Standard operators take float16 where their definition says so, those in bodies of If, Loop and
Scan, too, though not what passes into and out of these. Those that would leave its range on the
calibration samples, or whose constants would, stay in float32, as do operators that are asked for;
casts lie between.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ...ir.errors import SecateurError
from ...ir.graph import Node, Value
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.ops import Trait, traits
from ...ir.tensor import Tensor
from ..base import Context, Pass, PassResult
from ..initializers import separate_initializers
from ..retype import Retyped, retype, retyped
from ..samples import Samples
from .bodies import graphs, hidden
from .calibrate import calibrate
from .parameters import ValueRange
from .place import notes_of
from .restore import ALREADY
from .static import kept_float

LARGEST = 65504.0
"""Of float16."""

MARGIN = 2.0
"""Times that values may grow beyond what the samples showed."""

TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)

SMALLEST = 2.0**-14
"""Of float16 with all of its digits."""

KEPT = {
    "DequantizeLinear": "its scales are float32",
    "QuantizeLinear": "its scales are float32",
    "CumSum": "it adds up without end",
    "GridSample": "its coordinates need more than 11 bits",
    "NonMaxSuppression": "its coordinates need more than 11 bits",
    "Range": "it counts, and float16 does so to 2,048",
    "RoiAlign": "its coordinates need more than 11 bits",
}
"""Operators that stay float32 whatever the values, and why."""


@dataclass(frozen=True)
class StoreFloat16(Pass):
    """Store weights and activations in float16.

    Inputs and outputs keep their types (`keep_io`), unless asked otherwise. `ignore` and `only`
    are patterns of nodes as in `QuantizeStatic`, `float32` are operators that stay float32
    besides those that do by themselves.
    With calibration samples so do those whose values leave float16's range.

    Statistics: counts by operator of `quantized` nodes, which work on float16, and of `skipped`
    ones; the number of `casts` and of calibration `samples`.
    """

    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()
    keep_io: bool = True

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Change `model` in place. Raises SecateurError where samples make values NaN."""
        return self.quantize(model, context)

    def quantize(
        self,
        model: Model,
        context: Context | None,
        *,
        refused: Mapping[int, str] | None = None,
        known: MutableMapping[str, ValueRange] | None = None,
    ) -> PassResult:
        """As `run`; `refused` and `known` are those of `QuantizeStatic`."""
        separate_initializers(model)
        infer_shapes(model)
        model.separate_names()
        kept = self._kept(model, context, refused or {}, {} if known is None else known)
        given = None if context is None else context.calibration
        seen = 0 if given is None else len(Samples(model, given))
        roles: dict[Node, Retyped] = {}
        for node in self.nodes(model):
            role = retyped(node, model, *TYPES)
            if isinstance(role, str):
                kept.setdefault(node, role)
            elif node not in kept:
                roles[node] = role
        reasons = notes_of(
            model, {n: why for n, why in kept.items() if _has_floats(n)}, graphs(model)
        )
        quantized = Counter(node.op_type for node in roles)
        casts = retype(model, roles, *TYPES, keep_io=self.keep_io) if roles else 0
        statistics = {
            "quantized": dict(sorted(quantized.items())),
            "skipped": dict(sorted(Counter(note.op_type for note in reasons).items())),
            "casts": casts,
            "samples": seen,
        }
        return PassResult(bool(roles), statistics, reasons)

    def prepared(self, model: Model, context: Context) -> Model:
        """A copy to which places of nodes refer."""
        return model.clone()

    def nodes(self, model: Model) -> list[Node]:
        """What places count: nodes of the main graph, then those of each body."""
        return [node for graph in graphs(model) for node in graph.nodes]

    def units(self, model: Model, context: Context | None) -> list[int]:
        """Places of the nodes that would compute, and not only move elements, in float16."""
        kept = self._kept(model, context, {}, {})
        return [
            place
            for place, node in enumerate(self.nodes(model))
            if node not in kept
            and not isinstance(retyped(node, model, *TYPES), str)
            and Trait.MOVES not in traits(node)
            and any(_is_float(v) for v in node.outputs)
        ]

    def _kept(
        self,
        model: Model,
        context: Context | None,
        refused: Mapping[int, str],
        known: MutableMapping[str, ValueRange],
    ) -> dict[Node, str]:
        """Nodes that stay float32, and why."""
        nodes = self.nodes(model)
        unknown = set(self.float32) - {node.op_type for node in model.all_nodes()}
        if unknown:
            raise SecateurError(f"float32: the model has no operator {', '.join(sorted(unknown))}")
        found = {
            node: why
            for node, why in kept_float(model, self.ignore, self.only, {}).items()
            if why != ALREADY
        }
        found |= {nodes[place]: why for place, why in refused.items()}
        for node in nodes:
            if node.op_type in self.float32:
                found.setdefault(node, "its operator stays float32 as asked")
            elif node.op_type in KEPT:
                found.setdefault(node, KEPT[node.op_type])
            else:
                for value in node.inputs:
                    reason = _constant_problem(model.constant(value), value)
                    if reason:
                        found.setdefault(node, reason)
        if context is not None and context.calibration is not None:
            for value, range in _ranges(model, context, known).items():
                reason = _range_problem(value, range)
                touched = [value.producer, *value.users] if reason else []
                for user in touched:
                    if user is not None:
                        found.setdefault(user, reason or "")
        return found


def _has_floats(node: Node) -> bool:
    return node.op_type != "Constant" and any(_is_float(v) for v in node.inputs)


def _ranges(
    model: Model, context: Context, known: MutableMapping[str, ValueRange]
) -> dict[Value, ValueRange]:
    """Of all float32 values that aren't constant; of those whose sizes steps of a loop change,
    everything."""
    assert context.calibration is not None
    try:
        samples = Samples(model, context.calibration)
    except SecateurError as error:
        raise SecateurError(f"calibration: {error}") from None
    values = [
        value
        for graph in graphs(model)
        for value in graph.values()
        if _is_float(value) and value.const is None and model.constant(value) is None
    ]
    new = [value for value in values if value.name not in known and not hidden(model, value)]
    if new:
        known.update({v.name: r for v, r in calibrate(model, new, samples).items()})
    return {value: known.get(value.name, UNSEEN) for value in values}


UNSEEN = ValueRange(0.0, 0.0, seen=False)
"""Of what no sample tells."""


def _range_problem(value: Value, range: ValueRange) -> str | None:
    if not range.seen:
        return f"no calibration sample tells what '{value.name}' becomes"
    reach = max(-range.low, range.high)
    if math.isinf(reach):
        return f"'{value.name}' becomes infinite on the calibration samples"
    if reach * MARGIN > LARGEST:
        return f"'{value.name}' reaches {reach:.3g}, near or beyond float16's {LARGEST:,.0f}"
    if 0 < reach < SMALLEST:
        return f"'{value.name}' stays below {reach:.3g}, where float16 has few digits"
    return None


def _constant_problem(tensor: Tensor | None, value: Value | None) -> str | None:
    """Why a constant would not be the same in float16, if so."""
    if tensor is None or value is None or tensor.dtype != TensorProto.FLOAT or not tensor.size:
        return None
    magnitudes = np.abs(tensor.numpy())
    finite = magnitudes[np.isfinite(magnitudes)]
    reach = float(finite.max(initial=0.0))
    if reach > LARGEST:
        return f"constant '{value.name}' holds {reach:.3g}, beyond float16's {LARGEST:,.0f}"
    if 0 < reach < SMALLEST:
        return f"constant '{value.name}' stays below {reach:.3g}, where float16 has few digits"
    return None


def _is_float(value: Value | None) -> bool:
    return value is not None and value.dtype == TensorProto.FLOAT
