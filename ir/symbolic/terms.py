"""Products of factors that have keys, and sums of them: what needs no more of the factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar


class Keyed(Protocol):
    """What is told from others by a text."""

    key: str


_Factor = TypeVar("_Factor", bound=Keyed)


def key_of(factor: Keyed) -> str:
    return factor.key


def without(
    product: tuple[_Factor, ...], divisor: tuple[_Factor, ...]
) -> tuple[_Factor, ...] | None:
    """What is left of a product that is divided by another one; None where there is a rest."""
    if not divisor:
        return product
    rest = list(product)
    for factor in divisor:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)


def text_of(terms: Mapping[tuple[_Factor, ...], int]) -> str:
    """A sum of products, each with how often it counts, in words: different ones differ."""
    parts = sorted(("*".join(map(key_of, product)), count) for product, count in terms.items())
    return " + ".join(_term_text(names, count) for names, count in parts)


def _term_text(names: str, count: int) -> str:
    if not names:
        return str(count)
    return names if count == 1 else f"{count}*{names}"
