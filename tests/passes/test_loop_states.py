"""Sizes of what Loops carry: those that no iteration changes, and no others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.graph import Value
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.passes.sizes import infer_sizes

STEPS: dict[str, str] = {
    "kept": "Add a x -> a1",
    "kept by a constant": "Mul a half -> a1",
    "longer": "Concat a x -> a1",
    "exchanged": "Identity a -> b1; Identity b -> a1",
    "exchanged columns": "Slice a zero one zero -> t; Concat t b -> a1; Identity b -> b1",
    "one follows the other": "Concat a x -> a1; Concat b a -> b1",
    "another rank": "Unsqueeze a zero -> a1",
    "handed round": "Identity b -> a1; Identity c -> b1; Identity a -> c1",
}
"""What a step makes of the states a [2, 4], b [3, 4] and c [2, 4] (x [2, 4] is around); what has no
result of its own stays."""

INITIAL = {"a": (2, 4), "b": (3, 4), "c": (2, 4)}

KNOWN: dict[str, Sequence[Any]] = {
    "kept": [(2, 4), (3, 4), (2, 4)],
    "kept by a constant": [(2, 4), (3, 4), (2, 4)],
    "longer": [(None, 4), (3, 4), (2, 4)],
    "exchanged": [(None, 4), (None, 4), (2, 4)],
    "exchanged columns": [(None, 4), (3, 4), (2, 4)],
    "one follows the other": [(None, 4), (None, 4), (2, 4)],
    "another rank": [None, (3, 4), (2, 4)],
    "handed round": [(None, 4), (None, 4), (None, 4)],
}
"""By hand."""


def info(name: str, shape: Any = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def untyped(name: str) -> Any:
    """As exporters write states: nothing is said of them."""
    found = onnx.ValueInfoProto()
    found.name = name
    return found


def nodes_of(text: str) -> list[Any]:
    found = []
    for line in text.split("; "):
        op_type, *read, _, result = line.split()
        axis = {"axis": 0} if op_type == "Concat" else {}
        found.append(helper.make_node(op_type, read, [result], **axis))
    return found


def loop(step: str, *, around: bool = False) -> Any:
    """A Loop over the states, whose result is behind Relus; `around` puts it into a Loop's body."""
    nodes = nodes_of(step)
    made = {name for node in nodes for name in node.output}
    nodes += [
        helper.make_node("Identity", [name], [f"{name}1"])
        for name in INITIAL
        if f"{name}1" not in made
    ]
    nodes.append(helper.make_node("Identity", ["go"], ["on"]))
    ends = [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL)]
    inner = helper.make_graph(
        nodes,
        "step",
        [*ends, *map(untyped, INITIAL)],
        [info("on", [], TensorProto.BOOL), *(untyped(f"{name}1") for name in INITIAL)],
    )
    given = [f"{name}0" for name in INITIAL]
    node = helper.make_node("Loop", ["k", "", *given], ["p", "q", "r"], "loop", body=inner)
    results = ["p", "q", "r"]
    if around:
        outer = helper.make_graph(
            [
                helper.make_node("Loop", ["k", "", "a2", "b0", "c0"], results, "loop", body=inner),
                helper.make_node("Identity", ["go2"], ["on2"]),
                helper.make_node("Add", ["r", "a2"], ["a3"]),
            ],
            "outer",
            [info("i2", [], TensorProto.INT64), info("go2", [], TensorProto.BOOL), untyped("a2")],
            [info("on2", [], TensorProto.BOOL), untyped("a3")],
        )
        node = helper.make_node("Loop", ["k", "", "a0"], ["p"], "outer", body=outer)
        results = ["p"]
    behind = [helper.make_node("Relu", [name], [f"{name}_behind"]) for name in results]
    constants = {
        "half": np.full((1, 4), 0.5, np.float32),
        "zero": np.int64([0]),
        "one": np.int64([1]),
        "x": np.ones((2, 4), np.float32),
    }
    graph = helper.make_graph(
        [node, *behind],
        "net",
        [info("k", [], TensorProto.INT64), *(info(f"{n}0", s) for n, s in INITIAL.items())],
        [info(f"{name}_behind") for name in results],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    versions = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10)


