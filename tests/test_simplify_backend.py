"""Simplification over all backend cases of onnx: outputs stay what ONNX Runtime gave before."""

from __future__ import annotations

import pytest

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.passes.compare import allowed_deviation, deviation
from secateur.passes.manager import PassManager
from secateur.passes.reference import Session
from secateur.passes.simplify import simplify_pipeline
from tests.backend_cases import Case, generated_cases

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


@pytest.mark.parametrize("part", range(8))
def test_outputs_stay(part: int) -> None:
    compared = 0
    for case in generated_cases()[part::8]:
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
    assert compared > 150
