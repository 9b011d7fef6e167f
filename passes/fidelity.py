"""How near outputs of one model are to another's, on average over samples.

`compare.py` says how far the worst element is off, which is what equality is judged by; this is
what losses are judged by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ..ir.tensor import Array
from .compare import is_discrete, tensors
from .losses import OutputFidelity


class FidelityTotals:
    """Hears of the outputs of two models on the same inputs, run by run."""

    def __init__(self) -> None:
        self._outputs: dict[str, _Totals] = {}
        self.samples = 0

    def add(
        self, want: Mapping[str, Array], have: Mapping[str, Array], rows: int, valid: int
    ) -> None:
        """Outputs of the original and of the other in a run of `rows` samples, the first `valid`
        of which count."""
        found = tensors(have)
        for name, array in tensors(want).items():
            totals = self._outputs.setdefault(name, _Totals())
            totals.add(array, found.get(name), rows, valid)
        self.samples += valid

    def outputs(self) -> list[OutputFidelity]:
        return [totals.result(name) for name, totals in self._outputs.items()]


@dataclasses.dataclass
class _Totals:
    """Sums over one output."""

    discrete: bool = False
    elements: int = 0
    equal: int = 0
    unlike: int = 0
    """Elements of which only one is a number, and of outputs of another shape."""
    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0
    scored: int = 0
    hits: int = 0

    def add(self, want: Array, have: Array | None, rows: int, valid: int) -> None:
        self.discrete = is_discrete(want)
        if have is None or np.shape(have) != want.shape:
            self.elements += want.size
            self.unlike += max(1, want.size)
            return
        by_row = want.ndim > 0 and len(want) == rows
        if by_row:
            want, have = want[:valid], have[:valid]
        self.elements += want.size
        if self.discrete:
            self.equal += int(np.count_nonzero(want == have))
            return
        a, b = want.astype(np.float64), have.astype(np.float64)
        row = want.shape[1:]
        if by_row and valid and row and 1 < max(row) == math.prod(row):
            scores = a.reshape(valid, -1).argmax(1), b.reshape(valid, -1).argmax(1)
            self.scored += valid
            self.hits += int(np.count_nonzero(scores[0] == scores[1]))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a) & np.isfinite(b)
        self.equal += int(np.count_nonzero(same))
        self.unlike += int(np.count_nonzero(~finite & ~same))
        a, b = a[finite], b[finite]
        self.signal += float(np.square(a).sum())
        self.noise += float(np.square(a - b).sum())
        self.other += float(np.square(b).sum())
        self.product += float((a * b).sum())

    def result(self, name: str) -> OutputFidelity:
        identical = not self.unlike and self.equal == self.elements
        equal = self.equal / self.elements if self.elements else 1.0
        top1 = self.hits / self.scored if self.scored else None
        if self.discrete or (self.unlike and not self.signal):
            return OutputFidelity(name, identical, equal, None, None, top1)
        sqnr = math.inf
        if self.noise:
            sqnr = 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf
        lengths = math.sqrt(self.signal) * math.sqrt(self.other)
        cosine = 1.0 if identical else self.product / lengths if lengths else 0.0
        return OutputFidelity(name, identical, equal, sqnr, min(cosine, 1.0), top1)
