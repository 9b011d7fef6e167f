"""Recovery of layers in the bodies of If, Loop and Scan."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.tensor import Tensor
from secateur.passes.base import Context
from secateur.passes.linear.bodies import BodyError, SingleBody, WholeBody
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels, Recover
from secateur.passes.prune.masking import mask
from secateur.passes.prune.names import name_values
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.readers import find_readers
from secateur.passes.prune.recovery import recover
from secateur.passes.sizes import infer_sizes
from tests.passes.nets import redundant

WIDTH, HIDDEN, KEPT = 6, 9, 6
WEAK = [0, 1, 2], [6, 7, 8]
TOLERANCE = 0.03
"""Share of the outputs' deviation: the ridge keeps weights that much nearer to the old ones."""


def info(name, shape=None, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def layers(random, source, result, *, biased):
    """Two layers of which the second reads redundant results of the first, and their weights.

    Names are the same whatever they lie in.
    """
    first = redundant(random, KEPT, HIDDEN - KEPT, WIDTH).T
    weights = {"w": first, "u": random.standard_normal((HIDDEN, WIDTH)) / 3}
    nodes = [helper.make_node("MatMul", [source, "w"], ["h"], name="first")]
    if biased:
        weights |= {"b": random.standard_normal(WIDTH)}
        nodes.append(helper.make_node("Gemm", ["h", "u", "b"], [result], name="second"))
    else:
        nodes.append(helper.make_node("MatMul", ["h", "u"], [result], name="second"))
    return nodes, [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]


def branches(random, **options):
    def branch(name):
        nodes, weights = layers(random, "x", "z", **options)
        return helper.make_graph(nodes, name, [], [info("z", ["n", WIDTH])], weights)

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["y"], then_branch=branch("a"), else_branch=branch("b")
        ),
    ]
    return nodes, [numpy_helper.from_array(np.float32(0), "zero")]


def loop(random, **options):
    """Three steps, of which each reads what the one before left, and x."""
    nodes, weights = layers(random, "sum", "z", **options)
    nodes = [
        helper.make_node("Add", ["state", "x"], ["sum"]),
        *nodes,
        helper.make_node("Tanh", ["z"], ["next"]),
        helper.make_node("Identity", ["go"], ["on"]),
    ]
    inputs = [info("k", [], TensorProto.INT64), info("go", [], TensorProto.BOOL)]
    inputs.append(info("state", ["n", WIDTH]))
    outputs = [info("on", [], TensorProto.BOOL), info("next", ["n", WIDTH])]
    body = helper.make_graph(nodes, "body", inputs, outputs, weights)
    trips = numpy_helper.from_array(np.int64(3), "trips")
    return [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)], [trips]


def scan(random, *, columns=False, **options):
    """Over the rows of x [n, 6], from the last one, with a sum that goes along; or over the columns
    of x transposed, from the first."""
    nodes, weights = layers(random, "row", "z", **options)
    if options["biased"]:  # a Gemm reads matrices
        nodes.insert(0, helper.make_node("Unsqueeze", ["x_in", "zeroth"], ["row"]))
        weights.append(numpy_helper.from_array(np.array([0]), "zeroth"))
        nodes.append(helper.make_node("Squeeze", ["z", "zeroth"], ["flat"]))
    else:
        nodes.insert(0, helper.make_node("Identity", ["x_in"], ["row"]))
        nodes.append(helper.make_node("Identity", ["z"], ["flat"]))
    nodes.append(helper.make_node("Add", ["flat", "sum_in"], ["sum_out"]))
    inputs = [info("sum_in", [WIDTH]), info("x_in", [WIDTH])]
    outputs = [info("sum_out", [WIDTH]), info("flat", [WIDTH])]
    body = helper.make_graph(nodes, "body", inputs, outputs, weights)
    start = numpy_helper.from_array(np.zeros(WIDTH, np.float32), "start")
    settings = {"num_scan_inputs": 1, "scan_input_directions": [1], "scan_output_directions": [1]}
    if columns:
        settings = {"num_scan_inputs": 1, "scan_input_axes": [1]}
    over = "turned" if columns else "x"
    node = helper.make_node("Scan", ["start", over], ["sum", "y"], body=body, **settings)
    turn = helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0])
    return [turn, node] if columns else [node], [start]


