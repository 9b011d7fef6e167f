"""Untrusted files: refused with a clear error, without reading or allocating what they claim."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from secateur.data.random_inputs import random_feed
from secateur.ir.declarations import correct_declarations
from secateur.ir.errors import ModelError, SecateurError, UnsupportedError
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load, save, to_proto
from secateur.ir.tensor import Tensor
from secateur.ir.text import print_model
from secateur.ir.unknown_fields import varint
from secateur.ir.verify import verify
from secateur.passes.manager import PassManager
from secateur.passes.prune import inspect_groups
from secateur.passes.simplify import simplify_pipeline
from secateur.passes.sizes import infer_sizes
from tests import odd_types, oddities


def model_with(*initializers: TensorProto) -> ModelProto:
    """The sum of an input and constants."""
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"]),
    ]
    nodes, last = [], "x"
    for tensor in initializers:
        nodes.append(helper.make_node("Add", [last, tensor.name], [f"{tensor.name}_sum"]))
        last = f"{tensor.name}_sum"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(location: str, shape: list[int], **fields: str) -> ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    return model_with(tensor)


def write(path: Path, proto: ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", b"\x08\x07", bytes(1000), b"<html>"])
def test_not_a_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx: not an ONNX model"):
        load(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(ModelError, match=str(path)):
            load(path)


def test_every_truncation_is_refused_or_still_a_model(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    data = model_with(weight).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with contextlib.suppress(ModelError):
            verify(load(path))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_never_crash(data: st.DataObject) -> None:
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    raw = bytearray(model_with(weight).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    proto = ModelProto()
    try:
        proto.ParseFromString(bytes(raw))
    except Exception:
        return
    try:
        model = from_proto(proto)
        verify(model)
        infer_shapes(model)
    except ModelError as error:
        message = str(error)
        assert "\n" not in message


def text_fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field of text in a message and those inside of it, set or not."""
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield message, field
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                yield from text_fields(item)


@pytest.mark.parametrize("base", oddities.BASES)
def test_text_that_is_none(base: str) -> None:
    """Bytes that are not UTF-8 instead of any text: refused, or kept as they are."""
    make, refused, kept = oddities.BASES[base], 0, 0
    for number in range(len(list(text_fields(make())))):
        proto = make()
        message, field = list(text_fields(proto))[number]
        if not field.is_repeated:
            setattr(message, field.name, "marker")
        elif texts := getattr(message, field.name):
            texts[0] = "marker"
        else:
            texts.append("marker")
        content = proto.SerializeToString().replace(b"marker", b"\xff\xfe\x80\x1b:)")
        try:
            model = from_proto(ModelProto.FromString(content))
            infer_sizes(model)
            print_model(model)
            PassManager(simplify_pipeline()).run(model)
        except SecateurError:
            refused += 1
        else:
            to_proto(model).SerializeToString()
            kept += 1
    assert refused > 5
    assert kept > 2


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "link"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(100))
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    path = write(folder / "m.onnx", external(location, [4]))
    with pytest.raises(ModelError, match=r"m\.onnx: tensor 'w': .* leaves the model's folder"):
        load(path)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (external("absent", [4]), "'absent' is missing"),
        (external("data", [26]), "'data' is too short"),
        (external("data", [4], offset="90"), "'data' is too short"),
        (external("data", [4], offset="-4"), "malformed external data entry"),
        (external("data", [4], length="4"), "4 bytes, its shape needs 16"),
        (external("data", [4], offset="many"), "malformed external data entry"),
        (external("", [4]), "leaves the model's folder"),
        (external("nul\0byte", [4]), "malformed external data path"),
        (external("data", [2**40, 2**40]), "impossible shape"),
        (external("data", [2**20, 2**20]), "'data' is too short"),
        (external("data", [-4]), "negative dimension"),
    ],
)
def test_bad_external_data(tmp_path: Path, proto: ModelProto, message: str) -> None:
    (tmp_path / "data").write_bytes(bytes(100))
    with pytest.raises(ModelError, match=message):
        load(write(tmp_path / "m.onnx", proto))


