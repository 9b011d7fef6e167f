"""What an output lost against the original's."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class OutputFidelity:
    """How near one output is to the original's over all samples.

    `identical` where every element is the same, `equal` is the share of those that are.
    `sqnr_db` is signal over noise in decibels, infinite without noise, and `cosine` that of the
    angle between both; None for outputs that are no floats, or that have another shape. `top1` is
    the share of samples with the same highest score, None where rows are no scores.
    """

    name: str
    identical: bool
    equal: float
    sqnr_db: float | None
    cosine: float | None
    top1: float | None


def lost(output: OutputFidelity) -> tuple[float, str]:
    """The share that an output lost, and what it is a share of.

    Of samples, those whose highest score is another; where rows are no scores, of elements those
    that differ, or for floats of the signal's power the noise.
    """
    if output.top1 is not None:
        return 1 - output.top1, "highest scores"
    if output.sqnr_db is None:
        return 1 - output.equal, "elements that differ"
    return 10 ** (-output.sqnr_db / 10), "noise in the signal"
