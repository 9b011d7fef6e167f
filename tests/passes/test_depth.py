"""Residual branches that go whole: which there are, what stands for them, and when they go."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest

from secateur.data.random_inputs import random_feeds
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import to_proto
from secateur.ir.reference import Session
from secateur.models import zoo
from secateur.passes.base import Context
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels, Recover, mask, portfolio
from secateur.passes.prune.depth import (
    branch_means,
    cost_of_nodes,
    drop_branches,
    find_branches,
    in_order,
)
from secateur.passes.prune.masking import PruningRecord
from secateur.passes.prune.plan import Pruned
from secateur.passes.simplify import simplify_pipeline
from secateur.passes.sizes import CountedSizes, infer_sizes
from secateur.pipeline import kept_steps
from tests.passes.nets import Net

CHANNELS = 12


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Takes as long as its node has outputs."""

    node: str
    output: str

    @property
    def values(self):
        return [self.output]

    def cost(self, sizes, weights=None):
        (_, now) = sizes[self.output]
        return 100 * now[1]


def residual(seed, *, weak=(True, False, False), batch="n"):
    """Convolutions with residual blocks, of which weak ones add little but a constant."""
    net = Net(seed)

    def conv(x, gain=1.0, shift=0.0):
        weights = net.random.standard_normal((CHANNELS, CHANNELS, 3, 3)) * gain / 10
        bias = net.random.standard_normal(CHANNELS) * shift
        return net.add("Conv", x, net.constant(weights), net.constant(bias), pads=[1] * 4)

    stream = net.add("Relu", conv("x"))
    for is_weak in weak:
        inner = net.add("Relu", conv(stream))
        gain, shift = (1e-2, 2.0) if is_weak else (0.7, 0.1)
        stream = net.add("Relu", net.add("Add", conv(inner, gain, shift), stream))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", stream))
    head = net.constant(net.random.standard_normal((CHANNELS, 10)))
    return net.model([batch, CHANNELS, 6, 6], net.add("Gemm", pooled, head))


def samples(seed, count=64):
    random = np.random.default_rng(seed)
    return {"x": random.standard_normal((count, CHANNELS, 6, 6)).astype(np.float32)}


def outputs(model):
    """For other samples, one by one."""
    session, images = Session(model), samples(2, 24)["x"]
    return np.concatenate([session.run({"x": images[k : k + 1]})["y"] for k in range(len(images))])


def branches_of(model, spared=()):
    shape_of = CountedSizes.usual(model)[1]
    return find_branches(model, shape_of, cost_of_nodes(model, "macs", shape_of), spared)


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        ("macs", "n"),
        ("latency", 1),
        pytest.param("macs", 1, marks=pytest.mark.slow),
        pytest.param("params", "n", marks=pytest.mark.slow),
    ],
)
def test_a_branch_that_adds_a_constant_goes(kind, batch):
    original = residual(0, batch=batch)
    model = original.clone()
    convolutions = [n for n in original.graph.nodes if n.op_type == "Conv"]
    kernels = [Kernel(node.label, node.outputs[0].name) for node in convolutions]
    context = Context(samples(1), kernels=kernels)
    (record,) = PassManager([PruneChannels(**{kind: 0.72})]).run(model, context)
    statistics = record.result.statistics
    (branch,) = statistics["branches"]
    weak = next(n for n in original.graph.nodes if n.op_type == "Add")
    assert branch["add"] == weak.label
    assert {n.label for n in model.graph.nodes}.isdisjoint(branch["nodes"])
    assert sum(n.op_type == "Conv" for n in model.graph.nodes) == 5
    first = statistics["candidates"][0]
    assert first["name"].endswith("without 1 branch")
    assert first["divergence"] == min(c["divergence"] for c in statistics["candidates"])
    if kind == "macs":
        assert statistics["macs_after"] <= 0.72 * statistics["macs_before"]
    if kind == "latency":
        assert statistics["latency"]["after"] <= 0.72 * statistics["latency"]["before"]
        assert statistics["latency"]["before"] == pytest.approx(7 * CHANNELS / 10)
    onnx.checker.check_model(to_proto(model), full_check=True)
    pruned = record.result.artifacts["pruned"]
    cut, wanted = outputs(model), outputs(mask(original, pruned.record))
    np.testing.assert_allclose(cut, wanted, rtol=1e-4, atol=1e-4)
    PassManager([Recover(refine=False)]).run(model, context.after(record.result))
    wanted = outputs(original)
    assert np.square(outputs(model) - wanted).mean() < 0.05 * wanted.var()


