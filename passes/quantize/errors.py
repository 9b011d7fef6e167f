"""What rounding does at every operator: alone, and together with all that lies before it.

The float model and each quantized operator, fed with float values, run as one model; so what an
operator alone loses takes a single sweep of the samples, and what has come together up to it one
of the quantized model.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ...ir.graph import Graph, Node, Value
from ...ir.model import Model
from ...ir.tensor import Array
from ..fidelity import FidelityTotals
from ..samples import Samples
from .bodies import hidden, is_inner
from .calibrate import BUDGET, observing
from .decision import Decision, clip_of
from .parameters import QuantParams, ValueRange
from .rules import Constants, clip_bounds

SAMPLES = 8
"""Samples that operators are measured on."""

PICKED = 1 << 14
"""Elements of a result that are looked at in one run."""

BINS = 32
"""Bars of the histogram of an operator's results."""

QUIET = 1.0
"""Steps that a channel's largest magnitude has to reach: below, next to nothing is left of it."""


@dataclass(frozen=True)
class OperatorError:
    """What rounding does at one operator.

    Signal to noise (dB) and cosine of its result, `alone` when its operands were exact, and
    `accumulated` in the quantized model. `low` and `high` are what the result takes on the
    samples, `step` is the distance of its integers, `clipped` the share of elements that lie
    beyond them; None where the result stays float. `histogram` counts elements between `low`
    and `high`. `channels` are those of a convolution or product, of which `quiet` are alive and
    don't reach a step, and `peak` is the largest magnitude as a multiple of the root mean square.
    """

    node: str
    op_type: str
    value: str
    sqnr_db: float | None
    cosine: float | None
    accumulated_sqnr_db: float | None
    accumulated_cosine: float | None
    low: float
    high: float
    step: float | None
    clipped: float | None
    histogram: tuple[int, ...]
    channels: int
    quiet: int
    peak: float


@dataclass
class _Probe:
    """An operator: its float result, that of rounding alone, that of the quantized model.

    `inner` tells of one in a body, whose results have no axes of their own."""

    node: Node
    wanted: Value
    inner: bool
    bounds: ValueRange | None
    params: QuantParams | None
    alone: Value
    together: Value
    alone_totals: FidelityTotals
    together_totals: FidelityTotals
    low: float = math.inf
    high: float = -math.inf
    clipped: int = 0
    elements: int = 0
    squares: float = 0.0
    histogram: np.ndarray | None = None
    largest: np.ndarray | None = None


def operator_errors(
    decision: Decision, quantized: Model, samples: Samples, *, budget: int = BUDGET
) -> list[OperatorError]:
    """Of every operator that rounds, the one that loses most by itself first."""
    joined = decision.model.clone()
    probes = _probes(decision, joined, quantized)
    for chunk in _chunks(probes, budget):
        names = [v.name for p in chunk for v in (p.wanted, p.alone)]
        first = observing(joined, names)
        names = [p.together.name for p in chunk]
        second = observing(quantized, names)
        for feed, _ in itertools.islice(samples.feeds(1), SAMPLES):
            exact, rounded = first.run(feed), second.run(feed)
            for probe in chunk:
                _add(probe, exact, rounded)
    found = [_error(probe) for probe in probes if probe.elements]
    return sorted(found, key=lambda error: math.inf if error.sqnr_db is None else error.sqnr_db)


