"""Artifacts of models whose data decide sizes: what a run counts, or is told by an operand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.model import Model
from secateur.ir.reference import Session

from .child import Child, RefusedError
from .test_open_sizes import model_of, with_constants

Array = Any
Feeds = Mapping[str, Array]
TARGET = parse_target("native")
MOST = 2**63 - 1
NEAR = (0, -1, 1, 2, 3, 5, 6, 7, -6, -7, 100)
EXTREMES = (*NEAR, 2**31 - 1, 2**31, 2**32 + 1, -(2**31), -MOST)


def compiled(model: Model, folder: Path, *sizes: str) -> Runtime:
    compile_model(model, TARGET, folder / "m.so", sizes=read_admitted(sizes))
    return Runtime(folder / "m.so")


def alike(have: Mapping[str, Array], want: Mapping[str, Array]) -> None:
    for name, array in want.items():
        assert have[name].shape == array.shape, name
        np.testing.assert_allclose(have[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


# --- counted ---------------------------------------------------------------------------------

AFTER = {
    "again": ("%again = Mul(%g, %g)", "float[?]"),
    "indices": ("%indices = Identity(%n)", "int64[2, ?]"),
    "rows": ("%rows = Gather(%table, %which)", "float[?, 3]"),
    "joined": ("%joined = Concat(%g, %ends, %g) {axis = 0}", "float[?]"),
    "columns": ("%columns = Concat(%column, %column) {axis = 1}", "float[?, 2]"),
    "sum": ("%sum = ReduceSum(%g, %first)", "float[1]"),
    "mean": ("%mean = ReduceMean(%g, %first)", "float[1]"),
    "largest": ("%largest = ReduceMax(%g, %first)", "float[1]"),
    "whole_mean": ("%gi = Cast(%g) {to = 7}\n%whole_mean = ReduceMean(%gi, %first)", "int64[1]"),
    "soft": ("%soft = Softmax(%g) {axis = 0}", "float[?]"),
    "running": ("%running = CumSum(%g, %zero)", "float[?]"),
    "put": ("%gg = Neg(%g)\n%put = ScatterND(%x, %t, %gg)", "float[n, m]"),
    "dense": ("%h = MatMul(%rows3, %w)\n%r = Relu(%h)\n%dense = Add(%r, %bias)", "float[?, 5]"),
    "normal": ("%normal = LayerNormalization(%dense, %bias) {axis = -1}", "float[?, 5]"),
    "pairs": ("%pairs = MatMul(%column, %row)", "float[?, ?]"),
    "scores": ("%scores = MatMul(%row, %column)", "float[1, 1]"),
    "outer": ("%outer = Sub(%column, %row)", "float[?, ?]"),
    "count": ("%count = Size(%g)", "int64[]"),
    "shape": ("%shape = Shape(%t)", "int64[2]"),
    "numbers": ("%numbers = Range(%zero, %count, %step)", "int64[?]"),
    "ones": ("%one_of = Shape(%g)\n%ones = ConstantOfShape(%one_of)", "float[?]"),
    "twice": ("%twice = Expand(%g, %two_rows)", "float[2, ?]"),
    "tiled": ("%tiled = Tile(%g, %two)", "float[?]"),
    "head": ("%head = Slice(%g, %first, %two)", "float[?]"),
    "tail": ("%tail = Slice(%g, %last, %end)", "float[?]"),
    "later": ("%later = Slice(%rows3, %second, %two, %first)", "float[?, 3]"),
    "odd": ("%odd = Slice(%g, %first, %end, %first, %two)", "float[?]"),
    "back": ("%back = Slice(%g, %last, %start, %first, %last)", "float[?]"),
    "padded": ("%padded = Pad(%g, %pads)", "float[?]"),
    "flat": ("%flat = Reshape(%rows3, %last)", "float[?]"),
    "turned": ("%turned = Reshape(%rows3, %three_rows)", "float[3, ?]"),
    "large": ("%big = Greater(%g, %half)\n%large = Compress(%g, %big) {axis = 0}", "float[?]"),
    "sorted": ("%k = Unsqueeze(%count, %first)\n%sorted, %places = TopK(%g, %k)", "float[?]"),
    "images": ("%images = Conv(%stack, %kernel) {pads = [1, 1, 1, 1]}", "float[?, 4, 5, 5]"),
    "pooled": ("%p = GlobalAveragePool(%images)\n%pooled = Flatten(%p)", "float[?, 4]"),
}  # fmt: skip
"""Operators on what NonZero found of `x`: by an output's name, nodes and the output's type."""

BEFORE = """%n = NonZero(%x)
%t = Transpose(%n) {perm = [1, 0]}
%g = GatherND(%x, %t)
"""

SHAPES = """%column = Unsqueeze(%g, %second)
%row = Unsqueeze(%g, %first)
%rows3 = Expand(%column, %three)
%cell = Unsqueeze(%g, %inner)
%stack = Expand(%cell, %image)
%which = Gather(%n, %zero) {axis = 0}
"""
"""Of what was found, `g`, and where, `n`: further shapes that operators may read."""

CONSTANTS = {
    "zero": "int64[] = [0]", "step": "int64[] = [1]", "half": "float[] = [0.5]",
    "first": "int64[1] = [0]", "second": "int64[1] = [1]", "last": "int64[1] = [-1]",
    "two": "int64[1] = [2]", "end": f"int64[1] = [{MOST}]", "start": f"int64[1] = [{-MOST}]",
    "three": "int64[2] = [1, 3]", "two_rows": "int64[2] = [2, 1]", "pads": "int64[2] = [1, 2]",
    "three_rows": "int64[2] = [3, -1]", "inner": "int64[3] = [1, 2, 3]",
    "leading": "int64[2] = [1, 2]", "image": "int64[4] = [1, 3, 5, 5]",
    "ends": "float[2] = [1.5, 2.5]",
    "table": "float[40, 3]", "w": "float[3, 5]", "bias": "float[5]", "kernel": "float[4, 3, 3, 3]",
}  # fmt: skip


def after(signature: str, without: Sequence[str] = (), before: str = BEFORE) -> Model:
    kept = {name: found for name, found in AFTER.items() if name not in without}
    outputs = ", ".join(f"%{name}: {kind}" for name, (_, kind) in kept.items())
    body = before + SHAPES + "\n".join(nodes for nodes, _ in kept.values())
    return model_of(f"({signature}) -> ({outputs})", with_constants(body, CONSTANTS))


def masked(rows: int, columns: int, share: float, seed: int = 0) -> Array:
    kept = np.random.default_rng(seed + 1).random((rows, columns)) < share
    return np.where(kept, floats(rows, columns, seed=seed), 0).astype(np.float32)


def test_what_follows_a_count(tmp_path: Path) -> None:
    """For none, one, some and all, in memory between pages that nothing may touch."""
    model = after("%x: float[5, 7]")
    compiled(model, tmp_path)
    session, child = Session(model, optimize=False), Child()
    one = np.zeros((5, 7), np.float32)
    one[3, 2] = np.nan
    for x in (*(masked(5, 7, share) for share in (0, 0.1, 0.5, 1)), one):
        have = child.run_guarded(tmp_path / "m.so", {"x": x})
        alike(have, session.run({"x": x}))
    child.close()


SLICED = """%n = Slice(%spots, %a, %b, %second)
%t = Transpose(%n) {perm = [1, 0]}
%g = Slice(%x, %a, %b)
"""


def test_what_follows_a_slice(tmp_path: Path) -> None:
    """Whose size is a difference of two numbers that operands tell."""
    signature = "%x: float[12], %spots: int64[1, 12], %a: int64[1], %b: int64[1]"
    model = after(signature, ["put"], SLICED)
    compiled(model, tmp_path)
    session, child = Session(model, optimize=False), Child()
    places = np.random.default_rng(0).integers(0, 40, (1, 12))
    for first, last in ((0, 12), (3, 4), (5, 5), (9, 2), (-4, 100), (11, -100)):
        feeds = {"x": floats(12), "spots": places, "a": ints(first), "b": ints(last)}
        alike(child.run_guarded(tmp_path / "m.so", feeds), session.run(feeds))
    child.close()


@pytest.mark.slow
def test_what_follows_a_count_of_open_sizes(tmp_path: Path) -> None:
    model = after("%x: float[n, m]", ["odd", "back"])  # slices by steps
    runtime, session = compiled(model, tmp_path, "n=1..", "m=1.."), Session(model, optimize=False)
    for rows, columns, share in itertools.product((1, 2, 17, 40), (1, 9, 33), (0, 0.1, 1)):
        feeds = {"x": masked(rows, columns, share)}
        alike(runtime.run(feeds), session.run(feeds))


def test_a_batch_stays_open(tmp_path: Path) -> None:
    """Samples that NonZero counts together aren't computed one by one."""
    model = model_of("(%x: float[n, 4]) -> (%y: int64[2, k])", "%r = Relu(%x)\n%y = NonZero(%r)")
    runtime, session = compiled(model, tmp_path), Session(model, optimize=False)
    for rows in (1, 3, 50):
        feeds = {"x": floats(rows, 4, seed=rows)}
        alike(runtime.run(feeds), session.run(feeds))


