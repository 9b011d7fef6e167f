"""Choosing forms and tiles by measuring kernels on this machine."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from ....ir.errors import SecateurError
from ..cache import Cache
from ..emission.choices import (
    Choice,
    Choices,
    Measured,
    describe,
    may_be_winograd,
    read_table,
    write_table,
)
from ..emission.emit import emit
from ..emission.work import vector_operations
from ..kernels.convolution import tiles as convolution
from ..kernels.matrix import matmul
from ..plan.operations import ConvolutionOp, MatMulOp, Plan
from ..plan.tensors import Operation
from ..targets import Target, can_run_here
from ..tensorir.types import PrimFunc
from .measure import ROUNDS, time_functions

log = logging.getLogger(__name__)

TILES = 12
"""Tiles measured per kernel: those that the analytic model finds fastest."""

TILES_PER_WIDTH = 4
"""Of these, at most so many that are equally many vectors wide."""

UNROLLS = (2, 8)
"""Unrolling measured, besides the usual one, with the fastest tile."""

GAIN = 0.03
"""Share of a kernel's time that a choice must save, to be more than noise."""

CONFIRMING = 4
"""Times as many rounds decide between the fastest and the usual choice."""


@dataclasses.dataclass(frozen=True)
class TunedKernel:
    """A kernel of the model with its times by default and by what was measured fastest."""

    description: str
    calls: int
    default_microseconds: float
    microseconds: float


@dataclasses.dataclass(frozen=True)
class TuneReport:
    """What tuning found: `measured` kernels now, `known` ones earlier, `left` for lack of time.

    `changed` are those, measured now or earlier, that don't take the default.
    """

    measured: int
    known: int
    left: int
    changed: tuple[TunedKernel, ...]
    seconds: float

    def and_then(self, other: TuneReport | None) -> TuneReport:
        """This and what was found in another part of the same model."""
        if other is None:
            return self
        return TuneReport(
            self.measured + other.measured,
            self.known + other.known,
            self.left + other.left,
            (*self.changed, *other.changed),
            self.seconds + other.seconds,
        )


def check_tunable(target: Target) -> None:
    """Raises SecateurError where this machine can't run the target's code, or the target is
    several."""
    if len(target.levels) > 1:
        raise SecateurError(
            "kernels are measured for one target at a time: tune for each of "
            f"{target.name} alone, and what was measured is taken for all of them"
        )
    if not can_run_here(target):
        raise SecateurError(f"can't tune for {target.name}: this machine can't run its code")


def tune(
    plan: Plan,
    target: Target,
    minutes: float,
    table: Path | None,
    cache: Cache,
    *,
    winograd: bool = True,
) -> tuple[dict[str, Measured], TuneReport]:
    """Measure the plan's convolutions and products, the heaviest first, for `minutes`.

    What the file `table` holds already is not measured again; every result is added to
    it at once, so that an interruption loses nothing.
    """
    start = time.monotonic()
    known = read_table(table, target)
    tasks = _tasks(plan, target)
    found = {key: known[key] for key in tasks if key in known}
    before = len(found)
    for key, (op, _) in tasks.items():
        if key in found:
            continue
        if time.monotonic() - start >= minutes * 60:
            break
        found[key] = _measure_task(op, target, cache, winograd)
        if table is not None:
            write_table(table, target, {key: found[key]})
    changed = tuple(
        TunedKernel(key, tasks[key][1], m.default_microseconds, m.microseconds)
        for key, m in found.items()
        if m.microseconds < m.default_microseconds
    )
    left = len(tasks) - len(found)
    seconds = time.monotonic() - start
    return found, TuneReport(len(found) - before, before, left, changed, seconds)


def _tasks(plan: Plan, target: Target) -> dict[str, tuple[Operation, int]]:
    """Distinct kernels to tune, each with an operation and the number of its calls."""
    groups: dict[str, list[Operation]] = {}
    for op in plan.operations:
        direct = isinstance(op, ConvolutionOp) and not op.is_depthwise
        if direct or isinstance(op, MatMulOp):
            groups.setdefault(describe(op), []).append(op)

    def cost(key: str) -> float:
        return sum(vector_operations(op, target) for op in groups[key])

    return {
        key: (groups[key][0], len(groups[key])) for key in sorted(groups, key=cost, reverse=True)
    }


