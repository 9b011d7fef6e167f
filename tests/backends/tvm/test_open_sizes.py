"""Artifacts of models with open sizes: one for every length, batch and image size."""

from __future__ import annotations

import ctypes
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact import size_code
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.faults import Fault
from secateur.backends.tvm.graph.most import MOST
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.reference import Session
from secateur.ir.text import parse_model

from .child import Child

Array = Any
TARGET = parse_target("native")
LENGTHS = (1, 2, 7, 16, 17, 33, 64, 70)


def model_of(signature: str, body: str, opset: int = 18) -> Model:
    text = f'model <ir_version = 8, opset = ["" = {opset}]>\ngraph g {signature} {{\n{body}\n}}\n'
    model = parse_model(text)
    infer_shapes(model)
    return model


def compiled(model: Model, folder: Path, *sizes: str) -> Runtime:
    compile_model(model, TARGET, folder / "m.so", sizes=read_admitted(sizes))
    return Runtime(folder / "m.so")


def feeds_of(model: Model, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Random inputs; integers are 0, 1 or 2."""
    random = np.random.default_rng(seed)
    made = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape or ()]
        if value.dtype == 1:
            made[value.name] = random.standard_normal(shape).astype(np.float32)
        else:
            made[value.name] = random.integers(0, 3, shape)
    return made


def check(model: Model, runtime: Runtime, sizes: Mapping[str, int]) -> None:
    """The artifact gives what ONNX Runtime does for inputs of these sizes."""
    feeds = feeds_of(model, sizes)
    want, have = Session(model, optimize=False).run(feeds), runtime.run(feeds)
    for name, array in want.items():
        assert have[name].shape == array.shape, sizes
        scale = float(np.abs(array).max(initial=0.0)) if array.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(have[name], array, rtol=1e-4, atol=1e-5 * max(scale, 1.0))


ATTENTION = """%q = Transpose(%x) {perm = [0, 2, 1, 3]}
%k = Transpose(%z) {perm = [0, 2, 3, 1]}
%v = Transpose(%z) {perm = [0, 2, 1, 3]}
%a = MatMul(%q, %k)
%p = Softmax(%a) {axis = -1}
%o = MatMul(%p, %v)
%y = Transpose(%o) {perm = [0, 2, 1, 3]}"""

CASES = {
    "samples that are mixed": (
        "(%x: float[n, 5]) -> (%y: float[n, 5])",
        "%m = ReduceMean(%x, %axes)\n%y = Sub(%x, %m)",
        {"axes": "int64[1] = [0]"},
    ),
    "a product with itself": (
        "(%x: float[n, 20]) -> (%y: float[n, n])",
        "%t = Transpose(%x) {perm = [1, 0]}\n%y = MatMul(%x, %t)",
        {},
    ),
    "rows": (
        "(%x: float[s, 3, n]) -> (%y: float[s, 3, n], %z: float[s, 3, n], %m: float[s, 3])",
        "%c = CumSum(%x, %zero)\n%y = Softmax(%c) {axis = -1}\n"
        "%z = LogSoftmax(%c) {axis = -1}\n%m = ReduceMax(%c, %last) {keepdims = 0}",
        {"zero": "int64[] = [0]", "last": "int64[1] = [-1]"},
    ),
    "attention": ("(%x: float[b, s, 2, 16], %z: float[b, n, 2, 16]) -> (%y: float[b, s, 2, 16])",
                  ATTENTION, {}),
    "attention with time first": (
        "(%x: float[n, b, 64]) -> (%y: float[n, b, 64])",
        "%s = Shape(%x)\n%n = Slice(%s, %from, %one)\n%b = Slice(%s, %one, %two)\n"
        "%many = Mul(%b, %four)\n%to = Concat(%n, %many, %dim) {axis = 0}\n"
        "%h = Reshape(%x, %to)\n%q = Transpose(%h) {perm = [1, 0, 2]}\n"
        "%k = Transpose(%h) {perm = [1, 2, 0]}\n%a = MatMul(%q, %k)\n%p = Softmax(%a)\n"
        "%o = MatMul(%p, %q)\n%t = Transpose(%o) {perm = [1, 0, 2]}\n"
        "%back = Concat(%n, %b, %whole) {axis = 0}\n%y = Reshape(%t, %back)",
        {"from": "int64[1] = [0]", "one": "int64[1] = [1]", "two": "int64[1] = [2]",
         "four": "int64[1] = [4]", "dim": "int64[1] = [16]", "whole": "int64[1] = [64]"},
    ),
    "padding to a multiple": (
        "(%x: float[2, n, 3]) -> (%y: float[2, m, 3])",
        "%s = Shape(%x)\n%n = Slice(%s, %one, %two)\n%r = Mod(%n, %eight)\n"
        "%p = Sub(%eight, %r)\n%q = Mod(%p, %eight)\n"
        "%pads = Concat(%none, %none, %none, %none, %q, %none) {axis = 0}\n%y = Pad(%x, %pads)",
        {"one": "int64[1] = [1]", "two": "int64[1] = [2]", "eight": "int64[1] = [8]",
         "none": "int64[1] = [0]"},
    ),
    "a dense layer": (
        "(%x: float[n, 40]) -> (%y: float[n, 24])",
        "%h = MatMul(%x, %w)\n%r = Relu(%h)\n%y = CumSum(%r, %zero)",
        {"w": "float[40, 24]", "zero": "int64[] = [0]"},
    ),
    "convolution of an open image": (
        "(%x: float[1, 3, n, s]) -> (%y: float[1, 4, a, b])",
        "%y = Conv(%x, %w) {strides = [2, 1], pads = [1, 1, 1, 1]}",
        {"w": "float[4, 3, 3, 3]"},
    ),
    "the last step": (
        "(%x: float[b, n, 6]) -> (%y: float[b, 1, 6], %z: float[1, n, 6])",
        "%y = Slice(%x, %from, %to, %one)\n%z = Slice(%x, %from, %to)",
        {"from": "int64[1] = [-1]", "to": "int64[1] = [9223372036854775807]",
         "one": "int64[1] = [1]"},
    ),
    "a shape that is computed": (
        "(%x: float[b, n, 12]) -> (%y: float[b, n, 3, 4])",
        "%s = Shape(%x) {end = 2}\n%t = Concat(%s, %heads) {axis = 0}\n%y = Reshape(%x, %t)",
        {"heads": "int64[2] = [3, 4]"},
    ),
    "elements that indices choose": (
        "(%x: float[n, 3, 6], %i: int64[b, s]) -> (%y: float[n, b, s, 6])",
        "%y = Gather(%x, %i) {axis = 1}",
        {},
    ),
    "sizes that are joined": (
        "(%x: float[b, n, 4], %z: float[b, s, 4]) -> (%y: float[b, t, 4])",
        "%y = Concat(%x, %z) {axis = 1}",
        {},
    ),
    "time first": (
        "(%x: float[n, 2, 5]) -> (%y: float[n, 1, 2, 4])",
        "%y, %h, %c = LSTM(%x, %w, %r) {hidden_size = 4}",
        {"w": "float[1, 16, 5]", "r": "float[1, 16, 4]"},
    ),
}  # fmt: skip


def with_constants(body: str, constants: Mapping[str, str]) -> str:
    """A body with initializers, random ones where no elements are given."""
    lines = []
    random = np.random.default_rng(1)
    for name, text in constants.items():
        if "=" not in text:
            shape = [int(d) for d in text[text.index("[") + 1 : -1].split(",")]
            numbers = random.standard_normal(int(np.prod(shape))) * 0.3
            text += f" = [{', '.join(f'{n:.4f}' for n in numbers)}]"
        lines.append(f"const %{name}: {text}")
    return "\n".join([*lines, body])


def case(name: str) -> Model:
    signature, body, constants = CASES[name]
    return model_of(signature, with_constants(body, constants))


@pytest.mark.parametrize("name", CASES)
def test_all_lengths(name: str, tmp_path: Path) -> None:
    """One artifact is right for all sizes: those of a vector, one more, one less."""
    model = case(name)
    open_ = [d for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)]
    runtime = compiled(model, tmp_path, *(f"{d}=1.." for d in dict.fromkeys(open_)))
    lengths = [n for n in LENGTHS if name != "convolution of an open image" or n > 1]
    for index, n in enumerate(lengths):
        check(model, runtime, {"n": n, "b": 1 + index % 3, "s": 2 + lengths[-1 - index]})


def test_no_access_passes_a_buffer(tmp_path: Path) -> None:
    """With pages around all memory that nothing may touch, for sizes around those of vectors."""
    child = Child()
    for name in ("attention", "rows", "elements that indices choose", "time first"):
        model, folder = case(name), tmp_path / name
        folder.mkdir()
        names = [d for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)]
        compiled(model, folder, *(f"{d}=1.." for d in dict.fromkeys(names)))
        session = Session(model, optimize=False)
        for n, s in itertools.product((1, 15, 16, 33), (1, 5)):
            feeds = feeds_of(model, {"n": n, "b": 2, "s": s})
            if n == 1 and name == "elements that indices choose":
                feeds["i"] = feeds["i"] - 3  # from the end
            have = child.run_guarded(folder / "m.so", feeds)
            for output, array in session.run(feeds).items():
                np.testing.assert_allclose(have[output], array, rtol=1e-4, atol=1e-5)
    child.close()


def refusals() -> Iterator[tuple[str, dict[str, int], str]]:
    yield "n=2..8", {"n": 9, "s": 4}, "input 'x': axis 1: 'n' is from 2 to 8"
    yield "n=2..8", {"n": 1, "s": 4}, "input 'x': axis 1: 'n' is from 2 to 8"
    yield "n=4..32:4", {"n": 6, "s": 4}, "n must be a multiple of 4"
    yield "s=4", {"n": 4, "s": 5}, r"input 'z': shape \[5, 4\] given, \[4, 'n'\] expected"


@pytest.mark.parametrize("count", [3, 4])
def test_the_last_part_of_a_split_may_be_smaller(count: int, tmp_path: Path) -> None:
    """It has an element or more, or the run is refused, also where the model has no use for it."""
    names = [f"%y{i}" for i in range(count)]
    for used in (names, [*names[:-1]]):
        outputs = ", ".join(f"{y}: float[b, p{i}, 3]" for i, y in enumerate(used))
        model = model_of(
            f"(%x: float[b, n, 3]) -> ({outputs})",
            f"{', '.join(names)} = Split(%x) {{axis = 1, num_outputs = {count}}}",
        )
        runtime = compiled(model, tmp_path, "b=1..", "n=1..")
        for n in (count, 7, 8, 11, 40, 201):
            check(model, runtime, {"n": n, "b": 2})
        for n in (1, 2, *([4] if count == 3 else [6])):
            with pytest.raises(SecateurError, match=f"would not be within|'n' is from {count} up"):
                runtime.run(feeds_of(model, {"n": n, "b": 2}))


@pytest.mark.parametrize(("sizes", "given", "message"), list(refusals()))
def test_other_sizes_are_refused(
    sizes: str, given: dict[str, int], message: str, tmp_path: Path
) -> None:
    """Before anything is computed, by input, axis and what is admitted; then it runs again."""
    model = model_of(
        "(%x: float[2, n], %z: float[s, n]) -> (%y: float[2, s])",
        "%t = Transpose(%z) {perm = [1, 0]}\n%y = MatMul(%x, %t)",
    )
    runtime = compiled(model, tmp_path, sizes, *(["n=1.."] if sizes.startswith("s") else []))
    with pytest.raises(SecateurError, match=message):
        runtime.run(feeds_of(model, given))
    check(model, runtime, {"n": 8, "s": 4})


def test_other_bounds_in_the_same_process(tmp_path: Path) -> None:
    """What was admitted of a symbol of the same name before says nothing."""
    model = model_of("(%x: float[n, 4]) -> (%y: float[n, 4])", "%y = Relu(%x)")
    for least in (4, 1, 2):
        runtime = compiled(model, tmp_path, f"n={least}..")
        check(model, runtime, {"n": least})


def test_inputs_that_disagree(tmp_path: Path) -> None:
    """A symbol has one size in all inputs, and sizes that are added are equal."""
    model = model_of(
        "(%x: float[n, 4], %z: float[n, 4], %w: float[m, 4]) -> (%y: float[n, 4])",
        "%a = Add(%x, %z)\n%b = Add(%a, %w)\n%y = CumSum(%b, %zero)".replace(
            "%a =", "const %zero: int64[] = 0\n%a =", 1
        ),
    )
    runtime = compiled(model, tmp_path, "n=1..", "m=1..")
    feeds = feeds_of(model, {"n": 5, "m": 5})
    runtime.run(feeds)
    for name in ("z", "w"):
        with pytest.raises(SecateurError, match=f"input '{name}': axis 0: must be"):
            runtime.run({**feeds, name: feeds[name][:4]})


def test_products_that_are_too_large(tmp_path: Path) -> None:
    """No tensor has more elements than kernels count, whatever the memory."""
    model = model_of(
        "(%x: float[n, 1], %z: float[1, m]) -> (%y: float[n, m])",
        "const %zero: int64[] = 0\n%c = CumSum(%x, %zero)\n%y = Mul(%c, %z)",
    )
    runtime = compiled(model, tmp_path, "n=1..", "m=1..")
    check(model, runtime, {"n": 3, "m": 70})
    with pytest.raises(SecateurError, match=r"would have .* elements"):
        runtime.run(feeds_of(model, {"n": 50_000, "m": 50_000}))


def test_what_cannot_be_open_is_named(tmp_path: Path) -> None:
    """What has to know a size while compiling; the node and the reason are said."""
    text = "%y = GatherND(%x, %i)"
    model = model_of("(%x: float[4, 4, 4], %i: int64[2, n]) -> (%y: float[*])", text)
    with pytest.raises(UnsupportedError, match=r"'y' \(GatherND\).* a size that only a run fixes"):
        compiled(model, tmp_path, "n=1..")
    with pytest.raises(SecateurError, match="the model's open sizes are 'n'"):
        compiled(model, tmp_path, "k=1..")
    for text in ("n=", "n=1..x", "=3", "n", "n=-1..3", "n=1..2:"):
        with pytest.raises(SecateurError, match="no sizes, such as"):
            read_admitted([text])
    with pytest.raises(SecateurError, match="no size from 5 to 4"):
        compiled(model, tmp_path, "n=5..4")


@pytest.mark.parametrize("sizes", ["n=0", "n=4", "n=8..8:8"])
def test_a_size_that_is_given(sizes: str, tmp_path: Path) -> None:
    """One number is no open size; none is one, too."""
    model = case("a dense layer")
    size = int(sizes[2])
    runtime = compiled(model, tmp_path, sizes)
    assert runtime.inputs["x"] == ("float32", (size, 40))
    check(model, runtime, {"n": size})


def test_threads_share_open_loops(tmp_path: Path) -> None:
    """Two threads, at sizes that make shares of whole tiles, of the rest, and of single rows."""
    for name in ("attention", "rows", "a dense layer", "time first"):
        model, path = case(name), tmp_path / f"{name}.so"
        names = [d for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)]
        admitted = read_admitted([f"{d}=1.." for d in dict.fromkeys(names)])
        compile_model(model, TARGET, path, sizes=admitted)
        runtime = Runtime(path, threads=2)
        for n, s, b in ((300, 257, 3), (1, 1, 1), (17, 33, 2), (515, 5, 1)):
            check(model, runtime, {"n": n, "s": s, "b": b})


def test_known_sizes_stay_as_they_are(tmp_path: Path) -> None:
    """A batch that isn't named is run sample by sample, by the same kernels as before."""
    model = model_of("(%x: float[n, 40]) -> (%y: float[n, 40])", "%y = Softmax(%x)")
    runtime = compiled(model, tmp_path)
    assert runtime.inputs["x"] == ("float32", (None, 40))
    open_ = compiled(model, tmp_path, "n=1..")
    assert open_.inputs["x"] == ("float32", ("n", 40))
    check(model, open_, {"n": 6})


def test_memory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are admitted may need more than the machine has: an error, and it runs again."""
    model = model_of(
        "(%x: float[n, 1], %z: float[1, m]) -> (%y: float[n, m])",
        "const %zero: int64[] = 0\n%c = CumSum(%x, %zero)\n%y = Mul(%c, %z)",
    )
    runtime = compiled(model, tmp_path, "n=1..", "m=1..")
    check(model, runtime, {"n": 4, "m": 4})

    def none_left(*_: object) -> Array:
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", none_left)
        with pytest.raises(SecateurError, match="too much memory: none left"):
            runtime.run({"x": np.zeros((5, 1), np.float32), "z": np.zeros((1, 5), np.float32)})
    check(model, runtime, {"n": 5, "m": 5})


def test_more_buffers_than_a_run_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take too much of the stack."""
    monkeypatch.setattr(size_code, "MOST_PLACED", 0)
    with pytest.raises(UnsupportedError, match="more than the 0 that an artifact with open sizes"):
        compiled(case("attention"), tmp_path, "n=1..", "s=1..", "b=1..")


EXTREMES = (0, -1, 1, 2, 7, 1000, 46341, 2**16, 2**31 - 2**16, 2**31 - 1, 2**31, 2**62, -(2**63))


@pytest.mark.parametrize("name", ["attention", "sizes that are joined", "a shape that is computed"])
def test_hostile_dimensions(name: str, tmp_path: Path) -> None:
    """Whatever a caller in C gives, results have sizes that kernels count, or it is refused."""
    model = case(name)
    names = dict.fromkeys(d for v in model.graph.inputs for d in v.shape or () if d)
    open_ = [d for d in names if not isinstance(d, int)]
    compiled(model, tmp_path, *(f"{d}=1.." for d in open_))
    library = ctypes.CDLL(str(tmp_path / "m.so"))
    text = ctypes.addressof(ctypes.c_char.in_dll(library, "secateur_metadata"))
    metadata = json.loads(ctypes.string_at(text))
    random, admitted = np.random.default_rng(0), 0
    for _ in range(2000):
        sizes = {d: EXTREMES[random.integers(len(EXTREMES))] for d in open_}
        given = [sizes.get(d, d) for i in metadata["inputs"] for d in i["shape"]]
        if random.random() < 0.3:
            given[random.integers(len(given))] = EXTREMES[random.integers(len(EXTREMES))]
        rooms = [EXTREMES[random.integers(len(EXTREMES))] * (random.random() < 0.5)]
        rooms *= "caches" in metadata
        found = (ctypes.c_int64 * sum(len(o["shape"]) for o in metadata["outputs"]))()
        dimensions = (ctypes.c_int64 * (len(given) + len(rooms)))(*given, *rooms)
        arena = ctypes.c_int64(-1)
        status = library.secateur_shapes(dimensions, found, ctypes.byref(arena))
        if status == 0:
            admitted += 1
            assert arena.value > 0
            assert all(1 <= size <= MOST for size in found)
            assert all(1 <= size <= MOST for size in given)
            assert all(room == 0 or found[1] <= room <= MOST for room in rooms)
        else:
            assert status & 255 == Fault.SIZE
            assert status >> 8 < len(metadata["size_checks"])
    assert admitted > 20


def test_every_tensor_is_written_by_one_operation() -> None:
    """Also what follows from sizes, where something needs it in memory."""
    model = model_of(
        "(%x: float[n, 3, s]) -> (%y: float[?, ?], %shape: int64[3], %double: int64[?])",
        """const %one: int64[1] = [1]
        const %two: int64[] = 2
        const %last: int64[1] = [2]
        %shape = Shape(%x)
        %size = Gather(%shape, %last)
        %double = Mul(%size, %two)
        %rest = Sub(%one, %two)
        %sizes = Concat(%rest, %size) {axis = 0}
        %y = Reshape(%x, %sizes)""",
    )
    plan = lower(model, TARGET, read_admitted(["n=1..", "s=1.."]))
    written = [tensor.name for op in plan.operations for tensor in op.outputs]
    assert len(written) == len(set(written))
    assert {"shape", "double"} <= set(written)