CASES = {"If": branches, "Loop": loop, "Scan": scan}
CASES["Scan of columns"] = functools.partial(scan, columns=True)


def built(kind, *, biased, seed=0):
    return assembled(*CASES[kind](np.random.default_rng(seed), biased=biased))


def assembled(nodes, weights):
    """A model of x [n, 6] and y."""
    graph = helper.make_graph(
        nodes, "net", [info("x", ["n", WIDTH])], [info("y", ["n", WIDTH])], weights
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    model = from_proto(proto)
    model.separate_names()
    infer_sizes(model)
    return model


def runs_of(count, seed=5):
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((16, WIDTH)).astype(np.float32)} for _ in range(count)]


def cut_hidden(model):
    """The model with the redundant channels of all bodies gone, and the record of it."""
    plan = PruningPlan(model.clone())
    groups = [group for group in plan.free if group.size == HIDDEN]
    cut = {group.name: [np.arange(KEPT)] * len(group.dims) for group in groups}
    record = plan.apply(plan.selection(cut))
    infer_sizes(plan.model)
    return plan.model, record


def errors(model, other, runs):
    """Root mean squares of the difference of outputs, as shares of the model's deviation."""
    want = np.concatenate([Session(model).run(run)["y"] for run in runs])
    have = np.concatenate([Session(other).run(run)["y"] for run in runs])
    return np.sqrt(np.square(have - want).mean()) / want.std()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_combinations_of_others_are_made_up_for(kind, biased):
    model = built(kind, biased=biased)
    pruned, record = cut_hidden(model)
    lost = errors(model, pruned, runs_of(8, 7))
    found = recover(model, pruned, record, runs_of(24))
    onnx.checker.check_model(to_proto(pruned), full_check=True)
    assert lost > 0.2
    assert errors(model, pruned, runs_of(8, 7)) < TOLERANCE
    assert [layer.node for layer in found.layers].count("second") == (2 if kind == "If" else 1)
    assert not found.notes


@pytest.mark.parametrize("kind", CASES)
def test_means_and_deviations_come_back_in_bodies(kind):
    model = built(kind, biased=True)
    pruned, record = cut_hidden(model)
    found = recover(model, pruned, record, runs_of(24), rematch=True)
    assert {layer.node for layer in found.layers} >= {"second"}
    assert all(layer.after <= layer.before for layer in found.layers)


def test_branches_of_equal_names_are_pruned_each_in_its_own_way():
    """By weights; what is noted by name, and masks are made by, tells them apart."""
    proto = to_proto(built("If", biased=True))
    for branch, weak in zip((a.g for a in proto.graph.node[-1].attribute), WEAK, strict=True):
        for node in branch.node:
            node.output[:] = [name.split("_")[0] for name in node.output]
            node.input[:] = [name.split("_")[0] for name in node.input]
        for value in (*branch.initializer, *branch.output):
            value.name = value.name.split("_")[0]
        for weights in branch.initializer:
            array = numpy_helper.to_array(weights).copy()
            if HIDDEN in array.shape:
                np.moveaxis(array, array.shape.index(HIDDEN), 0)[weak] *= 0.1
            weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    model = from_proto(proto)
    original = model.clone()
    (pruned,) = PassManager([PruneChannels(ratio=1 / 3, scope="uniform")]).run(model)
    assert 1e-3 < errors(original, model, runs_of(16)) < 0.1
    name_values(original)
    masked = mask(original, pruned.result.artifacts["selection"])
    assert errors(masked, model, runs_of(16)) < 1e-5


