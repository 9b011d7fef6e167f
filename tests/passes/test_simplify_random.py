"""The property that simplification stands on: the same outputs, for any graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, reject, settings

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.passes.manager import PassManager
from secateur.passes.simplify import Simplify, simplify_pipeline
from tests.strategies import models

RELAXED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


NUDGES = (1e-6, -2e-6, 4e-6)
"""Relative changes of the inputs that tell how much a graph magnifies rounding."""


def check_equal(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """Simplified equals original to a few roundings, as the graph itself magnifies them."""
    try:
        session = Session(from_proto(proto), optimize=False)
        expected = session.run(feeds)
    except SecateurError:
        reject()  # not one that ONNX Runtime takes to begin with
    nudged = [session.run({n: a * np.float32(1 + k) for n, a in feeds.items()}) for k in NUDGES]
    model = from_proto(proto)
    PassManager(simplify_pipeline()).run(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    actual = Session(model, optimize=False).run(feeds)
    again = Simplify().run(model)
    assert not again.changed, again.statistics
    assert list(actual) == list(expected)
    for name, reference in expected.items():
        assert actual[name].shape == reference.shape
        moved = max(float(np.abs(other[name] - reference).max(initial=0)) for other in nudged)
        assert np.isfinite(moved), f"{name}: an infinite bound holds nothing"
        allowed = 1e-4 + 100 * moved
        np.testing.assert_allclose(actual[name], reference, rtol=1e-4, atol=allowed, err_msg=name)


@settings(max_examples=100, deadline=None, suppress_health_check=RELAXED)
@given(models())
def test_simplified_equals_original(case: tuple[onnx.ModelProto, dict[str, np.ndarray]]) -> None:
    check_equal(*case)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=RELAXED)
@given(models(max_steps=25))
def test_simplified_equals_original_at_length(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]],
) -> None:
    check_equal(*case)