DETECTOR = """
%found = NonMaxSuppression(%boxes, %scores, %most, %overlap, %least)
%class_of = Slice(%found, %second, %two, %second)
%box_of = Slice(%found, %two, %three_, %second)
%boxes_at = Squeeze(%box_of, %second)
%classes64 = Squeeze(%class_of, %second)
%classes = Cast(%classes64) {to = 6}
%all_boxes = Squeeze(%boxes, %first)
%kept = Gather(%all_boxes, %boxes_at)
%by_box = Transpose(%scores) {perm = [0, 2, 1]}
%by_box2 = Squeeze(%by_box, %first)
%places = Concat(%box_of, %class_of) {axis = 1}
%kept_scores = GatherND(%by_box2, %places)
%score_column = Unsqueeze(%kept_scores, %second)
%class_column = Cast(%class_of) {to = 1}
%all = Concat(%kept, %score_column, %class_column) {axis = 1}
%many = Shape(%kept_scores)
%fewer = Min(%many, %four)
%best, %order = TopK(%kept_scores, %fewer)
%result = Gather(%all, %order)
"""


def test_a_detector(tmp_path: Path) -> None:
    constants = {
        "most": "int64[1] = [5]", "overlap": "float[1] = [0.4]", "first": "int64[1] = [0]",
        "second": "int64[1] = [1]", "two": "int64[1] = [2]", "three_": "int64[1] = [3]",
        "four": "int64[1] = [4]",
    }  # fmt: skip
    model = model_of(
        "(%boxes: float[1, 30, 4], %scores: float[1, 3, 30], %least: float[1])"
        " -> (%found: int64[?, 3], %all: float[?, 6], %classes: int32[?], %result: float[?, 6])",
        with_constants(DETECTOR, constants),
    )
    compiled(model, tmp_path)
    session, child = Session(model, optimize=False), Child()
    for seed, least in itertools.product(range(3), (0.0, 0.5, 0.95, 0.99, 2.0)):
        random = np.random.default_rng(seed)
        boxes = random.random((1, 30, 4)).astype(np.float32)
        boxes[..., 2:] += boxes[..., :2]
        if seed == 2:
            boxes[0, :3, 0] = np.nan, np.inf, -np.inf
        feeds = {
            "boxes": boxes,
            "scores": random.random((1, 3, 30)).astype(np.float32),
            "least": np.float32([least]),
        }
        have = child.run_guarded(tmp_path / "m.so", feeds)
        if seed < 2:  # else ONNX Runtime depends on the order of comparisons
            alike(have, session.run(feeds))
        assert len(have["found"]) <= 15
    child.close()


