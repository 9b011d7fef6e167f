"""Products and convolutions in bfloat16 and float16, against ONNX Runtime on rounded operands."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_library, compile_model, prepared_model
from secateur.backends.tvm.emission.halves import Halves
from secateur.backends.tvm.targets import for_halves, multiplies_halves, parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.tensor import Array
from secateur.passes.halves import half_errors

from ..c_library import models
from .graphs import Net

TYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

Build = Callable[[Net], str]


def convolution(inputs: int, outputs: int, *kernel: int, **attributes: Any) -> Build:
    def build(net: Net) -> str:
        weight = net.weight(outputs, inputs // attributes.get("group", 1), *kernel)
        return net.node("Conv", "x", weight, net.weight(outputs), **attributes)

    return build


def transposed(net: Net) -> str:
    return net.node("ConvTranspose", "x", net.weight(6, 5, 3, 3), strides=[2, 2])


def matrix(depth: int, columns: int) -> Build:
    return lambda net: net.node("MatMul", "x", net.weight(depth, columns))


def product(net: Net) -> str:
    return net.node("MatMul", "x", "y")


def turned(net: Net) -> str:
    return net.node("MatMul", "x", net.node("Transpose", "y", perm=[0, 2, 1]))


CASES: dict[str, tuple[Build, dict[str, tuple[int, ...]]]] = {
    "three channels": (convolution(3, 16, 3, 3, pads=[1] * 4), {"x": (1, 3, 9, 11)}),
    "one channel": (convolution(1, 8, 3, 3, strides=[2, 2]), {"x": (1, 1, 9, 11)}),
    "odd channels": (convolution(5, 7, 3, 3), {"x": (2, 5, 9, 11)}),
    "pointwise": (convolution(16, 24, 1, 1), {"x": (1, 16, 9, 11)}),
    "groups": (convolution(32, 16, 3, 3, group=2), {"x": (1, 32, 8, 8)}),
    "one axis": (convolution(6, 8, 3), {"x": (1, 6, 20)}),
    "transposed": (transposed, {"x": (1, 6, 5, 5)}),
    "odd depth": (matrix(33, 20), {"x": (5, 33)}),
    "depth of one": (matrix(1, 20), {"x": (5, 1)}),
    "one row": (matrix(64, 48), {"x": (1, 64)}),
    "product": (product, {"x": (2, 7, 33), "y": (2, 33, 20)}),
    "product of a transposition": (turned, {"x": (2, 7, 34), "y": (2, 40, 34)}),
    "small product of a transposition": (turned, {"x": (2, 7, 5), "y": (2, 3, 5)}),
}


def rounded(array: Array, dtype: str) -> Array:
    return array.astype(TYPES[dtype]).astype(np.float32)


def samples(inputs: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    random = np.random.default_rng(1)
    return {n: random.standard_normal(s).astype(np.float32) for n, s in inputs.items()}


def expected(build: Build, inputs: dict[str, tuple[int, ...]], dtype: str) -> Array:
    """By ONNX Runtime, of operands that NumPy has rounded; biases are not."""
    net = Net(None, 0)
    out = build(net)
    net.constants = {n: rounded(a, dtype) if a.ndim > 1 else a for n, a in net.constants.items()}
    feeds = {n: rounded(a, dtype) for n, a in samples(inputs).items()}
    return Session(from_proto(net.model(inputs, [out]))).run(feeds)[out]


def model(build: Build, inputs: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    net = Net(None, 0)
    return net.model(inputs, [build(net)])


def halves(proto: onnx.ModelProto, dtype: str) -> Halves:
    return Halves(dtype, {node.name for node in proto.graph.node})


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, marks=[pytest.mark.slow] if (i + k) % 2 else [])
        for i, case in enumerate(CASES)
        for k, dtype in enumerate(TYPES)
    ],
)
def test_operands_are_rounded_and_sums_are_not(tmp_path: Path, case: str, dtype: str) -> None:
    build, inputs = CASES[case]
    proto = model(build, inputs)
    path = tmp_path / "m.so"
    target = for_halves(parse_target("native"), dtype)
    report = compile_model(from_proto(proto), target, path, halves=halves(proto, dtype))
    assert not report.float32
    found = next(iter(Runtime(path).run(samples(inputs)).values()))
    want = expected(build, inputs, dtype)
    np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())
    exact = next(iter(Session(from_proto(proto)).run(samples(inputs)).values()))
    assert np.abs(found - exact).max() > 1e-4 * np.abs(exact).max(), "nothing was rounded"


@pytest.mark.parametrize(
    ("target", "dtype", "instruction"),
    [
        ("znver4", "bfloat16", "vdpbf16ps"),
        ("cooperlake", "bfloat16", "vdpbf16ps"),
        ("sapphirerapids", "bfloat16", "vdpbf16ps"),
        ("aarch64-neoverse-v1", "bfloat16", "bfdot"),
        ("aarch64-neoverse-v2", "float16", "fmlal2"),
    ],
)
def test_instructions(tmp_path: Path, target: str, dtype: str, instruction: str) -> None:
    proto = model(*CASES["three channels"])
    path = tmp_path / "m.so"
    compile_model(from_proto(proto), parse_target(target), path, halves=halves(proto, dtype))
    assert multiplies_halves(for_halves(parse_target(target), dtype), dtype)
    objdump = shutil.which("llvm-objdump")
    if objdump is None:
        pytest.skip("needs llvm-objdump")
    flags = ["-d", "--mattr=+bf16,+fp16fml,+avx512bf16"]
    done = subprocess.run([objdump, *flags, path], capture_output=True, text=True, check=True)
    assert instruction in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        ("aarch64", "bfloat16"),
        ("aarch64", "float16"),
        ("aarch64-neoverse-v1", "bfloat16"),
        ("aarch64-neoverse-v2", "float16"),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_results_on_arm(tmp_path: Path, target: str, dtype: str, case: str) -> None:
    """Under emulation: by bfdot, which adds without denormals, by fmlal, and without either."""
    if not models.has("aarch64-linux-gnu-gcc", "qemu-aarch64"):
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-aarch64")
    build, inputs = CASES[case]
    proto = model(build, inputs)
    options = LibraryOptions("net", threads="none")
    chosen = halves(proto, dtype)
    compile_library(from_proto(proto), parse_target(target), tmp_path, options, halves=chosen)
    program = models.program(tmp_path, "net", "aarch64-linux-gnu-gcc", "-static")
    given = [*samples(inputs).values()]
    done = models.run(program, given, emulator=("qemu-aarch64", "-cpu", "max"))
    assert done.returncode == 0, (done.stdout, done.stderr)
    found = np.fromfile(program.with_name("out"), np.float32)
    want = expected(build, inputs, dtype)
    np.testing.assert_allclose(found, want.reshape(-1), atol=1e-5 * np.abs(want).max())
    if target != "aarch64":
        done = models.run(program, given, emulator=("qemu-aarch64", "-cpu", "cortex-a72"))
        assert done.returncode, "a CPU without the instruction is not refused"


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "aarch64", "armv7-a", "riscv64"])
def test_other_targets_compile_bfloat(tmp_path: Path, target: str) -> None:
    proto = model(*CASES["three channels"])
    halves_ = halves(proto, "bfloat16")
    compile_model(from_proto(proto), parse_target(target), tmp_path / "m.so", halves=halves_)


@pytest.mark.parametrize("target", ["x86-64-v2", "armv7-a", "riscv64"])
def test_float16_needs_conversions(tmp_path: Path, target: str) -> None:
    proto = model(*CASES["one row"])
    with pytest.raises(SecateurError, match="no instructions that convert from float16"):
        compile_model(
            from_proto(proto), parse_target(target), tmp_path / "m", halves=halves(proto, "float16")
        )
    assert not (tmp_path / "m").exists()


def residual(net: Net) -> str:
    first = net.node("Conv", "x", net.weight(16, 16, 3, 3), pads=[1] * 4)
    first = net.node("Relu", first)
    second = net.node("Conv", first, net.weight(16, 16, 3, 3), pads=[1] * 4)
    return net.node("Conv", net.node("Add", first, second), net.weight(8, 16, 1, 1))


def test_what_is_multiplied_is_stored_in_16_bits(tmp_path: Path) -> None:
    """By the operation before, and read so by an addition, too: no tensor is stored twice."""
    proto = model(residual, {"x": (1, 16, 8, 8)})
    path, text = tmp_path / "m.so", tmp_path / "plan"
    compile_model(
        from_proto(proto),
        parse_target("x86-64-v3"),
        path,
        halves=halves(proto, "bfloat16"),
        dump_plan=text,
    )
    lines = [line for line in text.read_text().splitlines() if line.startswith("%")]
    stored = [line.split(": ")[1].split("[")[0] for line in lines]
    assert stored == ["uint16", "uint16", "uint16", "float32"]


def test_nan_and_extremes_are_kept(tmp_path: Path) -> None:
    """As NumPy rounds them: NaN of any bits stays one, and what lies beyond becomes infinite."""
    proto = model(matrix(4, 4), {"x": (1, 4)})
    proto.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), proto.graph.initializer[0].name)
    )
    path = tmp_path / "m.so"
    target = for_halves(parse_target("native"), "bfloat16")
    compile_model(from_proto(proto), target, path, halves=halves(proto, "bfloat16"))
    runtime = Runtime(path)
    patterns = (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x80000001)
    for bits in patterns:
        value = np.array([bits], np.uint32).view(np.float32)
        x = np.zeros((1, 4), np.float32)
        x[0, 0] = value[0]
        found = next(iter(runtime.run({"x": x}).values()))[0, 0]
        np.testing.assert_array_equal(found, rounded(value, "bfloat16")[0])


def test_operators_that_lose_too_much_are_found() -> None:
    """A difference of large sums in bfloat16, an overflow in float16."""
    net = Net(None, 0)
    net.constants["one"] = np.float32([[1, 0], [-1, 1]])
    net.constants["large"] = np.float32([[1e6, 1], [1, 1e6]])
    first = net.node("MatMul", net.node("Concat", "x", "x", axis=1), "one")
    second = net.node("MatMul", "x2", "large")
    proto = net.model({"x": (3, 1), "x2": (3, 2)}, [first, second])
    work = prepared_model(from_proto(proto))
    x = np.float32([[1000.1], [1000.2], [1000.3]])
    feeds = [{"x": x, "x2": np.concatenate([x, x * 0.5], 1)}]
    by_name = {e.node: e for e in half_errors(work, "float16", feeds)}
    assert not by_name[proto.graph.node[-1].name].is_good
    assert all(e.is_good for e in half_errors(work, "bfloat16", feeds))
    offset = np.concatenate([x, x + 0.5], 1)
    net = Net(None, 0)
    net.constants["difference"] = np.float32([[1], [-1]])
    proto = net.model({"x": (3, 2)}, [net.node("MatMul", "x", "difference")])
    errors = half_errors(prepared_model(from_proto(proto)), "bfloat16", [{"x": offset}])
    assert [error.is_good for error in errors] == [False]
