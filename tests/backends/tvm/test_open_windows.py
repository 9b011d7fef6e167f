"""Attention within windows of an image of open size that a strided convolution has made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.ir.errors import SecateurError
from secateur.ir.reference import Session

from .child import Child
from .test_open_sizes import compiled, feeds_of, model_of

WINDOW = 3

NUMBERS = {
    "ends": [9223372036854775807] * 2,
    "none": [0] * 5,
    "zeros": [0, 0],
    "back": [-1, -1],
    "forth": [1, 1],
    "axes": [1, 2],
    "side": [WINDOW],
    "area": [WINDOW * WINDOW],
    "any": [-1],
    "channels": [16],
    "last": [0],
}

BODY = """%e = Conv(%x, %k) {strides = [4, 4]}
%t = Transpose(%e) {perm = [0, 2, 3, 1]}
%b = Shape(%t) {start = 0, end = 1}
%s = Shape(%t) {start = 1, end = 3}
%r = Mod(%s, %side)
%u = Sub(%side, %r)
%m = Mod(%u, %side)
%pads = Concat(%none, %m, %last) {axis = 0}
%p = Pad(%t, %pads)
%rolled = ROLLED
%n = Shape(%p) {start = 1, end = 3}
%c = Div(%n, %side)
%h, %w = Split(%c, %two)
%parts = Concat(%b, %h, %side, %w, %side, %channels) {axis = 0}
%a = Reshape(%rolled, %parts)
%d = Transpose(%a) {perm = [0, 1, 3, 2, 4, 5]}
%flat = Concat(%any, %area, %channels) {axis = 0}
%q = Reshape(%d, %flat)
%v = Transpose(%q) {perm = [0, 2, 1]}
%f = MatMul(%q, %v)
%g = Softmax(%f)
%i = MatMul(%g, %q)
%back_parts = Concat(%b, %h, %w, %side, %side, %channels) {axis = 0}
%j = Reshape(%i, %back_parts)
%l = Transpose(%j) {perm = [0, 1, 3, 2, 4, 5]}
%whole = Concat(%b, %n, %channels) {axis = 0}
%o = Reshape(%l, %whole)
%y = Slice(%o, %zeros, %s, %axes)"""

ROLL = """%r0 = Slice(%p, %step, %ends, %axis_1)
%r1 = Slice(%p, %start, %step, %axis_1)
%r2 = Concat(%r0, %r1) {axis = 1}
%r3 = Slice(%r2, %step, %ends, %axis_2)
%r4 = Slice(%r2, %start, %step, %axis_2)
%rolled = Concat(%r3, %r4) {axis = 2}"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [None, 1, -1])
def test_windows_of_what_a_convolution_makes(step: int | None, tmp_path: Path) -> None:
    """As they lie, and rolled either way."""
    numbers = {**NUMBERS, "axis_1": [1], "axis_2": [2], "start": [0], "two": [1, 1]}
    numbers["ends"] = numbers["ends"][:1]
    if step is not None:
        numbers["step"] = [step]
    lines = [f"const %{name}: int64[{len(of)}] = {of}" for name, of in numbers.items()]
    kernel = np.random.default_rng(1).standard_normal(16 * 3 * 16).round(3).tolist()
    lines.append(f"const %k: float[16, 3, 4, 4] = [{', '.join(map(str, kernel))}]")
    rolled = "%rolled = Identity(%p)" if step is None else ROLL
    body = BODY.replace("%rolled = ROLLED", rolled)
    signature = "(%x: float[n, 3, h, w]) -> (%y: float[?, ?, ?, 16])"
    model = model_of(signature, "\n".join([*lines, body]))
    runtime = compiled(model, tmp_path, "n=1..")
    session, child = Session(model, optimize=False), Child()
    for n, h, w in ((1, 4, 4), (2, 12, 12), (1, 13, 30), (3, 47, 24), (2, 5, 71)):
        feeds = feeds_of(model, {"n": n, "h": h, "w": w})
        want = session.run(feeds)["y"]
        found = child.run_guarded(tmp_path / "m.so", feeds)["y"]
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    child.close()
    with pytest.raises(SecateurError, match="input 'x': axis 2: 'h' is from 4 up"):
        runtime.run(feeds_of(model, {"n": 1, "h": 3, "w": 8}))
