"""Products and convolutions of bytes by ARM's extensions, under emulation, to the bit.

Needs Debian's packages qemu-user and gcc-aarch64-linux-gnu.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ConvolutionOp, Fused
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ..tvm.graphs import Net, feeds, quantize
from . import models
from .test_emulated import tools
from .test_open_library import results, run

pytestmark = pytest.mark.slow

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", ("qemu-aarch64", "-cpu", "max")

CONVOLUTIONS: tuple[dict[str, Any], ...] = (
    {"weights": (24, 16, 1, 1), "size": (7, 5)},  # one row of 35 pixels
    {"weights": (8, 5, 3, 3), "size": (6, 7), "pads": [1, 1, 1, 1]},
    {"weights": (17, 21, 3, 2), "size": (9, 7), "strides": [2, 2], "pads": [1, 0, 1, 1]},
    {"weights": (12, 9, 1, 3), "size": (1, 13), "dilations": [1, 2]},
    {"weights": (9, 8, 3, 1), "size": (11, 1)},  # one column
    {"weights": (16, 8, 2, 2), "size": (3, 3), "group": 2},
    {"weights": (20, 12, 3, 3), "size": (3, 3)},  # one pixel
    {"weights": (6, 3, 3, 3), "size": (5, 6)},
    {"weights": (13, 1, 3, 3), "size": (5, 7), "group": 13, "pads": [1, 1, 1, 1]},
    {"weights": (16, 1, 3, 3), "size": (9, 8), "group": 16, "strides": [2, 2]},
    {"weights": (8, 1, 5, 5), "size": (6, 9), "group": 8, "pads": [2, 2, 2, 2]},
    {"weights": (8, 1, 5, 5), "size": (6, 9), "group": 8, "strides": [1, 2]},
    {"weights": (8, 1, 2, 4), "size": (5, 5), "group": 8, "dilations": [2, 1]},
    {"weights": (8, 1, 3, 2), "size": (4, 6), "group": 8, "strides": [1, 3]},
    {"weights": (8, 1, 3, 3), "size": (5, 3), "group": 8},  # one column of results
    {"weights": (8, 1, 3, 3), "size": (4, 5), "group": 8, "pads": [1, 1, 1, 1]},
    {"weights": (8, 1, 5, 5), "size": (7, 7), "group": 8},
)
"""Odd numbers of pixels and channels, strides, dilations, groups; depthwise ones."""

PRODUCTS = ((1, 24, 9), (2, 16, 8), (3, 5, 7), (5, 37, 17), (8, 3, 4), (7, 64, 33))
"""Rows, depth, columns."""


def drawn(random: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Any bytes, the extremes among them."""
    ends = np.iinfo(dtype)
    values = random.integers(ends.min, ends.max, shape, endpoint=True)
    return np.where(random.random(shape) < 0.2, random.choice([ends.min, ends.max]), values).astype(
        dtype
    )


