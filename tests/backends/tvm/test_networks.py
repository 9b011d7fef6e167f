"""Generated convolutional networks against ONNX Runtime, in float32 and in 8 bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.emission import work
from secateur.backends.tvm.kernels.convolution import direct
from secateur.backends.tvm.kernels.convolution.tiles import Convolution
from secateur.backends.tvm.targets import can_run_here, parse_target
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds, quantize, reference

TARGETS = [
    t for t in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "znver4") if can_run_here(parse_target(t))
]
SETTINGS = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)


def built_convolutions(monkeypatch: pytest.MonkeyPatch) -> list[Convolution]:
    """The list to which each convolution is added that is built directly from now on."""
    built: list[Convolution] = []
    build = direct.build

    def record(conv: Convolution, *rest: Any) -> Any:
        built.append(conv)
        return build(conv, *rest)

    monkeypatch.setattr(direct, "build", record)
    return built


def run(
    model: onnx.ModelProto,
    target: str,
    folder: Path,
    inputs: dict[str, Any],
    threads: int = 1,
    copies: float = math.inf,
) -> dict[str, Any]:
    path = folder / "model.so"
    compile_model(from_proto(model), parse_target(target), path, copies=copies)
    return Runtime(path, threads).run(inputs)


@st.composite
def networks(draw: Any) -> onnx.ModelProto:
    """A few convolutional layers with branches, ending in an image or in class scores."""
    batch = draw(st.integers(1, 2))
    rank = draw(st.sampled_from((3, 4, 4)))
    channels = draw(st.sampled_from((1, 3, 4, 7, 16, 20, 33)))
    sizes = [draw(st.integers(5, 12)) for _ in range(rank - 2)]
    net = Net(draw, draw(st.integers(0, 99)), batch)
    value, shape = "x", [batch, channels, *sizes]
    earlier: list[tuple[str, list[int]]] = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(
            st.sampled_from(
                (
                    "conv",
                    "conv",
                    "conv",
                    "depthwise",
                    "max",
                    "average",
                    "add",
                    "concat",
                    "mul",
                    "act",
                )
            )
        )
        earlier.append((value, list(shape)))
        if kind in ("conv", "depthwise"):
            value, shape = _convolution(draw, net, value, shape, kind == "depthwise")
        elif kind in ("max", "average"):
            value, shape = _pooling(draw, net, value, shape, kind)
        elif kind == "act":
            value = net.node("Relu", value)
        elif kind == "concat":
            others = [v for v, s in earlier if s[0] == shape[0] and s[2:] == shape[2:]]
            other = draw(st.sampled_from(others))
            extra = next(s[1] for v, s in earlier if v == other)
            value = net.node("Concat", value, other, axis=1)
            shape = [shape[0], shape[1] + extra, *shape[2:]]
        else:
            others = [v for v, s in earlier if s == shape]
            op = "Add" if kind == "add" else "Mul"
            value = net.node(op, value, draw(st.sampled_from(others)))
    if value == "x":
        value = net.node("Relu", value)
    if draw(st.booleans()):
        value = net.node("GlobalAveragePool", value)
        value = net.node("Flatten", value)
        classes = draw(st.sampled_from((1, 5, 16, 30)))
        value = net.node(
            "Gemm", value, net.weight(classes, shape[1]), net.weight(classes), transB=1
        )
    return net.model({"x": (batch, channels, *sizes)}, [value])


def _convolution(
    draw: Any, net: Net, value: str, shape: list[int], depthwise: bool
) -> tuple[str, list[int]]:
    rank = len(shape) - 2
    channels = shape[1]
    divisors = [d for d in (1, 2, 3, 4, 5, 7, 11) if channels % d == 0]
    group = channels if depthwise else draw(st.sampled_from((1, 1, 1, *divisors)))
    out = channels if depthwise else group * draw(st.integers(1, max(1, 40 // group)))
    kernel = [draw(st.integers(1, min(3, s))) for s in shape[2:]]
    stride = [draw(st.integers(1, 2)) for _ in range(rank)]
    dilation = [
        draw(st.integers(1, 2)) if k * 2 - 1 <= s else 1
        for k, s in zip(kernel, shape[2:], strict=True)
    ]
    attributes: dict[str, Any] = {"strides": stride, "group": group, "dilations": dilation}
    mode = draw(st.sampled_from(("pads", "pads", "VALID", "SAME_UPPER", "SAME_LOWER")))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if mode == "pads":
        pads = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
        attributes["pads"] = pads
        sizes = [
            (s + pads[i] + pads[i + rank] - extents[i]) // stride[i] + 1
            for i, s in enumerate(shape[2:])
        ]
    else:
        attributes["auto_pad"] = mode
        if mode != "VALID":
            attributes["dilations"] = [1] * rank  # ONNX Runtime rejects others
        sizes = [
            (s - extents[i]) // stride[i] + 1 if mode == "VALID" else -(-s // stride[i])
            for i, s in enumerate(shape[2:])
        ]
    inputs = [value, net.weight(out, channels // group, *kernel)]
    if draw(st.booleans()):
        inputs.append(net.weight(out))
    result = net.node("Conv", *inputs, **attributes)
    if draw(st.booleans()):
        result = net.node("Relu", result)
    return result, [shape[0], out, *sizes]


def _pooling(draw: Any, net: Net, value: str, shape: list[int], kind: str) -> tuple[str, list[int]]:
    rank = len(shape) - 2
    kernel = [draw(st.integers(1, min(3, s))) for s in shape[2:]]
    stride = [draw(st.integers(1, 2)) for _ in range(rank)]
    pads = [draw(st.integers(0, k - 1)) for k in kernel] * 2
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": pads}
    if kind == "average":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    op = "MaxPool" if kind == "max" else "AveragePool"
    sizes = [(s + 2 * pads[i] - kernel[i]) // stride[i] + 1 for i, s in enumerate(shape[2:])]
    return net.node(op, value, **attributes), [*shape[:2], *sizes]


@SETTINGS
@given(networks(), st.sampled_from(TARGETS))
def test_float_networks_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    inputs = feeds(model, 1)
    expected = reference(model, inputs)
    found = run(model, target, tmp_path, inputs)
    for name, array in expected.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=2e-5 * scale)


@settings(SETTINGS, max_examples=12)
@given(networks(), st.sampled_from(TARGETS))
def test_quantized_networks_are_bit_identical(
    tmp_path: Path, model: onnx.ModelProto, target: str
) -> None:
    model = quantize(model)
    inputs = feeds(model, 1)
    expected = reference(model, inputs)
    found = run(model, target, tmp_path, inputs)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("size", [*(pytest.param(n, marks=pytest.mark.slow) for n in (14, 18)), 27])
@pytest.mark.parametrize(
    ("target", "threads", "copies"),
    [
        pytest.param(*case, marks=[] if (number + kind) % 4 == 0 else [pytest.mark.slow])
        for number, target in enumerate(TARGETS)
        for kind, way in enumerate(((1, math.inf), (2, math.inf), (1, 0.1), (2, 0.1)))
        for case in [(target, *way)]
    ],
)
def test_winograd_convolutions_match(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    target: str,
    threads: int,
    copies: float,
) -> None:
    """3x3 convolutions with enough channels and tiles, padded unevenly, then added to; by copies
    of their weights and without."""
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)
    net = Net(None, size)
    first = net.node("Conv", "x", net.weight(40, 36, 3, 3), net.weight(40), pads=[1, 1, 1, 1])
    first = net.node("Relu", first)
    second = net.node("Conv", first, net.weight(40, 40, 3, 3), pads=[0, 1, 2, 1])
    model = net.model({"x": (2, 36, size, size)}, [net.node("Add", second, first)])
    inputs = feeds(model)
    expected = next(iter(reference(model, inputs).values()))
    found = next(iter(run(model, target, tmp_path, inputs, threads, copies).values()))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()))


def test_quantized_networks_are_bit_identical_with_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)
    net = Net(None, 5)
    value = net.node("Conv", "x", net.weight(48, 3, 3, 3), strides=[2, 2])
    value = net.node("Relu", value)
    value = net.node("Conv", value, net.weight(48, 1, 3, 3), group=48, pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(20, 48, 1, 1), net.weight(20))
    model = quantize(net.model({"x": (1, 3, 21, 21)}, [value]))
    inputs = feeds(model, 1)
    found = run(model, TARGETS[-1], tmp_path, inputs, threads=2)
    for name, array in reference(model, inputs).items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("width", [3, 5, 6])
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("target", TARGETS[-1:])
def test_blocks_shorter_than_a_vector(
    tmp_path: Path, target: str, channels: int, width: int
) -> None:
    """Pixels that are rounded together may be no whole number of vectors."""
    net = Net(None, 0)
    weight = net.weight(channels, 1, 3, 3)
    value = net.node("Conv", "x", weight, group=channels, pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(3, channels, 1, 1))  # which reads bytes
    model = quantize(net.model({"x": (1, channels, 4, width)}, [value]))
    inputs = feeds(model)
    for name, array in reference(model, inputs).items():
        np.testing.assert_array_equal(run(model, target, tmp_path, inputs)[name], array)
