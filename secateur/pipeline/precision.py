"""Which products and convolutions of an artifact are computed in 16 bits, and what that does."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..backends.tvm.targets import Target, for_halves, multiplies_halves, parse_target
from ..data.batches import batch_sizes
from ..data.datasets import Dataset
from ..data.random_inputs import random_feeds
from ..ir.errors import SecateurError
from ..ir.tensor import Array
from ..passes.halves import HalfError, half_errors, half_fidelity, products_in_bodies
from ..reporting.report import Fidelity

if TYPE_CHECKING:
    from ..backends.tvm.compile import CompileReport
    from ..backends.tvm.emission.halves import Halves
    from ..ir.model import Model
    from .choices import PrecisionName

log = logging.getLogger(__name__)

_TYPES = {"bf16": "bfloat16", "fp16": "float16"}

LEAST_TOP1 = 0.995
"""Share of samples with the same highest score that a model keeps."""

SAMPLES = 8
"""Samples that operators are measured on."""

MOST_SAMPLES = 256
"""Samples that outputs are compared on."""


@dataclasses.dataclass(frozen=True)
class Precision:
    """What is computed in 16 bits, `halves`, and what that does.

    `without` are the target's levels that have no instruction for it: there numbers are only
    stored so. `errors` are those of all operators in question, `inner` are operators in bodies,
    with their types, and `fidelity` is what the outputs lose.
    """

    name: str
    halves: Halves
    without: tuple[str, ...]
    errors: tuple[HalfError, ...]
    inner: tuple[tuple[str, str], ...]
    fidelity: Fidelity

    def _reason(self, error: HalfError) -> str:
        """Why the operator stays in float32, if it does."""
        if error.node in self.halves.nodes:
            return ""
        return "too many highest scores change" if error.is_good else "it loses too much"

    def report(self, left: Mapping[str, str]) -> dict[str, Any]:
        """For the report; `left` are nodes that the compiler leaves in float32, with reasons."""
        kept = [
            {
                "node": error.node,
                "op_type": error.op_type,
                "sqnr_db": error.sqnr_db,
                "reason": left.get(error.node, self._reason(error)),
            }
            for error in self.errors
        ]
        kept += [
            {"node": node, "op_type": op_type, "sqnr_db": None, "reason": "it lies in a body"}
            for node, op_type in self.inner
        ]
        return {
            "name": self.name,
            "without": list(self.without),
            "operators": len(kept),
            "float32": [each for each in kept if each["reason"]],
            "fidelity": dataclasses.asdict(self.fidelity),
        }


def target_for(name: str, precision: PrecisionName | None) -> Target:
    """The target called so, with the instructions that its CPU has for a precision."""
    target = parse_target(name)
    return target if precision is None else for_halves(target, _TYPES[precision])


def with_precision(built: CompileReport, chosen: Precision | None) -> dict[str, Any]:
    """What a compiler's report holds, with what is computed in 16 bits."""
    precision = None if chosen is None else chosen.report(built.float32)
    return {**dataclasses.asdict(built), "precision": precision}


def choose_precision(
    model: Model,
    target: Target,
    name: PrecisionName | None,
    data: Dataset | None,
    seed: int,
    options: dict[str, Any],
) -> Precision | None:
    """Measure every product and convolution in 16 bits, on samples or random inputs.

    `target` is that of `target_for`; `options` are the compiler's, which get `halves`. None without
    a precision. Raises SecateurError where nothing could be computed so.
    """
    if name is None:
        return None
    from ..backends.tvm.compile import prepared_model  # imports TVM
    from ..backends.tvm.emission.halves import Halves

    dtype = _TYPES[name]
    work = prepared_model(model, options["declared_sizes"], options["sizes"])
    rows = None if data is None else batch_sizes(work, data)[:1]

    def feeds(most: int) -> Iterator[dict[str, Array]]:
        if data is None or rows is None:
            return iter(random_feeds(work, seed))
        return itertools.islice(data.feeds(most, rows), most)

    errors = half_errors(work, dtype, feeds(SAMPLES))
    if not errors:
        raise SecateurError(
            f"precision {name}: the model has no product or convolution of float32 numbers"
        )
    bad = {error.node for error in errors if not error.is_good}
    good = [error.node for error in errors if error.node not in bad]
    source = "random inputs" if data is None else "samples"
    kept = 0
    while True:
        nodes = frozenset(good[kept:]) - frozenset(good[:kept]) - bad
        samples, outputs = half_fidelity(work, dtype, nodes, feeds(MOST_SAMPLES))
        fidelity = Fidelity(samples, f"{samples} {source}", tuple(outputs))
        if not nodes or fidelity.top1 is None or fidelity.top1 >= LEAST_TOP1:
            break
        kept = max(1, 2 * kept)
    log.debug("%s: %d operators stay in float32 for the highest scores", name, kept)
    without = [level.name for level in target.levels if not multiplies_halves(level, dtype)]
    inner = [(node.label, node.op_type) for node in products_in_bodies(work)]
    options["halves"] = Halves(dtype, nodes)
    return Precision(name, options["halves"], tuple(without), tuple(errors), tuple(inner), fidelity)
