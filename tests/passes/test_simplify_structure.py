"""Simplification of structure: shape chains, duplicates, transposes, recognised operators."""

# ruff: noqa: E501 - the tables are easier to read with one case a line

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.ir.verify import verify
from secateur.models.zoo import list_models, load_tiny, random_inputs
from secateur.passes.compare import deviation
from secateur.passes.manager import OutputCheck, PassManager
from secateur.passes.simplify import InlineFunctions, Simplify
from tests.feeds import random_feeds

HEADER = 'model <ir_version = 8, opset = ["" = {opset}]>\n'


def parse(body: str, opset: int = 17) -> Model:
    model = parse_model(HEADER.format(opset=opset) + body)
    verify(model)
    return model


def simplified(model: Model, tolerance: float = 2e-6, **sizes: int) -> Model:
    """A simplified copy: equal outputs, valid, and nothing left to simplify."""
    feeds = random_feeds(model, sizes=sizes, default=3)
    copy = model.clone()
    PassManager([Simplify()], check=OutputCheck(feeds, tolerance)).run(copy)
    onnx.checker.check_model(to_proto(copy), full_check=True)
    again = copy.clone()
    assert not Simplify().run(again).changed
    assert to_proto(again) == to_proto(copy)
    return copy


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.graph.nodes]


@pytest.mark.parametrize(("name", "variant"), list_models())
def test_zoo_stays_the_same(name: str, variant: str) -> None:
    model = load_tiny(name, variant)
    PassManager([Simplify()], check=OutputCheck(random_inputs(model), 1e-5)).run(model)
    assert not Simplify().run(model).changed


MOST_NODES = {
    "bert": 122, "bidirectional_lstm": 11, "densenet121": 85, "gqa_decoder": 141, "gru": 9,
    "hard_coded_reshapes": 37,
    "inception_v3": 96, "lstm": 9, "mobilenet_v2": 38, "mobilenet_v3_small": 59, "resnet50": 58,
    "shufflenet_v1": 53, "shufflenet_v2": 98, "vit_tiny": 112, "yolo": 234,
}  # fmt: skip
"""Nodes that exports with shape chains end with: no more than the best peer leaves."""


@pytest.mark.parametrize("name", MOST_NODES)
def test_zoo_ends_with_few_nodes(name: str) -> None:
    model = load_tiny(name, "kept")
    Simplify().run(model)
    assert len(list(model.all_nodes())) <= MOST_NODES[name]


# --- duplicates ----------------------------------------------------------------------------


def test_equal_constants_and_computations_are_merged() -> None:
    model = parse("""
graph g (%x: float[N, 4]) -> (%y: float[N, 8]) {
  const %a: float[4] = [1.0, 2.0, 3.0, 4.0]
  const %b: float[4] = [1.0, 2.0, 3.0, 4.0]
  %m = Mul(%x, %a)
  %n = Mul(%x, %b)
  %p = Softmax(%m) {axis = -1}
  %q = Softmax(%n)
  %y = Concat(%p, %q) {axis = 1}
}""")
    small = simplified(model)
    assert operators(small) == ["Mul", "Softmax", "Concat"]
    assert len(small.graph.initializers) == 1


def test_random_and_different_computations_are_not_merged() -> None:
    model = parse("""
graph g (%x: float[2]) -> (%y: float[2], %z: float[2]) {
  %r = RandomNormal() {shape = [2]}
  %s = RandomNormal() {shape = [2]}
  %a = Add(%r, %s)
  %y = Add(%a, %x)
  %e = Elu(%x) {alpha = 0.5}
  %f = Elu(%x)
  %z = Sub(%e, %f)
}""")
    Simplify().run(model)
    assert operators(model) == ["RandomNormal", "RandomNormal", "Add", "Add", "Elu", "Elu", "Sub"]


def test_constants_that_differ_in_one_element_stay_apart() -> None:
    first = np.zeros(5000, np.float32)
    second = first.copy()
    second[4321] = 1
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [5000]) for n in "xy"]
    nodes = [helper.make_node("Max", ["x", "a"], ["m"]), helper.make_node("Mul", ["m", "b"], ["y"])]
    values = [numpy_helper.from_array(a, n) for a, n in ((first, "a"), (second, "b"))]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], values)
    opsets = [helper.make_opsetid("", 17)]
    small = simplified(from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8)))
    assert len(small.graph.initializers) == 2


