"""Comparisons run batches, too, and find samples that affect each other whatever was proven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import secateur
from secateur.checking.checks import check_feeds
from secateur.checking.independence import check_independent
from secateur.cli import main
from secateur.data.batches import batch_sizes
from secateur.data.datasets import load_dataset
from secateur.ir.dependencies import batch as analysis
from secateur.ir.errors import SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import save
from secateur.ir.text import parse_model
from secateur.passes.batch import inspect_batch
from secateur.reporting.report import Check

CENTERED = "%m = ReduceMean(%x) {axes = [0]}\n%y = Sub(%x, %m)"
SHARES = "%y = Softmax(%x) {axis = 0}"
PLAIN = "%y = Softmax(%x) {axis = 1}"


def model_of(body: str, size: str = "N") -> Model:
    signature = f"(%x: float[{size}, 4]) -> (%y: float[{size}, 4])"
    text = f'model <ir_version = 8, opset = ["" = 17]>\ngraph g {signature} {{\n{body}\n}}\n'
    model = parse_model(text)
    infer_shapes(model)
    return model


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the analysis take every first axis for a batch of independent samples."""
    monkeypatch.setattr(analysis._Watcher, "after_node", lambda *arguments: None)


@pytest.mark.parametrize("body", [CENTERED, SHARES])
def test_what_is_wrongly_proven_is_found(body: str, blind: None) -> None:
    model = model_of(body)
    batch = inspect_batch(model)
    assert batch.is_proven
    with pytest.raises(SecateurError, match="samples affect each other"):
        check_independent(model, batch, check_feeds(model, None, 0), 0)


@pytest.mark.parametrize("body", [CENTERED, SHARES])
def test_optimize_and_verify_find_it(body: str, blind: None, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    save(model_of(body), tmp_path / "m.onnx")
    with pytest.raises(SecateurError, match="samples affect each other"):
        secateur.optimize(tmp_path / "m.onnx", tmp_path / "out", target="x86-64-v3")
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "m.onnx")])
    assert result.exit_code == 1


def test_artifacts_are_compared_on_batches(
    blind: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even without that check the report doesn't say that all agrees."""
    pytest.importorskip("tvm")
    left_out = Check("batches against their samples", False, "left out")
    monkeypatch.setattr("secateur.pipeline.optimize.check_independent", lambda *arguments: left_out)
    save(model_of(CENTERED), tmp_path / "m.onnx")
    data = {"x": np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)}
    report = secateur.optimize(
        tmp_path / "m.onnx", tmp_path / "out", target="native", evaluation=data
    )
    assert report.artifact is not None
    assert report.artifact.agreement is not None
    assert report.artifact.agreement["relative_difference"] > 0.1


def test_right_models_pass() -> None:
    model = model_of(PLAIN)
    check = check_independent(model, inspect_batch(model), check_feeds(model, None, 0), 0)
    assert check.passed
    assert "over 2 runs" in check.detail


def test_verify_and_inspect_say_what_is_known(tmp_path: Path) -> None:
    for body, verified, inspected in [
        (PLAIN, "batch: of independent samples", "independent samples along the first axis of x"),
        (SHARES, "batch: none: y (Softmax)", "no batch along the first axis of x: y (Softmax)"),
    ]:
        save(model_of(body), tmp_path / "m.onnx")
        assert verified in CliRunner().invoke(main, ["verify", str(tmp_path / "m.onnx")]).output
        assert inspected in CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx")]).output


@pytest.mark.parametrize(("count", "sizes"), [(1, [1, 2, 3]), (5, [1, 2, 3]), (8, [1, 2, 3, 1, 2])])
def test_data_comes_in_batches_of_several_sizes(count: int, sizes: list[int]) -> None:
    model = model_of(PLAIN)
    data = load_dataset({"x": np.arange(4 * count, dtype=np.float32).reshape(count, 4)}, model)
    feeds = list(data.feeds(sizes=batch_sizes(model, data)))
    assert [len(feed["x"]) for feed in feeds] == sizes
    rows = np.concatenate([feed["x"][:, 0] for feed in feeds])
    np.testing.assert_array_equal(rows, 4.0 * (np.arange(len(rows)) % count))


def test_data_comes_in_batches_that_the_model_takes() -> None:
    model = model_of("const %s: int64[2] = [1, 4]\n%y = Reshape(%x, %s)")
    data = load_dataset({"x": np.zeros((4, 4), np.float32)}, model)
    assert batch_sizes(model, data) == [1]
    fixed = model_of(PLAIN, "2")
    data = load_dataset({"x": np.zeros((4, 4), np.float32)}, fixed)
    assert batch_sizes(fixed, data) == [2]
