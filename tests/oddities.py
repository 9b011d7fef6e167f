"""Models as the world writes them: a few small bases, each with one thing that is odd about it.

`ODDITIES` maps names to functions that change a model proto in place, or return another.
Every oddity is one that onnx.checker accepts on at least one base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Oddity = Callable[[ModelProto], "ModelProto | None"]

BASES: dict[str, Callable[[], ModelProto]] = {}
ODDITIES: dict[str, Oddity] = {}


def base(function: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
    BASES[function.__name__] = function
    return function


def oddity(function: Oddity) -> Oddity:
    ODDITIES[function.__name__] = function
    return function


def all_oddities() -> Iterator[tuple[str, str]]:
    """Pairs of a base and an oddity that goes with it."""
    for base_name in BASES:
        for name in ODDITIES:
            yield base_name, name


def make(base_name: str, name: str) -> ModelProto | None:
    """The odd model; None where the oddity does nothing to that base, or breaks it."""
    proto = BASES[base_name]()
    before = proto.SerializeToString(deterministic=True)
    try:
        found = ODDITIES[name](proto)
    except (IndexError, KeyError):  # there is no such thing in that base
        return None
    proto = proto if found is None else found
    if proto.SerializeToString(deterministic=True) == before:
        return None
    try:
        onnx.checker.check_model(proto)
    except Exception:  # the checker raises several unrelated types
        return None
    return proto


# --- bases -----------------------------------------------------------------------


def weights(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def floats(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def model(graph: onnx.GraphProto, opset: int = 17, ir_version: int = 8) -> ModelProto:
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


@base
def convolutions() -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1] * 4),
        helper.make_node("Add", ["r1", "c2"], ["s"], "add"),
        helper.make_node("MaxPool", ["s"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"], "global"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "classify"),
    ]
    constants = [weights("w1", 8, 3, 3, 3), weights("b1", 8), weights("w2", 8, 8, 3, 3)]
    constants.append(weights("w3", 8, 4))
    inputs, outputs = [floats("x", 1, 3, 8, 8)], [floats("y", 1, 4)]
    infos = [floats("c1", 1, 8, 8, 8), floats("p", 1, 8, 4, 4)]
    return model(helper.make_graph(nodes, "net", inputs, outputs, constants, value_info=infos))


@base
def shapes() -> ModelProto:
    """An open batch, and arithmetic on sizes."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "product"),
        helper.make_node("Shape", ["m"], ["n"], "shape"),
        helper.make_node("Gather", ["n", "zero"], ["first"], "first"),
        helper.make_node("Concat", ["first", "rest"], ["sizes"], "sizes", axis=0),
        helper.make_node("Reshape", ["m", "sizes"], ["h"], "split"),
        helper.make_node("Transpose", ["h"], ["t"], "turn", perm=[0, 2, 1]),
        helper.make_node("Softmax", ["t"], ["y"], "softmax", axis=-1),
    ]
    constants = [
        weights("w", 6, 8),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([2, -1], np.int64), "rest"),
    ]
    return model(
        helper.make_graph(nodes, "net", [floats("x", "n", 6)], [floats("y", "n", 4, 2)], constants)
    )


@base
def branches() -> ModelProto:
    """An If on an input, whose branches capture values."""
    yes = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["a"])], "yes", [], [
        floats("a", 2, 4)
    ])  # fmt: skip
    no = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "no", [], [floats("b", 2, 4)])
    nodes = [
        helper.make_node("Cast", ["flag"], ["condition"], "cast", to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["z"], "choose", then_branch=yes, else_branch=no),
        helper.make_node("Add", ["z", "x"], ["y"], "add"),
    ]
    flag = helper.make_tensor_value_info("flag", TensorProto.INT64, [])
    inputs, outputs = [floats("x", 2, 4), flag], [floats("y", 2, 4)]
    return model(helper.make_graph(nodes, "net", inputs, outputs, [weights("w", 4, 4)]))


@base
def one_node() -> ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    return model(helper.make_graph(nodes, "net", [floats("x", 2, 3)], [floats("y", 2, 3)]))


