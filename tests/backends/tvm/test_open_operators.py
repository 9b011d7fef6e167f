"""Operators on open sizes: slices of all kinds, what lies outside, and indices into open axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session

from .child import Child
from .test_open_sizes import check, compiled, model_of, with_constants

FAR = 2**63 - 1
SLICES = (
    [(start, FAR, step) for start in (0, 1, 5) for step in (1, 2, 3)]
    + [(start, end, step) for start, end in ((1, 9), (5, -1), (-5, -1), (-5, 9)) for step in (1, 2)]
    + [(-1, -FAR, step) for step in (-1, -3)]
    + [(20, 0, -1), (-2, 0, -1), (-1, 3, -2), (20, -FAR, -3), (-3, -9, -2)]
)
"""Where slices begin, before which element they end, and how they step."""


def slice_of(source: str, operands: Sequence[int], result: str) -> list[str]:
    """A node, behind its operands: start, end, axis and step."""
    names = [f"{result}_{name}" for name in ("start", "end", "axis", "step")]
    constants = [f"const %{n}: int64[1] = [{v}]" for n, v in zip(names, operands, strict=True)]
    return [*constants, f"%{result} = Slice(%{source}, {', '.join(f'%{n}' for n in names)})"]


def slices() -> str:
    """A node for each, along the first axis of one input and the last one of another in turns."""
    lines = []
    for index, (start, end, step) in enumerate(SLICES):
        lines += slice_of("xz"[index % 2], (start, end, index % 2, step), f"y{index}")
    return "\n".join(lines)


def test_slices(tmp_path: Path) -> None:
    """As ONNX Runtime has them, but for a part without elements, which may be refused."""
    results = ", ".join(f"%y{i}: float[?, ?]" for i in range(len(SLICES)))
    model = model_of(f"(%x: float[n, 4], %z: float[3, m]) -> ({results})", slices())
    runtime = compiled(model, tmp_path)
    for sizes in ((10, 11), (9, 10), (12, 13), (13, 9)):
        check(model, runtime, dict(zip("nm", sizes, strict=True)))


@pytest.mark.parametrize("index", [2, 8, 12, 13, 15, 19, 21, 23])
def test_slices_of_few_elements(index: int, tmp_path: Path) -> None:
    start, end, step = SLICES[index]
    constants = {"s": start, "e": end, "a": 0, "t": step}
    lines = "".join(f"const %{n}: int64[1] = [{v}]\n" for n, v in constants.items())
    text = lines + "%y = Slice(%x, %s, %e, %a, %t)\n%z = Relu(%y)"
    model = model_of("(%x: float[n, 3]) -> (%z: float[?, 3])", text)
    runtime, equal = compiled(model, tmp_path), 0
    for size in range(1, 14):
        x = np.arange(3.0 * size, dtype=np.float32).reshape(size, 3)
        wanted = Session(model, optimize=False).run({"x": x})["z"]
        try:
            found = runtime.run({"x": x})["z"]
        except SecateurError as error:
            assert not wanted.size, error  # noqa: PT017
            continue
        np.testing.assert_array_equal(found, wanted)
        equal += 1
    assert equal >= 4


BEFORE = [(2, FAR, 2), (5, FAR, 3), (5, -1, 2), (5, FAR, 1), (1, FAR, 1), (-2, -FAR, -1)]
"""Slices along the last axis but one: start, end and step."""


def test_slices_before_an_open_axis(tmp_path: Path) -> None:
    lines = []
    for index, (start, end, step) in enumerate(BEFORE):
        lines += slice_of("xz"[index % 2], (start, end, index % 2, step), f"c{index}")
        lines.append(f"%y{index} = Relu(%c{index})")
    results = ", ".join(f"%y{i}: float[*]" for i in range(len(BEFORE)))
    model = model_of(f"(%x: float[n, m], %z: float[b, n, m]) -> ({results})", "\n".join(lines))
    compiled(model, tmp_path, "b=1..")
    child = Child()
    for sizes in ((1, 8, 1), (2, 9, 33), (3, 14, 7)):
        z = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
        have = child.run_guarded(tmp_path / "m.so", {"x": z[0], "z": z})
        for name, array in Session(model, optimize=False).run({"x": z[0], "z": z}).items():
            np.testing.assert_array_equal(have[name], array, err_msg=name)
    child.close()


@pytest.mark.slow
@pytest.mark.parametrize("axis", range(3))
def test_slices_of_three_open_axes(axis: int, tmp_path: Path) -> None:
    """What is cut off the first axis is multiplied by the sizes of the two others."""
    lines = []
    for index, (start, end, step) in enumerate(BEFORE):
        lines += slice_of("x", (start, end, axis, step), f"y{index}")
    results = ", ".join(f"%y{i}: float[*]" for i in range(len(BEFORE)))
    model = model_of(f"(%x: float[n, m, b]) -> ({results})", "\n".join(lines))
    compiled(model, tmp_path, "n=1..")
    child = Child()
    for sizes in ((8, 9, 7), (9, 17, 33), (14, 7, 8)):
        x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
        have = child.run_guarded(tmp_path / "m.so", {"x": x})
        for name, array in Session(model, optimize=False).run({"x": x}).items():
            np.testing.assert_array_equal(have[name], array, err_msg=name)
    child.close()


TRANSFORMS = [
    ("onesided = 1", 1, lambda z: np.fft.rfft(z, axis=1)),
    ("", 1, lambda z: np.fft.fft(z, axis=1)),
    ("", 2, lambda z: np.fft.fft(z, axis=1)),
    ("inverse = 1", 2, lambda z: np.fft.ifft(z, axis=1)),
]
"""Attributes of a DFT, parts of its input's numbers, and what NumPy makes of them."""


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_transforms_along_an_open_axis(dtype: str, opset: int, tmp_path: Path) -> None:
    """Of all their length, and of six elements, be there more or fewer."""
    lines = ["const %six: int64[] = 6", "const %axis: int64[] = 1"]
    inputs, results = {}, []
    for index, (attributes, parts, _) in enumerate(TRANSFORMS):
        inputs[f"x{index}"] = f"%x{index}: {dtype}[2, n, {parts}]"
        for name, length in (("y", ""), ("z", ", %six")):
            operands = f"%x{index}{length}"
            if opset == 20:
                operands = f"%x{index}{length or ', _'}, %axis"
            lines.append(f"%{name}{index} = DFT({operands}) {{{attributes}}}")
            results.append(f"%{name}{index}: {dtype}[*]")
    text = f"({', '.join(inputs.values())}) -> ({', '.join(results)})"
    compiled(model_of(text, "\n".join(lines), opset), tmp_path, "n=1..")
    child, random = Child(), np.random.default_rng(0)
    for size in (1, 2, 5, 6, 33):
        shapes = {f"x{i}": (2, size, parts) for i, (_, parts, _) in enumerate(TRANSFORMS)}
        kind = np.float32 if dtype == "float" else np.float64
        feeds = {name: random.standard_normal(shape).astype(kind) for name, shape in shapes.items()}
        found = child.run_guarded(tmp_path / "m.so", feeds)
        for index, (_, parts, transform) in enumerate(TRANSFORMS):
            x = feeds[f"x{index}"].astype(np.float64)
            z = x[..., 0] + 1j * x[..., 1] if parts == 2 else x[..., 0]
            six = np.concatenate([z, np.zeros((2, 6), z.dtype)], axis=1)[:, :6]
            for name, given in (("y", z), ("z", six)):
                want = transform(given)
                have = found[f"{name}{index}"]
                np.testing.assert_allclose(have[..., 0] + 1j * have[..., 1], want, atol=2e-5)
    child.close()


