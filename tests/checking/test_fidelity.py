"""Fidelity of stages to the original: numbers that are known, and warnings below the thresholds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from secateur.checking.evaluation import UNLABELLED_SAMPLES, evaluate
from secateur.checking.fidelity import fidelity_warnings
from secateur.cli import main
from secateur.data.datasets import Dataset, load_dataset
from secateur.ir.onnx_io import from_proto, save
from secateur.passes.fidelity import FidelityTotals
from secateur.reporting.report import Fidelity
from tests.data.folder_cases import noise, picture, reading


class Scaled:
    """Gives back its input times a number, plus noise."""

    def __init__(self, scale: float = 1.0, noise: float = 0.0) -> None:
        self.scale, self.noise, self.samples = scale, noise, 0
        self.random = np.random.default_rng(0)

    def run(self, feeds: Any) -> dict[str, Any]:
        x = feeds["x"]
        self.samples += len(x)
        return {"y": self.scale * x + self.noise * self.random.standard_normal(x.shape)}


def dataset(count: int, labels: Any = None, batch: Any = "N") -> Dataset:
    x = np.random.default_rng(1).standard_normal((count, 5)).astype(np.float32)
    return Dataset(load_dataset({"x": x}, reading(x=[batch, 5])).samples, labels)


def test_known_distances() -> None:
    runners = {"original": Scaled(), "twice": Scaled(2.0), "noisy": Scaled(1.0, 0.1)}
    found = evaluate(runners, dataset(200)).fidelity
    (twice,), (noisy,) = found["twice"].outputs, found["noisy"].outputs
    assert twice.sqnr_db == pytest.approx(0, abs=1e-6)
    assert twice.cosine == pytest.approx(1)
    assert twice.top1 == 1
    assert not twice.identical
    assert noisy.sqnr_db == pytest.approx(20, abs=0.5)
    assert noisy.top1 is not None
    assert 0.85 < noisy.top1 < 1
    assert "original" not in found
    assert found["noisy"].samples == 200


@pytest.mark.parametrize("batch", ["N", 1, 64])
def test_few_samples_without_labels_and_all_with_them(batch: Any) -> None:
    runners = {"original": Scaled(), "other": Scaled()}
    found = evaluate(runners, dataset(1000, None, batch))
    assert found.samples is None
    assert found.fidelity["other"].samples == UNLABELLED_SAMPLES
    (same,) = found.fidelity["other"].outputs
    assert (same.identical, same.sqnr_db, same.cosine) == (True, math.inf, 1.0)
    labels = np.zeros(300, int)
    found = evaluate(runners, dataset(300, labels, batch))
    assert found.samples == found.fidelity["other"].samples == 300
    assert set(found.metrics["other"]) == {"top1"}


def totals(want: Any, have: Any) -> Any:
    found = FidelityTotals()
    rows = len(np.asarray(want))
    found.add({"y": np.asarray(want)}, {"y": np.asarray(have)}, rows, rows)
    return found


def test_what_is_not_finite_and_what_is_no_float() -> None:
    nan, inf = np.nan, np.inf
    (same,) = totals([[1.0, nan, inf]], [[1.0, nan, inf]]).outputs()
    assert same.identical
    assert same.sqnr_db == inf
    (off,) = totals([[1.0, 2.0]], [[1.0, nan]]).outputs()
    assert not off.identical
    assert off.equal == 0.5
    (zero,) = totals([[0.0, 0.0]], [[0.0, 1.0]]).outputs()
    assert (zero.sqnr_db, zero.cosine) == (-inf, 0.0)
    (whole,) = totals([[1, 2, 3, 4]], [[1, 2, 3, 5]]).outputs()
    assert (whole.sqnr_db, whole.equal) == (None, 0.75)
    (shape,) = totals(np.zeros((1, 3)), np.zeros((1, 4))).outputs()
    assert (shape.sqnr_db, shape.identical) == (None, False)
    (half,) = totals(np.ones((1, 4), np.float16), np.ones((1, 4), np.float16)).outputs()
    assert half.identical


@pytest.mark.parametrize(
    ("want", "have", "message"),
    [
        ([[0.0, 1.0]] * 9 + [[1.0, 0.0]], [[0.0, 1.0]] * 10, "another in 10.00 %"),
        ([[1.0, 2.0, 1.0]], [[1.0, 2.5, 1.0]], None),
        ([[1.0, 2.0, 1.0]], [[1.0, 4.0, 1.0]], "SQNR is 1.8 dB"),
        ([[1, 2, 3, 4]], [[1, 2, 3, 5]], "25.00 % of the elements differ"),
        ([[1.0, 2.0]], [[1.0, 2.0]], None),
    ],
)
def test_warnings(want: Any, have: Any, message: str | None) -> None:
    found = Fidelity(2, "samples", tuple(totals(want, have).outputs()))
    warnings = fidelity_warnings("quantized", found)
    if message is None:
        assert not warnings
    else:
        (warning,) = warnings
        assert message in warning
        assert warning.startswith("quantized: output 'y'")


# --- commands ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with random weights, which read 8x8 pictures in 0..1."""
    random = np.random.default_rng(3)
    weights = {
        "w": random.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "v": (random.standard_normal((16, 5)) / 4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flat"),
        helper.make_node("MatMul", ["d", "v"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    folder = tmp_path_factory.mktemp("classifier")
    path = folder / "model.onnx"
    save(from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8)), path)
    for number in range(12):
        kind = "abc"[number % 3]
        picture(folder / "pictures" / kind / f"{number}.png", noise(8, 8, number))
    np.savez(folder / "zeros.npz", x=np.zeros((6, 3, 8, 8), np.float32))
    return path


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_quantization_without_labels_says_how_near_it_is(
    classifier: Path, tmp_path: Path
) -> None:
    pytest.importorskip("PIL")
    pictures = classifier.parent / "pictures"
    out = tmp_path / "q.onnx"
    text = run("quantize", classifier, "-o", out, "--calibration", pictures, "--preprocess", "yolo")
    assert "same top-1" in text
    assert "on 12 calibration samples" in text
    assert "Warning" not in text
    text = run(
        "quantize", classifier, "-o", out, "--calibration", pictures, "--evaluation", pictures,
        "--preprocess", "yolo", "--metric", "top1", "--metric", "top5",
    )  # fmt: skip
    assert "top-1" in text
    assert "top-5" in text
    assert "100.00 %" in text


def test_calibration_on_zeros_is_not_silent(classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    zeros = classifier.parent / "zeros.npz"
    text = run("quantize", classifier, "-o", out, "--calibration", zeros)
    assert "Warning: calibration: input 'x' is 0 everywhere" in text
    assert "random inputs" in text
    assert "Warning: quantized: output 'y' is far from the original's" in text
    assert "Calibration saw one value only in" in text


def test_a_quantization_of_nothing_says_so_last(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sin", ["x"], ["y"], "wave")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    opset = [helper.make_opsetid("", 17)]
    path, out = tmp_path / "m.onnx", tmp_path / "q.onnx"
    save(from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8)), path)
    np.savez(tmp_path / "x.npz", x=np.float32(np.ones((3, 4)) * [[1], [2], [3]]))
    text = run("quantize", path, "-o", out, "--calibration", tmp_path / "x.npz")
    assert "Nothing was quantized, all operators are float:" in text.splitlines()[-1]


def test_pruning_without_data_says_how_near_it_is(classifier: Path, tmp_path: Path) -> None:
    text = run("prune", classifier, "-o", tmp_path / "p.onnx", "--ratio", "0.5")
    assert "cosine" in text
    assert "random inputs" in text


def test_tensors_of_a_sequence_are_outputs_of_their_own() -> None:
    totals = FidelityTotals()
    want = {"y": [np.float32([1, 2]), np.float32([3, 4, 5])]}
    totals.add(want, {"y": [np.float32([1, 2]), np.float32([3, 4, 6])]}, 1, 1)
    first, second = totals.outputs()
    assert (first.name, second.name) == ("y[0]", "y[1]")
    assert first.cosine == pytest.approx(1.0)
    assert second.cosine is not None
    assert second.cosine < 1.0


def test_outputs_without_rows() -> None:
    """A result may have no sample, and rows no element: there is nothing to compare."""
    for shape in ((0, 3), (2, 0), (0,)):
        totals = FidelityTotals()
        empty = {"y": np.zeros(shape, np.float32)}
        totals.add(empty, empty, 0 if not shape[0] else 2, 0 if not shape[0] else 2)
        (found,) = totals.outputs()
        assert found.identical
        assert found.top1 is None
