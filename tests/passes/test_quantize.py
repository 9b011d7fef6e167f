"""The pass on models as they come: constants, names, opsets, subgraphs, bad samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load, save, to_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.base import Context, PassResult
from secateur.passes.quantize import QuantizeStatic
from tests.passes.quantization_error import check
from tests.passes.test_quantize_integer import build, random

IMAGES = random(0, 12, 3, 6, 6)


def run(
    proto: onnx.ModelProto, calibration: Any = None, **options: Any
) -> tuple[Model, PassResult]:
    model = from_proto(proto)
    feeds = {"x": IMAGES} if calibration is None else calibration
    result = QuantizeStatic(**options).run(model, Context(feeds))
    onnx.checker.check_model(to_proto(model), full_check=True)
    return model, result


def conv(*inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", list(inputs), [output], name=f"conv_{output}", **attributes)


def kinds(model: Model) -> list[str]:
    return [n.op_type for n in model.graph.nodes]


def reasons(result: PassResult) -> dict[str, str]:
    return {note.op_type: note.reason for note in result.notes}


W = random(1, 4, 3, 3, 3)


# --- constants ---------------------------------------------------------------------


def test_weights_come_through_constant_nodes_and_identity() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w0"], value=numpy_helper.from_array(W)),
        helper.make_node("Identity", ["w0"], ["w"]),
        helper.make_node("Identity", ["b0"], ["b"]),
        conv("x", "w", "b"),
    ]
    model, result = run(build(nodes, {"b0": random(2, 4)}, ["N", 3, 6, 6]))
    assert result.statistics["quantized"] == {"Conv": 1}
    assert "Constant" not in kinds(model)
    assert "Identity" not in kinds(model)
    assert "b0" not in model.graph.initializers


def test_shared_weights_stay_shared() -> None:
    nodes = [conv("x", "w", output="a"), conv("x", "w", output="b", pads=[0] * 4)]
    nodes.append(helper.make_node("Add", ["a", "b"], ["y"]))
    model, _ = run(build(nodes, {"w": W}, ["N", 3, 6, 6]))
    assert sum(v.const.dtype == TensorProto.INT8 for v in model.graph.initializers.values()) == 1


def test_a_weight_that_is_also_read_as_float_remains() -> None:
    nodes = [
        conv("x", "w", output="a"),
        helper.make_node("ReduceMean", ["w"], ["m"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Add", ["a", "m"], ["y"]),
    ]
    proto = build(nodes, {"w": W}, ["N", 3, 6, 6])
    model, _ = run(proto)
    assert model.graph.initializers["w"].const.dtype == TensorProto.FLOAT
    check(from_proto(proto), model, {"x": IMAGES})


def test_one_bias_shared_by_layers_of_different_scale() -> None:
    nodes = [conv("x", "w", "b", output="a"), conv("a", "v", "b")]
    constants = {"w": W, "v": random(3, 4, 4, 3, 3) * 100, "b": random(2, 4)}
    proto = build(nodes, constants, ["N", 3, 6, 6])
    model, _ = run(proto)
    check(from_proto(proto), model, {"x": IMAGES})
    assert "b" not in model.graph.initializers


def test_overridable_weights_are_left_alone_with_the_reason() -> None:
    proto = build([conv("x", "w")], {"w": W}, ["N", 3, 6, 6])
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    model, result = run(proto)
    assert not result.changed
    assert kinds(model) == ["Conv"]
    assert "override" in reasons(result)["Conv"]


def test_before_ir_version_4_initializers_are_inputs_but_constants() -> None:
    proto = build([conv("x", "w")], {"w": W}, ["N", 3, 6, 6], opset=9)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    proto.ir_version = 3
    model, result = run(proto)
    assert result.statistics["quantized"] == {"Conv": 1}
    assert result.statistics["opset"] == 13
    assert [v.name for v in model.graph.inputs] == ["x"]


def test_computed_weights_and_biases_stay_float_with_the_reason() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0, 2, 3], keepdims=0),
        conv("x", "w", "m"),
    ]
    _, result = run(build(nodes, {"w": random(1, 3, 3, 3, 3)}, ["N", 3, 6, 6]))
    assert reasons(result)["Conv"] == "its bias is not a constant"


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_constants_that_are_not_finite_are_an_error(which: str) -> None:
    weight, bias = W.copy(), random(2, 4)
    (weight if which == "weight" else bias).flat[2] = np.nan
    proto = build([conv("x", "w", "b")], {"w": weight, "b": bias}, ["N", 3, 6, 6])
    model = from_proto(proto)
    with pytest.raises(SecateurError, match="NaN"):
        QuantizeStatic().run(model, Context({"x": IMAGES}))


def test_constants_of_zeros_and_constant_activations() -> None:
    nodes = [conv("x", "w", "b", output="a"), helper.make_node("Relu", ["a"], ["r"])]
    nodes.append(conv("r", "v"))
    weight = W.copy()
    weight[1] = 0
    constants = {"w": weight, "b": np.array([0, 0.25, -9e3, 0], np.float32), "v": W[:, :1] * 0}
    constants["v"] = np.zeros((2, 4, 1, 1), np.float32)
    proto = build(nodes, constants, ["N", 3, 6, 6])
    model, _ = run(proto)
    check(from_proto(proto), model, {"x": IMAGES})
    zeros = {"x": np.zeros_like(IMAGES)}
    model, _ = run(proto, zeros)
    check(from_proto(proto), model, zeros)


def test_a_bias_next_to_tiny_weights_stays_precise() -> None:
    weight = W * np.array([1, 0, 1e-12, 1], np.float32)[:, None, None, None]
    bias = np.array([0, 0.25, 5.0, 0], np.float32)
    model, _ = run(build([conv("x", "w", "b")], {"w": weight, "b": bias}, ["N", 3, 6, 6]))
    scale = model.graph.initializers["b1.s"].const.numpy()
    integers = model.graph.initializers["b1.q"].const.numpy()
    assert np.allclose(scale * integers, bias, rtol=1e-6)
    quantum = model.graph.initializers["a2.s"].const.numpy()
    result = Session(model, optimize=False).run({"x": IMAGES})["y"]
    assert np.abs(result[:, 1] - 0.25).max() <= quantum
    assert np.abs(result[:, 2] - 5.0).max() <= quantum


# --- what is placed where ------------------------------------------------------------


def test_a_clip_narrower_than_the_integers_stays() -> None:
    nodes = [
        conv("x", "w", output="a"),
        helper.make_node("Clip", ["a", "low", "high"], ["c"]),
        conv("c", "v"),
    ]
    constants = {"w": W, "low": np.float32(-9e3), "high": np.float32(-0.5)}
    constants["v"] = random(4, 2, 4, 1, 1)
    proto = build(nodes, constants, ["N", 3, 6, 6])
    model, result = run(proto)
    assert result.statistics["absorbed"] == {}
    assert "Clip" in kinds(model)
    check(from_proto(proto), model, {"x": IMAGES})


def test_a_relu_whose_input_is_read_elsewhere_stays() -> None:
    nodes = [
        conv("x", "w", output="a"),
        helper.make_node("Relu", ["a"], ["r"]),
        conv("r", "v", output="b"),
        helper.make_node("Add", ["a", "b"], ["s"]),
        conv("s", "v"),
    ]
    proto = build(nodes, {"w": W, "v": random(4, 4, 4, 1, 1)}, ["N", 3, 6, 6])
    model, result = run(proto)
    assert "Relu" in kinds(model)
    assert result.statistics["absorbed"] == {}
    check(from_proto(proto), model, {"x": IMAGES})


def test_a_relu_is_absorbed_through_movement() -> None:
    """Convolution, pooling, Relu: all before the Relu keeps to its range as well."""
    nodes = [
        conv("x", "w", output="a"),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("Relu", ["t"], ["r"]),
        conv("r", "v"),
    ]
    proto = build(nodes, {"w": W, "v": random(4, 2, 4, 1, 1)}, ["N", 3, 6, 6])
    model, result = run(proto)
    assert result.statistics["absorbed"] == {"Relu": 1}
    assert "Relu" not in kinds(model)
    scales = [n.inputs[1] for n in model.graph.nodes if n.op_type == "QuantizeLinear"]
    assert len(set(scales)) == 3
    proto.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    largest = Session(from_proto(proto)).run({"x": IMAGES})["r"].max()
    assert scales[1].const.numpy() == pytest.approx(largest / 255)
    del proto.graph.output[1:]
    check(from_proto(proto), model, {"x": IMAGES})


def test_the_rim_stays_float() -> None:
    """Preprocessing, and additions and concatenations that only lead to outputs."""
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["p"]),
        conv("p", "w", output="a"),
        conv("p", "w", output="b"),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    _, result = run(build(nodes, {"w": W, "c": np.float32(0.5)}, ["N", 3, 6, 6]))
    assert result.statistics["quantized"] == {"Conv": 2}
    assert reasons(result) == {
        "Mul": "no integer operator computes its input",
        "Concat": "no integer operator reads its result",
    }


def test_movement_keeps_parameters_and_reaches_back_to_the_input() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Slice", ["t", "s", "e"], ["u"]),
        conv("u", "w"),
    ]
    constants = {"s": np.array([0, 0, 1]), "e": np.array([9, 9, 9]), "w": W}
    model, _ = run(build(nodes, constants, ["N", 6, 6, 3]), {"x": random(0, 9, 6, 6, 3)})
    first = model.graph.nodes[0]
    assert first.op_type == "QuantizeLinear"
    assert first.inputs[0] is model.graph.inputs[0]
    pairs = [n for n in model.graph.nodes if n.op_type == "QuantizeLinear"][:3]
    assert len({n.inputs[1] for n in pairs}) == 1


def test_float_readers_of_a_float_value_are_not_disturbed() -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        conv("t", "w", output="a"),
        helper.make_node("Exp", ["t"], ["e"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Conv", ["p", "v"], ["q"]),
        helper.make_node("Mul", ["e", "q"], ["y"]),
    ]
    proto = build(nodes, {"w": W, "v": random(4, 3, 4, 1, 1)}, ["N", 3, 6, 6])
    model, _ = run(proto)
    exponential = next(n for n in model.graph.nodes if n.op_type == "Exp")
    assert exponential.inputs[0].name == "t"


@pytest.mark.parametrize(("fill", "quantized"), [(0.0, 1), (2.0, 0)])
def test_padding_with_something_else_than_zero_stays_float(fill: float, quantized: int) -> None:
    nodes = [
        conv("x", "w", output="a"),
        helper.make_node("Pad", ["a", "pads", "fill"], ["p"]),
        conv("p", "v"),
    ]
    constants = {"w": W, "v": random(4, 2, 4, 1, 1), "fill": np.float32(fill)}
    constants["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    proto = build(nodes, constants, ["N", 3, 6, 6])
    model, result = run(proto)
    assert result.statistics["quantized"].get("Pad", 0) == quantized
    check(from_proto(proto), model, {"x": IMAGES})


def test_embeddings_become_integers() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, 3])],
        [
            numpy_helper.from_array(random(1, 50, 8), "table"),
            numpy_helper.from_array(random(2, 8, 3), "w"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tokens = np.random.default_rng(0).integers(0, 50, (6, 5))
    model, result = run(proto, {"x": tokens})
    assert result.statistics["quantized"] == {"Gather": 1, "MatMul": 1}
    assert "table" not in model.graph.initializers
    expected = Session(from_proto(proto)).run({"x": tokens})["y"]
    assert np.abs(Session(model).run({"x": tokens})["y"] - expected).max() < 0.2


def capturing(value: str) -> list[onnx.NodeProto]:
    """An If whose branches read `value`, on a condition computed from it."""

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        node = helper.make_node(op_type, [value], [name], name=name)
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    branches = {"then_branch": branch("p", "Neg"), "else_branch": branch("q", "Abs")}
    return [
        helper.make_node("ReduceMax", [value], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="if", **branches),
    ]


def test_subgraphs_read_their_captures_and_are_reported() -> None:
    nodes = [conv("x", "w", output="a"), *capturing("a")]
    proto = build(nodes, {"w": W, "zero": np.float32(0)}, ["N", 3, 6, 6])
    model, result = run(proto)
    check(from_proto(proto), model, {"x": IMAGES})
    (reason,) = (n.reason for n in result.notes if n.op_type == "Neg")
    assert reason == "ONNX Runtime has no integer kernel for this operator"


def test_what_is_moved_before_a_capture_is_quantized() -> None:
    """Else ONNX Runtime's optimizer aborts the process."""
    nodes = [
        conv("x", "w", output="a"),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Transpose", ["f"], ["t"]),
        *capturing("t"),
    ]
    proto = build(nodes, {"w": W, "zero": np.float32(0)}, ["N", 3, 6, 6])
    model, result = run(proto)
    assert result.statistics["quantized"] == {"Conv": 1, "Flatten": 1, "Transpose": 1}
    check(from_proto(proto), model, {"x": IMAGES})