def model(dtype: str, batch: int = 2) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Every convolution and product of a type of bytes, whose results are sums; and inputs."""
    make, kind = onnx.helper, np.dtype(dtype)
    random = np.random.default_rng(3)
    nodes, inputs, outputs, constants = [], {}, [], {"z": np.asarray(7, kind)}
    for number, given in enumerate(CONVOLUTIONS):
        options = dict(given)
        weights, size = options.pop("weights"), options.pop("size")
        channels = weights[1] * options.get("group", 1)
        constants[f"w{number}"] = drawn(random, np.dtype("int8"), weights)
        inputs[f"x{number}"] = drawn(random, kind, (batch, channels, *size))
        names = [f"x{number}", f"w{number}", "z"]
        nodes.append(make.make_node("ConvInteger", names, [f"y{number}"], **options))
        outputs.append(f"y{number}")
    for number, (rows, depth, columns) in enumerate(PRODUCTS):
        inputs[f"a{number}"] = drawn(random, kind, (rows, depth))
        constants[f"b{number}"] = drawn(random, np.dtype("int8"), (depth, columns))
        constants[f"u{number}"] = drawn(random, np.dtype("int8"), (columns,))
        own = [f"a{number}", f"b{number}", "z", f"u{number}"]
        nodes.append(make.make_node("MatMulInteger", own, [f"p{number}"]))
        nodes.append(make.make_node("MatMulInteger", own[:3], [f"o{number}"]))
        outputs += [f"p{number}", f"o{number}"]
        for name, other, by_depth in (("c", dtype, False), ("d", "int8", True)):
            shape = (2, columns, depth) if by_depth else (2, depth, columns)
            inputs[f"{name}{number}"] = drawn(random, np.dtype(other), shape)
            inputs[f"l{name}{number}"] = drawn(random, kind, (2, rows, depth))
            right = f"{name}{number}"
            if by_depth:
                right = f"t{number}"
                nodes.append(make.make_node("Transpose", [f"d{number}"], [right], perm=[0, 2, 1]))
            zeros = ["z", "z"] if other == dtype else ["z"]
            result = f"r{name}{number}"
            nodes.append(
                make.make_node("MatMulInteger", [f"l{name}{number}", right, *zeros], [result])
            )
            outputs.append(result)
    info = make.make_tensor_value_info
    graph = make.make_graph(
        nodes,
        "bytes",
        [info(n, make.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in inputs.items()],
        [info(name, onnx.TensorProto.INT32, None) for name in outputs],
        [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), inputs


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("target", ["aarch64-neoverse-v1", "aarch64-cortex-a76", "own"])
def test_sums_are_exact(tmp_path: Path, target: str, dtype: str) -> None:
    """Of a CPU with i8mm, one without, and a user's own target with it."""
    if not models.has(COMPILER, EMULATOR[0]):
        pytest.skip(f"needs {COMPILER} and {EMULATOR[0]}")
    if target == "own":
        board = tmp_path / "board.toml"
        board.write_text(
            'name = "board"\nbase = "aarch64"\ncpu = "cortex-a710"\n'
            'extensions = ["dotprod", "i8mm"]\n'
        )
        target = str(board)
    proto, inputs = model(dtype)
    check(proto, inputs, tmp_path, target, COMPILER, EMULATOR)


def check(
    proto: onnx.ModelProto,
    inputs: dict[str, Any],
    folder: Path,
    target: str,
    compiler: str,
    emulator: Sequence[str],
) -> None:
    """A program with the library writes to the bit what this machine's artifact computes."""
    compile_model(from_proto(proto), parse_target("native"), folder / "m.so")
    right = Runtime(folder / "m.so").run(inputs)
    library = models.build(proto, folder / "out", "net", target=target, threads="none")
    program = models.program(library, "net", compiler, "-static")
    done = models.run(program, [*inputs.values()], emulator=emulator)
    assert done.returncode == 0, (done.stdout, done.stderr)
    content = program.with_name("out").read_bytes()
    for name, wanted in right.items():
        own = np.frombuffer(content, wanted.dtype, wanted.size).reshape(wanted.shape)
        np.testing.assert_array_equal(own, wanted, err_msg=name)
        content = content[wanted.nbytes :]
    assert not content


def branches() -> onnx.ModelProto:
    """Every neighbour of bytes that may be kept as signed ones or may not."""
    net = Net(None, 5)
    first = net.node("Conv", "x", net.weight(24, 3, 3, 3), net.weight(24), pads=[1, 1, 1, 1])
    whole = net.node("MaxPool", net.node("Relu", first), kernel_shape=[2, 2], strides=[2, 2])
    narrow = net.node("Conv", whole, net.weight(12, 24, 1, 1))
    wide = net.node("Conv", whole, net.weight(24, 1, 3, 3), pads=[1, 1, 1, 1], group=24)
    joined = net.node("Concat", narrow, net.node("Relu", wide), axis=1)
    back = net.node("Conv", joined, net.weight(24, 36, 1, 1), net.weight(24))
    added = net.node("Relu", net.node("Add", back, whole))
    mean = net.node("AveragePool", added, kernel_shape=[2, 2])
    pooled = net.node("GlobalAveragePool", net.node("Conv", mean, net.weight(16, 24, 1, 1)))
    flat = net.node("Flatten", pooled)
    last = net.node("Gemm", flat, net.weight(16, 10), net.weight(10))
    return net.model({"x": (2, 3, 13, 14)}, [net.node("MatMul", last, net.weight(10, 4))])


@pytest.mark.parametrize("target", ["aarch64-cortex-a76", "aarch64-neoverse-n1"])
def test_unsigned_bytes_that_are_kept_as_signed_ones(tmp_path: Path, target: str) -> None:
    """To the bit as x86 computes them, which keeps them as they are."""
    compiler, emulator, _ = tools(target)
    proto = quantize(branches())
    plan = lower(from_proto(proto), parse_target(target))
    fused = [op for op in plan.operations if isinstance(op, Fused)]
    types = {step.name: step.dtype for op in fused for step in op.program.instructions}
    assert types["qlinear_add"] == types["quantize_average"] == "uint8"
    convolutions = [op for op in fused if isinstance(op, ConvolutionOp)]
    assert [op.input.dtype for op in convolutions].count("int8") == 2
    check(proto, feeds(proto), tmp_path, target, compiler, emulator)