def test_a_branch_that_no_sample_takes_is_named():
    model = built("If", biased=False)
    pruned, record = cut_hidden(model)
    runs = [{"x": np.abs(run["x"])} for run in runs_of(8)]
    found = recover(model, pruned, record, runs)
    assert [layer.node for layer in found.layers].count("second") == 1
    assert [n.node for n in found.notes if "no sample gets to" in n.reason] == ["second"]


def test_values_that_grow_while_a_loop_runs_are_named():
    random = np.random.default_rng(0)
    nodes, weights = layers(random, "state", "z", biased=False)
    nodes += [
        helper.make_node("Concat", ["z", "x"], ["next"], axis=0),
        helper.make_node("Identity", ["go"], ["on"]),
    ]
    inputs = [info("k", [], TensorProto.INT64), info("go", [], TensorProto.BOOL)]
    inputs.append(info("state", [None, WIDTH]))
    outputs = [info("on", [], TensorProto.BOOL), info("next", [None, WIDTH])]
    body = helper.make_graph(nodes, "body", inputs, outputs, weights)
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        "net",
        [info("x", ["n", WIDTH])],
        [info("y", [None, WIDTH])],
        [numpy_helper.from_array(np.int64(2), "trips")],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    infer_sizes(model)
    pruned, record = cut_hidden(model)
    found = recover(model, pruned, record, runs_of(4))
    assert not found.layers
    assert {n.node for n in found.notes if "change their shapes" in n.reason} == {"first", "second"}


def test_what_a_loop_reads_is_that_of_each_of_its_turns():
    """The states, by hand: tanh of the layers of the state before plus x."""
    model = built("Loop", biased=True)
    (node,) = (n for n in model.graph.nodes if n.op_type == "Loop")
    (graph,) = node.subgraphs()
    (run,) = runs_of(1)

    class Inputs:
        runs = 1

        def value(self, name, number):
            return run[name]

    turns = list(WholeBody(model, graph, ["state", "z", "x"]).turns(Inputs(), 0))
    w, u, b = (graph.initializers[name].const.numpy() for name in ("w", "u", "b"))
    state = run["x"]
    assert len(turns) == 3
    read = []
    for turn in turns:
        read.append((state + run["x"]) @ w)
        want = (state + run["x"]) @ w @ u + b
        np.testing.assert_allclose(turn.value("state", 0), state, atol=1e-5)
        np.testing.assert_allclose(turn.value("z", 0), want, atol=1e-4)
        assert turn.value("x", 0) is run["x"]
        state = np.tanh(want)
    plan = PruningPlan(model)
    dims = [dim for group in plan.free for dim in group.dims]
    (reader,) = find_readers(plan.analysis, dims, [run])
    covariance = np.cov(np.concatenate(read).T, bias=True)
    np.testing.assert_allclose(reader.covariance, covariance, atol=1e-3)
    np.testing.assert_array_equal(reader.weights, u)
    assert reader.importance > 0


class Values:
    """One run of x, and what a Scan of columns reads of it."""

    runs = 1

    def __init__(self, x):
        self.arrays = {"x": x, "turned": x.T}

    def value(self, name, number):
        return self.arrays[name]


