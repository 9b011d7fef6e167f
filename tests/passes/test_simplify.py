"""Simplification passes on small graphs: what goes, what stays, and why."""

from __future__ import annotations

import resource

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.passes.compare import deviation
from secateur.passes.manager import PassManager
from secateur.passes.simplify import (
    FoldBatchNormalization,
    FoldConstants,
    RemoveDeadNodes,
    RemoveNoOps,
    simplify_pipeline,
)
from tests.feeds import random_feeds

X = ["N", 4, 6, 6]
RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def build(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    shape: list[object] | None = None,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
    ir_version: int = 8,
) -> Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or X)
    values = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(
        nodes, "g", [x], [helper.make_value_info(n, onnx.TypeProto()) for n in outputs], values
    )
    if ir_version < 4:
        graph.input.extend(
            helper.make_tensor_value_info(v.name, v.data_type, v.dims) for v in values
        )
    for output in graph.output:
        output.ClearField("type")
    opsets = [helper.make_opsetid("", opset)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version))
    infer_shapes(model)
    return from_proto(to_proto(model))


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.graph.nodes]


def check(model: Model, tolerance: float = 1e-5) -> Model:
    """Simplify a copy, compare it with the original, and check that this was all."""
    feeds = random_feeds(model)
    expected = Session(model, optimize=False).run(feeds)
    copy = model.clone()
    PassManager(simplify_pipeline()).run(copy)
    onnx.checker.check_model(to_proto(copy), full_check=True)
    actual = Session(copy, optimize=False).run(feeds)
    assert list(actual) == list(expected)
    for name in expected:
        assert deviation(expected[name], actual[name]) <= tolerance
    again = copy.clone()
    PassManager(simplify_pipeline()).run(again)
    assert to_proto(again) == to_proto(copy)
    return copy


def normalization(source: str, target: str, **attributes: object) -> onnx.NodeProto:
    parameters = ["gamma", "beta", "mean", "variance"]
    return helper.make_node("BatchNormalization", [source, *parameters], [target], **attributes)


def statistics(channels: int) -> dict[str, np.ndarray]:
    return {
        "gamma": weights(channels),
        "beta": weights(channels),
        "mean": weights(channels),
        "variance": np.abs(weights(channels)) + 0.1,
    }


# --- BatchNormalization and arithmetic ---------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_normalization_after_convolution(groups: int, bias: bool) -> None:
    constants = {"w": weights(8, 4 // groups, 3, 3), **statistics(8)}
    if bias:
        constants["b"] = weights(8)
    inputs = ["x", "w", *(["b"] if bias else [])]
    conv = helper.make_node("Conv", inputs, ["c"], group=groups, pads=[1] * 4)
    assert operators(check(build([conv, normalization("c", "y")], constants))) == ["Conv"]


@pytest.mark.parametrize("groups", [1, 2])
def test_normalization_after_transposed_convolution(groups: int) -> None:
    constants = {"w": weights(4, 6 // groups, 3, 3), **statistics(6)}
    conv = helper.make_node("ConvTranspose", ["x", "w"], ["c"], group=groups, strides=[2, 2])
    model = build([conv, normalization("c", "y", epsilon=1e-3)], constants)
    assert operators(check(model)) == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1,), (3, 5), (3, 1)])
def test_normalization_after_gemm(transposed: int, bias: tuple[int, ...] | None) -> None:
    constants = {"w": weights(5, 4) if transposed else weights(4, 5), **statistics(5)}
    if bias is not None:
        constants["b"] = weights(*bias)
    inputs = ["x", "w", *(["b"] if bias is not None else [])]
    attributes = {"transB": transposed, "alpha": 0.5, "beta": 0.7}
    gemm = helper.make_node("Gemm", inputs, ["c"], **attributes)
    model = build([gemm, normalization("c", "y")], constants, shape=[3, 4])
    assert operators(check(model)) == ["Gemm"]


@pytest.mark.parametrize(
    ("op_type", "shape", "swapped"),
    [
        ("Mul", (), False),
        ("Mul", (8, 1, 1), False),
        ("Mul", (1, 8, 1, 1), True),
        ("Div", (1, 8, 1, 1), False),
        ("Add", (8, 1, 1), False),
        ("Add", (1,), True),
        ("Sub", (8, 1, 1), False),
        ("Sub", (8, 1, 1), True),
    ],
)
def test_arithmetic_after_convolution(op_type: str, shape: tuple[int, ...], swapped: bool) -> None:
    constants = {"w": weights(8, 4, 1, 1), "b": weights(8), "k": np.abs(weights(*shape)) + 0.5}
    inputs = ["k", "c"] if swapped else ["c", "k"]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node(op_type, inputs, ["y"]),
    ]
    assert operators(check(build(nodes, constants))) == ["Conv"]