def test_outputs_keep_names_and_types() -> None:
    """Also one that is read further, one straight from an integer operator, and an input."""
    nodes = [
        conv("x", "w", output="mid"),
        helper.make_node("Relu", ["mid"], ["relu"]),
        conv("relu", "v", output="last"),
    ]
    proto = build(nodes, {"w": W, "v": random(4, 2, 4, 1, 1)}, ["N", 3, 6, 6])
    del proto.graph.output[:]
    for name in ("relu", "last", "mid"):
        shape = ["N", 2 if name == "last" else 4, 4, 4]
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    model, _ = run(proto)
    assert [o.name for o in to_proto(model).graph.output] == ["relu", "last", "mid"]
    assert all(v.dtype == TensorProto.FLOAT for v in model.graph.outputs)
    check(from_proto(proto), model, {"x": IMAGES})


def test_an_output_behind_an_absorbed_relu() -> None:
    nodes = [conv("x", "w", output="a"), helper.make_node("Relu", ["a"], ["y"])]
    proto = build(nodes, {"w": W}, ["N", 3, 6, 6])
    model, result = run(proto)
    assert result.statistics["absorbed"] == {"Relu": 1}
    assert [o.name for o in to_proto(model).graph.output] == ["y"]
    check(from_proto(proto), model, {"x": IMAGES})


