"""Einsum as products, in known and in open sizes; numbers that sizes are cast to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.reference import Session

from .child import Child
from .test_open_sizes import check, compiled, model_of

TARGET = parse_target("x86-64-v3")
SIZES = dict(zip("bhijkd", (2, 3, 5, 4, 6, 8), strict=True))

PRODUCTS = (
    "bhid,bhjd->bhij",
    "bhij,bhjd->bihd",
    "bid,dhk->bihk",
    "bihk,hkd->bid",
    "bid,hkd->bhik",
    "ij,jk",
    "ij,kj->ik",
    "ij,ij->i",
    "i,j->ij",
    "bij,b->bij",
    "ji,ik->kj",
    "bi,bij->bj",
    "bij,bkj->b",
    "ij,k->i",
    "i,i->",
    "...ij,...jk",
)
"""Batches, several letters that are summed, rows, columns; sums of one operand, and none."""


def einsum(equation: str, opens: str) -> str:
    """A model of one product, whose letters among `opens` have open sizes."""
    terms = equation.partition("->")[0].replace("...", "h").split(",")
    inputs = [
        f"%x{n}: float[{', '.join(c if c in opens else str(SIZES[c]) for c in term)}]"
        for n, term in enumerate(terms)
    ]
    rank = len(equation.partition("->")[2]) if "->" in equation else 2 + ("..." in equation)
    return f"({', '.join(inputs)}) -> (%y: float[{', '.join('?' * rank)}])"


@pytest.mark.parametrize("opens", ["", "bhijkd", "bik"])
@pytest.mark.parametrize(
    "equation", [PRODUCTS[0], *(pytest.param(e, marks=pytest.mark.slow) for e in PRODUCTS[1:])]
)
def test_einsum(equation: str, opens: str, tmp_path: Path) -> None:
    body = f'%y = Einsum(%x0, %x1) {{equation = "{equation}"}}'
    model = model_of(einsum(equation, opens), body)
    names = {d for v in model.graph.inputs for d in v.shape or () if isinstance(d, str)}
    runtime = compiled(model, tmp_path, *(f"{name}=1.." for name in sorted(names)))
    for more in (0, 1, 13):
        check(model, runtime, {name: SIZES[name] + more for name in names})


def test_einsum_is_a_product() -> None:
    """By the kernels of MatMul, not by plain loops."""
    body = '%y = Einsum(%x0, %x1) {equation = "bhid,bhjd->bhij"}'
    model = model_of(einsum("bhid,bhjd->bhij", "ij"), body)
    kinds = [type(op).__name__ for op in lower(model, TARGET).operations]
    assert "ProductOp" in kinds
    assert "LoopsOp" not in kinds


def test_einsum_that_repeats_an_operand(tmp_path: Path) -> None:
    """Along an axis of one element: by plain loops, and open sizes that differ are refused."""
    body = '%y = Einsum(%x0, %x1) {equation = "ij,jk->ik"}'
    model = model_of("(%x0: float[n, 1], %x1: float[m, 5]) -> (%y: float[?, 5])", body)
    check(model, compiled(model, tmp_path, "n=1..", "m=1.."), {"n": 3, "m": 4})
    model = model_of("(%x0: float[3, p], %x1: float[q, 5]) -> (%y: float[3, 5])", body)
    runtime = compiled(model, tmp_path)
    check(model, runtime, {"p": 4, "q": 4})
    with pytest.raises(SecateurError, match="p"):
        check(model, runtime, {"p": 4, "q": 5})


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_ranges_of_sizes_as_floats(dtype: str, tmp_path: Path) -> None:
    """Positions that are made as floats: as many as there are steps, after layers that leave
    fewer, which a sum of both says, too."""
    number = {"float": 1, "double": 11}[dtype]
    body = f"""const %zero: {dtype}[] = [0]
