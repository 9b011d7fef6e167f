"""What a cell's gates sum up is what ONNX Runtime's states come from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.ops.recurrent import GATES
from secateur.ir.reference import Session
from secateur.passes.linear.find import find_layer
from secateur.passes.linear.recurrent import RecurrentLayer
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.recovery import recover
from secateur.passes.sizes import infer_sizes

STEPS, BATCH, IN, HIDDEN = 5, 4, 3, 6


def weights_of(op_type, directions, random, *, hidden=HIDDEN, width=IN):
    gates = GATES[op_type]
    return {
        "w": random.standard_normal((directions, gates * hidden, width)),
        "r": random.standard_normal((directions, gates * hidden, hidden)) / 2,
        "b": random.standard_normal((directions, 2 * gates * hidden)) / 2,
    }


def build(nodes, inputs, outputs, weights):
    graph = helper.make_graph(
        nodes,
        "cell",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=9)
    model = from_proto(proto)
    infer_shapes(model)
    return model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def states_after(op_type, sums, before):
    """By the operators' equations; None of an LSTM, whose cell states are not known."""
    if op_type == "RNN":
        return np.tanh(sums[0])
    if op_type == "GRU":
        update, reset = sigmoid(sums[0]), sigmoid(sums[1])
        new = np.tanh(sums[2] + (reset * sums[3] if len(sums) > 3 else 0))
        return (1 - update) * new + update * before
    return None


@pytest.mark.parametrize(
    ("op_type", "direction", "lengths", "start", "biased", "reset"),
    [
        (op, *rest)
        for op, *rest in itertools.product(
            ("RNN", "GRU"),
            ("forward", "reverse", "bidirectional"),
            (False, True),
            (False, True),
            (False, True),
            (0, 1),
        )
        if op == "GRU" or not rest[-1]
    ],
)
def test_states_come_from_the_sums(op_type, direction, lengths, start, biased, reset):
    random = np.random.default_rng(0)
    directions = 2 if direction == "bidirectional" else 1
    weights = weights_of(op_type, directions, random)
    names = ["x", "w", "r", "b" if biased else "", "n" if lengths else "", "h" if start else ""]
    if not biased:
        del weights["b"]
    attributes = {"linear_before_reset": 1} if reset else {}
    node = helper.make_node(
        op_type, names, ["y"], hidden_size=HIDDEN, direction=direction, **attributes
    )
    inputs = [("x", TensorProto.FLOAT, [STEPS, BATCH, IN])]
    feeds = {"x": random.standard_normal((STEPS, BATCH, IN)).astype(np.float32)}
    if lengths:
        inputs.append(("n", TensorProto.INT32, [BATCH]))
        feeds["n"] = np.array([5, 3, 1, 4], np.int32)
    if start:
        inputs.append(("h", TensorProto.FLOAT, [directions, BATCH, HIDDEN]))
        feeds["h"] = random.standard_normal((directions, BATCH, HIDDEN)).astype(np.float32)
    model = build([node], inputs, [("y", [STEPS, directions, BATCH, HIDDEN])], weights)
    cell = find_layer(model, model.graph.nodes[0])
    steps = cell.steps(feeds)
    matrix, bias = cell.read()
    cell.write(matrix, bias)
    again, shift = find_layer(model, model.graph.nodes[0]).read()
    np.testing.assert_allclose(again, matrix, rtol=1e-6)
    np.testing.assert_allclose(shift, bias, rtol=1e-5, atol=1e-6)
    sums = (cell.rows(steps) @ matrix + bias[:, None]).reshape(
        directions, -1, *steps.states.shape[1:]
    )
    want = Session(model).run(feeds)["y"]
    inside = np.ones((STEPS, BATCH), bool)
    if lengths:
        inside = np.arange(STEPS)[:, None] < feeds["n"][None]
    for d in range(directions):
        have = states_after(op_type, sums[d], steps.states[d])
        np.testing.assert_allclose(have, want[:, d][inside], rtol=1e-4, atol=1e-5)


CELLS = [
    ("LSTM", {}),
    ("LSTM", {"direction": "bidirectional"}),
    ("LSTM", {"direction": "reverse", "input_forget": 1}),
    ("LSTM", {"layout": 0}),
    ("GRU", {}),
    ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}),
    ("RNN", {"activations": ["Relu"]}),
]