def test_an_output_keeps_the_shape_that_only_it_declares() -> None:
    """Behind a Reshape to a computed shape, inference knows no rank."""
    nodes = [
        helper.make_node("Compress", ["s", "all"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        conv("r", "w", output="a"),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    constants = {"w": W, "s": np.array([1, 3, 6, 6]), "all": np.ones(4, bool)}
    proto = build(nodes, constants, [1, 108])
    del proto.graph.output[:]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, None, None])
    proto.graph.output.append(output)
    model, result = run(proto, {"x": IMAGES[:4].reshape(4, 108)})
    assert result.statistics["absorbed"] == {"Relu": 1}
    assert model.graph.outputs[0].shape == (1, 4, None, None)


def test_ignored_nodes_stay_float() -> None:
    nodes = [conv("x", "w", output="a"), conv("a", "v")]
    proto = build(nodes, {"w": W, "v": random(4, 2, 4, 1, 1)}, ["N", 3, 6, 6])
    _, result = run(proto, ignore=("conv_a",))
    assert result.statistics["quantized"] == {"Conv": 1}
    assert [(n.node, n.reason) for n in result.notes] == [("conv_a", "kept float as asked")]
    with pytest.raises(SecateurError, match="'conv_z' matches no node and no weight"):
        run(proto, ignore=("conv_z",))


def test_other_domains_types_and_operators_are_reported() -> None:
    nodes = [
        conv("x", "w", output="a"),
        helper.make_node("Softmax", ["a"], ["s"], axis=1),
        helper.make_node("Cast", ["s"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Gelu", ["a"], ["g"], domain="com.microsoft"),
        helper.make_node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "g"], ["y"]),
    ]
    proto = build(nodes, {"w": W}, ["N", 3, 6, 6], domain="com.microsoft")
    model = from_proto(proto)
    result = QuantizeStatic().run(model, Context({"x": IMAGES}))
    assert result.statistics["quantized"] == {"Conv": 1}
    assert result.statistics["skipped"] == {"Add": 1, "Cast": 2, "Gelu": 1, "Softmax": 1}
    assert "domain 'com.microsoft'" in reasons(result)["Gelu"]


def test_weights_are_stored_once_and_small() -> None:
    """Also with names as long as converters from TensorFlow give."""
    long = "model/conv2d/Conv2D;StatefulPartitionedCall/" * 3
    nodes, constants, previous = [], {}, "x"
    for index in range(6):
        constants[f"{long}w{index}"] = random(index, 32, 3 if index == 0 else 32, 3, 3)
        constants[f"{long}b{index}"] = random(index, 32)
        inputs = (previous, f"{long}w{index}", f"{long}b{index}")
        nodes.append(conv(*inputs, output=f"{long}{index}", pads=[1, 1, 1, 1]))
        previous = f"{long}r{index}" if index < 5 else "y"
        nodes.append(helper.make_node("Relu", [f"{long}{index}"], [previous]))
    proto = build(nodes, constants, [1, 3, 6, 6])
    del proto.graph.value_info[:]
    model, _ = run(proto)
    assert to_proto(model).ByteSize() < 0.3 * proto.ByteSize()


def test_external_weights(tmp_path: Any) -> None:
    proto = build([conv("x", "w")], {"w": random(1, 64, 3, 3, 3)}, ["N", 3, 6, 6])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = load(tmp_path / "m.onnx")
    QuantizeStatic().run(model, Context({"x": IMAGES}))
    save(model, tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_size < 5000
    assert not (tmp_path / "q.onnx.data").exists()
    Session(load(tmp_path / "q.onnx")).run({"x": IMAGES})


def test_nothing_to_quantize_says_why() -> None:
    proto = build([helper.make_node("Exp", ["x"], ["y"])], {}, ["N", 4])
    _, result = run(proto, {"x": random(0, 5, 4)})
    assert not result.changed
    assert reasons(result)["Exp"] == "ONNX Runtime has no integer kernel for this operator"


# --- operator sets -------------------------------------------------------------------


def test_an_old_opset_is_raised_and_metadata_kept() -> None:
    nodes = [
        conv("x", "w", output="a"),
        helper.make_node("Clip", ["a"], ["c"], min=0.0, max=6.0),
        helper.make_node("Upsample", ["c"], ["u"], scales=[1.0, 1.0, 3.0, 2.0], mode="nearest"),
        helper.make_node("Squeeze", ["u"], ["y"], axes=[0]),
    ]
    proto = build(nodes, {"w": W}, [1, 3, 6, 6], opset=7)
    proto.metadata_props.add(key="k", value="v")
    proto.doc_string = "doc"
    model, result = run(proto)
    written = to_proto(model)
    assert result.statistics["opset"] == model.opset == 13
    assert written.ir_version == 8
    assert (written.metadata_props[0].key, written.doc_string) == ("k", "doc")
    check(from_proto(proto), model, {"x": IMAGES[:1]})


@pytest.mark.parametrize("opset", [9, 10])
def test_resizing_means_the_same_in_the_new_opset(opset: int) -> None:
    op_type = "Upsample" if opset == 9 else "Resize"
    nodes = [
        helper.make_node(op_type, ["x", "scales"], ["u"], mode="linear"),
        conv("u", "w"),
    ]
    constants = {"w": W, "scales": np.array([1, 1, 3, 2.5], np.float32)}
    proto = build(nodes, constants, ["N", 3, 6, 6], opset=opset)
    model, _ = run(proto)
    check(from_proto(proto), model, {"x": IMAGES})


def test_an_opset_that_cannot_be_raised_is_an_error() -> None:
    proto = build([helper.make_node("Scan", ["", "x"], ["y"], body=_scan(), num_scan_inputs=1)],
                  {}, [1, 3, 4], opset=8)  # fmt: skip
    model = from_proto(proto)
    with pytest.raises(SecateurError, match="needs opset 13"):
        QuantizeStatic().run(model, Context({"x": random(0, 4, 3, 4)}))


def _scan() -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Neg", ["i"], ["o"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [4])],
    )


@pytest.mark.parametrize(
    ("zero_point", "body"),
    [
        ("", "%y = Conv(%d, %w_d)"),
        ("", "%a = Conv(%d, %w_d)\n%b = Conv(%d, %w_d)\n%y = Max(%a, %b)"),
        (", %zeros", "%a = Conv(%d, %w_d)\n%b = Conv(%d, %w_d)\n%y = Max(%a, %b)"),
    ],
)
def test_sessions_take_weights_per_channel(zero_point: str, body: str) -> None:
    """Without zero points, and where several nodes read them."""
    model = parse_model(
        f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[1, 1, 1, 1]) -> (%y: float[1, 3, 1, 1]) {{
  const %s: float[] = 0.5
  const %six: int8[] = 6
  const %zeros: int8[3] = [0, 0, 0]
  const %scales: float[3] = [0.5, 1.0, 2.0]
  const %w: int8[3, 1, 1, 1] = [[[[127]]], [[[-127]]], [[[100]]]]
  %q = QuantizeLinear(%x, %s, %six)
  %d = DequantizeLinear(%q, %s, %six)
  %w_d = DequantizeLinear(%w, %scales{zero_point}) {{axis = 0}}
  {body}
}}"""
    )
    for optimize in (False, True):
        found = Session(model, optimize=optimize).run({"x": np.ones((1, 1, 1, 1), np.float32)})
        np.testing.assert_array_equal(found["y"].ravel(), [63.5, -127.0, 200.0])
