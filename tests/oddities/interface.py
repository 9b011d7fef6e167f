"""What goes in and out, and how constants are stored."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from .registry import (
    ODDITIES,
    Oddity,
    floats,
    oddity,
    weights,
)


@oddity
def no_nodes(proto: ModelProto) -> None:
    """The output is the input."""
    del proto.graph.node[:]
    del proto.graph.output[1:]
    proto.graph.output[0].CopyFrom(proto.graph.input[0])


@oddity
def output_is_input(proto: ModelProto) -> None:
    proto.graph.output.append(proto.graph.input[0])


@oddity
def output_is_initializer(proto: ModelProto) -> None:
    del proto.graph.node[:]
    del proto.graph.output[1:]
    proto.graph.output[0].CopyFrom(floats("w", *proto.graph.initializer[0].dims))
    proto.graph.output[0].name = proto.graph.initializer[0].name


@oddity
def output_twice(proto: ModelProto) -> None:
    proto.graph.output.append(proto.graph.output[0])


@oddity
def output_in_the_middle(proto: ModelProto) -> None:
    name = proto.graph.node[0].output[0]
    proto.graph.output.append(onnx.ValueInfoProto(name=name))


@oddity
def unused_input(proto: ModelProto) -> None:
    proto.graph.input.append(floats("unused", "q", 3))


@oddity
def unused_odd_inputs(proto: ModelProto) -> None:
    string = helper.make_tensor_value_info("text", TensorProto.STRING, ["q"])
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    sequence = helper.make_value_info("list", helper.make_sequence_type_proto(element))
    optional = helper.make_value_info("maybe", helper.make_optional_type_proto(element))
    proto.graph.input.extend([string, sequence, optional])


@oddity
def unused_initializer(proto: ModelProto) -> None:
    proto.graph.initializer.append(weights("unused", 3, 3))


@oddity
def dead_nodes(proto: ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Neg", ["x"], ["dead"]))
    proto.graph.node.append(helper.make_node("Exp", ["dead"], ["deader"]))


@oddity
def passed_through(proto: ModelProto) -> None:
    """An Identity of an input and one of a constant are outputs."""
    constant = proto.graph.initializer[0]
    proto.graph.node.append(helper.make_node("Identity", ["x"], ["same"]))
    proto.graph.node.append(helper.make_node("Identity", [constant.name], ["constant"]))
    proto.graph.output.extend([onnx.ValueInfoProto(name=n) for n in ("same", "constant")])


@oddity
def scalar_input(proto: ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    proto.graph.node.append(helper.make_node("Neg", ["rate"], ["minus"]))
    proto.graph.output.append(helper.make_tensor_value_info("minus", TensorProto.INT64, []))


@oddity
def vector_of_integers(proto: ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [3]))
    proto.graph.node.append(helper.make_node("Abs", ["lengths"], ["positive"]))
    proto.graph.output.append(helper.make_tensor_value_info("positive", TensorProto.INT32, [3]))


@oddity
def empty_state(proto: ModelProto) -> None:
    """A state of no elements grows at every call."""
    proto.graph.input.append(floats("past", 2, 0, 3))
    proto.graph.initializer.append(weights("step", 2, 1, 3))
    proto.graph.node.append(helper.make_node("Concat", ["past", "step"], ["present"], axis=1))
    proto.graph.output.append(floats("present", 2, None, 3))


@oddity
def weights_as_lists(proto: ModelProto) -> None:
    """Elements in the typed fields instead of bytes."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        made = helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, array.ravel())
        tensor.CopyFrom(made)


@oddity
def empty_weight(proto: ModelProto) -> None:
    proto.graph.initializer.append(weights("none", 0, 3))
    proto.graph.node.append(helper.make_node("Relu", ["none"], ["nothing"]))
    proto.graph.output.append(floats("nothing", 0, 3))


@oddity
def nan_weights(proto: ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[:2] = (np.nan, np.inf)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@oddity
def zero_weights(proto: ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@oddity
def sparse_weight(proto: ModelProto) -> None:
    tensor = {t.name: t for t in proto.graph.initializer}["w3"]
    array = numpy_helper.to_array(tensor)
    values = numpy_helper.from_array(array.ravel()[:3], tensor.name)
    indices = numpy_helper.from_array(np.arange(3), f"{tensor.name}_indices")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, indices, list(tensor.dims))
    )
    proto.graph.initializer.remove(tensor)


@oddity
def constants_as_nodes(proto: ModelProto) -> None:
    made = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in proto.graph.initializer
    ]
    nodes = [*made, *proto.graph.node]
    del proto.graph.node[:]
    del proto.graph.initializer[:]
    proto.graph.node.extend(nodes)


def typed(dtype: int) -> Oddity:
    """A chain of casts through another element type, and a constant of it."""

    def change(proto: ModelProto) -> None:
        proto.ir_version, proto.opset_import[0].version = 13, 25
        proto.graph.node.append(helper.make_node("Cast", ["x"], ["small"], to=dtype))
        proto.graph.node.append(helper.make_node("Cast", ["small"], ["wide"], to=1))
        proto.graph.output.append(onnx.ValueInfoProto(name="wide"))
        if dtype != TensorProto.STRING:
            constant = helper.make_tensor("few", dtype, [2], [0, 1])
            proto.graph.initializer.append(constant)
            proto.graph.node.append(helper.make_node("Identity", ["few"], ["some"]))
            proto.graph.output.append(helper.make_tensor_value_info("some", dtype, [2]))

    return change


for _dtype in TensorProto.DataType.values():
    if _dtype and _dtype != TensorProto.STRING:
        ODDITIES[f"type_{TensorProto.DataType.Name(_dtype).lower()}"] = typed(_dtype)


@oddity
def quantization_annotation(proto: ModelProto) -> None:
    entry = proto.graph.quantization_annotation.add(tensor_name="x")
    entry.quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value=proto.graph.initializer[0].name
    )


@oddity
def training_info(proto: ModelProto) -> None:
    info = proto.training_info.add()
    info.algorithm.name = "step"
    info.algorithm.node.append(helper.make_node("Relu", ["x"], ["trained"]))
    info.algorithm.output.append(floats("trained", 1))


@oddity
def unknown_fields(proto: ModelProto) -> None:
    data = bytes.fromhex("c23e03616263")
    proto.MergeFromString(data)
    proto.graph.MergeFromString(data)
    proto.graph.node[0].MergeFromString(data)
