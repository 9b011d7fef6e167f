"""Equations of Einsum: a letter for each axis of the operands and of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_NO_LETTER = 0xE000
"""Where characters begin that name the axes of an ellipsis."""


@dataclass(frozen=True)
class Equation:
    """One character for each axis of each operand, and of the result.

    Those of an ellipsis, which broadcast, are counted from the last one and are no letters.
    """

    operands: tuple[str, ...]
    result: str


def is_letter(label: str) -> bool:
    """Whether it names an axis by itself, none of an ellipsis."""
    return ord(label) <= _NO_LETTER


def read_equation(text: str, ranks: Sequence[int]) -> Equation:
    """The equation for operands of such ranks, with the result's letters where it has none (those
    that stand once, in their order). Raises ValueError where they don't fit, saying how."""
    text = text.replace(" ", "")
    left, arrow, result = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"equation '{text}' for {len(ranks)} inputs")
    counts = []  # axes of each ellipsis
    for index, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        named = len(term.replace("...", ""))
        if rank != named and ("..." not in term or rank < named):
            raise ValueError(f"equation '{text}': input {index} has rank {rank}")
        counts.append(rank - named)
    if not arrow:
        letters = left.replace(".", "").replace(",", "")
        once = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        result = "..." * ("..." in left) + once
    operands = [
        term.replace("...", _ellipsis(count)) for term, count in zip(terms, counts, strict=True)
    ]
    result = result.replace("...", _ellipsis(max(counts)))
    given = set("".join(operands))
    are_labels = all(label.isalpha() or not is_letter(label) for label in given)
    if not are_labels or not set(result) <= given or len(set(result)) < len(result):
        raise ValueError(f"equation '{text}' makes no result of its inputs' letters")
    return Equation(tuple(operands), result)


def _ellipsis(count: int) -> str:
    return "".join(map(chr, range(_NO_LETTER + count, _NO_LETTER, -1)))
