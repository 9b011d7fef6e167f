"""Budgets of latency by what devices took, from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.latency import LatencyModel
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.models import zoo
from secateur.passes.base import Context
from secateur.passes.sizes import infer_sizes
from secateur.pipeline.device_times import read_device_times, split_latency
from secateur.pipeline.latency import Machine
from secateur.pipeline.pruning import prune_model

TARGET = "aarch64-cortex-a72"


def network() -> Model:
    model = zoo.load_tiny("super_resolution", "folded")
    infer_sizes(model)
    return model


def measured(times: dict[str, float], target: str = TARGET, factor: float = 1.0) -> dict[str, Any]:
    """What a bench program would print."""
    calls = [{"operation": n, "microseconds": factor * t} for n, t in times.items()]
    whole = factor * (sum(times.values()) + 10)
    return {
        "schema": 1,
        "target": target,
        "digest": "0",
        "latency_us": {"min": whole, "p50": whole, "p99": whole},
        "cycles": None,
        "agrees": True,
        "calls": calls,
    }


def estimates(model: Model) -> dict[str, float]:
    costs = LatencyModel(model, parse_target(TARGET), Cache.none())
    return {n: e.cycles / 1000 for n, e in costs.estimates().items() if e.cycles}


def pruned(file: Path, budget: str = "0.6") -> tuple[Model, dict[str, Any]]:
    options = {"latency": f"{budget}@{file}", "align": 1, "scope": "global"}
    machine = Machine(parse_target(TARGET), Cache.none())
    model, result = prune_model(network(), options, Context(), machine=machine)
    return model, result.runs[-1].statistics["latency"]


def weights(model: Model, node: str) -> int:
    weight = next(n for n in model.graph.nodes if n.label == node).input(1)
    assert weight is not None
    assert weight.const is not None
    return weight.const.size


def test_what_takes_long_on_the_device_loses_most(tmp_path: Path) -> None:
    """The same budget, with times of which one node or another has nearly all."""
    times = estimates(network())
    convolutions = [n.label for n in network().graph.nodes if n.op_type == "Conv"]
    first, second = convolutions[0], convolutions[1]
    kept = {}
    for slow in (first, second):
        spent = {n: 1000 * t if n == slow else t for n, t in times.items()}
        (tmp_path / "t.json").write_text(json.dumps(measured(spent)))
        model, found = pruned(tmp_path / "t.json")
        assert found["after"] <= 0.6 * found["before"]
        assert found["before"] == pytest.approx(sum(spent.values()) + 10, rel=0.05)
        kept[slow] = weights(model, slow) / weights(network(), slow)
    assert max(kept.values()) <= 0.7


def test_a_time_is_one_on_the_device(tmp_path: Path) -> None:
    times = estimates(network())
    (tmp_path / "t.json").write_text(json.dumps(measured(times)))
    whole = sum(times.values()) + 10
    _, by_time = pruned(tmp_path / "t.json", f"{0.7 * whole:.3f}us")
    _, by_share = pruned(tmp_path / "t.json", "0.7")
    assert by_time["after"] == pytest.approx(by_share["after"], rel=0.01)


def test_several_devices_count_alike(tmp_path: Path) -> None:
    """Shares of each one's own run; the time is the slowest's. Times for other targets are left."""
    one, other = {"a": 10.0, "b": 80.0}, {"a": 80.0, "b": 10.0}
    runs = [
        {"device": "ssh://fast", "program": "p", "result": measured(one), "error": ""},
        {"device": "ssh://slow", "program": "p", "result": measured(other, factor=5), "error": ""},
        {"device": "ssh://off", "program": "p", "result": None, "error": "no answer"},
        {"device": "ssh://x", "program": "p", "result": measured(one, "x86-64-v3"), "error": ""},
    ]
    (tmp_path / "t.json").write_text(json.dumps(runs))
    found = read_device_times(tmp_path / "t.json", TARGET)
    assert found.whole == 500
    assert found.nodes == pytest.approx({"a": 225, "b": 225})
    assert found.devices == ("ssh://fast", "ssh://slow")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "measured for nothing, not for"),
        ("{}", "no measurements of a bench program: another schema"),
        ("[3]", "a run is no object"),
        (json.dumps(measured({"a": 1.0}, "x86-64-v3")), "measured for x86-64-v3, not for"),
        (json.dumps({**measured({}), "calls": 3}), "fields are missing"),
        (json.dumps({**measured({}), "calls": [{"operation": "a"}]}), "no time or no node"),
        (json.dumps({**measured({"a": 1.0}), "target": 3}), "fields are missing"),
        (json.dumps(measured({"a": -1.0})), "no time or no node"),
        (json.dumps(measured({"a": float("nan")})), "no time or no node"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(SecateurError, match=reason) as caught:
        read_device_times(tmp_path / "t.json", TARGET)
    assert str(caught.value).isprintable()
    with pytest.raises(SecateurError, match="No such file"):
        read_device_times(tmp_path / "absent.json", TARGET)


def test_times_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(measured({"other": 5.0})))
    with pytest.raises(SecateurError, match="of another model: nodes of this one take 0%"):
        pruned(tmp_path / "t.json")


def test_budgets_with_and_without_a_file() -> None:
    assert split_latency("2ms@a@b.json") == ("2ms", Path("a@b.json"))
    assert split_latency("0.5") == ("0.5", None)
    assert split_latency(0.5) == (0.5, None)
