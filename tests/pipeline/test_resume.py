"""An interrupted run goes on from the steps it has kept, to the same result."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import secateur
from secateur.ir.errors import SecateurError
from secateur.pipeline import optimize as pipeline
from secateur.pipeline.kept_steps import FOLDER, forget

RUN: dict[str, Any] = {
    "target": "x86-64-v3",
    "macs": 0.6,
    "quantize": "int8",
    "calibration": "c.npz",
    "evaluation": "e.npz",
}
STAGES = ["01-simplify", "02-prune", "03-recover", "04-quantize"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A residual network with normalization, and samples of two classes."""
    rng = np.random.default_rng(5)

    def draw(*sizes: int) -> Any:
        return rng.standard_normal(sizes, np.float32) / np.float32(np.prod(sizes[1:]) ** 0.5)

    arrays = {"w0": draw(16, 3, 3, 3), "w1": draw(24, 16, 3, 3), "w2": draw(16, 24, 1, 1)}
    arrays |= {"s": np.ones(16, np.float32), "h": rng.standard_normal(16, np.float32) / 9}
    arrays |= {"m": rng.standard_normal(16, np.float32) / 9, "d": np.ones(16, np.float32)}
    arrays |= {"v": draw(2, 16)}
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w0"], ["c0"], pads=[1] * 4),
        make("BatchNormalization", ["c0", "s", "h", "m", "d"], ["n0"]),
        make("Relu", ["n0"], ["r0"]),
        make("Conv", ["r0", "w1"], ["c1"], pads=[1] * 4),
        make("Relu", ["c1"], ["r1"]),
        make("Conv", ["r1", "w2"], ["c2"]),
        make("Add", ["c2", "r0"], ["a"]),
        make("GlobalAveragePool", ["a"], ["p"]),
        make("Flatten", ["p"], ["f"]),
        make("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    x = rng.standard_normal((24, 3, 8, 8), np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    np.savez(tmp_path / "e.npz", x=x[:16] + 1, labels=rng.integers(0, 2, 16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


VARYING = {"seconds", "latency", "operators", "command", "tuning", "reused"}
"""Keys of a report that time and caches decide."""


def facts(folder: Path) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in VARYING}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return float(f"{value:.9g}") if isinstance(value, float) else value  # sums in any order

    return plain(json.loads((folder / "report.json").read_text()))


def assert_same(one: Path, other: Path) -> None:
    for name in ("model.onnx", "model.so"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert facts(one) == facts(other)
    assert not (other / FOLDER).exists()


class _StopError(Exception):
    """Stands for a kill."""


def stopped_after(count: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Run until so many steps are kept, and end there."""
    with monkeypatch.context() as patch:
        real = pipeline.KeptSteps.run

        def run(self: Any, *arguments: Any) -> Any:
            if self.count == count:
                raise _StopError
            return real(self, *arguments)

        patch.setattr(pipeline.KeptSteps, "run", run)
        with pytest.raises(_StopError):
            secateur.optimize("m.onnx", "out", resume=True, **{**RUN, **options})


@pytest.mark.slow
def test_a_run_goes_on_from_every_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secateur.optimize("m.onnx", "whole", **RUN)
    for count in (1, 3):
        stopped_after(count, monkeypatch)
        assert sorted(p.name for p in (place / "out" / FOLDER).iterdir()) == [
            *STAGES[:count],
            "run.json",
        ]
    stopped_after(2, monkeypatch)  # goes on from three, and ends at its third
    ran = []
    real = pipeline.run_step

    def watched(step: Any, *arguments: Any) -> Any:
        ran.append(step.name)
        return real(step, *arguments)

    monkeypatch.setattr(pipeline, "run_step", watched)
    secateur.optimize("m.onnx", "out", resume=True, **RUN)
    assert "recover" not in ran
    assert "quantize" in ran
    assert_same(place / "whole", place / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"macs": 0.5}, r"the options differ \(macs\)"),
        ({"seed": 3}, "seed"),
        ({"calibration": "e.npz"}, "the calibration data differ"),
        ({"evaluation": None}, "the evaluation data differ"),
    ],
)
def test_other_options_are_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    stopped_after(1, monkeypatch)
    with pytest.raises(SecateurError, match=named):
        secateur.optimize("m.onnx", "out", resume=True, **{**RUN, **change})
    assert (place / "out" / FOLDER / "run.json").exists()


def test_other_files_are_noticed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(1, monkeypatch)
    model = onnx.load("m.onnx")
    tensor = numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.01)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(tensor, "w0"))
    kept = (place / "m.onnx").read_bytes()
    onnx.save(model, "m.onnx")
    with pytest.raises(SecateurError, match="the model differ"):
        secateur.optimize("m.onnx", "out", resume=True, **RUN)
    (place / "m.onnx").write_bytes(kept)
    data = dict(np.load("c.npz"))
    data["x"][3, 0, 0, 0] += 1
    np.savez("c.npz", **data)
    with pytest.raises(SecateurError, match="the calibration data differ"):
        secateur.optimize("m.onnx", "out", resume=True, **RUN)


@pytest.mark.slow
def test_a_run_without_resume_starts_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(1, monkeypatch)
    secateur.optimize("m.onnx", "out", target="x86-64-v3")
    assert not (place / "out" / FOLDER).exists()


@pytest.mark.parametrize("name", ["model.onnx", "state.json", "arrays.npz"])
def test_damage_is_noticed(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stopped_after(1, monkeypatch)
    path = place / "out" / FOLDER / STAGES[0] / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SecateurError, match="damaged"):
        secateur.optimize("m.onnx", "out", resume=True, **RUN)


def test_a_run_that_is_killed_while_it_removes_steps_is_run_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are never seen half removed."""

    def killed(path: Path, **options: Any) -> None:
        if path.exists():
            next(path.rglob("*.onnx")).unlink()
            raise KeyboardInterrupt

    stopped_after(2, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(place / "out")
    secateur.optimize("m.onnx", "out", resume=True, **RUN)
    assert not [path for path in (place / "out").iterdir() if path.name.startswith(".")]


def test_a_run_that_fails_at_once_leaves_nothing(place: Path) -> None:
    with pytest.raises(SecateurError):
        secateur.optimize("gone.onnx", "out", resume=True, target="x86-64-v3")
    assert not (place / "out").exists()


COMMAND = "optimize m.onnx -o out --resume --target x86-64-v3 --macs 0.6 --quantize int8"


@pytest.mark.slow
def test_runs_that_are_killed_at_random_moments_end_like_others(place: Path) -> None:
    """The last one is let run; each goes on from what those before it kept."""
    words = [*COMMAND.split(), "--calibration", "c.npz", "--evaluation", "e.npz"]
    command = [sys.executable, "-m", "secateur", *words]
    start = time.monotonic()
    whole = ["whole" if word == "out" else word for word in command if word != "--resume"]
    subprocess.run(whole, check=True, capture_output=True)
    seconds = time.monotonic() - start
    rng, most = random.Random(7), 0
    for _ in range(5):
        process = subprocess.Popen(command, stdout=-1, stderr=-1)
        time.sleep(rng.uniform(0.3, 0.95) * seconds)
        process.kill()
        process.communicate()
        kept = place / "out" / FOLDER
        if kept.exists():
            found = len([p for p in kept.iterdir() if p.name in STAGES])
            assert found >= most
            most = found
        else:  # it was faster than the first, and has ended
            most = 0
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert_same(place / "whole", place / "out")
