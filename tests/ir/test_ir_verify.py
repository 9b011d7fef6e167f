"""The verifier: every rule against a model that breaks it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from secateur.ir.errors import ModelError
from secateur.ir.graph import Attribute, Node, Value
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.tensor import Tensor
from secateur.ir.text import parse_model
from secateur.ir.verify import verify


def base() -> Model:
    """x -> conv -> relu -> y, and an If whose branches capture the convolution's result."""
    branches = {}
    for name in ("then_branch", "else_branch"):
        info = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        node = helper.make_node("Relu", ["c"], [f"{name}_out"], name=f"{name}_relu")
        branches[name] = helper.make_graph([node], name, [], [info])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("If", ["flag"], ["y"], name="choose", **branches),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("r", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.ones((3, 2, 1, 1), np.float32), "w")],
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    infer_shapes(model)
    return model


def find(model: Model, name: str) -> Node:
    return next(n for n in model.all_nodes() if n.name == name)


def output(node: Node) -> Value:
    value = node.outputs[0]
    assert value is not None
    return value


def use_before_definition(model: Model) -> None:
    model.graph.nodes.reverse()


def use_before_definition_in_subgraph(model: Model) -> None:
    nodes = model.graph.nodes
    nodes.insert(0, nodes.pop())


def never_defined(model: Model) -> None:
    find(model, "relu").set_input(0, Value("nowhere"))


def removed_producer(model: Model) -> None:
    model.graph.nodes.remove(find(model, "conv"))


def captured_but_never_defined(model: Model) -> None:
    find(model, "then_branch_relu").set_input(0, Value("nowhere"))


def removed_reader(model: Model) -> None:
    find(model, "relu").graph = None


def stale_use(model: Model) -> None:
    extra = Node("Relu", [output(find(model, "conv"))], [Value("unused")], name="extra")
    model.graph.add_node(extra)
    extra.graph = None
    model.graph.nodes.remove(extra)


def lost_use(model: Model) -> None:
    output(find(model, "conv")).uses.clear()


def two_values_of_one_name(model: Model) -> None:
    output(find(model, "relu")).name = "c"


def name_of_an_input_again(model: Model) -> None:
    output(find(model, "relu")).name = "x"


def subgraph_hides_what_it_reads(model: Model) -> None:
    body = find(model, "choose").subgraphs()[0]
    hiding = Node("Relu", [model.graph.inputs[0]], [Value("c")], name="hiding")
    body.add_node(hiding)
    body.nodes.reverse()


def initializer_under_another_name(model: Model) -> None:
    model.graph.initializers["w"].name = "v"


def initializer_without_tensor(model: Model) -> None:
    model.graph.initializers["w"].const = None


def initializer_of_another_type(model: Model) -> None:
    model.graph.initializers["w"].const = Tensor.from_array(np.ones((3, 2, 1, 1), np.int8))


def initializer_of_another_shape(model: Model) -> None:
    model.graph.initializers["w"].set_tensor_type(TensorProto.FLOAT, [3, 2, 3, 3])


def output_without_producer(model: Model) -> None:
    model.graph.set_output(1, Value("nobody"))


def wrong_producer(model: Model) -> None:
    output(find(model, "relu")).producer = find(model, "conv")


def too_few_inputs(model: Model) -> None:
    find(model, "conv").set_inputs([model.graph.inputs[0]])


def too_many_inputs(model: Model) -> None:
    find(model, "relu").set_input(1, model.graph.inputs[0])


def missing_input(model: Model) -> None:
    conv = find(model, "conv")
    conv.set_inputs([None, conv.inputs[1]])


def too_many_outputs(model: Model) -> None:
    relu = find(model, "relu")
    extra = Value("extra")
    extra.producer, extra.output_index = relu, 1
    relu.outputs = (*relu.outputs, extra)


def unknown_attribute(model: Model) -> None:
    find(model, "relu").set("slope", 0.5)


def attribute_of_another_type(model: Model) -> None:
    find(model, "conv").set("group", 1.0)


def missing_attribute(model: Model) -> None:
    del find(model, "choose").attributes["else_branch"]


