"""ONNX Runtime runs what was quantized on integers, and those are the right ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.declarations import check_declarations
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, save, to_proto
from secateur.ir.reference import Session
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic

FLOAT_PRODUCTS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def build(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any],
    input_shape: list[Any],
    opset: int = 17,
    domain: str | None = None,
) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain is not None:
        opsets.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def quantize(proto: onnx.ModelProto, feeds: dict[str, Any], **options: Any) -> Model:
    model = from_proto(proto)
    QuantizeStatic(**options).run(model, Context(feeds))
    onnx.checker.check_model(to_proto(model), full_check=True)
    return model


def optimized(model: Model, folder: Path) -> list[onnx.NodeProto]:
    """The nodes that ONNX Runtime executes."""
    path = folder / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    save(model, folder / "model.onnx")
    onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return list(onnx.load(path).graph.node)


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def between_convolutions(op_type: str, *extra: str, **attributes: Any) -> list[onnx.NodeProto]:
    """x -> Conv -> the operator -> Conv -> y"""
    return [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node(op_type, ["a", *extra], ["b"], **attributes),
        helper.make_node("Conv", ["b", "w2"], ["y"]),
    ]


CASES: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "relu": (between_convolutions("Relu"), "QLinearConv"),
    "clip": (between_convolutions("Clip", "zero", "six"), "QLinearConv"),
    "sigmoid": (between_convolutions("Sigmoid"), "QLinearSigmoid"),
    "leaky": (between_convolutions("LeakyRelu", alpha=0.1), "QLinearLeakyRelu"),
    "add": (between_convolutions("Add", "a"), "QLinearConv"),
    "add_constant": (between_convolutions("Add", "channel"), "QLinearAdd"),
    "mul_constant": (between_convolutions("Mul", "channel"), "QLinearMul"),
    "average": (between_convolutions("AveragePool", kernel_shape=[2, 2]), "QLinearAveragePool"),
    "global": (between_convolutions("GlobalAveragePool"), "QLinearGlobalAveragePool"),
    "max": (between_convolutions("MaxPool", kernel_shape=[2, 2]), "NhwcMaxPool"),
    "transpose": (between_convolutions("Transpose", perm=[0, 1, 3, 2]), "Transpose"),
    "slice": (between_convolutions("Slice", "starts", "ends"), "Slice"),
    "nearest": (between_convolutions("Resize", "", "twice", mode="nearest"), "Resize"),
    "gather": (between_convolutions("Gather", "indices", axis=2), "Gather"),
    "tile": (between_convolutions("Tile", "repeats"), "Tile"),
    "depthwise": (between_convolutions("Conv", "w3", group=6), "QLinearConv"),
}

CONSTANTS = {
    "w1": random(1, 6, 3, 3, 3),
    "b1": random(2, 6),
    "w2": random(3, 2, 6, 1, 1),
    "w3": random(4, 6, 1, 3, 3),
    "zero": np.float32(0),
    "six": np.float32(6),
    "channel": random(5, 6, 1, 1),
    "starts": np.array([0, 0, 1]),
    "ends": np.array([9, 9, 4]),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "indices": np.array([1, 0, 3]),
    "repeats": np.array([1, 1, 2, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_operator_between_convolutions(name: str, tmp_path: Path) -> None:
    nodes, kernel = CASES[name]
    used = {i for n in nodes for i in n.input}
    proto = build(nodes, {k: v for k, v in CONSTANTS.items() if k in used}, [1, 3, 8, 8])
    model = quantize(proto, {"x": random(0, 20, 3, 8, 8)})
    kinds = Counter(n.op_type for n in optimized(model, tmp_path))
    assert not FLOAT_PRODUCTS & set(kinds)
    assert kinds["QLinearConv"] >= 2
    assert kinds[kernel] >= 1
    if name != "add":  # ONNX Runtime does not match an operator that reads one value twice
        assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == 1


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 17, 19, 21])
@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_residual_network(opset: int, batch: Any, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w4"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "b"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Concat", ["e", "b"], ["f"], axis=1),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "w5", "b5"], ["i"], transB=1),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("MatMul", ["j", "w6"], ["y"]),
    ]
    constants = {
        **{k: CONSTANTS[k] for k in ("w1", "b1")},
        "w4": random(6, 6, 6, 3, 3),
        "w5": random(7, 5, 12),
        "b5": random(8, 5),
        "w6": random(9, 5, 4),
    }
    proto = build(nodes, constants, [batch, 3, 8, 8], opset)
    model = quantize(proto, {"x": random(0, 7, 3, 8, 8)})
    kinds = Counter(n.op_type for n in optimized(model, tmp_path))
    del kinds["Transpose"]  # ONNX Runtime's channels-last layout
    assert kinds == {
        "QuantizeLinear": 1,
        "QLinearConv": 2,
        "QLinearAdd": 1,
        "QLinearConcat": 1,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
        "MatMulIntegerToFloat": 1,
    }


@pytest.mark.parametrize("float_result", [False, True])
def test_optimized_and_as_written_agree_within_a_quantum(float_result: bool) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w"], ["c" if not float_result else "y"]),
    ]
    if not float_result:
        nodes.pop()
        nodes[-1].output[0] = "y"
    constants = {"w1": CONSTANTS["w1"], "b1": CONSTANTS["b1"], "w": random(1, 384, 3)}
    if not float_result:
        del constants["w"]
    x = random(0, 16, 3, 8, 8)
    model = quantize(build(nodes, constants, ["N", 3, 8, 8]), {"x": x})
    one, other = (
        Session(model).run({"x": x})["y"],
        Session(model, optimize=False).run({"x": x})["y"],
    )
    quantum = float(max(v.const.numpy().max() for n, v in scales(model).items() if n[0] == "a"))
    assert np.abs(one - other).max() <= (
        1e-5 * np.abs(other).max() if float_result else quantum * 1.001
    )


def scales(model: Model) -> dict[str, Any]:
    return {n: v for n, v in model.graph.initializers.items() if n.endswith(".s")}


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("per_channel", [True, False])
def test_convolution_is_exact_integer_arithmetic(groups: int, per_channel: bool) -> None:
    """Against 64-bit integer arithmetic and one rounding in the end."""
    weight, bias = random(1, 12, 6 // groups, 1, 1), random(2, 12)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], group=groups)]
    x = random(3, 40, 6, 4, 4)
    model = quantize(
        build(nodes, {"w": weight, "b": bias}, ["N", 6, 4, 4]), {"x": x}, per_channel=per_channel
    )
    constant = {n: v.const.numpy() for n, v in model.graph.initializers.items()}
    reduce = model.graph.nodes[0]
    xs, xz = (constant[v.name] for v in reduce.inputs[1:])
    q = np.clip(np.rint(x / xs) + xz, 0, 255).astype(np.int64) - int(xz)
    w = constant["w1.q"].astype(np.int64).reshape(groups, 12 // groups, 6 // groups)
    grouped = q.reshape(len(q), groups, 6 // groups, 16)
    acc = np.einsum("goi,ngis->ngos", w, grouped).reshape(len(q), 12, 4, 4)
    acc += constant["b1.q"].astype(np.int64)[:, None, None]
    exact = acc * (np.ones(12) * (float(xs) * constant["w1.s"].astype(np.float64)))[:, None, None]
    out = next(n for n in reversed(model.graph.nodes) if n.op_type == "QuantizeLinear")
    ys, yz = (constant[v.name] for v in out.inputs[1:])
    got = np.rint(Session(model).run({"x": x})["y"] / ys) + int(yz)
    position = exact / float(ys) + int(yz)
    assert np.abs(got - np.clip(position, 0, 255)).max() <= 0.5 + 1e-3
    assert len(np.unique(got)) > 100


@pytest.mark.parametrize("axis_size", [(2, 3), (3, 4)])
def test_transposed_convolution_has_a_scale_for_each_channel_of_a_group(
    axis_size: tuple[int, int],
) -> None:
    groups, per_group = axis_size
    channels = groups * 2
    weight = random(1, channels, per_group, 2, 2) * (10.0 ** -np.arange(per_group))[:, None, None]
    constants = {"w": weight.astype(np.float32), "b": random(2, groups * per_group)}
    nodes = [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=groups)]
    x = random(0, 30, channels, 5, 5)
    proto = build(nodes, constants, ["N", channels, 5, 5])
    model = quantize(proto, {"x": x})
    assert model.graph.initializers["w1.s"].const.shape == (per_group,)
    assert model.graph.initializers["b1.s"].const.shape == (groups * per_group,)
    scale = model.graph.initializers["w1.s"].const.numpy()
    assert np.allclose(scale, np.abs(constants["w"]).max(axis=(0, 2, 3)) / 127)
    tiled = model.graph.initializers["b1.s"].const.numpy().reshape(groups, per_group)
    assert np.allclose(tiled / tiled[0, 0], np.tile(scale / scale[0], (groups, 1)))
    expected, got = Session(from_proto(proto)).run({"x": x})["y"], Session(model).run({"x": x})["y"]
    assert np.abs(expected - got).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.5), (1.0, 0.0)])
def test_gemm_factors_are_folded(
    transposed: int, alpha: float, beta: float, tmp_path: Path
) -> None:
    weight, bias = random(1, 8, 5), random(2, 5)
    constants = {"w": weight.T.copy() if transposed else weight, "b": bias}
    attributes = {"transB": transposed, "alpha": alpha, "beta": beta}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)]
    model = quantize(build(nodes, constants, ["N", 8]), {"x": random(0, 64, 8)})
    assert [n.op_type for n in optimized(model, tmp_path)] == ["QuantizeLinear", "QGemm"]
    initializers = {n: v.const.numpy() for n, v in model.graph.initializers.items()}
    assert np.allclose(initializers["w1.s"], np.abs(alpha * weight).max(axis=0) / 127)
    integers = initializers["w1.q"].T if transposed else initializers["w1.q"]
    assert np.array_equal(integers, np.rint(np.float32(alpha) * weight / initializers["w1.s"]))
    if beta:
        rounded = initializers["b1.q"] * initializers["b1.s"]
        assert np.all(np.abs(rounded - beta * bias) <= initializers["b1.s"] * 0.501)
    else:
        assert "b1.q" not in initializers


def test_one_number_as_bias_is_declared_as_one_for_each_channel() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    constants = {"w": random(1, 8, 5), "b": random(2, 1)}
    model = quantize(build(nodes, constants, ["N", 8]), {"x": random(0, 64, 8)})
    bias = model.graph.nodes[-1].input(2)
    assert bias is not None
    assert bias.shape == (5,)
    check_declarations(model)


def test_products_of_two_activations(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "a"], ["y"]),
    ]
    model = quantize(build(nodes, {"w": random(1, 6, 6)}, ["N", 5, 6]), {"x": random(0, 9, 5, 6)})
    kinds = Counter(n.op_type for n in optimized(model, tmp_path))
    assert kinds["QLinearMatMul"] == 1
    assert kinds["MatMulIntegerToFloat"] == 2
    assert kinds["Softmax"] == 1
    assert not FLOAT_PRODUCTS & set(kinds)


def test_a_bias_added_behind_a_matmul_does_not_make_it_a_float_gemm(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    constants = {"w": random(1, 6, 4), "b": random(2, 4)}
    model = quantize(build(nodes, constants, ["N", 5, 6]), {"x": random(0, 9, 5, 6)})
    kinds = {n.op_type for n in optimized(model, tmp_path)}
    assert "QLinearMatMul" in kinds
    assert not FLOAT_PRODUCTS & kinds


def test_int8_activations_compute_the_same() -> None:
    nodes = between_convolutions("Relu")
    constants = {k: CONSTANTS[k] for k in ("w1", "b1", "w2")}
    proto, x = build(nodes, constants, [1, 3, 8, 8]), {"x": random(0, 20, 3, 8, 8)}
    unsigned, signed = quantize(proto, x), quantize(proto, x, activation="int8")
    types = {n.op_type: n for n in signed.graph.nodes}
    assert types["QuantizeLinear"].outputs[0].dtype == TensorProto.INT8
    one = {"x": x["x"][:1]}
    a, b = (Session(m, optimize=False).run(one)["y"] for m in (unsigned, signed))
    assert np.array_equal(a, b)


def test_reduced_weights_fit_64() -> None:
    nodes = between_convolutions("Relu")
    constants = {k: CONSTANTS[k] for k in ("w1", "b1", "w2")}
    proto, x = build(nodes, constants, [1, 3, 8, 8]), {"x": random(0, 20, 3, 8, 8)}
    model = quantize(proto, x, reduce_range=True)
    weights = [
        v.const.numpy() for n, v in model.graph.initializers.items() if n in ("w1.q", "w2.q")
    ]
    assert [int(np.abs(w.astype(int)).max()) for w in weights] == [64, 64]
