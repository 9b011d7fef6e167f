"""What people expect of a command line: logs, quiet, completion, near names, dry runs."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from secateur.checking.doctor import examine
from secateur.cli import COMMANDS, main
from secateur.cli.console import StageProgress
from secateur.ir.advance import advanced, listening
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import load
from secateur.passes.base import Context
from secateur.passes.prune import PruneChannels
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.simplify import CutOutputs
from secateur.pipeline.transform import quantize_file

MODEL = """<ir_version: 9, opset_import: ["": 18]>
agraph (float[n, 4] x, float[n, 2] unused) => (float[n, 3] y, float[n, 3] z) {
[first] a = MatMul(x, v)
[act] b = Relu(a)
[second] c = MatMul(b, w)
[exp] y = Exp(c)
[other] d = Concat<axis = 1>(c, unused)
[cut] z = Slice(d, starts, ends, axes)
}"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model, rng = onnx.parser.parse_model(MODEL), np.random.default_rng(1)
    arrays: dict[str, Any] = {
        "v": rng.standard_normal((4, 8), np.float32),
        "w": rng.standard_normal((8, 3), np.float32),
        "starts": np.array([0]),
        "ends": np.array([3]),
        "axes": np.array([1]),
    }
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    x, unused = rng.random((8, 4), np.float32), rng.random((8, 2), np.float32)
    np.savez(tmp_path / "c.npz", x=x, unused=unused)
    np.savez(tmp_path / "one.npz", x=x)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == code, result.output
    return result


@pytest.mark.usefixtures("place")
def test_a_log_file_has_decisions_with_time_and_level(place: Path) -> None:
    for _ in range(2):
        text = run("--log-file", "log", "simplify", "m.onnx", "-o", "s.onnx").output
    assert "secateur." not in text
    lines = (place / "log").read_text().splitlines()
    assert lines
    assert len(lines) % 2 == 0  # appended
    assert all(" DEBUG secateur." in line or " INFO secateur." in line for line in lines)
    assert "Error: " in run("--log-file", "no/such/log", "targets", code=1).output


@pytest.mark.usefixtures("place")
def test_quiet_prints_errors_and_json_only() -> None:
    assert run("-q", "inspect", "m.onnx").output == ""
    assert run("--quiet", "simplify", "m.onnx", "-o", "s.onnx").output == ""
    assert json.loads(run("-q", "inspect", "m.onnx", "--json").output)["nodes"] == 6
    assert run("-q", "inspect", "gone.onnx", code=1).output.startswith("Error: ")
    run("-q", "-v", "targets", code=2)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = run("completion", shell).output
    assert "_SECATEUR_COMPLETE" in script
    if shell == "bash":
        words = "secateur quan"
        environment = {**os.environ, "_SECATEUR_COMPLETE": "bash_complete", "COMP_WORDS": words}
        found = subprocess.run(
            [sys.executable, "-c", "from secateur.cli import main; main(prog_name='secateur')"],
            env={**environment, "COMP_CWORD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.stdout.strip() == "plain,quantize"


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("optimise",), "Did you mean optimize?"),
        (("quantise", "x"), "Did you mean quantize?"),
        (("optimize", "--evalation", "x"), "--evaluation"),
        (("xyz",), "No such command 'xyz'."),
        (("x\x1b[31m",), "\\x1b[31m"),
    ],
)
def test_near_names(words: tuple[str, ...], near: str) -> None:
    assert near in run(*words, code=2).output


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NO_COLOR", "1"), ("FORCE_COLOR", "")):
        monkeypatch.setenv(name, value)
    assert "\x1b" not in run("targets").output


def test_the_doctor_names_versions_and_no_people() -> None:
    text = run("doctor").output
    assert "onnxruntime: " in text
    facts = examine()
    assert {"secateur", "machine", "extras", "tools", "targets", "cache"} == set(facts)
    assert json.loads(run("doctor", "--json").output).keys() == facts.keys()