def type_that_the_operator_does_not_take(model: Model) -> None:
    find(model, "conv").set_input(0, model.graph.inputs[1])


def operands_of_different_types(model: Model) -> None:
    weight = model.graph.add_initializer("w64", Tensor.from_array(np.ones((3, 2, 1, 1))))
    find(model, "conv").set_input(1, weight)


def result_of_another_type(model: Model) -> None:
    output(find(model, "relu")).set_tensor_type(TensorProto.DOUBLE, None)


def domain_not_imported(model: Model) -> None:
    find(model, "relu").domain = "com.example"


def domain_imported_twice(model: Model) -> None:
    model.extra.opset_import.append(helper.make_opsetid("ai.onnx", 17))


def subgraph_of_another_node(model: Model) -> None:
    find(model, "choose").subgraphs()[0].parent = find(model, "relu")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (use_before_definition, r"node 'choose_relu|node '.*' \(\w+\): '.*' is used before"),
        (use_before_definition_in_subgraph, r"_branch_relu.*'c' is used before it is defined"),
        (never_defined, r"node 'relu' \(Relu\): 'nowhere' is not defined by anything"),
        (removed_producer, r"node 'relu' \(Relu\): 'c' is not defined by anything"),
        (captured_but_never_defined, r"then_branch_relu.*'nowhere' is not defined"),
        (removed_reader, r"node 'conv' \(Conv\): the removed node 'relu'"),
        (stale_use, r"node 'conv' \(Conv\): the removed node 'extra'"),
        (lost_use, r"node 'relu' \(Relu\): 'c' lacks its use as input 0"),
        (two_values_of_one_name, r"node 'relu' \(Relu\): value 'c' is defined twice"),
        (name_of_an_input_again, r"node 'relu' \(Relu\): value 'x' is defined twice"),
        (subgraph_hides_what_it_reads, r"else_branch_relu'.*'c' is the name of another value"),
        (initializer_under_another_name, r"initializer 'v' is filed under the name 'w'"),
        (initializer_without_tensor, r"initializer 'w' is not a constant"),
        (initializer_of_another_type, r"initializer 'w' holds INT8, but is declared as FLOAT"),
        (initializer_of_another_shape, r"initializer 'w' has shape \[3, 2, 1, 1\]"),
        (output_without_producer, r"graph output: 'nobody' is not defined"),
        (wrong_producer, r"node 'relu' \(Relu\): output 'r' has another producer"),
        (too_few_inputs, r"node 'conv' \(Conv\): has 1 inputs, the operator takes 2 to 3"),
        (too_many_inputs, r"node 'relu' \(Relu\): has 2 inputs, the operator takes 1"),
        (missing_input, r"node 'conv' \(Conv\): input 'X' is missing"),
        (too_many_outputs, r"node 'relu' \(Relu\): has 2 outputs, the operator takes 1"),
        (unknown_attribute, r"node 'relu' \(Relu\): the operator has no attribute 'slope'"),
        (attribute_of_another_type, r"node 'conv' \(Conv\): attribute 'group' is of type FLOAT"),
        (missing_attribute, r"node 'choose' \(If\): attribute 'else_branch' is missing"),
        (type_that_the_operator_does_not_take, r"node 'conv' \(Conv\): input 0 'flag'.*bool"),
        (operands_of_different_types, r"node 'conv' \(Conv\): input 1 'w64'.*double"),
        (result_of_another_type, r"node 'relu' \(Relu\): output 0 'r'.*double"),
        (domain_not_imported, r"node 'relu' \(Relu\): .*no operator set 'com.example'"),
        (domain_imported_twice, r"operator set 'ai.onnx' is imported twice"),
        (subgraph_of_another_node, r"node 'choose' \(If\): a subgraph belongs to another node"),
    ],
    ids=lambda x: x.__name__ if callable(x) else "",
)
def test_damage_is_found(damage: Callable[[Model], None], message: str) -> None:
    model = base()
    verify(model)
    damage(model)
    with pytest.raises(ModelError, match=message):
        verify(model)


