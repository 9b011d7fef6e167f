"""Resize and Upsample whose sizes follow from scales that a run computes, or from its data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import LoopsOp, ResizeOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.model import Model
from secateur.ir.reference import Session

from .child import Child, RefusedError
from .test_open_sizes import compiled, feeds_of, model_of, with_constants

MODES = {
    **{
        f"nearest, {mode}": f'nearest_mode = "{mode}", coordinate_transformation_mode = "{how}"'
        for mode, how in (
            ("floor", "asymmetric"), ("ceil", "half_pixel"),
            ("round_prefer_floor", "align_corners"), ("round_prefer_ceil", "pytorch_half_pixel"),
        )
    },
    **{
        f"{mode}, {how}": f'mode = "{mode}", coordinate_transformation_mode = "{how}"'
        for mode, how in (
            ("linear", "half_pixel"), ("linear", "half_pixel_symmetric"),
            ("linear", "align_corners"), ("linear", "pytorch_half_pixel"), ("cubic", "half_pixel"),
            ("cubic", "asymmetric"),
        )
    },
    "cubic, excluded": 'mode = "cubic", exclude_outside = 1, cubic_coeff_a = -0.5',
    "linear, antialias": 'mode = "linear", antialias = 1',
    "cubic, antialias": 'mode = "cubic", antialias = 1',
    "linear, antialias, excluded": 'mode = "linear", antialias = 1, exclude_outside = 1',
}  # fmt: skip

SCALES = (
    (1.0, 1.0), (2.0, 3.0), (1.0, 2.5), (1.5, 0.7), (0.3, 0.25), (3.9, 1.0), (0.05, 2.0),
    (0.6, 1.9),
)  # fmt: skip
HOSTILE = (0.0, -1.0, np.nan, np.inf, -np.inf, 1e30, 2.0**31, 4.1)


def image(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scaled(names: list[str], *, axes: bool) -> tuple[Model, list[str]]:
    """A Resize of an open image for each mode, and bounds of the results' sizes."""
    results = ", ".join(f"%y{i}: float[1, 2, p{i}, q{i}]" for i in range(len(names)))
    lines = [] if axes else ["%s = Concat(%ones, %k) {axis = 0}"]
    more, scales = (", axes = [2, 3]", "%k") if axes else ("", "%s")
    lines += [
        f"%y{i} = Resize(%x, _, {scales}) {{{MODES[name]}{more}}}" for i, name in enumerate(names)
    ]
    body = with_constants("\n".join(lines), {} if axes else {"ones": "float[2] = [1, 1]"})
    model = model_of(f"(%x: float[1, 2, h, w], %k: float[2]) -> ({results})", body)
    sizes = [f"y{i}.{a}=0..80" for i in range(len(names)) for a in (2, 3)]
    return model, ["h=1..20", "w=1..20", *sizes]


