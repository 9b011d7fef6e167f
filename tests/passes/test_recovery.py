"""Recovery: what is gone and can be made up for is, and nothing else changes."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import onnx
import pytest

from secateur.ir.dependencies.analysis import analyze
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.models import zoo
from secateur.passes.base import Context
from secateur.passes.linear.divergence import Divergence, divergence
from secateur.passes.linear.walk import Recording
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels, Recover, portfolio
from secateur.passes.prune.allocation import allocate
from secateur.passes.prune.importance import CRITERIA, group_scores
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.recovery import calibration_runs, recover
from secateur.passes.prune.refinement import refine
from secateur.passes.simplify import simplify_pipeline
from secateur.passes.sizes import infer_sizes
from tests.ir.axes.graphs import network
from tests.passes.nets import Net, redundant

TOLERANCE = 2e-2
"""Relative to an output's deviation: the ridge keeps weights that much nearer to the old ones."""


def linear_readers(kind, seed):
    """A layer with redundant outputs, something linear behind it, and a layer that reads it."""
    net = Net(seed)
    random = net.random
    if kind in ("gemm", "matmul"):
        first = net.constant(redundant(random, 6, 3, 8).T)
        hidden = net.add("MatMul", "x", first)
        if kind == "gemm":
            return net.model(
                ["n", 8], net.add("Gemm", hidden, net.constant(random.standard_normal((9, 4))))
            ), [8]
        return net.model(
            ["n", 5, 8], net.add("MatMul", hidden, net.constant(random.standard_normal((9, 4))))
        ), [5, 8]
    rank = int(kind[-2])
    kernel, image = (3,) * rank, (6, 5, 4)[:rank]
    hidden = net.add("Conv", "x", net.constant(redundant(random, 6, 3, 4, *kernel)))
    if kind.startswith("transposed"):
        weights = random.standard_normal((9, 5, *kernel))
        out = net.add("ConvTranspose", hidden, net.constant(weights), strides=[2] * rank)
    elif kind.startswith("depthwise"):
        weights = np.broadcast_to(random.standard_normal((1, 1, *kernel)), (9, 1, *kernel))
        hidden = net.add("Conv", hidden, net.constant(weights), group=9, pads=[1] * 2 * rank)
        out = net.add("Conv", hidden, net.constant(random.standard_normal((5, 9, *[1] * rank))))
    else:
        weights = random.standard_normal((5, 9, *kernel))
        out = net.add("Conv", hidden, net.constant(weights), pads=[1] * 2 * rank)
    return net.model(["n", 4, *image], out), [4, *image]


KINDS = ["gemm", "matmul"] + [
    f"{kind}{rank}d" for kind in ("conv", "transposed", "depthwise") for rank in (1, 2, 3)
]


@pytest.mark.parametrize("kind", KINDS)
def test_combinations_of_others_are_made_up_for(kind):
    model, shape = linear_readers(kind, 0)
    random = np.random.default_rng(5)
    runs = [{"x": random.standard_normal((16, *shape)).astype(np.float32)} for _ in range(16)]
    group = next(g for g in PruningPlan(model.clone()).free if g.size == 9)
    plan = PruningPlan(model.clone())
    cut = {group.name: [np.arange(6)] * len(group.dims)}
    record = plan.apply(plan.selection(cut))
    infer_sizes(plan.model)
    fresh = {"x": random.standard_normal((16, *shape)).astype(np.float32)}
    want = Session(model).run(fresh)["y"]
    lost = Session(plan.model).run(fresh)["y"]
    found = recover(model, plan.model, record, runs)
    onnx.checker.check_model(to_proto(plan.model), full_check=True)
    have = Session(plan.model).run(fresh)["y"]
    assert np.abs(lost - want).max() > want.std() / 2
    assert np.sqrt(np.square(have - want).mean()) < TOLERANCE * want.std()
    assert all(layer.after <= layer.before for layer in found.layers)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "bert", "densenet121", "unet"])
def test_nothing_pruned_changes_nothing(name):
    model = zoo.load_tiny(name, "folded")
    infer_sizes(model)
    runs = [zoo.random_inputs(model, seed=seed) for seed in range(2)]
    pruned = model.clone()
    plan = PruningPlan(pruned)
    record = plan.apply(plan.selection({}))
    before = to_proto(pruned).SerializeToString()
    recover(model, pruned, record, runs)
    assert to_proto(pruned).SerializeToString() == before


