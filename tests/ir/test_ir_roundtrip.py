"""ONNX in and out: what nobody changed comes back identical."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from secateur.ir.errors import ModelError
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load, proto_bytes, to_proto
from secateur.ir.tensor import Tensor
from secateur.ir.verify import verify
from tests.backend_cases import generated_cases, model_files


def check_round_trip(proto: ModelProto) -> Model:
    before = proto.SerializeToString(deterministic=True)
    model = from_proto(proto)
    assert to_proto(model).SerializeToString(deterministic=True) == before
    assert to_proto(model.clone()).SerializeToString(deterministic=True) == before
    assert proto_bytes(model) == len(before)
    return model


def test_generated_backend_cases_come_back_identical() -> None:
    cases = generated_cases()
    assert len(cases) > 1500
    for case in cases:
        check_round_trip(case.model)


def test_backend_files_come_back_identical() -> None:
    files = model_files()
    assert len(files) > 100
    for path in files:
        proto = onnx.load(str(path), load_external_data=False)
        assert to_proto(load(path)) == proto, path


def test_inference_and_verification_accept_all_backend_cases() -> None:
    for case in generated_cases():
        model = from_proto(case.model)
        verify(model)
        infer_shapes(model)
        verify(model)


def test_inference_leaves_the_interface_as_declared() -> None:
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        )
    )
    model = from_proto(proto)
    infer_shapes(model)
    assert to_proto(model).graph.output[0].type.tensor_type.shape.dim[0].dim_param == "rows"


def everything() -> ModelProto:
    """One model with every part that a proto can have."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2], doc_string="the input")
    x.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    x.type.denotation = "IMAGE"
    entry = x.metadata_props.add()
    entry.key, entry.value = "unit", "volt"
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    weight.doc_string = "weights"
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "w2"], ["inner"], name="captures")],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros((2,), np.float32), "w2")],
        doc_string="a branch",
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["inner"])],
        "else",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mm", doc_string="product"),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other),
        helper.make_node("Twice", ["y"], ["z"], domain="local", overload="v1"),
        helper.make_node("Twice", ["z"], ["u"], domain="local"),
        helper.make_node("Dropout", ["u", "", ""], ["v", ""], name=""),
        helper.make_node("SequenceConstruct", ["v", "v"], ["s"]),
    ]
    nodes[4].attribute.append(helper.make_attribute("seed", 3, doc_string="a number"))
    node_entry = nodes[0].metadata_props.add()
    node_entry.key, node_entry.value = "namespace", "layer1"
    device = nodes[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    sharded = device.sharding_spec.add(tensor_name="w", device=[0, 1])
    sharded.sharded_dim.add(axis=1).simple_sharding.add(num_shards=2)
    sequence = helper.make_sequence_type_proto(
        helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 2])
    )
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "sparse"),
        numpy_helper.from_array(np.array([1], np.int64), "indices"),
        [4],
    )
    graph = helper.make_graph(
        nodes,
        "everything",
        [x, helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_value_info("s", sequence)],
        [weight],
        doc_string="the graph",
        value_info=[
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 2], doc_string="hidden"),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", 2], doc_string="again"),
            helper.make_tensor_value_info("ghost", TensorProto.FLOAT, [1]),
        ],
        sparse_initializer=[sparse],
    )
    annotation = graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    functions = []
    for overload in ("", "v1"):
        function = helper.make_function(
            "local",
            "Twice",
            ["a"],
            ["b"],
            [helper.make_node("Add", ["a", "a"], ["b"])],
            [helper.make_opsetid("", 20)],
            overload=overload,
        )
        function.doc_string = f"overload {overload}"
        function.metadata_props.add(key="from", value="a test")
        function.value_info.add(name="a", doc_string="its input")
        functions.append(function)
    model = helper.make_model(
        graph,
        functions=functions,
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
        ir_version=11,
        producer_name="test",
        producer_version="1.2",
        domain="example",
        model_version=7,
        doc_string="the model",
    )
    helper.set_model_props(model, {"author": "somebody"})
    model.configuration.add(name="two", num_devices=2, device=["a", "b"])
    training = model.training_info.add()
    training.algorithm.name = "step"
    training.update_binding.add(key="w", value="w_new")
    return model