def _probes(decision: Decision, joined: Model, quantized: Model) -> list[_Probe]:
    """Adds each operator to `joined`, a copy of the float model, once more with rounding."""
    own, originals = decision.nodes, list(joined.graph.all_nodes())
    twins = list(quantized.graph.all_nodes())
    constants = Constants(decision.model)
    found = []
    for place in decision.units():
        node = own[place]
        operands = decision.placement.nodes[node]
        twin, graph = twins[decision.places[place]], originals[place].graph
        assert graph is not None
        index, result = next((i, v) for i, v in enumerate(node.outputs) if v is not None)
        if hidden(decision.model, result):
            continue
        inputs: list[Value | None] = []
        for position, given in enumerate(originals[place].inputs):
            if position in operands.activations:
                inputs.append(_rounded(joined, graph, twin.input(position), given))
            elif constants.get(node.input(position)) is None:
                inputs.append(given)
            else:
                inputs.append(_constant(joined, graph, twin.input(position)))
        names = [
            None if v is None else Value(joined.fresh_name("alone"), v.type) for v in node.outputs
        ]
        copy = Node(node.op_type, inputs, names, dict(twin.attributes), domain=node.domain)
        graph.add_node(copy)
        alone, together = names[index], twin.output(index)
        assert alone is not None
        assert together is not None
        restored = _restored(together)
        if restored is not None:
            alone, together = _rounded(joined, graph, restored, alone), restored
        clip = clip_of(decision.placement, node)
        sources = decision.placement.sources
        source = sources.get(result)
        if source is None and clip is not None and clip.outputs[0] is not None:
            source = sources.get(clip.outputs[0])
        found.append(
            _Probe(
                node,
                result,
                is_inner(decision.model, result),
                None if clip is None else clip_bounds(clip, constants),
                None if restored is None or source is None else decision.params[source],
                alone,
                together,
                FidelityTotals(),
                FidelityTotals(),
            )
        )
    return found


def _rounded(joined: Model, graph: Graph, restored: Value | None, source: Value | None) -> Value:
    """`source` with the rounding that `restored`, of the quantized model, has gone through."""
    restore = restored.producer if restored is not None else None
    assert restore is not None
    assert source is not None
    ends = [_constant(joined, graph, restore.input(i)) for i in (1, 2)]
    zero_point = restore.input(2)
    dtype = TensorProto.UINT8 if zero_point is None else zero_point.dtype
    integers, result = Value(joined.fresh_name("integers")), Value(joined.fresh_name("rounded"))
    integers.set_tensor_type(dtype, source.shape)
    result.set_tensor_type(TensorProto.FLOAT, source.shape)
    graph.add_node(Node("QuantizeLinear", [source, *ends], [integers]))
    graph.add_node(Node("DequantizeLinear", [integers, *ends], [result]))
    return result


def _constant(joined: Model, graph: Graph, value: Value | None) -> Value | None:
    """A constant of the quantized model, or one that is restored from integers there."""
    if value is None:
        return None
    if value.const is not None:
        return joined.graph.add_initializer(joined.fresh_name("constant"), value.const)
    restore = value.producer
    assert restore is not None
    inputs = [_constant(joined, graph, v) for v in restore.inputs]
    result = Value(joined.fresh_name("restored"), value.type)
    graph.add_node(
        Node(restore.op_type, inputs, [result], dict(restore.attributes), domain=restore.domain)
    )
    return result


def _restored(value: Value) -> Value | None:
    """What a value is rounded to behind the node that makes it."""
    for reader in value.users:
        if reader.op_type == "QuantizeLinear":
            integers = reader.outputs[0]
            for restore in integers.users if integers is not None else ():
                if restore.op_type == "DequantizeLinear":
                    return restore.outputs[0]
    return None