def test_unique(tmp_path: Path) -> None:
    """Of elements, and of rows or columns, in order or not."""
    results = "float[?], %i: int64[?], %j: int64[12], %c: int64[?]"
    model = model_of(
        f"(%x: float[4, 3]) -> (%y: {results}, %rows: float[?, 3], %times: int64[?],"
        " %columns: float[4, ?], %first: float[?])",
        "%y, %i, %j, %c = Unique(%x)\n%rows, _, _, %times = Unique(%x) {axis = 0}\n"
        "%columns = Unique(%x) {axis = 1}\n%first = Unique(%x) {sorted = 0}",
    )
    compiled(model, tmp_path)
    session, child = Session(model, optimize=False), Child()
    given = [np.ones(12), np.arange(12), [1, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0, 0], [2, 2, 1] * 4]
    for x in (np.float32(each).reshape(4, 3) for each in given):
        alike(child.run_guarded(tmp_path / "m.so", {"x": x}), session.run({"x": x}))
    child.close()


def test_unique_of_open_sizes(tmp_path: Path) -> None:
    """Elements and slices of as many as a run has, and of what is unique already."""
    results = "%y: float[?], %i: int64[?], %j: int64[?], %c: int64[?]"
    model = model_of(
        f"(%x: float[n, m]) -> ({results}, %rows: float[?, ?], %times: int64[?],"
        " %columns: float[?, ?], %again: float[?])",
        "%y, %i, %j, %c = Unique(%x)\n%rows, _, _, %times = Unique(%x) {axis = 0}\n"
        "%columns = Unique(%x) {axis = 1, sorted = 0}\n%s = Mul(%y, %y)\n%again = Unique(%s)",
    )
    compiled(model, tmp_path)
    session, child, random = Session(model, optimize=False), Child(), np.random.default_rng(0)
    for shape in ((1, 1), (2, 3), (5, 1), (3, 64), (65, 2), (17, 33), (300, 1)):
        for most in (1, 3, 1000):
            x = random.integers(-most, most, shape).astype(np.float32)
            alike(child.run_guarded(tmp_path / "m.so", {"x": x}), session.run({"x": x}))
    child.close()