def test_bodies_of_functions_are_checked() -> None:
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"], name="inner")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = base()
    proto = ModelProto()
    proto.functions.append(function)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    call = helper.make_node("F", ["x"], ["y"], domain="local", name="call")
    model = from_proto(
        helper.make_model(
            helper.make_graph([call], "g", infos[:1], infos[1:]),
            functions=[function],
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        )
    )
    verify(model)
    body = next(iter(model.functions.values())).graph.nodes[0]
    body.attributes["alpha"] = Attribute.of("alpha", 1.0)
    with pytest.raises(ModelError, match=r"node 'inner'.*no attribute 'alpha'"):
        verify(model)
    del body.attributes["alpha"]
    model.graph.nodes[0].set_input(1, model.graph.inputs[0])
    with pytest.raises(ModelError, match=r"node 'call' \(F\): has 2 inputs"):
        verify(model)


SCOPES = """\
model <ir_version = 10, opset = ["" = 17, "local" = 1]>
graph g (%x: float[4], %flag: bool[]) -> (%y) {
  %f = "local"::F(%x)
  %y = If(%flag) {then_branch = graph then () -> (%t) {
      %a = Relu @a(%f) : float[4]
      %b = Neg @b(%a) : float[4]
      %t = Add @c(%a, %b)
    }, else_branch = graph no () -> (%e) {
      %e = Neg(%f)
    }}
}

function "local"::F <> opset ["" = 17] (%p) -> (%t) {
  %a = Relu @a(%p) : float[4]
  %b = Neg @b(%a) : float[4]
  %t = Add @c(%a, %b)
}
"""

INNER: list[tuple[Callable[[list[Node]], object], str]] = [
    (lambda n: n[1].set_input(0, Value("nowhere")), r"'b' \(Neg\): 'nowhere' is not defined"),
    (lambda n: n[1].set_input(0, n[2].outputs[0]), r"'b' \(Neg\): 't' is used before"),
    (lambda n: n[1].set_input(0, n[1].outputs[0]), r"'b' \(Neg\): 'b' is used before"),
    (lambda n: setattr(output(n[1]), "name", "a"), r"'b' \(Neg\): value 'a' is defined twice"),
    (lambda n: n[1].set_input(1, n[0].outputs[0]), r"'b' \(Neg\): has 2 inputs"),
    (lambda n: n[1].set("alpha", 1.0), r"'b' \(Neg\): the operator has no attribute 'alpha'"),
    (
        lambda n: output(n[1]).set_tensor_type(TensorProto.INT64, [4]),
        r"'b' \(Neg\): output 0 'b' is a tensor\(int64\), but .*tensor\(float\)",
    ),
    (lambda n: setattr(n[1], "domain", "com.odd"), r"'b' \(Neg\): .* no operator set 'com.odd'"),
    (lambda n: n[1].graph.set_output(0, Value("gone")), r"graph output: 'gone' is not defined"),
]


@pytest.mark.parametrize("scope", ["branch", "function"])
@pytest.mark.parametrize(("damage", "message"), INNER, ids=[m[11:40] for _, m in INNER])
def test_damage_inside_is_found(
    scope: str, damage: Callable[[list[Node]], object], message: str
) -> None:
    model = parse_model(SCOPES)
    verify(model)
    function = next(iter(model.functions.values())).graph
    damage((function if scope == "function" else model.graph.nodes[1].subgraphs()[0]).nodes)
    with pytest.raises(ModelError, match=message):
        verify(model)


def test_unknown_operators_pass() -> None:
    model = base()
    relu = find(model, "relu")
    relu.domain, relu.op_type = "com.example", "Whatever"
    model.extra.opset_import.append(helper.make_opsetid("com.example", 1))
    relu.set("anything", [1, 2])
    verify(model)


def seconds(count: int) -> float:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("v0", f"v{count}")]
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    model = from_proto(helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:])))
    start = time.perf_counter()
    verify(model)
    return time.perf_counter() - start


def test_time_is_linear() -> None:
    seconds(500)  # warm the signatures' cache
    small = min(seconds(1000) for _ in range(3))
    large = min(seconds(10000) for _ in range(3))
    assert large < 30 * small