@pytest.mark.parametrize("opset", [17, 20])
def test_half_of_a_spectrum_turned_back(opset: int, tmp_path: Path) -> None:
    """Into an even number of values where nothing says how many; a given one tells the half."""
    body = """const %five: int64[] = [5]
%y = DFT(%x) {inverse = 1, onesided = 1}
%z = DFT(%h, %five) {inverse = 1, onesided = 1}"""
    given = "(%x: float[b, n, 2], %h: float[b, m, 2])"
    model = model_of(f"{given} -> (%y: float[?, ?, 1], %z: float[?, ?, 1])", body, opset)
    runtime = compiled(model, tmp_path, "b=1..")
    for n in (2, 3, 4, 9, 32):
        check(model, runtime, {"b": 2, "n": n, "m": 3})
    for sizes in ({"b": 2, "n": 1, "m": 3}, {"b": 2, "n": 3, "m": 4}, {"b": 2, "n": 3, "m": 2}):
        with pytest.raises(SecateurError, match=r"'n' is from 2|must be"):
            check(model, runtime, sizes)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_frames_of_an_open_signal(step: int, onesided: int, tmp_path: Path) -> None:
    window = np.hanning(8).astype(np.float32)
    lines = [f"const %step: int64[] = {step}", "const %eight: int64[] = 8"]
    lines.append(f"const %w: float[8] = [{', '.join(map(str, window))}]")
    lines += [
        f"%{y} = STFT({operands}) {{onesided = {onesided}}}"
        for y, operands in (("y", "%x, %step, %w"), ("z", "%x, %step, _, %eight"))
    ]
    text = "(%x: float[2, n, 1]) -> (%y: float[*], %z: float[*])"
    runtime = compiled(model_of(text, "\n".join(lines), 17), tmp_path, "n=1..")
    child = Child()
    transform = np.fft.rfft if onesided else np.fft.fft
    for size in (8, 9, 18, 41):
        x = np.random.default_rng(0).standard_normal((2, size, 1)).astype(np.float32)
        found = child.run_guarded(tmp_path / "m.so", {"x": x})
        frames = np.lib.stride_tricks.sliding_window_view(x[..., 0], 8, axis=1)[:, ::step]
        for name, weights in (("y", window), ("z", 1)):
            have = found[name][..., 0] + 1j * found[name][..., 1]
            np.testing.assert_allclose(have, transform(frames * weights), atol=2e-5)
    child.close()
    with pytest.raises(SecateurError, match="input 'x': axis 1: 'n' is from 8 up"):
        runtime.run({"x": x[:, :7]})


