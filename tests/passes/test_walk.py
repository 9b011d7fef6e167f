"""Values of a model part by part: the same wherever they are kept, and in files beyond a bound."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.passes.linear.walk import Recording, Walk

NAMES = ["a", "b", "c", "y"]


def chain() -> Model:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 50] x) => (float[n, 50] y) {
        a = Relu(x)
        b = Add(a, x)
        c = Sigmoid(b)
        y = Mul(c, a)
    }"""
    model = from_proto(onnx.parser.parse_model(text))
    infer_shapes(model)
    return model


RUNS = [
    {"x": np.random.default_rng(number).standard_normal((4, 50)).astype(np.float32)}
    for number in range(5)
]


def wanted(run: int) -> dict[str, Any]:
    x = RUNS[run]["x"]
    a = np.maximum(x, 0)
    c = 1 / (1 + np.exp(-(a + x)))
    return {"x": x, "a": a, "b": a + x, "c": c, "y": c * a}


@pytest.mark.parametrize("memory", [0, 1000, 2**29])
def test_a_walk_gives_each_runs_values(tmp_path: Path, memory: int) -> None:
    walk = Walk(chain(), RUNS, tmp_path, memory=memory)
    walk.keep("a", 3)
    for position, name in enumerate(NAMES, 1):
        walk.advance(position)
        for run in range(walk.runs):
            np.testing.assert_allclose(walk.value(name, run), wanted(run)[name], rtol=1e-5)
        files = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert (files > 0) == (memory < 5 * RUNS[0]["x"].nbytes)
    for name in ("x", "a", "b", "c"):
        with pytest.raises(KeyError):
            walk.value(name, 0)
    assert len([*tmp_path.iterdir()]) <= walk.runs  # of the output alone


@pytest.mark.parametrize("memory", [0, 2**29])
def test_what_is_recorded_is_there_at_any_time(tmp_path: Path, memory: int) -> None:
    recording = Recording(chain(), RUNS, tmp_path, memory=memory)
    assert recording.record(["a"])
    assert recording.record(["c", "a"])
    for run in range(recording.runs):
        for name in ("a", "c", "x"):
            np.testing.assert_allclose(recording.value(name, run), wanted(run)[name], rtol=1e-5)
    assert len([*tmp_path.iterdir()]) == (0 if memory else 3 * len(RUNS))


def test_too_much_is_not_recorded(tmp_path: Path) -> None:
    largest = 5 * RUNS[0]["x"].nbytes
    recording = Recording(chain(), RUNS, tmp_path, memory=0, largest=largest)
    assert recording.record(["a"])
    assert not recording.record(["c"])
    assert not recording.fits
    assert not [*tmp_path.iterdir()]


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_kept_value_does_not_hold_what_was_computed_on_the_way(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 1] x, int64[2] size) => (float[n, 1] y) {
        wide = Expand(x, size)
        wider = Exp(wide)
        small = ReduceMax <axes = [1]> (wider)
        y = Relu(small)
    }"""
    model = from_proto(onnx.parser.parse_model(text))
    infer_shapes(model)
    run = {"x": np.ones((64, 1), np.float32), "size": np.array([64, 2**18], np.int64)}
    walks, held = [], []
    for number in range(6):  # the first one's memory is what a session takes and returns later
        walk = Walk(model, [run], tmp_path)
        walk.advance(3)
        walks.append(walk)
        assert walk.value("small", 0).shape == (64, 1), number
        held.append(resident())
    grown = held[-1] - held[0]
    assert grown < 2**28, f"five more walks with 128 MiB of values each: {held}"