@pytest.mark.parametrize(
    ("channels", "shape"),
    [(8, (6,)), (8, (6, 6)), (1, (5, 1, 1)), (8, (1, 1, 8, 1, 1)), (8, (2, 8, 1, 1))],
)
def test_arithmetic_that_is_not_per_channel_stays(channels: int, shape: tuple[int, ...]) -> None:
    constants = {"w": weights(channels, 4, 1, 1), "k": weights(*shape)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "k"], ["y"]),
    ]
    model = build(nodes, constants, shape=[2, 4, 6, 6])
    assert operators(check(model)) == ["Conv", "Mul"]


def test_normalization_before_convolution_without_padding() -> None:
    constants = {"w": weights(6, 2, 3, 3), **statistics(4)}
    nodes = [normalization("x", "n"), helper.make_node("Conv", ["n", "w"], ["y"], group=2)]
    assert operators(check(build(nodes, constants))) == ["Conv"]


def test_normalization_before_padding_convolution_stays() -> None:
    constants = {"w": weights(6, 4, 3, 3), **statistics(4)}
    nodes = [normalization("x", "n"), helper.make_node("Conv", ["n", "w"], ["y"], pads=[1] * 4)]
    model = build(nodes, constants)
    assert operators(check(model)) == ["BatchNormalization", "Conv"]
    (note,) = FoldBatchNormalization().run(model).notes
    assert "its input is a graph input" in str(note)


def test_scale_and_shift_join_the_normalization_before() -> None:
    constants = {**statistics(4), "s": weights(4, 1, 1), "t": weights(1, 4, 1, 1)}
    nodes = [
        normalization("x", "n"),
        helper.make_node("Mul", ["n", "s"], ["m"]),
        helper.make_node("Add", ["m", "t"], ["y"]),
    ]
    assert operators(check(build(nodes, constants))) == ["BatchNormalization"]


def test_weights_shared_with_another_convolution_keep_their_values() -> None:
    constants = {"w": weights(4, 4, 1, 1), **statistics(4)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        normalization("c", "n"),
        helper.make_node("Conv", ["n", "w"], ["y"]),
    ]
    assert operators(check(build(nodes, constants))) == ["Conv", "Conv"]


def test_result_that_is_read_elsewhere_is_not_folded_into() -> None:
    constants = {"w": weights(4, 4, 1, 1), **statistics(4)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        normalization("c", "n"),
        helper.make_node("Add", ["n", "c"], ["y"]),
    ]
    model = build(nodes, constants)
    assert operators(check(model)) == ["Conv", "BatchNormalization", "Add"]
    (note,) = FoldBatchNormalization().run(model).notes
    assert "is read elsewhere too" in str(note)


def test_normalization_in_training_mode_stays() -> None:
    constants = {"w": weights(4, 4, 1, 1), **statistics(4)}
    node = normalization("c", "y", training_mode=1)
    node.output.extend(["running_mean", "running_variance"])
    model = build([helper.make_node("Conv", ["x", "w"], ["c"]), node], constants)
    FoldBatchNormalization().run(model)
    assert operators(model) == ["Conv", "BatchNormalization"]


