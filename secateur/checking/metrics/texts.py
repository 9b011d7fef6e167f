"""Metrics of text: character and word error rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.datasets import Dataset
from ...ir.errors import SecateurError
from ...ir.files import read_regular
from ...ir.tensor import Array
from .base import Metric, metric


class _ErrorRate(Metric):
    """Edits (insertions, deletions, substitutions) over the labels' length.

    The output is text, or symbols' numbers [rows, time], or scores [rows, time, symbols] of a
    model with CTC, of which the highest count: repeated ones once, and `blank` not. Numbers end
    at a negative one. `alphabet` is a file with the text of a symbol on each line, without
    which labels are numbers, too.
    """

    blank: int = 0
    alphabet: str = ""

    def begin(self, data: Dataset) -> None:
        self._edits = self._length = 0
        self._symbols: list[str] = []
        if self.alphabet:
            try:
                text = read_regular(Path(self.alphabet), 1 << 24).decode("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                problem = getattr(error, "strerror", None) or error
                raise self.fail(f"{self.alphabet}: {problem}") from None
            self._symbols = text.removesuffix("\n").split("\n")

    def update(self, outputs: Mapping[str, Array], labels: Sequence[Any], rows: int) -> None:
        name, output = self.chosen(outputs)
        if output.shape[:1] != (rows,):
            raise self.fail(f"output '{name}' has no row for each of {rows} samples")
        for row, label in enumerate(labels):
            want, have = self._parts(label), self._parts(self._decoded(name, output[row]))
            if isinstance(label, str) and have and isinstance(have[0], int):
                raise self.fail("labels are text and results numbers: give {alphabet=FILE}")
            self._edits += edit_distance(want, have)
            self._length += len(want)

    def result(self) -> float:
        return self._edits / self._length if self._length else float("nan")

    def _decoded(self, name: str, row: Array) -> str | list[int]:
        if row.dtype.kind in "OUS":
            return str(row.reshape(-1)[0]) if row.size else ""
        if row.dtype.kind == "f" and row.ndim == 2:
            best = row.argmax(axis=1)
            kept = np.append(True, best[1:] != best[:-1])
            numbers = [int(k) for k in best[kept] if k != self.blank]
        elif row.dtype.kind in "iu" and row.ndim == 1:
            numbers = [int(k) for k in row]
        else:
            raise self.fail(f"output '{name}' is no text, no symbols and no scores of symbols")
        numbers = _ended(numbers)
        if not self._symbols:
            return numbers
        try:
            return "".join(self._symbols[k] for k in numbers)
        except IndexError:
            raise self.fail(f"{self.alphabet} has no symbol {max(numbers)}") from None

    def _parts(self, text: Any) -> list[Any]:
        """What edits count in."""
        raise NotImplementedError


@metric("cer", "text", "lower")
class CharacterErrorRate(_ErrorRate):
    """Edits of characters, or of symbols, over the number of the labels'."""

    blank: int = 0
    alphabet: str = ""

    def _parts(self, text: Any) -> list[Any]:
        return list(text) if isinstance(text, str) else _ended([int(k) for k in text])


@metric("wer", "text", "lower")
class WordErrorRate(_ErrorRate):
    """Edits of words over the number of the labels'."""

    blank: int = 0
    alphabet: str = ""

    def _parts(self, text: Any) -> list[Any]:
        if not isinstance(text, str):
            raise SecateurError("metric wer: words need text: labels, and {alphabet=FILE}")
        return text.split()


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein's."""
    before = list(range(len(b) + 1))
    for row, x in enumerate(a, 1):
        now = [row]
        for column, y in enumerate(b, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (x != y)))
        before = now
    return before[-1]


def _ended(numbers: list[int]) -> list[int]:
    return numbers[: next((k for k, number in enumerate(numbers) if number < 0), len(numbers))]