# --- movement ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("%a = Transpose(%x) {perm = [1, 0, 2]}\n %y = Transpose(%a) {perm = [1, 0, 2]}", "Identity"),
        ("%a = Transpose(%x) {perm = [1, 0, 2]}\n %y = Transpose(%a) {perm = [0, 2, 1]}", "Transpose"),
        ("%a = Cast(%x) {to = 11}\n %y = Cast(%a) {to = 10}", "Cast"),
        ("%a = Cast(%x) {to = 10}\n %y = Cast(%a) {to = 11}", "Cast Cast"),
        ("%a = Relu(%x)\n %y = Relu(%a)", "Relu"),
        ("%a = Relu(%x)\n %y = Clip(%a, %zero, %six)", "Clip"),
        ("%a = Clip(%x, %zero, %six)\n %y = Relu(%a)", "Clip"),
        ("%a = Clip(%x, %minus, %six)\n %y = Relu(%a)", "Clip"),
        ("%a = Concat(%x, %x) {axis = 0}\n %y = Concat(%a, %x) {axis = -3}", "Concat"),
        ("%a, %b = Split(%x) {axis = 2, num_outputs = 2}\n %y = Concat(%a, %b) {axis = 2}", "Identity"),
        ("%a, %b = Split(%x) {axis = 2, num_outputs = 2}\n %y = Concat(%b, %a) {axis = 2}", "Split Concat"),
        ("%a = Slice(%x, %i0, %i1, %i0)\n %y = Slice(%a, %i0, %i1, %i2)", "Slice"),
        ("%a = Slice(%x, %i0, %i1, %i2)\n %y = Squeeze(%a, %i2)", "Gather"),
        ("%s = Sqrt(%x)\n %a = Reciprocal(%s)\n %y = Mul(%x, %a)", "Sqrt Div"),
    ],
)  # fmt: skip
def test_pairs(body: str, left: str) -> None:
    model = parse(f"""
graph g (%x: float[2, 3, 4]) -> (%y: ?) {{
  const %zero: float[] = 0.0
  const %minus: float[] = -1.0
  const %six: float[] = 6.0
  const %i0: int64[1] = [0]
  const %i1: int64[1] = [1]
  const %i2: int64[1] = [2]
  {body}
}}""", opset=18)  # fmt: skip
    feeds = {"x": np.abs(random_feeds(model)["x"])}
    copy = model.clone()
    PassManager([Simplify()], check=OutputCheck(feeds)).run(copy)
    assert " ".join(operators(copy)) == left


def test_transposes_around_a_residual_block_vanish() -> None:
    """NHWC code on NCHW operators, as TensorFlow exporters write it."""
    model = parse("""
graph g (%x: float[N, 4, 6, 6]) -> (%y: float[N, 4, 6, 6]) {
  const %k: float[4] = [1.0, 2.0, 3.0, 4.0]
  %a = Transpose(%x) {perm = [0, 2, 3, 1]}
  %s = Sigmoid(%x)
  %b = Transpose(%s) {perm = [0, 2, 3, 1]}
  %sum = Add(%a, %b)
  %m = Mul(%sum, %k)
  %r = Relu(%m)
  %y = Transpose(%r) {perm = [0, 3, 1, 2]}
}""")
    assert operators(simplified(model)) == ["Sigmoid", "Add", "Mul", "Relu"]


# --- recognised ----------------------------------------------------------------------------

