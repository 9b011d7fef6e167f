"""Budgets of every kind: what they count, limits of single groups, alignment."""

import dataclasses
import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.cost import count
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.passes.base import Context
from secateur.passes.prune import PruneChannels
from secateur.passes.prune.groups import Limit


def mlp(*widths: int) -> Model:
    """x -> MatMul w0 -> Relu -> MatMul w1 ... -> y"""
    rng = np.random.default_rng(0)
    nodes, weights, current = [], [], "x"
    for i in range(len(widths) - 1):
        array = rng.standard_normal(widths[i : i + 2]).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [current, f"w{i}"], [f"m{i}"], name=f"layer{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"relu{i}"))
        current = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, widths[0]])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, [1, widths[-1]])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return from_proto(proto)


def widths(model):
    return [model.graph.initializers[f"w{i}"].const.shape[1] for i in range(3)]


@dataclasses.dataclass(frozen=True)
class Stairs:
    """A kernel whose time grows with whole vectors of 8 outputs alone."""

    node: str
    output: str
    price: int = 100

    @property
    def values(self):
        return [self.output, "of no model"]

    def cost(self, sizes, weights=None):
        (_, now) = sizes[self.output]
        assert weights is not None
        assert weights[1] == now[-1]
        return self.price * math.ceil(now[-1] / 8)


def stairs(*prices: int) -> list[Stairs]:
    return [Stairs(f"layer{i}", f"m{i}", price) for i, price in enumerate(prices)]


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_bytes_are_met(share):
    model = mlp(4, 32, 32, 3)
    before = count(model).weight_bytes
    PruneChannels(bytes=share).run(model)
    assert 0.8 * share * before < count(model).weight_bytes <= share * before


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_latency_is_what_kernels_say(share, scope, align):
    model, kernels = mlp(4, 64, 64, 3), stairs(100, 100, 0)
    pass_ = PruneChannels(latency=share, scope=scope, align=align)
    statistics = pass_.run(model, Context(kernels=kernels)).statistics
    first, second, _ = widths(model)
    cost = 100 * (math.ceil(first / 8) + math.ceil(second / 8))
    assert statistics["latency"] == {"before": 1.6, "after": cost / 1000}
    assert 0.7 * share * 1600 <= cost <= share * 1600


def test_latency_gives_back_what_costs_nothing():
    """A vector that is paid for anyway is used whole."""
    model = mlp(4, 64, 64, 3)
    PruneChannels(latency=0.5).run(model, Context(kernels=stairs(100, 100, 0)))
    assert all(width % 8 == 0 for width in widths(model)[:2])


def test_dear_layers_lose_more_by_latency():
    kept = []
    for prices in ((300, 100, 0), (100, 300, 0)):
        model = mlp(64, 64, 64, 64)
        PruneChannels(latency=0.6).run(model, Context(kernels=stairs(*prices)))
        kept.append(widths(model)[:2])
    (dear, cheap), (first, second) = kept
    assert dear < first
    assert second < cheap


def test_latency_without_kernels_is_refused():
    with pytest.raises(SecateurError, match="needs a target"):
        PruneChannels(latency=0.5).run(mlp(4, 8, 8, 3))


def test_latency_out_of_reach_says_what_can_be_reached():
    kernels = stairs(100, 100, 800)
    with pytest.raises(SecateurError, match=r"50\.000% of the latency .* leaves 83\.333%"):
        PruneChannels(latency=0.5).run(mlp(4, 16, 16, 3), Context(kernels=kernels))


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("pattern", ["w0", "layer0", "w[0]"])
def test_limits_bound_what_groups_keep(pattern, scope):
    for low, high in ((0.75, 1.0), (0.0, 0.25), (0.5, 0.5), (1.0, 1.0)):
        model = mlp(4, 32, 32, 3)
        limit = f"{pattern}={low}..{high}"
        PruneChannels(macs=0.45, scope=scope, limits=(limit,)).run(model)
        assert low * 32 <= widths(model)[0] <= high * 32
        assert count(model).macs <= 0.45 * (4 * 32 + 32 * 32 + 32 * 3)


def test_limits_are_kept_under_alignment():
    model = mlp(4, 32, 32, 3)
    PruneChannels(macs=0.4, align=8, limits=("w0=0.4..0.5",)).run(model)
    assert widths(model)[0] == 16


def test_limits_that_make_a_goal_unreachable_are_named():
    with pytest.raises(SecateurError, match="go within the limits leaves"):
        PruneChannels(macs=0.2, limits=("w*=0.9..",)).run(mlp(4, 32, 32, 3))


def test_a_limit_has_to_match_something():
    with pytest.raises(SecateurError, match="matches the limit 'stem'"):
        PruneChannels(macs=0.5, limits=("stem=0.5..",)).run(mlp(4, 32, 32, 3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "w0",
        "w0=",
        "w0=..",
        "=0.5..",
        "w0=0.5",
        "w0=1.5..",
        "w0=0.6..0.5",
        "w0=..0",
        "w0=a..b",
        "w0=nan..",
        "w0=-0.1..",
        "w0=0.5..inf",
    ],
)
def test_what_is_no_limit(text):
    with pytest.raises(SecateurError, match="not of the form"):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("w=0.5..", Limit("w", 0.5, 1.0)),
        ("a=b=..0.5", Limit("a=b", 0.0, 0.5)),
        ("w=0.25..0.5", Limit("w", 0.25, 0.5)),
    ],
)
def test_limits(text, limit):
    assert Limit.parse(text) == limit


def test_widths_of_a_goal_in_macs_are_candidates_for_latency_too():
    samples = {"x": np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)}
    context = Context(samples, kernels=stairs(200, 100, 0))
    statistics = PruneChannels(latency=0.7).run(mlp(16, 96, 64, 16), context).statistics
    names = {candidate["name"] for candidate in statistics["candidates"]}
    assert any(name.endswith("by MACs") for name in names)
    assert len(names) > 2