@pytest.mark.parametrize(("op_type", "attributes"), CELLS)
@pytest.mark.parametrize("output", ["every step", "the last state"])
def test_units_that_are_copies_of_others_are_made_up_for(op_type, attributes, output):
    """The last third of the hidden units do what the first third does, and are read in their
    own way by later steps and by what comes behind."""
    random = np.random.default_rng(1)
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates, third = GATES[op_type], HIDDEN // 3
    weights = weights_of(op_type, directions, random)
    for name in ("w", "r", "b"):
        split = weights[name].reshape(directions, -1, HIDDEN, *weights[name].shape[2:])
        split[:, :, -third:] = split[:, :, :third]
    weights["r"] /= 3
    weights["head"] = random.standard_normal((HIDDEN, 3))
    results = ["h", ""] if output == "every step" else ["", "h"]
    cell = helper.make_node(
        op_type, ["x", "w", "r", "b"], results, hidden_size=HIDDEN, **attributes
    )
    nodes = [cell, helper.make_node("MatMul", ["h", "head"], ["y"])]
    shape = [directions, "n", HIDDEN]
    model = build(
        nodes,
        [("x", TensorProto.FLOAT, [STEPS, "n", IN])],
        [("y", [*([STEPS] if output == "every step" else []), *shape[:-1], 3])],
        weights,
    )
    assert gates == GATES[op_type]
    runs = [{"x": random.standard_normal((STEPS, 64, IN)).astype(np.float32)} for _ in range(8)]
    plan = PruningPlan(model.clone())
    group = next(g for g in plan.free if g.size == HIDDEN)
    kept = np.arange(HIDDEN - third)
    record = plan.apply(plan.selection({group.name: [kept] * len(group.dims)}))
    infer_sizes(plan.model)
    fresh = {"x": random.standard_normal((STEPS, 64, IN)).astype(np.float32)}
    want, lost = Session(model).run(fresh)["y"], Session(plan.model).run(fresh)["y"]
    found = recover(model, plan.model, record, runs)
    have = Session(plan.model).run(fresh)["y"]
    assert np.abs(lost - want).max() > want.std() / 10
    assert np.sqrt(np.square(have - want).mean()) < 0.05 * want.std()
    assert {layer.op_type for layer in found.layers} == {op_type, "MatMul"}
    assert isinstance(find_layer(plan.model, plan.model.graph.nodes[0]), RecurrentLayer)


@pytest.mark.parametrize("what", ["another name", "another operator"])
def test_a_cell_that_the_original_has_otherwise_is_left_with_the_reason(what):
    """Layers are found in the original by their results' names: what has no twin isn't solved."""
    random = np.random.default_rng(1)
    weights = weights_of("RNN", 1, random) | {"head": random.standard_normal((HIDDEN, 3))}
    nodes = [
        helper.make_node("RNN", ["x", "w", "r", "b"], ["h"], hidden_size=HIDDEN),
        helper.make_node("MatMul", ["h", "head"], ["y"]),
    ]
    inputs = [("x", TensorProto.FLOAT, [STEPS, "n", IN])]
    outputs = [("y", [STEPS, 1, "n", 3])]
    model = build(nodes, inputs, outputs, weights)
    runs = [{"x": random.standard_normal((STEPS, 64, IN)).astype(np.float32)} for _ in range(4)]
    plan = PruningPlan(model.clone())
    group = next(g for g in plan.free if g.size == HIDDEN)
    record = plan.apply(plan.selection({group.name: [np.arange(HIDDEN - 2)] * len(group.dims)}))
    infer_sizes(plan.model)
    if what == "another name":
        nodes[0].output[0] = nodes[1].input[0] = "other"
    else:
        nodes[:1] = [
            helper.make_node("RNN", ["x", "w", "r", "b"], ["same"], hidden_size=HIDDEN),
            helper.make_node("Identity", ["same"], ["h"]),
        ]
    before = plan.model.graph.initializers["w"].const.numpy().copy()
    found = recover(build(nodes, inputs, outputs, weights), plan.model, record, runs)
    assert "not solved anew: the original has no such node" in [n.reason for n in found.notes]
    assert np.array_equal(plan.model.graph.initializers["w"].const.numpy(), before)