ACTIVATIONS = {
    "hard-swish": ("%s = Add(%x, %three)\n %c = Clip(%s, %zero, %six)\n %m = Mul(%x, %c)\n %y = Div(%m, %six)",
                   14, "HardSwish"),
    "hard-swish of hard-sigmoid": ("%h = HardSigmoid(%x) {alpha = 0.16666667, beta = 0.5}\n %y = Mul(%h, %x)",
                                   14, "HardSwish"),
    "hard-swish too early": ("%s = Add(%x, %three)\n %c = Clip(%s, %zero, %six)\n %m = Mul(%x, %c)\n %y = Div(%m, %six)",
                             13, "Add Clip Mul Div"),
    "hard-sigmoid": ("%s = Add(%x, %three)\n %c = Clip(%s, %zero, %six)\n %y = Div(%c, %six)", 13, "HardSigmoid"),
    "other bounds": ("%s = Add(%x, %three)\n %c = Clip(%s, %zero, %three)\n %y = Div(%c, %six)", 13, "Add Clip Div"),
    "gelu": ("%d = Div(%x, %root)\n %e = Erf(%d)\n %p = Add(%e, %one)\n %h = Mul(%x, %half)\n %y = Mul(%h, %p)",
             20, "Gelu"),
    "other half": ("%d = Div(%x, %root)\n %e = Erf(%d)\n %p = Add(%e, %one)\n %h = Mul(%x, %one)\n %y = Mul(%h, %p)",
                   20, "Div Erf Add Mul"),
    "tanh gelu": ("%c = Pow(%x, %three)\n %k = Mul(%c, %cubic)\n %i = Add(%x, %k)\n %j = Mul(%i, %pi)\n"
                  " %t = Tanh(%j)\n %p = Add(%t, %one)\n %h = Mul(%half, %x)\n %y = Mul(%h, %p)", 20, "Gelu"),
    "mish": ("%s = Softplus(%x)\n %t = Tanh(%s)\n %y = Mul(%x, %t)", 18, "Mish"),
    "swish": ("%s = Sigmoid(%x)\n %y = Mul(%x, %s)", 24, "Swish"),
    "two gates": ("%s = Sigmoid(%x)\n %t = Sigmoid(%s)\n %y = Mul(%x, %t)", 24, "Sigmoid Sigmoid Mul"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    body, opset, left = ACTIVATIONS[name]
    model = parse(f"""
graph g (%x: float[N, 4]) -> (%y: float[N, 4]) {{
  const %zero: float[] = 0.0
  const %one: float[] = 1.0
  const %half: float[] = 0.5
  const %three: float[] = 3.0
  const %six: float[] = 6.0
  const %root: float[] = 1.4142135
  const %cubic: float[] = 0.044715
  const %pi: float[] = 0.7978846
  {body}
}}""", opset=opset)  # fmt: skip
    assert " ".join(operators(simplified(model))) == left


@pytest.mark.parametrize(
    ("name", "contrib"), [("gelu", "Gelu"), ("tanh gelu", "FastGelu"), ("swish", "QuickGelu")]
)
def test_operators_of_onnx_runtime_on_request(name: str, contrib: str) -> None:
    constants = {
        "one": 1.0,
        "half": 0.5,
        "three": 3.0,
        "root": 2**0.5,
        "cubic": 0.044715,
        "pi": 0.7978846,
    }
    declared = "\n ".join(f"const %{name}: float[] = {value}" for name, value in constants.items())
    model = parse(
        f"graph g (%x: float[N, 4]) -> (%y: float[N, 4]) {{\n {declared}\n {ACTIVATIONS[name][0]}\n}}"
    )
    copy = model.clone()
    PassManager([Simplify(allow_contrib=True)], check=OutputCheck(random_feeds(model), 2e-6)).run(
        copy
    )
    assert [(n.domain, n.op_type) for n in copy.graph.nodes] == [("com.microsoft", contrib)]
    assert not Simplify(allow_contrib=True).run(copy).changed
    assert not any(node.domain for node in simplified(model).all_nodes())


RMS = """
graph g (%x: float[N, 5, 4]) -> (%y: float[N, 5, 4]) {{
  const %two: float[] = 2.0
  const %eps: float[] = 0.01
  const %gamma: float[{gamma}] = [1.0, 2.0, 3.0, 4.0]
  const %last: int64[1] = [{axis}]
  %p = Pow(%x, %two)
  %v = ReduceMean(%p, %last)
  %e = Add(%v, %eps)
  %s = Sqrt(%e)
  %r = Reciprocal(%s)
  %n = Mul(%r, %x)
  %y = Mul(%n, %gamma)
}}"""


@pytest.mark.parametrize(
    ("opset", "gamma", "axis", "left"),
    [
        (23, "4", -1, "RMSNormalization"),
        (23, "4", 2, "RMSNormalization"),
        (22, "4", -1, "Pow ReduceMean Add Sqrt Div Mul"),
        (23, "4", 1, "Pow ReduceMean Add Sqrt Div Mul"),
    ],
)
def test_rms_normalization(opset: int, gamma: str, axis: int, left: str) -> None:
    model = parse(RMS.format(gamma=gamma, axis=axis), opset=opset)
    assert " ".join(operators(simplified(model))) == left


def test_scale_of_attention_goes_into_the_weights() -> None:
    model = parse("""
graph g (%x: float[N, 3, 4]) -> (%y: float[N, 3, 3]) {
  const %w: float[4, 2] = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
  const %u: float[4, 2] = [[1.0, 0.5], [0.25, 4.0], [0.5, 1.5], [2.0, 0.125]]
  const %b: float[2] = [0.5, -0.5]
  const %scale: float[] = 0.70710677
  %q = MatMul(%x, %w)
  %qb = Add(%q, %b)
  %k = MatMul(%x, %u)
  %kt = Transpose(%k) {perm = [0, 2, 1]}
  %s = MatMul(%qb, %kt)
  %m = Mul(%s, %scale)
  %y = Softmax(%m)
}""")
    assert "Mul" not in operators(simplified(model, tolerance=1e-5))


def test_product_and_bias_become_gemm() -> None:
    body = """
graph g (%x: float[N, 2], %z: float[N, 2]) -> (%y: float[N, 2]) {{
  const %w: float[2, 2] = [[1.0, 2.0], [3.0, 4.0]]
  const %b: float[{shape}] = {bias}
  %m = MatMul(%x, %w)
  %y = Add({operands})
}}"""
    for shape, bias in (("2", "[1.0, 2.0]"), ("1, 2", "[[1.0, 2.0]]"), ("", "3.0")):
        for operands in ("%m, %b", "%b, %m"):
            model = parse(body.format(shape=shape, bias=bias, operands=operands))
            assert operators(simplified(model)) == ["Gemm"]
    widened = parse(
        body.format(shape="2, 1, 2", bias="[[[1.0, 2.0]], [[1.0, 2.0]]]", operands="%m, %b")
    )
    widened.graph.outputs[0].type = None
    assert operators(simplified(widened)) == ["MatMul", "Add"]
    residual = parse(body.format(shape="2", bias="[1.0, 2.0]", operands="%m, %z"))
    assert operators(simplified(residual)) == ["MatMul", "Add"]


LINEAR = """
graph g (%x: float[N, 3, 2], %z: float[N, 2, 3]) -> (%y: ?, %v: ?) {{
  const %w: float[2, 4] = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
  const %u: float[2, 4] = [[8.0, 7.0, 6.0, 5.0], [4.0, 3.0, 2.0, 1.0]]
  const %t: float[4, 2] = [[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]]
  const %b: float[4] = [1.0, 2.0, 3.0, 4.0]
  const %half: float[] = 0.5
  const %rows: int64[2] = [-1, 2]
  const %heads: int64[4] = [-1, 3, 2, 2]
  const %back: int64[3] = [-1, 3, 4]
  const %other: int64[3] = [-1, 1, 4]
  const %like_x: int64[3] = [-1, 3, 2]
  %r = Reshape(%z, %like_x)
  {}
}}"""

TWO = (
    "%a = MatMul({0}, %w)\n %c = Add(%a, %b)\n %y = Reshape(%c, %heads)\n"
    "%d = MatMul({0}, %u)\n %e = Add({1})\n %v = Reshape(%e, %heads)"
)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # a Reshape to rows that two products share, or that merges with one before
        (TWO.format("%x", "%b, %d"), "Reshape Gemm Reshape Gemm Reshape"),
        (TWO.format("%r", "%d, %b"), "Reshape Gemm Reshape Gemm Reshape"),
        # one product alone gains nothing, nor does one that is read in between
        ("%a = MatMul(%x, %w)\n %c = Add(%a, %b)\n %y = Reshape(%c, %heads)\n %v = Relu(%x)",
         "MatMul Add Reshape Relu"),
        ("%a = MatMul(%r, %w)\n %c = Add(%a, %b)\n %y = Reshape(%c, %heads)\n %v = Relu(%r)",
         "Reshape MatMul Add Reshape Relu"),
        ("%a = MatMul(%r, %w)\n %c = Add(%a, %b)\n %y = Reshape(%c, %heads)\n %v = Relu(%z)",
         "Reshape Gemm Reshape Relu"),
        # and back, where Gemm needs more nodes
        ("%a = Reshape(%x, %rows)\n %c = Gemm(%a, %w, %b)\n %y = Reshape(%c, %back)\n %v = Relu(%x)",
         "MatMul Add Relu"),
        ("%a = Reshape(%x, %rows)\n %c = Gemm(%a, %t, %b) {transB = 1}\n %y = Reshape(%c, %back)\n"
         " %v = Relu(%x)", "MatMul Add Relu"),
        ("%a = Reshape(%x, %rows)\n %c = Gemm(%a, %w)\n %y = Reshape(%c, %back)\n %v = Relu(%x)",
         "MatMul Relu"),
        ("%a = Reshape(%x, %rows)\n %c = Gemm(%a, %w, %b)\n %y = Reshape(%c, %other)\n %v = Relu(%x)",
         "Reshape Gemm Reshape Relu"),
        ("%a = Reshape(%x, %rows)\n %c = Gemm(%a, %w, %b) {beta = 0.5}\n %y = Reshape(%c, %back)\n"
         " %v = Relu(%x)", "Reshape Gemm Reshape Relu"),
        ("%a = Reshape(%x, %rows)\n %c = Gemm(%a, %w, %b)\n %y = Reshape(%c, %back)\n %v = Relu(%a)",
         "Reshape Gemm Reshape Relu"),
    ],
)  # fmt: skip
def test_product_of_rows_and_back(body: str, left: str) -> None:
    model = parse(LINEAR.format(body))
    assert " ".join(operators(simplified(model))) == left