def test_unique_of_nothing(tmp_path: Path) -> None:
    model = model_of("(%x: int64[n]) -> (%y: int64[?], %c: int64[?])", "%y, _, _, %c = Unique(%x)")
    runtime = compiled(model, tmp_path, "n=0..")
    for x in ([], [4, 4, -1], []):
        given = {"x": np.array(x, np.int64)}
        alike(runtime.run(given), Session(model, optimize=False).run(given))


MASKS = """
%found = NonMaxSuppression(%boxes, %scores, %most, %overlap, %least)
%column = Slice(%found, %two, %three_, %second)
%at = Squeeze(%column, %second)
%all_boxes = Squeeze(%boxes, %first)
%kept = Gather(%all_boxes, %at)
%shape = Shape(%kept) {end = 1}
%pictures = Expand(%first, %shape)
%rois = RoiAlign(%features, %kept, %pictures) {output_height = 7, output_width = 7}
%flat = Flatten(%rois)
%dense = Gemm(%flat, %weights)
%shares = Softmax(%dense) {axis = -1}
%larger = ConvTranspose(%rois, %kernel) {strides = [2, 2]}
%masks = Sigmoid(%larger)
%labels = ArgMax(%shares) {axis = 1, keepdims = 0}
%surest = ReduceMax(%shares, %second) {keepdims = 0}
%sure = Greater(%surest, %third)
%where = NonZero(%sure)
%where1 = Squeeze(%where, %first)
%sure_boxes = Gather(%kept, %where1)
%few = Slice(%sure_boxes, %first, %two, %first)
"""


@pytest.mark.slow
def test_a_second_stage(tmp_path: Path) -> None:
    """Regions that NonMaxSuppression keeps, through layers whose batch they are."""
    constants = {
        "most": "int64[1] = [8]", "overlap": "float[1] = [0.5]", "first": "int64[1] = [0]",
        "second": "int64[1] = [1]", "two": "int64[1] = [2]", "three_": "int64[1] = [3]",
        "third": "float[] = [0.3]", "weights": "float[392, 6]", "kernel": "float[8, 4, 2, 2]",
    }  # fmt: skip
    model = model_of(
        "(%boxes: float[1, 30, 4], %scores: float[1, 1, 30], %least: float[1],"
        " %features: float[1, 8, 20, 20]) -> (%kept: float[?, 4], %shares: float[?, 6],"
        " %masks: float[?, 4, 14, 14], %labels: int64[?], %few: float[?, 4])",
        with_constants(MASKS, constants),
    )
    compiled(model, tmp_path)
    session, child, random = Session(model, optimize=False), Child(), np.random.default_rng(0)
    for least in (0.0, 0.5, 0.9, 0.97, 2.0):
        boxes = random.random((1, 30, 4)).astype(np.float32) * 10
        boxes[..., 2:] += boxes[..., :2]
        feeds = {
            "boxes": boxes,
            "scores": random.random((1, 1, 30)).astype(np.float32),
            "least": np.float32([least]),
            "features": floats(1, 8, 20, 20),
        }
        alike(child.run_guarded(tmp_path / "m.so", feeds), session.run(feeds))
    child.close()