@pytest.mark.parametrize("kind", ["Scan", "Scan of columns"])
def test_what_a_scan_reads_is_that_of_each_of_its_turns(kind):
    """Of a body that is run by itself, too, whatever slices it is said to be given."""
    model = built(kind, biased=False)
    (node,) = (n for n in model.graph.nodes if n.op_type == "Scan")
    (graph,) = node.subgraphs()
    values = Values(runs_of(1)[0]["x"][:5])
    rows = values.value("x", 0)[:: 1 if "columns" in kind else -1]
    w, u = (graph.initializers[name].const.numpy() for name in ("w", "u"))
    body = WholeBody(model, graph, ["row", "sum_in", "h"])
    assert body.inputs == ["sum_in", "x_in"]
    turns = list(body.turns(values, 0))
    assert len(turns) == 5
    single = SingleBody(model, graph, ["h", "sum_in"])
    total = np.zeros(WIDTH, np.float32)
    for number, (turn, row) in enumerate(zip(turns, rows, strict=True)):
        given = [total, np.full(WIDTH, np.nan, np.float32)]
        alone = single.turn(values, 0, number, given)
        for found in (turn, alone):
            np.testing.assert_array_equal(found.value("x_in", 0), row)
            np.testing.assert_allclose(found.value("sum_in", 0), total, atol=1e-4)
            np.testing.assert_allclose(found.value("h", 0), row @ w, atol=1e-4)
        np.testing.assert_array_equal(turn.value("row", 0), row)
        total = total + row @ w @ u
    with pytest.raises(BodyError, match="less often"):
        single.turn(values, 0, 5, [total, total])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_has_a_turn_where_it_is_taken(sign):
    model = built("If", biased=True)
    (node,) = (n for n in model.graph.nodes if n.op_type == "If")
    x = np.full((3, WIDTH), sign, np.float32)
    for graph in node.subgraphs():
        first = next(n.outputs[0].name for n in graph.nodes)

        class Around:
            def value(self, name, number):
                return x if name == "x" else np.array(sign > 0)

        turns = list(WholeBody(model, graph, [first]).turns(Around(), 0))
        assert len(turns) == int((sign > 0) == (graph is node.get("then_branch")))
        for turn in turns:
            w = next(v.const.numpy() for v in graph.initializers.values() if v.const.shape[1] == 9)
            np.testing.assert_allclose(turn.value(first, 0), x @ w, atol=1e-4)


def test_what_is_asked_of_a_body_has_to_be_there():
    model = built("Loop", biased=False)
    (node,) = (n for n in model.graph.nodes if n.op_type == "Loop")
    (graph,) = node.subgraphs()
    with pytest.raises(BodyError, match="'elsewhere' is neither of its subgraph nor read by it"):
        WholeBody(model, graph, ["z", "elsewhere"])
    only = SingleBody(model, graph, ["state"])  # is given, so that nothing is run
    x = runs_of(1)[0]["x"]
    turn = only.turn(Values(x), 0, 0, [np.array(0), np.array(True), 2 * x])
    np.testing.assert_array_equal(turn.value("state", 0), 2 * x)
    assert turn.value("x", 0) is x


@pytest.mark.parametrize("kind", CASES)
def test_pruning_by_samples_recovers_what_lies_in_bodies(kind):
    model = built(kind, biased=True)
    original = model.clone()
    x = np.random.default_rng(3).standard_normal((64, 16, WIDTH)).astype(np.float32)
    records = PassManager([PruneChannels(macs=0.7), Recover()]).run(model, Context({"x": x}))
    assert records[1].result.changed
    assert errors(original, model, runs_of(8, 7)) < 2 * TOLERANCE


def test_layers_of_bodies_within_bodies_are_named():
    nodes, weights = branches(np.random.default_rng(0), biased=False)
    nodes[-1].output[:] = ["deep"]
    deep = helper.make_graph(nodes, "deep", [], [info("deep", ["n", WIDTH])], weights)
    flat = helper.make_node("Neg", ["x"], ["flat"])
    other = helper.make_graph([flat], "other", [], [info("flat", ["n", WIDTH])])
    largest = helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0)
    outer = helper.make_node("If", ["is"], ["y"], then_branch=deep, else_branch=other, name="outer")
    is_large = helper.make_node("Greater", ["largest", "half"], ["is"])
    half = numpy_helper.from_array(np.float32(0.5), "half")
    model = assembled([largest, is_large, outer], [half])
    pruned, record = cut_hidden(model)
    found = recover(model, pruned, record, runs_of(4))
    told = [n for n in found.notes if "(If), itself in a subgraph" in n.reason]
    assert [n.node for n in told] == ["second"] * 2
    assert not found.layers