def test_external_data_without_a_file() -> None:
    with pytest.raises(ModelError, match="not read from a file"):
        from_proto(external("data", [4]))


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40]),
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40], raw_data=b"1234"),
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], float_data=[1.0]),
        TensorProto(name="w", data_type=TensorProto.INT8, dims=[3], int32_data=[1, 2, 3, 4]),
        TensorProto(name="w", data_type=TensorProto.STRING, dims=[3], string_data=[b"a"]),
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-1], float_data=[1.0]),
        TensorProto(name="w", data_type=99, dims=[1], float_data=[1.0]),
        TensorProto(name="w", dims=[1], float_data=[1.0]),
        TensorProto(name="w", data_type=TensorProto.INT2, dims=[2], uint64_data=[1, 2]),
        TensorProto(name="w", data_type=TensorProto.INT4, dims=[2], int32_data=[1, 2]),
    ],
    ids=[
        "absent",
        "raw",
        "few",
        "many",
        "strings",
        "negative",
        "unknown-type",
        "no-type",
        "field",
        "unpacked",
    ],
)
def test_data_that_does_not_fit_its_shape(tensor: TensorProto) -> None:
    with pytest.raises(ModelError, match="tensor 'w'"):
        from_proto(model_with(tensor))


FIELDS = {
    "float_data": [1.0, math.nan],
    "double_data": [1.0, -math.inf],
    "int32_data": [-1, 2**31 - 1, -(2**31)],
    "int64_data": [-1, -(2**63)],
    "uint64_data": [1, 2**64 - 1],
    "string_data": [b"a", b"\xff"],
    "raw_data": b"\xff\x00\x7f",
    "segment": TensorProto.Segment(begin=0, end=4),
}


@pytest.mark.parametrize("dtype", [d for d in TensorProto.DataType.values() if d])
def test_elements_are_there_where_a_tensor_is_accepted(dtype: int) -> None:
    """Whatever field they are stored in, whatever their number."""
    shapes = ([], [0], [1], [2], [3], [4], [8], [2, 2])
    accepted = 0
    for (field, values), length, shape in product(FIELDS.items(), range(17), shapes):
        proto = TensorProto(name="w", data_type=dtype, dims=shape)
        if field == "raw_data":
            proto.raw_data = (values * 6)[:length]
        elif field == "segment":
            proto.segment.CopyFrom(values)
        else:
            getattr(proto, field).extend((values * 9)[:length])
        try:
            tensor = Tensor.from_proto(proto)
        except ModelError:
            continue
        accepted += 1
        assert tensor.numpy().shape == tuple(shape)
    assert accepted >= len(shapes)


def huge_sparse() -> ModelProto:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "w"),
        numpy_helper.from_array(np.array([1], np.int64), "i"),
        [2**31, 2**10],
    )
    proto = model_with()
    proto.graph.sparse_initializer.append(sparse)
    proto.graph.node[0].input[0] = "w"
    return proto


def huge_constant_of_shape() -> ModelProto:
    proto = model_with(numpy_helper.from_array(np.array([2**20, 2**20]), "s"))
    proto.graph.node[0].CopyFrom(helper.make_node("ConstantOfShape", ["s"], ["s_sum"]))
    return proto


def huge_tile() -> ModelProto:
    proto = model_with(numpy_helper.from_array(np.ones((1, 1), np.float32), "s"))
    shape = numpy_helper.from_array(np.array([2**20, 2**20]), "repeats")
    proto.graph.initializer.append(shape)
    proto.graph.node[0].CopyFrom(helper.make_node("Tile", ["s", "repeats"], ["s_sum"]))
    return proto


