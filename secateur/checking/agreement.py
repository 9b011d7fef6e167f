"""How far two runners agree: the measure behind every check and comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..ir.errors import SecateurError
from ..ir.tensor import Array
from ..passes.compare import gaps, is_discrete, magnitude, relative, tensors
from .rounding import Rounding
from .runners import Runner


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two runners' outputs compare over the same `runs`.

    `max_difference` is the largest absolute difference of any floating-point output
    element; `relative_difference` the largest, over the outputs, of an output's
    largest difference relative to its largest magnitude in the reference.
    `identical` is the share of all output elements that are equal, and
    `identical_discrete` that of the integer, boolean and string ones alone (1 where
    there are none). A NaN equals only a NaN. Where rounding was taken into account, the
    relative difference is what it leaves unexplained, and an element that it flips counts
    as identical with what it is flipped to.
    """

    runs: int
    max_difference: float
    relative_difference: float
    identical: float
    identical_discrete: float = 1.0

    def within(self, relative: float) -> bool:
        """Whether there were runs, floats differ by rounding and all else is the same."""
        return self.runs > 0 and self.relative_difference <= relative and not self.flips

    @property
    def flips(self) -> bool:
        """Whether integer, boolean or string elements differ."""
        return self.identical_discrete < 1


def compare(
    reference: Runner,
    other: Runner,
    feeds: Iterable[Mapping[str, Array]],
    rounding: Rounding | None = None,
) -> Agreement:
    """Run both on the same feeds and compare all outputs.

    With `rounding`, of the same feeds, floats may lie twice as far apart as it moves them;
    elements that it makes infinite or NaN, or no longer so, may be either; and those of
    integers, booleans and strings (the maximum of a tie, the step of a quantized value)
    may be what any of its draws makes of them. Raises SecateurError where the outputs
    differ in name or shape.
    """
    outputs: dict[str, _Output] = {}
    runs = 0
    for feed in feeds:
        want, have = reference.run(feed), other.run(feed)
        if want.keys() != have.keys():
            raise SecateurError(f"outputs differ: {sorted(want)} and {sorted(have)}")
        for name, value in want.items():
            if isinstance(value, list) and len(value) != len(have[name]):
                raise SecateurError(
                    f"output '{name}': sequences of {len(value)} and {len(have[name])} "
                    "tensors differ"
                )
        found = tensors(have)
        for name, array in tensors(want).items():
            if name not in outputs:
                slack = 0.0 if rounding is None else 2 * rounding.distance(name)
                outputs[name] = _Output(name, slack)
            draws = [] if rounding is None else rounding.values(name, runs)
            outputs[name].add(array, found[name], draws)
        runs += 1
    return _summary(list(outputs.values()), runs)


class _Output:
    """Running totals of one output."""

    def __init__(self, name: str, slack: float) -> None:
        self.name = name
        self.slack = slack
        self.discrete = False
        self.elements = 0
        self.equal = 0
        self.difference = 0.0
        self.magnitude = 0.0

    def add(self, want: Array, have: Array, draws: Sequence[Array]) -> None:
        if want.shape != have.shape:
            raise SecateurError(
                f"output '{self.name}': shapes {list(want.shape)} and {list(have.shape)} differ"
            )
        self.discrete = is_discrete(want)
        found = gaps(want, have)
        for draw in draws:
            found[have == draw if self.discrete else np.isfinite(draw) != np.isfinite(want)] = 0.0
        self.elements += want.size
        self.equal += int(np.count_nonzero(found == 0))
        if not self.discrete:
            self.difference = max(self.difference, float(found.max(initial=0.0)))
            self.magnitude = max(self.magnitude, magnitude(want))

    @property
    def relative(self) -> float:
        return relative(max(0.0, self.difference - self.slack), self.magnitude)


def _summary(outputs: list[_Output], runs: int) -> Agreement:
    discrete = [o for o in outputs if o.discrete]
    return Agreement(
        runs=runs,
        max_difference=max((o.difference for o in outputs), default=0.0),
        relative_difference=max((o.relative for o in outputs), default=0.0),
        identical=_share(outputs),
        identical_discrete=_share(discrete),
    )


def _share(outputs: list[_Output]) -> float:
    elements = sum(o.elements for o in outputs)
    return sum(o.equal for o in outputs) / elements if elements else 1.0