# --- padding, recurrent states, branches ---------------------------------------------------


@pytest.mark.parametrize(
    ("pads", "value", "mode", "operator", "left"),
    [
        ([0, 0, 1, 2, 0, 0, 2, 1], 0.0, "constant", "Conv(%p, %w)", "Conv"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.5, "constant", "Conv(%p, %w)", "Pad Conv"),
        ([0, 1, 1, 1, 0, 0, 1, 1], 0.0, "constant", "Conv(%p, %w3)", "Pad Conv"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "reflect", "Conv(%p, %w)", "Pad Conv"),
        ([0, 0, -1, 0, 0, 0, 0, 0], 0.0, "constant", "Conv(%p, %w)", "Pad Conv"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "constant", "AveragePool(%p) {kernel_shape = [2, 2]}", "AveragePool"),
        ([0, 0, 2, 2, 0, 0, 2, 2], 0.0, "constant", "AveragePool(%p) {kernel_shape = [2, 2]}", "Pad AveragePool"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "constant",
         "AveragePool(%p) {kernel_shape = [3, 3], pads = [1, 1, 1, 1]}", "Pad AveragePool"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "constant", "MaxPool(%p) {kernel_shape = [2, 2]}", "Pad MaxPool"),
        ([0, 0, 1, 1, 0, 0, 1, 1], float("-inf"), "constant", "MaxPool(%p) {kernel_shape = [2, 2]}", "MaxPool"),
    ],
)  # fmt: skip
def test_padding(pads: list[int], value: float, mode: str, operator: str, left: str) -> None:
    model = parse(f"""
graph g (%x: float[N, 2, 6, 6]) -> (%y: ?) {{
  const %w: float[1, 2, 2, 2] = [[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]]
  const %w3: float[1, 3, 1, 1] = [[[[1.0]], [[3.0]], [[5.0]]]]
  const %pads: int64[8] = {pads}
  const %value: float[] = {value}
  %p = Pad(%x, %pads, %value) {{mode = "{mode}"}}
  %y = {operator}
}}""")
    feeds = random_feeds(model, default=2)
    PassManager([Simplify()], check=OutputCheck(feeds)).run(model)
    assert " ".join(operators(model)) == left


