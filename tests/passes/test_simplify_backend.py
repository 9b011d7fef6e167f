"""Simplification over all backend cases of onnx: outputs stay what ONNX Runtime gave before."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto, load
from secateur.ir.reference import Session
from secateur.passes.compare import allowed_deviation, deviation
from secateur.passes.manager import OutputCheck, PassManager
from secateur.passes.simplify import simplify_pipeline
from tests.backend_cases import Case, generated_cases, light_models, shipped_cases
from tests.feeds import random_feeds

FRESH = 1e-6
"""Largest relative deviation; half precision is allowed a few of its own roundings."""


def expected_outputs(case: Case) -> tuple[dict, dict] | None:
    """Inputs and what ONNX Runtime makes of them; None where it can't run the case."""
    if not case.data:
        return None
    model = from_proto(case.model)
    try:
        session = Session(model, optimize=False)
        feeds = dict(zip((v.name for v in model.graph.inputs), case.data[0][0], strict=False))
        return feeds, session.run({n: feeds[n] for n in session.input_names if n in feeds})
    except SecateurError:
        return None


@pytest.mark.parametrize(
    "part", [*range(4), *(pytest.param(k, marks=pytest.mark.slow) for k in range(4, 8))]
)
def test_outputs_stay(part: int) -> None:
    assert compare_all(generated_cases()[part::8]) > 150


@pytest.mark.parametrize("folder", ["simple", "pytorch-converted", "pytorch-operator"])
def test_outputs_of_shipped_models_stay(folder: str) -> None:
    cases = shipped_cases(folder)
    assert compare_all(cases) > 0.6 * len(cases)  # ONNX Runtime lacks operators of opset 6


@pytest.mark.slow
@pytest.mark.parametrize("path", light_models(), ids=lambda path: path.stem)
def test_outputs_of_light_models_stay(path: Path) -> None:
    """Whole networks, whose weights are made by ConstantOfShape: random inputs, 1e-5."""
    model = load(path)
    PassManager(simplify_pipeline(), check=OutputCheck(random_feeds(model, default=1), 1e-5)).run(
        model
    )


def compare_all(cases: list[Case]) -> int:
    """How many of the cases ONNX Runtime runs; their outputs must not change."""
    compared = 0
    for case in cases:
        model = from_proto(case.model)
        PassManager(simplify_pipeline()).run(model)
        found = expected_outputs(case)
        if found is None:
            continue
        feeds, expected = found
        session = Session(model, optimize=False)
        actual = session.run({n: feeds[n] for n in session.input_names if n in feeds})
        assert list(actual) == list(expected), case.name
        for name, value in expected.items():
            allowed = allowed_deviation(value, FRESH)
            assert deviation(value, actual[name]) <= allowed, (case.name, name)
        compared += 1
    return compared
