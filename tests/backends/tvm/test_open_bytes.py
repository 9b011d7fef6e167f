"""Products of bytes with open lengths: exact, on kernels, as with known lengths."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import LoopsOp, ProductOp
from secateur.backends.tvm.targets import parse_target

from .child import Child
from .test_open_sizes import compiled, feeds_of, model_of, with_constants

SIZES = ((1, 1), (3, 2), (17, 33), (64, 5))

ATTENTION = """const %s: float[] = 0.03
const %z: uint8[] = 120
const %t: int8[] = -3
%qa = QuantizeLinear(%a, %s, %z)
%da = DequantizeLinear(%qa, %s, %z)
%qb = QuantizeLinear(%b, %s, %t)
%db = DequantizeLinear(%qb, %s, %t)
%tb = Transpose(%db) {perm = [0, 2, 1]}
%m = MatMul(%da, %tb)
%qm = QuantizeLinear(%m, %s, %z)
%dm = DequantizeLinear(%qm, %s, %z)
%y = MatMul(%dm, %db)"""
DYNAMIC = """%q, %s, %z = DynamicQuantizeLinear(%a)
%m = MatMulInteger(%q, %w, %z)
%f = Cast(%m) {to = 1}
%p = Mul(%f, %s)
%r = Relu(%p)
%q2, %s2, %z2 = DynamicQuantizeLinear(%r)
%m2 = MatMulInteger(%q2, %v, %z2)
%f2 = Cast(%m2) {to = 1}
%y = Mul(%f2, %s2)"""
TOKENS = """const %t: float[] = 1e-30
const %l: float[] = 127.0
const %o: float[] = 1.0
const %z: uint8[] = 128
const %i: int64[1] = [-1]
%h = ReduceMax(%a, %i)
%b = ReduceMin(%a, %i)
%n = Neg(%b)
%g = Max(%h, %n, %t)
%f = Div(%l, %g)
%s = Div(%g, %l)
%u = Mul(%a, %f)
%q = QuantizeLinear(%u, %o, %z)
%m = MatMulInteger(%q, %w, %z)
%c = Cast(%m) {to = 1}
%y = Mul(%c, %s)"""
IMAGE = """%q, %s, %z = DynamicQuantizeLinear(%a)
%m = ConvInteger(%q, %w, %z) {pads = [1, 1, 1, 1]}
%f = Cast(%m) {to = 1}
%y = Mul(%f, %s)"""


def whole(shape: tuple[int, ...]) -> str:
    numbers = np.random.default_rng(0).integers(-30, 30, shape).reshape(-1)
    return f"int8[{', '.join(map(str, shape))}] = [{', '.join(map(str, numbers))}]"


CASES = {
    "two values of a run": ("(%a: float[2, N, 20], %b: float[2, S, 20])", ATTENTION, {}),
    "dynamic": ("(%a: float[N, S, 40])", DYNAMIC, {"w": whole((40, 24)), "v": whole((24, 9))}),
    "scales of rows": ("(%a: float[N, S, 40])", TOKENS, {"w": whole((40, 24))}),
    "an image": ("(%a: float[1, 8, N, S])", IMAGE, {"w": whole((20, 8, 3, 3))}),
}


QUICK = ("dynamic", "scales of rows")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_bytes_are_those_of_known_lengths(name: str, tmp_path: Path) -> None:
    """To the bit, with pages around all memory that nothing may touch, and without plain loops."""
    inputs, body, constants = CASES[name]
    text, child = with_constants(body, constants), Child()

    def model(n: int | str, s: int | str) -> Any:
        signature = inputs.replace("N", str(n)).replace("S", str(s))
        rank = "p, q, r" + (", t" if name == "an image" else "")
        return model_of(f"{signature} -> (%y: float[{rank}])", text)

    open_ = model("n", "s")
    runtime = compiled(open_, tmp_path, "n=1..", "s=1..")
    plan = lower(open_, parse_target("x86-64-v3"), read_admitted(["n=1..", "s=1.."]))
    assert not any(isinstance(op, LoopsOp) for op in plan.operations)
    for n, s in SIZES:
        feeds = feeds_of(model("n", "s"), {"n": n, "s": s})
        known = tmp_path / "known.so"
        compile_model(model(n, s), parse_target("native"), known)
        want = Runtime(known).run(feeds)["y"]
        np.testing.assert_array_equal(runtime.run(feeds)["y"], want)
        np.testing.assert_array_equal(child.run_guarded(tmp_path / "m.so", feeds)["y"], want)
    child.close()


def test_sums_of_any_depth_are_exact(tmp_path: Path) -> None:
    """Of the largest bytes, where floats alone would round from 258 products on."""
    model = model_of(
        "(%a: uint8[2, n], %b: uint8[n, 19]) -> (%y: int32[2, 19])",
        "const %z: uint8[] = 0\nconst %t: uint8[] = 255\n%y = MatMulInteger(%a, %b, %z, %t)",
    )
    runtime = compiled(model, tmp_path, "n=1..")
    for n in (1, 255, 256, 257, 515, 2000):
        a, b = np.full((2, n), 255, np.uint8), np.zeros((n, 19), np.uint8)
        a[1], b[:, 3] = np.arange(n) % 256, 254
        want = a.astype(np.int64) @ (b.astype(np.int64) - 255)
        np.testing.assert_array_equal(runtime.run({"a": a, "b": b})["y"], want)


KINDS = {
    "unsigned": ("uint8", 131, "uint8", 7),
    "signed": ("int8", -128, "int8", 127),
    "weights signed": ("uint8", 0, "int8", 0),
}
EXTENTS = ((1, 1, 1), (2, 3, 17), (5, 4, 16), (9, 66, 33), (1, 35, 70), (40, 7, 5))
"""Rows, depth and columns."""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
def test_products_of_any_extents_are_exact(
    kind: str, target: str, turned: bool, tmp_path: Path
) -> None:
    """Of all bytes, rows of the right operand or its columns side by side, to the last number."""
    first, zero, second, point = KINDS[kind]
    shape = "b, m, k" if turned else "b, k, m"
    turn = "%t = Transpose(%b) {perm = [0, 2, 1]}\n" if turned else ""
    model = model_of(
        f"(%a: {first}[b, n, k], %b: {second}[{shape}]) -> (%y: int32[b, n, m])",
        f"const %z: {first}[] = {zero}\nconst %p: {second}[] = {point}\n{turn}"
        f"%y = MatMulInteger(%a, %{'t' if turned else 'b'}, %z, %p)",
    )
    admitted = ("b=1..", "n=1..", "k=1..", "m=1..")
    file, child = tmp_path / "m.so", Child()
    compile_model(model, parse_target(target), file, sizes=read_admitted(admitted))
    runtime = Runtime(file)
    plan = lower(model, parse_target(target), read_admitted(list(admitted)))
    (product,) = (op for op in plan.operations if isinstance(op, ProductOp))
    assert (product.left.tensor.dtype, product.right.tensor.dtype) == (first, second)
    random = np.random.default_rng(0)
    for batch, (n, k, m) in itertools.product((1, 2), EXTENTS):
        a, b = (
            random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, size).astype(dtype)
            for dtype, size in ((first, (batch, n, k)), (second, (batch, k, m)))
        )
        a[:, 0], b[:, :, 0] = np.iinfo(first).max, np.iinfo(second).min
        want = (a.astype(np.int64) - zero) @ (b.astype(np.int64) - point)
        feeds = {"a": a, "b": np.ascontiguousarray(b.swapaxes(1, 2)) if turned else b}
        np.testing.assert_array_equal(runtime.run(feeds)["y"], want)
        np.testing.assert_array_equal(child.run_guarded(file, feeds)["y"], want)
    child.close()
