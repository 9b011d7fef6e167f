"""Mixed precision: the fewest operators in float with which a model loses no more than allowed.

What each operator alone does to the outputs ranks them; those that do most are left first, in
numbers that double until enough is kept and then lie between. What went with them without need
comes back, so that the end is a set of which none can be taken away. With all of them left the
model is the float one, which always does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.errors import SecateurError
from ...ir.model import Model
from ...ir.reference import Session
from ..base import Context
from ..fidelity import FidelityTotals
from ..losses import lost
from ..prune.recovery import calibration_runs
from ..samples import Samples
from .decision import Decision
from .insert import insert
from .overrides import channels_of
from .rounding import Noise
from .rules import Constants

AGREEMENT_SAMPLES = 256
"""Samples that agreement with the original is counted on."""

RUNS = 16
"""Runs that outputs are compared on for an operator by itself."""

RETURNS = 16
"""Operators that are tried for coming back."""

REASON = "kept float, since the model loses too much with it"


@dataclass(frozen=True)
class Sensitivity:
    """How near outputs stay to the original's when a node alone is rounded, in dB."""

    place: int
    node: str
    op_type: str
    sqnr_db: float | None


def agreement(original: Model, samples: Samples) -> Callable[[Model], float]:
    """Tells what share of its agreement with the original a model loses on samples.

    Of the output where that is most: samples with another highest score, or where rows are no
    scores the noise's share of the signal.
    """
    reference = Session(original, threads=0)

    def judge(model: Model) -> float:
        session, totals = Session(model, threads=0), FidelityTotals()
        runs = max(1, AGREEMENT_SAMPLES // (samples.batch or 1))
        for feed, valid in itertools.islice(samples.feeds(1), runs):
            totals.add(reference.run(feed), session.run(feed), samples.rows(feed), valid)
        return max((lost(output)[0] for output in totals.outputs()), default=0.0)

    return judge


def judge_of(original: Model, context: Context) -> Callable[[Model], float]:
    """What the context judges by; without, agreement on the calibration samples."""
    if context.judge is not None:
        return context.judge(original)
    if context.calibration is None:
        raise SecateurError("a limit of what may be lost (max-drop) needs samples to judge by")
    return agreement(original, Samples(original, context.calibration))


def sensitivities(decision: Decision, context: Context, **options: Any) -> list[Sensitivity]:
    """Of every node that rounds, the one that outputs suffer most from first.

    `options` are those of `insert`.
    """
    assert context.calibration is not None
    found = []
    nodes = decision.nodes
    with calibration_runs([decision.model], context.calibration, context.seed) as runs:
        noise = Noise(decision.model, runs[:RUNS])
        for place in decision.units():
            part = decision.part([place])
            channels = channels_of(part.overrides)
            insert(
                part.model,
                Constants(part.model),
                part.placement,
                part.params,
                channels=channels,
                **options,
            )
            node = nodes[place]
            share = noise(part.model)
            found.append(Sensitivity(place, node.label, node.op_type, decibels(share)))
    return by_harm(found)


def by_harm(found: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The ones that outputs suffer most from first."""
    return sorted(found, key=lambda one: math.inf if one.sqnr_db is None else one.sqnr_db)


def decibels(share: float) -> float | None:
    """Signal to noise of the noise's share of the signal; None without noise, and beyond reason."""
    return None if share <= 0 or not math.isfinite(share) else -10 * math.log10(share)


def fewest_left(
    ranked: Sequence[int], judge: Callable[[Collection[int]], float], most: float, start: float
) -> tuple[list[int], float]:
    """The fewest of `ranked`, the worst first, to leave in float for `judge` to find no more than
    `most` lost, and what is. `start` is what is lost with none of them left."""
    if start <= most:
        return [], start

    def loss(left: Collection[int]) -> float:
        found = judge(left)
        return found if math.isfinite(found) else math.inf

    low, high, reached = 0, 1, 0.0
    while high < len(ranked) and (reached := loss(ranked[:high])) > most:
        low, high = high, 2 * high
    if high >= len(ranked):
        high, reached = len(ranked), 0.0
    while high - low > 1:
        middle = (low + high) // 2
        found = loss(ranked[:middle])
        if found <= most:
            high, reached = middle, found
        else:
            low = middle
    left = list(ranked[:high])
    for place in list(reversed(left[:-1]))[:RETURNS]:
        fewer = [p for p in left if p != place]
        found = loss(fewer)
        if found <= most:
            left, reached = fewer, found
    return left, reached
