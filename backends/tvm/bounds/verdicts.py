"""What was proven of kernels, kept in memory and in the cache beside their objects."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ....ir.tensor import Array
from ..cache import Cache
from ..plan.schedule import Buffer
from ..plan.size_facts import SizeFacts
from ..tensorir.types import PrimFunc
from .prover import Ranges, Verdict, prove

_PROVEN: dict[str, Verdict] = {}
"""Verdicts of this process, by the same keys as in the cache."""


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Proves kernels, each once.

    Whoever can write the cache can replace objects, and verdicts no less: they are worth
    what the objects beside them are.
    """

    cache: Cache = dataclasses.field(default_factory=Cache.none)

    def of(
        self,
        function: PrimFunc,
        content: str,
        constants: Mapping[int, Array],
        sizes: SizeFacts | None = None,
    ) -> Verdict:
        """The verdict on a function whose digest is `content`.

        `constants` are the elements of parameters that are constants of this call, by the
        parameters' index; what they hold counts only where the proof needs it. `sizes` is what is
        known of the open sizes that it takes.
        """
        sizes = sizes or SizeFacts()
        verdict = self._find(function, content, {}, sizes)
        tables = {i: a for i, a in constants.items() if a.dtype.kind in "iu" and a.size}
        if not verdict.unproven or not tables:
            return verdict
        ranges = {i: (int(a.min()), int(a.max())) for i, a in sorted(tables.items())}
        return self._find(function, content, ranges, sizes)

    def _find(self, function: PrimFunc, content: str, ranges: Ranges, sizes: SizeFacts) -> Verdict:
        text = json.dumps(
            [_analysis(), content, sorted(ranges.items()), dataclasses.astuple(sizes)]
        )
        key = hashlib.sha256(text.encode()).hexdigest()
        verdict = _PROVEN.get(key) or _parse(self.cache.get(key))
        if verdict is None:
            verdict = prove(function, ranges, sizes)
            self.cache.put(key, json.dumps(dataclasses.asdict(verdict)).encode())
        _PROVEN[key] = verdict
        return verdict


def _parse(stored: bytes | None) -> Verdict | None:
    if stored is None:
        return None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(stored).items()
    }
    return Verdict(**fields)


@functools.cache
def _analysis() -> str:
    """A digest of the analysis, so that no verdict outlives a change of it."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


@dataclasses.dataclass(frozen=True)
class Accesses:
    """How many accesses of kernels are proven to lie within their buffers.

    Of the `proven` ones `guarded` have indices that depend on values read at run time, which
    the kernel itself limits or compares before.
    """

    proven: int = 0
    guarded: int = 0

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Accesses:
        found = list(verdicts)
        return cls(sum(v.accesses for v in found), sum(v.guarded for v in found))

    def plus(self, other: Accesses) -> Accesses:
        return Accesses(self.proven + other.proven, self.guarded + other.guarded)


def constant_arguments(arguments: Iterable[Buffer]) -> dict[int, Array]:
    """The elements of a call's arguments that are constants, by their index."""
    roots = [buffer.root()[0] for buffer in arguments]
    return {i: root.array for i, root in enumerate(roots) if root.array is not None}
