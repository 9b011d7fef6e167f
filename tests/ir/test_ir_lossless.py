"""Nothing is lost: every field of every message, cleared, emptied, set, and unknown ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from secateur.ir.errors import ModelError
from secateur.ir.graph import normalize_domain
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto, load, save, to_proto
from tests.ir.test_ir_roundtrip import check_round_trip, everything

UNKNOWN = bytes.fromhex("c23e03616263 c83e9601 d53e01020304 d93e0102030405060788 e33e0805e43e")
"""Unknown fields 1000 to 1004, of every wire type: bytes, varint, fixed32, fixed64, a group."""


def messages(message: Message) -> Iterator[Message]:
    yield message
    for field in message.DESCRIPTOR.fields:
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if field.is_repeated:
            for item in getattr(message, field.name):
                yield from messages(item)
        elif message.HasField(field.name):
            yield from messages(getattr(message, field.name))


def some(field: FieldDescriptor) -> Any:
    """A value that is not the field's default."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"q" if field.type == FieldDescriptor.TYPE_BYTES else "q"
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return field.enum_type.values[-1].number
    return 1


def edits(message: Message) -> Iterator[Callable[[Any], object]]:
    """Every way to change one field of a message."""
    yield lambda m: m.MergeFromString(UNKNOWN)
    for field in message.DESCRIPTOR.fields:
        name = field.name
        yield lambda m, n=name: m.ClearField(n)
        if field.is_repeated and field.type == FieldDescriptor.TYPE_MESSAGE:
            yield lambda m, n=name: getattr(m, n).add()
        elif field.is_repeated:
            yield lambda m, n=name, f=field: getattr(m, n).append(some(f))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            yield lambda m, n=name: getattr(m, n).SetInParent()
        else:
            yield lambda m, n=name, f=field: setattr(m, n, f.default_value)
            yield lambda m, n=name, f=field: setattr(m, n, some(f))


def imports_twice(proto: ModelProto) -> bool:
    """Whether an operator set is imported twice: only the last import is kept."""
    lists = [m.opset_import for m in (proto, *proto.functions)]
    return any(len({normalize_domain(o.domain) for o in x}) < len(x) for x in lists)


def test_every_field_of_every_message() -> None:
    """A changed model comes back to the byte, or is refused as malformed."""
    base = everything()
    same = refused = 0
    for index, message in enumerate(messages(base)):
        for edit in edits(message):
            proto = ModelProto()
            proto.CopyFrom(base)
            edit(list(messages(proto))[index])
            if not proto.HasField("graph") or imports_twice(proto):
                continue
            try:
                check_round_trip(proto)
            except ModelError:
                refused += 1
            else:
                same += 1
    assert same > 1000
    assert refused < same / 5


def info(name: str, size: int | str = 2, doc: str | None = None) -> ValueInfoProto:
    made = helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])
    if doc is not None:
        made.doc_string = doc
    return made


def untyped(name: str) -> ValueInfoProto:
    return ValueInfoProto(name=name, doc_string="no type")


@pytest.mark.parametrize(
    ("inputs", "outputs", "others"),
    [
        ([info("x")], [info("y", doc="output")], [info("y", "N", "other")]),
        ([info("x")], [untyped("y")], [info("y")]),
        ([info("x")], [info("y")], [untyped("y")]),
        ([info("x", doc="input")], [info("y"), info("x", "M", "output")], []),
        ([info("x", doc="input")], [info("y")], [info("x", "M", "other")]),
        ([info("x")], [info("y")], [info("h", doc="first"), info("h", doc="second")]),
        ([info("x"), info("w", doc="input")], [info("y")], [info("w", "K", "other")]),
        ([info("x"), untyped("w")], [info("y")], []),
        ([info("x")], [info("y"), info("w", "K", "output")], [info("w", "L", "other")]),
        ([info("x")], [info("y"), untyped("w")], []),
        ([info("x")], [info("y")], [info("w", "K")]),
        ([info("x")], [info("y")], [untyped("w"), untyped("h")]),
    ],
)
def test_values_that_are_declared_twice(
    inputs: list[ValueInfoProto], outputs: list[ValueInfoProto], others: list[ValueInfoProto]
) -> None:
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight], value_info=others)
    check_round_trip(helper.make_model(graph))


def test_types_that_change_are_written_wherever_they_are_declared() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [info("x")], [info("y", "M")], value_info=[info("y")])
    model = from_proto(helper.make_model(graph))
    model.graph.outputs[0].set_tensor_type(TensorProto.FLOAT, [7])
    proto = to_proto(model)
    for written in (proto.graph.output[0], proto.graph.value_info[0]):
        assert written.type.tensor_type.shape.dim[0].dim_value == 7