def test_a_run_goes_on_from_a_model_without_a_branch():
    dropped = {"v": np.arange(3, dtype=np.float32)[None, :, None]}
    record = PruningRecord({}, {}, {}, frozenset(), dropped)
    arrays = kept_steps._Arrays()
    content = kept_steps._pruned_to_json(Pruned(residual(0), record), arrays)
    content = json.loads(json.dumps(content))
    found = kept_steps._pruned_of_json(content, residual(0), arrays).record.dropped
    assert found.keys() == dropped.keys()
    np.testing.assert_array_equal(found["v"], dropped["v"])


def test_branches_that_matter_stay():
    model = residual(0, weak=(False, False))
    (record,) = PassManager([PruneChannels(macs=0.9)]).run(model, Context(samples(1)))
    names = [c["name"] for c in record.result.statistics["candidates"]]
    assert any("without" in name for name in names)
    assert "without" not in names[0]
    assert record.result.statistics["branches"] == []


def test_several_go_and_depth_bounds_how_many():
    found = {}
    for depth in (None, 1, 0):
        model = residual(0, weak=(True, True, False))
        pass_ = PruneChannels(macs=0.5, depth=depth)
        (record,) = PassManager([pass_]).run(model, Context(samples(1)))
        found[depth] = len(record.result.statistics["branches"])
    assert found == {None: 2, 1: 1, 0: 0}


@pytest.mark.parametrize("option", ["ignore", "limits", "scope", "recovery"])
def test_options_spare_branches(option):
    model = residual(0)
    weights = next(n for n in model.graph.nodes if n.op_type == "Add").inputs[0].producer.inputs[1]
    options = {
        "ignore": {"ignore": (weights.name,)},
        "limits": {"limits": (f"{weights.name}=0.3..",)},
        "scope": {"scope": "uniform"},
        "recovery": {"recovery": False},
    }
    pass_ = PruneChannels(macs=0.8, **options[option])
    (record,) = PassManager([pass_]).run(model, Context(samples(1)))
    assert record.result.statistics["branches"] == []
    if option in ("scope", "recovery"):
        assert not any("without" in c["name"] for c in record.result.statistics["candidates"])


def test_a_negative_depth_is_refused():
    with pytest.raises(SecateurError, match="depth takes no negative"):
        PruneChannels(macs=0.5, depth=-1).run(residual(0), Context(samples(1)))


def test_models_too_large_to_try_keep_theirs_unless_asked(monkeypatch):
    monkeypatch.setattr(portfolio, "THOROUGH", 1)
    for depth, expected in ((None, 0), (1, 1)):
        pass_ = PruneChannels(macs=0.72, depth=depth)
        (record,) = PassManager([pass_]).run(residual(0), Context(samples(1)))
        assert len(record.result.statistics["branches"]) == expected


def block(kind):
    """A net with two summands, of which the first is computed by a convolution of its own."""
    net = Net(3)

    def conv(x, groups=1):
        weights = net.random.standard_normal((4, 4 // groups, 3, 3)) / 6
        return net.add("Conv", x, net.constant(weights), pads=[1] * 4, group=groups)

    stream = net.add("Relu", "x")
    if kind == "wider than the stream":
        stream = net.add("ReduceMean", stream, net.axes([2, 3]), keepdims=1)
        return net.model(["n", 4, 5, 5], net.add("Add", conv("x"), stream))
    if kind == "from an input of its own":
        return net.model(
            ["n", 4, 5, 5], net.add("Add", conv("x"), net.constant(np.ones((1, 4, 5, 5))))
        )
    if kind == "without products":
        return net.model(["n", 4, 5, 5], net.add("Add", net.add("Sigmoid", stream), stream))
    inner = conv(stream)
    if kind == "read elsewhere":
        total = net.add("Add", inner, stream)
        return net.model(["n", 4, 5, 5], net.add("Mul", total, inner))
    if kind == "with itself":
        return net.model(["n", 4, 5, 5], net.add("Add", inner, inner))
    if kind == "nested":
        inner = net.add("Add", conv(inner, 2), inner)
    return net.model(["n", 4, 5, 5], net.add("Add", inner, stream))


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("plain", [1]),
        ("nested", [1, 3]),
        ("wider than the stream", []),
        ("from an input of its own", []),
        ("without products", []),
        ("read elsewhere", []),
        ("with itself", []),
    ],
)
def test_which_branches_there_are(kind, sizes):
    model = block(kind)
    branches = branches_of(model)
    assert [len(branch.nodes) for branch in branches] == sizes
    runs = [{"x": np.random.default_rng(0).standard_normal((8, 4, 5, 5)).astype(np.float32)}]
    ordered = in_order(branches, branch_means(model, branches, runs))
    assert len(ordered) == min(len(sizes), 1)  # nested ones never go together