@pytest.mark.parametrize(
    "seed", [*range(16), *(pytest.param(k, marks=pytest.mark.slow) for k in range(16, 40))]
)
def test_random_networks_stay_valid(seed):
    """Whatever a network consists of, recovery changes weights and nothing else of it."""
    proto, feeds = network(seed)
    model = from_proto(proto)
    infer_sizes(model)
    try:
        Session(model)
        plan = PruningPlan(model.clone())
        cut = {
            g.name: [np.arange(max(d.size - n, 1)) for d, n in g.move.items()] for g in plan.free
        }
        record = plan.apply(plan.selection(cut))
        infer_sizes(plan.model)
    except SecateurError:
        pytest.skip("not one that ONNX Runtime takes, or that can be pruned")
    nodes = [node.op_type for node in plan.model.graph.nodes]
    shapes = [value.shape for value in plan.model.graph.outputs]
    with contextlib.suppress(SecateurError):  # values that are not finite
        recover(model, plan.model, record, [feeds])
    result = [node.op_type for node in plan.model.graph.nodes]
    assert [n for n in result if n != "Add"] == [n for n in nodes if n != "Add"]
    assert [value.shape for value in plan.model.graph.outputs] == shapes
    onnx.checker.check_model(to_proto(plan.model))
    Session(plan.model).run(feeds)


def digits_like(seed=0):
    net = Net(seed)
    random = net.random
    hidden = net.add("Relu", net.add("Conv", "x", net.constant(redundant(random, 8, 8, 1, 3, 3))))
    hidden = net.add(
        "Relu", net.add("Conv", hidden, net.constant(redundant(random, 8, 8, 16, 3, 3)))
    )
    pooled = net.add("Flatten", net.add("GlobalAveragePool", hidden))
    return net.model(
        [1, 1, 8, 8], net.add("Gemm", pooled, net.constant(random.standard_normal((16, 5))))
    )


def test_passes_with_samples_bring_outputs_nearer():
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 1, 8, 8)).astype(np.float32)
    original = digits_like()
    distances = {}
    for recovery in (False, True):
        model = original.clone()
        passes = [PruneChannels(macs=0.5, recovery=recovery), Recover()]
        records = PassManager(passes).run(model, Context({"x": x[:128]}))
        infer_sizes(model)
        distance = Divergence()
        for k in range(128, 200):
            feeds = {"x": x[k : k + 1]}
            distance.add(Session(original).run(feeds), Session(model).run(feeds))
        distances[recovery] = distance.value
    assert distances[True] < distances[False] / 5
    candidates = records[0].result.statistics["candidates"]
    assert candidates[0]["divergence"] == min(c["divergence"] for c in candidates)
    layers = records[1].result.statistics["layers"]
    assert any(layer["after"] < layer["before"] for layer in layers)
    assert model.graph.inputs[0].shape == (1, 1, 8, 8)


def test_without_samples_nothing_is_recovered_and_that_is_said():
    model = digits_like()
    records = PassManager([PruneChannels(macs=0.5), Recover()]).run(model, Context())
    assert "nothing was recovered" in str(records[1].result.notes[0])


def recovered_notes(model, x, macs=0.5):
    """What pruning and recovery say of single nodes, by their operators."""
    records = PassManager([PruneChannels(macs=macs), Recover()]).run(model, Context({"x": x}))
    return {note.op_type: note.reason for record in records for note in record.result.notes}


def test_what_is_not_solved_is_named_with_the_reason():
    net = Net(0)
    random = net.random
    hidden = net.add("MatMul", "x", net.constant(redundant(random, 8, 8, 6).T))
    mixed = net.add(
        "Einsum", hidden, net.constant(random.standard_normal((16, 12))), equation="bti,io->bo"
    )
    shared = net.constant(random.standard_normal((12, 12)))
    summed = net.add("Gemm", mixed, shared)
    model = net.model(["n", 5, 6], net.add("Gemm", net.add("Tanh", summed), shared, transB=1))
    x = random.standard_normal((64, 5, 6)).astype(np.float32)
    notes = recovered_notes(model, x)
    assert "other nodes read its weights" in notes["Gemm"]
    assert "summed by itself" in notes["Einsum"]


