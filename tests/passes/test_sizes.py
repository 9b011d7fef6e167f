"""Costs where ONNX's shape inference gives up, and where sizes are open."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from secateur.checking.measure import cost_of, describe_model
from secateur.ir.cost import count
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.models import zoo
from secateur.passes.prune import PruneChannels
from secateur.passes.sizes import infer_sizes
from secateur.reporting.report import size_remark, uncounted_remark


@pytest.mark.parametrize("name", ["yolo", "shufflenet_v2", "vit_tiny", "gqa_decoder"])
def test_variants_of_an_architecture_cost_the_same(name: str) -> None:
    """As exported with shape chains (batch 1) and without; inference alone loses sizes."""
    macs = {}
    for variant in ("folded", "kept"):
        model = zoo.load_tiny(name, variant)
        for value in model.graph.inputs:
            shape = zoo.random_inputs(model)[value.name].shape
            value.set_tensor_type(value.dtype, (1, *shape[1:]))
        infer_shapes(model)
        inferred = count(model).macs
        infer_sizes(model)
        macs[variant] = count(model).macs
        assert macs[variant] >= inferred
    assert macs["kept"] == macs["folded"]


@pytest.mark.parametrize("variant", ["folded", "kept"])
@pytest.mark.parametrize("name", ["yolo", "shufflenet_v2", "vit_tiny", "bert"])
def test_goals_hold_where_inference_loses_sizes(name: str, variant: str) -> None:
    model = zoo.load_tiny(name, variant)
    before = zoo.load_tiny(name, variant)
    infer_sizes(before)
    statistics = PruneChannels(macs=0.7).run(model).statistics
    assert statistics["macs_before"] == cost_of(before).macs
    assert 0.5 < statistics["macs_after"] / statistics["macs_before"] <= 0.7


def calls_of_a_function() -> Model:
    """Two calls of a function that holds a convolution."""
    weights = [
        numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("v", (8, 3, 3, 3)), ("w", (4, 8, 3, 3)))
    ]
    body = helper.make_node("Conv", ["a", "b"], ["c"], pads=[1] * 4)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "Block", ["a", "b"], ["c"], [body], opsets[:1])
    graph = helper.make_graph(
        [
            helper.make_node("Block", ["x", "v"], ["m"], domain="local"),
            helper.make_node("Block", ["m", "w"], ["y"], domain="local"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    return from_proto(proto)


def test_functions_cost_what_their_calls_run() -> None:
    model = calls_of_a_function()
    infer_sizes(model)
    cost = cost_of(model)
    assert cost.macs == 36 * (27 * 8 + 72 * 4)
    assert cost.parameters == 27 * 8 + 72 * 4
    assert len(model.functions) == 1  # the model itself is not changed


def test_open_sizes_are_named() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, None, "N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, None, "N"])],
    )
    model = describe_model(from_proto(helper.make_model(graph)))
    assert model["counted_as_1"] == ["N"]
    assert model["counted_at"] == {"axis 2 of x": 224}
    assert "axis 2 of x as 224 and N as 1 (" in size_remark(model)


def segmentation(height: int | str, width: int | str) -> Model:
    """A convolutional network for images of any size, its result flattened."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (2, 32, 1, 1)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(s, np.float32), n) for n, s in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.array([0, 2, -1]), "flat"))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4, strides=[2, 2]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4, strides=[2, 2]),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("Conv", ["d", "w3"], ["e"]),
            helper.make_node("Reshape", ["e", "flat"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, height, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, "pixels"])],
        weights,
    )
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_open_image_sizes_count_as_those_of_a_usual_image() -> None:
    opened, fixed = segmentation("h", "w"), segmentation(224, 224)
    for model in (opened, fixed):
        infer_sizes(model)
    assert cost_of(opened).macs == cost_of(fixed).macs > 10**6
    statistics = PruneChannels(macs=0.7).run(opened).statistics
    before, after = cost_of(fixed).macs, cost_of(opened).macs
    assert (statistics["macs_before"], statistics["macs_after"]) == (before, after)
    assert 0.6 < after / before <= 0.7


def test_nodes_of_unknown_shape_are_counted_as_such() -> None:
    """What Compress keeps is known only when the model runs."""
    graph = helper.make_graph(
        [
            helper.make_node("Compress", ["x", "keep"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["m"]),
            helper.make_node("MatMul", ["m", "w"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8]),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, [32]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, None),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((8, 3), np.float32), "w")],
    )
    opset = helper.make_opsetid("", 17)
    model = from_proto(helper.make_model(graph, opset_imports=[opset], ir_version=8))
    infer_sizes(model)
    cost = cost_of(model)
    assert (cost.macs, cost.uncounted) == (0, ["y (MatMul)"])
    assert "leave out 1 nodes" in uncounted_remark(len(cost.uncounted))


LOOP = """<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 4] x, int64 k) => (float[n, 4] y, float[m, 4] grown) {
  y, grown = Loop <body = step (int64 i, bool go, a, b) => (bool on, c, d) {
    on = Identity (go)
    c = %s
    d = Concat <axis = 0> (b, x)
  }> (k, , x, x)
}
"""


@pytest.mark.parametrize(("operation", "shape"), [("Relu (a)", ("n", 4)), ("Squeeze (a)", None)])
def test_states_of_loops_have_the_sizes_that_no_iteration_changes(operation, shape):
    model = from_proto(parser.parse_model(LOOP % operation))
    (loop,) = model.graph.nodes
    state, grown = loop.get("body").inputs[2:]
    infer_sizes(model)
    assert state.shape == shape
    assert grown.shape == (None, 4)
    assert loop.get("body").outputs[1].rank == (None if shape is None else 2)
