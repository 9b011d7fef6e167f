"""Convolutions of bytes by Winograd's scheme: every sum is exact."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.emission.choices import Choices
from secateur.backends.tvm.kernels.convolution import transforms
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ConvolutionOp
from secateur.backends.tvm.targets import can_run_here, parse_target
from secateur.ir.onnx_io import from_proto

TARGET = "x86-64-v3"
needs_target = pytest.mark.skipif(
    not can_run_here(parse_target(TARGET)), reason="the CPU lacks AVX2"
)


def convolution(
    weights: Any, size: tuple[int, int], dtype: type[np.generic], zero: int, groups: int = 1
) -> onnx.ModelProto:
    """A convolution of two images, whose results are its sums."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    channels = weights.shape[1] * groups
    node = helper.make_node(
        "ConvInteger", ["x", "w", "z"], ["y"], pads=[1, 1, 1, 1], group=groups, kernel_shape=[3, 3]
    )
    graph = helper.make_graph(
        [node],
        "convolution",
        [helper.make_tensor_value_info("x", kind, (2, channels, *size))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (2, len(weights), *size))],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(dtype(zero), "z")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def sums(x: Any, weights: Any, zero: int, groups: int = 1) -> Any:
    """The convolution by its definition."""
    height, width = x.shape[2:]
    x = np.pad(x.astype(np.int64) - zero, ((0, 0), (0, 0), (1, 1), (1, 1)))
    parts = []
    for own, w in zip(
        np.split(x, groups, 1), np.split(weights.astype(np.int64), groups), strict=True
    ):
        windows = (own[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
        taps = w.reshape(*w.shape[:2], 9).transpose(2, 0, 1)
        parts.append(
            sum(np.einsum("oc,nchw->nohw", t, v) for t, v in zip(taps, windows, strict=True))
        )
    return np.concatenate(parts, 1)


def winograd(model: onnx.ModelProto) -> list[bool]:
    """Of each convolution whether it takes the form."""
    target = parse_target(TARGET)
    plan = lower(from_proto(model), target)
    choices = Choices(target)
    return [choices.by_winograd(op) for op in plan.operations if isinstance(op, ConvolutionOp)]


def draw(random: np.random.Generator, dtype: type[np.generic], shape: tuple[int, ...]) -> Any:
    """The extremes of a type in runs along the channels: sums of a tile pass 32 bits."""
    ends = np.iinfo(dtype)
    drawn = random.choice(np.array([ends.min, ends.max], dtype), shape)
    return np.sort(drawn, axis=1)


FORMS = [(17, 33, 1, (16, 4)), (100, 24, 1, (13, 18)), (64, 64, 2, (7, 9))]


@needs_target
@pytest.mark.parametrize(
    ("dtype", "copies", "form"),
    [
        pytest.param(dtype, copies, form, marks=pytest.mark.slow if form != FORMS[0] else ())
        for form in FORMS
        for dtype, copies in itertools.product((np.uint8, np.int8), (0.01, math.inf))
    ],
)
def test_sums_are_exact(
    tmp_path: Path,
    dtype: type[np.generic],
    copies: float,
    form: tuple[int, int, int, tuple[int, int]],
) -> None:
    channels, outputs, groups, size = form
    random = np.random.default_rng(channels)
    weights = draw(random, np.int8, (outputs, channels // groups, 3, 3))
    weights[0] = random.integers(-20, 20, weights[0].shape)
    model = convolution(weights, size, dtype, 3, groups)
    assert winograd(model) == [True]
    x = draw(random, dtype, (2, channels, *size))
    x[1] = random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, x[1].shape)
    compile_model(from_proto(model), parse_target(TARGET), tmp_path / "m.so", copies=copies)
    found = Runtime(tmp_path / "m.so").run({"x": x})["y"]
    np.testing.assert_array_equal(found, sums(x, weights, 3, groups))


@needs_target
def test_sums_that_may_not_fit_take_another_form(tmp_path: Path) -> None:
    """64 times a sum of 128 channels' extremes passes 32 bits."""
    random = np.random.default_rng(0)
    weights = np.full((16, 128, 3, 3), -128, np.int8)
    model = convolution(weights, (12, 12), np.uint8, 0)
    assert winograd(model) == [False]
    x = np.full((2, 128, 12, 12), 255, np.uint8)
    x[1] = random.integers(0, 256, x[1].shape)
    compile_model(from_proto(model), parse_target(TARGET), tmp_path / "m.so")
    found = Runtime(tmp_path / "m.so").run({"x": x})["y"]
    np.testing.assert_array_equal(found, sums(x, weights, 0))


def test_what_multiplies_bytes_faster_does() -> None:
    expected = {
        "znver4": False,
        "x86-64-v3": True,
        "x86-64-v2": False,
        "aarch64-cortex-a72": True,
        "aarch64-cortex-a76": False,
        "armv7-a": True,
        "riscv64-v": False,
    }
    for name, multiplies in expected.items():
        assert transforms.multiplies("uint8", parse_target(name)) == multiplies, name
    assert transforms.multiplies("float32", parse_target("znver4"))
    assert not transforms.multiplies("int16", parse_target("x86-64-v3"))


def test_limits_of_weights() -> None:
    wide = np.full((1, 1, 3, 3), 700)
    assert not transforms.is_exact("uint8", wide)  # 49 times as much passes 16 bits
    assert transforms.is_exact("float32", wide)
    most = np.full((1, 2**25 // 128 // 127 // 9, 3, 3), 127)
    assert transforms.is_exact("int8", most)
    assert not transforms.is_exact("uint8", most)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_weights_that_are_exact(sign: int) -> None:
    """Transformed ones fit 16 bits, and the sums of every output 31 but for what is shifted out."""
    weights = np.zeros((2, 40, 3, 3), np.int64)
    for size, fits in ((668, True), (669, False)):
        weights[1, 0, 0, 0] = sign * size
        assert transforms.is_exact("uint8", weights) == fits
    for source, most in (("int8", 2**25 // 128 - 1), ("uint8", (2**25 - 1) // 255)):
        sums = np.full(360 * 2, 0)
        sums[360:] = most // 360
        sums[360 : 360 + most % 360] += 1
        weights = sign * sums.reshape(2, 40, 3, 3)
        if abs(weights).max() <= 668:
            assert transforms.is_exact(source, weights)
            weights[1, 0, 0, 0] += sign
            assert not transforms.is_exact(source, weights)
        assert transforms.is_exact(source, weights[:, :0])


@pytest.mark.parametrize(
    ("low", "high", "taps"), [(-128, 127, "int8"), (-129, 0, "int16"), (0, 128, "int16")]
)
def test_types_of_weights_that_a_run_transforms(low: int, high: int, taps: str) -> None:
    weights = np.full((1, 1, 3, 3), low)
    weights[0, 0, 1, 1] = high
    x86, arm = parse_target(TARGET), parse_target("aarch64")
    for target, together in ((x86, 2), (arm, 1)):
        found = transforms.transforms("int8", target, weights)
        assert (found.source, found.taps, found.element) == ("int8", taps, "int16")
        assert found.together == together
        assert transforms.transforms("uint8", target).taps == "int8"
    assert transforms.transforms("float32", x86, weights) is transforms.FLOATS


@pytest.mark.parametrize("by", [transforms.FLOATS, transforms.Integers("uint8")])
def test_transformations_fit_together(by: transforms.Floats) -> None:
    """Of one channel: what the matrices make of a tile is its convolution."""
    random = np.random.default_rng(0)
    tile, taps = random.integers(0, 256, (6, 6)), random.integers(-128, 128, (3, 3))
    outer, inner = np.array(by.output), np.array(transforms.INPUT)
    products = by.transform(taps[None, None]).reshape(6, 6) * (inner @ tile @ inner.T).astype(float)
    found = outer @ products @ outer.T
    if by.element == "int16":
        scale = np.array([24, 12, 6, 6])
        found = found / np.outer(scale, scale)
    expected = [[(tile[i : i + 3, j : j + 3] * taps).sum() for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-2)
