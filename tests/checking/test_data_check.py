"""What `data check` says of ranges, on networks whose statistics are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from secateur.checking.data_check import check_data
from secateur.cli import main
from secateur.data.datasets import FileSource, load_dataset
from secateur.data.preprocessing import Preprocessing
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, save
from secateur.ir.reference import Session
from secateur.passes.simplify import Simplify
from tests.data.folder_cases import noise, picture

pytest.importorskip("PIL")


def network(how: Preprocessing, pictures: Path) -> Model:
    """Conv and BatchNormalization that keeps the statistics of pictures prepared like that."""
    random = np.random.default_rng(1)
    weights = random.standard_normal((4, 3, 3, 3)).astype(np.float32)

    def made(mean: Any, variance: Any) -> Model:
        arrays = {
            "w": weights,
            "scale": np.ones(4, np.float32),
            "shift": np.zeros(4, np.float32),
            "mean": np.asarray(mean, np.float32),
            "variance": np.asarray(variance, np.float32),
        }
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["z"], name="conv"),
            helper.make_node(
                "BatchNormalization", ["z", "scale", "shift", "mean", "variance"], ["y"], name="bn"
            ),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 14, 14])],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        opset = [helper.make_opsetid("", 17)]
        return from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))

    plain = made(np.zeros(4), np.ones(4) - 1e-5)
    data = load_dataset(FileSource(pictures, how), plain)
    found = np.concatenate([Session(plain).run(feed)["y"] for feed in data.feeds()])
    return made(found.mean((0, 2, 3)), found.var((0, 2, 3)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for number in range(8):
        base = noise(16, 16, number)
        picture(root / "ab"[number % 2] / f"{number}.png", 90 + base // 4 + 3 * number)
    return root


HOWS = {
    name: Preprocessing.parse([name, "fit=stretch"]) for name in ("imagenet", "yolo", "tf", "raw")
}


@pytest.mark.parametrize("made_for", HOWS)
@pytest.mark.parametrize("given", HOWS)
@pytest.mark.parametrize("merged", [False, True])
def test_ranges_are_seen(pictures: Path, made_for: str, given: str, merged: bool) -> None:
    model = network(HOWS[made_for], pictures)
    if merged:
        Simplify().run(model)
        assert [node.op_type for node in model.graph.nodes] == ["Conv"]
    data = load_dataset(FileSource(pictures, HOWS[given]), model)
    warnings = check_data(model, data).warnings
    if made_for == given:
        assert not warnings
    elif not merged and {made_for, given} != {"imagenet", "tf"}:  # which differ least
        (warning,) = warnings
        assert "deviations from what they were trained on" in warning
        hints = {
            ("raw", "yolo"): "times 255",
            ("yolo", "raw"): "divided by 255",
            ("imagenet", "raw"): "of 0..255 (imagenet)",
            ("imagenet", "yolo"): "of 0..1 (imagenet)",
        }
        if (made_for, given) in hints:
            assert hints[made_for, given] in warning
    elif merged and {made_for, given} == {"raw", "yolo"}:
        (warning,) = warnings
        assert "looks too small" in warning if given == "yolo" else "looks too large" in warning


def test_constant_inputs_are_seen(tmp_path: Path, pictures: Path) -> None:
    model = network(HOWS["raw"], pictures)
    zeros = load_dataset({"x": np.zeros((3, 3, 16, 16), np.float32)}, model)
    assert "input 'x' is 0 everywhere, in all samples" in check_data(model, zeros).warnings
    one = np.random.default_rng(0).random((3, 3, 16, 16)).astype(np.float32)
    one[:, 1] = 0.5
    found = check_data(model, load_dataset({"x": one}, model))
    assert "input 'x' has channels without any variation: 1" in found.warnings
    assert found.inputs[0]["channels"][1] == {"low": 0.5, "high": 0.5, "mean": 0.5, "std": 0.0}


def test_quantization_says_what_data_check_does(tmp_path: Path, pictures: Path) -> None:
    """Of calibration samples in a wrong range, also by what those for evaluation reach; outliers
    end in a warning, and not in complaints of arithmetic."""
    path = tmp_path / "model.onnx"
    model = network(HOWS["raw"], pictures)
    save(model, path)
    right = load_dataset(FileSource(pictures, HOWS["raw"]), model).samples.arrays["x"]
    right = np.stack([np.asarray(right[k]) for k in range(len(right))])
    outlier = right.copy()
    outlier[3, 0, 0, 0] = 1e30
    arrays = {"right": right, "wrong": right / np.float32(255), "outlier": outlier}
    said = {}
    for name, array in arrays.items():
        np.savez(tmp_path / f"{name}.npz", x=array)
        words = ["quantize", str(path), "-o", str(tmp_path / "q.onnx"), "--calibration"]
        words += [str(tmp_path / f"{name}.npz"), "--evaluation", str(tmp_path / "right.npz")]
        run = CliRunner().invoke(main, words)
        assert run.exit_code == 0, run.output
        said[name] = " ".join(run.output.split())
    assert "Warning: calibration: input" not in said["right"]
    assert "wrong range" not in said["right"]
    assert "calibration: input 'x': what the first layers read" in said["wrong"]
    assert "on those for evaluation: one of them is in a wrong range" in said["wrong"]
    assert "reaches 1e+30 on calibration" in said["outlier"]
    assert "encountered" not in said["outlier"]


def test_the_command(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "model.onnx"
    save(network(HOWS["yolo"], pictures), path)
    run = CliRunner().invoke(
        main, ["data", "check", str(path), str(pictures), "--preprocess", "raw"]
    )
    assert run.exit_code == 0, run.output
    assert "8 samples; labels: 8 of 2 classes, 0 to 1" in run.output
    assert "Warning: input 'x': what the first layers read" in run.output
    page = tmp_path / "page.html"
    arguments = ["data", "check", str(path), str(pictures), "--preprocess", "yolo"]
    run = CliRunner().invoke(main, [*arguments, "--html", str(page)])
    assert run.exit_code == 0, run.output
    assert "Nothing looks wrong in the 8 samples looked at" in run.output
    text = page.read_text("utf-8")
    assert text.count("<img src=") == 8
    assert text.count("float32 1x3x") == 3
    run = CliRunner().invoke(main, ["data", "check", str(path), str(pictures)])
    assert run.exit_code == 1
    assert "--preprocess and one of" in run.output
    run = CliRunner().invoke(
        main, ["data", "check", str(path), str(pictures), "--preprocess", "yollo"]
    )
    assert run.exit_code == 2
    assert "did you mean yolo" in run.output