def huge_range() -> ModelProto:
    proto = model_with(numpy_helper.from_array(np.array(2**40), "s"))
    for name, value in (("zero", 0), ("one", 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    proto.graph.node[0].CopyFrom(helper.make_node("Range", ["zero", "s", "one"], ["s_sum"]))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return proto


def huge_by_computed_shape() -> ModelProto:
    """A size that is the result of a computation that shape inference doesn't follow."""
    proto = model_with(numpy_helper.from_array(np.array([2.0**20, 2.0**20]), "s"))
    proto.graph.node[0].CopyFrom(helper.make_node("Cast", ["s"], ["t"], to=TensorProto.INT64))
    proto.graph.node.insert(1, helper.make_node("ConstantOfShape", ["t"], ["s_sum"]))
    return proto


def division_by_zero() -> ModelProto:
    proto = model_with(numpy_helper.from_array(np.array([0], np.int32), "s"))
    proto.graph.node[0].CopyFrom(helper.make_node("Div", ["s", "s"], ["s_sum"]))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    return proto


@pytest.mark.parametrize(
    "make",
    [
        huge_sparse,
        huge_constant_of_shape,
        huge_tile,
        huge_range,
        huge_by_computed_shape,
        division_by_zero,
    ],
)
def test_simplification_computes_nothing_monstrous(make: object, tmp_path: Path) -> None:
    assert callable(make)
    proto = make()
    onnx.checker.check_model(proto)
    model = from_proto(proto)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    correct_declarations(model)  # of a vector, which not all results are
    PassManager(simplify_pipeline()).run(model)
    save(model, tmp_path / "m.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    assert (tmp_path / "m.onnx").stat().st_size < 10**6


def doubling() -> ModelProto:
    """A vector of two sizes, joined with itself sixty times."""
    start = numpy_helper.from_array(np.array([2, 3]))
    nodes = [helper.make_node("Constant", [], ["c0"], value=start)]
    nodes += [
        helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(60)
    ]
    output = helper.make_tensor_value_info("c60", TensorProto.INT64, ["n"])
    graph = helper.make_graph(nodes, "g", [], [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def calls(bodies: dict[str, list[str]]) -> ModelProto:
    """Functions by the names that their bodies call, one after the other; F0 is called."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for name, called in bodies.items():
        nodes = [
            helper.make_node(op, [f"v{i}"], [f"v{i + 1}"], domain="local" if op in bodies else "")
            for i, op in enumerate(called)
        ]
        functions.append(
            helper.make_function("local", name, ["v0"], [f"v{len(called)}"], nodes, opsets)
        )
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    call = helper.make_node("F0", ["x"], ["y"], domain="local")
    graph = helper.make_graph([call], "g", infos[:1], infos[1:])
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def test_propagation_of_values_builds_nothing_monstrous() -> None:
    model = from_proto(doubling())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    infer_shapes(model)
    inspect_groups(model)
    PassManager(simplify_pipeline()).run(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.parametrize("dims", [[0, 2**62], [2**40, 0, 2**40], [1] * 65])
def test_shapes_that_no_array_has(dims: list[int]) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    tensor.float_data.extend([0.0] * (1 if 0 not in dims else 0))
    with pytest.raises(ModelError, match="tensor 'w': impossible shape"):
        from_proto(model_with(tensor))


def test_functions_that_expand_without_bound() -> None:
    chain = {f"F{i}": [f"F{i + 1}"] * 2 for i in range(40)}
    with pytest.raises(ModelError, match="more than 10,000,000 nodes"):
        from_proto(calls({**chain, "F40": ["Relu"]}))
    long = {f"F{i}": [f"F{i + 1}"] for i in range(3000)}  # deep, but small
    from_proto(calls({**long, "F3000": ["Relu"]}))


@pytest.mark.parametrize(
    "bodies",
    [
        {"F0": ["F0"]},
        {"F0": ["F1"], "F1": ["Relu", "F0"]},
        {"F0": ["F1", "F2"], "F1": ["F2"], "F2": ["F3"], "F3": ["F1"]},
    ],
)
def test_functions_that_call_themselves(bodies: dict[str, list[str]]) -> None:
    with pytest.raises(ModelError, match=r"function 'F\d' calls itself"):
        from_proto(calls(bodies))


def test_functions_that_share_what_they_call() -> None:
    from_proto(calls({"F0": ["F1", "F2", "F1"], "F1": ["F3"], "F2": ["F1", "F3"], "F3": ["Relu"]}))


def nested(depth: int) -> bytes:
    """The wire form of branches within branches: Python's protobuf can't build them."""

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None).SerializeToString()
    leaf = helper.make_node("Identity", ["x"], ["o"]).SerializeToString()
    graph = field(1, leaf) + field(2, b"g") + field(12, output)
    for _ in range(depth):
        branch = field(1, b"then_branch") + field(6, graph) + varint(20 << 3) + b"\x05"
        node = field(1, b"c") + field(2, b"o") + field(4, b"If") + field(5, branch)
        graph = field(1, node) + field(2, b"g") + field(12, output)
    return b"\x08\x08" + field(7, graph)


def test_subgraphs_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(nested(10_000))
    with pytest.raises(ModelError, match="nested too deeply"):
        load(tmp_path / "m.onnx")


def test_a_circle_of_nodes() -> None:
    proto = model_with()
    proto.graph.node.insert(0, helper.make_node("Add", ["x", "b"], ["a"], "first"))
    proto.graph.node.insert(1, helper.make_node("Relu", ["a"], ["b"], "second"))
    with pytest.raises(ModelError, match=r"node 'first' \(Add\) reads 'b' before anything defines"):
        from_proto(proto)


LONG = 1 << 40


ENLARGING = ["ConstantOfShape", "Expand", "Tile", "Range", "Pad", "RandomNormal"]


def enlarging(op: str) -> Model:
    """A few bytes that ask for 2^40 elements, which an addition reads."""
    i64 = TensorProto.INT64
    constants = {
        "n": helper.make_tensor("n", i64, [1], [LONG]),
        "pads": helper.make_tensor("pads", i64, [2], [LONG, 0]),
        "one": helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        "start": helper.make_tensor("start", TensorProto.FLOAT, [], [0.0]),
        "step": helper.make_tensor("step", TensorProto.FLOAT, [], [1.0]),
        "end": helper.make_tensor("end", TensorProto.FLOAT, [], [float(LONG)]),
    }
    reads = {
        "ConstantOfShape": ["n"],
        "Expand": ["one", "n"],
        "Tile": ["one", "n"],
        "Range": ["start", "end", "step"],
        "Pad": ["one", "pads"],
        "RandomNormal": [],
    }[op]
    attributes = {"shape": [LONG]} if op == "RandomNormal" else {}
    nodes = [
        helper.make_node(op, reads, ["long"], **attributes),
        helper.make_node("Add", ["x", "long"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [constants[name] for name in reads],
    )
    opsets = [helper.make_opsetid("", 17)]
    return from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.mark.parametrize("op", ENLARGING)
def test_vectors_of_any_length_are_not_set_up(op: str) -> None:
    model = enlarging(op)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    infer_shapes(model)
    PassManager(simplify_pipeline()).run(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    (long,) = (v for v in model.graph.values() if v.name == "long")
    assert long.const is None


@pytest.mark.parametrize("op", [name for name in ENLARGING if name != "RandomNormal"])
def test_results_too_large_to_compile_are_named(tmp_path: Path, op: str) -> None:
    pytest.importorskip("tvm")
    from secateur.backends.tvm.compile import compile_model
    from secateur.backends.tvm.targets import parse_target

    with pytest.raises(UnsupportedError, match=rf"\({op}\): result 'long' of 109951162777"):
        compile_model(enlarging(op), parse_target("x86-64-v3"), tmp_path / "m.so")
    assert not list(tmp_path.iterdir())


def test_random_inputs_have_a_limit() -> None:
    info = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, LONG])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["y"])], "g", [info], [out])
    model = from_proto(helper.make_model(graph))
    with pytest.raises(SecateurError, match=r"'image'.*too many.*--input-shape"):
        random_feed(model, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_inference_survives_operands_of_unknown_types() -> None:
    """Some of ONNX's rules read the type of an operand that has none."""
    found = odd_types.failures(list(odd_types.models(kinds=2)), infer_shapes)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_inference_survives_operands_of_any_type() -> None:
    found = odd_types.failures(list(odd_types.models()), infer_shapes)
    assert not found, "\n".join(found)


def chain(op_type: str, domain: str = "", **attributes: object) -> Model:
    """An operator on a value of unknown type, and on one whose type inference finds."""
    nodes = [
        helper.make_node("Unknown", ["x"], ["u"], domain="elsewhere"),
        helper.make_node(op_type, ["u"], ["a"], domain=domain, **attributes),
        helper.make_node("Relu", ["x"], ["v"]),
        helper.make_node(op_type, ["v"], ["b"], domain=domain, **attributes),
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in "ab"]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph(nodes, "g", [x], outputs)
    imports = [("", 22), ("elsewhere", 1), ("ai.onnx.ml", 4)]
    opsets = [helper.make_opsetid(*entry) for entry in imports]
    return from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


@pytest.mark.parametrize(
    ("op_type", "domain", "attributes"),
    [
        ("EyeLike", "", {}),
        ("LabelEncoder", "ai.onnx.ml", {"keys_floats": [0.0], "values_floats": [1.0]}),
    ],
)
def test_operators_that_need_types_have_them_inferred(
    op_type: str, domain: str, attributes: dict[str, object]
) -> None:
    model = chain(op_type, domain, **attributes)
    infer_shapes(model)
    unknown, known = model.graph.outputs
    assert unknown.type is None or unknown.shape is None
    assert known.shape == (2, 3)
    assert [n.domain for n in model.graph.nodes if n.op_type == op_type] == [domain] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize(
    ("op_type", "inputs", "outputs", "attributes"),
    [
        *(
            ("LayerNormalization", 2, 3, {"axis": axis})
            for axis in (2**31, 2**32 - 2, 2**62, 2**63 - 1, -(2**63))
        ),
        *(("Split", 1, outputs, {"num_outputs": outputs - 1}) for outputs in (2, 3, 9)),
    ],
)
def test_inference_survives_attributes(
    op_type: str, inputs: int, outputs: int, attributes: dict[str, int]
) -> None:
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, ["x", "s"][:inputs], names, **attributes)
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, [3]),
    ]
    results = [onnx.ValueInfoProto(name=name) for name in names]
    graph = helper.make_graph([node], "g", infos, results)
    opsets = [helper.make_opsetid("", 18)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert not odd_types.failures([("model", proto)], infer_shapes)
    with pytest.raises(ModelError, match=rf"node 'y0' \({op_type}\): "):
        infer_shapes(from_proto(proto))
