"""Constants as integers, against ONNX Runtime's QuantizeLinear and exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.quantize.parameters import SMALLEST_SCALE, QuantParams, ValueRange
from secateur.passes.quantize.rounding import Noise
from secateur.passes.quantize.weights import (
    FULL_RANGE,
    LARGEST_BIAS,
    REDUCED_RANGE,
    least_scale_for_bias,
    quantize_bias,
    quantize_weight,
)

floats = st.floats(-1e6, 1e6, width=32)
weights = npst.arrays(
    np.float32, npst.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=floats
)


def quantize_linear(array, scale, zero_point, axis=None):
    """What ONNX Runtime's QuantizeLinear makes of an array."""
    attributes = {} if axis is None else {"axis": axis}
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, array.shape)],
        [
            helper.make_tensor_value_info(
                "y", helper.np_dtype_to_tensor_dtype(zero_point.dtype), None
            )
        ],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero_point, "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return Session(from_proto(model), optimize=False).run({"x": array})["y"]


@settings(max_examples=60, deadline=None)
@given(weights, st.data())
def test_weights_are_what_quantize_linear_makes_of_them(weight, data):
    axis = data.draw(st.sampled_from([None, *range(weight.ndim)]))
    got = quantize_weight(weight, axis, FULL_RANGE, 0.0)
    zero = np.zeros(got.scale.shape, np.int8)
    assert np.array_equal(got.integers, quantize_linear(weight, got.scale, zero, axis))
    assert got.integers.dtype == np.int8
    assert np.abs(got.integers.astype(int)).max() <= FULL_RANGE


@settings(max_examples=60, deadline=None)
@given(weights, st.data())
def test_every_channel_uses_its_whole_range(weight, data):
    axis = data.draw(st.integers(0, weight.ndim - 1))
    limit = data.draw(st.sampled_from([FULL_RANGE, REDUCED_RANGE]))
    got = quantize_weight(weight, axis, limit, 0.0)
    assert got.scale.shape == (weight.shape[axis],)
    for channel in range(weight.shape[axis]):
        real = np.take(weight, channel, axis).astype(np.float64)
        integers = np.take(got.integers, channel, axis).astype(np.float64)
        scale = float(got.scale[channel])
        if np.abs(real).max() > limit * SMALLEST_SCALE:
            assert np.abs(integers).max() == limit
        assert np.abs(integers * scale - real).max() <= scale * 0.5 * (1 + 1e-5)


def test_two_reduced_weights_fit_sixteen_bits():
    assert 2 * 255 * REDUCED_RANGE < 2**15 <= 2 * 255 * FULL_RANGE


def test_a_channel_of_zeros_has_a_scale_at_which_its_bias_is_precise():
    weight = np.zeros((2, 3), np.float32)
    bias = np.array([0.3, 0.0], np.float32)
    least = least_scale_for_bias(bias, 0.05)
    got = quantize_weight(weight, 0, FULL_RANGE, least)
    integer = quantize_bias(bias, 0.05, got.scale)
    assert np.all(got.scale > 0)
    assert abs(int(integer.integers[0])) <= LARGEST_BIAS * 1.001
    assert integer.integers[0] * float(integer.scale[0]) == pytest.approx(0.3, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    npst.arrays(np.float32, 4, elements=floats),
    npst.arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32)),
    st.floats(2.0**-20, 1e3, width=32),
)
def test_biases_are_rounded_exactly_and_fit(bias, weight, input_scale):
    scale = quantize_weight(weight, 0, FULL_RANGE, least_scale_for_bias(bias, input_scale)).scale
    got = quantize_bias(bias, input_scale, scale)
    assert np.array_equal(got.scale, np.float32(input_scale) * scale)
    exact = [round(float(b) / float(s)) for b, s in zip(bias, got.scale, strict=True)]
    assert got.integers.tolist() == exact
    assert np.abs(got.integers.astype(np.int64)).max() <= LARGEST_BIAS * 1.001


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(floats, floats).map(sorted),
    st.sampled_from([np.dtype(np.uint8), np.dtype(np.int8)]),
)
def test_activation_parameters_cover_the_range_and_zero(ends, dtype):
    affine = QuantParams.covering(ValueRange(*ends), dtype)
    limits = np.iinfo(dtype)
    assert limits.min <= affine.zero_point <= limits.max
    low = (limits.min - affine.zero_point) * affine.scale
    high = (limits.max - affine.zero_point) * affine.scale
    slack = affine.scale * 0.51
    assert low - slack <= min(ends[0], 0) <= low + slack or ends == [0, 0]
    assert high - slack <= max(ends[1], 0) <= high + slack or affine.scale in (1.0, SMALLEST_SCALE)
    values = np.array([*ends, 0.0], np.float32)
    expected = quantize_linear(
        values, np.asarray(affine.scale, np.float32), np.asarray(affine.zero_point, dtype)
    )
    assert np.array_equal(affine.quantize(values), expected)


@pytest.mark.parametrize(
    ("range_", "bounds", "redundant"),
    [
        (ValueRange(0.0, 5.0), ValueRange(0.0, np.inf), True),
        (ValueRange(0.0, 6.0), ValueRange(0.0, 6.0), True),
        (ValueRange(0.0, 0.0), ValueRange(0.0, np.inf), True),
        (ValueRange(-1.0, 1.0), ValueRange(-1.0, 1.0), True),
        (ValueRange(-3.0, 5.0), ValueRange(0.0, np.inf), False),
        (ValueRange(0.0, 6.0), ValueRange(0.0, 5.0), False),
        (ValueRange(-2.0, -1.0), ValueRange(-2.0, -1.0), False),
    ],
)
def test_which_clips_quantization_makes_redundant(range_, bounds, redundant):
    affine = QuantParams.covering(range_, np.dtype(np.uint8))
    assert affine.makes_redundant(bounds) is redundant
    values = np.linspace(-10, 10, 2001, dtype=np.float32)
    same = np.array_equal(
        affine.quantize(values), affine.quantize(np.clip(values, bounds.low, bounds.high))
    )
    assert same is redundant


def test_an_output_that_is_always_zero_says_nothing_of_noise():
    """Beside one that says how much there is."""
    text = (
        'model <ir_version = 8, opset = ["" = 17]>\n'
        + """graph g (%x: float[4]) -> (%y: float[4], %z: float[4]) {
      const %zero: float[] = 0
      const %factor: float[] = FACTOR
      %y = Mul(%x, %factor)
      %z = Mul(%x, %zero)
    }"""
    )
    run = {"x": np.float32([1, -2, 3, -4])}
    original, other = (parse_model(text.replace("FACTOR", factor)) for factor in ("1", "1.5"))
    assert Noise(original, [run])(other) == pytest.approx(0.25)
    assert Noise(original, [{"x": np.zeros(4, np.float32)}])(other) == 0
