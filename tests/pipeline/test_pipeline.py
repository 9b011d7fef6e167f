"""The main job from end to end, on the digits model and, where it lies beside, ResNet-8."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import helper

import secateur
from secateur.backends.tvm.targets import can_run_here, parse_target
from secateur.ir.reference import Session
from secateur.reporting.html import has_templates
from secateur.reporting.report import Report
from tests.ir.test_reference import setting

SHARED = Path(__file__).parents[3] / "shared"
FILES = {"model.onnx", "model.so", "report.json", "report.md"}
FILES |= {"report.html"} if has_templates() else set()


SAMPLES = 64
"""Images for calibration: of as many as there are refinement would take most of the time."""


@pytest.fixture(scope="module")
def digits(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the digits model, with fewer images for calibration."""
    folder = tmp_path_factory.mktemp("few_digits")
    shutil.copytree(digits_folder, folder, dirs_exist_ok=True)
    images = np.load(digits_folder / "calibration.npz")
    few = {name: images[name][:SAMPLES] for name in images.files}
    np.savez(folder / "calibration.npz", **few)
    return folder


def optimize(folder: Path, out: Path, **options: object) -> Report:
    """The main job, compiled anew."""
    return secateur.optimize(
        folder / "digits.onnx",
        out,
        quantize="int8",
        calibration=folder / "calibration.npz",
        evaluation=folder / "evaluation.npz",
        cache=False,
        **options,  # type: ignore[arg-type]
    )


class Job(NamedTuple):
    report: Report
    out: Path

    def stage(self, name: str) -> dict[str, Any]:
        """Of the report as it was written."""
        stages = json.loads((self.out / "report.json").read_text())["stages"]
        return next(stage for stage in stages if stage["name"] == name)


