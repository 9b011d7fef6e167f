"""Artifacts: cross-compilation, loading, input checks, dynamic batches, fallback regions."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm import targets
from secateur.backends.tvm.artifact.description import describe_artifact
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import can_run_here, parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import from_proto

from ..graphs import feeds, reference

NATIVE = parse_target("native")


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int | str, ...]],
    outputs: dict[str, tuple[int | str, ...]],
    constants: dict[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def small(batch: int | str = 1) -> onnx.ModelProto:
    weights = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    return model_of(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        {"x": (batch, 3, 8, 8)},
        {"y": (batch, 6, 8, 8)},
        {"w": weights},
    )


def compiled(model: onnx.ModelProto, folder: Path, target: str = "native") -> Runtime:
    compile_model(from_proto(model), parse_target(target), folder / "model.so")
    return Runtime(folder / "model.so")


@pytest.mark.parametrize(
    ("target", "machine"),
    [
        ("x86-64-v3", 62),
        ("aarch64", 183),
        ("aarch64-cortex-a76", 183),
        ("armv7-a", 40),
        ("riscv64", 243),
    ],
)
def test_every_architecture_links(tmp_path: Path, target: str, machine: int) -> None:
    path = tmp_path / "model.so"
    report = compile_model(from_proto(small()), parse_target(target), path)
    header = path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack("<H", header[18:20])[0] == machine
    assert report.bytes == path.stat().st_size
    described = describe_artifact(path)
    assert described is not None
    assert described["target"] == target
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(SecateurError, match=r"x86-64-v3.*aarch64-cortex-a76"):
        parse_target("pdp-11")


def test_native_runs_here() -> None:
    assert can_run_here(NATIVE)
    assert not can_run_here(
        targets.targets()["riscv64" if NATIVE.machine != "riscv64" else "x86-64-v2"]
    )


def test_importing_targets_does_not_import_tvm() -> None:
    code = "import sys, secateur.backends.tvm.targets; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_replaced_artifact_is_not_the_old_one(tmp_path: Path) -> None:
    inputs = {"x": np.ones((1, 4), np.float32)}
    for factor in (2.0, 3.0):
        model = model_of(
            [helper.make_node("Mul", ["x", "k"], ["y"])],
            {"x": (1, 4)},
            {"y": (1, 4)},
            {"k": np.float32(factor)},
        )
        assert compiled(model, tmp_path).run(inputs)["y"][0, 0] == factor


def test_symbolic_batch_takes_any_number_of_samples(tmp_path: Path) -> None:
    model = small("N")
    runtime = compiled(model, tmp_path)
    assert runtime.inputs["x"] == ("float32", (None, 3, 8, 8))
    x = np.random.default_rng(1).standard_normal((5, 3, 8, 8)).astype(np.float32)
    expected = reference(model, {"x": x})["y"]
    np.testing.assert_allclose(runtime.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"z": np.zeros(1, np.float32)}, "unknown input 'z'"),
        ({"x": np.zeros((1, 3, 8, 8))}, "float64 given, float32 expected"),
        ({"x": np.zeros((1, 3, 8, 9), np.float32)}, "shape .* expected"),
        ({"x": np.zeros((2, 3, 8, 8), np.float32)}, "shape .* expected"),
    ],
)
def test_wrong_inputs_are_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    runtime = compiled(small(), tmp_path)
    with pytest.raises(SecateurError, match=message):
        runtime.run(given)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="no such file"):
        Runtime(tmp_path / "missing.so")
    (tmp_path / "text.so").write_text("not a shared object")
    with pytest.raises(SecateurError, match="not a model compiled for this machine"):
        Runtime(tmp_path / "text.so")


def test_foreign_artifact_is_refused(tmp_path: Path) -> None:
    compile_model(from_proto(small()), parse_target("riscv64"), tmp_path / "model.so")
    with pytest.raises(SecateurError, match="not a model compiled for this machine"):
        Runtime(tmp_path / "model.so")


def test_code_for_a_better_cpu_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_model(from_proto(small()), parse_target("x86-64-v3"), tmp_path / "model.so")
    monkeypatch.setattr(targets, "_host_flags", lambda: targets._V2)
    with pytest.raises(SecateurError, match=r"x86-64-v3, .* lacks .*avx2, .*bmi2, .*f16c"):
        Runtime(tmp_path / "model.so")


def test_unsupported_operator_is_named(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("RandomNormalLike", ["x"], ["y"], name="noise")],
        {"x": (2, 3)},
        {"y": (2, 3)},
    )
    with pytest.raises(UnsupportedError, match=r"'noise' \(RandomNormalLike\)"):
        compile_model(from_proto(model), NATIVE, tmp_path / "model.so")
    assert not list(tmp_path.iterdir())


def test_dynamic_spatial_size_stays_open(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 3, "H", 8)}, {"y": (1, 3, "H", 8)}
    )
    compile_model(from_proto(model), NATIVE, tmp_path / "model.so")
    runtime = Runtime(tmp_path / "model.so")
    for height in (1, 5, 40):
        x = np.random.default_rng(0).standard_normal((1, 3, height, 8)).astype(np.float32)
        np.testing.assert_array_equal(runtime.run({"x": x})["y"], np.maximum(x, 0))


def test_other_operators_go_through_tvm(tmp_path: Path) -> None:
    """Softmax, Gather and LayerNormalization between operators with kernels of our own."""
    random = np.random.default_rng(3)
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("LayerNormalization", ["a", "s", "b"], ["n"], axis=-1),
            helper.make_node("Gather", ["n", "i"], ["g"], axis=1),
            helper.make_node("Softmax", ["g"], ["p"], axis=-1),
            helper.make_node("Add", ["p", "g"], ["y"]),
        ],
        {"x": (2, 5, 7)},
        {"y": (2, 3, 9)},
        {
            "w": random.standard_normal((7, 9)).astype(np.float32),
            "s": random.standard_normal(9).astype(np.float32),
            "b": random.standard_normal(9).astype(np.float32),
            "i": np.array([4, 0, 2]),
        },
    )
    inputs = feeds(model)
    expected = reference(model, inputs)["y"]
    found = compiled(model, tmp_path).run(inputs)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_outputs_that_are_inputs_or_constants(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["k"], ["z"])],
        {"x": (2, 3)},
        {"y": (2, 3), "z": (2,)},
        {"k": np.array([1.0, 2.0], np.float32)},
    )
    inputs = feeds(model)
    found = compiled(model, tmp_path).run(inputs)
    np.testing.assert_array_equal(found["y"], inputs["x"])
    np.testing.assert_array_equal(found["z"], [1.0, 2.0])


def test_compiling_leaves_the_model_alone(tmp_path: Path) -> None:
    model = from_proto(small("N"))
    before = [repr(n) for n in model.graph.nodes], model.graph.inputs[0].shape
    compile_model(model, NATIVE, tmp_path / "model.so")
    assert ([repr(n) for n in model.graph.nodes], model.graph.inputs[0].shape) == before


def test_empty_tensors_and_outputs_that_are_inputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["image"], pads=[1, 1, 1, 1]),
        helper.make_node("Slice", ["image", "zero", "zero", "one"], ["nothing"]),
        helper.make_node("Concat", ["image", "nothing", "x"], ["joined"], axis=1),
        helper.make_node("Slice", ["image", "zero", "zero", "last"], ["thin"]),
        helper.make_node("Relu", ["thin"], ["relu"]),
        helper.make_node("Concat", ["relu", "image"], ["beside"], axis=3),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Reshape", ["joined", "flat"], ["row"]),
    ]
    weights = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    numbers = {"zero": [0], "one": [1], "last": [3], "flat": [1, -1]}
    constants = {"w": weights, **{n: np.asarray(v, np.int64) for n, v in numbers.items()}}
    shapes = {"joined": (1, 19, 5, 5), "nothing": (1, 0, 5, 5), "same": (1, 3, 5, 5)}
    shapes |= {"image": (1, 16, 5, 5), "row": (1, 475), "beside": (1, 16, 5, 5)}
    model = model_of(nodes, {"x": (1, 3, 5, 5)}, shapes, constants)
    inputs = feeds(model)
    compile_model(from_proto(model), NATIVE, tmp_path / "model.so")
    found = Runtime(tmp_path / "model.so").run(inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)
        assert found[name].shape == array.shape
    assert not np.shares_memory(found["same"], inputs["x"])
