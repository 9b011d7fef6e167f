"""Sequences and optionals, also at the border of a model, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_library, compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import from_proto
from secateur.passes.simplify import FixInputShapes

from ...onnx_runtime import session_of

RANDOM = np.random.default_rng(5)
TARGET = parse_target("native")


def array(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def fixed(text: str, shapes: dict[str, Any], opset: int = 18) -> Any:
    """A model of this text, whose inputs have the shapes that are given."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    model = from_proto(onnx.parser.parse_model(header + text))
    FixInputShapes(tuple(shapes.items())).run(model)
    return model


def built(text: str, shapes: dict[str, Any], folder: Path, **options: Any) -> Runtime:
    path = folder / "m.so"
    compile_model(fixed(text, shapes), TARGET, path, **options)
    return Runtime(path)


def expected(text: str, feeds: dict[str, Any], opset: int = 18) -> dict[str, Any]:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    proto = onnx.parser.parse_model(header + text)
    session = session_of(proto)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, own in found.items():
        other = wanted[name]
        assert isinstance(own, list) == isinstance(other, list), name
        pairs = [(own, other)] if not isinstance(own, list) else zip(own, other, strict=True)
        for a, b in pairs:
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
                assert a.dtype == np.asarray(b).dtype


ALL_OPERATORS = """g (seq(float[N,3]) x, float[2,3] t) => (
    seq(float[N,3]) y, float[M,3] joined, int64 n, float[K,3] last, seq(float[2,1]) parts
) {
  zero = Constant <value: tensor = int64 {0}> ()
  minus = Constant <value: tensor = int64 {-1}> ()
  a = SequenceInsert (x, t, zero)
  b = SequenceErase (a, minus)
  y = SequenceInsert (b, t)
  n = SequenceLength (y)
  joined = ConcatFromSequence <axis: int = 0> (y)
  last = SequenceAt (x, minus)
  parts = SplitToSequence <axis: int = 1, keepdims: int = 1> (t)
}"""


def test_operators_on_a_sequence_that_callers_give(tmp_path: Path) -> None:
    """Tensors of different sizes, whose declared sizes share a name."""
    x = [array(4, 3), array(1, 3), array(2, 3)]
    feeds = {"x": x, "t": array(2, 3)}
    runtime = built(ALL_OPERATORS, {"x": [each.shape for each in x]}, tmp_path)
    found = runtime.run(feeds)
    assert_equal(found, expected(ALL_OPERATORS, feeds))
    apart = {"t": feeds["t"], **{f"x[{i}]": each for i, each in enumerate(x)}}
    assert_equal(runtime.run(apart), found)
    assert list(runtime.inputs) == ["x[0]", "x[1]", "x[2]", "t"]
    assert runtime.outputs["y"] == (None, None)
    assert runtime.sequences["y"] is not None
    assert [shape for _, shape in runtime.sequences["y"]] == [(2, 3), (4, 3), (1, 3), (2, 3)]
    for given, message in (
        (x[:2], "input 'x': 2 tensors given, not 3"),
        ([x[1], x[1], x[2]], r"input 'x\[0\]': shape \[1, 3\] given"),
    ):
        with pytest.raises(SecateurError, match=message):
            runtime.run({"x": given, "t": feeds["t"]})
    with pytest.raises(SecateurError, match="input 'x\\[0\\]' is missing"):
        runtime.run({"t": feeds["t"]})


MAP = """g (seq(float[H,W]) x, float[1] t) => (seq(int64[2]) shapes, seq(float[H,W]) sums) {
  shapes, sums = SequenceMap <body = b (float[H,W] e, float[1] u) => (int64[2] s, float[H,W] f) {
    s = Shape (e)
    f = Add (e, u)
  }> (x, t)
}"""