def _add(probe: _Probe, exact: dict[str, Array], rounded: dict[str, Array]) -> None:
    whole = exact[probe.wanted.name]
    if not whole.size:
        return
    picked = _picked(whole.size)
    name = probe.wanted.name
    wanted = _within(whole.reshape(-1)[picked], probe.bounds)
    for totals, found in (
        (probe.alone_totals, exact[probe.alone.name]),
        (probe.together_totals, rounded[probe.together.name]),
    ):
        some = found.reshape(-1)[picked] if found.size == whole.size else found
        bounds = probe.bounds if probe.params is None else None
        totals.add({name: wanted}, {name: _within(some, bounds)}, 0, 0)
    finite = wanted[np.isfinite(wanted)].astype(np.float64)
    if not finite.size:
        return
    ends = _within(np.asarray([whole.min(), whole.max()]), probe.bounds)
    low, high = ends if np.isfinite(ends).all() else (finite.min(), finite.max())
    _count(probe, finite, float(low), float(high))
    probe.elements += finite.size
    probe.squares += float(np.square(finite).sum())
    if probe.params is not None:
        ends = np.asarray(_ends(probe.params))
        slack = probe.params.scale / 2
        beyond = (finite < ends[0] - slack) | (finite > ends[1] + slack)
        probe.clipped += int(np.count_nonzero(beyond))
    if (
        not probe.inner
        and probe.node.op_type in _CHANNELS
        and whole.ndim > _CHANNELS[probe.node.op_type]
    ):
        along = _CHANNELS[probe.node.op_type] % whole.ndim
        others = tuple(axis for axis in range(whole.ndim) if axis != along)
        reach = np.stack([whole.min(axis=others), whole.max(axis=others)])
        largest = np.abs(_within(reach, probe.bounds)).max(axis=0)
        if probe.largest is not None and probe.largest.shape == largest.shape:
            largest = np.maximum(probe.largest, largest)
        probe.largest = largest


def _within(array: Array, bounds: ValueRange | None) -> Array:
    return array if bounds is None else np.asarray(np.clip(array, bounds.low, bounds.high))


@functools.lru_cache(maxsize=256)
def _picked(size: int) -> slice | Array:
    """Places of the elements that are looked at, of as many: at random, but the same each time."""
    if size <= PICKED:
        return slice(None)
    return np.sort(np.random.default_rng(size).choice(size, PICKED, replace=False, shuffle=False))


_CHANNELS = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}
"""Axes of channels in results."""


def _count(probe: _Probe, values: Array, low: float, high: float) -> None:
    """Bars grow with the range; what was counted before goes to where it then lies."""
    old_low, old_high, old = probe.low, probe.high, probe.histogram
    probe.low, probe.high = min(low, old_low), max(high, old_high)
    span = (probe.low, probe.high) if probe.high > probe.low else (probe.low, probe.low + 1)
    counts = np.histogram(values, BINS, span)[0]
    if old is not None:
        width = (old_high - old_low) / BINS
        centres = old_low + (np.arange(BINS) + 0.5) * width
        counts = counts + np.histogram(centres, BINS, span, weights=old)[0].astype(np.int64)
    probe.histogram = counts


def _ends(params: QuantParams) -> tuple[float, float]:
    limits = np.iinfo(params.dtype)
    low, high = float(limits.min) - params.zero_point, float(limits.max) - params.zero_point
    return low * params.scale, high * params.scale


def _error(probe: _Probe) -> OperatorError:
    (alone,), (together,) = probe.alone_totals.outputs(), probe.together_totals.outputs()
    step = None if probe.params is None else probe.params.scale
    largest = np.zeros(0) if probe.largest is None else probe.largest
    alive = largest > 0
    quiet = 0 if step is None else int(np.count_nonzero(alive & (largest < QUIET * step)))
    root = math.sqrt(probe.squares / probe.elements)
    assert probe.histogram is not None
    return OperatorError(
        probe.node.label,
        probe.node.op_type,
        probe.wanted.name,
        alone.sqnr_db,
        alone.cosine,
        together.sqnr_db,
        together.cosine,
        probe.low,
        probe.high,
        step,
        None if probe.params is None else probe.clipped / probe.elements,
        tuple(int(count) for count in probe.histogram),
        largest.size,
        quiet,
        max(abs(probe.low), abs(probe.high)) / root if root else 0.0,
    )


def _chunks(probes: Sequence[_Probe], budget: int) -> Iterator[list[_Probe]]:
    """Operators that are looked at together; sizes that are open count as one."""
    chunk: list[_Probe] = []
    total = 0
    for probe in probes:
        size = 12 * math.prod(s for s in probe.wanted.shape or () if isinstance(s, int))
        if chunk and total + size > budget:
            yield chunk
            chunk, total = [], 0
        chunk.append(probe)
        total += size
    if chunk:
        yield chunk
