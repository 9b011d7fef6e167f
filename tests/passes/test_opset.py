"""Other versions of the operator set: the same outputs, or an error that names the node."""

from __future__ import annotations

import re

import onnx
import pytest
from onnx import TensorProto, helper

from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.ir.verify import verify
from secateur.models.zoo import load_tiny, random_inputs
from secateur.passes.compare import allowed_deviation, deviation
from secateur.passes.manager import OutputCheck, PassManager
from secateur.passes.opset import ConvertOpset
from secateur.passes.simplify import Simplify
from tests.backend_cases import Case, generated_cases
from tests.feeds import random_feeds
from tests.passes.test_simplify_backend import expected_outputs

NEWEST = onnx.defs.onnx_opset_version()


def parse(body: str, opset: int) -> Model:
    model = parse_model(f'model <ir_version = 8, opset = ["" = {opset}]>\n{body}')
    verify(model)
    return model


def converted(case: Case, version: int) -> Model | None:
    """The case in another version; None where an error says which node can't be."""
    model = from_proto(case.model)
    try:
        ConvertOpset(version).run(model)
    except UnsupportedError as error:
        if not re.search(r"node '.+' \(\w+\): |can't convert: ", str(error)):
            raise
        return None
    verify(model)
    return model


def compare(cases: list[Case], versions: list[int]) -> tuple[int, int]:
    """How many conversions gave the outputs from before, and how many were refused."""
    same = refused = 0
    for case in cases:
        models = [converted(case, v) for v in versions]
        refused += sum(model is None for model in models)
        found = expected_outputs(case) if any(models) else None
        if found is None:
            continue
        feeds, expected = found
        for model in models:
            if model is None:
                continue
            try:
                actual = Session(model, optimize=False).run(feeds)
            except SecateurError as error:
                if "NOT_IMPLEMENTED" not in str(error):
                    raise
                continue  # no kernel
            same += 1
            for name, output in expected.items():
                off = deviation(output, actual[name])
                assert off <= allowed_deviation(output, 2e-6), f"{case.name} {model.opset} {name}"
    return same, refused


def comparable(case: Case) -> bool:
    """ONNX Runtime's own Attention differs from the function that defines it."""
    return not case.name.startswith("test_attention")


