"""Accuracy, latency and distances, on runners whose answers are known."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from secateur.checking.evaluation import evaluate
from secateur.checking.runners import measure_latency
from secateur.data.datasets import Dataset
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, save
from secateur.ir.reference import Session
from secateur.passes.samples import Samples


def identity(*shape: Any) -> Model:
    """Scores are the inputs themselves."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return from_proto(model)


class Counting:
    """Passes on to a session and remembers the batch sizes."""

    def __init__(self, model: Model) -> None:
        self.session = Session(model)
        self.batches: list[int] = []

    def run(self, feeds: Any) -> dict[str, Any]:
        self.batches.append(len(feeds["x"]))
        return self.session.run(feeds)


SCORES = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
LABELS = SCORES.argmax(axis=1)


@pytest.mark.parametrize(
    ("declared", "batch", "batches"),
    [(1, 1, [1] * 10), (4, 1, [4, 4, 4]), ("N", 1, [1] * 10), ("N", 8, [8, 2]), (16, 1, [16])],
)
def test_every_sample_counts_once(declared: Any, batch: int, batches: list[int]) -> None:
    model = identity(declared, 4)
    runner = Counting(model)
    wrong = LABELS.copy()
    wrong[[0, 9]] = (wrong[[0, 9]] + 1) % 4
    data = Dataset(Samples(model, {"x": SCORES}), wrong)
    found = evaluate({"it": runner}, data, batch=batch)
    assert (found.metrics["it"]["top1"], found.samples) == (0.8, 10)
    assert runner.batches == batches


def test_trailing_axes_of_one_are_classes_too() -> None:
    model = identity(1, 4, 1, 1)
    samples = Samples(model, {"x": SCORES[:, :, None, None]})
    found = evaluate({"it": Session(model)}, Dataset(samples, LABELS))
    assert found.metrics["it"]["top1"] == 1.0


@pytest.mark.parametrize(
    ("shape", "labels", "output", "message"),
    [
        ((10, 4), LABELS + 2, None, "labels reach from 2 to 5, the model scores 4 classes"),
        ((10, 4), LABELS - 5, None, "labels reach from"),
        ((10, 4), LABELS, "z", "no output 'z'"),
        ((10,), LABELS, None, r"of shape \[1\], does not score classes"),
    ],
)
def test_what_is_no_classification(
    shape: tuple[int, ...], labels: Any, output: str | None, message: str
) -> None:
    model = identity("N", *shape[1:])
    samples = Samples(model, {"x": SCORES.reshape(-1)[: math.prod(shape)].reshape(shape)})
    texts = ["top1" if output is None else f"top1{{output={output}}}"]
    with pytest.raises(SecateurError, match=message):
        evaluate({"it": Session(model)}, Dataset(samples, labels), texts=texts)


def test_latency_is_measured_in_turns() -> None:
    order: list[str] = []

    class Sleeping:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def run(self, feeds: Any) -> dict[str, Any]:
            order.append(self.name)
            time.sleep(self.seconds)
            return {}

    runners = {"slow": Sleeping("slow", 0.004), "fast": Sleeping("fast", 0.001)}
    found = measure_latency(runners, {}, repeats=5, warmup=2)
    assert order == ["slow", "fast"] * 7
    for name, least in (("slow", 4.0), ("fast", 1.0)):
        assert least <= found[name].min_ms <= found[name].median_ms <= found[name].max_ms
    with pytest.raises(SecateurError, match="at least one repeat"):
        measure_latency(runners, {}, repeats=0)


def test_benchmarks_time_onnx_runtime_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the settings that make its products of bytes exact."""
    from secateur.checking import comparison
    from tests.ir.test_reference import setting

    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        save(identity(1, 4), path)
    timed: dict[str, Any] = {}
    monkeypatch.setattr(comparison, "latencies", lambda runners, feed: timed.update(runners))
    comparison.benchmark_files(paths)
    assert list(timed) == [str(path) for path in paths]
    assert {setting(s, "session.x64quantprecision") for s in timed.values()} == {None}
