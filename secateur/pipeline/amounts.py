"""Budgets as users write them: a share of the original, or an amount with a unit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from ..ir.errors import SecateurError

TIMES = {"us": 1.0, "ms": 1e3, "s": 1e6}
"""Units of latency in microseconds."""

SIZES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
"""Units of size in bytes."""


@dataclasses.dataclass(frozen=True)
class Amount:
    """What may remain: a `share` of the original, or an `absolute` number of base units."""

    text: str
    share: float | None = None
    absolute: float | None = None

    @classmethod
    def parse(cls, given: str | float, units: Mapping[str, float]) -> Amount:
        """The amount of `0.5`, or of a number with one of the units. Raises SecateurError."""
        text = str(given).strip()
        match = re.fullmatch(r"(\d+\.?\d*(?:[eE]-?\d+)?|\.\d+)\s*([A-Za-z]*)", text)
        unit = match.group(2) if match else ""
        number = float(match.group(1)) if match else 0.0
        if match and not unit and 0 < number <= 1:
            return cls(text, share=number)
        if match and unit in units and 0 < number * units[unit] < float("inf"):
            return cls(text, absolute=number * units[unit])
        raise SecateurError(
            f"'{text}' is neither a share between 0 and 1 nor a number with a unit "
            f"({', '.join(units)})"
        )

    def share_of(self, whole: float) -> float:
        """The share that may remain of `whole` base units, 1 where that fits as it is."""
        if self.share is not None:
            return self.share
        assert self.absolute is not None
        return min(1.0, self.absolute / whole)
