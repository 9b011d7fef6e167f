"""ConvTranspose as a convolution of all phases, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ConvolutionOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds, quantize, reference
from .test_networks import SETTINGS, TARGETS, run


@st.composite
def upsamplings(draw: Any) -> onnx.ModelProto:
    """A convolution, a transposed one, pooling with padding: all in the blocked layout."""
    rank = draw(st.sampled_from((1, 2, 2, 2)))
    batch, channels = draw(st.integers(1, 2)), draw(st.sampled_from((1, 3, 8, 20)))
    sizes = [draw(st.integers(2, 7)) for _ in range(rank)]
    net = Net(draw, draw(st.integers(0, 9)), batch)
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    strides = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)]
    group = draw(st.sampled_from([g for g in (1, 1, 1, 2, 4) if channels % g == 0]))
    outputs = draw(st.sampled_from((1, 2, 5, 18)))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    mode = draw(st.sampled_from(("pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")))
    if mode == "pads":
        limits = [(k - 1) * d // 2 for k, d in zip(kernel, dilations, strict=True)] * 2
        attributes["pads"] = [draw(st.integers(0, limit)) for limit in limits]
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    else:
        attributes["auto_pad"] = mode
    inputs = ["x", net.weight(channels, outputs, *kernel)]
    if draw(st.booleans()):
        inputs.append(net.weight(outputs * group))
    value = net.node("ConvTranspose", *inputs, **attributes)
    if draw(st.booleans()):
        value = net.node("Relu", value)
    if draw(st.booleans()):
        value = net.node("MaxPool", value, kernel_shape=[2] * rank, pads=[1] * 2 * rank)
    return net.model({"x": (batch, channels, *sizes)}, [value])


@settings(SETTINGS, max_examples=8)
@given(upsamplings(), st.sampled_from(TARGETS))
def test_transposed_convolutions_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    inputs = feeds(model, 1)
    expected = reference(model, inputs)
    found = run(model, target, tmp_path, inputs)
    for name, array in expected.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("target", TARGETS[-1:])
@pytest.mark.parametrize("strides", [(2, 2), (3, 1), (4, 5)])
def test_infinities_stay_within_their_windows(
    tmp_path: Path, target: str, strides: tuple[int, int]
) -> None:
    """Kernels that strides don't divide, or that leave gaps, read no pixel beside their taps."""
    net = Net(None, 3)
    value = net.node("ConvTranspose", "x", net.weight(9, 11, 3, 4), strides=list(strides))
    model = net.model({"x": (1, 9, 6, 7)}, [value])
    inputs = feeds(model)
    inputs["x"][0, 4, 3, 2] = np.inf
    expected = next(iter(reference(model, inputs).values()))
    found = next(iter(run(model, target, tmp_path, inputs).values()))
    assert 0 < np.isfinite(expected).sum() < expected.size
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


@pytest.mark.parametrize("target", TARGETS)
def test_quantized_ones_multiply_integers(tmp_path: Path, target: str) -> None:
    """ONNX Runtime multiplies floats here, so that a rounding may fall to the other side."""
    net = Net(None, 2)
    value = net.node("Conv", "x", net.weight(20, 5, 3, 3), net.weight(20))
    value = net.node("ConvTranspose", value, net.weight(20, 9, 4, 4), strides=[2, 2], pads=[1] * 4)
    model = quantize(net.model({"x": (1, 5, 8, 9)}, [net.node("Relu", value)]))
    graph = from_proto(model)
    infer_shapes(graph)
    convolutions = [
        op for op in lower(graph, parse_target(target)).operations if isinstance(op, ConvolutionOp)
    ]
    assert [op.input.dtype for op in convolutions] == ["uint8", "uint8"]
    inputs = feeds(model)
    expected = next(iter(reference(model, inputs).values()))
    found = next(iter(run(model, target, tmp_path, inputs).values()))
    step = float(np.abs(expected).max()) / 200
    assert np.abs(found - expected).max() <= 2 * step
    assert (found != expected).mean() < 0.02


@pytest.mark.parametrize("outputs", [1, 3, 8])
def test_phases_of_few_channels_share_a_block(outputs: int) -> None:
    """Side by side, and put in order after; from 8 on each phase is stored in its place."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,16,7,7] x) => (float[1,{outputs},14,14] y)
    <float[16,{outputs},3,3] w, float[{outputs}] b> {{
      y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (x, w, b)
    }}"""
    proto = onnx.parser.parse_model(text)
    for name, shape in (("w", (16, outputs, 3, 3)), ("b", (outputs,))):
        array = np.ones(shape, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = from_proto(proto)
    infer_shapes(model)
    plan = lower(model, parse_target("x86-64-v3"))
    (found,) = [op for op in plan.operations if isinstance(op, ConvolutionOp)]
    assert (found.upsampling is None) == (outputs < 8)
    assert {op.label for op in plan.operations} == {"y"}
    assert set(plan.operators.values()) == {"ConvTranspose"}
