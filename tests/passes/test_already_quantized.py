"""Models that are quantized already: kept, or quantized anew from what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from secateur.backends.tvm.graph.expand import expand_quantized
from secateur.cli import main
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load, save, to_proto
from secateur.ir.reference import Session
from secateur.ir.verify import verify
from secateur.passes.base import Context
from secateur.passes.quantize import Quantize, QuantizeDynamic, QuantizeStatic, RestoreFloat
from secateur.passes.quantize.restore import is_integer
from tests.passes.test_equalization import node, sqnr
from tests.passes.test_quantize_accurate import IMAGES, network
from tests.passes.test_quantize_integer import build, random


def output(model: Model, feed: Any = IMAGES, **options: Any) -> Any:
    return Session(model, **options).run({"x": feed})["y"]


def quantized(pass_: Any, model: Model | None = None) -> Model:
    model = network() if model is None else model
    pass_.run(model, Context({"x": IMAGES}))
    return model


def restored(model: Model) -> Model:
    RestoreFloat().run(model)
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    return model


WAYS = [
    QuantizeStatic(),
    QuantizeStatic(per_channel=False, activation="int8"),
    QuantizeDynamic(),
    QuantizeDynamic(per_channel=False),
    Quantize(),
]


@pytest.mark.parametrize("pass_", WAYS, ids=repr)
def test_the_float_model_is_without_rounding_of_activations(pass_: Any) -> None:
    """Weights keep their rounding, so it is nearer the original than the quantized model."""
    want = output(network())
    before = sqnr(want, output(quantized(pass_)))
    model = restored(quantized(pass_))
    assert not any(is_integer(n) for n in model.graph.nodes)
    assert sqnr(want, output(model)) > before - 1


@pytest.mark.parametrize("pass_", WAYS, ids=repr)
def test_quantized_models_are_kept(pass_: Any) -> None:
    model = quantized(pass_)
    before = to_proto(model).SerializeToString(deterministic=True)
    scheme = "dynamic" if isinstance(pass_, QuantizeDynamic) else "int8"
    result = Quantize(scheme=scheme).run(model, Context({"x": IMAGES}))
    assert not result.changed
    assert not result.statistics["quantized"]
    reason = "it is quantized already (--requantize begins with the floats that it stands for)"
    assert reason in {n.reason for n in result.notes}
    assert to_proto(model).SerializeToString(deterministic=True) == before


def test_the_rest_of_a_model_that_is_quantized_in_part() -> None:
    """What the integers on both sides have in common is rounded once."""
    model = quantized(QuantizeStatic(ignore=("i", "y")))
    result = Quantize(accuracy="fast").run(model, Context({"x": IMAGES}))
    assert result.statistics["quantized"]["Conv"] == 1
    assert result.statistics["quantized"]["Gemm"] == 1
    verify(model)
    want, whole = output(network()), output(quantized(QuantizeStatic()))
    assert sqnr(want, output(model)) > sqnr(want, whole) - 3
    again = 0
    for second in (n for n in model.graph.nodes if n.op_type == "QuantizeLinear"):
        first = second.inputs[0].producer
        if first is not None and first.op_type == "DequantizeLinear":
            again += 1
            for position in (1, 2):
                ends = [n.inputs[position].const.numpy().item() for n in (first, second)]
                assert ends[0] == ends[1]
    assert again


def test_again_in_another_scheme() -> None:
    model = quantized(QuantizeStatic())
    result = Quantize(scheme="float16", requantize=True).run(model, Context({"x": IMAGES}))
    assert "was quantized before" in result.statistics["warnings"][0]
    assert not any(is_integer(n) for n in model.graph.nodes)
    assert sqnr(output(network()), output(model)) > 25
    model = quantized(QuantizeStatic(reduce_range=True, per_channel=False))
    Quantize(scheme="int8-signed", requantize=True).run(model, Context({"x": IMAGES}))
    zeros = {n.inputs[2].dtype for n in model.graph.nodes if n.op_type == "QuantizeLinear"}
    assert zeros == {TensorProto.INT8}
    assert sqnr(output(network()), output(model)) > 18
    result = Quantize(accuracy="fast", requantize=True).run(network(), Context({"x": IMAGES}))
    assert not result.statistics["warnings"]


def test_saturation_stays_where_it_does_a_relus_work() -> None:
    model = restored(quantized(QuantizeStatic()))
    float_model = network()
    before = {n.label: n for n in float_model.graph.nodes}
    assert before["r"].op_type == "Relu"
    found = [n for n in model.graph.nodes if n.op_type == "Clip"]
    bounds = [n.inputs[1].const.numpy().item() for n in found]
    assert 0.0 in bounds


def qoperator(folder: Path) -> Model:
    """As ONNX Runtime's quantizer writes it in its own operators."""
    from onnxruntime import quantization

    nodes = [
        node("Conv", "x a b", "f", pads=[1, 1, 1, 1]),
        node("Relu", "f", "g"),
        node("MaxPool", "g", "h", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "h c", "i"),
        node("Sigmoid", "i", "j"),
        node("Mul", "i j", "k"),
        node("GlobalAveragePool", "k", "l"),
        node("Flatten", "l", "m"),
        node("Gemm", "m d e", "y", transB=1),
    ]
    constants = {
        "a": random(1, 6, 3, 3, 3),
        "b": random(2, 6),
        "c": random(3, 5, 6, 1, 1),
        "d": random(4, 4, 5),
        "e": random(5, 4),
    }
    save(from_proto(build(nodes, constants, [1, 3, 8, 8])), folder / "float.onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(IMAGES[:16])

        def get_next(self) -> Any:
            sample = next(self.left, None)
            return None if sample is None else {"x": sample[None]}

    quantization.quantize_static(
        folder / "float.onnx",
        folder / "q.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QOperator,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return load(folder / "q.onnx")


def test_operators_that_hold_their_scales(tmp_path: Path) -> None:
    model = qoperator(tmp_path)
    assert any(n.op_type == "QLinearConv" for n in model.graph.nodes)
    want = output(load(tmp_path / "float.onnx"), IMAGES[:1])
    before = output(model, IMAGES[:1])
    expand_quantized(model)
    np.testing.assert_allclose(output(model, IMAGES[:1]), before, atol=0.05)
    restored(model)
    assert not any(is_integer(n) for n in model.graph.nodes)
    assert sqnr(want, output(model, IMAGES[:1])) > 25


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qoperator(tmp_path)
    np.savez("c.npz", x=IMAGES[:32])

    def run(*words: str) -> str:
        result = CliRunner().invoke(main, ["quantize", "q.onnx", *words])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    text = run("-o", "k.onnx", "--calibration", "c.npz")
    assert "Nothing was quantized" in text
    assert "--requantize" in text
    text = run("-o", "r.onnx", "--calibration", "c.npz", "--requantize", "--accuracy", "fast")
    assert "Warning: quantized: the model was quantized before" in text
    kinds = {n.op_type for n in load(tmp_path / "r.onnx").graph.nodes}
    assert "QLinearConv" not in kinds
    assert "QuantizeLinear" in kinds


def test_weights_in_blocks_and_along_axes() -> None:
    integers = np.arange(24, dtype=np.int8).reshape(4, 6)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0, block_size=2),
        helper.make_node("DequantizeLinear", ["q", "t"], ["v"], axis=-1),
        helper.make_node("Add", ["w", "v"], ["u"]),
        helper.make_node("MatMul", ["x", "u"], ["y"]),
    ]
    constants = {
        "q": integers,
        "s": random(1, 2, 6),
        "z": np.arange(12, dtype=np.int8).reshape(2, 6),
        "t": random(2, 6),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = from_proto(proto)
    feed = random(3, 5, 4)
    want = output(model, feed)
    np.testing.assert_allclose(output(restored(model), feed), want, rtol=1e-5, atol=1e-5)


def test_what_has_no_float_form_stays_and_is_named() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "d"),
        helper.make_node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    ]
    model = from_proto(build(nodes, {}, ["N", 4]))
    result = RestoreFloat().run(model)
    assert [n.node for n in result.notes] == ["d"]
    assert not result.changed