@base
def state() -> ModelProto:
    """A recurrent step: scalar sample rate, state in and state out."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "front"], ["steps"], "unsqueeze"),
        helper.make_node("GRU", ["steps", "w", "r", "", "", "h"], ["all", "hn"], "gru",
                         hidden_size=3, linear_before_reset=1),
        helper.make_node("Equal", ["sr", "rate"], ["is16"], "equal"),
        helper.make_node("Where", ["is16", "hn", "h"], ["state"], "where"),
        helper.make_node("Squeeze", ["state", "front"], ["y"], "squeeze"),
    ]  # fmt: skip
    rate = helper.make_tensor_value_info("sr", TensorProto.INT64, [])
    constants = [
        weights("w", 1, 9, 4),
        weights("r", 1, 9, 3),
        numpy_helper.from_array(np.array(16000, np.int64), "rate"),
        numpy_helper.from_array(np.array([0], np.int64), "front"),
    ]
    inputs = [floats("x", "n", 4), rate, floats("h", 1, "n", 3)]
    outputs = [floats("y", "n", 3), floats("state", 1, "n", 3)]
    return model(helper.make_graph(nodes, "net", inputs, outputs, constants))


# --- helpers ---------------------------------------------------------------------


def with_every_name_changed(proto: ModelProto, change: Callable[[str], str]) -> ModelProto:
    """A copy whose values, in subgraphs too, have other names."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    _rename(copy.graph, change)
    return copy


def _rename(graph: onnx.GraphProto, change: Callable[[str], str]) -> None:
    for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        named.name = change(named.name)
    for node in graph.node:
        for names in (node.input, node.output):
            changed = [name and change(name) for name in names]
            del names[:]
            names.extend(changed)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, change)


# --- sizes -----------------------------------------------------------------------


def tensor_dims(proto: ModelProto, *lists: str) -> Iterator[onnx.TensorShapeProto.Dimension]:
    for name in lists:
        for info in getattr(proto.graph, name):
            yield from info.type.tensor_type.shape.dim


def set_sizes(*lists: str, first: bool, value: int | str | None) -> Oddity:
    def change(proto: ModelProto) -> None:
        for name in lists:
            for info in getattr(proto.graph, name):
                dims = info.type.tensor_type.shape.dim
                for dim in dims[:1] if first else dims:
                    dim.Clear()
                    if isinstance(value, str):
                        dim.dim_param = value
                    elif value is not None:
                        dim.dim_value = value

    return change


for _value in (
    -1,
    0,
    -(2**62),
    None,
    "batch",
    "-1 ",
    "?",
    "0 ",
    "x y",
    "a+b*c",
    "None",
    "π",
    "n" * 500,
):
    for _lists in (("input",), ("output",), ("value_info",), ("input", "output", "value_info")):
        for _first in (True, False):
            _name = f"sizes_{str(_value)[:8]}_{'_'.join(_lists)}_{'first' if _first else 'all'}"
            ODDITIES[_name] = set_sizes(*_lists, first=_first, value=_value)


@oddity
def no_shapes(proto: ModelProto) -> None:
    for info in (*proto.graph.output, *proto.graph.value_info):
        info.type.tensor_type.ClearField("shape")


@oddity
def no_input_shapes(proto: ModelProto) -> None:
    for info in proto.graph.input:
        info.type.tensor_type.ClearField("shape")


@oddity
def untyped_outputs(proto: ModelProto) -> None:
    for info in proto.graph.output:
        info.ClearField("type")


@oddity
def no_value_info(proto: ModelProto) -> None:
    del proto.graph.value_info[:]


@oddity
def wrong_value_info(proto: ModelProto) -> None:
    for info in proto.graph.value_info:
        info.type.tensor_type.shape.dim[0].dim_value = 77


@oddity
def wrong_rank(proto: ModelProto) -> None:
    proto.graph.value_info[0].type.tensor_type.shape.dim.add(dim_value=3)