def test_every_part_of_a_model_comes_back() -> None:
    model = check_round_trip(everything())
    verify(model)
    weight = model.graph.initializers["w"]
    assert [u.op_type for u in weight.users] == ["MatMul"]


def test_size_of_what_a_pass_made() -> None:
    model = from_proto(everything())
    for count in (0, 1, 40, 5000):
        model.graph.add_initializer(f"n{count}", Tensor.from_array(np.ones(count, np.float32)))
        model.graph.add_initializer(f"b{count}", Tensor.from_array(np.ones(count, np.bool_)))
        assert proto_bytes(model) == to_proto(model).ByteSize()


def test_subgraphs_capture_the_values_around_them() -> None:
    model = from_proto(everything())
    h = model.graph.nodes[0].outputs[0]
    assert h is not None
    assert sorted(u.op_type for u in h.users) == ["Add", "Neg"]
    copy = model.clone()
    clones = copy.graph.nodes[0].outputs[0]
    assert clones is not None
    assert clones is not h
    assert {u.graph.name for u in clones.users if u.graph} == {"then", "else"}


def test_initializers_that_are_inputs_too() -> None:
    """IR version 3 lists every initializer as an input; from 4 on it is a default."""
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "w", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", infos[:2], infos[2:], [weight]
    )
    for version, constant in ((3, True), (4, False)):
        proto = helper.make_model(
            graph, ir_version=version, opset_imports=[helper.make_opsetid("", 9)]
        )
        model = check_round_trip(proto)
        value = model.graph.initializers["w"]
        assert value.is_input
        assert (model.constant(value) is not None) == constant


@pytest.mark.parametrize(
    "dtype",
    [t for t in TensorProto.DataType.values() if t not in (TensorProto.UNDEFINED,)],
    ids=TensorProto.DataType.Name,
)
def test_tensors_of_every_type(dtype: int) -> None:
    if dtype == TensorProto.STRING:
        tensor = helper.make_tensor("t", dtype, [3], [b"a", "ü".encode(), b""])
    elif dtype in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        tensor = helper.make_tensor("t", dtype, [3], [1 + 2j, 3, 4j])
    else:
        tensor = helper.make_tensor("t", dtype, [3], [0, 1, 1])
    for proto in (tensor, numpy_helper.from_array(numpy_helper.to_array(tensor), "t")):
        output = helper.make_tensor_value_info("y", dtype, [3])
        graph = helper.make_graph(
            [helper.make_node("Identity", ["t"], ["y"])], "g", [], [output], [proto]
        )
        model = check_round_trip(helper.make_model(graph))
        constant = model.graph.initializers["t"].const
        assert constant is not None
        assert constant.dtype == dtype
        np.testing.assert_array_equal(constant.numpy(), numpy_helper.to_array(tensor))


def test_types_that_are_no_tensors() -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"])
    types = [
        helper.make_optional_type_proto(tensor),
        helper.make_sequence_type_proto(helper.make_optional_type_proto(tensor)),
        helper.make_map_type_proto(TensorProto.STRING, tensor),
        helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3]),
    ]
    for type_proto in types:
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_value_info("x", type_proto)],
            [helper.make_value_info("y", type_proto)],
        )
        check_round_trip(helper.make_model(graph))


def test_functions_with_one_name_need_different_overloads() -> None:
    proto = everything()
    proto.functions.append(proto.functions[0])
    with pytest.raises(ModelError, match="'Twice' is defined twice"):
        from_proto(proto)


def test_function_attributes_by_reference_come_back() -> None:
    node = helper.make_node("Elu", ["a"], ["b"])
    node.attribute.append(
        AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT)
    )
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 20)], ["slope"]
    )
    call = helper.make_node("F", ["x"], ["y"], domain="local", slope=0.5)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    proto = helper.make_model(
        helper.make_graph([call], "g", infos[:1], infos[1:]),
        functions=[function],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
    )
    verify(check_round_trip(proto))