def check(
    have: Mapping[str, Any], want: Mapping[str, Any], feeds: Mapping[str, Any] | None = None
) -> None:
    for name, array in want.items():
        assert have[name].shape == array.shape, (name, feeds)
        np.testing.assert_allclose(have[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("axes", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("half", range(2))
def test_all_modes(half: int, axes: bool, tmp_path: Path) -> None:
    """As ONNX Runtime has it, by image kernels but for antialiasing, whose reach only a run tells;
    with pages around all memory that nothing may touch."""
    names = [*MODES][half::2]
    model, sizes = scaled(names, axes=axes)
    operations = lower(model.clone(), parse_target("native"), read_admitted(sizes)).operations
    found = [op.label for op in operations if isinstance(op, ResizeOp)]
    assert found == [f"y{i}" for i, name in enumerate(names) if "antialias" not in name]
    compiled(model.clone(), tmp_path, *sizes)
    session, child = Session(model, optimize=False), Child()
    for (h, w), scales in itertools.product(((1, 1), (5, 7), (20, 3)), SCALES):
        feeds = {"x": image(1, 2, h, w), "k": np.float32(scales)}
        want = session.run(feeds)
        if any(size * scale % 1 for size, scale in zip((h, w), scales, strict=True)):
            # ONNX Runtime differs from ONNX where corners are aligned.
            aligned = {f"y{i}" for i, n in enumerate(names) if "align_corners" in MODES[n]}
            want = {name: array for name, array in want.items() if name not in aligned}
        check(child.run_guarded(tmp_path / "m.so", feeds), want, feeds)
    feeds = {"x": image(1, 2, 20, 3), "k": np.float32([1e-30, 1])}
    assert child.run_guarded(tmp_path / "m.so", feeds)["y0"].shape == (1, 2, 0, 3)
    for factor, other in itertools.product(HOSTILE, (1.0, np.nan)):
        feeds = {"x": image(1, 2, 20, 3), "k": np.float32([factor, other])}
        with pytest.raises(RefusedError, match=r"fault 2 of 'y0'|must be from 0 to 80"):
            child.run_guarded(tmp_path / "m.so", feeds)
    child.close()


WHOLE = {
    "scales of all axes": (
        "(%x: float[1, 2, 5, 6], %k: float[4]) -> (%y: float[?, ?, ?, ?])",
        "%y = Resize(%x, _, %k)",
        ("y.0=0..3", "y.1=0..5", "y.2=0..20", "y.3=0..20"),
        [(1, 2, 1.5, 3), (3, 1, 1, 1), (1, 0.5, 2, 2), (1, 1, 0.1, 1)],
    ),
    "channels that are declared to stay": (
        "(%x: float[1, 2, 5, 6], %k: float[4]) -> (%y: float[1, 2, ?, ?])",
        '%y = Resize(%x, _, %k) {mode = "linear"}',
        ("y.2=0..20", "y.3=0..20"),
        [(1, 1, 1.5, 3), (1, 1, 0.5, 1)],
    ),
    "channels that are said to stay": (
        "(%x: float[1, 2, 5, 6], %k: float[4]) -> (%y: float[?, ?, ?, ?])",
        '%z = Resize(%x, _, %k) {mode = "linear"}\n%y = Conv(%z, %w)',
        ("z.0=1", "z.1=2", "z.2=0..20", "z.3=0..20"),
        [(1, 1, 1.5, 3), (1, 1, 0.5, 1)],
    ),
    "a region of interest": (
        "(%x: float[1, 2, 5, 6], %k: float[4]) -> (%y: float[1, 2, ?, ?])",
        '%y = Resize(%x, %roi, %k) {mode = "linear", extrapolation_value = 7.0, '
        'coordinate_transformation_mode = "tf_crop_and_resize"}',
        ("y.2=0..20", "y.3=0..20"),
        [
            (1, 1, 1.5, 3),
            (1, 1, 0.6, 2.2),
            (1, 1, 1, 2),
            (1, 1, 1.1, 2),
            (1, 1, 1, 1),
            (1, 1, 1.1, 1),
        ],
    ),
    "bytes": (
        "(%x: float[1, 2, 5, 6], %k: float[4]) -> (%y: uint8[1, 2, ?, ?])",
        "%a = Abs(%x)\n%c = Cast(%a) {to = 2}\n%y = Resize(%c, _, %k)",
        ("y.2=0..20", "y.3=0..20"),
        [(1, 1, 1.5, 3), (1, 1, 0.6, 2.2)],
    ),
}

CONSTANTS = {"w": "float[3, 2, 1, 1]", "roi": "float[8] = [0, 0, 0.1, 0.3, 1, 1, 0.9, 1.2]"}


@pytest.mark.parametrize("name", WHOLE)
def test_scales_of_all_axes(name: str, tmp_path: Path) -> None:
    signature, body, sizes, scales = WHOLE[name]
    used = {n: text for n, text in CONSTANTS.items() if f"%{n}" in body}
    model = model_of(signature, with_constants(body, used))
    compiled(model.clone(), tmp_path, *sizes)
    session, child = Session(model, optimize=False), Child()
    for each in scales:
        feeds = {"x": 9 * image(1, 2, 5, 6), "k": np.float32(each)}
        check(child.run_guarded(tmp_path / "m.so", feeds), session.run(feeds), feeds)
    if "channels" in name:
        with pytest.raises(RefusedError, match="fault 2"):
            child.run_guarded(tmp_path / "m.so", {**feeds, "k": np.float32([1, 2, 1, 1])})
    child.close()


def test_upsample(tmp_path: Path) -> None:
    model = model_of(
        "(%x: float[1, 2, h, w], %k: float[2]) -> (%y: float[1, 2, ?, ?])",
        with_constants(
            '%s = Concat(%ones, %k) {axis = 0}\n%y = Upsample(%x, %s) {mode = "linear"}',
            {"ones": "float[2] = [1, 1]"},
        ),
        opset=9,
    )
    runtime = compiled(model.clone(), tmp_path, "y.2=0..40", "y.3=0..40")
    session = Session(model, optimize=False)
    for scales in ((1.0, 1.0), (2.0, 1.5), (1.0, 3.7)):
        feeds = {"x": image(1, 2, 5, 7), "k": np.float32(scales)}
        check(runtime.run(feeds), session.run(feeds))


FITTED = {
    "not_larger": ((), [(5, 7), (12, 9), (1, 1), (3, 40), (50, 2), (6, 9)]),
    "not_smaller": (("y.2=0..300", "y.3=0..300"), [(5, 7), (12, 9), (1, 1), (3, 40), (6, 9)]),
}


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("policy", FITTED)
def test_an_aspect_ratio_that_is_kept(policy: str, told: bool, tmp_path: Path) -> None:
    """Sizes that are wished for, constants or told by an operand, whose bounds are those."""
    sizes, images = FITTED[policy]
    body = (
        f'%y = Resize(%x, _, _, %k) {{mode = "linear", axes = [2, 3], '
        f'keep_aspect_ratio_policy = "{policy}"}}'
    )
    extra = ", %k: int64[2]" if told else ""
    body = body if told else with_constants(body, {"k": "int64[2] = [6, 9]"})
    model = model_of(f"(%x: float[1, 2, h, w]{extra}) -> (%y: float[1, 2, ?, ?])", body)
    if told:
        sizes = (*sizes, "k.0=1..30", "k.1=1..30")
    compiled(model.clone(), tmp_path, *sizes)
    session, child = Session(model, optimize=False), Child()
    for shape in images:
        for wished in ((6, 9), (1, 30)) if told and policy == "not_larger" else ((6, 9),):
            feeds = {"x": image(1, 2, *shape)}
            if told:
                feeds["k"] = np.asarray(wished, np.int64)
            check(child.run_guarded(tmp_path / "m.so", feeds), session.run(feeds), feeds)
    child.close()


PYRAMID = """%s = Shape(%x)
%t = Shape(%z)
%s2 = Slice(%s, %two, %four)
%t2 = Slice(%t, %two, %four)
%sf = Cast(%s2) {to = 1}
%tf = Cast(%t2) {to = 1}
%d = Div(%tf, %sf)
%k = Concat(%ones, %d) {axis = 0}
%r = Resize(%x, _, %k)
%y = Add(%r, %z)"""

COMPUTED = {
    "the ratio of two sizes": (
        "(%x: float[1, 4, h, w], %z: float[1, 4, u, v]) -> (%y: float[1, 4, ?, ?])", PYRAMID,
        [{"h": 5, "w": 7, "u": 10, "v": 14}, {"h": 1, "w": 1, "u": 3, "v": 3},
         {"h": 13, "w": 25, "u": 25, "v": 49}],
    ),
    "a size times a number": (
        "(%x: float[1, 4, h, w]) -> (%y: float[1, 4, ?, ?])",
        "%s = Shape(%x)\n%s1 = Slice(%s, %zero, %two)\n%s2 = Slice(%s, %two, %four)\n"
        "%sf = Cast(%s2) {to = 1}\n%d = Mul(%sf, %f)\n%e = Floor(%d)\n%i = Cast(%e) {to = 7}\n"
        '%k = Concat(%s1, %i) {axis = 0}\n%y = Resize(%x, _, _, %k) {mode = "linear"}',
        [{"h": 5, "w": 7}, {"h": 1, "w": 1}, {"h": 13, "w": 25}, {"h": 100, "w": 1}],
    ),
    "antialiasing to a known size": (
        "(%x: float[1, 4, h, w]) -> (%y: float[1, 4, 6, 9])",
        '%y = Resize(%x, _, _, %to) {mode = "cubic", antialias = 1}',
        [{"h": 5, "w": 7}, {"h": 1, "w": 1}, {"h": 13, "w": 25}, {"h": 3, "w": 90}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_sizes_that_follow_from_others(name: str, tmp_path: Path) -> None:
    """No bounds are needed where sizes say them."""
    signature, body, runs = COMPUTED[name]
    constants = {
        "zero": "int64[1] = [0]", "two": "int64[1] = [2]", "four": "int64[1] = [4]",
        "ones": "float[2] = [1, 1]", "f": "float[] = 1.3", "to": "int64[4] = [1, 4, 6, 9]",
    }  # fmt: skip
    used = {n: text for n, text in constants.items() if f"%{n}" in body}
    model = model_of(signature, with_constants(body, used))
    compiled(model.clone(), tmp_path)
    session, child = Session(model, optimize=False), Child()
    for sizes in runs:
        feeds = feeds_of(model, sizes)
        check(child.run_guarded(tmp_path / "m.so", feeds), session.run(feeds), feeds)
    child.close()


def test_what_has_no_bound_is_refused(tmp_path: Path) -> None:
    """By node and size, with the option that bounds it; so is a bound on an axis that isn't."""
    model = model_of(
        "(%x: float[1, 2, 5, 6], %k: float[4]) -> (%y: float[1, 2, ?, ?])", "%y = Resize(%x, _, %k)"
    )
    with pytest.raises(UnsupportedError, match=r"'y' \(Resize\): .* size 2 .*--size y\.2=0\.\.N"):
        compiled(model.clone(), tmp_path)
    with pytest.raises(SecateurError, match=r"--size y\.7: no sizes follow from what 'y\.7' holds"):
        compiled(model.clone(), tmp_path, "y.2=0..9", "y.3=0..9", "y.7=0..9")


def test_no_table_is_made_of_what_spreads() -> None:
    """Antialiasing of a run's own reach is one kernel after that of sizes."""
    model, sizes = scaled(["linear, antialias"], axes=True)
    operations = lower(model, parse_target("native"), read_admitted(sizes)).operations
    assert [type(op) for op in operations].count(LoopsOp) == 2