def _measure_task(op: Operation, target: Target, cache: Cache, winograd: bool) -> Measured:
    """The fastest choice for one operation: first form and tile, then how its loops run."""
    usual = _emit(op, Choices(target, winograd=winograd)).choice
    others: list[Choice] = []
    tiled = usual
    if isinstance(op, ConvolutionOp) and winograd and may_be_winograd(op, target):
        others.append(Choice("winograd"))
        tiled = Choice("direct")
    others += _tiles(_emit(op, Choices(target, {describe(op): tiled})), target)
    times = _measure(op, target, cache, [usual, *others], ROUNDS)
    best = min(times, key=lambda choice: times[choice])
    variants = _variants(best)
    if variants:
        times |= _measure(op, target, cache, [usual, best, *variants], ROUNDS)
        best = min(times, key=lambda choice: times[choice])
    if best != usual:  # the fastest of many may be so by chance
        times = _measure(op, target, cache, [usual, best], CONFIRMING * ROUNDS)
    default = times[usual]
    for choice, took in sorted(times.items(), key=lambda item: item[1]):
        log.debug("%s: %s takes %.3g us", describe(op), choice, took)
    if times[best] > default * (1 - GAIN):
        best = usual
    return Measured(best, round(float(times[best]), 3), round(float(default), 3))


_AnyTile = convolution.Tile | matmul.MatrixTile


@dataclasses.dataclass(frozen=True)
class _EmittedKernel:
    """An operation's kernel with what was chosen for it."""

    kernel: object
    choice: Choice
    name: str
    function: PrimFunc
    digest: str


def _emit(op: Operation, choices: Choices) -> _EmittedKernel:
    """The kernel that an operation gets, in the layouts that it has in its plan."""
    inputs = [t for t in dict.fromkeys(op.reads()) if t.const is None]
    emission = emit(Plan(inputs, [(op.output.name, op.output)], [op]), choices.target, choices)
    calls = zip(emission.schedule.calls, emission.origins, strict=True)
    name = [call.kernel for call, origin in calls if origin is op][-1]
    kernel, *rest = next(k for k, v in emission.kernels.items() if v == name)
    tile = rest[0] if rest else None
    if isinstance(kernel, convolution.Convolution) and isinstance(tile, convolution.Tile):
        choice = Choice("direct", tile)
    elif isinstance(kernel, matmul.MatMul) and isinstance(tile, matmul.MatrixTile):
        choice = Choice("product", tile)
    else:
        choice = Choice("winograd")
    return _EmittedKernel(kernel, choice, name, emission.functions[name], emission.digests[name])


def _tiles(usual: _EmittedKernel, target: Target) -> list[Choice]:
    """The tiles worth measuring, by the analytic model."""
    tiles: list[_AnyTile] = []
    widths: dict[int, int] = {}
    for _, tile in sorted(_estimated(usual.kernel, target), key=lambda found: found[0]):
        widths[tile.vectors] = widths.get(tile.vectors, 0) + 1
        if widths[tile.vectors] <= TILES_PER_WIDTH:
            tiles.append(tile)
    return [Choice(usual.choice.form, tile) for tile in tiles[:TILES]]


def _estimated(kernel: object, target: Target) -> Sequence[tuple[float, _AnyTile]]:
    if isinstance(kernel, convolution.Convolution):
        return convolution.estimate_tiles(kernel, target)
    assert isinstance(kernel, matmul.MatMul)
    return matmul.estimate_tiles(kernel, target)


def _variants(choice: Choice) -> list[Choice]:
    """The same tile with its loops run otherwise."""
    tile = choice.tile
    if tile is None:
        return []
    tiles = [dataclasses.replace(tile, unroll=unroll) for unroll in UNROLLS]
    for t in (tile, *tiles):
        if isinstance(t, convolution.Tile):
            tiles.append(dataclasses.replace(t, channels_outer=not t.channels_outer))
    return [Choice(choice.form, t) for t in tiles]


def _measure(
    op: Operation, target: Target, cache: Cache, choices: Sequence[Choice], rounds: int
) -> dict[Choice, float]:
    """Microseconds of each choice."""
    emitted = {c: _emit(op, Choices(target, {describe(op): c})) for c in dict.fromkeys(choices)}
    functions = {e.name: e.function for e in emitted.values()}
    digests = {e.name: e.digest for e in emitted.values()}
    times = time_functions(functions, digests, target, cache, rounds)
    return {choice: times[e.name] for choice, e in emitted.items()}
