"""Convolution, pooling and what stands around them with open batches, rows and columns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.kernels.convolution.open_columns import choose_widths
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ConvolutionOp, LoopsOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import UnsupportedError
from secateur.ir.model import Model
from secateur.ir.reference import Session

from .child import Child
from .test_open_sizes import check, compiled, feeds_of, model_of, with_constants

SIZES = ((3, 3, 1), (5, 7, 2), (16, 16, 1), (14, 15, 3), (29, 33, 1), (64, 17, 2), (8, 200, 1))

IMAGES = {
    "3 x 3": (
        "(%x: float[1, 32, n, s]) -> (%y: float[1, 48, n, s])",
        "%y = Conv(%x, %w, %c) {pads = [1, 1, 1, 1]}",
        {"w": "float[48, 32, 3, 3]", "c": "float[48]"},
    ),
    "3 x 3 of many channels": (
        "(%x: float[b, 32, n, s]) -> (%y: float[b, 64, n, s])",
        "%t = Conv(%x, %w) {pads = [1, 1, 1, 1], group = 2}\n%r = Relu(%t)\n"
        "%u = Conv(%r, %v) {pads = [0, 1, 2, 1]}\n%y = Add(%u, %t)",
        {"w": "float[64, 16, 3, 3]", "v": "float[64, 64, 3, 3]"},
    ),
    "transposed": (
        "(%x: float[b, 16, n, s]) -> (%y: float[b, 12, p, q])",
        "%t = ConvTranspose(%x, %w) {strides = [2, 2]}\n%r = Relu(%t)\n"
        "%y = ConvTranspose(%r, %v) {strides = [2, 2], pads = [1, 1, 1, 1], "
        "output_padding = [1, 1]}",
        {"w": "float[16, 20, 2, 2]", "v": "float[20, 12, 3, 3]"},
    ),
    "transposed with a stride of one": (
        "(%x: float[b, 9, n, s]) -> (%y: float[b, 1, p, q])",
        "%y = ConvTranspose(%x, %w) {pads = [2, 0, 0, 1]}",
        {"w": "float[9, 1, 3, 3]"},
    ),
    "strides and depthwise": (
        "(%x: float[b, 3, n, s]) -> (%y: float[b, 16, p, q])",
        "%t = Conv(%x, %w) {strides = [2, 2], pads = [1, 1, 1, 1]}\n%r = Relu(%t)\n"
        "%y = Conv(%r, %v) {pads = [1, 1, 1, 1], strides = [2, 2], group = 16}",
        {"w": "float[16, 3, 3, 3]", "v": "float[16, 1, 3, 3]"},
    ),
    "a residual block": (
        "(%x: float[b, 16, n, s]) -> (%y: float[b, 16, n, s])",
        "%t = Conv(%x, %w)\n%r = HardSwish(%t)\n"
        "%d = Conv(%r, %k) {group = 40, pads = [2, 2, 2, 2], dilations = [2, 2]}\n"
        "%z = Conv(%d, %v)\n%a = Add(%z, %x)\n%y = Relu(%a)",
        {"w": "float[40, 16, 1, 1]", "k": "float[40, 1, 3, 3]", "v": "float[16, 40, 1, 1]"},
    ),
    "groups of a few and of many": (
        "(%x: float[b, 16, n, s]) -> (%y: float[b, 32, n, s])",
        "%t = Conv(%x, %w) {group = 4, pads = [1, 1, 1, 1]}\n"
        "%y = Conv(%t, %v) {group = 2, pads = [0, 1, 0, 1]}",
        {"w": "float[16, 4, 3, 3]", "v": "float[32, 8, 1, 3]"},
    ),
    "a row": (
        "(%x: float[b, 6, n]) -> (%y: float[b, 20, p], %z: float[b, 20, q])",
        "%y = Conv(%x, %w) {pads = [2, 2], strides = [2]}\n"
        "%z = MaxPool(%y) {kernel_shape = [2], strides = [2], pads = [1, 1]}",
        {"w": "float[20, 6, 5]"},
    ),
    "pooling": (
        "(%x: float[b, 8, n, s]) -> (%y: float[b, 8, p, q], %z: float[b, 8, u, v], "
        "%g: float[b, 8, 1, 1], %h: float[b, 8, 1, 1], %m: float[b, 8, i, j])",
        "%y = MaxPool(%x) {kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]}\n"
        "%z = AveragePool(%x) {kernel_shape = [3, 2], strides = [1, 2], pads = [1, 0, 1, 1]}\n"
        "%g = GlobalAveragePool(%x)\n%h = GlobalMaxPool(%x)\n"
        "%m = MaxPool(%x) {kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1}",
        {},
    ),
    "averages that count the padding": (
        "(%x: float[b, 5, n, s]) -> (%y: float[b, 5, p, q], %z: float[b, 5, u, v])",
        "%y = AveragePool(%x) {kernel_shape = [3, 3], pads = [1, 1, 1, 1], "
        "count_include_pad = 1}\n"
        "%z = AveragePool(%x) {kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], "
        "count_include_pad = 1, ceil_mode = 1}",
        {},
    ),
    "joined channels": (
        "(%x: float[1, 8, n, s]) -> (%y: float[1, 24, n, s], %z: float[1, 21, n, s])",
        "%a = Conv(%x, %w) {pads = [1, 1, 1, 1]}\n%b = Concat(%a, %x) {axis = 1}\n"
        "%y = Relu(%b)\n%c = Conv(%x, %v)\n%d = Concat(%c, %x, %x) {axis = 1}\n"
        "%z = Sigmoid(%d)",
        {"w": "float[16, 8, 3, 3]", "v": "float[5, 8, 1, 1]"},
    ),
    "the same size": (
        "(%x: float[1, 8, n, s]) -> (%y: float[1, 12, n, s], %z: float[1, 8, n, s])",
        '%y = Conv(%x, %w) {auto_pad = "SAME_UPPER"}\n'
        '%z = MaxPool(%x) {kernel_shape = [2, 3], auto_pad = "SAME_LOWER"}',
        {"w": "float[12, 8, 4, 3]"},
    ),
    "padding by size": (
        "(%x: float[1, 8, n, s]) -> (%y: float[1, 12, p, q], %z: float[1, 8, p, q], "
        "%a: float[1, 8, p, q], %d: float[1, 8, p, q])",
        '%y = Conv(%x, %w) {auto_pad = "SAME_UPPER", strides = [2, 3]}\n'
        '%z = MaxPool(%x) {kernel_shape = [3, 4], auto_pad = "SAME_LOWER", strides = [2, 2]}\n'
        '%a = AveragePool(%x) {kernel_shape = [3, 2], auto_pad = "SAME_UPPER", strides = [2, 2]}\n'
        '%d = Conv(%x, %v) {auto_pad = "SAME_LOWER", strides = [2, 2], group = 8}',
        {"w": "float[12, 8, 3, 4]", "v": "float[8, 1, 5, 3]"},
    ),
    "channels that are weighted": (
        "(%x: float[b, 16, n, s]) -> (%y: float[b, 10])",
        "%t = Conv(%x, %w)\n%g = GlobalAveragePool(%t)\n%h = Conv(%g, %v)\n%i = Sigmoid(%h)\n"
        "%m = Mul(%t, %i)\n%p = GlobalAveragePool(%m)\n%f = Flatten(%p)\n%y = MatMul(%f, %u)",
        {"w": "float[24, 16, 1, 1]", "v": "float[24, 24, 1, 1]", "u": "float[24, 10]"},
    ),
}  # fmt: skip


def image_model(name: str) -> Model:
    signature, body, constants = IMAGES[name]
    return model_of(signature, with_constants(body, constants))


PLAIN = {
    "channels of open number": (
        "(%x: float[1, b, n, s]) -> (%y: float[1, b, n, s], %z: float[1, b, 1, 1])",
        "%y = MaxPool(%x) {kernel_shape = [3, 3], pads = [1, 1, 1, 1]}\n"
        "%z = GlobalAveragePool(%x)",
        {},
    ),
}  # fmt: skip
"""What image kernels leave to plain loops: right, or refused by node and reason."""


@pytest.mark.parametrize("name", PLAIN)
def test_what_plain_loops_take(name: str, tmp_path: Path) -> None:
    signature, body, constants = PLAIN[name]
    model = model_of(signature, with_constants(body, constants))
    names = [f"{d}=2.." for d in open_names(model)]
    try:
        runtime = compiled(model, tmp_path, *names)
    except UnsupportedError as error:
        assert re.search(r"node '", str(error))  # noqa: PT017
        assert "please report" not in str(error)  # noqa: PT017
        return
    for n, s, b in ((4, 6, 3), (16, 30, 5)):
        check(model, runtime, {"n": n, "s": s, "b": b})


QUANTIZED = """const %s: float[] = 0.02
const %z: uint8[] = 128
const %zero: int8[] = 0
%q = QuantizeLinear(%x, %s, %z)
%d = DequantizeLinear(%q, %s, %z)
%wd = DequantizeLinear(%w, %s, %zero)
%c = Conv(%d, %wd) {pads = [1, 1, 1, 1]}
%cq = QuantizeLinear(%c, %s, %z)
%cd = DequantizeLinear(%cq, %s, %z)
%vd = DequantizeLinear(%v, %s, %zero)
%e = Conv(%cd, %vd) {pads = [1, 1, 1, 1], group = 24, strides = [2, 2]}
%eq = QuantizeLinear(%e, %s, %z)
%y = DequantizeLinear(%eq, %s, %z)"""


def test_bytes_of_open_images(tmp_path: Path) -> None:
    """Convolutions of bytes are those of known sizes, to the bit, on integer kernels."""
    random = np.random.default_rng(0)
    constants = {}
    for name, shape in (("w", (24, 16, 3, 3)), ("v", (24, 1, 3, 3))):
        numbers = ", ".join(map(str, random.integers(-9, 10, shape).reshape(-1)))
        constants[name] = f"int8[{', '.join(map(str, shape))}] = [{numbers}]"
    body = with_constants(QUANTIZED, constants)
    model = model_of("(%x: float[1, 16, n, s]) -> (%y: float[1, 24, p, q])", body)
    runtime = compiled(model, tmp_path, "n=1..", "s=1..")
    plan = lower(model, parse_target("x86-64-v3"), read_admitted(["n=1..", "s=1.."]))
    inputs = [o.input.dtype for o in plan.operations if isinstance(o, ConvolutionOp)]
    assert inputs == ["uint8", "uint8"]
    for n, s in ((3, 3), (13, 30), (40, 9)):
        feeds = feeds_of(model, {"n": n, "s": s})
        known = model_of(f"(%x: float[1, 16, {n}, {s}]) -> (%y: float[1, 24, p, q])", body)
        compile_model(known, parse_target("native"), tmp_path / "known.so")
        want = Runtime(tmp_path / "known.so").run(feeds)
        np.testing.assert_array_equal(runtime.run(feeds)["y"], want["y"])


def open_names(model: Model) -> list[str]:
    sizes = [d for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)]
    return [str(d) for d in dict.fromkeys(sizes)]


QUICK = ("strides and depthwise", "a row", "pooling")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in IMAGES]
)
def test_images_of_all_sizes(name: str, tmp_path: Path) -> None:
    """One artifact is right for narrow, wide and tall images, and batches."""
    model = image_model(name)
    runtime = compiled(model, tmp_path, *(f"{d}=1.." for d in open_names(model)))
    for n, s, b in SIZES:
        check(model, runtime, {"n": n, "s": s, "b": b})


@pytest.mark.parametrize("name", IMAGES)
def test_no_image_operator_takes_plain_loops(name: str) -> None:
    model = image_model(name)
    admitted = read_admitted([f"{d}=1.." for d in open_names(model)])
    plan = lower(model, parse_target("x86-64-v3"), admitted)
    plain = [o.label for o in plan.operations if isinstance(o, LoopsOp) and o.outputs]
    assert not plain


@pytest.mark.slow
def test_images_stay_within_their_buffers(tmp_path: Path) -> None:
    """With pages around all memory that nothing may touch, for sizes around those of tiles."""
    child = Child()
    for name in ("strides and depthwise", "pooling", "joined channels"):
        model, folder = image_model(name), tmp_path / name
        folder.mkdir()
        compiled(model, folder, *(f"{d}=1.." for d in open_names(model)))
        session = Session(model, optimize=False)
        for n, s in ((3, 3), (4, 9), (15, 16), (17, 31)):
            feeds = feeds_of(model, {"n": n, "s": s, "b": 2})
            have = child.run_guarded(folder / "m.so", feeds)
            for output, array in session.run(feeds).items():
                np.testing.assert_allclose(have[output], array, rtol=1e-4, atol=1e-5)
    child.close()


@pytest.mark.slow
def test_threads_share_open_images(tmp_path: Path) -> None:
    for name in ("3 x 3", "a residual block", "pooling"):
        model, path = image_model(name), tmp_path / f"{name}.so"
        admitted = read_admitted([f"{d}=1.." for d in open_names(model)])
        compile_model(model, parse_target("native"), path, sizes=admitted)
        runtime = Runtime(path, threads=2)
        for n, s, b in ((70, 90, 1), (3, 3, 2), (17, 130, 1)):
            check(model, runtime, {"n": n, "s": s, "b": b})


def test_widths_suit_every_row() -> None:
    """Few widths of tiles are nearly as good as all, also for rows shorter than most."""
    costs = tuple(9.0 * max(2 * c, 4) + 8 * c + 12 for c in range(1, 15))
    columns = tuple(range(1, 200))
    mean, widths = choose_widths(costs, columns)
    assert widths[-1][0] == 1
    assert len(widths) <= 6
    best = [min(-(-n // c) * costs[c - 1] / n for c in range(1, min(n, 14) + 1)) for n in columns]
    assert mean < 1.1 * float(np.exp(np.mean(np.log(best))))
