"""The command line: what each command writes, prints and promises."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from secateur.cli import COMMANDS, main
from secateur.ir.onnx_io import save

from ..passes.test_rotation import decoder

RNG = np.random.default_rng(0)


def constant(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape, np.float32), name)


def residual_net(batch: int | str) -> onnx.ModelProto:
    """A convolution, a residual block and a classifier: x [batch, 3, 8, 8] -> y [batch, 4]."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Identity", ["d"], ["i"]),
        helper.make_node("GlobalAveragePool", ["i"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [constant("w1", 16, 3, 3, 3), constant("w2", 16, 16, 3, 3), constant("w3", 16, 4)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(params=[1, 2, "N"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with model.onnx and data.npz, which is the current one."""
    onnx.save(residual_net(request.param), tmp_path / "model.onnx")
    images = RNG.standard_normal((9, 3, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", x=images, labels=np.arange(9) % 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code, result.output
    assert result.stderr == "" or exit_code  # no progress where there is no terminal
    return result


def run_json(*arguments: str) -> dict:  # type: ignore[type-arg]
    return json.loads(run(*arguments, "--json").stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_listed_help(name: str) -> None:
    command = importlib.import_module(f"secateur.cli.{name.replace('-', '_')}").command
    assert isinstance(command, click.Command)
    assert command.name == name
    if name not in (
        "bazel-dir",
        "cmake-dir",
        "completion",
        "recipe",
    ):  # which print for other programs
        subcommands = command.commands.values() if isinstance(command, click.Group) else [command]
        for one in subcommands:
            assert "--json" in {option for p in one.params for option in p.opts}
    assert "Usage:" in run(name, "--help").stdout


def test_help_lists_every_command() -> None:
    text = run("--help").stdout
    assert all(f"\n  {name} " in text and summary in text for name, summary in COMMANDS.items())


def test_inspect(place: Path) -> None:
    text = run("inspect", "model.onnx").stdout
    assert "input x: float" in text
    assert "Conv" in text
    details = run("inspect", "model.onnx", "--details").stdout
    assert "ties w2, axis 1" in details
    assert "passes" in details
    facts = run_json("inspect", "model.onnx")
    assert facts["parameters"] == 16 * 27 + 16 * 16 * 9 + 64
    assert facts["macs"] // (64 * 16 * 27 + 64 * 16 * 144 + 64) in (1, 2)
    free = [g for g in facts["groups"] if g["lock"] is None]
    assert [g["size"] for g in free] == [16]
    tied = sorted((p["name"], p["axis"]) for p in free[0]["parameters"])
    assert tied == [("w1", 0), ("w2", 0), ("w2", 1), ("w3", 0)]
    assert free[0]["parameters_per_step"] == 27 + 16 * 9 + 15 * 9 + 4
    assert free[0]["macs_per_step"] > 0


def test_simplify(place: Path) -> None:
    report = run_json("simplify", "model.onnx", "-o", "small.onnx")
    assert [s["nodes"] for s in report["stages"]] == [8, 7]
    assert all(check["passed"] for check in report["checks"])
    agreement = run_json("compare", "model.onnx", "small.onnx", "--data", "data.npz")
    assert agreement["relative_difference"] < 1e-6
    assert "Identity" not in {n.op_type for n in onnx.load("small.onnx").graph.node}


def test_prune_in_place(place: Path) -> None:
    report = run_json("prune", "model.onnx", "-o", "model.onnx", "--macs", "0.5")
    before, after = report["stages"]
    assert after["macs"] <= 0.5 * before["macs"]
    assert report["checks"][0]["name"] == "pruned model against channel-masked original"
    assert run_json("inspect", "model.onnx")["macs"] == after["macs"]
    assert sorted(p.name for p in place.iterdir()) == ["data.npz", "model.onnx"]


def test_prune_leaves_ignored_weights_alone(place: Path) -> None:
    arguments = ("prune", "model.onnx", "-o", "out.onnx", "--macs", "0.5", "--ignore", "w*")
    assert "reached" in run(*arguments, exit_code=1).stderr


def test_prune_to_bytes_and_to_a_size(place: Path) -> None:
    whole = run_json("prune", "model.onnx", "-o", "out.onnx", "--bytes", "1.0")["stages"][0]
    size = int(0.7 * whole["file_bytes"])
    for budget in ("0.5", f"{size}B"):
        report = run_json("prune", "model.onnx", "-o", "out.onnx", "--bytes", budget)
        after = report["stages"][-1]
        if budget == "0.5":
            assert after["parameters"] <= 0.5 * whole["parameters"]
        else:
            assert 0.8 * size < after["file_bytes"] <= 1.02 * size


def test_prune_to_latency(place: Path) -> None:
    arguments = ("prune", "model.onnx", "-o", "out.onnx", "--latency", "0.6")
    report = run_json(*arguments, "--target", "aarch64")
    latency = report["passes"][0]["statistics"]["latency"]
    assert 0.25 * latency["before"] < latency["after"] <= 0.6 * latency["before"]
    assert "measured_after" not in latency


@pytest.mark.parametrize("data", ["none", "calibration", "evaluation"])
def test_sweep_writes_a_curve(place: Path, data: str) -> None:
    options: dict[str, tuple[str, ...]] = {
        "none": (),
        "calibration": ("--calibration", "data.npz"),
        "evaluation": ("--calibration", "data.npz", "--evaluation", "data.npz"),
    }
    arguments = ("prune", "model.onnx", "-o", "curve.json", "--sweep", "0.7,0.9,0.7")
    printed = run(*arguments, *options[data]).stdout
    assert "divergence" in printed
    points = json.loads((place / "curve.json").read_text())["points"]
    assert [point["budget"] for point in points] == [1.0, 0.9, 0.7]
    assert points[0]["divergence"] == 0
    assert all(point["macs"] <= point["budget"] for point in points)
    assert all((point["top1"] is not None) == (data == "evaluation") for point in points)
    assert all(point["divergence"] is not None for point in points)
    drawing = ElementTree.parse(place / "curve.svg").getroot()
    dots = drawing.findall("{http://www.w3.org/2000/svg}circle")
    assert len(dots) == 3
    before = (place / "curve.json").read_bytes(), (place / "curve.svg").read_bytes()
    run(*arguments, *options[data])
    assert before == ((place / "curve.json").read_bytes(), (place / "curve.svg").read_bytes())


def test_sweep_says_which_budgets_are_out_of_reach(place: Path) -> None:
    arguments = ("prune", "model.onnx", "-o", "curve.json", "--sweep")
    printed = run(*arguments, "0.8,0.0001").stdout
    assert "Not reached" in printed
    assert "leaves" in printed
    assert "leaves" in run(*arguments, "0.0001", "--sweep-of", "params", exit_code=1).stderr


def test_sweep_of_latency(place: Path) -> None:
    arguments = ("--sweep", "0.8,0.6", "--sweep-of", "latency", "--target", "aarch64")
    points = run_json("prune", "model.onnx", "-o", "curve.json", *arguments)["points"]
    assert all(0 < point["latency"] <= point["budget"] for point in points)


def test_pruned_groups_are_explained(place: Path) -> None:
    arguments = ("prune", "model.onnx", "-o", "out.onnx", "--macs", "0.5")
    report = run_json(*arguments, "--calibration", "data.npz")
    statistics = report["passes"][0]["statistics"]
    assert statistics["importance"] == "reconstruction"
    for group in statistics["groups"]:
        assert 0 <= group["score_lost"] <= 1
        assert (group["score_lost"] > 0) == (group["kept"] < group["size"])
        assert group["readers"]
        if group["score_removed"] is not None:
            assert group["score_removed"] <= group["score_kept"]
    printed = run(*arguments, "--calibration", "data.npz").stdout
    assert "score lost" in printed
    solved = report["passes"][-1]["statistics"].get("layers")
    assert ("->" in printed) == bool(solved)


def test_limits(place: Path) -> None:
    arguments = ("prune", "model.onnx", "-o", "out.onnx", "--macs", "0.5", "--limit", "w*=0.9..")
    assert "within the limits" in run(*arguments, exit_code=1).stderr


def test_prune_recovers_and_measures_where_there_are_samples(place: Path) -> None:
    samples = ("--calibration", "data.npz", "--evaluation", "data.npz")
    arguments = ("prune", "model.onnx", "-o", "out.onnx", "--macs", "0.5", *samples)
    report = run_json(*arguments)
    assert [stage["name"] for stage in report["stages"]] == ["original", "pruned", "recovered"]
    assert all(0 <= stage["top1"] <= 1 for stage in report["stages"])
    assert "top-1" in run(*arguments).stdout
    whole = run_json(*arguments, "--no-recovery")
    assert [stage["name"] for stage in whole["stages"]] == ["original", "pruned"]


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a decoder whose stream of 12 channels has rank 7, and samples for it."""
    random = np.random.default_rng(0)
    save(decoder(written_out=False, random=random), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=random.standard_normal((64, 6, 5)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recovered_as_well_as(*options: str) -> tuple[dict[str, Any], float]:
    """The report of a pruning to 70 %, and decibels between the signal and what it misses."""
    arguments = ("--macs", "0.7", "--calibration", "data.npz", *options)
    report = run_json("prune", "model.onnx", "-o", "out.onnx", *arguments)
    onnx.checker.check_model("out.onnx", full_check=True)
    stage = report["stages"][-1]
    assert stage["name"] == "recovered"
    return report, stage["fidelity"]["outputs"][0]["sqnr_db"]


def test_a_stream_that_is_rotated_loses_nothing(stream: Path) -> None:
    plain, without = recovered_as_well_as()
    report, reached = recovered_as_well_as("--rotate")
    assert reached > without + 20
    assert reached > 70  # 75 to more than 80 dB, as CPUs round
    assert [run["text"] for run in plain["passes"] if run["stage"] == "rotated"] == []
    (rotated,) = [run for run in report["passes"] if run["stage"] == "rotated"]
    assert len(rotated["statistics"]["streams"]) == 1
    assert any("one by one" in note["reason"] for note in rotated["notes"])


def test_rematching_brings_back_less_than_solving(stream: Path) -> None:
    _, solved = recovered_as_well_as()
    report, rematched = recovered_as_well_as("--rematch")
    cut = report["stages"][1]["fidelity"]["outputs"][0]["sqnr_db"]
    assert cut < rematched < solved
    (recovery,) = [run for run in report["passes"] if run["stage"] == "recovered"]
    assert recovery["changed"]
    assert recovery["statistics"]["together"]["steps"] == 0


@pytest.mark.parametrize("command", ["prune", "optimize"])
def test_options_of_recovery_that_nothing_could_come_of_are_refused(
    place: Path, command: str
) -> None:
    target = ("--target", "x86-64-v3") if command == "optimize" else ()
    start = (command, "model.onnx", "-o", "out.onnx", *target)
    goal, samples = ("--macs", "0.5"), ("--calibration", "data.npz")
    for option in ("--search", "--iterations", "--recovery"):
        value = () if option == "--recovery" else ("2",)
        assert f"{option} needs samples" in run(*start, *goal, option, *value, exit_code=2).stderr
        if command == "optimize":
            result = run(*start, *samples, option, *value, exit_code=2)
            assert f"{option} needs a goal" in result.stderr
    for option in ("--search", "--iterations"):
        both = (*goal, *samples, option, "2", "--no-recovery")
        assert "not both" in run(*start, *both, exit_code=2).stderr
    assert not Path("out.onnx").exists()


def test_samples_without_labels_give_no_accuracy_and_that_is_said(place: Path) -> None:
    with np.load("data.npz") as file:
        np.savez("unlabelled.npz", **{k: v for k, v in file.items() if k != "labels"})
    arguments = ("prune", "model.onnx", "-o", "out.onnx", "--macs", "0.5")
    report = run_json(*arguments, "--evaluation", "unlabelled.npz")
    assert any("labels" in note for note in report["notes"])


def test_quantize(place: Path) -> None:
    arguments = ("quantize", "model.onnx", "-o", "q.onnx", "--calibration", "data.npz")
    report = run_json(*arguments)
    assert "QuantizeLinear" in {n.op_type for n in onnx.load("q.onnx").graph.node}
    assert report["stages"][1]["file_bytes"] < report["stages"][0]["file_bytes"]
    assert (
        "Wrote q.onnx"
        in run("quantize", "model.onnx", "-o", "q.onnx", "--calibration", "data.npz").stdout
    )


def test_same_input_same_bytes(place: Path) -> None:
    for out in ("a.onnx", "b.onnx"):
        run("quantize", "model.onnx", "-o", out, "--calibration", "data.npz")
        run("prune", out, "-o", out + ".pruned", "--ratio", "0.3")
    assert (place / "a.onnx").read_bytes() == (place / "b.onnx").read_bytes()


def test_verify(place: Path) -> None:
    assert all(check["passed"] for check in run_json("verify", "model.onnx"))  # type: ignore[index]
    model = onnx.load("model.onnx")
    model.graph.node[4].input[0] = "nowhere"
    onnx.save(model, "bad.onnx")
    assert "nowhere" in run("verify", "bad.onnx", exit_code=1).stderr


def test_compare_fails_beyond_the_tolerance(place: Path) -> None:
    model = onnx.load("model.onnx")
    weights = numpy_helper.to_array(model.graph.initializer[2])
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weights * 1.5, "w3"))
    onnx.save(model, "other.onnx")
    pair = ("compare", "model.onnx", "other.onnx")
    assert "0.5" in run(*pair).stdout
    run(*pair, "--tolerance", "0.6")
    assert "more than 0.4" in run(*pair, "--tolerance", "0.4", exit_code=1).stderr


def test_benchmark(place: Path) -> None:
    shutil.copy("model.onnx", "copy.onnx")
    measured = run_json("benchmark", "model.onnx", "copy.onnx", "--data", "data.npz")
    assert list(measured) == ["model.onnx", "copy.onnx"]
    assert all(m["min_ms"] <= m["median_ms"] <= m["max_ms"] for m in measured.values())


def test_targets() -> None:
    names = {target["name"] for target in run_json("targets")}  # type: ignore[index]
    assert {"x86-64-v3", "aarch64-cortex-a76"} <= names
    assert "aarch64-cortex-a76" in run("targets").stdout
