"""The pruning pass: goals, ranking, alignment, what is left alone, what inspection says."""

import itertools
import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.axes.selection import Selection
from secateur.ir.cost import count
from secateur.ir.dependencies.analysis import analyze
from secateur.ir.errors import SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.models import zoo
from secateur.passes.prune import PruneChannels, find_groups, inspect_groups
from secateur.passes.prune.apply import apply_selection
from secateur.reporting.report import alignment_remark


def mlp(widths=(4, 16, 16, 3), seed=0, **weights):
    """x -> MatMul -> Relu -> ... -> y with weights w0, w1, ... (or the given arrays)."""
    rng = np.random.default_rng(seed)
    nodes, initializers, current = [], [], "x"
    for i, (rows, columns) in enumerate(itertools.pairwise(widths)):
        array = weights.get(f"w{i}", rng.standard_normal((rows, columns)))
        initializers.append(numpy_helper.from_array(array.astype(np.float32), f"w{i}"))
        out = "y" if i == len(widths) - 2 else f"m{i}"
        nodes.append(helper.make_node("MatMul", [current, f"w{i}"], [out], name=f"layer{i}"))
        current = out
        if out != "y":
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"]))
            current = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, widths[-1]])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return from_proto(proto)


def shapes(model):
    return {name: value.const.shape for name, value in model.graph.initializers.items()}


LEAST = {("shufflenet_v1", "params"): 0.34}
"""Shares below which pruning everything that may go doesn't come."""


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("goal", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "shufflenet_v1", "bert"])
def test_goals_are_met_and_not_overshot(name, goal, scope):
    for kind, field in (("macs", "macs"), ("params", "parameters")):
        model = zoo.load_tiny(name, "folded")
        prune = PruneChannels(**{kind: goal}, scope=scope)
        if goal < LEAST.get((name, kind), 0):
            with pytest.raises(SecateurError, match=r"can't be reached: .* leaves 34\.6"):
                prune.run(model)
            continue
        statistics = prune.run(model).statistics
        reached = statistics[f"{field}_after"] / statistics[f"{field}_before"]
        assert reached <= goal
        assert reached > goal - 0.2  # steps of small groups are coarse
        assert count(model).macs == statistics["macs_after"]


def test_ratio_takes_its_share_of_every_group():
    model = mlp((4, 16, 8, 3))
    PruneChannels(ratio=0.25, scope="uniform").run(model)
    assert shapes(model) == {"w0": (4, 12), "w1": (12, 6), "w2": (6, 3)}


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_the_smallest_indices_go(importance):
    weak = [2, 3, 7]
    w0, w1 = np.ones((4, 10)), np.ones((10, 3))
    w0[:, weak] *= 0.1
    w1[weak] *= 0.1
    model = mlp((4, 10, 3), w0=w0, w1=w1)
    PruneChannels(ratio=0.3, importance=importance).run(model)
    np.testing.assert_array_equal(model.graph.initializers["w0"].const.numpy(), np.ones((4, 7)))


def test_global_ranking_takes_from_where_it_matters_least():
    w0 = np.concatenate([np.full((4, 8), 1e-3), np.ones((4, 8))], axis=1)
    w1 = np.concatenate([np.full((8, 16), 1e-3), np.ones((8, 16))])
    model = mlp((4, 16, 16, 3), w0=w0, w1=w1, w2=np.ones((16, 3)))
    PruneChannels(ratio=0.25).run(model)
    assert shapes(model) == {"w0": (4, 8), "w1": (8, 16), "w2": (16, 3)}


def test_widths_stay_multiples():
    model = mlp((4, 32, 24, 3))
    PruneChannels(macs=0.6, align=8).run(model)
    assert all(width % 8 == 0 for width in (shapes(model)["w1"]))
    assert shapes(model)["w1"] != (32, 24)


def test_alignment_gives_way_to_the_goal():
    model = mlp((4, 8, 8, 3))
    statistics = PruneChannels(macs=0.4, align=16).run(model).statistics
    assert statistics["align"] < 16
    assert statistics["macs_after"] <= 0.4 * statistics["macs_before"]


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize(("share", "align"), [(0.75, 8), (0.7, 2), (0.5, 16)])
def test_alignment_gives_way_rather_than_cut_much_more(scope, share, align):
    """Half of the 32 hidden channels leaves half of the multiply-accumulates."""
    model = mlp((64, 32, 64))
    statistics = PruneChannels(macs=share, align=16, scope=scope).run(model).statistics
    assert statistics["align"] == align
    assert 0.9 * share * 4096 <= statistics["macs_after"] <= share * 4096


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.5])
def test_alignment_does_not_swallow_channels(scope, ratio):
    """Groups that alignment keeps whole are made up for by others."""
    model = mlp((4, 16, 24, 40, 16, 3))
    statistics = PruneChannels(ratio=ratio, align=8, scope=scope).run(model).statistics
    widths = [shapes(model)[f"w{i}"][1] for i in range(4)]
    assert sum(widths) <= math.ceil((1 - ratio) * (16 + 24 + 40 + 16)) + 1
    assert all(width % statistics["align"] == 0 for width in widths)
    assert statistics["align"] == 8 or ratio == 0.5 or (scope, ratio) == ("uniform", 0.3)