def test_every_other_pixel(tmp_path: Path) -> None:
    """An image's pixels of odd and even places, joined, which only even sizes have as many of."""
    lines = ["const %m: int64[1] = [9223372036854775807]"]
    lines += [f"const %c{i}: int64[1] = [{i}]" for i in range(4)]
    for row in (0, 1):
        lines.append(f"%r{row} = Slice(%x, %c{row}, %m, %c2, %c2)")
        lines += [f"%p{row}{c} = Slice(%r{row}, %c{c}, %m, %c3, %c2)" for c in (0, 1)]
    lines.append(
        "%y = Concat(%p00, %p10, %p01, %p11) {axis = 1}\n%z = Conv(%y, %w) {pads = [1, 1, 1, 1]}"
    )
    text = with_constants("\n".join(lines), {"w": "float[8, 12, 3, 3]"})
    model = model_of("(%x: float[1, 3, h, w]) -> (%z: float[1, 8, ?, ?])", text)
    runtime = compiled(model, tmp_path)
    for height, width in ((2, 2), (8, 14), (32, 20)):
        check(model, runtime, {"h": height, "w": width})
    with pytest.raises(SecateurError, match="h"):
        check(model, runtime, {"h": 7, "w": 8})


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_padding_of_three_open_axes(mode: str, tmp_path: Path) -> None:
    body = f'const %p: int64[8] = [0, 1, 2, 0, 0, 1, 0, 3]\n%y = Pad(%x, %p) {{mode = "{mode}"}}'
    model = model_of("(%x: float[1, a, b, c]) -> (%y: float[1, ?, ?, ?])", body, 19)
    compiled(model, tmp_path)
    child, random = Child(), np.random.default_rng(0)
    for sizes in ((4, 4, 4), (5, 3, 9), (2, 3, 4)):
        feeds = {"x": random.standard_normal((1, *sizes)).astype(np.float32)}
        want = Session(model, optimize=False).run(feeds)["y"]
        np.testing.assert_array_equal(child.run_guarded(tmp_path / "m.so", feeds)["y"], want)
    child.close()


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_sampling_by_a_grid(padding: str, corners: int, tmp_path: Path) -> None:
    attributes = f'align_corners = {corners}, padding_mode = "{padding}"'
    body = "\n".join(
        f'%{m[0]} = GridSample(%x, %g) {{mode = "{m}", {attributes}}}'
        for m in ("linear", "nearest", "cubic")
    )
    signature = "(%x: float[2, 3, h, w], %g: float[2, a, b, 2])"
    results = ", ".join(f"%{m}: float[2, 3, ?, ?]" for m in "lnc")
    model = model_of(f"{signature} -> ({results})", body, 20)
    compiled(model, tmp_path)
    child, random = Child(), np.random.default_rng(1)
    for h, w, a, b in ((5, 7, 3, 2), (1, 2, 2, 5), (4, 1, 1, 1)):
        x, grid = random.standard_normal((2, 3, h, w)), random.uniform(-1.6, 1.6, (2, a, b, 2))
        feeds = {"x": x.astype(np.float32), "g": grid.astype(np.float32)}
        want = Session(model, optimize=False).run(feeds)
        have = child.run_guarded(tmp_path / "m.so", feeds)
        for name, array in want.items():
            np.testing.assert_allclose(have[name], array, rtol=1e-3, atol=1e-4)
    child.close()


