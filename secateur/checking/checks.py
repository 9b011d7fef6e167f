"""Verification of transformed models: against an oracle, and of every file written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from ..data.batches import batch_sizes
from ..data.datasets import Dataset
from ..data.random_inputs import describe_feeds, random_feeds
from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.onnx_io import load
from ..ir.reference import Session, load_problem, one_line
from ..ir.tensor import Array
from ..ir.verify import verify
from ..reporting.report import Check
from .agreement import Agreement, compare
from .rounding import Rounding

ROUNDING = 1e-4
"""Largest difference, relative to an output's magnitude, that counts as rounding."""

SAMPLES = 8
"""Samples that a comparison uses, at least one batch."""

Feeds = Sequence[Mapping[str, Array]]


def check_feeds(model: Model, data: Dataset | None, seed: int) -> list[dict[str, Array]]:
    """Inputs for a few runs: of the first samples of `data`, or random ones.

    Raises DataError where there is no data and no random inputs will do.
    """
    if data is None:
        return random_feeds(model, seed)
    return list(data.feeds(SAMPLES, batch_sizes(model, data)))


def check_equivalent(name: str, oracle: Model, result: Model, feeds: Feeds) -> Check:
    """Compare a result with what it must equal, to rounding, as their operators are defined.

    Where there is more, the outputs may differ by what rounding the oracle's own weights
    and inputs otherwise makes of them. Raises SecateurError where it is more than that.
    """
    if not feeds:
        return Check(name, False, "not compared: no inputs to run on")
    reference, other = Session(oracle, optimize=False), Session(result, optimize=False)
    agreement = compare(reference, other, feeds)
    detail = f"{describe(agreement)} with {describe_feeds(feeds)}"
    if not agreement.within(ROUNDING):
        agreement = compare(reference, other, feeds, Rounding.of(oracle, feeds, agreement.flips))
        detail += ", no more than rounding makes of the values behind it"
    if not agreement.within(ROUNDING):
        detail = describe(agreement)
        raise SecateurError(f"{name}: {detail}, which is more than rounding; nothing was written")
    return Check(name, True, detail, dataclasses.asdict(agreement))


def check_loads(name: str, model: Model, source: Model) -> Check:
    """Check that ONNX Runtime can load a result that is about to be written.

    Where it can't load `source`, the model as the user gave it, either, that is reported.
    Raises SecateurError for everything else.
    """
    problem = load_problem(model)
    if problem is None:
        return Check(name, True, "loads in ONNX Runtime")
    if load_problem(source) is None:
        raise SecateurError(f"{name}: the result would not load, nothing was written: {problem}")
    return Check(name, False, f"like the input, does not load: {problem}")


def check_file(path: Path, feeds: Feeds, source: Model, *, full: bool = True) -> Check:
    """Check a written ONNX file with onnx.checker, by loading it in ONNX Runtime and by
    running it on the first of `feeds`.

    `full` infers shapes in the checker, which needs the memory of all weights. What `source`,
    the model as the user gave it, does not pass either is reported and not held against the
    result. Raises SecateurError for everything else.
    """
    checker = f"passes onnx.checker{' (full)' if full else ''}"
    problem = _checker_problem(path, full)
    if problem is not None:
        if source.path is None or _checker_problem(source.path, full) is None:
            raise SecateurError(f"{path.name}: onnx.checker rejects the result: {problem}")
        checker = f"like the input, rejected by onnx.checker: {problem}"
    loaded = load(path)
    check = check_loads(path.name, loaded, source)
    passed, detail = check.passed and problem is None, check.detail
    if check.passed and feeds:
        Session(loaded).run(feeds[0])
        detail = "runs in ONNX Runtime"
    return Check(path.name, passed, f"{checker}, {detail}")


def verify_file(path: Path) -> list[Check]:
    """Verify a model, check it with onnx.checker and load it in ONNX Runtime.

    Raises SecateurError at the first failure.
    """
    model = load(path)
    verify(model)
    problem = _checker_problem(path, full=True)
    if problem is not None:
        raise SecateurError(f"{path}: onnx.checker rejects it: {problem}")
    Session(model, trial=True)
    return [
        Check("verifier", True, "well formed"),
        Check("onnx.checker", True, "valid (full check)"),
        Check("ONNX Runtime", True, "loads"),
    ]


def describe(agreement: Agreement) -> str:
    """One line for people."""
    text = (
        f"max difference {agreement.max_difference:.3g} "
        f"(relative {agreement.relative_difference:.2g}) over {agreement.runs} runs"
    )
    if agreement.identical_discrete < 1:
        text += f", {100 * (1 - agreement.identical_discrete):.2f} % of discrete outputs differ"
    return text


def _checker_problem(path: Path, full: bool) -> str | None:
    try:
        onnx.checker.check_model(str(path), full_check=full)
    except Exception as error:  # the checker raises several unrelated types
        return one_line(error)
    return None
