"""What kernels are said to cost at other widths, against the model that has those widths."""

import math

import pytest

from secateur.backends.tvm import latency
from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.latency import LatencyModel
from secateur.backends.tvm.targets import parse_target
from secateur.backends.tvm.tuning.measure import NodeTimes, time_nodes
from secateur.ir.onnx_io import from_proto
from secateur.models import zoo
from secateur.passes.base import Context
from secateur.passes.prune.allocation import Goal, Terms, allocate
from secateur.passes.prune.budget import CostModel
from secateur.passes.prune.importance import group_scores
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.simplify import simplify_pipeline
from secateur.passes.sizes import infer_sizes

from .graphs import Net


def simplified(name):
    model = zoo.load_tiny(name, "folded")
    for step in simplify_pipeline():
        step.run(model)
    infer_sizes(model)
    return model


def predicted_and_real(model, target, keep, prepare=lambda model: model):
    """Costs of the kernels of a model that is cut, and of one that was, as shares of the whole."""
    kernels = LatencyModel(prepare(model), target).kernels()
    plan = PruningPlan(model, normalized=True)
    costs = CostModel(plan.analysis, "latency", kernels=kernels)
    goal, terms = Goal("channels", keep), Terms(scope="uniform")
    cut = allocate(plan.analysis, plan.groups, group_scores(plan.free), goal, terms).selection
    predicted = costs.cost({dim: len(kept) for dim, kept in cut.kept.items()})
    copy = plan.copy()
    copy.apply(copy.selection(plan.cut_of(cut)))
    infer_sizes(copy.model)
    real = sum(k.cost({}) for k in LatencyModel(prepare(copy.model), target).kernels())
    return predicted / costs.full, real / costs.full


@pytest.mark.parametrize("keep", [0.8, 0.4])
@pytest.mark.parametrize(
    "name",
    ["resnet8", "mobilenet_v2", "resnext50", "shufflenet_v1", "densenet121", "vit_tiny", "bert"],
)
def test_costs_at_other_widths_are_those_of_the_cut_model(name, keep):
    """Grouped, depthwise, concatenated, shuffled channels; heads, features, streams."""
    predicted, real = predicted_and_real(simplified(name), parse_target("x86-64-v3"), keep)
    assert predicted == pytest.approx(real, rel=0.01)
    assert predicted < 1.1


@pytest.mark.parametrize("target", ["x86-64-v2", "znver4", "aarch64", "armv7-a", "riscv64"])
def test_every_target_has_costs(target):
    predicted, real = predicted_and_real(simplified("mobilenet_v2"), parse_target(target), 0.5)
    assert predicted == pytest.approx(real, rel=0.01)
    assert predicted < 0.8


def test_quantized_kernels_are_costed_by_the_sizes_of_the_float_model():
    model = simplified("resnet8")
    samples = zoo.random_inputs(model, seed=0)

    def quantized(model):
        copy = model.clone()
        QuantizeStatic().run(copy, Context(samples))
        infer_sizes(copy)
        return copy

    predicted, real = predicted_and_real(model, parse_target("znver4"), 0.5, quantized)
    assert predicted == pytest.approx(real, rel=0.05)


def test_measurements_correct_costs():
    """At measured widths costs are what was measured; between them, in between."""
    target = parse_target("x86-64-v3")
    model = LatencyModel(simplified("lenet5"), target)
    estimates = model.estimates()
    nodes = {label: e.cycles * (1.0 + i) for i, (label, e) in enumerate(estimates.items())}
    model.correct(estimates, NodeTimes(sum(nodes.values()) + 5, nodes))
    assert sum(k.cost({}) for k in model.kernels()) == pytest.approx(
        1000 * (sum(nodes.values()) + 5), rel=1e-4
    )


def test_nodes_are_timed(tmp_path):
    model = simplified("lenet5")
    target = parse_target("native")
    compile_model(model, target, tmp_path / "a.so", cache=Cache.of_user())
    feeds = zoo.random_inputs(model, seed=0)
    [times] = time_nodes([tmp_path / "a.so"], feeds, seconds=0.1)
    labels = {n for n, e in LatencyModel(model, target).estimates().items() if e.cycles}
    assert labels <= set(times.nodes)
    assert 0 < sum(times.nodes.values()) < 3 * times.whole


@pytest.mark.parametrize(
    ("width", "form"),
    [(1, "depthwise"), (4, "depthwise"), (8, "depthwise"), (16, "direct"), (32, "winograd")],
)
def test_narrow_groups_are_priced_as_the_kernel_that_they_take(
    monkeypatch: pytest.MonkeyPatch, width: int, form: str
) -> None:
    monkeypatch.setattr(latency, "COPIES", math.inf)
    net = Net(None, 0)
    weights = net.weight(64, width, 3, 3)
    y = net.node("Conv", "x", weights, pads=[1, 1, 1, 1], group=64 // width)
    model = from_proto(net.model({"x": (1, 64, 14, 14)}, [y]))
    infer_sizes(model)
    estimates = LatencyModel(model, parse_target("x86-64-v4")).estimates()
    assert form in {e.form for e in estimates.values()}
