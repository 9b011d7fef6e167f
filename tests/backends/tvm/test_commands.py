"""How to compile, said on the command line and to the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

pytest.importorskip("tvm")

import secateur
from secateur.backends.tvm.artifact.container import is_container
from secateur.backends.tvm.tuning import tune
from secateur.cli import main

from .graphs import Net


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that can be compiled and one that can't."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "TILES", 2)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(16, 8, 3, 3))
    onnx.save(net.model({"x": (1, 8, 9, 9)}, [value]), tmp_path / "conv.onnx")
    text = net.node("Cast", value, to=TensorProto.STRING)
    back = net.node("Cast", text, to=TensorProto.FLOAT)
    model = net.model({"x": (1, 8, 9, 9)}, [net.node("Relu", back)])
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, (1, 16, 7, 7))
    )
    onnx.save(model, tmp_path / "text.onnx")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_compile_keeps_kernels_in_a_cache(place: Path) -> None:
    for reused in (False, True):
        result = run(
            *("compile", "conv.onnx", "-o", "out", "--target", "native", "--cache", "c", "--json")
        )
        assert result.exit_code == 0, result.output
        compiler = json.loads(result.stdout)["compiler"]
        assert (compiler["reused"] == compiler["kernels"]) is reused
    before = sorted(place.joinpath("c").rglob("*"))
    result = run("compile", "text.onnx", "-o", "out", "--target", "native", "--no-cache")
    assert sorted(place.joinpath("c").rglob("*")) == before


def test_cache_and_no_cache_exclude_each_other(place: Path) -> None:
    arguments = ("compile", "conv.onnx", "-o", "out", "--target", "native")
    result = run(*arguments, "--cache", "c", "--no-cache")
    assert result.exit_code == 2
    assert "not both" in result.output


def test_compile_tunes(place: Path) -> None:
    arguments = ("compile", "conv.onnx", "-o", "out", "--target", "native", "--cache", "c")
    result = run(*arguments, "--tune", "1")
    assert result.exit_code == 0, result.output
    assert "1 kernels measured, 0 known before, 0 left for lack of time" in result.output
    assert (place / "c" / "tuning.json").exists()


def test_compile_leaves_nodes_to_onnx_runtime_if_asked(place: Path) -> None:
    arguments = ("compile", "text.onnx", "-o", "out", "--target", "native")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "(Cast)" in refused.output
    assert not (place / "out" / "model.so").exists()
    result = run(*arguments, "--fallback")
    assert result.exit_code == 0, result.output
    assert "Left to ONNX Runtime, 2 node(s)" in result.output
    assert is_container(place / "out" / "model.so")
    compared = run("compare", "text.onnx", "out/model.so")
    assert compared.exit_code == 0, compared.output


def test_the_pipeline_takes_the_same_options(place: Path) -> None:
    report = secateur.optimize(
        "text.onnx", "out", target="native", fallback=True, tune=1.0, cache="c", threads=2
    )
    assert report.artifact is not None
    assert report.artifact.ran
    assert len(report.artifact.compiler["left"]) == 2
    assert report.artifact.compiler["tuning"]["measured"] == 1
    text = (place / "out" / "report.md").read_text()
    assert "Left to ONNX Runtime, 2 node(s)" in text
    assert (place / "c" / "tuning.json").exists()


def test_tuning_for_another_machine_is_refused_at_once(place: Path) -> None:
    with pytest.raises(secateur.SecateurError, match="this machine can't run its code"):
        secateur.optimize("conv.onnx", "out", target="riscv64", tune=1.0)
    assert not (place / "out").exists()


def test_compile_in_16_bits(place: Path) -> None:
    arguments = ("compile", "conv.onnx", "-o", "out", "--target", "native", "--precision", "bf16")
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    precision = json.loads(result.stdout)["compiler"]["precision"]
    assert (precision["name"], precision["operators"], precision["float32"]) == ("bf16", 1, [])
    (output,) = precision["fidelity"]["outputs"]
    assert 40 < output["sqnr_db"] < 70
    result = run(*arguments)
    assert "bf16: 1 of 1 products and convolutions" in result.output
    assert "in bf16: SQNR" in result.output
    samples = np.full((3, 8, 9, 9), 1e-39, np.float32)
    np.savez("tiny.npz", x=samples)
    result = run(*arguments[:-1], "fp16", "--calibration", "tiny.npz")
    assert result.exit_code == 0, result.output
    assert "fp16: 0 of 1 products and convolutions, by what they do to 3 samples" in result.output
    assert "float32, since it loses too much" in result.output
    refused = run(*arguments[:-2], "--calibration", "tiny.npz")
    assert (refused.exit_code, "is for --precision" in refused.output) == (2, True)
    net = Net(None, 0)
    onnx.save(net.model({"x": (1, 8)}, [net.node("Relu", "x")]), place / "relu.onnx")
    refused = run("compile", "relu.onnx", *arguments[2:])
    assert refused.exit_code == 1
    assert "no product or convolution of float32" in refused.output


def test_what_16_bits_leave_out_is_listed(place: Path) -> None:
    """Operators in bodies, and levels without an instruction."""
    net = Net(None, 0)
    kind = TensorProto.FLOAT
    shape, weight = (1, 8), net.weight(8, 8)
    net.constants["limit"] = np.float32(0)
    bodies = []
    for name in ("then", "other"):
        inner = helper.make_node("MatMul", ["x", weight], [name], f"{name}_product")
        end = helper.make_tensor_value_info(name, kind, shape)
        bodies.append(helper.make_graph([inner], name, [], [end]))
    condition = net.node("Greater", net.node("ReduceMean", "x", keepdims=0), "limit")
    value = net.node("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    model = net.model({"x": shape}, [net.node("MatMul", value, net.weight(8, 4))])
    onnx.save(model, place / "body.onnx")
    target = "znver4,x86-64-v3"
    result = run("compile", "body.onnx", "-o", "out", "--target", target, "--precision", "bf16")
    assert result.exit_code == 0, result.output
    assert "bf16: 1 of 3 products" in result.output
    (line,) = [line for line in result.output.splitlines() if "since it lies in a body" in line]
    assert {word for word in line.split() if "_" in word} == {"then_product", "other_product"}
    assert "x86-64-v3: no instruction multiplies bf16" in result.output
    words = ("optimize", "body.onnx", "-o", "out", "--dry-run", "--target")
    assert "products in bf16" in run(*words, target, "--precision", "bf16").output
    refused = run(*words, "riscv64", "--precision", "fp16")
    assert (refused.exit_code, "no instructions that convert" in refused.output) == (1, True)


def test_the_pipeline_in_16_bits(place: Path) -> None:
    (place / "r.toml").write_text('version = 1\n[compile]\nprecision = "fp16"\n')
    words = ("optimize", "conv.onnx", "-o", "out", "--target", "native", "--recipe", "r.toml")
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "fp16: 1 of 1 products and convolutions" in result.output
    report = json.loads((place / "out" / "report.json").read_text())
    assert report["options"]["precision"] == "fp16"
    (artifact,) = [s for s in report["stages"] if s["name"] == "artifact"]
    (output,) = artifact["fidelity"]["outputs"]
    (simulated,) = report["artifact"]["compiler"]["precision"]["fidelity"]["outputs"]
    assert output["sqnr_db"] == pytest.approx(simulated["sqnr_db"], abs=2)
