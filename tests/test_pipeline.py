"""The main job from end to end, on the digits model and, where it lies beside, ResNet-8."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import secateur
from secateur.passes.reference import Session
from secateur.report import Report

SHARED = Path(__file__).parent.parent.parent / "shared"
FILES = {"model.onnx", "model.so", "report.json", "report.md"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.onnx, calibration.npz and evaluation.npz."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, "-m", "secateur.models.digits", folder], check=True)
    return folder


def optimize(folder: Path, out: Path, target: str = "x86-64-v3", **options: object) -> Report:
    return secateur.optimize(
        folder / "digits.onnx",
        out,
        target=target,
        quantize="int8",
        calibration=folder / "calibration.npz",
        evaluation=folder / "evaluation.npz",
        **options,  # type: ignore[arg-type]
    )


def test_main_job(digits: Path, tmp_path: Path) -> None:
    report = optimize(digits, tmp_path / "out", macs=0.7)
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(
        report.to_json()
    )
    names = [stage.name for stage in report.stages]
    assert names[:4] == ["original", "simplified", "pruned", "quantized"]
    original, quantized = report.stages[0], report.stages[3]
    assert quantized.macs <= 0.7 * original.macs  # type: ignore[operator]
    assert quantized.file_bytes < 0.4 * original.file_bytes  # type: ignore[operator]
    assert quantized.file_bytes == (tmp_path / "out" / "model.onnx").stat().st_size
    assert all(stage.top1 is not None and stage.latency is not None for stage in report.stages)
    assert [check.passed for check in report.checks] == [True] * 3
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(f"| {name} |" in text for name in names)


def test_artifact_agrees_where_the_model_is_still_accurate(digits: Path, tmp_path: Path) -> None:
    """Agreement on a model near chance would mean little, so this one is not pruned."""
    report = optimize(digits, tmp_path / "out")
    if report.artifact is None or not report.artifact.ran:
        pytest.skip("this machine can't run x86-64-v3 code")
    quantized, artifact = report.stage("quantized"), report.stage("artifact")
    assert quantized is not None
    assert artifact is not None
    assert quantized.top1 > 0.95  # type: ignore[operator]
    assert abs(quantized.top1 - artifact.top1) <= 0.002  # type: ignore[operator]
    images = np.load(digits / "evaluation.npz")["image"][:100]
    session = Session(secateur.load(tmp_path / "out" / "model.onnx"))
    runtime = secateur.Runtime(tmp_path / "out" / "model.so")
    for image in images:
        want = next(iter(session.run({"image": image[None]}).values()))
        have = next(iter(runtime.run({"image": image[None]}).values()))
        assert want.argmax() == have.argmax()


def test_cross_compiled_artifact_is_not_run_and_says_so(digits: Path, tmp_path: Path) -> None:
    report = optimize(digits, tmp_path / "out", target="aarch64-cortex-a76")
    header = (tmp_path / "out" / "model.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64
    if report.artifact is not None and report.artifact.ran:
        pytest.skip("this machine runs it")
    assert report.stage("artifact") is None
    assert "can't run aarch64-cortex-a76" in (tmp_path / "out" / "report.md").read_text()


def test_twice_gives_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        optimize(digits, tmp_path / name, macs=0.7)
    for file in ("model.onnx", "model.so"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_given_model_is_not_changed(digits: Path, tmp_path: Path) -> None:
    model = secateur.load(digits / "digits.onnx")
    secateur.optimize(model, tmp_path / "out", target="x86-64-v3", macs=0.7)
    secateur.save(model, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == onnx.load(digits / "digits.onnx")


@pytest.mark.slow
def test_open_shapes_are_fixed_where_asked(tmp_path: Path) -> None:
    model = Path(__file__).parent.parent / "models/zoo/data/gru.dynamo.onnx"
    with pytest.raises(secateur.SecateurError, match=r"frames.* is not static .*--input-shape"):
        secateur.optimize(model, tmp_path / "out", target="native")
    report = secateur.optimize(
        model, tmp_path / "out", target="native", input_shapes={"frames": (1, 9, 10)}
    )
    assert report.artifact is not None
    assert report.artifact.agreement is not None
    assert report.artifact.agreement["max_difference"] < 1e-5


def test_resnet8(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared: the ResNet-8 model and its images")
    pytest.importorskip("PIL", reason="needs pillow to decode the images of ../shared")
    tool = SHARED / "tools" / "make_npz.py"
    for split, count in (("train", "512"), ("test", "2000")):
        command = [sys.executable, tool, split, count, tmp_path / f"{split}.npz"]
        subprocess.run(command, check=True)
    start = time.perf_counter()
    arguments = ["--target", "x86-64-v3", "--macs", "0.7", "--quantize", "int8"]
    arguments += ["--calibration", tmp_path / "train.npz", "--evaluation", tmp_path / "test.npz"]  # type: ignore[list-item]
    model = SHARED / "models" / "mlperf_tiny_resnet8.onnx"
    command = [sys.executable, "-m", "secateur", "optimize", model, "-o", tmp_path / "out"]
    run = subprocess.run([*command, *arguments, "--json"], capture_output=True, check=True)
    assert time.perf_counter() - start < 60
    report = json.loads(run.stdout)
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["pruned"]["macs"] <= 0.7 * stages["original"]["macs"]
    assert stages["quantized"]["file_bytes"] < 0.4 * stages["original"]["file_bytes"]
    if report["artifact"]["ran"]:
        assert abs(stages["artifact"]["top1"] - stages["quantized"]["top1"]) <= 0.002
