"""What ONNX Runtime computes is what operators are defined to compute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_floats_beside_weights_of_bytes_are_not_rounded(dtype: type[np.generic]) -> None:
    """Its rewrite of such a product rounds them to 8 bits by default."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 21]>
        g (float[4, 64] x) => (float[4, 64] y) {
        w = DequantizeLinear <axis = 1> (i, s)
        y = MatMul (x, w)
        }"""
    )
    random = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    integers = random.integers(limits.min, limits.max + 1, (64, 64)).astype(dtype)
    scales = random.random(64).astype(np.float32) / 50
    for name, array in (("i", integers), ("s", scales)):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    x = random.standard_normal((4, 64)).astype(np.float32)
    found = Session(from_proto(proto)).run({"x": x})["y"]
    right = x.astype(np.float64) @ (integers * scales.astype(np.float64))
    assert np.abs(found - right).max() < 1e-5 * np.abs(right).max()


def test_its_time_is_that_of_what_it_does_by_itself() -> None:
    """Settings that make results exact, and halve its speed on bytes, are for comparisons."""
    model = from_proto(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 21]>
            g (float[4] x) => (float[4] y) { y = Abs (x) }"""
        )
    )
    for key in ("session.x64quantprecision", "session.qdq_matmulnbits_accuracy_level"):
        assert setting(Session(model), key) == "1"
        assert setting(Session(model, fast=True), key) is None


def setting(session: Session, key: str) -> str | None:
    """Of the session in ONNX Runtime, None where it has its default."""
    options = session._session.run.__self__.get_session_options()  # type: ignore[union-attr]
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return None
