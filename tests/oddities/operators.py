"""Operators, functions and subgraphs that are out of the ordinary."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .registry import (
    ODDITIES,
    Oddity,
    floats,
    oddity,
)


@oddity
def custom_operator(proto: ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("my.own", 1))
    proto.graph.node.append(helper.make_node("Mystery", ["x"], ["odd"], domain="my.own", k=3))
    proto.graph.output.append(floats("odd", 2, 3))


@oddity
def contrib_operator(proto: ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.node.append(helper.make_node("Gelu", ["x"], ["odd"], domain="com.microsoft"))
    proto.graph.output.append(floats("odd", None, None))


def function(name: str, domain: str, *nodes: NodeProto, opset: int = 17) -> FunctionProto:
    return helper.make_function(
        domain, name, ["a"], ["c"], list(nodes), [helper.make_opsetid("", opset)]
    )


def calls(domain: str, opset: int = 17, imported: int | None = 1) -> Oddity:
    """A function of a domain of its own, called in the main graph, that calls another one."""

    def change(proto: ModelProto) -> None:
        proto.ir_version = max(proto.ir_version, 8)
        inner = function("Inner", domain, helper.make_node("Neg", ["a"], ["c"]), opset=opset)
        outer = function(
            "Outer",
            domain,
            helper.make_node("Inner", ["a"], ["b"], domain=domain),
            helper.make_node("Relu", ["b"], ["c"]),
            opset=opset,
        )
        outer.opset_import.append(helper.make_opsetid(domain, 1))
        proto.functions.extend([inner, outer])
        if imported is not None:
            proto.opset_import.append(helper.make_opsetid(domain, imported))
        proto.graph.node.append(helper.make_node("Outer", ["x"], ["called"], domain=domain))
        proto.graph.output.append(onnx.ValueInfoProto(name="called"))

    return change


ODDITIES["functions"] = calls("my.functions")
ODDITIES["functions_pytorch"] = calls("pkg.torch.2.5.1")
ODDITIES["functions_odd_domain"] = calls("a b/\n")
ODDITIES["functions_other_opset"] = calls("my.functions", opset=16)
ODDITIES["functions_not_imported"] = calls("my.functions", imported=None)
ODDITIES["functions_version_9"] = calls("my.functions", imported=9)


@oddity
def function_of_standard_name(proto: ModelProto) -> None:
    """A function that takes the place of an operator."""
    proto.functions.append(function("Relu", "", helper.make_node("Abs", ["a"], ["c"])))


@oddity
def unused_function(proto: ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.functions.append(function("Unused", "mine", helper.make_node("Abs", ["a"], ["c"])))


@oddity
def sequence_values(proto: ModelProto) -> None:
    proto.graph.node.extend([
        helper.make_node("SequenceConstruct", ["x", "x"], ["list"]),
        helper.make_node("SequenceLength", ["list"], ["length"]),
        helper.make_node("ConcatFromSequence", ["list"], ["joined"], axis=0),
    ])  # fmt: skip
    proto.graph.output.extend([onnx.ValueInfoProto(name=n) for n in ("length", "joined")])


@oddity
def sequence_output(proto: ModelProto) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    proto.graph.node.append(helper.make_node("SequenceConstruct", ["x", "x"], ["list"]))
    proto.graph.output.append(
        helper.make_value_info("list", helper.make_sequence_type_proto(element))
    )


@oddity
def optional_output(proto: ModelProto) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    proto.graph.node.append(helper.make_node("Optional", ["x"], ["maybe"]))
    proto.graph.output.append(
        helper.make_value_info("maybe", helper.make_optional_type_proto(element))
    )


@oddity
def string_input(proto: ModelProto) -> None:
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["q"])
    proto.graph.input.append(text)
    proto.graph.node.append(helper.make_node("Identity", ["text"], ["copied"]))
    proto.graph.output.append(helper.make_tensor_value_info("copied", TensorProto.STRING, ["q"]))


@oddity
def string_constant(proto: ModelProto) -> None:
    tensor = helper.make_tensor("words", TensorProto.STRING, [2], [b"a\xff", b""])
    proto.graph.initializer.append(tensor)
    proto.graph.node.append(helper.make_node("Identity", ["words"], ["copied"]))
    proto.graph.output.append(helper.make_tensor_value_info("copied", TensorProto.STRING, [2]))


@oddity
def data_dependent_shape(proto: ModelProto) -> None:
    proto.graph.node.append(helper.make_node("NonZero", ["x"], ["places"]))
    proto.graph.output.append(
        helper.make_tensor_value_info("places", TensorProto.INT64, [None, None])
    )


@oddity
def random_operator(proto: ModelProto) -> None:
    proto.graph.node.append(helper.make_node("RandomUniform", [], ["noise"], shape=[2, 3]))
    proto.graph.output.append(floats("noise", 2, 3))


@oddity
def loop(proto: ModelProto) -> None:
    """A loop over an open number of steps with a nested name that hides nothing."""
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes"]),
            helper.make_node("Add", ["carried", "carried"], ["doubled"]),
        ],
        "body",
        [count, going, floats("carried")],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), floats("doubled")],
    )
    proto.graph.input.append(helper.make_tensor_value_info("trips", TensorProto.INT64, []))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "start"))
    proto.graph.node.append(helper.make_node("Loop", ["trips", "", "start"], ["end"], body=body))
    proto.graph.output.append(floats("end"))


@oddity
def dropped_outputs(proto: ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Split", ["x"], ["", "half"], axis=0, num_outputs=2))
    proto.opset_import[0].version = 18
    proto.graph.output.append(onnx.ValueInfoProto(name="half"))


@oddity
def trailing_empty_inputs(proto: ModelProto) -> None:
    proto.graph.node[0].input.extend([""] if len(proto.graph.node[0].input) == 2 else [])
    proto.graph.node.append(helper.make_node("Clip", ["x", "", ""], ["free"]))
    proto.graph.output.append(onnx.ValueInfoProto(name="free"))


@oddity
def shadowed_names(proto: ModelProto) -> None:
    """Two branches that name their values alike."""
    bodies = [
        helper.make_graph(
            [helper.make_node(op, ["x"], ["inner"]), helper.make_node("Neg", ["inner"], [out])],
            "same",
            [],
            [onnx.ValueInfoProto(name=out)],
        )
        for op, out in (("Abs", "left"), ("Exp", "left"))
    ]
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, [1]))
    proto.graph.node.append(
        helper.make_node("If", ["which"], ["one"], then_branch=bodies[0], else_branch=bodies[1])
    )
    proto.graph.output.append(onnx.ValueInfoProto(name="one"))


@oddity
def ranks_of_branches(proto: ModelProto) -> None:
    """An If on a size, one branch of which removes an axis."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes0")
    zero = numpy_helper.from_array(np.array(0, np.int64), "index0")
    one = numpy_helper.from_array(np.array(1, np.int64), "one1")
    proto.graph.initializer.extend([axes, zero, one])
    squeeze = helper.make_graph(
        [helper.make_node("Squeeze", ["x", "axes0"], ["squeezed"])],
        "squeeze",
        [],
        [onnx.ValueInfoProto(name="squeezed")],
    )
    keep = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["kept"])],
        "keep",
        [],
        [onnx.ValueInfoProto(name="kept")],
    )
    proto.graph.node.extend([
        helper.make_node("Shape", ["x"], ["xs"]),
        helper.make_node("Gather", ["xs", "index0"], ["x0"]),
        helper.make_node("Equal", ["x0", "one1"], ["alone"]),
        helper.make_node("If", ["alone"], ["either"], then_branch=squeeze, else_branch=keep),
    ])  # fmt: skip
    proto.graph.output.append(onnx.ValueInfoProto(name="either"))