# --- told ------------------------------------------------------------------------------------

K1, K2 = "%k: int64[1]", "%k: int64[2]"
TOLD_CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "TopK": (f"(%x: float[3, 6], {K1}) -> (%y: float[3, ?], %z: int64[3, ?])",
             "%y, %z = TopK(%x, %k)", ()),
    "Slice": (f"(%x: float[6, 2], {K2}) -> (%y: float[?, 2])",
              "%a, %b = Split(%k) {num_outputs = 2}\n%y = Slice(%x, %a, %b)", ()),
    "Slice of a head": (f"(%x: float[2, 6], {K1}) -> (%y: float[2, ?], %z: float[2, ?])",
                        "%h = Slice(%x, %first, %k, %second)\n%y = Exp(%h)\n%z = Add(%h, %h)", ()),
    "Range": ("(%k: int64[]) -> (%y: int64[?], %z: float[?])",
              "%y = Range(%zero, %k, %step)\n%c = Cast(%y) {to = 1}\n%z = Sqrt(%c)", ("k=0..7",)),
    "ConstantOfShape": (f"({K2}) -> (%y: float[?, ?])", "%y = ConstantOfShape(%k)",
                        ("k.0=0..7", "k.1=0..7")),
    "Expand": (f"(%x: float[3, 1], {K2}) -> (%y: float[?, ?])", "%y = Expand(%x, %k)",
               ("k.0=0..7", "k.1=0..7")),
    "Tile": (f"(%x: float[2, 3], {K2}) -> (%y: float[?, ?])", "%y = Tile(%x, %k)",
             ("k.0=0..7", "k.1=0..7")),
    "Reshape": (f"(%x: float[2, 3], {K2}) -> (%y: float[?, ?])", "%y = Reshape(%x, %k)", ()),
    "Reshape of what isn't told": (
        f"(%x: float[4, 3], {K1}) -> (%y: float[?, ?], %z: float[?, ?])",
        "%s = Concat(%k, %last) {axis = 0}\n%y = Reshape(%x, %s)\n%z = Add(%y, %y)",
        (),
    ),
    "Split": (
        f"(%x: float[2, 6], {K2}) -> (%y: float[2, ?], %z: float[2, ?])",
        "%y, %z = Split(%x, %k) {axis = 1}",
        (),
    ),
    "Resize": (
        f"(%x: float[1, 2, 3, 3], {K2}) -> (%y: float[1, 2, ?, ?])",
        "%s = Concat(%leading, %k) {axis = 0}\n%y = Resize(%x, _, _, %s) {mode = \"nearest\"}",
        ("k.0=1..7", "k.1=1..7"),
    ),
    "OneHot": (
        "(%x: float[6], %k: int64[]) -> (%y: float[6, ?])",
        "%i = Cast(%x) {to = 7}\n%y = OneHot(%i, %k, %ends)",
        ("k=1..7",),
    ),
    "Pad": (f"(%x: float[4], {K2}) -> (%y: float[?])", "%y = Pad(%x, %k)",
            ("k.0=0..7", "k.1=0..7")),
    "a computed number": (f"(%x: float[3, 6], {K2}) -> (%y: float[3, ?])",
                          "%s = ReduceMax(%k, %first)\n%y, %z = TopK(%x, %s)", ()),
    "lengths": (f"({K2}) -> (%y: bool[2, ?])",
                "%s = ReduceMax(%k) {keepdims = 0}\n%r = Range(%zero, %s, %step)\n"
                "%q = Unsqueeze(%k, %second)\n%y = Less(%r, %q)", ("k.0=0..7", "k.1=0..7")),
}  # fmt: skip


