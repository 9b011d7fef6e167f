"""Options of quantization on the command line and in recipes, to the end of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from secateur.cli import main
from secateur.cli.step_options import WITHOUT_SAMPLES
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto, load, save
from secateur.passes.quantize import SCHEMES
from tests.passes.test_mixed_precision import IMAGES, fragile
from tests.passes.test_quantize_accurate import CONSTANTS, NETWORK
from tests.passes.test_quantize_integer import build


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model whose second convolution can't be rounded, and samples."""
    monkeypatch.chdir(tmp_path)
    save(fragile(), tmp_path / "m.onnx")
    save(from_proto(build(NETWORK, CONSTANTS, ["N", 3, 8, 8])), tmp_path / "n.onnx")
    np.savez("c.npz", x=IMAGES)
    labels = np.arange(256) % 5
    np.savez("l.npz", x=IMAGES, labels=labels)
    return tmp_path


def run(*words: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


FAST = ("--accuracy", "fast")


def test_a_limit_without_labels(place: Path) -> None:
    words = ("quantize", "m.onnx", "-o", "q.onnx", "--calibration", "c.npz", *FAST)
    text = run(*words, "--max-drop", "5%")
    assert "At most 5 % may be lost" in text
    assert re.search(r"% is with \d of \d operators in float; without them", text)
    assert "kept float, since the model loses too much with it" in text
    assert "alone, dB" in text
    report = json.loads(run(*words, "--max-drop", "0.05", "--json"))
    (passed,) = report["passes"]
    assert passed["statistics"]["max_drop"]["lost"] <= 0.05
    (stage,) = [s for s in report["stages"] if s["name"] == "quantized"]
    (output,) = stage["fidelity"]["outputs"]
    assert 1 - output["top1"] == pytest.approx(passed["statistics"]["max_drop"]["lost"])


def test_a_limit_with_labels(place: Path) -> None:
    words = ("quantize", "m.onnx", "-o", "q.onnx", "--calibration", "c.npz", *FAST)
    report = json.loads(run(*words, "--evaluation", "l.npz", "--max-drop", "0", "--json"))
    first, last = (stage["metrics"]["top1"] for stage in report["stages"])
    assert last >= first
    limit = report["passes"][0]["statistics"]["max_drop"]
    assert limit["lost"] == max(0.0, first - last) == 0.0
    run("verify", "q.onnx", "--against", "m.onnx", "--max-drop", "0", "--data", "l.npz")


def test_a_limit_that_only_the_float_model_meets(place: Path) -> None:
    words = ("quantize", "n.onnx", "-o", "q.onnx", "--calibration", "c.npz", *FAST)
    text = run(*words, "--max-drop", "0", "--only", "y")
    assert "Nothing was quantized" in text or "with none of" in text
    text = run(*words, "--max-drop", "1e", code=2)
    assert "is no share" in text


def test_a_limit_needs_something_to_judge_by(place: Path) -> None:
    words = ("quantize", "m.onnx", "-o", "q.onnx", "--scheme", "dynamic")
    text = run(*words, "--max-drop", "1%", code=1)
    assert "needs samples to judge by" in text
    text = run(*words, "--max-drop", "0", "--evaluation", "c.npz", code=1)
    assert "calibration samples are needed to tell which operators" in text
    text = run(*words, "--max-drop", "100%", "--evaluation", "c.npz")
    assert "with none of" in text
    Path("q.onnx").unlink()
    run(*words, "--max-drop", "1e", code=2)
    assert not Path("q.onnx").exists()


def test_schemes_without_samples(place: Path) -> None:
    assert {name for name, s in SCHEMES.items() if not s.needs_samples} == set(WITHOUT_SAMPLES)
    for scheme in WITHOUT_SAMPLES:
        run("quantize", "m.onnx", "-o", f"{scheme}.onnx", "--scheme", scheme)
    assert any(n.op_type == "ConvInteger" for n in load(place / "dynamic.onnx").graph.nodes)
    assert any(n.op_type == "Cast" for n in load(place / "float16.onnx").graph.nodes)
    text = run("quantize", "m.onnx", "-o", "q.onnx", code=2)
    assert "Missing option '--calibration'" in text
    text = run("quantize", "m.onnx", "-o", "q.onnx", "--scheme", "dynamic", "--symmetric", code=1)
    assert "symmetric means nothing for scheme 'dynamic'" in text


def test_operators_in_float32(place: Path) -> None:
    words = ("quantize", "n.onnx", "-o", "q.onnx", "--scheme", "float16", "--half-io")
    run(*words, "--float32", "LeakyRelu", "--float32", "Gemm")
    model = load(place / "q.onnx")
    infer_shapes(model)
    kinds = {n.op_type: n.outputs[0].dtype for n in model.graph.nodes if n.outputs[0] is not None}
    assert (kinds["LeakyRelu"], kinds["Gemm"]) == (1, 1)
    assert model.graph.inputs[0].dtype == model.graph.outputs[0].dtype == 10
    text = run(
        *("optimize", "n.onnx", "-o", "out", "--target", "native", "--quantize", "float16"),
        *("--half-io", "--calibration", "c.npz"),
    )
    assert "Latency" in text


def test_settings_of_nodes_and_only_some(place: Path) -> None:
    words = ("quantize", "n.onnx", "-o", "q.onnx", "--calibration", "c.npz", *FAST)
    report = json.loads(run(*words, "--only", "[aciy]", "--node", "y=float", "--json"))
    assert report["passes"][0]["statistics"]["quantized"] == {"Conv": 3}
    assert "matches no node" in run(*words, "--only", "z", code=1)
    assert "no setting" in run(*words, "--node", "a=zero", code=1)


def test_warnings_reach_the_user(place: Path) -> None:
    text = run("quantize", "m.onnx", "-o", "q.onnx", "--scheme", "float16")
    assert "Warning: quantized: without calibration samples" in text


OPTIMIZE = ("optimize", "n.onnx", "--target", "x86-64-v3", "--dry-run")


def test_what_no_step_touches(place: Path) -> None:
    words = (*OPTIMIZE, "-o", "out", "--quantize", "int8", "--calibration", "c.npz")
    assert "Conv 3" in run(*words) or "3 Conv" in run(*words)
    assert "2 Conv" in run(*words, "--ignore", "a")
    assert "2 Conv" in run(*words, "--ignore-quantize", "a")
    assert "ignore: 'z' matches no node" in run(*words, "--ignore", "z", code=1)
    assert "ignore-prune: nothing is pruned" in run(*words, "--ignore-prune", "a", code=1)
    text = run(*OPTIMIZE, "-o", "out", "--ignore", "a", code=1)
    assert "ignore: nothing is pruned or quantized" in text
    free = run(*OPTIMIZE, "-o", "out", "--ratio", "0.5")
    less = run(*OPTIMIZE, "-o", "out", "--ratio", "0.5", "--ignore", "a")
    assert less == run(*OPTIMIZE, "-o", "out", "--ratio", "0.5", "--ignore-prune", "a")
    assert less != free


def test_a_recipe_holds_all_of_them(place: Path) -> None:
    Path("r.toml").write_text(
        'version = 1\n[quantize]\nscheme = "int8"\nmax-drop = "2%"\nonly = ["*"]\n'
        'nodes = ["a=per-tensor"]\nignore = ["c"]\n[prune]\nratio = 0.3\nignore = ["i"]\n'
        '[run]\nignore = ["y"]\n[compile]\ntarget = "x86-64-v3"\n'
    )
    run("optimize", "n.onnx", "-o", "out", "--recipe", "r.toml", "--calibration", "c.npz")
    report: dict[str, Any] = json.loads(Path("out/report.json").read_text())
    assert report["options"]["quantization"]["max_drop"] == 0.02
    assert report["options"]["ignore"] == ["y"]
    assert report["options"]["ignore_prune"] == ["i"]
    texts = " ".join(p["text"] for p in report["passes"])
    assert "ignore=[y, i]" in texts
    assert "ignore=[y, c]" in texts
    page = Path("out/report.md").read_text()
    assert "At most 2 % may be lost" in page
    assert "alone, dB" in page
    assert "At most 2 % may be lost" in Path("out/report.html").read_text()