def test_scale_that_half_precision_cannot_hold_stays() -> None:
    constants = {"w": np.full((4, 4, 1, 1), 60000, np.float16), "k": np.float16(2000)}
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["c"]),
        helper.make_node("Mul", ["c", "k"], ["y"]),
    ]
    model = build(nodes, constants)
    FoldBatchNormalization().run(model)
    assert operators(model) == ["Cast", "Conv", "Mul"]


def test_weight_keeps_its_name() -> None:
    constants = {"layer.weight": weights(4, 4, 1, 1), **statistics(4)}
    nodes = [helper.make_node("Conv", ["x", "layer.weight"], ["c"]), normalization("c", "y")]
    model = check(build(nodes, constants))
    assert "layer.weight" in model.graph.initializers


# --- constants -----------------------------------------------------------------------------


def test_shape_chain_of_a_static_shape() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "axes": np.array([0]), "minus": np.array([-1])}
    model = check(build(nodes, constants, shape=[2, 4, 6, 6]))
    assert operators(model) == ["Reshape"]
    assert list(model.graph.initializers) == ["target"]


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomUniform"])
def test_random_results_are_not_folded(op_type: str) -> None:
    nodes = [
        helper.make_node(op_type, [], ["r"], shape=[4, 6, 6]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    model = build(nodes)
    PassManager(simplify_pipeline()).run(model)
    assert operators(model) == [op_type, "Add"]


def test_weights_of_a_quantized_model_stay_quantized() -> None:
    constants = {
        "w": RANDOM.integers(-9, 9, (8, 4, 1, 1)).astype(np.int8),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wf"]),
        helper.make_node("Conv", ["x", "wf"], ["y"]),
    ]
    assert operators(check(build(nodes, constants))) == ["DequantizeLinear", "Conv"]


def test_large_results_stay_and_are_noted() -> None:
    nodes = [
        helper.make_node("Expand", ["k", "shape"], ["big"], name="grow"),
        helper.make_node("ReduceMax", ["big"], ["one"], keepdims=0),
        helper.make_node("Mul", ["x", "one"], ["y"]),
    ]
    model = build(nodes, {"k": np.float32(3), "shape": np.array([1000, 1000])})
    result = FoldConstants(size_limit=10**6).run(model)
    assert operators(model) == ["Expand", "ReduceMax", "Mul"]
    (note,) = result.notes
    assert (
        str(note)
        == "grow (Expand): its constant result of 4000000 bytes is over the limit of 1000000"
    )
    FoldConstants().run(model)
    assert operators(model) == ["Mul"]


def test_results_no_larger_than_what_they_replace_are_folded() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    model = build(nodes, {"w": weights(300, 4)}, shape=[3, 4])
    FoldConstants(size_limit=10).run(model)
    assert operators(model) == ["MatMul"]


def test_outputs_that_are_constant_stay_results_of_nodes() -> None:
    nodes = [
        helper.make_node("Add", ["k", "k"], ["y"]),
        helper.make_node("Relu", ["x"], ["z"]),
    ]
    model = check(build(nodes, {"k": weights(3)}, outputs=("y", "z")))
    assert operators(model) == ["Constant", "Relu"]


def test_subgraphs_are_folded_too() -> None:
    info = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    inner = [
        helper.make_node("Add", ["k", "k"], ["twice"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Add", ["same", "twice"], ["o"]),
    ]
    body = helper.make_graph(inner, "body", [], [info])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "other", [], [info])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "half"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other),
    ]
    model = check(build(nodes, {"k": weights(6), "half": np.float32(0.5)}))
    branch = model.graph.nodes[-1].get("then_branch")
    assert [n.op_type for n in branch.nodes] == ["Add"]


def test_overridable_defaults_are_not_constant() -> None:
    nodes = [helper.make_node("Add", ["k", "k"], ["d"]), helper.make_node("Mul", ["x", "d"], ["y"])]
    model = build(nodes, {"k": weights(6)})
    model.graph.add_input(model.graph.initializers["k"])
    PassManager(simplify_pipeline()).run(model)
    assert operators(model) == ["Add", "Mul"]


def test_initializers_of_old_models_stop_being_inputs() -> None:
    nodes = [helper.make_node("Add", ["k", "k"], ["d"]), helper.make_node("Mul", ["x", "d"], ["y"])]
    model = check(build(nodes, {"k": weights(6)}, ir_version=3, opset=9))
    assert operators(model) == ["Mul"]
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.extra.ir_version == 4


# --- nothing to do -------------------------------------------------------------------------


def test_no_ops_vanish_and_the_output_keeps_its_name() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 1, 2, 3]),
        helper.make_node("Pad", ["d", "nothing"], ["e"]),
        helper.make_node("Slice", ["e", "zero", "end"], ["f"]),
        helper.make_node("Concat", ["f"], ["g"], axis=1),
        helper.make_node("Relu", ["g"], ["h"], name="relu"),
        helper.make_node("Reshape", ["h", "same"], ["i"]),
        helper.make_node("Expand", ["i", "ones"], ["j"]),
        helper.make_node("Mul", ["j", "one"], ["k"]),
        helper.make_node("Identity", ["k"], ["y"]),
    ]
    constants = {
        "nothing": np.zeros(8, np.int64),
        "zero": np.array([0]),
        "end": np.array([2**63 - 1]),
        "same": np.array([0, 4, 6, 6]),
        "ones": np.ones(4, np.int64),
        "one": np.float32(1),
    }
    model = check(build(nodes, constants))
    assert operators(model) == ["Relu"]
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert not model.graph.initializers


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Dropout", ["x", "", "yes"], ["y"]),
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE),
        helper.make_node("Slice", ["x", "end", "front", "axis", "back"], ["y"]),
        helper.make_node("Slice", ["x", "zero", "end", "axis", "two"], ["y"]),
        helper.make_node("Mul", ["x", "ones5"], ["y"]),
        helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2]),
        helper.make_node("ReduceMean", ["x"], ["y"], axes=[3]),
        helper.make_node("Tile", ["x", "twos"], ["y"]),
    ],
    ids=lambda n: n.op_type,
)
def test_what_does_something_stays(node: onnx.NodeProto) -> None:
    """An Identity from input to output stays too: both names are the model's interface."""
    constants = {
        "yes": np.array(True),
        "end": np.array([2**31 - 1]),
        "front": np.array([-(2**31)]),
        "axis": np.array([3]),
        "back": np.array([-1]),
        "two": np.array([2]),
        "zero": np.array([0]),
        "ones5": np.ones((1, 1, 1, 1, 1), np.float32),
        "twos": np.array([1, 1, 1, 2]),
    }
    model = build([node], {k: v for k, v in constants.items() if k in node.input})
    RemoveNoOps().run(model)
    assert operators(model) == [node.op_type]


def test_dead_nodes_and_unused_initializers_go() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Mul", ["a", "k"], ["b"]),
    ]
    model = build(nodes, {"k": weights(6), "unused": weights(2)})
    result = RemoveDeadNodes().run(model)
    assert result.changed
    assert result.statistics == {"nodes": 2, "initializers": 2, "functions": 0}
    assert operators(model) == ["Relu"]
    assert not RemoveDeadNodes().run(model).changed


@pytest.mark.parametrize("op_type", ["Cast", "Gather", "Add"])
def test_declared_length_is_no_reason_to_allocate(op_type: str) -> None:
    """Some bytes of file that declare 2**40 elements must not take a byte for each."""
    long = helper.make_tensor_value_info("long", TensorProto.INT64, [2**40])
    inputs = {"Cast": ["long"], "Gather": ["long", "long"], "Add": ["long", "long"]}[op_type]
    attributes = {"to": TensorProto.INT64} if op_type == "Cast" else {}
    nodes = [
        helper.make_node(op_type, inputs, ["sizes"], **attributes),
        helper.make_node("Expand", ["x", "sizes"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x, long], [y])
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    PassManager(simplify_pipeline()).run(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