def known(value: Value) -> Any:
    """The shape with None for sizes that are open under some name."""
    return value.shape and tuple(s if isinstance(s, int) else None for s in value.shape)


def values(model: Model) -> dict[str, Value]:
    """Of the main graph, and of all bodies."""
    found = {}
    for node in model.all_nodes():
        for graph in node.subgraphs():
            found |= {v.name: v for v in graph.values()}
    return found | {v.name: v for v in model.graph.values()}


def inferred(proto: Any) -> Model:
    model = from_proto(proto)
    infer_sizes(model)
    return model


@pytest.mark.parametrize("kind", STEPS)
def test_sizes_that_no_iteration_changes_are_known(kind: str) -> None:
    found = values(inferred(loop(STEPS[kind])))
    for state, result, shape in zip("abc", "pqr", KNOWN[kind], strict=True):
        for value in (found[state], found[result], found[f"{result}_behind"]):
            assert known(value) == shape, value.name
            if shape is not None:
                assert value.dtype == TensorProto.FLOAT


@pytest.mark.parametrize("kind", [k for k in STEPS if k != "another rank"])
def test_what_is_known_holds_after_any_number_of_iterations(kind: str) -> None:
    proto = loop(STEPS[kind])
    model, session = inferred(proto), Session(from_proto(proto))
    random = np.random.default_rng(0)
    start = {f"{n}0": random.random(s).astype(np.float32) for n, s in INITIAL.items()}
    seen = []
    for count in range(4):
        results = session.run({"k": np.array(count), **start})
        seen.append([results[value.name].shape for value in model.graph.outputs])
        for value in model.graph.outputs:
            for told, size in zip(known(value), results[value.name].shape, strict=True):
                assert told in (None, size)
    open_ones = [None in known(v) for v in model.graph.outputs]
    changing = [
        any(a != b for a, b in itertools.pairwise(shapes)) for shapes in zip(*seen, strict=True)
    ]
    assert changing == open_ones


def test_a_loop_in_a_loop() -> None:
    found = values(inferred(loop(STEPS["longer"], around=True)))
    assert found["a2"].shape == found["p"].shape == found["p_behind"].shape == (2, 4)


@pytest.mark.parametrize("shape", [(None, 4), ("n", 4), (2, 4)])
def test_what_states_are_declared_to_be_stays(shape: Any) -> None:
    proto = loop(STEPS["kept"])
    (node,) = (n for n in proto.graph.node if n.op_type == "Loop")
    body = node.attribute[0].g
    for value, name in zip(list(body.input)[2:], INITIAL, strict=True):
        value.CopyFrom(info(name, shape if name == "a" else None))
    found = values(inferred(proto))
    assert found["a"].shape == shape
    assert found["b"].shape == (3, 4)
    for name in "bc":
        assert found[name].dtype == TensorProto.FLOAT


def test_lists_that_are_carried_are_left_alone() -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
    state, result = (helper.make_value_info(name, kind) for name in ("s", "s1"))
    nodes = [
        helper.make_node("Identity", ["go"], ["on"]),
        helper.make_node("SequenceInsert", ["s", "x"], ["s1"]),
        helper.make_node("Add", ["a", "x"], ["a1"]),
    ]
    body = helper.make_graph(
        nodes,
        "step",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), state, untyped("a")],
        [info("on", [], TensorProto.BOOL), result, untyped("a1")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("SequenceEmpty", [], ["empty"]),
            helper.make_node("Loop", ["k", "", "empty", "x"], ["list", "p"], body=body),
            helper.make_node("ConcatFromSequence", ["list"], ["y"], axis=0),
        ],
        "net",
        [info("k", [], TensorProto.INT64), info("x", [2, 4])],
        [info("y"), info("p")],
    )
    versions = [helper.make_opsetid("", 21)]
    model = inferred(helper.make_model(graph, opset_imports=versions, ir_version=10))
    found = values(model)
    assert found["a"].shape == found["p"].shape == (2, 4)
    assert found["s"].shape is None
    feeds = {"k": np.array(2), "x": np.ones((2, 4), np.float32)}
    assert Session(model).run(feeds)["y"].shape == (4, 4)
