"""Resize of open rows and columns, and images of half the size that are joined again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ConcatOp, LoopsOp, ResizeOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.reference import Session
from secateur.ir.symbolic import expressions as e

from .child import Child
from .test_open_images import open_names
from .test_open_sizes import check, compiled, feeds_of, model_of, with_constants

SIZES = ((1, 1), (2, 3), (3, 2), (5, 1), (17, 31), (64, 33))

IMAGE = "(%x: float[1, 20, n, s]) -> (%y: float[1, c, p, q])"
RELU = "%r = Relu(%x)\n"
RESIZED = {
    "nearest": ("%y = Resize(%r, _, %k)", [1, 1, 2, 3]),
    "old": ('%y = Resize(%r, _, %k) {coordinate_transformation_mode = "asymmetric", '
            'nearest_mode = "floor"}', [1, 1, 2, 2]),
    "nearest by a fraction": ("%y = Resize(%r, _, %k)", [1, 1, 1.5, 2.6]),
    "linear": ('%y = Resize(%r, _, %k) {mode = "linear"}', [1, 1, 2, 3]),
    "linear in one direction": ('%y = Resize(%r, _, %k) {mode = "linear"}', [1, 1, 1, 2]),
    "linear by a fraction": ('%y = Resize(%r, _, %k) {mode = "linear"}', [1, 1, 1.3, 2.6]),
    "corners": ('%y = Resize(%r, _, %k) {mode = "linear", '
                'coordinate_transformation_mode = "align_corners"}', [1, 1, 2, 3]),
    "pytorch": ('%y = Resize(%r, _, %k) {mode = "linear", '
                'coordinate_transformation_mode = "pytorch_half_pixel"}', [1, 1, 1.3, 2]),
    "cubic": ('%y = Resize(%r, _, %k) {mode = "cubic", exclude_outside = 1}', [1, 1, 2, 1.6]),
    "to a known size": ('%y = Resize(%r, _, _, %k) {mode = "linear"}', (1, 20, 9, 20)),
    "wherever no axis changes": ('%y = Resize(%r, _, %k) {mode = "linear", '
                                 'coordinate_transformation_mode = "tf_half_pixel_for_nn"}',
                                 [1, 1, 1.2, 1.2]),
}  # fmt: skip

LOOPS = {
    "symmetric": ('%y = Resize(%r, _, %k) {mode = "linear", '
                  'coordinate_transformation_mode = "half_pixel_symmetric"}', [1, 1, 1.3, 2, 2]),
    "channels": ("%y = Resize(%r, _, %k)", [1, 2, 2, 2, 1]),
}  # fmt: skip


def resizing(body: str, numbers: list[float] | tuple[int, ...], signature: str = IMAGE) -> Model:
    """A list are scales, a tuple sizes."""
    shown = ", ".join(map(str, numbers if isinstance(numbers, tuple) else map(float, numbers)))
    dtype = "int64" if isinstance(numbers, tuple) else "float"
    return model_of(signature, with_constants(body, {"k": f"{dtype}[{len(numbers)}] = [{shown}]"}))


def plan_of(model: Model, *sizes: str) -> list[object]:
    admitted = read_admitted(sizes or [f"{name}=1.." for name in open_names(model)])
    return list(lower(model, parse_target("x86-64-v3"), admitted).operations)


@pytest.mark.parametrize("name", [*RESIZED, *LOOPS])
def test_resize(name: str, tmp_path: Path) -> None:
    """Of a single pixel, odd and large ones, by image kernels where these have the mode."""
    body, numbers = {**RESIZED, **LOOPS}[name]
    solid = IMAGE.replace("s]", "s, 3]").replace("q]", "q, r]")
    model = resizing(RELU + body, numbers, IMAGE if name in RESIZED else solid)
    found = [op for op in plan_of(model) if isinstance(op, ResizeOp)]
    assert bool(found) == (name in RESIZED)
    runtime = compiled(model, tmp_path, "n=1..", "s=1..")
    for n, s in SIZES:
        check(model, runtime, {"n": n, "s": s})


def test_resize_to_the_size_of_another(tmp_path: Path) -> None:
    """Sizes that only meet in a run, larger, smaller and the same."""
    signature = "(%x: float[1, 20, n, s], %z: float[1, 4, a, b]) -> (%y: float[1, 20, p, q])"
    body = """%t = Shape(%z) {start = 2}