def test_products_with_computed_weights_are_named():
    net = Net(0)
    random = net.random
    hidden = net.add("Relu", net.add("MatMul", "x", net.constant(random.standard_normal((6, 12)))))
    weights = net.add("Transpose", net.constant(random.standard_normal((4, 12))), perm=[1, 0])
    model = net.model([1, 5, 6], net.add("MatMul", hidden, weights))
    x = random.standard_normal((64, 5, 6)).astype(np.float32)
    assert "weights are computed" in recovered_notes(model, x)["MatMul"]


def test_nothing_is_said_of_what_has_nothing_to_make_up_for():
    """Positions that are added to a stream lose what it loses, and no sum goes over them."""
    net = Net(0)
    random = net.random
    hidden = net.add("MatMul", "x", net.constant(random.standard_normal((6, 16))))
    placed = net.add("Add", hidden, net.constant(random.standard_normal((5, 16))))
    joined = net.add("Concat", placed, net.constant(random.standard_normal((1, 2, 16))), axis=1)
    mixed = net.add("MatMul", joined, net.constant(random.standard_normal((16, 4))))
    model = net.model([1, 5, 6], mixed)
    x = random.standard_normal((64, 5, 6)).astype(np.float32)
    notes = recovered_notes(model, x)
    assert not {"Add", "Concat"} & set(notes)


@pytest.mark.parametrize("biased", [False, True])
def test_layers_that_share_weights_are_solved_together(biased):
    """Both read channels of which some are combinations of others, mixed in their own ways."""
    net = Net(0)
    random = net.random
    shared = net.constant(random.standard_normal((9, 7)))
    hidden = [
        net.add("MatMul", "x", net.constant(redundant(np.random.default_rng(s), 6, 3, 8).T))
        for s in (1, 1)
    ]
    read = [net.add("MatMul", value, shared) for value in (hidden[0], net.add("Neg", hidden[1]))]
    if biased:
        read = [net.add("Add", v, net.constant(random.standard_normal(7))) for v in read]
    model = net.model(["n", 8], net.add("Concat", *read, axis=1))
    runs = [{"x": random.standard_normal((64, 8)).astype(np.float32)} for _ in range(8)]
    plan = PruningPlan(model.clone())
    cut = {g.name: [np.arange(6)] * len(g.dims) for g in plan.free if g.size == 9}
    assert cut
    record = plan.apply(plan.selection(cut))
    infer_sizes(plan.model)
    fresh = {"x": random.standard_normal((64, 8)).astype(np.float32)}
    want, lost = Session(model).run(fresh)["y"], Session(plan.model).run(fresh)["y"]
    found = recover(model, plan.model, record, runs)
    have = Session(plan.model).run(fresh)["y"]
    assert np.abs(lost - want).max() > want.std() / 2
    assert np.sqrt(np.square(have - want).mean()) < TOLERANCE * want.std()
    products = [node for node in plan.model.graph.nodes if node.op_type == "MatMul"]
    assert products[2].input(1) is products[3].input(1)
    assert len([layer for layer in found.layers if layer.op_type == "MatMul"]) == 1


@pytest.mark.parametrize("count", [4, 6, 7, 24])
def test_layers_with_fewer_rows_than_unknowns_are_named(count):
    model, shape = linear_readers("gemm", 0)
    random = np.random.default_rng(5)
    runs = [{"x": random.standard_normal((count, *shape)).astype(np.float32)}]
    plan = PruningPlan(model.clone())
    group = next(g for g in plan.free if g.size == 9)
    record = plan.apply(plan.selection({group.name: [np.arange(6)] * len(group.dims)}))
    infer_sizes(plan.model)
    notes = {note.op_type: note.reason for note in recover(model, plan.model, record, runs).notes}
    assert ("fewer rows" in notes.get("Gemm", "")) == (count < 6 + 1)


def test_one_run_leaves_nothing_to_judge_by_and_that_is_said():
    model = digits_like()
    x = np.zeros((1, 1, 8, 8), np.float32)
    assert "hold back" in recovered_notes(model, x)["prune-channels"]


@pytest.mark.parametrize("recovery", [False, True])
def test_search_without_what_it_needs_is_refused(recovery):
    pruning = PruneChannels(macs=0.5, search=1.0, recovery=recovery)
    x = np.zeros((1, 1, 8, 8), np.float32)
    context = Context() if recovery else Context({"x": x})
    with pytest.raises(SecateurError, match="calibration" if recovery else "is off"):
        PassManager([pruning]).run(digits_like(), context)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [np.nan, np.inf, 1e37])
