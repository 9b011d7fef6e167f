"""Bounds of sizes, and those of what is computed from them."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple


class Range(NamedTuple):
    """The least and the greatest number that a size may be; None where there is no bound."""

    low: int | None
    high: int | None


ANY = Range(None, None)
NATURAL = Range(0, None)
TRUTH = Range(0, 1)


def range_of_product(ranges: Sequence[Range]) -> Range:
    if len(ranges) == 1:
        return ranges[0]
    lows = [r.low for r in ranges if r.low is not None and r.low >= 0]
    if len(lows) < len(ranges):
        return ANY
    highs = [r.high for r in ranges if r.high is not None]
    if 0 in highs:
        return Range(0, 0)
    return Range(math.prod(lows), math.prod(highs) if len(highs) == len(ranges) else None)


def range_of_quotient(a: tuple[int | None, int | None], b: tuple[int | None, int | None]) -> Range:
    """The range of a / b, rounded down, where b is positive."""
    (p, q), (r, s) = a, b
    if r is None or r < 0 or s == 0:
        return ANY
    r = max(r, 1)  # nothing is divided by zero
    low = None if p is None else p // r if p < 0 else 0 if s is None else p // s
    high = None if q is None else q // r if q >= 0 else -1 if s is None else q // s
    return Range(low, high)


def least(a: int | None, b: int | None) -> int | None:
    return min(a, b) if a is not None and b is not None else a if b is None else b


def greatest(a: int | None, b: int | None) -> int | None:
    return max(a, b) if a is not None and b is not None else a if b is None else b


def scaled_number(number: int, bits: int) -> int:
    """The whole number of a number times the 32-bit float of these bits, rounded to one first."""
    (scale,) = struct.unpack("<f", struct.pack("<i", bits))
    return int(_single(_single(number) * scale))


def _single(number: float) -> float:
    """The 32-bit float nearest to a number."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", number))
    return float(rounded)
