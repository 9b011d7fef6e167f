"""Two models side by side inside: how far each value of one is from that of the same name."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..backends.tvm.targets import Target, can_run_here, parse_target
from ..data.datasets import DataSource
from ..data.fixed_inputs import FixedInputs
from ..ir.errors import SecateurError
from ..ir.graph import Value
from ..ir.model import Model
from ..ir.onnx_io import load
from ..ir.reference import Session
from ..ir.scratch import scratch_folder
from ..ir.tensor import Array
from ..passes.compare import is_discrete
from ..passes.fidelity import FidelityTotals
from ..passes.quantize.calibrate import exposing
from .runners import Runner
from .running import feeds_for, open_model, open_runner

SAMPLES = 16
"""Runs that values are compared on."""

BUDGET = 1 << 28
"""Bytes of values that one run hands out."""

DEPARTED = 60.0
"""SQNR in dB below which a value is no longer the same but for rounding of floats."""


@dataclasses.dataclass(frozen=True)
class LayerDistance:
    """How far a value is from that of the reference: signal over noise and cosine, and the range
    that it takes there. `error` is what all nodes up to it add up to."""

    value: str
    node: str
    op_type: str
    sqnr_db: float | None
    cosine: float | None
    equal: float
    low: float
    high: float

    @property
    def departs(self) -> bool:
        """Whether more than rounding tells both apart."""
        if self.sqnr_db is None:
            return self.equal < 1
        return self.sqnr_db < DEPARTED


def compare_layers(
    reference: Model,
    other: Model,
    feeds: Sequence[Mapping[str, Array]],
    target: Target | None = None,
) -> list[LayerDistance]:
    """Values of the main graphs that both have, in the order of `reference`, on the same inputs.

    Those of `other` are what ONNX Runtime computes, or, with `target`, what the model computes
    as it is compiled for it. Nothing is computed in one kernel across such a value then.

    Raises SecateurError where they have none, UnsupportedError where a node can't be compiled.
    """
    shared = _shared(reference, other)
    if not shared:
        raise SecateurError("no value of one model has the name and shape of one of the other")
    found: list[LayerDistance] = []
    for chunk in _chunks(shared):
        names = [value.name for value in chunk]
        session = Session(exposing(reference, names), optimize=False, threads=0)
        totals, low, high = FidelityTotals(), dict[str, float](), dict[str, float]()
        with _values(exposing(other, names), target) as runner:
            for feed in feeds[:SAMPLES]:
                want = session.run(feed)
                totals.add(want, runner.run(feed), 1, 1)
                for name, array in want.items():
                    if not is_discrete(array) and array.size:
                        low[name] = min(low.get(name, math.inf), float(np.nanmin(array)))
                        high[name] = max(high.get(name, -math.inf), float(np.nanmax(array)))
        outputs = {output.name: output for output in totals.outputs()}
        for value in chunk:
            output, node = outputs[value.name], value.producer
            assert node is not None
            found.append(
                LayerDistance(
                    value.name,
                    node.label,
                    node.op_type,
                    output.sqnr_db,
                    output.cosine,
                    output.equal,
                    low.get(value.name, math.nan),
                    high.get(value.name, math.nan),
                )
            )
    return found


def compare_layers_of_files(
    reference: Path,
    other: Path,
    *,
    fixed: FixedInputs | None = None,
    data: DataSource | None = None,
    seed: int = 0,
    target: str | None = None,
) -> list[LayerDistance]:
    """As `compare_layers`, of two ONNX files.

    Raises SecateurError for an artifact, and for a target whose code this machine can't run.
    """
    if other.suffix == ".so":
        raise SecateurError(
            f"{other}: an artifact has no values inside that could be asked for; compare the ONNX "
            "file that it was compiled from, with its --target"
        )
    machine = None if target is None else parse_target(target)
    if machine is not None and not can_run_here(machine):
        raise SecateurError(f"this machine can't run code for target '{machine.name}'")
    model = open_model(reference, fixed)
    feeds: list[Mapping[str, Array]] = []
    for feed in feeds_for(model, data, seed):
        feeds.append(feed)
        if len(feeds) == SAMPLES:
            break
    return compare_layers(model, load(other), feeds, machine)


@contextlib.contextmanager
def _values(model: Model, target: Target | None) -> Iterator[Runner]:
    """What computes the model's outputs: ONNX Runtime, or an artifact that is removed again."""
    if target is None:
        yield Session(model, optimize=False, threads=0)
        return
    from ..backends.tvm.compile import compile_model  # imports TVM

    with scratch_folder() as folder:
        path = folder / "values.so"
        compile_model(model, target, path)
        yield open_runner(path)


def first_departure(found: Sequence[LayerDistance]) -> LayerDistance | None:
    """The first value, in the order of computation, that is another."""
    return next((distance for distance in found if distance.departs), None)


def _shared(reference: Model, other: Model) -> list[Value]:
    """Values that nodes of both main graphs make, of one name, and not known to differ in shape."""
    own = {
        value.name: value
        for node in other.graph.nodes
        for value in node.outputs
        if value is not None
    }
    return [
        value
        for node in reference.graph.nodes
        for value in node.outputs
        if value is not None
        and value.name in own
        and value.dtype
        and not _differ(value, own[value.name])
    ]


def _differ(value: Value, other: Value) -> bool:
    if value.shape is None or other.shape is None:
        return False
    if len(value.shape) != len(other.shape):
        return True
    pairs = zip(value.shape, other.shape, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _chunks(values: Sequence[Value]) -> Iterator[list[Value]]:
    """Values that are handed out together; one of an open size is taken for a small one."""
    chunk: list[Value] = []
    total = 0
    for value in values:
        size = 8 * math.prod(s for s in value.shape or () if isinstance(s, int))
        if chunk and total + size > BUDGET:
            yield chunk
            chunk, total = [], 0
        chunk.append(value)
        total += size
    if chunk:
        yield chunk