def gated(width: int) -> onnx.ModelProto:
    """Functions of bytes before, behind and between convolutions, and gates of channels."""
    net = Net(None, 8)
    first = net.node("HardSwish", net.node("Conv", "x", net.weight(width, 3, 3, 3)))
    deep = net.node("Conv", first, net.weight(width, 1, 5, 5), pads=[2, 2, 2, 2], group=width)
    value = net.node("HardSwish", deep)
    squeezed = net.node(
        "Relu", net.node("Conv", net.node("GlobalAveragePool", value), net.weight(5, width, 1, 1))
    )
    gate = net.node("HardSigmoid", net.node("Conv", squeezed, net.weight(width, 5, 1, 1)))
    joined = net.node("Conv", net.node("Mul", value, gate), net.weight(16, width, 1, 1))
    rectified = net.node("Relu", joined)
    plain = net.node("Conv", net.node("GlobalAveragePool", rectified), net.weight(16, 16, 1, 1))
    scaled = net.node("Mul", rectified, net.node("Sigmoid", plain))
    last = net.node("Conv", scaled, net.weight(7, 16, 1, 1))
    return net.model({"x": (2, 3, 9, 19), "v": (3, 37)}, [last, net.node("HardSwish", "v")])


@pytest.mark.parametrize("target", ["aarch64-cortex-a72", "aarch64-cortex-a76", "armv7-a"])
@pytest.mark.parametrize(("width", "dtype"), [(16, "uint8"), (21, "uint8"), (24, "int8")])
def test_functions_of_bytes(tmp_path: Path, target: str, width: int, dtype: str) -> None:
    """To the bit as x86 computes them, which looks up none: of all widths, in ragged blocks."""
    compiler, emulator, _ = tools(target)
    proto = quantize(gated(width), dtype)
    check(proto, feeds(proto), tmp_path, target, compiler, emulator)


@pytest.mark.parametrize("target", ["aarch64-neoverse-v1", "aarch64-cortex-a76"])
def test_open_sizes(tmp_path: Path, target: str) -> None:
    """Rows and columns that end in one pixel, and those of one alone; products of two values."""
    if not models.has(COMPILER, EMULATOR[0]):
        pytest.skip(f"needs {COMPILER} and {EMULATOR[0]}")
    random = np.random.default_rng(4)
    weights = [drawn(random, np.dtype("int8"), s) for s in ((9, 8, 3, 3), (9, 8, 1, 1), (24, 5))]
    k, q, b = (",".join(map(str, w.reshape(-1))) for w in weights)
    proto = models.text(
        f"""agraph (uint8[1, 8, h, w] x, uint8[n, 24] a, uint8[2, m, n] c)
        => (int32[1, 9, h, w] y, int32[1, 9, h, w] p, int32[n, 5] z, int32[2, m, 24] o)
        <int8[9, 8, 3, 3] k = {{{k}}}, int8[9, 8, 1, 1] q = {{{q}}}, int8[24, 5] b = {{{b}}},
         uint8 v = {{7}}> {{
        y = ConvInteger <pads = [1, 1, 1, 1]> (x, k, v)
        p = ConvInteger (x, q, v)
        z = MatMulInteger (a, b, v)
        o = MatMulInteger (c, a, v, v)
        }}"""
    )
    compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    native = Runtime(tmp_path / "m.so")
    folder = models.build(proto, tmp_path / "out", "net", target=target, threads="none")
    program = models.program(folder, "net", COMPILER, "-static", source=models.OPEN)
    for height, width, rows in ((1, 1, 1), (3, 7, 3), (9, 4, 6), (2, 29, 11)):
        inputs = {
            "x": drawn(random, np.dtype("uint8"), (1, 8, height, width)),
            "a": drawn(random, np.dtype("uint8"), (rows, 24)),
            "c": drawn(random, np.dtype("uint8"), (2, height, rows)),
        }
        right = [*native.run(inputs).values()]
        done = run(program, [*inputs.values()], EMULATOR)
        assert done.returncode == 0, (done.returncode, done.stdout)
        for own, wanted in zip(results(program, right), right, strict=True):
            np.testing.assert_array_equal(own, wanted)