@pytest.fixture(scope="module")
def job(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    out = tmp_path_factory.mktemp("job") / "out"
    return Job(optimize(digits, out, target="native", macs=0.7), out)


def top1(run: Callable[[dict[str, Any]], dict[str, Any]], folder: Path) -> float:
    """Share of the held-out images that a runner names right, one at a time."""
    data = np.load(folder / "evaluation.npz")
    classes = [next(iter(run({"image": x[None]}).values())).argmax() for x in data["image"]]
    return float(np.mean(classes == data["labels"]))


def test_main_job_writes_four_files_that_say_the_same(job: Job) -> None:
    report = job.report
    assert {p.name for p in job.out.iterdir()} == FILES
    assert json.loads((job.out / "report.json").read_text()) == json.loads(report.to_json())
    names = [stage.name for stage in report.stages]
    assert names == ["original", "simplified", "pruned", "recovered", "quantized", "artifact"]
    assert [check.passed for check in report.checks] == [True] * 3
    assert all(stage.latency is not None for stage in report.stages)
    onnx.checker.check_model(str(job.out / "model.onnx"), full_check=True)
    text = (job.out / "report.md").read_text()
    assert all(f"| {name} |" in text for name in names)


def test_main_job_reaches_its_sizes(job: Job) -> None:
    """The architecture is fixed, so what each stage costs is known to a few per cent."""
    names = ("original", "simplified", "pruned", "quantized")
    original, simplified, pruned, quantized = (job.stage(name) for name in names)
    assert original["macs"] == simplified["macs"] == 596_096
    assert simplified["nodes"] == original["nodes"] - 10  # batch normalizations
    assert simplified["parameters"] < original["parameters"]
    assert 0.6 * original["macs"] <= pruned["macs"] <= 0.7 * original["macs"]
    assert pruned["parameters"] < 0.9 * simplified["parameters"]
    assert quantized["macs"] == pruned["macs"]
    for stage in (original, simplified, pruned):
        assert 4.0 < stage["file_bytes"] / stage["parameters"] < 4.3  # single precision
    assert quantized["file_bytes"] < 0.25 * original["file_bytes"]
    assert quantized["file_bytes"] == (job.out / "model.onnx").stat().st_size
    assert job.stage("artifact")["file_bytes"] == (job.out / "model.so").stat().st_size < 250_000


def test_main_job_reports_the_accuracy_that_its_files_have(digits: Path, job: Job) -> None:
    """What pruning costs recovery brings back; ten classes by chance are 10 %."""
    names = ("original", "simplified", "pruned", "recovered", "quantized", "artifact")
    accuracy = {name: job.stage(name)["top1"] for name in names}
    assert accuracy["original"] == top1(Session(secateur.load(digits / "digits.onnx")).run, digits)
    assert accuracy["original"] >= 0.97
    assert abs(accuracy["simplified"] - accuracy["original"]) <= 1 / 400
    assert accuracy["pruned"] > 0.25
    assert accuracy["recovered"] >= accuracy["original"] - 0.015
    assert abs(accuracy["quantized"] - accuracy["recovered"]) <= 0.01
    session = Session(secateur.load(job.out / "model.onnx"))
    assert accuracy["quantized"] == top1(session.run, digits)
    assert accuracy["artifact"] == top1(secateur.Runtime(job.out / "model.so").run, digits)


def assert_artifact_equals_onnx_runtime(report: Report) -> None:
    """Integers are computed exactly; rounding may take another step of the last scale."""
    assert report.artifact is not None
    assert report.artifact.ran
    agreement = report.artifact.agreement
    assert agreement is not None
    assert agreement["runs"] == 400
    assert agreement["relative_difference"] <= 0.02
    # On a CPU without VNNI ONNX Runtime adds bytes by another formula: near ties another step.
    exact = can_run_here(parse_target("icelake-server")) or can_run_here(parse_target("alderlake"))
    assert agreement["identical"] >= (0.99 if exact else 0.9)
    quantized, artifact = report.stage("quantized"), report.stage("artifact")
    assert abs(quantized.top1 - artifact.top1) <= 0.002  # type: ignore[operator, union-attr]


def test_artifact_of_the_main_job_equals_onnx_runtime(job: Job) -> None:
    assert_artifact_equals_onnx_runtime(job.report)


def test_artifact_agrees_where_the_model_is_still_accurate(digits: Path, tmp_path: Path) -> None:
    """Agreement on a model near chance would mean little, so this one is not pruned."""
    report = optimize(digits, tmp_path / "out", target="native")
    original, quantized = report.stage("original"), report.stage("quantized")
    assert quantized.top1 >= original.top1 - 0.01  # type: ignore[operator, union-attr]
    assert_artifact_equals_onnx_runtime(report)
    assert top1(secateur.Runtime(tmp_path / "out" / "model.so").run, digits) > 0.95


def test_cross_compiled_artifact_is_not_run_and_says_so(digits: Path, tmp_path: Path) -> None:
    """For the architecture that this machine doesn't have."""
    is_arm = platform.machine() in ("aarch64", "arm64")
    target, number = ("x86-64-v3", 62) if is_arm else ("aarch64-cortex-a76", 183)  # EM_*
    out = tmp_path / "out"
    report = secateur.optimize(digits / "digits.onnx", out, target=target, cache=False)
    header = (out / "model.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == number
    assert report.artifact is not None
    assert not report.artifact.ran
    assert report.stage("artifact") is None
    assert f"can't run {target}" in (out / "report.md").read_text()


def test_another_process_gives_the_same_bytes(digits: Path, job: Job, tmp_path: Path) -> None:
    """Through the command line, with another order of hashes, and compiled anew."""
    command = [sys.executable, "-m", "secateur", "optimize", digits / "digits.onnx"]
    command += ["-o", tmp_path / "out", "--target", "native", "--macs", "0.7", "--no-cache"]
    command += ["--quantize", "int8", "--calibration", digits / "calibration.npz"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    for file in ("model.onnx", "model.so"):
        assert (tmp_path / "out" / file).read_bytes() == (job.out / file).read_bytes()


def test_a_given_model_is_not_changed(digits: Path, tmp_path: Path) -> None:
    model = secateur.load(digits / "digits.onnx")
    secateur.optimize(model, tmp_path / "out", target="x86-64-v3", macs=0.7)
    secateur.save(model, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == onnx.load(digits / "digits.onnx")


@pytest.mark.slow
def test_open_shapes_stay_open_or_are_fixed_where_asked(tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "models/zoo/data/gru.dynamo.onnx"
    for shapes in ({}, {"frames": (1, 9, 10)}):
        report = secateur.optimize(model, tmp_path / "out", target="native", input_shapes=shapes)
        assert report.artifact is not None
        assert report.artifact.agreement is not None
        assert report.artifact.agreement["max_difference"] < 1e-5
        runtime = secateur.Runtime(tmp_path / "out" / "model.so")
        _, shape = runtime.inputs["frames"]
        assert isinstance(shape[1], int if shapes else str)


@pytest.mark.slow
def test_resnet8(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared: the ResNet-8 model and its images")
    pytest.importorskip("PIL", reason="needs pillow to decode the images of ../shared")
    tool = SHARED / "tools" / "make_npz.py"
    for split, count in (("train", "512"), ("test", "2000")):
        command = [sys.executable, tool, split, count, tmp_path / f"{split}.npz"]
        subprocess.run(command, check=True)
    arguments = ["--target", "x86-64-v3", "--macs", "0.7", "--quantize", "int8"]
    arguments += ["--calibration", tmp_path / "train.npz", "--evaluation", tmp_path / "test.npz"]  # type: ignore[list-item]
    model = SHARED / "models" / "mlperf_tiny_resnet8.onnx"
    command = [sys.executable, "-m", "secateur", "optimize", model, "-o", tmp_path / "out"]
    run = subprocess.run([*command, *arguments, "--json"], capture_output=True, check=True)
    report = json.loads(run.stdout)
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["pruned"]["macs"] <= 0.7 * stages["original"]["macs"]
    assert stages["quantized"]["file_bytes"] < 0.4 * stages["original"]["file_bytes"]
    if report["artifact"]["ran"]:
        assert abs(stages["artifact"]["top1"] - stages["quantized"]["top1"]) <= 0.002


def test_integers_are_timed_in_onnx_runtime_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the settings that make its products of bytes exact, which take it longer."""
    node = helper.make_node("Gemm", ["x", "w"], ["y"])
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 8), ("y", 4))
    ]
    constants = [onnx.numpy_helper.from_array(weights, "w")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], constants)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    samples = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=samples)
    timed: dict[str, Any] = {}

    def measured(runners: Any, feed: Any) -> dict[str, Any]:
        timed.update(runners)
        return {}

    monkeypatch.setattr("secateur.pipeline.optimize.latencies", measured)
    secateur.optimize(
        tmp_path / "m.onnx", tmp_path / "out", target="native", calibration=tmp_path / "c.npz",
        quantize="int8",
    )  # fmt: skip
    found = {
        name: setting(runner, "session.x64quantprecision")
        for name, runner in timed.items()
        if name != "artifact"
    }
    assert found["quantized"] is None
    assert found["original"] == "1"  # of floats it changes nothing