def told_case(name: str) -> tuple[Model, tuple[str, ...]]:
    signature, body, sizes = TOLD_CASES[name]
    return model_of(signature, with_constants(body, CONSTANTS)), sizes


def told_feeds(model: Model) -> Iterator[dict[str, Array]]:
    shapes = {v.name: [d for d in v.shape or () if isinstance(d, int)] for v in model.graph.inputs}
    made = {name: floats(*shape) for name, shape in shapes.items()}
    for numbers in itertools.product(EXTREMES, repeat=math.prod(shapes["k"])):
        yield {**made, "k": np.asarray(numbers, np.int64).reshape(shapes["k"])}


@pytest.mark.parametrize("name", TOLD_CASES)
def test_sizes_that_an_operand_tells(name: str, tmp_path: Path) -> None:
    """Whatever the operand holds: a result as ONNX Runtime's, or an error, and of numbers that
    are admitted only where ONNX Runtime has one, too."""
    model, sizes = told_case(name)
    compiled(model, tmp_path, *sizes)
    session, child, equal = Session(model, optimize=False), Child(), 0
    for feeds in told_feeds(model):
        try:
            have = child.run_guarded(tmp_path / "m.so", feeds)
        except RefusedError as error:
            refused = str(error)
        else:
            alike(have, session.run(feeds))
            equal += 1
            continue
        assert "must be" in refused or "fault" in refused
        if all(0 <= n < 8 for n in feeds["k"].ravel()):
            with pytest.raises(SecateurError):
                session.run(feeds)
    assert equal >= 4
    child.close()


# --- refused ---------------------------------------------------------------------------------


def test_what_has_no_bound_is_refused(tmp_path: Path) -> None:
    """With the node, the size and the option; a bound on what decides nothing is refused, too."""
    model, _ = told_case("Range")
    with pytest.raises(UnsupportedError, match=r"node 'y' \(Range\): .* size 0 .*--size k=0\.\.N"):
        compiled(model, tmp_path)
    model, _ = told_case("TopK")
    for sizes, message in (
        ("j=1..3", "the model's open sizes are none"),
        ("z=0..3", "no sizes follow from what 'z' holds; of k they do"),
        ("k=0..6:2", "no numbers from 0 to 6 by 2"),
        ("k=4..3", "no numbers from 4 to 3 by 1"),
    ):
        with pytest.raises(SecateurError, match=message):
            compiled(model, tmp_path, sizes)


def test_sizes_of_nothing_are_not_guessed(tmp_path: Path) -> None:
    """An empty tensor may have any sizes but for one that is 0."""
    model = model_of(f"(%x: float[0, 3], {K2}) -> (%y: float[?, ?])", "%y = Reshape(%x, %k)")
    with pytest.raises(UnsupportedError, match=r"'y' \(Reshape\): .* size 0 of .*nothing says"):
        compiled(model, tmp_path)


def test_bounds_of_what_is_read(tmp_path: Path) -> None:
    """They are checked, by the name of what holds the number."""
    model, _ = told_case("TopK")
    runtime = compiled(model, tmp_path, "k=1..3")
    assert runtime.run({"x": floats(3, 6), "k": ints(3)})["y"].shape == (3, 3)
    assert runtime.outputs["y"] == ("float32", (3, "value(k)"))
    for number in (0, 4, -1):
        with pytest.raises(SecateurError, match=r"input 'k': value\(k\) must be from 1 to 3"):
            runtime.run({"x": floats(3, 6), "k": ints(number)})


def test_bounds_of_what_is_counted(tmp_path: Path) -> None:
    """Fewer results than there may be take less memory; a run that finds more is refused."""
    body = "%n = NonZero(%x)\n%t = Transpose(%n) {perm = [1, 0]}\n%y = GatherND(%x, %t)"
    model = model_of("(%x: float[50, 40]) -> (%y: float[?])", body)
    arenas = []
    for sizes in ([], ["n=0..10"]):
        runtime = compiled(model, tmp_path, *sizes)
        arenas.append(runtime._program.metadata["arena_bytes"])
    assert arenas[1] < arenas[0] / 10
    x = np.zeros((50, 40), np.float32)
    x[7, :10] = 1
    assert runtime.run({"x": x})["y"].shape == (10,)
    x[8, 8] = 1
    with pytest.raises(SecateurError, match=r"'n' \(NonZero\): count\(n\) must be from 0 to 10"):
        runtime.run({"x": x})


