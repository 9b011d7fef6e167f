"""Products by weights of a few bits in blocks, which stay packed in artifacts: MatMulNBits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_library, compile_model
from secateur.backends.tvm.emission import work
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto
from secateur.ir.tensor import Array

from ..c_library import models

DEPTH, COLUMNS = 200, 37


def packed(
    bits: int, block: int, *, zeros: bool = False, level: int = 0, depth: int = DEPTH,
    columns: int = COLUMNS, rows: int | str = 3, dtype: int = TensorProto.FLOAT,
) -> tuple[onnx.ModelProto, Array]:  # fmt: skip
    """A model, and the matrix of its weights as floats."""
    draw = np.random.default_rng(bits + block)
    blocks, each = -(-depth // block), 8 // bits
    numbers = draw.integers(0, 1 << bits, (columns, blocks, block), np.uint8)
    points = draw.integers(0, 1 << bits, (columns, blocks), np.uint8)
    scales = (draw.random((columns, blocks)) + 0.1).astype(helper.tensor_dtype_to_np_dtype(dtype))

    def joined(array: Array) -> Array:
        """The last axis as bytes, the first number lowest."""
        spare = [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % each)]
        parts = np.pad(array, spare).reshape(*array.shape[:-1], -1, each)
        return np.bitwise_or.reduce(parts << (np.arange(each, dtype=np.uint8) * bits), axis=-1)

    constants = {"b": joined(numbers), "scales": scales.reshape(-1)}
    if zeros:
        constants["zeros"] = joined(points).reshape(-1)
    constants["bias"] = draw.standard_normal(columns).astype(scales.dtype)
    inputs = ["x", "b", "scales", "zeros" if zeros else "", "", "bias"]
    sizes = {"K": depth, "N": columns, "bits": bits, "block_size": block, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", inputs, ["y"], "p", domain="com.microsoft", **sizes)
    graph = helper.make_graph(
        [node], "packed",
        [helper.make_tensor_value_info("x", dtype, [2, rows, depth])],
        [helper.make_tensor_value_info("y", dtype, [2, rows, columns])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    zero = points if zeros else np.full_like(points, 1 << (bits - 1))
    floats = (numbers.astype(np.float64) - zero[..., None]) * scales[..., None]
    matrix = floats.reshape(columns, -1)[:, :depth].T
    return helper.make_model(graph, opset_imports=opsets, ir_version=9), matrix


def rounded(x: Array, block: int) -> Array:
    """Activations as bytes with a scale for each block of a row, and back."""
    spare = np.pad(x, [(0, 0), (0, 0), (0, -x.shape[-1] % block)])
    parts = spare.reshape(*x.shape[:-1], -1, block).astype(np.float32)
    scale = np.abs(parts).max(-1, keepdims=True) * np.float32(1 / 127)
    found = np.round(parts * (1 / np.where(scale, scale, 1))).astype(np.float64) * scale
    return found.reshape(spare.shape)[..., : x.shape[-1]]


def sample(rows: int = 3, depth: int = DEPTH) -> Array:
    x = np.random.default_rng(0).standard_normal((2, rows, depth)).astype(np.float32)
    x[0, 0, :32] = 0
    return x


def expected(proto: onnx.ModelProto, matrix: Array, x: Array) -> Array:
    return x @ matrix + numpy_helper.to_array(proto.graph.initializer[-1]).astype(np.float64)


@pytest.mark.parametrize(
    "target", ["native", pytest.param("x86-64-v3", marks=pytest.mark.slow), "x86-64-v2"]
)
@pytest.mark.parametrize(("bits", "block"), [(2, 32), (4, 16), (4, 128), (8, 64)])
@pytest.mark.parametrize(("level", "zeros"), [(0, False), (0, True), (4, True)])
def test_results(
    tmp_path: Path, target: str, bits: int, block: int, level: int, zeros: bool
) -> None:
    proto, matrix = packed(bits, block, zeros=zeros, level=level)
    compile_model(from_proto(proto), parse_target(target), tmp_path / "m.so")
    x = sample()
    found = Runtime(tmp_path / "m.so").run({"x": x})["y"]
    want = expected(proto, matrix, rounded(x, block) if level == 4 else x)
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT8", "UINT8"])
@pytest.mark.parametrize("zeros", [False, True])
def test_constants_that_are_dequantized_in_blocks(tmp_path: Path, kind: str, zeros: bool) -> None:
    """The standard's way to write them: DequantizeLinear before MatMul."""
    draw, depth, block = np.random.default_rng(0), 192, 32
    dtype, bits = TensorProto.DataType.Value(kind), int(kind[-1])
    low, high = (0, 1 << bits) if kind[0] == "U" else (-(1 << (bits - 1)), 1 << (bits - 1))
    numbers = draw.integers(low, high, (depth, COLUMNS))
    points = draw.integers(low, high, (depth // block, COLUMNS))
    scales = draw.random((depth // block, COLUMNS)).astype(np.float32)
    constants = {"w": numbers, "z": points} if zeros else {"w": numbers}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"][: 2 + zeros], ["d"], axis=0,
                         block_size=block),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(scales, "s")]
        + [helper.make_tensor(n, dtype, a.shape, a.reshape(-1)) for n, a in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    report = compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    assert report.bytes < depth * COLUMNS * bits // 8 + 40_000
    x = sample(depth=depth)
    found = Runtime(tmp_path / "m.so").run({"x": x})["y"]
    offset = np.repeat(points, block, axis=0) if zeros else 0
    want = x @ ((numbers - offset) * np.repeat(scales, block, axis=0).astype(np.float64))
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())


def test_any_number_of_rows(tmp_path: Path) -> None:
    proto, matrix = packed(4, 32, zeros=True, rows="steps")
    compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    runtime = Runtime(tmp_path / "m.so", threads=2)
    for rows in (1, 2, 7, 40):
        want = expected(proto, matrix, sample(rows))
        found = runtime.run({"x": sample(rows)})["y"]
        np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize(("bits", "zeros", "threads"), [(2, True, 1), (4, False, 2), (8, True, 2)])
def test_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, zeros: bool, threads: int
) -> None:
    """For which columns are made floats once: no multiple of a tile's, and a short block."""
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)
    proto, matrix = packed(bits, 32, zeros=zeros, rows=11, depth=DEPTH - 3)
    x = sample(11, DEPTH - 3)
    for target in ("native", "x86-64-v3"):
        compile_model(from_proto(proto), parse_target(target), tmp_path / "m.so")
        found = Runtime(tmp_path / "m.so", threads).run({"x": x})["y"]
        want = expected(proto, matrix, x)
        np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())


