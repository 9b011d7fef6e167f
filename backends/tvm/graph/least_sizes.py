"""The least sizes that a model can run with: from which on all that it computes has elements.

A convolution that steps by 4 makes nothing of less than 4 rows, and a run of fewer is refused. That
such sizes begin at 4 is said before anything follows from them: `min(2, n // 4)` needn't be asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....ir.graph import Value, outer_reads
from ....ir.symbolic import expressions as e
from ....ir.symbolic.analysis import Admitted, SizeAnalysis
from ....ir.symbolic.expressions import Expression, Size

_TRIED = 512
"""Sizes of a symbol that are tried to find the least."""


def raised(analysis: SizeAnalysis, admitted: Mapping[str, Admitted]) -> dict[str, Admitted]:
    """What is admitted of symbols with which the axes of what is computed wouldn't have elements,
    from the least size on with which they do. Where 0 is admitted, nothing is said."""
    sizes: dict[Size, None] = {}
    for value in _computed(analysis):
        sizes |= dict.fromkeys(analysis.shape(value) or ())
    found = {}
    for name, own in admitted.items():
        symbol = e.symbol(name)
        assert isinstance(symbol, Expression)
        about = [s for s in sizes if s != symbol and set(e.leaves(s)) == set(e.leaves(symbol))]
        first = -(-own.low // own.divisor) * own.divisor
        last = first + _TRIED * own.divisor
        tried = range(first, last if own.high is None else min(last, own.high), own.divisor)
        least = next((n for n in tried if all(_at(n, size) > 0 for size in about)), 0)
        if 0 < first < least:
            found[name] = own._replace(low=least)
    return found


def _at(number: int, size: Size) -> int:
    """A size of one symbol, where that is a number; 0 where it isn't known."""
    found = e.substitute(size, lambda _: number)
    return found if isinstance(found, int) else 0


def _computed(analysis: SizeAnalysis) -> set[Value]:
    """Values that a run computes: not those of which the model asks only for the size."""
    found: set[Value] = set()
    left = list(analysis.model.graph.outputs)
    while left:
        value = left.pop()
        if value in found or analysis.contents(value) is not None:
            continue
        found.add(value)
        if value.producer is not None:
            left += outer_reads(value.producer)
    return found