def test_narrower_alignment_is_told():
    statistics = PruneChannels(ratio=0.3, align=16).run(mlp((4, 16, 16, 3))).statistics
    assert statistics["align"] < 16
    assert "multiples of 16" in alignment_remark(statistics)
    assert not alignment_remark({**statistics, "align": 16})


@pytest.mark.parametrize("pattern", ["w1", "layer1", "layer[1-9]"])
def test_ignored_parameters_and_nodes_stay_whole(pattern):
    model = mlp((4, 16, 16, 16, 3))
    result = PruneChannels(ratio=0.5, ignore=(pattern,)).run(model)
    assert shapes(model)["w1"] == (16, 16)
    assert any(pattern in note.reason for note in result.notes)


def test_every_dim_keeps_an_index():
    model = mlp((4, 16, 16, 3))
    PruneChannels(ratio=1.0 - 1e-9).run(model)
    assert min(min(shape) for shape in shapes(model).values()) >= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one"),
        ({"macs": 0.5, "ratio": 0.5}, "exactly one"),
        ({"macs": 0.0}, "between 0 and 1"),
        ({"macs": 0.5, "importance": "luck"}, "luck"),
        ({"macs": 0.5, "scope": "local"}, "local"),
        ({"macs": 1e-9}, "leaves"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(SecateurError, match=said):
        PruneChannels(**options).run(mlp())


def test_shared_constants_get_the_slices_that_their_uses_need():
    """One bias for two unrelated layers: each use is sliced for itself."""
    rng = np.random.default_rng(0)
    arrays = {"a": (4, 8), "b": (4, 8), "bias": (8,), "c": (8, 2), "d": (8, 2)}
    values = {k: rng.standard_normal(s).astype(np.float32) for k, s in arrays.items()}
    for name in "cd":  # so that only the first weights rank
        values[name][...] = 1
    values["a"][:, :4] *= 1e-3
    values["b"][:, 4:] *= 1e-3
    nodes = [
        helper.make_node("Gemm", ["x", "a", "bias"], ["p"]),
        helper.make_node("Gemm", ["x", "b", "bias"], ["q"]),
        helper.make_node("MatMul", ["p", "c"], ["y"]),
        helper.make_node("MatMul", ["q", "d"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "yz"],
        [numpy_helper.from_array(v, k) for k, v in values.items()],
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    PruneChannels(ratio=0.5, scope="uniform").run(model)
    biases = [n.input(2).const.numpy() for n in model.graph.nodes if n.op_type == "Gemm"]
    np.testing.assert_array_equal(biases[0], values["bias"][4:])
    np.testing.assert_array_equal(biases[1], values["bias"][:4])


def test_parameter_goals_count_a_constant_that_is_also_an_output():
    """The output keeps the whole constant, so slicing a copy of it saves nothing."""
    proto = to_proto(mlp((4, 16, 16, 3)))
    proto.graph.output.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [16, 16]))
    with pytest.raises(SecateurError, match="can't be reached"):
        PruneChannels(params=0.6).run(from_proto(proto))
    statistics = PruneChannels(params=0.9).run(from_proto(proto)).statistics
    assert statistics["parameters_after"] <= 0.9 * statistics["parameters_before"]


def test_same_options_same_bytes():
    models = [zoo.load_tiny("shufflenet_v1", "kept") for _ in range(2)]
    for model in models:
        PruneChannels(macs=0.6).run(model)
    first, second = (to_proto(m).SerializeToString(deterministic=True) for m in models)
    assert first == second


@pytest.mark.parametrize("name", ["resnet8", "shufflenet_v1", "mobilenet_v3_small", "gqa_decoder"])
def test_inspection_predicts_what_a_step_saves(name):
    reports = {r.name: r for r in inspect_groups(zoo.load_tiny(name, "folded"))}
    for group_name in list(reports)[:6]:
        model = zoo.load_tiny(name, "folded")
        infer_shapes(model)
        before = count(model)
        analysis = analyze(model)
        group = next(g for g in find_groups(analysis) if g.name == group_name)
        if group.lock is not None:
            assert reports[group_name].lock == group.lock
            continue
        kept = {d: np.arange(d.size - n) for d, n in group.move.items()}
        apply_selection(analysis, Selection(kept))
        infer_shapes(model)
        after = count(model)
        assert before.macs - after.macs == reports[group_name].macs_per_step
        # Shape constants that several nodes read may be copied for those that change.
        copied = reports[group_name].parameters_per_step - (before.parameters - after.parameters)
        assert 0 <= copied <= 8 * len(model.graph.nodes) // 10


def test_scalar_operands_of_products_are_counted():
    """Zero points of MatMulInteger have no axes."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "", "z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 4])],
        [
            numpy_helper.from_array(np.ones((8, 4), np.int8), "w"),
            numpy_helper.from_array(np.int8(1), "z"),
        ],
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert all(report.lock is not None for report in inspect_groups(model))


def test_a_constant_without_a_result() -> None:
    """Files may have one; it goes like any that nobody reads."""
    random = np.random.default_rng(0)
    weights = {
        name: numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (4, 8)), ("v", (8, 2)))
    }
    nodes = [
        helper.make_node("Constant", [], [""], value_float=1.0),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in (("x", 4), ("y", 2))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(weights.values()))
    versions = [helper.make_opsetid("", 17)]
    model = from_proto(helper.make_model(graph, opset_imports=versions, ir_version=8))
    PruneChannels(ratio=0.5).run(model)
    assert all(node.op_type != "Constant" for node in model.graph.nodes)
