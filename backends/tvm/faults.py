"""Faults: why a run ends without a result. Kernels find them, the entry returns their codes."""

from __future__ import annotations

import enum


class Fault(enum.IntEnum):
    """A reason for which a kernel refuses the values that it reads."""

    INDEX = 1
    VALUE = 2
    LIMIT = 3
    DIVISION = 4
    COUNT = 5
    SIZE = 6

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    Fault.INDEX: "an index is out of range",
    Fault.VALUE: "an operand's value isn't one that the model was compiled for",
    Fault.LIMIT: "an operand's value asks for more work than the artifact may do",
    Fault.DIVISION: "an integer is divided by zero",
    Fault.COUNT: "the data lead to another number of results than the model declares",
    Fault.SIZE: "the inputs' sizes aren't admitted",
}

SAMPLE_LIMIT = 4096
"""Samples that RoiAlign may take of a bin along an axis, where the boxes' sizes tell how many."""

LIMITS = {"roi_align_samples": SAMPLE_LIMIT}
"""What a run may ask for, by names that the metadata have."""

CALL_SHIFT = 8
"""Bits of the entry's status that hold the fault; the bits above hold the call's number."""


def refusal(text: str, name: str | None, axis: int | None) -> str:
    """What is said of sizes that aren't admitted: those of an input of that name, or of several."""
    return text if name is None else f"input '{name}': axis {axis}: {text}"


def explain(status: int) -> tuple[int, str]:
    """The number of the call that failed, and why, of a status that isn't 0."""
    code = status & ((1 << CALL_SHIFT) - 1)
    known = code in Fault._value2member_map_
    return status >> CALL_SHIFT, Fault(code).text if known else f"it returned {code}"