def test_the_mean_is_that_along_the_axis_that_says_most():
    model = block("plain")
    runs = [
        {"x": np.random.default_rng(k).standard_normal((8, 4, 5, 5)).astype(np.float32)}
        for k in range(3)
    ]
    branches = branches_of(model)
    (mean,) = branch_means(model, branches, runs).values()
    name = branches[0].value
    probed = model.clone()
    value = next(v for n in probed.graph.nodes for v in n.outputs if v.name == name)
    probed.graph.add_output(value)
    session = Session(probed)
    results = [session.run(run) for run in runs]
    branch = np.concatenate([found[name] for found in results])
    total = np.concatenate([found["y"] for found in results])
    means = branch.mean(axis=(0, 2, 3), keepdims=True)
    np.testing.assert_allclose(mean.constant, means, rtol=1e-4, atol=1e-5)
    spread = np.square(total - total.mean(axis=(0, 2, 3), keepdims=True)).mean()
    assert mean.lost == pytest.approx(np.square(branch - means).mean() / spread, rel=1e-3)


def test_a_mean_holds_for_every_size_that_a_model_leaves_open():
    """Were there one for each of an open number of steps, it would be of one length only."""
    net = Net(5)
    stream = net.add("Relu", "x")
    inner = net.add("MatMul", stream, net.constant(np.ones((4, 4))))
    model = net.model(["n", "steps", 4], net.add("Add", inner, stream))
    steps = np.arange(7, dtype=np.float32)[None, :, None]  # what tells steps apart says most
    runs = [{"x": np.broadcast_to(100 * steps, (8, 7, 4)).astype(np.float32)}]
    (branch,) = branches_of(model)
    (mean,) = branch_means(model, [branch], runs).values()
    assert mean.constant.shape[:2] == (1, 1)
    drop_branches(model, {branch.value: mean.constant})
    for length in (1, 7, 12):
        x = np.ones((2, length, 4), np.float32)
        assert Session(model).run({"x": x})["y"].shape == x.shape


@pytest.mark.parametrize("name", ["regnet_y_400mf", "mobilenet_v2", "vit_tiny", "bert"])
def test_what_is_left_is_the_original_with_constants(name):
    """Some branches of an architecture by themselves, and all that may go together."""
    original = zoo.load_tiny(name, "folded")
    PassManager(simplify_pipeline()).run(original)
    infer_sizes(original)
    runs = random_feeds(original, 0)
    branches = branches_of(original)
    means = branch_means(original, branches, runs)
    ordered = in_order(branches, means)
    assert ordered
    for chosen in [*([branch] for branch in ordered[:2]), ordered]:
        dropped = {branch.value: means[branch.value].constant for branch in chosen}
        model = original.clone()
        drop_branches(model, dropped)
        onnx.checker.check_model(to_proto(model), full_check=True)
        assert {n.label for n in model.graph.nodes}.isdisjoint(chosen[0].nodes)
        masked = Session(mask(original, PruningRecord({}, {}, {}, frozenset(), dropped)))
        for run in runs[:2]:
            found = Session(model).run(run)
            for output, array in masked.run(run).items():
                np.testing.assert_allclose(found[output], array, rtol=1e-4, atol=1e-4)