NORMALIZED = """%y, %mean, %deviation = LayerNormalization(%x, %s) {axis = -1}
%d, %mask = Dropout(%y)"""


def test_results_beside_the_first(tmp_path: Path) -> None:
    """Their shapes follow from the operands, too, where the model declares none."""
    results = "%d: float[?, ?, 8], %mean: float[?, ?, ?], %deviation: float[?, ?, ?]"
    signature = f"(%x: float[n, m, 8], %s: float[8]) -> ({results}, %mask: bool[?, ?, ?])"
    model = model_of(signature, NORMALIZED, 17)
    runtime = compiled(model, tmp_path)
    for n, m in ((1, 1), (3, 5), (2, 17)):
        check(model, runtime, {"n": n, "m": m})


@pytest.mark.parametrize("rows", ["3", "k"])
@pytest.mark.parametrize("op_type", ["GatherElements", "ScatterElements"])
def test_indices_of_part_of_an_open_axis(op_type: str, rows: str, tmp_path: Path) -> None:
    """Data of fewer elements than the indices along another axis end the run."""
    operands = "%x, %i" if op_type == "GatherElements" else "%x, %i, %u"
    signature = f"(%x: float[n, m], %i: int64[{rows}, 2], %u: float[{rows}, 2])"
    body = f"%y = {op_type}({operands}) {{axis = 1}}\n%z = Neg(%u)"
    model = model_of(f"{signature} -> (%y: float[?, ?], %z: float[?, ?])", body)
    compiled(model, tmp_path, "n=1..", *["k=1.."] * (rows == "k"))
    child = Child()
    for n, m, k in ((3, 4, 3), (7, 2, 3), (5, 9, 3)):
        feeds: dict[str, Any] = {"x": np.arange(float(n * m), dtype=np.float32).reshape(n, m)}
        feeds |= {"i": np.arange(2 * k).reshape(k, 2) % m, "u": np.ones((k, 2), np.float32)}
        want = Session(model, optimize=False).run(feeds)
        have = child.run_guarded(tmp_path / "m.so", feeds)
        for name, array in want.items():
            np.testing.assert_array_equal(have[name], array)
    feeds["x"] = feeds["x"][:2]
    with pytest.raises(Exception, match="equal"):
        child.run_guarded(tmp_path / "m.so", feeds)
    child.close()


ROTARY = (
    "(%x: float[b, 2, s, 8], %c: float[t, 4], %d: float[t, 4]{more}) -> (%y: float[?, 2, ?, 8])"
)


