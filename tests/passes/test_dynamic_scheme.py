"""Dynamic quantization: weights as integers, activations' scales at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.verify import verify
from secateur.passes.base import Context
from secateur.passes.quantize import Quantize, QuantizeDynamic
from tests.passes.test_equalization import node, sqnr
from tests.passes.test_quantize_accurate import IMAGES, network
from tests.passes.test_quantize_integer import build, random


def quantized(model: Model, **options: Any) -> Any:
    result = QuantizeDynamic(**options).run(model)
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    return result


def kinds(model: Model) -> list[str]:
    return [n.op_type for n in model.graph.nodes]


@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"reduce_range": True}])
def test_products_and_convolutions_without_samples(options: Any) -> None:
    model = network()
    result = quantized(model, **options)
    assert result.statistics["quantized"] == {"Conv": 3, "Gemm": 1, "MatMul": 1}
    found = kinds(model)
    assert (found.count("ConvInteger"), found.count("MatMulInteger")) == (3, 2)
    assert "Conv" not in found
    want, have = (Session(m).run({"x": IMAGES})["y"] for m in (network(), model))
    assert sqnr(want, have) > 18
    weights = [v.const.numpy() for v in model.graph.initializers.values() if v.const is not None]
    limit = 64 if options.get("reduce_range") else 127
    signed = [w for w in weights if w.dtype == np.int8]
    assert max(np.abs(w.astype(int)).max() for w in signed) == limit
    unsigned = [w.astype(int) - 128 for w in weights if w.dtype == np.uint8 and w.ndim]
    assert max(np.abs(w).max() for w in unsigned) == limit


WEIGHTS = np.float32([[1.0, -2.0], [0.5, 4.0], [-0.25, 1.0]])
ALONE: dict[str, tuple[Any, Any]] = {
    "MatMul": (node("MatMul", "x w", "y"), WEIGHTS),
    "Gemm": (node("Gemm", "x w", "y", alpha=0.5), WEIGHTS),
    "Gemm of transposed": (node("Gemm", "x w", "y", transB=1, alpha=0.5), WEIGHTS.T),
    "Conv": (node("Conv", "x w", "y"), WEIGHTS.T[:, :, None]),
}
"""Nodes that compute three numbers times two columns, and their weights."""


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_what_is_computed_by_hand(name: str, per_channel: bool, reduced: bool) -> None:
    """One row, scales by hand: uint8 over the range with zero, int8 weights, by column or not."""
    alone, weights = ALONE[name]
    inner = [1] if name == "Conv" else []
    model = from_proto(build([alone], {"w": np.ascontiguousarray(weights)}, ["N", 3, *inner]))
    quantized(model, per_channel=per_channel, reduce_range=reduced)
    x = np.float32([[-1.0, 0.5, 2.0]])
    scale = np.float32(3.0 / 255)
    zero = np.rint(1.0 / scale)
    integers = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    columns = WEIGHTS * np.float32(0.5) if "Gemm" in name else WEIGHTS
    steps = np.abs(columns).max(axis=0 if per_channel else None) / (64 if reduced else 127)
    expected = (integers @ np.rint(columns / steps)) * scale * steps
    found = Session(model).run({"x": x.reshape(1, 3, *inner)})["y"]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-6)
    sizes = {v.const.size for v in model.graph.initializers.values() if v.const is not None}
    assert (2 in sizes) == per_channel


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_biases_of_convolutions_of_every_rank(rank: int) -> None:
    """A bias that matters: large beside the products, and different for each channel."""
    spatial = [5] * (rank - 2)
    nodes = [node("Conv", "x w b", "y")]
    constants = {"w": random(1, 4, 3, *[2] * (rank - 2)), "b": np.float32([-40, 20, 0, 60])}
    proto = build(nodes, constants, ["N", 3, *spatial])
    model = from_proto(proto)
    result = quantized(model)
    assert result.statistics["quantized"] == {"Conv": 1}
    x = random(2, 2, 3, *spatial)
    want, have = (Session(m).run({"x": x})["y"] for m in (from_proto(proto), model))
    assert sqnr(want, have) > 40


def test_an_activation_is_quantized_once() -> None:
    nodes = [node("MatMul", "x a", "f"), node("MatMul", "x b", "g"), node("Add", "f g", "y")]
    constants = {"a": random(1, 8, 5), "b": random(2, 8, 5)}
    model = from_proto(build(nodes, constants, ["N", 8]))
    quantized(model)
    assert kinds(model).count("DynamicQuantizeLinear") == 1


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("transposed", [0, 1])
def test_factors_of_gemm(transposed: int, beta: float) -> None:
    weights = random(1, 5, 8) if transposed else random(1, 8, 5)
    last = node("Gemm", "x w c", "y", transB=transposed, alpha=2.0, beta=beta)
    proto = build([last], {"w": weights, "c": random(2, 5)}, ["N", 8])
    model = from_proto(proto)
    quantized(model)
    feed = {"x": random(3, 7, 8)}
    want, have = (Session(m).run(feed)["y"] for m in (from_proto(proto), model))
    assert sqnr(want, have) > 30


def test_what_stays_float_says_why() -> None:
    nodes = [
        node("MatMul", "x a", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("MatMul", "f t", "g"),
        node("Relu", "g", "h"),
        node("Softmax", "h", "y"),
    ]
    model = from_proto(build(nodes, {"a": random(1, 8, 5)}, ["N", 6, 8]))
    result = quantized(model)
    reasons = {n.node: n.reason for n in result.notes}
    assert "both of its operands are computed" in reasons["g"]
    assert set(reasons) == {"g"}  # nobody expects others to change
    assert result.statistics["quantized"] == {"MatMul": 1}


def lstm(steps: Any, **attributes: Any) -> onnx.ModelProto:
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    constants = {
        "w": random(1, directions, 24, 5) / 2,
        "r": random(2, directions, 24, 6) / 2,
        "b": random(3, directions, 48) / 2,
    }
    graph = helper.make_graph(
        [
            helper.make_node(
                "LSTM", ["x", "w", "r", "b"], ["y", "h"], "l", hidden_size=6, **attributes
            )
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, 2, 5])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "h")],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("attributes", [{}, {"direction": "bidirectional"}])
def test_recurrent_layers(attributes: Any, per_channel: bool) -> None:
    model = from_proto(lstm(7, **attributes))
    result = QuantizeDynamic(per_channel=per_channel).run(model)
    verify(model)
    assert result.statistics["quantized"] == {"LSTM": 1}
    assert {v.dtype for v in model.graph.initializers.values()} >= {TensorProto.INT8}
    feed = {"x": random(4, 7, 2, 5)}
    want, have = (Session(m).run(feed) for m in (from_proto(lstm(7, **attributes)), model))
    for name in ("y", "h"):
        assert sqnr(want[name], have[name]) > 25


def test_older_models_are_converted() -> None:
    model = from_proto(
        build([node("MatMul", "x w", "y")], {"w": random(1, 3, 4)}, ["N", 3], opset=9)
    )
    result = quantized(model)
    assert result.statistics["opset"] == model.opset == 13


def test_a_limit_of_what_may_be_lost() -> None:
    weights = random(2, 6, 6, 1, 1)
    weights[:, 0] = 400.0
    scale = np.ones((1, 6, 1, 1), np.float32)
    scale[0, 0] = 1 / 4000.0
    nodes = [
        node("Conv", "x a", "f"),
        node("Mul", "f m", "h"),
        node("Conv", "h b", "i"),
        node("GlobalAveragePool", "i", "l"),
        node("Flatten", "l", "y"),
    ]
    constants = {"a": random(1, 6, 3, 1, 1), "m": scale, "b": weights}
    proto = build(nodes, constants, ["N", 3, 8, 8], opset=11)
    model = from_proto(proto)
    result = Quantize(scheme="dynamic", max_drop=0.02).run(model, Context({"x": IMAGES}))
    found = result.statistics["max_drop"]
    assert (found["left"], found["of"]) == (1, 2)
    assert found["lost"] <= 0.02 < found["without"]
    assert [n.node for n in result.notes if "loses too much" in n.reason] == ["i"]