@pytest.mark.parametrize("sizes", [[], [(2, 3)], [(2, 3), (4, 1), (1, 1)]])
def test_a_map_over_tensors_of_different_sizes(sizes: list[Any], tmp_path: Path) -> None:
    x = [array(*size) for size in sizes]
    feeds = {"t": array(1), **({"x": x} if x else {})}
    found = built(MAP, {"x": sizes}, tmp_path).run(feeds)
    assert [list(s) for s in found["shapes"]] == [list(size) for size in sizes]
    for own, given in zip(found["sums"], x, strict=True):
        np.testing.assert_array_equal(own, given + feeds["t"])


OPTIONAL = """g (optional(float[2]) o, float[2] t) => (bool has, float[2] y) {
  has = OptionalHasElement (o)
  y = If (has) <then_branch = a () => (float[2] p) { p = OptionalGetElement (o) },
                else_branch = b () => (float[2] q) { q = Neg (t) }>
}"""


def test_an_optional_input_is_there_or_not(tmp_path: Path) -> None:
    o, t = array(2), array(2)
    found = built(OPTIONAL, {"o": (2,)}, tmp_path).run({"o": o, "t": t})
    assert found["has"]
    assert np.array_equal(found["y"], o)
    found = built(OPTIONAL, {"o": None}, tmp_path).run({"t": t})
    assert not found["has"]
    assert np.array_equal(found["y"], -t)


OPTIONAL_SEQUENCE = """g (optional(seq(float[2])) o) => (bool has, optional(seq(float[2])) same) {
  has = OptionalHasElement (o)
  same = Identity (o)
}"""


def test_an_optional_of_an_empty_sequence_has_an_element(tmp_path: Path) -> None:
    found = built(OPTIONAL_SEQUENCE, {"o": []}, tmp_path).run({})
    assert found["has"]
    assert found["same"] == []
    found = built(OPTIONAL_SEQUENCE, {"o": None}, tmp_path).run({})
    assert not found["has"]
    assert found["same"] is None
    found = built(OPTIONAL_SEQUENCE, {"o": [(2,)]}, tmp_path).run({"o": [array(2)]})
    assert found["has"]
    assert len(found["same"]) == 1


BRANCHES = """g (bool c, float[3] x) => (seq(float[3]) y, float[3] z) {{
  y, z = If (c) <then_branch = a () => (seq(float[3]) p, float[3] u) {{
                   n = Neg (x)
                   p = SequenceConstruct (x, n)
                   u = Abs (x)
                 }},
                 else_branch = b () => (seq(float[3]) q, float[3] v) {{
                   m = Exp (x)
                   e = SequenceEmpty ()
                   r = SequenceInsert (e, m)
                   {more}
                   v = Relu (x)
                 }}>
}}"""


def test_branches_give_sequences(tmp_path: Path) -> None:
    text = BRANCHES.format(more="q = SequenceInsert (r, x)")
    runtime = built(text, {}, tmp_path)
    for chosen in (True, False):
        feeds = {"c": np.asarray(chosen), "x": array(3)}
        found, wanted = runtime.run(feeds), expected(text, feeds)
        for own, other in zip([*found["y"], found["z"]], [*wanted["y"], wanted["z"]], strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-6)
    with pytest.raises(UnsupportedError, match=r"\(If\): a run decides it, and its branches give"):
        built(BRANCHES.format(more="q = Identity (r)"), {}, tmp_path)


def test_with_the_fallback_branches_of_other_lengths_run(tmp_path: Path) -> None:
    """The node is left to ONNX Runtime as it was, after compiling it was tried."""
    text = BRANCHES.format(more="q = Identity (r)")
    runtime = built(text, {}, tmp_path, fallback=True)
    for chosen in (True, False):
        feeds = {"c": np.asarray(chosen), "x": array(3)}
        assert_equal(runtime.run(feeds), expected(text, feeds))