def test_models_in_float16(tmp_path: Path) -> None:
    proto, matrix = packed(4, 32, dtype=TensorProto.FLOAT16)
    compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    x = sample().astype(np.float16)
    found = Runtime(tmp_path / "m.so").run({"x": x})["y"]
    want = expected(proto, matrix, x.astype(np.float64))
    np.testing.assert_allclose(found, want, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_artifacts_are_no_larger_than_files(tmp_path: Path, bits: int) -> None:
    """But for their code: weights, scales and zero points take as many bytes."""
    proto, _ = packed(bits, 32, zeros=True, depth=1024, columns=512)
    report = compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    assert report.bytes < len(proto.SerializeToString()) + 30_000


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64", "aarch64-cortex-a76"])
@pytest.mark.parametrize("bits", [4, 8])
def test_results_on_arm(tmp_path: Path, target: str, bits: int) -> None:
    """Under emulation, as floats and by dot products of bytes."""
    if not models.has("aarch64-linux-gnu-gcc", "qemu-aarch64"):
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-aarch64")
    proto, matrix = packed(bits, 32, zeros=True, level=4)
    options = LibraryOptions("net", threads="none")
    compile_library(from_proto(proto), parse_target(target), tmp_path, options)
    program = models.program(tmp_path, "net", "aarch64-linux-gnu-gcc", "-static")
    x = sample()
    done = models.run(program, [x], emulator=("qemu-aarch64", "-cpu", "max"))
    assert done.returncode == 0, (done.stdout, done.stderr)
    found: Any = np.fromfile(program.with_name("out"), np.float32).reshape(2, 3, COLUMNS)
    want = expected(proto, matrix, rounded(x, 32) if "-" in target else x)
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())