@pytest.mark.usefixtures("place")
def test_a_dry_run_writes_nothing(place: Path) -> None:
    before = sorted(place.iterdir())
    words = ("optimize", "m.onnx", "-o", "out", "--target", "x86-64-v3", "--dry-run")
    text = run(*words, "--ratio", "0.5", "--quantize", "int8", "--calibration", "c.npz").output
    assert sorted(place.iterdir()) == before
    assert "calibration: 8 samples." in text
    assert "groups of channels can lose some" in text
    assert "2 MatMul" in text
    assert "every node can be" in text
    assert "needs --calibration" in run(*words, "--quantize", "int8", code=2).output
    assert "gone.npz" in run(*words, "--calibration", "gone.npz", code=1).output
    assert json.loads(run(*words, "--json").output)["plan"]


@pytest.mark.usefixtures("place")
def test_a_dry_run_honours_every_option(place: Path) -> None:
    """Each of these changes what a run does or refuses, so that it changes what is said."""
    words = ("optimize", "m.onnx", "-o", "out", "--target", "x86-64-v3", "--dry-run")
    calibrated = ("--calibration", "c.npz")
    plain = run(*words).output
    assert "0 kernels" not in plain
    shown = {
        ("--size", "n=1..64"): "for sizes n=1..64: every node can be",
        ("--small",): "for few bytes",
        ("--copies", "2"): "copies of up to 2 times weights",
        ("--precision", "bf16"): "products in bf16",
        ("--declared-sizes",): "for declared sizes",
        ("--format", "library", "--name", "net"): "net.h, net.hpp",
        ("--threads", "2"): "2 threads",
        ("--ratio", "0.5", *calibrated): "recover: layers make up",
        ("--ratio", "0.5", *calibrated, "--rematch"): "means and deviations only",
        ("--ratio", "0.5", *calibrated, "--no-recovery"): "asked not to be",
        ("--macs", "0.5", "--align", "1"): "MACs and",
        ("--quantize", "int8", *calibrated, "--accuracy", "best"): "accuracy best",
        ("--quantize", "int8", *calibrated, "--max-drop", "1%"): "losing 1.00%",
        ("--input-shape", "x=3x4"): "every node can be",
        ("--save-recipe", "r.toml", "--dump", "d"): "r.toml, d.",
        ("--outputs", "b"): "3 nodes" if "3 nodes" in plain else "nodes",
    }
    for options, text in shown.items():
        assert text in run(*words, *options).output, options
    refused = {
        ("--size", "m=1..64"): "m",
        ("--macs", "0.0001"): "leaves",
        ("--ratio", "0.5", "--limit", "nothing=0.5.."): "no group has a name",
        ("--ratio", "0.5", "--importance", "l3"): "unknown importance",
        ("--ratio", "0.5", "--ignore", "nothing"): "matches no node",
        ("--metric", "top9"): "top9",
        ("--metric", "top1"): "give --evaluation",
    }
    for options, text in refused.items():
        assert text in run(*words, *options, code=1).output, options
    (place / "out").write_text("a file")
    assert "can't write here" in run(*words, code=1).output
    assert sorted(p.name for p in place.iterdir()) == ["c.npz", "m.onnx", "one.npz", "out"]


@pytest.mark.usefixtures("place")
def test_models_are_dumped_after_each_pass(place: Path) -> None:
    words = ("prune", "m.onnx", "-o", "p.onnx", "--ratio", "0.5", "--calibration", "c.npz")
    run(*words, "--dump", "d")
    names = sorted(path.name for path in (place / "d").iterdir())
    assert names == ["00-input.txt", "01-prune-channels.txt", "02-recover.txt"]
    before, after = ((place / "d" / name).read_text() for name in names[:2])
    assert "const %v: float[4, 8]" in before
    assert "const %v: float[4, 4]" in after
    words = ("-o", "out", "--target", "x86-64-v3", "--dump")
    text = run("optimize", "m.onnx", *words, "d", code=1).output
    assert "has files already" in text
    run("optimize", "m.onnx", *words, "e", "--quantize", "dynamic")
    names = sorted(path.name for path in (place / "e").iterdir())
    assert names == [
        "00-input.txt",
        "01-simplify.txt",
        "02-quantize.txt",
        "03-prepared.txt",
        "plan.txt",
    ]
    assert "output y = " in (place / "e" / "plan.txt").read_text()