def test_operators_that_hold_their_scales_are_spelled_out_on_request(tmp_path: Path) -> None:
    qoperator(tmp_path)
    words = ["simplify", str(tmp_path / "q.onnx"), "-o", str(tmp_path / "d.onnx"), "--qdq"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    kinds = [n.op_type for n in load(tmp_path / "d.onnx").graph.nodes]
    assert not any(kind.startswith("QLinear") for kind in kinds)
    assert kinds.count("Conv") == 2
    before, after = (output(load(tmp_path / f"{n}.onnx"), IMAGES[:1]) for n in "qd")
    np.testing.assert_allclose(after, before, atol=0.05)
    assert CliRunner().invoke(main, [*words, "--check"]).exit_code == 2


@pytest.mark.parametrize("zero", [None, 3, [2, 0, 5, 1]])
@pytest.mark.parametrize("op_type", ["MatMulInteger", "ConvInteger"])
def test_weights_of_integer_products_are_less_their_zero_points(op_type: str, zero: Any) -> None:
    """One for all, or one for each column or output channel."""
    shape = (3, 4) if op_type == "MatMulInteger" else (4, 3, 2, 2)
    integers = np.random.default_rng(0).integers(0, 9, shape, np.uint8)
    constants = {"w": integers}
    if zero is not None:
        constants["wz"] = np.array(zero, np.uint8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node(op_type, ["q", "w", "z", *(["wz"] if zero is not None else [])], ["p"]),
        helper.make_node("Cast", ["p"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    given = [2, 3] if op_type == "MatMulInteger" else [2, 3, 4, 4]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = restored(from_proto(proto))
    (product,) = (n for n in model.graph.nodes if n.op_type in ("MatMul", "Conv"))
    weights = product.inputs[1]
    assert weights is not None
    assert weights.const is not None
    point = np.array(0 if zero is None else zero, np.float32)
    if op_type == "ConvInteger" and point.ndim:
        point = point.reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(weights.const.numpy(), integers - point)