def test_recurrent_layers_in_a_branch_are_solved():
    """Its hidden size is pruned, and the outputs come nearer to the original's."""
    random = np.random.default_rng(0)

    def branch(name):
        shapes = {"w": (1, 32, WIDTH), "r": (1, 32, 8), "b": (1, 64), "out": (8, WIDTH)}
        arrays = {n: random.standard_normal(s) / 3 for n, s in shapes.items()}
        weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
        weights.append(numpy_helper.from_array(np.array([1]), "one"))
        weights.append(numpy_helper.from_array(np.array([1, 2]), "both"))
        nodes = [
            helper.make_node("Unsqueeze", ["x", "one"], ["steps"]),
            helper.make_node("LSTM", ["steps", "w", "r", "b"], ["h"], hidden_size=8, name="lstm"),
            helper.make_node("Squeeze", ["h", "both"], ["flat"]),
            helper.make_node("MatMul", ["flat", "out"], ["z"]),
        ]
        return helper.make_graph(nodes, name, [], [info("z", ["n", WIDTH])], weights)

    nodes, weights = branches(random, biased=False)
    nodes[-1] = helper.make_node(
        "If", ["positive"], ["y"], then_branch=branch("a"), else_branch=branch("b")
    )
    model = assembled(nodes, weights)
    plan = PruningPlan(model.clone())
    cut = {g.name: [np.arange(5)] * len(g.dims) for g in plan.free if g.size == 8}
    record = plan.apply(plan.selection(cut))
    infer_sizes(plan.model)
    lost = errors(model, plan.model, runs_of(8, 7))
    found = recover(model, plan.model, record, runs_of(24))
    assert [layer.op_type for layer in found.layers].count("LSTM") == 2
    assert not found.notes
    assert errors(model, plan.model, runs_of(8, 7)) < 0.7 * lost


def test_weights_that_a_body_shares_with_layers_around_are_solved_together():
    """Exporters leave the states of a Loop without shapes, which are found, too."""
    random = np.random.default_rng(0)
    layered, weights = layers(random, "state", "z", biased=False)
    nodes = [*layered, helper.make_node("Identity", ["go"], ["on"])]
    inputs = [info("k", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("state")]
    body = helper.make_graph(nodes, "body", inputs, [info("on", [], TensorProto.BOOL), info("z")])
    around = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["q"]),
        helper.make_node("MatMul", ["q", "u"], ["r"]),
        helper.make_node("Loop", ["trips", "", "r"], ["y"], body=body),
    ]
    model = assembled(around, [*weights, numpy_helper.from_array(np.int64(2), "trips")])
    assert model.graph.nodes[-1].subgraphs()[0].inputs[2].shape == ("n", WIDTH)
    pruned, record = cut_hidden(model)
    lost = errors(model, pruned, runs_of(8, 7))
    found = recover(model, pruned, record, runs_of(24))
    assert not found.notes
    assert found.layers[-1].after < 0.01 < found.layers[-1].before
    assert errors(model, pruned, runs_of(8, 7)) < lost


def test_a_function_that_is_called_twice_is_masked_like_it_is_pruned():
    """Its body has an If whose branches use the same names, which are new ones in each call."""
    random = np.random.default_rng(0)

    def branch(name, activation):
        nodes = [
            helper.make_node("MatMul", ["X", "W"], ["h"]),
            helper.make_node(activation, ["h"], ["a"]),
            helper.make_node("MatMul", ["a", "U"], ["z"]),
        ]
        return helper.make_graph(nodes, name, [], [info("z")])

    both = {"then_branch": branch("a", "Relu"), "else_branch": branch("b", "Tanh")}
    opsets = [helper.make_opsetid("", 21)]
    function = helper.make_function(
        "own", "Block", list("XWUC"), ["Y"], [helper.make_node("If", ["C"], ["Y"], **both)], opsets
    )
    shapes = {"w": (WIDTH, 9), "u": (9, 8), "v": (8, 9), "t": (9, WIDTH)}
    weights = [
        numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n)
        for n, s in shapes.items()
    ]
    nodes, zero = branches(random, biased=False)
    nodes[-1:] = [
        helper.make_node("Block", ["x", "w", "u", "positive"], ["between"], domain="own"),
        helper.make_node("Block", ["between", "v", "t", "positive"], ["y"], domain="own"),
    ]
    graph = helper.make_graph(
        nodes, "net", [info("x", ["n", WIDTH])], [info("y", ["n", WIDTH])], [*zero, *weights]
    )
    imports = [*opsets, helper.make_opsetid("own", 1)]
    proto = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)
    model = from_proto(proto)
    pruned = model.clone()
    (record,) = PassManager([PruneChannels(ratio=0.5)]).run(pruned)
    name_values(model)
    masked = mask(model, record.result.artifacts["selection"])
    assert errors(model, pruned, runs_of(8)) > 0.1
    assert errors(masked, pruned, runs_of(8)) < 1e-5