def test_long_work_says_how_far_it_has_come(place: Path) -> None:
    heard: list[tuple[int, int]] = []
    with listening(lambda done, total: heard.append((done, total))):
        assert list(advanced("abc", 3)) == ["a", "b", "c"]
        assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
        heard.clear()
        options = {"accuracy": "fast"}
        quantize_file(place / "m.onnx", place / "q.onnx", options, data=str(place / "c.npz"))
    assert all(0 <= done <= total for done, total in heard)
    starts = [k for k, (done, _) in enumerate(heard) if done == 0]
    assert len(starts) >= 2  # calibration, and evaluation
    for first, last in itertools.pairwise([*starts, len(heard)]):
        assert [done for done, _ in heard[first:last]] == [*range(heard[first][1] + 1)]
    heard.clear()
    list(advanced("abc", 3))
    assert not heard


def test_a_bar_knows_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with StageProgress() as progress, progress.stage("measure\x1b[31m"):
        for index, _ in enumerate(advanced(range(10), 10)):
            if index == 5:
                (task,) = progress._progress.tasks
                assert (task.completed, task.total) == (5, 10)
                progress._progress.refresh()
    assert "measure\\x1b[31m" in stream.getvalue()
    assert "\u2501" in stream.getvalue()  # a part of the bar


@pytest.mark.usefixtures("place")
def test_verbose_says_what_ran_and_more_of_it_why() -> None:
    words = ("quantize", "m.onnx", "-o", "q.onnx", "--calibration", "c.npz", "--accuracy", "fast")
    once, twice = run("-v", *words).stderr, run("-vv", *words, "--ignore", "first").stderr
    assert "secateur.passes.manager: quantize" in once
    assert "changed the model" in once
    assert "left alone" not in once
    assert "left alone: first (MatMul): kept float as asked" in twice
    assert "secateur." not in run(*words).stderr
    assert (
        "secateur.passes.manager: remove-dead-nodes"
        in run("-v", "print", "m.onnx", "--passes", "remove-dead-nodes").stderr
    )


# --- options of passes -------------------------------------------------------------------


def kinds(path: Path) -> dict[str, Any]:
    """Types of integer constants by name's end, and which operators read integers."""
    model = load(path)
    return {
        "zero points": {
            node.inputs[2].dtype  # type: ignore[union-attr]
            for node in model.graph.nodes
            if node.op_type == "QuantizeLinear"
        },
        "scales": sorted(
            value.const.numpy().size
            for node in model.graph.nodes
            if node.op_type == "DequantizeLinear"
            and node.inputs[0] is not None
            and node.inputs[0].const is not None
            for value in [node.inputs[1]]
            if value is not None and value.const is not None
        ),
        "weights": max(
            int(abs(value.const.numpy().astype(int)).max())
            for value in model.graph.initializers.values()
            if value.const is not None and value.const.numpy().dtype == np.int8
            if value.const.numpy().size > 8
        ),
        "integer": [n.label for n in model.graph.nodes if n.op_type == "MatMul"],
    }


@pytest.mark.usefixtures("place")
def test_options_of_quantization(place: Path) -> None:
    words = ("quantize", "m.onnx", "-o", "q.onnx", "--calibration", "c.npz")
    run(*words)
    plain = kinds(place / "q.onnx")
    run(*words, "--activation", "int8")
    assert kinds(place / "q.onnx")["zero points"] != plain["zero points"]
    run(*words, "--reduce-range")
    assert kinds(place / "q.onnx")["weights"] <= 64 < plain["weights"]
    run(*words, "--per-tensor")
    assert max(kinds(place / "q.onnx")["scales"]) == 1 < max(plain["scales"])
    text = run(*words, "--ignore", "sec*").output
    assert "Left alone: kept float as asked: second (MatMul)" in text
    text = run(*words, "--ignore", "v").output
    assert "kept float as asked: first (MatMul)" in text
    text = run(*words, "--ignore", "secnd", code=1).output
    assert "'secnd' matches no node and no weight; the nearest is 'second'" in text
    words = ("optimize", "m.onnx", "-o", "o", "--target", "x86-64-v3")
    assert "--reduce-range needs --quantize" in run(*words, "--reduce-range", code=2).output


