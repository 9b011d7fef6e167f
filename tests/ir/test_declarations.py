"""Declared types against inference: contradictions are errors, what is only wider is not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import pytest
from onnx import TensorProto, TypeProto, helper

from secateur.ir.declarations import check_declarations, correct_declarations
from secateur.ir.errors import ModelError, SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.passes.manager import PassManager
from secateur.passes.simplify import simplify_pipeline
from tests.backend_cases import Case, generated_cases

from .test_cost import scan


def _cases() -> Iterator[Case]:
    """One case of each operator with one node, and those whose nodes have bodies."""
    seen: set[str] = set()
    for case in generated_cases():
        nodes = case.model.graph.node
        key = nodes[0].op_type if len(nodes) == 1 else case.name
        if len(nodes) == 1 and key not in seen:
            seen.add(key)
            yield case


def _larger(type: TypeProto) -> None:
    type.tensor_type.shape.dim[0].dim_value += 1


def _smaller(type: TypeProto) -> None:
    type.tensor_type.shape.dim[-1].dim_value //= 2


def _declares_zero(type: TypeProto) -> bool:
    """Whether a size is 0, which counts as left open."""
    return any(d.HasField("dim_value") and not d.dim_value for d in type.tensor_type.shape.dim)


def _longer(type: TypeProto) -> None:
    type.tensor_type.shape.dim.add(dim_value=1)


def _flat(type: TypeProto) -> None:
    del type.tensor_type.shape.dim[:]


def _another_type(type: TypeProto) -> None:
    given = type.tensor_type
    given.elem_type = TensorProto.INT8 if given.elem_type != TensorProto.INT8 else TensorProto.FLOAT


def _sequence(type: TypeProto) -> None:
    type.CopyFrom(helper.make_sequence_type_proto(copy.deepcopy(type)))


CORRUPTIONS: tuple[Callable[[TypeProto], None], ...] = (
    _larger, _smaller, _longer, _flat, _another_type, _sequence,
)  # fmt: skip


def _inferred(case: Case) -> dict[str, TypeProto]:
    """Outputs of which inference finds the whole type when nothing is declared."""
    bare = copy.deepcopy(case.model)
    for output in bare.graph.output:
        output.ClearField("type")
    del bare.graph.value_info[:]
    found = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    return {
        o.name: o.type
        for o in found.graph.output
        if o.type.HasField("tensor_type")
        and o.type.tensor_type.HasField("shape")
        and all(d.HasField("dim_value") for d in o.type.tensor_type.shape.dim)
    }


def test_every_contradicting_output_is_found() -> None:
    """For every operator of the standard whose result inference knows, half of the ways."""
    corrupted = 0
    for number, case in enumerate(_cases()):
        check_declarations(from_proto(case.model))
        known = _inferred(case)
        for index, output in enumerate(case.model.graph.output):
            for corrupt in (CORRUPTIONS * 2)[number % 6 : number % 6 + 3]:
                proto = copy.deepcopy(case.model)
                type = proto.graph.output[index].type
                if output.name not in known or type == TypeProto():
                    continue
                type.CopyFrom(known[output.name])
                if corrupt in (_larger, _smaller, _flat) and not type.tensor_type.shape.dim:
                    continue
                corrupt(type)
                if type == known[output.name] or _declares_zero(type):
                    continue
                with pytest.raises(SecateurError, match=r"declared|inference"):
                    check_declarations(from_proto(proto))
                corrupted += 1
    assert corrupted > 400


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ("float[2, 3]", None),
        ("float[2, N]", None),
        ("float[?, ?]", None),
        ("float", None),
        ("float[2, 4]", r"float\[2, 4\], but is float\[2, 3\]"),
        ("float[N, 4]", r"float\[N, 4\], but is float\[2, 3\]"),
        ("float[6]", r"float\[6\], but is float\[2, 3\]"),
        ("int64[2, 3]", r"int64\[2, 3\], but is float\[2, 3\]"),
    ],
)
def test_a_declared_intermediate_value(declared: str, problem: str | None) -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["t"], name="first"),
             helper.make_node("Cast", ["t"], ["y"], to=TensorProto.DOUBLE)],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
            [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
            value_info=[_value_info("t", declared)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip
    if problem is None:
        check_declarations(from_proto(model))
        return
    with pytest.raises(ModelError, match=r"^node 'first' \(Relu\): output 't' .*" + problem):
        check_declarations(from_proto(model))
    with pytest.raises(ModelError, match=r"declared as|is a tensor"):
        PassManager(simplify_pipeline()).run(from_proto(model))


@pytest.mark.parametrize("declared", ["float[0, 3]", "float[2, 0]", "float[0, 0]"])
@pytest.mark.parametrize("settle", [check_declarations, correct_declarations])
def test_a_declared_zero_gives_way_to_inference(declared: str, settle: Callable[..., Any]) -> None:
    """Also after declarations were compared with what inference finds."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Shape", ["t"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
            [helper.make_tensor_value_info("y", TensorProto.INT64, [2])],
            value_info=[_value_info("t", declared)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    found = from_proto(model)
    settle(found)
    infer_shapes(found)
    assert next(v for v in found.graph.values() if v.name == "t").shape == (2, 3)


def _value_info(name: str, text: str) -> onnx.ValueInfoProto:
    kind, _, sizes = text.partition("[")
    dtype = TensorProto.DataType.Value(kind.upper())
    if not sizes:
        return helper.make_tensor_value_info(name, dtype, None)
    shape = [int(s) if s.isdigit() else None if s == "?" else s for s in sizes[:-1].split(", ")]
    return helper.make_tensor_value_info(name, dtype, shape)


def test_declarations_that_only_exclude_each_other() -> None:
    """Inference knows neither the Reshape's result nor, from the inputs, what follows it."""
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["t"]),
        helper.make_node("Transpose", ["t"], ["u"], perm=[1, 0], name="turned"),
        helper.make_node("Relu", ["u"], ["y"]),
    ]
    infos = {"t": [2, 3], "u": [3, 2]}

    def check() -> None:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [6]),
             helper.make_tensor_value_info("target", TensorProto.INT64, [2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            value_info=[helper.make_tensor_value_info(n, 1, s) for n, s in infos.items()],
        )  # fmt: skip
        check_declarations(
            from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
        )

    check()
    infos["u"] = [2, 3]
    with pytest.raises(ModelError, match="turned"):
        check()


def test_inside_bodies() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inner"], name="in_branch"),
         helper.make_node("Neg", ["inner"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        value_info=[helper.make_tensor_value_info("inner", TensorProto.FLOAT, [7])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
         helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    with pytest.raises(ModelError, match="in_branch"):
        check_declarations(from_proto(helper.make_model(graph)))


@pytest.mark.parametrize("width", [4, 300])
def test_contradictions_in_bodies_that_hold_weights(width: int) -> None:
    """Small ones, and such as inference doesn't look at."""
    proto = scan(width, 0)
    check_declarations(from_proto(proto))
    body = proto.graph.node[0].attribute
    (steps,) = (each.g for each in body if each.HasField("g"))
    steps.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [2, 5]))
    with pytest.raises(
        ModelError, match=rf"'m' is declared as .*\[2, 5\], but is .*\[2, {width}\]"
    ):
        check_declarations(from_proto(proto))
