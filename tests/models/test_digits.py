"""The model that the project trains itself, from the training code to the three files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("sklearn")

from secateur.checking.evaluation import evaluate
from secateur.data.datasets import load_dataset
from secateur.ir.onnx_io import load, to_proto
from secateur.ir.reference import Session
from secateur.models import digits
from secateur.models.training import BatchNorm, Block, Dense, GlobalPool, Relu, TrainedConvolution
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic


@pytest.fixture(scope="module")
def folder(digits_folder: Path) -> Path:
    return digits_folder


def test_accuracy_of_the_file_is_that_of_the_training(folder: Path) -> None:
    model = load(folder / "digits.onnx")
    data = load_dataset(folder / "evaluation.npz", model)
    assert evaluate({"model": Session(model)}, data).metrics["model"]["top1"] >= 0.97
    assert len(data.samples) == digits.HELD_OUT


def test_no_held_out_image_is_trained_on(folder: Path) -> None:
    train = np.load(folder / "calibration.npz")["image"].reshape(-1, 64)
    test = np.load(folder / "evaluation.npz")["image"].reshape(-1, 64)
    assert len(train) + len(test) == 1797
    assert not {a.tobytes() for a in train} & {a.tobytes() for a in test}


def test_the_graph_keeps_what_later_stages_are_for(folder: Path) -> None:
    nodes = [n.op_type for n in load(folder / "digits.onnx").graph.nodes]
    assert nodes.count("BatchNormalization") == nodes.count("Conv") == 10
    assert nodes.count("Add") == 3
    depthwise = [n for n in load(folder / "digits.onnx").graph.nodes if n.get("group", 1) > 1]
    assert [n.get("strides") for n in depthwise] == [[2, 2]]


def test_quantized_digits_lose_little(folder: Path) -> None:
    model = load(folder / "digits.onnx")
    result = QuantizeStatic().run(model, Context(dict(np.load(folder / "calibration.npz"))))
    assert result.statistics["quantized"]["Conv"] == 10
    data = load_dataset(folder / "evaluation.npz", model)
    assert evaluate({"model": Session(model)}, data).metrics["model"]["top1"] >= 0.96
    assert to_proto(model).ByteSize() < 0.4 * (folder / "digits.onnx").stat().st_size


@pytest.mark.parametrize("batch", [1, "N"])
def test_training_twice_gives_the_same_bytes(tmp_path: Path, batch: int | str) -> None:
    for name in ("a", "b"):
        digits.make(tmp_path / name, epochs=1, batch=batch)
    for file in ("digits.onnx", "calibration.npz", "evaluation.npz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    proto = onnx.load(tmp_path / "a" / "digits.onnx")
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    assert (dim.dim_value or dim.dim_param) == batch


def test_wrong_usage() -> None:
    command = [sys.executable, "-m", "secateur.models.digits"]
    assert subprocess.run(command, capture_output=True).returncode == 2


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(digits, "train", lambda *a, **k: None)
    assert digits.main([str(tmp_path / "file" / "out")]) == 1


@pytest.mark.parametrize("name", ["dense", "plain", "strided", "depthwise", "norm"])
def test_gradients_are_the_slopes(name: str) -> None:
    """Backward passes against central differences, in the direction of a random change."""
    rng = np.random.default_rng(0)
    layers = {
        "dense": [GlobalPool("p"), Dense("d", rng, 4, 3)],
        "plain": [TrainedConvolution("c", rng, 4, 6), Relu("r")],
        "strided": [TrainedConvolution("c", rng, 4, 6, stride=2)],
        "depthwise": [TrainedConvolution("c", rng, 4, 8, groups=4, stride=2)],
        "norm": [TrainedConvolution("c", rng, 4, 6, kernel=1), BatchNorm("n", 6)],
    }[name]
    network = Block(layers)
    x = rng.standard_normal((4, 3, 5, 5)).astype(np.float32)
    weight = rng.standard_normal(network.forward(x, training=True).shape)

    def loss(x: np.ndarray) -> float:
        return float((network.forward(x, training=True) * weight).sum())

    loss(x)
    slope = network.backward(weight.astype(np.float32))
    step = rng.standard_normal(x.shape).astype(np.float32)
    h = 1e-3
    expected = (loss(x + h * step) - loss(x - h * step)) / (2 * h)
    assert float((slope * step).sum()) == pytest.approx(expected, rel=2e-2, abs=2e-2)
    for layer in layers:
        for key, array in layer.weights.items():
            loss(x)
            network.backward(weight.astype(np.float32))
            gradient = layer.gradients[key]
            step = rng.standard_normal(array.shape).astype(np.float32)
            layer.weights[key] = array + h * step
            upper = loss(x)
            layer.weights[key] = array - h * step
            lower = loss(x)
            layer.weights[key] = array
            expected = (upper - lower) / (2 * h)
            assert float((gradient * step).sum()) == pytest.approx(expected, rel=2e-2, abs=2e-2)
