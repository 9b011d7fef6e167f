"""The end of quantized kernels: rounding, zero points, saturation, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from ..test_networks import SETTINGS, TARGETS, run

Array = Any


def _convolution(
    weights: Array, width: int, scale: float, zero: int, dtype: str
) -> onnx.ModelProto:
    """uint8 x [1, 8, 1, width] to dtype y: a 1x1 QDQ convolution of scales 1, then `scale`."""
    constants = {
        "one": np.float32(1.0),
        "x_zero": np.uint8(0),
        "w": weights[:, :, None, None],
        "w_zero": np.int8(0),
        "scale": np.float32(scale),
        "zero": np.array(zero, dtype),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "x_zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "one", "w_zero"], ["b"]),
        helper.make_node("Conv", ["a", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (1, 8, 1, width))],
        [
            helper.make_tensor_value_info(
                "y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None
            )
        ],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


@given(
    width=st.integers(1, 11),
    channels=st.sampled_from((1, 4, 16, 17, 48)),
    scale=st.sampled_from((1e-30, 1e-7, 0.5, 2.0, 64.0, 777.7, 1e5)),
    dtype=st.sampled_from(("uint8", "int8")),
    target=st.sampled_from(TARGETS),
    data=st.data(),
)
@SETTINGS
def test_requantization_saturates_and_rounds_half_to_even(
    tmp_path: Path, width: int, channels: int, scale: float, dtype: str, target: str, data: Any
) -> None:
    limits = np.iinfo(dtype)
    zero = data.draw(st.integers(int(limits.min), int(limits.max)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    weights = random.integers(-128, 128, (channels, 8), np.int8)
    x = random.integers(0, 256, (1, 8, 1, width), np.uint8)
    found = run(_convolution(weights, width, scale, zero, dtype), target, tmp_path, {"x": x})["y"]
    accumulator = np.einsum("oi,nihw->nohw", weights.astype(np.int64), x.astype(np.int64))
    rounded = np.rint(accumulator.astype(np.float32) * (np.float32(1.0) / np.float32(scale)))
    expected = np.clip(rounded.astype(np.float64) + zero, limits.min, limits.max)
    np.testing.assert_array_equal(found, expected.astype(dtype))