const %one: {dtype}[] = [1]
const %last: int64[1] = [-1]
const %w: float[3, 2, 3] = [{", ".join(["0.5"] * 18)}]
%c = Conv(%x, %w) {{strides = [2], pads = [1, 1]}}
%d = Conv(%c, %v) {{strides = [2], pads = [1, 1]}}
%s = Shape(%d) {{start = 2, end = 3}}
%n = Squeeze(%s)
%f = Cast(%n) {{to = {number}}}
%r = Range(%zero, %f, %one)
%p = Cast(%r) {{to = 1}}
%y = Add(%d, %p)"""
    body = f"const %v: float[2, 3, 3] = [{', '.join(['0.1'] * 18)}]\n{body}"
    model = model_of(f"(%x: float[b, 2, t]) -> (%y: float[?, 2, ?], %r: {dtype}[?])", body)
    runtime = compiled(model, tmp_path, "b=1..")
    assert [runtime.outputs[name][1][-1] for name in ("y", "r")] == ["floor(3 + t, 4)"] * 2
    for t in (1, 2, 3, 4, 5, 64, 129):
        check(model, runtime, {"b": 2, "t": t})


def test_sizes_that_floats_dont_hold(tmp_path: Path) -> None:
    """Above 2^24 steps a float is another number; a bound on the size says that there are none."""
    body = """const %zero: float[] = [0]
const %one: float[] = [1]
%s = Shape(%x) {start = 0, end = 1}
%n = Squeeze(%s)
%f = Cast(%n) {to = 1}
%y = Range(%zero, %f, %one)"""
    model = model_of("(%x: bool[t]) -> (%y: float[?])", body)
    runtime = compiled(model, tmp_path, "t=1..")
    assert runtime.run({"x": np.zeros(2**24, bool)})["y"][-1] == 2**24 - 1
    with pytest.raises(SecateurError, match="16777216"):
        runtime.run({"x": np.zeros(2**24 + 1, bool)})


WINDOWS = """const %four: int64[2] = [4, 4]
const %none: int64[5] = [0, 0, 0, 0, 0]
const %last: int64[1] = [0]
const %from: int64[2] = [-2, -2]
const %begin: int64[2] = [0, 0]
const %far: int64[2] = [9223372036854775807, 9223372036854775807]
const %axes: int64[2] = [1, 2]
const %one: int64[1] = [1]
const %two: int64[1] = [2]
const %back: int64[1] = [-2]
const %zero: int64[1] = [0]
const %end: int64[1] = [9223372036854775807]
%s = Shape(%x) {start = 1, end = 3}
%r = Mod(%s, %four)
%u = Sub(%four, %r)
%m = Mod(%u, %four)
%pads = Concat(%none, %m, %last) {axis = 0}
%p = Pad(%x, %pads)
%a = Slice(%p, %back, %end, %one)
%b = Slice(%p, %zero, %back, %one)
%c = Concat(%a, %b) {axis = 1}
%d = Slice(%c, %back, %end, %two)
%e = Slice(%c, %zero, %back, %two)
%y = Concat(%d, %e) {axis = 2}"""


def test_windows_that_are_moved(tmp_path: Path) -> None:
    """Images are padded to multiples of a window and rolled by half of one."""
    model = model_of("(%x: float[1, h, w, 16]) -> (%y: float[?, ?, ?, 16])", WINDOWS)
    compiled(model, tmp_path)
    child, random = Child(), np.random.default_rng(0)
    for sizes in ((4, 4), (1, 1), (5, 3), (3, 9)):
        feeds = {"x": random.standard_normal((1, *sizes, 16)).astype(np.float32)}
        want = Session(model, optimize=False).run(feeds)["y"]
        np.testing.assert_array_equal(child.run_guarded(tmp_path / "m.so", feeds)["y"], want)
    child.close()


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_padding_of_one_open_axis(mode: str, tmp_path: Path) -> None:
    """That may be as long as tensors are, so that twice its size is no number."""
    body = f'const %p: int64[6] = [0, 0, 5, 0, 0, 3]\n%y = Pad(%x, %p) {{mode = "{mode}"}}'
    model = model_of("(%x: float[1, 1, t]) -> (%y: float[1, 1, ?])", body, 19)
    compiled(model, tmp_path)
    child = Child()
    for size in (6, 7, 40):
        feeds = {"x": np.arange(size, dtype=np.float32).reshape(1, 1, size)}
        want = Session(model, optimize=False).run(feeds)["y"]
        np.testing.assert_array_equal(child.run_guarded(tmp_path / "m.so", feeds)["y"], want)
    child.close()