%c = Concat(%k, %t) {axis = 0}
%r = Relu(%x)
%y = Resize(%r, _, _, %c) {mode = "linear", coordinate_transformation_mode = "tf_half_pixel_for_nn"}
"""
    model = resizing(body, (1, 20), signature)
    assert any(isinstance(op, ResizeOp) for op in plan_of(model))
    runtime = compiled(model, tmp_path, *(f"{name}=1.." for name in "nsab"))
    for n, s, a, b in ((4, 5, 9, 1), (9, 8, 3, 7), (6, 7, 6, 7), (1, 1, 17, 5), (6, 7, 6, 9)):
        check(model, runtime, {"n": n, "s": s, "a": a, "b": b})


BLOCKS = {
    "blocks": ('%y = Resize(%t, _, %k) {mode = "linear"}', [1, 1, 2, 2]),
    "blocks that repeat": ("%y = Resize(%t, _, %k)", [1, 1, 2, 2]),
    "blocks by a fraction": ('%y = Resize(%t, _, %k) {mode = "linear"}', [1, 1, 1.7, 1.7]),
}
CONVOLVED = "%t = Conv(%x, %w) {pads = [1, 1, 1, 1]}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_resized_blocks_stay_within_their_buffers(name: str, tmp_path: Path) -> None:
    """Between convolutions, with pages around all memory that nothing may touch; two threads."""
    body, scales = BLOCKS[name]
    text = with_constants(CONVOLVED + body.replace("%y", "%u"), {"w": "float[20, 20, 3, 3]"})
    model = resizing(f"{text}\n%y = Conv(%u, %w)", scales)
    compiled(model, tmp_path, "n=2..", "s=2..")
    session, child = Session(model, optimize=False), Child()
    threaded = Runtime(tmp_path / "m.so", threads=2)
    for n, s in ((2, 2), (3, 16), (17, 40)):
        feeds = feeds_of(model, {"n": n, "s": s})
        want = session.run(feeds)["y"]
        atol = 1e-4 * float(np.abs(want).max())
        for have in (child.run_guarded(tmp_path / "m.so", feeds), threaded.run(feeds)):
            np.testing.assert_allclose(have["y"], want, rtol=1e-4, atol=atol)
    child.close()


HALVES = """%c = Conv(%x, %w) {pads = [1, 1, 1, 1]}
%p = MaxPool(%c) {kernel_shape = [2, 2], strides = [2, 2]}
%d = Conv(%p, %w) {pads = [1, 1, 1, 1]}
%q = MaxPool(%d) {kernel_shape = [2, 2], strides = [2, 2]}
%u = Resize(%q, _, %k)
%e = Concat(%d, %u) {axis = 1}
%f = Conv(%e, %v)
%t = ConvTranspose(%f, %o) {strides = [2, 2]}
%y = Concat(%c, %t) {axis = 1}"""
WEIGHTS = {"w": "float[8, 8, 3, 3]", "v": "float[8, 16, 1, 1]", "o": "float[8, 8, 2, 2]"}


def test_halves_that_are_joined(tmp_path: Path) -> None:
    """A U-Net takes multiples of 4, says so of others, and is compiled as if it knew."""
    text = with_constants(HALVES, WEIGHTS)
    model = resizing(text, [1, 1, 2, 2], "(%x: float[1, 8, n, s]) -> (%y: float[1, 16, n, s])")
    plan = plan_of(model)
    assert sum(isinstance(op, ConcatOp) for op in plan) == 2
    assert [len(op.outputs) for op in plan if isinstance(op, LoopsOp)] == [3, 3]  # tables
    runtime = compiled(model, tmp_path, "n=1..", "s=1..")
    for n, s in ((4, 4), (8, 12), (36, 20)):
        check(model, runtime, {"n": n, "s": s})
    with pytest.raises(SecateurError, match="n must be a multiple of 4"):
        runtime.run(feeds_of(model, {"n": 6, "s": 8}))


def test_pyramid_levels_that_are_added(tmp_path: Path) -> None:
    """Sizes that agree in some runs: those compute, the others are refused before they begin."""
    body = with_constants(
        "%c = Conv(%x, %w) {pads = [1, 1, 1, 1], strides = [2, 2]}\n"
        "%d = Conv(%c, %w) {pads = [1, 1, 1, 1], strides = [2, 2]}\n"
        "%u = Resize(%d, _, %k)\n%a = Add(%u, %c)\n%y = Conv(%a, %w) {pads = [1, 1, 1, 1]}",
        {"w": "float[8, 8, 3, 3]"},
    )
    signature = "(%x: float[1, 8, n, s]) -> (%y: float[1, 8, p, q])"
    model = resizing(body, [1, 1, 2, 2], signature)
    runtime = compiled(model, tmp_path, "n=1..", "s=1..")
    for n, s in ((3, 4), (8, 15), (31, 20)):
        check(model, runtime, {"n": n, "s": s})
    with pytest.raises(SecateurError, match="must be equal"):
        runtime.run(feeds_of(model, {"n": 5, "s": 8}))
    for sizes in (("n=4..64:4", "s=4..64:4"), ("n=32", "s=4..64:4")):
        compile_model(model, parse_target("native"), tmp_path / "m.so", sizes=read_admitted(sizes))
        check(model, Runtime(tmp_path / "m.so"), {"n": 32, "s": 8})


def test_scaled_sizes() -> None:
    """By a float of 32 bits: as in ONNX Runtime, which rounds before it cuts a fraction off."""
    n = e.symbol("n", 1, 1000)
    for scale in (0.6, 1.1, 0.3333333432674408, 1.5, 0.25, 3.0):
        size = e.scaled(n, float(np.float32(scale)))
        for number in (1, 3, 5, 10, 30, 999):
            want = int(np.float32(number) * np.float32(scale))
            assert e.substitute(size, lambda _, number=number: number) == want
        low, high = e.range_of(size)
        assert (low, high) == (int(np.float32(scale)), int(np.float32(1000) * np.float32(scale)))