def test_branches_that_give_outer_values() -> None:
    """What a branch declares of a value around it is not what the graph around declares."""
    branches = {
        f"{name}_branch": helper.make_graph([], name, [], [info("h", doc=name)])
        for name in ("then", "else")
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["c"], ["y"], **branches),
    ]
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    for others in ([], [info("h", "N", "outer")]):
        graph = helper.make_graph(
            nodes, "g", [info("x"), condition], [info("y"), info("h")], value_info=others
        )
        model = check_round_trip(helper.make_model(graph))
        infer_shapes(model)
        assert [o.doc_string for o in to_proto(model).graph.output] == ["", ""]


def test_functions_with_types_and_graphs_by_reference() -> None:
    choose = helper.make_node("If", ["c"], ["b"])
    for name in ("then_branch", "else_branch"):
        choose.attribute.append(
            AttributeProto(name=name, ref_attr_name=name, type=AttributeProto.GRAPH)
        )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    function = helper.make_function(
        "local", "F", ["c"], ["b"], [choose], opsets[:1], ["then_branch", "else_branch"],
        value_info=[info("c", doc="an input"), info("b", doc="an output")],
    )  # fmt: skip
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "b", [], [info("r")])
    call = helper.make_node(
        "F", ["c"], ["y"], domain="local", then_branch=branch, else_branch=branch
    )
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    graph = helper.make_graph([call], "g", [info("x"), condition], [info("y")])
    check_round_trip(helper.make_model(graph, functions=[function], opset_imports=opsets))


def test_unknown_fields_of_external_tensors_survive_saving(tmp_path: Any) -> None:
    (tmp_path / "w.bin").write_bytes(np.ones(2, np.float32).tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], doc_string="weights")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    weight.MergeFromString(UNKNOWN)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [info("x")], [info("y")], [weight])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    save(load(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    written = ModelProto.FromString((tmp_path / "n.onnx").read_bytes()).graph.initializer[0]
    assert UNKNOWN[:6] in written.SerializeToString()
    assert written.doc_string == "weights"


PACKED = [
    (TensorProto.INT4, 8, [0x21, 0x43, 0xF5, 0x80]),
    (TensorProto.UINT4, 7, [0x21, 0x43, 0xF5, 0x08]),
    (TensorProto.FLOAT4E2M1, 5, [0x21, 0x43, 0x05]),
    (TensorProto.INT2, 9, [0x1B, 0xE4, 0x02]),
    (TensorProto.UINT2, 8, [0x1B, 0xE4]),
]


@pytest.mark.parametrize(("dtype", "count", "stored"), PACKED)
def test_elements_smaller_than_bytes_in_every_storage(
    dtype: int, count: int, stored: list[int]
) -> None:
    raw = TensorProto(name="t", data_type=dtype, dims=[count], raw_data=bytes(stored))
    numbers = TensorProto(name="t", data_type=dtype, dims=[count], int32_data=stored)
    arrays = []
    for tensor in (raw, numbers):
        output = helper.make_tensor_value_info("t", dtype, [count])
        model = check_round_trip(
            helper.make_model(helper.make_graph([], "g", [], [output], [tensor]))
        )
        constant = model.graph.initializers["t"].const
        assert constant is not None
        arrays.append(constant.numpy().astype(np.float32))
        assert constant.embedded("t") == tensor
    np.testing.assert_array_equal(*arrays)


@pytest.mark.parametrize(
    "dtype",
    [
        t
        for t in TensorProto.DataType.values()
        if t not in (TensorProto.UNDEFINED, TensorProto.STRING)
    ],
    ids=TensorProto.DataType.Name,
)
def test_external_elements_of_every_type(tmp_path: Any, dtype: int) -> None:
    """Read from a file at an offset, mapped, written to another, and read again."""
    complex_numbers = dtype in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    values = [1 + 2j, 3, 4j] if complex_numbers else [0, 1, 1]
    tensor = numpy_helper.from_array(
        numpy_helper.to_array(helper.make_tensor("t", dtype, [3], values)), "t"
    )
    expected, data = numpy_helper.to_array(tensor), tensor.raw_data
    (tmp_path / "w.bin").write_bytes(bytes(16) + data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "16", "length": str(len(data))}.items():
        tensor.external_data.add(key=key, value=value)
    output = helper.make_tensor_value_info("t", dtype, [3])
    proto = helper.make_model(helper.make_graph([], "g", [], [output], [tensor]))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = load(tmp_path / "m.onnx")
    assert to_proto(model) == proto
    (tmp_path / "out").mkdir()
    save(model, tmp_path / "out" / "m.onnx")
    for path in (tmp_path / "m.onnx", tmp_path / "out" / "m.onnx"):
        constant = load(path).graph.initializers["t"].const
        assert constant is not None
        np.testing.assert_array_equal(constant.numpy(), expected)
