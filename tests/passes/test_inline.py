"""Model-local functions put in place of their calls."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.passes.inline import InlineFunctions
from secateur.passes.prune import PruneChannels


def function_model(version=17):
    """y = twice(block(x)), block calls scale, whose factor is an attribute with a default."""
    opsets = [helper.make_opsetid("", version), helper.make_opsetid("local", 1)]
    factor = helper.make_node("Constant", [], ["f"])
    reference = factor.attribute.add(name="value_float", ref_attr_name="factor")
    reference.type = onnx.AttributeProto.FLOAT
    scale = helper.make_function(
        "local",
        "scale",
        ["a"],
        ["b"],
        [factor, helper.make_node("Mul", ["a", "f"], ["b"])],
        opsets,
        attribute_protos=[helper.make_attribute("factor", 2.0)],
    )
    block = helper.make_function(
        "local",
        "block",
        ["x", "w", "bias"],
        ["y", "again"],
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Relu", ["m"], ["r"]),
            helper.make_node("scale", ["r"], ["y"], domain="local"),
            helper.make_node("Identity", ["x"], ["again"]),
        ],
        opsets,
    )
    nodes = [
        helper.make_node("block", ["x", "w0"], ["h", "x_again"], domain="local", name="first"),
        helper.make_node("scale", ["h"], ["s"], domain="local", factor=0.5),
        helper.make_node("block", ["s", "w1"], ["t", "unused"], domain="local", name="second"),
        helper.make_node("Add", ["t", "x_again"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {"w0": (4, 16), "w1": (16, 4)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [
            numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), k)
            for k, s in weights.items()
        ],
    )
    return helper.make_model(
        graph,
        functions=[scale, block],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        ir_version=8,
    )


def test_bodies_take_the_place_of_calls():
    model = from_proto(function_model())
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4) - 3}
    expected = Session(model).run(feeds)["y"]
    result = InlineFunctions().run(model)
    assert result.statistics == {"inlined": 5}
    assert not model.functions
    onnx.checker.check_model(to_proto(model), full_check=True)
    np.testing.assert_array_equal(Session(model).run(feeds)["y"], expected)


def test_other_opset_stays_and_says_why():
    model = from_proto(function_model(version=16))
    result = InlineFunctions().run(model)
    assert not result.changed
    assert "imports ai.onnx 16, the model 17" in result.notes[0].reason


def test_pruning_goes_through_functions():
    model = from_proto(function_model())
    PruneChannels(ratio=0.5).run(model)
    assert model.graph.initializers["w0"].const.shape == (4, 8)
