"""What of a stage is further from the original than usual."""

from __future__ import annotations

from ..ir.display import printable
from ..reporting.report import Fidelity, percent_text

LEAST_TOP1 = 0.95
"""Share of samples whose highest score is the same, below which there is a warning."""

LEAST_SQNR = 10.0
"""Decibels of signal over noise, likewise."""

LEAST_EQUAL = 0.95
"""Share of equal elements of outputs that are no floats, likewise."""


def fidelity_warnings(stage: str, fidelity: Fidelity) -> list[str]:
    """What of a stage is further from the original than usual."""
    found = []
    for output in fidelity.outputs:
        problems = []
        if output.top1 is not None and output.top1 < LEAST_TOP1 and not fidelity.is_random:
            problems.append(
                f"the highest score is another in {percent_text(1 - output.top1)} of the samples"
            )
        if output.sqnr_db is not None and output.sqnr_db < LEAST_SQNR:
            problems.append(f"SQNR is {output.sqnr_db:.1f} dB")
        if output.sqnr_db is None and output.equal < LEAST_EQUAL:
            problems.append(f"{percent_text(1 - output.equal)} of the elements differ")
        if problems:
            found.append(
                f"{stage}: output '{printable(output.name)}' is far from the original's: "
                f"{', '.join(problems)} ({fidelity.data})"
            )
    return found