LOOP = """g (float[4,2] x) => (seq(float[2]) rows, float[4,2] same) {
  count = Constant <value: tensor = int64 {4}> ()
  true = Constant <value: tensor = bool {1}> ()
  start = SequenceEmpty ()
  rows = Loop (count, true, start) <body = b (
      int64 i, bool c, seq(float[2]) s
  ) => (bool d, seq(float[2]) r) {
    d = Identity (c)
    row = Gather (x, i)
    r = SequenceInsert (s, row)
  }>
  same = ConcatFromSequence <axis: int = 0, new_axis: int = 1> (rows)
}"""


def test_a_loop_hands_on_a_sequence(tmp_path: Path) -> None:
    feeds = {"x": array(4, 2)}
    assert_equal(built(LOOP, {}, tmp_path).run(feeds), expected(LOOP, feeds))


def test_one_tensor_twice(tmp_path: Path) -> None:
    """Elements that are inputs, constants, or the same tensor."""
    text = """g (float[2] x) => (seq(float[2]) y, float[2] z) {
      c = Constant <value: tensor = float[2] {1.0, 2.0}> ()
      z = Neg (x)
      y = SequenceConstruct (x, z, z, c, c, x)
    }"""
    feeds = {"x": array(2)}
    assert_equal(built(text, {}, tmp_path).run(feeds), expected(text, feeds))


def test_what_is_said_of_sequences_that_nothing_describes(tmp_path: Path) -> None:
    text = "g (seq(float[2]) x) => (int64 n) { n = SequenceLength (x) }"
    with pytest.raises(UnsupportedError, match=r"input 'x' is a sequence.*x=\[2x3,4x3\]"):
        built(text, {}, tmp_path)
    text = """g (seq(float[2]) x, int64 p) => (float[2] y) { y = SequenceAt (x, p) }"""
    with pytest.raises(UnsupportedError, match=r"\(SequenceAt\): which tensors"):
        built(text, {"x": [(2,), (2,)]}, tmp_path)
    text = """g (seq(float[2]) x) => (seq(float[2]) y, float[2] o) {
      y = Identity (x)
      p = Constant <value: tensor = int64 {0}> ()
      o = SequenceAt (x, p)
    }"""
    model = fixed(text, {"x": [(2,)]})
    model.graph.outputs[1].name = "y[0]"
    with pytest.raises(UnsupportedError, match=r"two outputs are called 'y\[0\]'"):
        compile_model(model, TARGET, tmp_path / "m.so")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (2, 3), "input 'x' is a sequence, and has a shape for each"),
        ("x", None, "input 'x' is no optional"),
        ("x", [(2, 4)], r"input 'x\[0\]': size 4 given for axis 1, which is 3"),
        ("x", [(2,)], r"input 'x\[0\]' has 2 axes, the shape given has 1"),
        ("t", [(2, 3)], "input 't' is a tensor, and has one shape"),
        ("t", None, "input 't' is a tensor, and has one shape"),
    ],
)
def test_shapes_that_do_not_suit_an_input(name: str, shape: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        fixed(ALL_OPERATORS, {name: shape})


def test_a_name_that_the_model_has_already() -> None:
    header = '<ir_version: 8, opset_import: ["" : 18]>\n'
    model = from_proto(onnx.parser.parse_model(header + ALL_OPERATORS))
    model.graph.nodes[2].outputs[0].name = "x[0]"
    with pytest.raises(SecateurError, match=r"the model has another value 'x\[0\]'"):
        FixInputShapes((("x", [(2, 3)]),)).run(model)


def test_a_c_library_has_a_tensor_for_each_element(tmp_path: Path) -> None:
    model = fixed(ALL_OPERATORS, {"x": [(4, 3), (1, 3)]})
    options = LibraryOptions("seq")
    compile_library(model, TARGET, tmp_path, options)
    header = (tmp_path / "seq.h").read_text()
    assert '_INPUT_1_NAME "x[1]"' in header
    assert '_OUTPUT_0_NAME "y[0]"' in header