@pytest.mark.parametrize(
    "part", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_backend_cases(part: int) -> None:
    """Every eighth case, older and newer."""
    cases = [c for c in generated_cases() if comparable(c)][2 * part :: 8]
    same, refused = compare(cases, [9 + 2 * part, 18 + 2 * part])
    assert same > 100
    assert refused < 250


@pytest.mark.slow
@pytest.mark.parametrize("version", range(7, NEWEST + 1))
def test_all_backend_cases(version: int) -> None:
    same, _ = compare([c for c in generated_cases() if comparable(c)], [version])
    assert same > 300


@pytest.mark.parametrize("opset", [11, 17, 23])
def test_operator_sets_of_the_zoo(opset: int) -> None:
    for name in ("resnet8", "yolo", "bert", "gru"):
        model = load_tiny(name, "kept")
        feeds = random_inputs(model)
        PassManager([Simplify(), ConvertOpset(opset)], check=OutputCheck(feeds, 1e-5)).run(model)
        assert model.opset == opset
        onnx.checker.check_model(to_proto(model), full_check=True)


def test_old_resize_keeps_its_coordinates() -> None:
    model = parse("""
graph g (%x: float[1, 1, 2, 3]) -> (%y: float[1, 1, 4, 6]) {
  const %scales: float[4] = [1.0, 1.0, 2.0, 2.0]
  %y = Resize(%x, %scales) {mode = "linear"}
}""", opset=10)  # fmt: skip
    PassManager([ConvertOpset(13)], check=OutputCheck(random_feeds(model))).run(model)


def test_what_an_older_operator_set_cannot_say_is_named() -> None:
    model = parse("""
graph g (%x: float[N, 4]) -> (%y: float[N, 4]) {
  %r = Relu(%x)
  %y = Trilu @triangle(%r)
}""", opset=20)  # fmt: skip
    with pytest.raises(
        UnsupportedError, match=r"node 'triangle' \(Trilu\): .* not in operator set 13"
    ):
        ConvertOpset(13).run(model)


def test_axes_become_attributes_again() -> None:
    model = parse("""
graph g (%x: float[N, 1, 4]) -> (%y: float[N]) {
  const %one: int64[1] = [1]
  %s = Squeeze(%x, %one)
  %y = ReduceMean(%s, %one) {keepdims = 0}
}""", opset=18)  # fmt: skip
    PassManager([ConvertOpset(11)], check=OutputCheck(random_feeds(model))).run(model)
    assert [n.get("axes") for n in model.graph.nodes] == [[1], [1]]
    assert model.extra.ir_version == 6


@pytest.mark.parametrize(
    ("body", "newer", "older"),
    [
        ("%y = Gelu(%x)", 20, 13),
        ("%y = HardSwish(%x)", 14, 11),
        ("%y = Mish(%x)", 18, 13),
        ("const %g: float[4] = [1.0, 2.0, 3.0, 4.0]\n%y = LayerNormalization(%x, %g)", 17, 13),
        ("const %l: float[] = -0.5\nconst %h: float[] = 0.5\n%y = Clip(%x, %l, %h)", 13, 7),
        (
            "const %a: int64[1] = [1]\nconst %z: int64[1] = [-1]\nconst %i: int64[1] = [-1]\n"
            "%y = Slice(%x, %a, %z, %i)", 13, 9,
        ),
        (
            "const %p: int64[4] = [0, 1, 0, 2]\nconst %v: float[] = 3.0\n%y = Pad(%x, %p, %v)",
            13, 7,
        ),
        ("const %k: int64[1] = [2]\n%y, %i = TopK(%x, %k) {axis = -1}", 11, 9),
        ("const %s: int64[2] = [1, 3]\n%y, %b = Split(%x, %s) {axis = -1}", 13, 11),
        ("%y = Flatten(%x) {axis = -1}", 13, 9),
        ("%s = Shape(%x) {start = -1}\n%y = Cast(%s) {to = 1}", 15, 13),
        ("%c = Constant() {value_floats = [0.5, 1.0, 1.5, 2.0]}\n%y = Add(%x, %c)", 13, 8),
        ("%c = Constant() {value_int = 2}\n%f = Cast(%c) {to = 1}\n%y = Mul(%x, %f)", 13, 7),
    ],
)  # fmt: skip
def test_what_older_versions_say_otherwise(body: str, newer: int, older: int) -> None:
    model = parse(f"graph g (%x: float[3, 4]) -> (%y: float[*]) {{\n{body}\n}}", newer)
    PassManager([ConvertOpset(older)], check=OutputCheck(random_feeds(model))).run(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    assert model.opset == older


def test_what_can_change_at_run_time_stays_an_error() -> None:
    body = "graph g (%x: float[3, 4], %k: float[]) -> (%y: float[*]) {\n%y = Clip @c(%x, %k)\n}"
    with pytest.raises(UnsupportedError, match=r"node 'c' \(Clip\): "):
        ConvertOpset(9).run(parse(body, 13))


def test_sums_that_broadcast_are_no_sums_of_version_7() -> None:
    same = "graph g (%x: float[3, 4]) -> (%y: float[3, 4]) {\n%y = Sum @s(%x, %x)\n}"
    ConvertOpset(7).run(parse(same, 13))
    body = "graph g (%x: float[3, 4], %b: float[4]) -> (%y: float[3, 4]) {\n%y = Sum @s(%x, %b)\n}"
    with pytest.raises(UnsupportedError, match=r"node 's' \(Sum\): "):
        ConvertOpset(7).run(parse(body, 13))


def test_functions_subgraphs_and_other_domains() -> None:
    """Functions are inlined, nodes in branches converted, foreign operators left alone."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, 4]) for n in ("x", "y")]
    flag = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    opsets = [helper.make_opsetid(d, v) for d, v in (("", 17), ("local", 1), ("com.other", 2))]
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("HardSwish", ["a"], ["b"])], opsets[:1]
    )
    branches = {}
    for name in ("then_branch", "else_branch"):
        output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [3, 4])
        inner = helper.make_node("HardSwish", ["f"], [output.name])
        branches[name] = helper.make_graph([inner], name, [], [output])
    nodes = [
        helper.make_node("F", ["x"], ["f"], domain="local"),
        helper.make_node("If", ["c"], ["y"], **branches),
        helper.make_node("Other", ["y"], ["z"], domain="com.other"),
    ]
    graph = helper.make_graph(nodes, "g", [infos[0], flag], infos[1:])
    model = from_proto(helper.make_model(graph, opset_imports=opsets, functions=[function]))
    ConvertOpset(13).run(model)
    verify(model)
    kinds = {node.op_type for node in model.all_nodes()}
    assert kinds == {"HardSigmoid", "Mul", "If", "Other"}
    assert model.opsets["com.other"] == 2


def test_large_constants_are_not_shown_to_the_converter() -> None:
    """A terabyte by its shape: only what small constants hold is looked at."""
    body = (
        "graph g (%x: float[1048576, 262144], %l: int64[1]) -> (%y: float[*]) {\n"
        "%m = ReduceMean(%x) {axes = [-1]}\n%y = HardSwish(%m)\n}"
    )
    model = parse(body, 17)
    ConvertOpset(18).run(model)
    verify(model)
