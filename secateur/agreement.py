"""How far two runners agree: the measure behind every check and comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from .backends.onnxruntime import Runner
from .ir.errors import SecateurError
from .ir.tensor import Array


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two runners' outputs compare over the same `runs`.

    `max_difference` is the largest absolute difference of any floating-point output
    element; `relative_difference` the largest, over the outputs, of an output's
    largest difference relative to its largest magnitude in the reference.
    `identical` is the share of all output elements that are equal, and
    `identical_discrete` that of the integer, boolean and string ones alone (1 where
    there are none). A NaN equals only a NaN.
    """

    runs: int
    max_difference: float
    relative_difference: float
    identical: float
    identical_discrete: float = 1.0

    def within(self, relative: float, discrete: float = 0.99) -> bool:
        """Whether the difference is rounding, up to a share of flipped discrete elements."""
        return self.relative_difference <= relative and self.identical_discrete >= discrete


def compare(
    reference: Runner,
    other: Runner,
    feeds: Iterable[Mapping[str, Array]],
    slack: Mapping[str, float] | None = None,
) -> Agreement:
    """Run both on the same feeds and compare all outputs.

    `slack` is how far outputs may lie apart, by name, before that counts as a relative
    difference. Raises SecateurError where their outputs differ in name or shape.
    """
    outputs, runs = _run(reference, other, ((feed, feed) for feed in feeds))
    for name, output in outputs.items():
        output.slack = (slack or {}).get(name, 0.0)
    return _summary(list(outputs.values()), runs)


def differences(
    reference: Runner,
    other: Runner,
    feeds: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]],
) -> dict[str, float]:
    """The largest absolute difference of each floating-point output, by name, where the
    first of each pair of feeds goes to `reference` and the second to `other`."""
    outputs, _ = _run(reference, other, feeds)
    return {name: o.difference for name, o in outputs.items() if not o.discrete}


def _run(
    reference: Runner,
    other: Runner,
    feeds: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]],
) -> tuple[dict[str, _Output], int]:
    outputs: dict[str, _Output] = {}
    runs = 0
    for feed, other_feed in feeds:
        runs += 1
        want, have = reference.run(feed), other.run(other_feed)
        if want.keys() != have.keys():
            raise SecateurError(f"outputs differ: {sorted(want)} and {sorted(have)}")
        for name, array in want.items():
            outputs.setdefault(name, _Output(name)).add(array, have[name])
    return outputs, runs


class _Output:
    """Running totals of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.discrete = False
        self.elements = 0
        self.equal = 0
        self.difference = 0.0
        self.magnitude = 0.0
        self.slack = 0.0

    def add(self, want: Array, have: Array) -> None:
        want, have = np.asarray(want), np.asarray(have)
        if want.shape != have.shape:
            raise SecateurError(
                f"output '{self.name}': shapes {list(want.shape)} and {list(have.shape)} differ"
            )
        self.discrete = want.dtype.kind not in "fV"  # ml_dtypes are V
        equal = want == have
        if not self.discrete:
            equal |= np.isnan(want) & np.isnan(have)
        self.elements += want.size
        self.equal += int(np.count_nonzero(equal))
        if self.discrete or not want.size:
            return
        exact, other = want.astype(np.float64), have.astype(np.float64)
        with np.errstate(invalid="ignore"):
            gap = np.where(equal, 0.0, np.abs(exact - other))
        gap[np.isnan(gap)] = np.inf
        self.difference = max(self.difference, float(gap.max()))
        finite = np.abs(exact[np.isfinite(exact)])
        self.magnitude = max(self.magnitude, float(finite.max(initial=0.0)))

    @property
    def relative(self) -> float:
        difference = self.difference - self.slack
        if difference <= 0.0:
            return 0.0
        return difference / self.magnitude if self.magnitude else float("inf")


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