def test_padding_by_zero_after_relu_is_padding_of_a_maximum() -> None:
    model = parse("""
graph g (%x: float[N, 2, 6, 6]) -> (%y: float[N, 2, 7, 7]) {
  const %pads: int64[8] = [0, 0, 1, 1, 0, 0, 1, 1]
  %r = Relu(%x)
  %p = Pad(%r, %pads)
  %y = MaxPool(%p) {kernel_shape = [2, 2]}
}""")
    assert operators(simplified(model)) == ["Relu", "MaxPool"]


def test_initial_states_of_zero_are_dropped() -> None:
    model = parse("""
graph g (%x: float[S, N, 2]) -> (%h: float[1, N, 1]) {
  const %w: float[1, 3, 2] = [[[0.5, 1.0], [0.25, 2.0], [1.0, 0.5]]]
  const %r: float[1, 3, 1] = [[[0.5], [0.25], [1.0]]]
  const %one: int64[1] = [1]
  const %first: int64[] = 1
  const %axis: int64[1] = [0]
  %shape = Shape(%x)
  %n = Gather(%shape, %first)
  %batch = Unsqueeze(%n, %axis)
  %size = Concat(%one, %batch, %one) {axis = 0}
  %zeros = ConstantOfShape(%size)
  _, %h = GRU(%x, %w, %r, _, _, %zeros) {hidden_size = 1}
}""")
    assert operators(simplified(model)) == ["GRU"]


