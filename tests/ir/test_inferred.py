"""Inference of what has changed only: as much is found as of the whole model, at less cost."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from secateur.ir.declarations import check_declarations
from secateur.ir.dependencies.batch import find_batch
from secateur.ir.errors import ModelError, SecateurError
from secateur.ir.graph import Node, Value
from secateur.ir.infer import infer_shapes
from secateur.ir.inferred import is_static
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.text import parse_model
from secateur.passes.batch import take_one_sample
from secateur.passes.simplify import simplify_pipeline
from tests.strategies import models

HEADER = 'model <ir_version = 8, opset = ["" = 17]>\n'


def as_if_never_inferred(model: Model) -> Model:
    """A copy of which nothing is noted."""
    copy = model.clone()
    for graph in copy.graph.all_graphs():
        for node in graph.nodes:
            node.inference = None
    return copy


def simplify(model: Model) -> None:
    for step in simplify_pipeline():
        step.run(model)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of nodes of every model that is inferred as a whole."""
    found: list[int] = []
    infer = onnx.shape_inference.infer_shapes

    def counted(proto: onnx.ModelProto, **options: object) -> onnx.ModelProto:
        found.append(len(proto.graph.node))
        return infer(proto, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", counted)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(models(max_steps=12))
def test_as_much_is_found_as_of_the_whole(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]],
) -> None:
    model = from_proto(case[0])
    try:
        check_declarations(model)
    except SecateurError:
        return
    simplify(model)
    fresh = as_if_never_inferred(model)
    infer_shapes(model)
    infer_shapes(fresh)
    types = {v.name: v.shape for v in fresh.graph.values() if is_static(v)}
    assert types.items() <= {v.name: v.shape for v in model.graph.values()}.items()
    names = {v.name for v in check_declarations(model)}
    assert {v.name for v in check_declarations(as_if_never_inferred(model))} <= names | {
        v.name for v in model.graph.values() if not is_static(v)
    }


BLOCKS = "".join(
    f"%m{i} = MatMul(%{'x' if i == 0 else f'y{i - 1}'}, %w)\n %y{i} = Relu(%m{i})\n"
    for i in range(50)
)
MODEL = f"""{HEADER}graph g (%x: float[2, 3]) -> (%y49: float[2, 3]) {{
  const %w: float[3, 3] = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
  {BLOCKS}
}}"""


@pytest.mark.parametrize("size", ["2", "N"])
def test_a_model_is_inferred_as_a_whole_once_on_its_way_to_the_compiler(
    whole: list[int], size: str
) -> None:
    model = parse_model(MODEL.replace("[2, 3]", f"[{size}, 3]"))
    check_declarations(model)
    assert whole == [100]
    copy = model.clone()
    simplify(copy)
    infer_shapes(copy)
    assert all(
        v.shape in ((2, 3), ("N", 3)) for node in copy.graph.nodes for v in node.outputs if v
    )
    batch = find_batch(copy)
    assert batch.is_proven == (size == "N")
    if batch.is_proven:
        take_one_sample(copy, batch)
        assert copy.graph.outputs[0].shape == (1, 3)
    assert not check_declarations(copy)
    infer_shapes(copy)
    assert whole == [100]


def test_a_rule_gives_sizes_by_name(whole: list[int]) -> None:
    model = parse_model(MODEL.replace("[2, 3]", "[N, 3]"))
    infer_shapes(model)
    for node in model.graph.nodes[40:]:
        for value in node.outputs:
            assert value is not None
            value.set_tensor_type(value.dtype, [None, None])
    infer_shapes(model)
    assert all(v.shape == ("N", 3) for node in model.graph.nodes for v in node.outputs if v)
    assert whole == [100]


def test_sizes_that_a_new_chain_computes_are_followed(whole: list[int]) -> None:
    model = parse_model(MODEL)
    infer_shapes(model)
    last = model.graph.nodes[-1]
    before = last.inputs[0]
    chain = parse_model(f"""{HEADER}graph g (%m: float[2, 3]) -> (%r: float[?, ?]) {{
  const %order: int64[2] = [1, 0]
  %shape = Shape(%m)
  %turned = Gather(%shape, %order)
  %r = Reshape(%m, %turned)
}}""")
    model.graph.initializers["order"] = chain.graph.initializers["order"]
    nodes = [*chain.graph.nodes]
    for node in nodes:
        node.graph = model.graph
        for value in node.outputs:
            assert value is not None
            value.type = None
    nodes[0].set_input(0, before)
    nodes[2].set_input(0, before)
    model.graph.nodes[-1:-1] = nodes
    infer_shapes(model)
    assert nodes[2].outputs[0] is not None
    assert nodes[2].outputs[0].shape == (3, 2)
    assert whole == [100]


def test_a_declaration_that_inference_contradicts_later_is_found() -> None:
    model = parse_model(MODEL)
    infer_shapes(model)
    node = model.graph.nodes[-1]
    made = Value("long")
    concat = Node("Concat", [node.inputs[0], node.inputs[0]], [made])
    concat.set("axis", 0)
    concat.graph = model.graph
    model.graph.nodes.insert(-1, concat)
    node.set_input(0, made)
    infer_shapes(model)
    with pytest.raises(ModelError, match=r"declared as float\[2, 3\], but is float\[4, 3\]"):
        check_declarations(model)


def test_results_that_come_later_are_inferred() -> None:
    """A node without a result gets one, although nothing else about it changes."""
    model = parse_model(
        HEADER
        + """graph g (%x: float[2, 9]) -> (%y: float[*]) {
        const %sizes: int64[2] = [4, 5]
        %a, %b = Split(%x, %sizes) {axis = 1}
        %y = Relu(%b)
        }"""
    )
    node = model.graph.nodes[0]
    named = node.outputs
    node.outputs = (None, named[1])
    infer_shapes(model)
    node.outputs = named
    assert named[0] is not None
    named[0].type = None
    infer_shapes(model)
    assert named[0].shape == (2, 4)