def in_front(random):
    """Two products of x of which the second reads redundant results, and their weights."""
    front = redundant(random, KEPT, HIDDEN - KEPT, WIDTH).T
    arrays = {"front": front, "back": random.standard_normal((HIDDEN, WIDTH))}
    nodes = [
        helper.make_node("MatMul", ["x", "front"], ["p"]),
        helper.make_node("MatMul", ["p", "back"], ["q"], name="back"),
    ]
    return nodes, [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]


def test_a_scan_over_rows_that_data_choose_is_named_where_there_are_fewer():
    """The rows whose sum is positive, of which the pruned model finds others."""
    random = np.random.default_rng(0)
    nodes, weights = in_front(random)
    scanned, start = scan(random, biased=False)
    nodes += [
        helper.make_node("ReduceSum", ["q", "last"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["chosen"]),
        helper.make_node("Compress", ["q", "chosen"], ["some"], axis=0),
        *scanned,
    ]
    nodes[-1].input[1] = "some"
    constants = [
        numpy_helper.from_array(np.array([1]), "last"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    model = assembled(nodes, [*weights, *start, *constants])
    pruned, record = cut_hidden(model)
    pruned.graph.initializers["zero"].const = Tensor.from_array(np.float32(2))
    found = recover(model, pruned, record, runs_of(24))
    assert [layer.node for layer in found.layers if layer.before > 0.01] == ["back"]
    told = {n.node for n in found.notes if "runs less often" in n.reason}
    assert told == {n.node for n in found.notes} == {"first", "second"}


def test_a_scan_over_batches_is_named_in_a_model_whose_constants_are_inputs():
    """Of operator set 8 and version 3 of the format, as exporters of 2018 wrote them."""
    random = np.random.default_rng(0)
    nodes, weights = layers(random, "row", "z", biased=False)
    body = helper.make_graph(
        [*nodes, helper.make_node("Add", ["z", "sum"], ["next"])],
        "body",
        [info("sum", [1, WIDTH]), info("row", [1, WIDTH])],
        [info("next", [1, WIDTH])],
    )
    around, more = in_front(random)
    weights += [*more, numpy_helper.from_array(np.zeros((1, 1, WIDTH), np.float32), "start")]
    around += [
        helper.make_node("Unsqueeze", ["q"], ["rows"], axes=[2]),
        helper.make_node("Scan", ["", "start", "rows"], ["y"], body=body, num_scan_inputs=1),
    ]
    given = [info("x", [1, 5, WIDTH]), *(info(t.name, list(t.dims)) for t in weights)]
    graph = helper.make_graph(around, "net", given, [info("y", [1, 1, WIDTH])], weights)
    opsets = [helper.make_opsetid("", 8)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=3))
    infer_sizes(model)
    random = np.random.default_rng(5)
    runs = [{"x": random.standard_normal((1, 5, WIDTH)).astype(np.float32)} for _ in range(48)]
    pruned, record = cut_hidden(model)
    found = recover(model, pruned, record, runs)
    assert [layer.node for layer in found.layers if layer.after < 0.01 < layer.before]
    assert {n.reason for n in found.notes} == {
        "not solved anew: it lies in a Scan as before operator set 9, over batches"
    }
