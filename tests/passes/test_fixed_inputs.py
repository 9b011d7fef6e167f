"""Inputs that are fixed before anything else: their shapes, and those with default values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from secateur.cli import main
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.models.zoo import load_tiny, random_inputs
from secateur.passes.manager import OutputCheck, PassManager
from secateur.passes.simplify import FixInputShapes, FreezeDefaults, Simplify
from tests.passes.test_simplify_structure import parse


def test_fixed_input_shapes_make_chains_constant() -> None:
    model = load_tiny("yolo", "kept")
    feeds = random_inputs(model)
    shapes = tuple((name, array.shape) for name, array in feeds.items())
    PassManager([FixInputShapes(shapes), Simplify()], check=OutputCheck(feeds, 1e-5)).run(model)
    assert "Shape" not in {n.op_type for n in model.all_nodes()}
    assert all(isinstance(s, int) for v in model.graph.outputs for s in v.shape or ())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((("z", (1,)),), "no input 'z'; its inputs are w, x"),
        ((("x", (1,)),), "'x' has 2 axes, the shape given has 1"),
        ((("x", (2, 5)),), "size 5 given for axis 1, which is 4"),
        ((("x", (2, 4)), ("w", (3,))), "3 given for axis 0, which is 'N', which is 2 elsewhere"),
        ((("x", (-1, 4)),), "can't be negative"),
    ],
)  # fmt: skip
def test_input_shapes_that_do_not_fit(shapes: tuple, message: str) -> None:
    model = parse("""
graph g (%x: float[N, 4], %w: float[N]) -> (%y: float[N, 4]) {
  %y = Relu(%x)
}""")
    with pytest.raises(SecateurError, match=message):
        FixInputShapes(shapes).run(model)


def network_with_defaults(ir_version: int) -> onnx.ModelProto:
    """Two convolutions whose weights are listed among the inputs, image sizes open."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((16, 3, 3, 3), np.float32), "w1"),
        numpy_helper.from_array(rng.standard_normal((4, 16, 3, 3), np.float32), "w2"),
    ]
    declared = [("x", [1, 3, "h", "w"]), *((w.name, list(w.dims)) for w in weights)]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w2"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in declared],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    opset = helper.make_opsetid("", 9)
    return helper.make_model(graph, opset_imports=[opset], ir_version=ir_version)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(network_with_defaults(6), tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((4, 3, 12, 12), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code, result.output
    return result


def parameters(path: Path) -> int:
    return sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_frozen_defaults_leave_the_function_as_it_is(ir_version: int) -> None:
    model = from_proto(network_with_defaults(ir_version))
    x = np.random.default_rng(2).standard_normal((1, 3, 9, 8), np.float32)
    before = Session(model).run({"x": x})["y"]
    result = FreezeDefaults().run(model)
    assert result.changed == (ir_version >= 4)
    assert [v.name for v in model.graph.inputs if model.constant(v) is None] == ["x"]
    np.testing.assert_allclose(Session(model).run({"x": x})["y"], before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("command", [
    ["inspect", "model.onnx"],
    ["simplify", "model.onnx", "-o", "out.onnx"],
    ["prune", "model.onnx", "-o", "out.onnx", "--ratio", "0.5"],
])  # fmt: skip
def test_weights_that_callers_may_replace_are_told(place: Path, command: list[str]) -> None:
    told = "2 inputs have default values"
    assert told in run(*command).output
    assert told not in run(*command, "--freeze-defaults").output


def test_pruning_takes_frozen_defaults(place: Path) -> None:
    whole = parameters(place / "model.onnx")
    run("prune", "model.onnx", "-o", "kept.onnx", "--ratio", "0.5")
    assert parameters(place / "kept.onnx") == whole
    run("prune", "model.onnx", "-o", "cut.onnx", "--ratio", "0.5", "--freeze-defaults")
    assert parameters(place / "cut.onnx") == whole // 2
    error = run("prune", "model.onnx", "-o", "no.onnx", "--macs", "0.5", exit_code=1).output
    assert "2 inputs with default values stay whole (--freeze-defaults" in error


def test_quantization_takes_frozen_defaults_and_shapes(place: Path) -> None:
    fixed = ["--freeze-defaults", "--input-shape", "x=1x3x12x12"]
    run("quantize", "model.onnx", "-o", "int8.onnx", "--calibration", "data.npz", *fixed)
    nodes = onnx.load(place / "int8.onnx").graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) >= 2


def test_the_pipeline_freezes_defaults(place: Path) -> None:
    fixed = ["--freeze-defaults", "--input-shape", "x=1x3x12x12"]
    run("optimize", "model.onnx", "-o", "out", "--target", "native", "--macs", "0.6", *fixed)
    report = json.loads((place / "out" / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["pruned"]["macs"] <= 0.6 * stages["original"]["macs"]
    assert report["artifact"]["agreement"]["relative_difference"] < 1e-4


@pytest.mark.parametrize("command", [["compare"], ["benchmark"]])
def test_comparisons_take_shapes(place: Path, command: list[str]) -> None:
    run("simplify", "model.onnx", "-o", "simple.onnx")
    run(*command, "model.onnx", "simple.onnx", "--input-shape", "x=1x3x9x7")
    error = run(*command, "model.onnx", "simple.onnx", "--input-shape", "x=1x4x9x7", exit_code=1)
    assert "size 4 given for axis 1" in error.output