@oddity
def wrong_output_shape(proto: ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = 77


@oddity
def value_info_of_nothing(proto: ModelProto) -> None:
    proto.graph.value_info.append(floats("nobody", 1, 2))


@oddity
def value_info_twice(proto: ModelProto) -> None:
    proto.graph.value_info.append(proto.graph.value_info[0])


@oddity
def huge_input(proto: ModelProto) -> None:
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_value = 2**40


# --- operator sets and versions --------------------------------------------------


def imports(*entries: tuple[str, int]) -> Oddity:
    def change(proto: ModelProto) -> None:
        del proto.opset_import[:]
        proto.opset_import.extend(helper.make_opsetid(*entry) for entry in entries)

    return change


ODDITIES["opset_twice"] = imports(("", 17), ("", 17))
ODDITIES["opset_twice_alias"] = imports(("", 17), ("ai.onnx", 17))
ODDITIES["opset_alias"] = imports(("ai.onnx", 17))
ODDITIES["opset_two_versions"] = imports(("", 13), ("", 17))
ODDITIES["opset_two_versions_down"] = imports(("", 17), ("", 13))
ODDITIES["opset_alias_versions"] = imports(("", 13), ("ai.onnx", 17))
ODDITIES["opset_unknown_domains"] = imports(("", 17), ("no.such", 3), ("", 17), ("no.such", 4))
ODDITIES["opset_ml"] = imports(("", 17), ("ai.onnx.ml", 3), ("ai.onnx.training", 1))
for _version in (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23, 24, 25, 26):
    ODDITIES[f"opset_{_version}"] = imports(("", _version))


def ir_version(version: int) -> Oddity:
    def change(proto: ModelProto) -> None:
        proto.ir_version = version
        if version < 4:  # initializers are inputs there
            given = {value.name for value in proto.graph.input}
            for tensor in proto.graph.initializer:
                if tensor.name not in given:
                    info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                    proto.graph.input.append(info)

    return change


for _version in range(3, 14):
    ODDITIES[f"ir_version_{_version}"] = ir_version(_version)


@oddity
def initializers_as_inputs(proto: ModelProto) -> None:
    for tensor in proto.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(info)


@oddity
def initializers_as_outputs(proto: ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    proto.graph.output.append(info)


# --- names -----------------------------------------------------------------------

NAMES = {
    "space": " ", "spaces": "a  b", "slash": "/a/b", "dots": "../../a", "backslash": "a\\b",
    "newline": "a\nb", "tab": "a\tb", "return": "a\rb", "quote": "a'b", "quotes": 'a"b',
    "backtick": "a`b", "nul": "a\0b", "percent": "%s%d%n", "braces": "{0}{x}", "unicode": "värde名",
    "emoji": "🙂", "combining": "e\u0301", "bidi": "a\u202eb", "escape": "\x1b[31mred\x1b[0m",
    "long": "n" * 10_000, "keyword": "class", "c_keyword": "while", "main": "main", "digits": "0",
    "number": "123abc", "colon": "dense/BiasAdd:0", "semicolon": "a;b;c", "dollar": "$x",
    "dash": "-o", "option": "--help", "equals": "a=b", "comma": "a,b", "star": "*", "dot": ".",
    "memcpy": "memcpy", "secateur": "secateur_run", "none": "None", "true": "true", "hash": "#x",
    "comment": "*/ //", "markup": "[red]a[/red]", "html": "<b>&amp;</b>", "pipe": "a|b",
    "labels": "labels", "file": "file", "npy": "a.npy", "underscore": "_", "zero_width": "a\u200bb",
}  # fmt: skip


def names(text: str) -> Oddity:
    return lambda proto: with_every_name_changed(proto, lambda name: f"{text}{name}")


for _key, _text in NAMES.items():
    ODDITIES[f"names_{_key}"] = names(_text)


@oddity
def one_name_of_characters(proto: ModelProto) -> ModelProto:
    """The main input and output have names of nothing but the odd text."""
    renamed = {proto.graph.input[0].name: " ", proto.graph.output[0].name: "\n"}
    return with_every_name_changed(proto, lambda name: renamed.get(name, name))


@oddity
def alike_when_cleaned(proto: ModelProto) -> ModelProto:
    """Names that differ in characters only that no identifier has."""
    marks = iter("./:-+*?!@#$%^&()[]{}<>,;'\"`~|\\ =" * 4)
    found: dict[str, str] = {}
    return with_every_name_changed(
        proto, lambda name: found.setdefault(name, f"v{next(marks)}{len(found) // 31 * '_'}")
    )


@oddity
def case_only(proto: ModelProto) -> ModelProto:
    found: dict[str, str] = {}

    def name(old: str) -> str:
        bits = f"{len(found):06b}"
        cased = "".join("Aa"[bit == "1"] for bit in bits)
        return found.setdefault(old, cased)

    return with_every_name_changed(proto, name)


@oddity
def nodes_of_one_name(proto: ModelProto) -> None:
    for node in proto.graph.node:
        node.name = "same"


@oddity
def nodes_without_name(proto: ModelProto) -> None:
    for node in proto.graph.node:
        node.ClearField("name")


@oddity
def nodes_named_as_values(proto: ModelProto) -> None:
    for node in proto.graph.node:
        node.name = "x"


@oddity
def odd_node_names(proto: ModelProto) -> None:
    for node, name in zip(proto.graph.node, NAMES.values(), strict=False):
        node.name = name


@oddity
def odd_graph_name(proto: ModelProto) -> None:
    proto.graph.name = "\x1b]0;x\x07 / \n"


@oddity
def odd_metadata(proto: ModelProto) -> None:
    helper.set_model_props(proto, {name: name for name in NAMES.values()})
    proto.doc_string = proto.producer_name = proto.domain = "a\n\x1b[31m"
    proto.graph.doc_string = "d" * 100_000


# --- interface -------------------------------------------------------------------


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


# --- data ------------------------------------------------------------------------


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
    if _dtype:
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


# --- operators -------------------------------------------------------------------


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