def test_names_of_sizes_and_of_values(tmp_path: Path) -> None:
    """A bound of a symbol is none of a value that has its name."""
    model = model_of("(%x: float[n, 4]) -> (%n: int64[2, ?])", "%n = NonZero(%x)")
    runtime = compiled(model, tmp_path, "n=1..3")
    assert runtime.run({"x": np.zeros((2, 4), np.float32)})["n"].shape == (2, 0)
    assert runtime.run({"x": np.ones((3, 4), np.float32)})["n"].shape == (2, 12)


def test_an_operand_without_elements(tmp_path: Path) -> None:
    """Where a kernel can't take that the run ends with an error, and the next one is as good."""
    body = with_constants(
        "%n = NonZero(%x)\n%c = Squeeze(%n, %first)\n%y = ArgMax(%c) {axis = 0}", CONSTANTS
    )
    model = model_of("(%x: float[4]) -> (%y: int64[1])", body)
    runtime = compiled(model, tmp_path)
    with pytest.raises(SecateurError, match=r"node 'y': an operand has no elements in this run"):
        runtime.run({"x": np.zeros(4, np.float32)})
    assert runtime.run({"x": np.ones(4, np.float32)})["y"].tolist() == [3]


def test_times_of_single_calls(tmp_path: Path) -> None:
    """Calls that are made one by one find what earlier ones have read."""
    model = after("%x: float[5, 7]")
    runtime = compiled(model, tmp_path)
    seconds = runtime._program.time_calls({"x": masked(5, 7, 0.5)})
    assert len(seconds) == len(runtime._program.metadata["calls"])


FAR = (*NEAR, 2**31, -(2**31) - 1, 2**62, MOST, -MOST, -MOST - 1)


def test_bounds_of_slices_that_are_far_off(tmp_path: Path) -> None:
    """Any number cuts as in ONNX Runtime, also where others join or reshape it."""
    model = model_of(
        "(%x: float[6, 5], %a: int64[1], %b: int64[1]) -> (%y: float[?, ?], %z: float[?, ?])",
        "const %axes: int64[2] = [0, 1]\nconst %zero: int64[1] = [0]\n"
        "const %steps: int64[1] = [2]\n"
        "%both = Concat(%a, %a) {axis = 0}\n%ends = Concat(%b, %b) {axis = 0}\n"
        "%y = Slice(%x, %both, %ends, %axes)\n%z = Slice(%x, %a, %b, %zero, %steps)",
    )
    runtime, session = compiled(model, tmp_path), Session(model)
    x = floats(6, 5)
    for start, end in itertools.product(FAR, FAR):
        feeds = {"x": x, "a": ints(start), "b": ints(end)}
        alike(runtime.run(feeds), session.run(feeds))


@pytest.mark.parametrize(
    "nodes",
    [
        "%r = Slice(%x, %zero, %a)\n%y = Neg(%r)\n%z = Add(%a, %a)\n%w = Slice(%x, %zero, %z)",
        "%y = Slice(%x, %zero, %a, %zero, %back)\n%w = Neg(%x)",
    ],
)
def test_numbers_that_are_more_than_bounds(nodes: str, tmp_path: Path) -> None:
    """What is computed with, or goes backward, isn't cut off: it is refused."""
    model = model_of(
        "(%x: float[n], %a: int64[1]) -> (%y: float[?], %w: float[?])",
        f"const %zero: int64[1] = [0]\nconst %back: int64[1] = [-1]\n{nodes}",
    )
    runtime, session = compiled(model, tmp_path), Session(model)
    feeds = {"x": floats(7), "a": ints(3)}
    alike(runtime.run(feeds), session.run(feeds))
    with pytest.raises(SecateurError, match=r"must be a size|too large"):
        runtime.run({"x": floats(7), "a": ints(MOST)})