def test_values_that_are_not_finite_are_an_error(number):
    model = digits_like()
    x = np.full((64, 1, 8, 8), number, np.float32)
    with pytest.raises(SecateurError, match=r"not finite|NaN"):
        PassManager([PruneChannels(macs=0.5), Recover()]).run(model, Context({"x": x}))


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_few_samples_are_enough_to_run(count):
    model = digits_like()
    x = np.random.default_rng(0).standard_normal((count, 1, 8, 8)).astype(np.float32)
    PassManager([PruneChannels(macs=0.5), Recover()]).run(model, Context({"x": x}))
    Session(model).run({"x": x[:1]})


def test_analysis_of_redundant_layers_is_what_the_tests_take_it_for():
    model, _ = linear_readers("conv2d", 0)
    assert any(g.size == 9 for g in PruningPlan(model).free)
    assert analyze(model).parameters


def test_every_criterion_orders_channels_in_its_own_way():
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 1, 8, 8)).astype(np.float32)
    kept = {}
    for name in CRITERIA:
        model = digits_like()
        pruning = PruneChannels(macs=0.5, importance=name, scope="uniform")
        records = PassManager([pruning]).run(model, Context({"x": x}))
        record = records[0].result.artifacts["selection"]
        kept[name] = tuple(
            array.tobytes()
            for blocks, _ in record.constants.values()
            for block in blocks
            for array in block
            if array is not None
        )
    assert len(set(kept.values())) >= len(CRITERIA) - 3, "l1, l2 and bn-scale may agree"


@pytest.mark.parametrize("name", [n for n, c in CRITERIA.items() if c.needs_samples])
def test_criteria_that_need_samples_say_so_without(name):
    with pytest.raises(SecateurError, match="needs calibration samples"):
        PassManager([PruneChannels(macs=0.5, importance=name)]).run(digits_like(), Context())


def nearest_to_zero_last(weights):
    return -np.abs(weights).sum(axis=1)


def of_wrong_shape(weights):
    return weights


def test_a_function_of_ones_own_orders_channels(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    groups = PruningPlan(digits_like()).free
    smallest = group_scores(groups, "l1")
    largest = group_scores(groups, "mine:nearest_to_zero_last")
    dim = groups[0].dims[0]
    assert smallest[dim].argmin() == largest[dim].argmax()
    with pytest.raises(SecateurError, match="returned"):
        group_scores(groups, "mine:of_wrong_shape")
    with pytest.raises(SecateurError, match="can't be imported"):
        group_scores(groups, "mine:missing")


def test_search_never_ends_with_less_than_it_began_with():
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 1, 8, 8)).astype(np.float32)
    model = digits_like()
    records = PassManager([PruneChannels(macs=0.5, search=0.05)]).run(model, Context({"x": x}))
    candidates = records[0].result.statistics["candidates"]
    assert candidates[0]["divergence"] == min(c["divergence"] for c in candidates)
    statistics = records[0].result.statistics
    assert statistics["macs_after"] <= 0.5 * statistics["macs_before"]