@pytest.mark.parametrize("known", [False, True])
def test_positions_in_open_tables(known: bool, tmp_path: Path) -> None:
    """Tables of sines with fewer rows than a position end the run."""
    body = "%y = RotaryEmbedding(%x, %c, %d, %p)"
    signature = ROTARY.format(more="" if known else ", %p: int64[b, s]")
    positions = np.array([[0, 3, 1, 4], [2, 2, 0, 1]])
    if known:
        body = f"const %p: int64[2, 4] = {positions.ravel().tolist()}\n{body}"
        signature = signature.replace("[b, 2, s", "[2, 2, 4")
    model = model_of(signature, body, 23)
    runtime, random = compiled(model, tmp_path), np.random.default_rng(2)
    for rows in (5, 9, 4):
        shapes = {"x": (2, 2, 4, 8), "c": (rows, 4), "d": (rows, 4)}
        feeds: dict[str, Any] = {
            n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()
        }
        feeds |= {} if known else {"p": positions}
        if rows < 5:
            with pytest.raises(SecateurError):
                runtime.run(feeds)
            continue
        want = Session(model, optimize=False).run(feeds)["y"]
        np.testing.assert_allclose(runtime.run(feeds)["y"], want, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_required(tmp_path: Path) -> None:
    """Features that have to be numbers, of as many rows and columns as a run has."""
    node = helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml", threshold=0.5)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["a", "b"]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    runtime = compiled(model, tmp_path, "a=1..", "b=1..")
    for sizes in ((1, 1), (3, 17), (40, 2)):
        x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
        np.testing.assert_array_equal(runtime.run({"x": x})["y"], x > 0.5)
    x[1, 1] = np.nan
    with pytest.raises(SecateurError, match="y"):
        runtime.run({"x": x})


def test_crop_or_padding_by_the_size(tmp_path: Path) -> None:
    """Which of them it is, and how much, follows from the image of a run."""
    body = "const %s: int64[2] = [6, 5]\n%y = CenterCropPad(%x, %s) {axes = [1, 2]}"
    model = model_of("(%x: float[2, h, w]) -> (%y: float[2, 6, 5])", body, 18)
    compiled(model, tmp_path)
    child = Child()
    for sizes in ((1, 1), (6, 5), (7, 4), (5, 6), (9, 16), (2, 3)):
        x = np.random.default_rng(0).standard_normal((2, *sizes)).astype(np.float32)
        want = Session(model, optimize=False).run({"x": x})["y"]
        np.testing.assert_array_equal(child.run_guarded(tmp_path / "m.so", {"x": x})["y"], want)
    child.close()


def test_attention_to_keys_that_count(tmp_path: Path) -> None:
    """Of an open number of keys as many as an input says for each entry of the batch: alone, with
    a mask, and where later ones don't count either."""
    rest = "_, _, %n)"
    body = f"""%y = Attention(%q, %k, %v, _, {rest}
        %masked = Attention(%q, %k, %v, %m, {rest}
        %causal = Attention(%q, %k, %v, _, {rest} {{is_causal = 1}}"""
    signature = "%q: float[b, 4, s, 8], %k: float[b, 2, t, 8], %v: float[b, 2, t, 6]"
    results = ", ".join(f"%{n}: float[b, 4, s, 6]" for n in ("y", "masked", "causal"))
    model = model_of(f"({signature}, %m: float[s, t], %n: int64[b]) -> ({results})", body, 24)
    runtime, random = compiled(model, tmp_path, "b=1.."), np.random.default_rng(0)
    session = Session(model, optimize=False)
    for s, t, counts in ((1, 1, [1]), (3, 5, [5, 2]), (4, 33, [1, 33, 17]), (5, 16, [3, 16])):
        b = len(counts)
        shapes = {"q": (b, 4, s, 8), "k": (b, 2, t, 8), "v": (b, 2, t, 6), "m": (s, t)}
        feeds: dict[str, Any] = {
            n: random.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()
        }
        feeds["n"] = np.array(counts, np.int64)
        want, have = session.run(feeds), runtime.run(feeds)
        for name, array in want.items():
            np.testing.assert_allclose(have[name], array, rtol=1e-5, atol=1e-6)


def test_results_known_to_be_empty(tmp_path: Path) -> None:
    """An axis of 0 beside an open one: results have their shapes, and nothing is computed."""
    body = "%y = Trilu(%x)\n%a = Mul(%x, %x)\n%s = Concat(%x, %a) {axis = 1}"
    signature = (
        "(%x: float[n, 0, m]) -> (%y: float[?, ?, ?], %a: float[?, ?, ?], %s: float[?, ?, ?])"
    )
    model = model_of(signature, body)
    runtime = compiled(model, tmp_path)
    for n, m in ((1, 1), (3, 5)):
        check(model, runtime, {"n": n, "m": m})