@pytest.mark.usefixtures("place")
def test_a_pattern_that_matches_nothing_is_an_error(place: Path) -> None:
    words = ("prune", "m.onnx", "-o", "p.onnx", "--ratio", "0.5")
    text = run(*words, "--ignore", "frist", code=1).output
    assert "'frist' matches no node and no weight; the nearest is 'first'" in text
    assert not (place / "p.onnx").exists()
    with pytest.raises(SecateurError, match="nothing"):
        PruneChannels(ratio=0.5, ignore=("nothing*",)).run(load(place / "m.onnx"))
    data = dict(np.load(place / "c.npz"))
    with pytest.raises(SecateurError, match="nothing"):
        QuantizeStatic(ignore=("nothing*",)).run(load(place / "m.onnx"), Context(data))


# --- where a model ends ------------------------------------------------------------------


def cut(place: Path, *names: str) -> Model:
    model = load(place / "m.onnx")
    CutOutputs(names).run(model)
    return model


def test_a_model_ends_where_it_is_cut(place: Path) -> None:
    model = cut(place, "b")
    assert [v.name for v in model.graph.outputs] == ["b"]
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert [n.label for n in model.graph.nodes] == ["first", "act"]
    assert set(model.graph.initializers) == {"v"}
    assert [v.name for v in cut(place, "second", "a").graph.outputs] == ["c", "a"]
    assert [v.name for v in cut(place, "y", "z").graph.outputs] == ["y", "z"]
    with pytest.raises(SecateurError, match="called 'secnd'"):
        cut(place, "secnd")


@pytest.mark.usefixtures("place")
def test_every_command_cuts() -> None:
    text = run("inspect", "m.onnx", "--outputs", "act").output
    assert "output b: float" in text
    assert "output y" not in text
    words = ("--outputs", "second")
    run("quantize", "m.onnx", "-o", "q.onnx", "--calibration", "one.npz", *words)
    assert [v.name for v in load("q.onnx").graph.outputs] == ["c"]
    text = run("compare", "m.onnx", "m.onnx", *words).output
    assert "100.00 % identical" in text
    assert "no node and no value" in run("inspect", "m.onnx", "--outputs", "q", code=1).output


def test_all_commands_have_a_line() -> None:
    assert all(len(text) < 80 for text in COMMANDS.values())


@pytest.mark.usefixtures("place")
def test_print_shows_a_model_as_other_commands_read_it() -> None:
    """Up to an output that is named, with the shape of an input that is given."""
    words = ["print", "m.onnx", "--outputs", "b", "--input-shape", "x=3x4"]
    for more in ([], ["--node", "act"], ["--passes", "fold-constants"]):
        result = CliRunner().invoke(main, [*words, *more])
        assert result.exit_code == 0, result.output
        assert "Exp" not in result.output
    assert "(%x: float[3, 4]) -> (%b" in CliRunner().invoke(main, words).output


def test_a_dry_run_names_the_files_of_a_library_that_a_run_writes(place: Path) -> None:
    words = ["optimize", "m.onnx", "-o", "o", "--target", "x86-64-v2", "--format", "library"]
    planned = run(*words, "--dry-run").output.splitlines()[-1]
    run(*words)
    held = planned.removeprefix("o would hold ").removesuffix(".").split(", ")
    assert sorted(held) == sorted(path.name for path in (place / "o").iterdir())


@pytest.mark.parametrize(
    "words", ["quantize m.onnx -o q.onnx --calibration c.npz", "simplify m.onnx -o s.onnx"]
)
def test_what_is_decided_is_said_on_stderr(place: Path, words: str) -> None:
    """Also while stages run, when what native code writes there is dropped."""
    command = [sys.executable, "-m", "secateur", "-vv", *words.split()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, *_ = words.split()
    assert f"secateur.passes.manager: {first}: " in ran.stderr


def test_a_log_file_that_cannot_be_written_is_one_line(place: Path) -> None:
    result = run("--log-file", "gone/log.txt", "inspect", "m.onnx", code=1)
    assert result.output == "Error: {}: No such file or directory\n".format(place / "gone/log.txt")