def test_candidates_of_a_search_keep_to_the_alignment(monkeypatch):
    """But for knapsacks of latency, whose tables know what widths cost."""
    asked = []

    def noted(analysis, groups, scores, goal, terms, **more):
        asked.append((terms.scope, terms.align))
        return allocate(analysis, groups, scores, goal, terms, **more)

    monkeypatch.setattr(portfolio, "allocate", noted)
    x = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
    pruning = PruneChannels(macs=0.7, align=8, search=0.02)
    PassManager([pruning]).run(digits_like(), Context({"x": x}))
    assert {scope for scope, _ in asked} == {"global", "knapsack", "uniform"}
    assert {align for _, align in asked} == {8}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "bert",
        "bidirectional_lstm",
        "ds_cnn",
        "efficientnet_b0",
        "gqa_decoder",
        "mobilenet_v3_small",
        "resnext50",
        "shufflenet_v1",
        "super_resolution",
        "tcn",
        "vit_tiny",
    ],
)
def test_whole_architectures_are_recovered_or_that_is_undone(name):
    model = zoo.load_tiny(name, "kept")
    PassManager(simplify_pipeline()).run(model)
    infer_sizes(model)
    feeds = [zoo.random_inputs(model, seed=seed) for seed in range(12)]
    arrays = {}
    for value in model.graph.inputs:
        rows = [feed[value.name] for feed in feeds]
        joins = bool(value.shape) and rows[0].shape[0] == 1
        arrays[value.name] = np.concatenate(rows) if joins else np.stack(rows)
    pruned = model.clone()
    records = PassManager([PruneChannels(macs=0.6), Recover()]).run(pruned, Context(arrays))
    infer_sizes(pruned)
    best = records[0].result.statistics["candidates"][0]
    if best["divergence"] > best["divergence_unrecovered"]:
        assert not records[1].result.changed
        assert "held back" in str(records[1].result.notes[0])
    else:
        assert records[1].result.changed
    assert Session(pruned).run(feeds[0]).keys() == Session(model).run(feeds[0]).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_means_and_deviations_come_back(kind):
    """Those of every output channel, to the share of values that none reached before."""
    model, shape = linear_readers(kind, 0)
    random = np.random.default_rng(5)
    runs = [{"x": 1 + random.standard_normal((16, *shape)).astype(np.float32)} for _ in range(16)]
    plan = PruningPlan(model.clone())
    group = next(g for g in plan.free if g.size == 9)
    record = plan.apply(plan.selection({group.name: [np.arange(6)] * len(group.dims)}))
    infer_sizes(plan.model)
    found = recover(model, plan.model, record, runs, rematch=True)
    want = np.concatenate([Session(model).run(run)["y"] for run in runs])
    have = np.concatenate([Session(plan.model).run(run)["y"] for run in runs])
    axes = tuple(range(want.ndim - 1)) if kind in ("gemm", "matmul") else (0, *range(2, want.ndim))
    np.testing.assert_allclose(have.mean(axes), want.mean(axes), atol=0.1 * want.std())
    np.testing.assert_allclose(have.std(axes), want.std(axes), rtol=0.1)
    assert any(layer.after != layer.before for layer in found.layers)


def test_rematching_is_less_than_solving_and_more_than_nothing():
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 1, 8, 8)).astype(np.float32)
    distances = {}
    for rematch in (False, True):
        pruning = PruneChannels(macs=0.5, rematch=rematch)
        model = digits_like()
        records = PassManager([pruning, Recover()]).run(model, Context({"x": x}))
        best = records[0].result.statistics["candidates"][0]
        distances[rematch] = best["divergence"]
    assert distances[False] < distances[True] < best["divergence_unrecovered"]


def test_what_does_not_fit_in_a_recording_is_computed_anew(monkeypatch):
    x = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
    found = {}
    for largest in (2**31, 0):
        fits = []

        class Small(Recording):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options, largest=largest)  # noqa: B023

            def record(self, names):
                fits.append(super().record(names))  # noqa: B023
                return fits[-1]  # noqa: B023

        monkeypatch.setattr(portfolio, "Recording", Small)
        records = PassManager([PruneChannels(macs=0.5)]).run(digits_like(), Context({"x": x}))
        trials = records[0].result.statistics["candidates"]
        found[largest] = {trial["name"]: trial["divergence"] for trial in trials}
        assert len(fits) == 2 * len(found[largest])
        assert all(fits) is any(fits) is (largest > 0)
    assert found[0] == pytest.approx(found[2**31], rel=1e-3)


def together(model, pruned, x, held=2):
    """What steps of all layers together make of a pruned model."""
    with calibration_runs([model, pruned], {"x": x}, 0) as runs:
        return refine(model, pruned, {}, runs[:-held], runs[-held:])


