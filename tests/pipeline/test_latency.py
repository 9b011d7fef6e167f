"""Budgets of latency, measured where this machine runs the target's code."""

from __future__ import annotations

import pytest

from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import UnsupportedError
from secateur.ir.text import parse_model
from secateur.models import zoo
from secateur.passes.base import Context
from secateur.passes.prune import PruneChannels
from secateur.passes.sizes import infer_sizes
from secateur.pipeline import latency
from secateur.pipeline.amounts import TIMES, Amount


def test_allocations_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs learn from what was measured: at the end they say the same."""
    monkeypatch.setattr(latency, "PROBES", (0.5,))
    monkeypatch.setattr(latency, "ATTEMPTS", 1)
    monkeypatch.setattr(latency, "SECONDS", 0.2)
    model = zoo.load_tiny("super_resolution", "folded")
    infer_sizes(model)
    feed = zoo.random_inputs(model, seed=0)
    machine = latency.Machine(parse_target("native"), Cache.of_user(), feed=feed)
    pass_ = PruneChannels(latency=1.0, align=8)
    budget = latency.LatencyBudget(model, pass_, machine)
    pruned, result = budget.prune(Context(), Amount.parse(0.6, TIMES))
    found = result.runs[-1].statistics["latency"]
    assert found["budget"] == 0.6
    assert 0 < found["measured_after"] < found["measured_before"]
    assert found["after"] <= 0.6 * found["before"]
    learned = sum(kernel.cost({}) for kernel in budget.costs.kernels())
    assert learned == pytest.approx(1000 * found["measured_before"], rel=0.5)
    assert len(pruned.graph.nodes) == len(model.graph.nodes)


def test_models_that_do_not_compile_whole_are_refused() -> None:
    model = parse_model(
        """model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[1, 4]) -> (%noise: float[1, 4]) {
  %noise = RandomNormalLike (%x)
}
"""
    )
    machine = latency.Machine(parse_target("aarch64"), Cache.none())
    with pytest.raises(UnsupportedError, match=r"compile whole: .*noise"):
        latency.LatencyBudget(model, PruneChannels(latency=0.5), machine)