@pytest.mark.parametrize("taken", ["true", "false"])
def test_a_branch_that_is_always_taken_is_inlined(taken: str) -> None:
    """Names inside may be those of the other branch, and results may be captured values."""
    model = parse(f"""
graph g (%x: float[2]) -> (%y: float[2], %z: float[2]) {{
  const %c: bool[] = {taken}
  %r = Relu(%x)
  %y, %z = If(%c) {{then_branch = graph a () -> (%t, %s) {{
      const %k: float[] = 2.0
      %t = Mul(%r, %k)
      %s = Identity(%r)
    }}, else_branch = graph b () -> (%t, %u) {{
      const %k: float[] = 3.0
      %t = Add(%x, %k)
      %u = Neg(%t)
    }}}}
}}""")
    small = simplified(model)
    assert "If" not in operators(small)


def test_functions_are_inlined_on_request() -> None:
    model = parse(
        """
graph g (%x: float[4]) -> (%y: float[4]) {
  %a = "local"::Twice(%x)
  %y = "local"::Twice(%a)
}
function "local"::Twice <> opset ["" = 17] (%a) -> (%b) {
  %i = Identity(%a)
  %b = Add(%i, %i)
}"""
    )
    entry = model.extra.opset_import.add()
    entry.domain, entry.version = "local", 1
    x = {"x": np.arange(4, dtype=np.float32)}
    expected = Session(model).run(x)["y"]
    untouched = model.clone()
    Simplify().run(untouched)
    assert operators(untouched) == ["Twice", "Twice"]
    PassManager([InlineFunctions(), Simplify()]).run(model)
    assert operators(model) == ["Add", "Add"]
    assert deviation(expected, Session(model).run(x)["y"]) == 0


# --- size ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constants", "line", "end"),
    [
        ("", "%v{} = Concat(%v{}, %x) {{axis = 0}}", "Concat"),
        ("", "%v{} = Identity(%v{})", "Identity"),
        ("const %k: float[] = 0.999", "%v{} = Mul(%v{}, %k)", "Mul"),
        ("%s = Shape(%x)\n %n = Size(%s)", "%q{0} = Mul(%n, %n)\n %v{0} = Tanh(%v{1})", "Tanh"),
    ],
)
def test_thousands_of_nodes(constants: str, line: str, end: str) -> None:
    """Chains in which a step that looked at what is before it would take the square."""
    count = 2000
    lines = "\n ".join(line.format(i + 1, i if i else "") for i in range(count))
    lines = lines.replace("(%v,", "(%x,").replace("(%v)", "(%x)")
    model = parse(f"graph g (%x: float[N, 4]) -> (%v{count}: ?) {{\n {constants}\n {lines}\n}}")
    start = time.perf_counter()
    Simplify().run(model)
    assert time.perf_counter() - start < 10
    assert operators(model)[-1] == end