@pytest.mark.parametrize(
    "opset",
    [7, pytest.param(9, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow), 21],
)
def test_all_layers_together_come_nearer_and_stay_a_valid_model(opset):
    random = np.random.default_rng(0)
    x = random.standard_normal((512, 1, 8, 8)).astype(np.float32)
    net = Net(0)
    hidden = net.add(
        "Relu", net.add("Conv", "x", net.constant(random.normal(0, 0.3, (12, 1, 3, 3))))
    )
    hidden = net.add("Conv", hidden, net.constant(random.normal(0, 0.1, (12, 12, 3, 3))))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", hidden)))
    weights = net.constant(random.normal(0, 5, (12, 5)))
    out = net.add("Gemm", pooled, weights, net.constant(np.zeros(5)))
    model = net.model(["n", 1, 8, 8], out, opset)
    pruned = model.clone()
    records = PassManager([PruneChannels(macs=0.3)]).run(pruned, Context({"x": x[:128]}))
    PassManager([Recover(refine=False)]).run(
        pruned, Context({"x": x[:128]}).after(records[0].result)
    )
    infer_sizes(pruned)
    before = pruned.clone()
    infer_sizes(before)
    found = together(model, pruned, x[128:384])
    assert found.steps > 0
    assert found.layers == 3
    assert found.after < 0.9 * found.before
    onnx.checker.check_model(to_proto(pruned), full_check=True)
    fresh = [{"x": x[k : k + 1]} for k in range(384, 512)]
    want = [Session(model).run(run) for run in fresh]
    assert divergence(want, pruned, fresh) < 0.9 * divergence(want, before, fresh)
    assert [node.op_type for node in pruned.graph.nodes] == [n.op_type for n in before.graph.nodes]


@pytest.mark.parametrize("same", [True, False])
def test_images_are_fitted_twice_where_the_model_sees_the_same_in_a_mirror(same, monkeypatch):
    random = np.random.default_rng(0)
    weights = random.standard_normal((8, 8, 12))
    if same:
        weights = weights + weights[:, ::-1]
    net = Net(0)
    hidden = net.add("Gemm", net.add("Flatten", "x"), net.constant(weights.reshape(64, 12)))
    out = net.add("Gemm", net.add("Relu", hidden), net.constant(random.standard_normal((12, 4))))
    model = net.model(["n", 1, 8, 8], out)
    x = random.standard_normal((128, 1, 8, 8)).astype(np.float32)
    pruning = [PruneChannels(macs=0.5), Recover()]

    def rows():
        records = PassManager(pruning).run(model.clone(), Context({"x": x}))
        return {layer["rows"] for layer in records[1].result.statistics["layers"]}

    assert rows() == {224 if same else 112}
    monkeypatch.setattr("secateur.passes.prune.recovery.COPIED", 1.0)
    assert rows() == {112}


def test_nothing_to_come_nearer_to_changes_nothing():
    x = np.random.default_rng(0).standard_normal((96, 1, 8, 8)).astype(np.float32)
    model = digits_like()
    same = model.clone()
    infer_sizes(same)
    before = to_proto(same).SerializeToString()
    found = together(model, same, x)
    assert "nothing left" in found.reason
    assert to_proto(same).SerializeToString() == before


def test_too_few_samples_or_too_much_work_is_said():
    x = np.random.default_rng(0).standard_normal((96, 1, 8, 8)).astype(np.float32)
    model = digits_like()
    assert "too few" in together(model, model.clone(), x[:16]).reason
    with calibration_runs([model], {"x": x}, 0) as runs:
        assert "time for" in refine(model, model.clone(), {}, runs, runs, macs=1e5).reason


@pytest.mark.parametrize(("samples", "expected"), [(1000, 12), (5, 5), (0.5, 1)])
def test_runs_of_large_models_have_fewer_samples(monkeypatch, samples, expected):
    """So that the values of a run, here 14 numbers for each sample, fit in memory."""
    net = Net(0)
    hidden = net.add("Relu", net.add("Gemm", "x", net.constant(np.ones((8, 4)))))
    out = net.add("Gemm", hidden, net.constant(np.ones((4, 3))))
    model = net.model(["n", 8], out)
    infer_sizes(model)
    monkeypatch.setattr("secateur.passes.prune.recovery.VALUES", int(samples * 4 * (4 + 4 + 3 + 3)))
    x = np.random.default_rng(0).standard_normal((96, 8)).astype(np.float32)
    with calibration_runs([model], {"x": x}, 0) as runs:
        assert {len(run["x"]) for run in runs[:-1]} == {expected}
        assert sum(len(run["x"]) for run in runs) == 96


def test_models_without_gradients_are_left_alone_and_that_is_said():
    net = Net(0)
    random = net.random
    hidden = net.add("Gemm", "x", net.constant(random.standard_normal((8, 9))))
    out = net.add("Gemm", hidden, net.constant(random.standard_normal((9, 4))))
    model = net.model(["n", 8], net.add("Round", out))
    x = random.standard_normal((128, 8)).astype(np.float32)
    assert "Round" in together(model, model.clone(), x).reason
