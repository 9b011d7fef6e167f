"""Operands known only at run time against the shapes that are declared for their results.

For every operator whose result's shape depends on the value of an input: a model that reads
this input at run time and declares a shape, feeds that lead to this shape, and feeds that lead
to another or are no valid operands.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.errors import UnsupportedNodesError
from secateur.backends.tvm.graph.data_sizes import TOLD
from secateur.backends.tvm.lowering.loops import expectations
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import from_proto
from tests.passes.test_simplify_structure import parse

from .graphs import reference

Array = Any
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values: Any) -> Array:
    return np.asarray(values, np.int64)


def number(value: int) -> Array:
    return np.asarray(value, np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """`fixed` operands come first; each of `good` and `bad` gives those that follow."""

    op_type: str
    fixed: Sequence[Array]
    out: Sequence[Sequence[int]]
    good: Sequence[Sequence[Array]]
    bad: Sequence[Sequence[Array]]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    opset: int = 20
    dtypes: Sequence[Any] = (np.float32,)

    def model(self, sample: Sequence[Array | None]) -> onnx.ModelProto:
        values = [*self.fixed, *sample]
        names = [f"x{i}" if v is not None else "" for i, v in enumerate(values)]
        outputs = [f"y{i}" for i in range(len(self.out))]
        graph = helper.make_graph(
            [helper.make_node(self.op_type, names, outputs, "node", **self.attributes)],
            "operands",
            [_info(n, v.dtype, v.shape) for n, v in zip(names, values, strict=True) if n],
            [_info(n, d, s) for n, d, s in zip(outputs, self.dtypes, self.out, strict=True)],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9
        )

    def feeds(self, sample: Sequence[Array | None]) -> dict[str, Array]:
        values = [*self.fixed, *sample]
        return {f"x{i}": v for i, v in enumerate(values) if v is not None}


def _info(name: str, dtype: Any, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )


F = np.float32
FAR = 2**32

CASES = [
    Case("Reshape", [floats(3, 4)], [[2, 6]],
         [[ints(2, 6)], [ints(-1, 6)], [ints(2, -1)]],
         [[ints(6, 2)], [ints(-1, -1)], [ints(0, 6)], [ints(3, 4)], [ints(FAR + 2, 6)],
          [ints(-2, 6)]]),
    Case("Reshape", [floats(3, 4)], [[3, 2, 2]], [[ints(0, 2, 2)], [ints(0, -1, 2)]],
         [[ints(3, 0, 2)], [ints(2, 3, 2)]]),
    Case("Expand", [floats(3, 1)], [[2, 3, 4]],
         [[ints(2, 3, 4)], [ints(2, 1, 4)]],
         [[ints(1, 3, 4)], [ints(2, 3, 5)], [ints(2, 2, 4)], [ints(2, 3, 0)]]),
    Case("Tile", [floats(2, 3)], [[4, 3]], [[ints(2, 1)]],
         [[ints(1, 2)], [ints(0, 1)], [ints(2, 2)], [ints(2**62 + 2, 1)], [ints(-2, 1)]]),
    Case("Slice", [floats(5)], [[2]], [[ints(1), ints(3)], [ints(-2), ints(99)]],
         [[ints(1), ints(4)], [ints(3), ints(1)], [ints(FAR + 1), ints(FAR + 3)]]),
    Case("Pad", [floats(2, 3)], [[3, 5]],
         [[ints(1, 0, 0, 2)], [ints(0, 3, 1, -1)]],
         [[ints(0, 1, 0, 2)], [ints(1, 0, 0, 1)], [ints(FAR + 1, 0, -FAR, 2)]]),
    Case("Pad", [floats(2, 3)], [[2, 5]],
         [[ints(1, 1), np.asarray(2, F), ints(1)], [ints(0, 2), np.asarray(2, F), ints(-1)]],
         [[ints(1, 1), np.asarray(2, F), ints(0)], [ints(2, 1), np.asarray(2, F), ints(1)],
          [ints(1, 1), np.asarray(2, F), ints(2)]]),
    Case("TopK", [floats(3, 5)], [[3, 2], [3, 2]], [[ints(2)]],
         [[ints(3)], [ints(0)], [ints(-1)], [ints(FAR + 2)]], dtypes=(F, np.int64)),
    Case("OneHot", [ints(0, 2, 1)], [[3, 4]],
         [[number(4), floats(2)]], [[number(3), floats(2)], [number(5), floats(2)]]),
    Case("OneHot", [ints(0, 2, 1)], [[3, 4]],
         [[np.asarray(4, F), floats(2)]],
         [[np.asarray(5, F), floats(2)], [np.asarray(np.nan, F), floats(2)]]),
    Case("Range", [], [[4]],
         [[number(0), number(4), number(1)], [number(9), number(2), number(-2)]],
         [[number(0), number(5), number(1)], [number(0), number(4), number(0)],
          [number(4), number(0), number(1)], [number(0), number(FAR + 4), number(1)]],
         dtypes=(np.int64,)),
    Case("Range", [], [[3]],
         [[np.asarray(0, F), np.asarray(2.5, F), np.asarray(1, F)]],
         [[np.asarray(0, F), np.asarray(3.5, F), np.asarray(1, F)],
          [np.asarray(0, F), np.asarray(np.nan, F), np.asarray(1, F)],
          [np.asarray(0, F), np.asarray(2.5, F), np.asarray(0, F)]]),
    Case("ConstantOfShape", [], [[2, 3]], [[ints(2, 3)]], [[ints(3, 2)], [ints(2, FAR + 3)]]),
    Case("HannWindow", [], [[6]], [[number(6)]], [[number(5)], [number(0)], [number(-6)]]),
    Case("HammingWindow", [], [[6]], [[number(6)]], [[number(7)]]),
    Case("BlackmanWindow", [], [[6]], [[number(6)]], [[number(7)]]),
    Case("Split", [floats(2, 5)], [[2, 2], [2, 3]], [[ints(2, 3)]], [[ints(3, 2)], [ints(2, 2)]],
         {"axis": 1}, dtypes=(F, F)),
    Case("Squeeze", [floats(1, 3, 1)], [[3, 1]], [[ints(0)], [ints(-3)]],
         [[ints(2)], [ints(1)], [ints(3)]]),
    Case("Unsqueeze", [floats(3, 1)], [[1, 3, 1, 1]],
         [[ints(0, 2)], [ints(0, -1)], [ints(3, 0)]],
         [[ints(0, 0)], [ints(2, 3)], [ints(0, 4)], [ints(1, 3)]]),
    Case("ReduceSum", [floats(3, 3)], [[3]], [[ints(0)], [ints(1)], [ints(-1)]], [[ints(2)]],
         {"keepdims": 0}),
    Case("ReduceMax", [floats(2, 3, 1)], [[2, 1, 1]], [[ints(1)]], [[ints(0)], [ints(2)]]),
    Case("ReduceLogSumExp", [floats(2, 3)], [[1, 1]], [[ints(0, 1)], [ints(-1, 0)]],
         [[ints(0, 0)], [ints(1, 2)]]),
    Case("Resize", [floats(1, 1, 4, 4), None, None], [[1, 1, 2, 8]],
         [[ints(1, 1, 2, 8)]], [[ints(1, 1, 8, 2)], [ints(1, 1, 2, FAR + 8)]],
         {"mode": "nearest"}),
    Case("Resize", [floats(1, 1, 4, 4), None], [[1, 1, 2, 8]],
         [[np.asarray([1, 1, 0.5, 2], F)], [np.asarray([1, 1, 0.7, 2.1], F)]],
         [[np.asarray([1, 1, 0.75, 2], F)], [np.asarray([1, 1, 0.5, 2.3], F)],
          [np.asarray([1, 1, np.nan, 2], F)]],
         {"mode": "linear"}),
    Case("Resize", [floats(1, 1, 4, 4), None, None], [[1, 1, 6, 6]],
         [[ints(6, 9)]], [[ints(5, 9)], [ints(7, 7)]],
         {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}),
    Case("Upsample", [floats(1, 1, 2, 3)], [[1, 1, 4, 6]],
         [[np.asarray([1, 1, 2, 2], F)]],
         [[np.asarray([1, 1, 2, 3], F)], [np.asarray([1, 1, 1, 2], F)]], opset=9),
    Case("CenterCropPad", [floats(4, 6)], [[6, 3]], [[ints(6, 3)]], [[ints(3, 6)], [ints(6, 4)]]),
    Case("Col2Im", [floats(1, 4, 9)], [[1, 1, 4, 4]],
         [[ints(4, 4), ints(2, 2)]],
         [[ints(4, 4), ints(4, 1)], [ints(5, 4), ints(2, 2)], [ints(2, 8), ints(2, 2)]]),
    Case("MaxUnpool", [floats(1, 1, 2, 2), np.asarray([[[[0, 3], [8, 10]]]])], [[1, 1, 4, 4]],
         [[ints(1, 1, 4, 4)]], [[ints(1, 1, 5, 5)], [ints(1, 1, 4, 5)]],
         {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("AffineGrid", [floats(2, 2, 3)], [[2, 3, 4, 2]],
         [[ints(2, 5, 3, 4)]], [[ints(2, 5, 4, 3)], [ints(1, 5, 3, 4)]]),
    Case("DFT", [floats(1, 8, 3, 1)], [[1, 6, 3, 2]],
         [[number(6), number(1)], [number(6), number(-3)]],
         [[number(5), number(1)], [number(6), number(2)], [number(8), number(1)]]),
    Case("STFT", [floats(1, 16)], [[1, 4, 3, 2]],
         [[number(4), floats(4)]], [[number(3), floats(4)], [number(0), floats(4)]]),
    Case("NonZero", [], [[2, 3]],
         [[np.asarray([[1, 0, 1], [0, 0, 5]], F)]],
         [[np.ones((2, 3), F)], [np.zeros((2, 3), F)]], dtypes=(np.int64,)),
    Case("Compress", [floats(3, 4)], [[2, 4]],
         [[np.asarray([True, False, True])]],
         [[np.asarray([True, True, True])], [np.asarray([False, False, True])]], {"axis": 0}),
    Case("Unique", [], [[3]],
         [[np.asarray([4, 1, 4, 2], F)], [np.asarray([1, 2, 3, 3], F)]],
         [[np.asarray([1, 2, 3, 4], F)], [np.ones(4, F)]]),
    Case("NonMaxSuppression", [np.asarray([[[0, 0, 1, 1], [0, 0, 1, 1.1], [5, 5, 6, 6]]], F),
                               np.asarray([[[0.9, 0.8, 0.7]]], F)], [[2, 3]],
         [[ints(3), np.asarray([0.5], F)]],
         [[ints(1), np.asarray([0.5], F)], [ints(3), np.asarray([0.99], F)]], dtypes=(np.int64,)),
]  # fmt: skip


def _label(case: Case) -> str:
    return f"{case.op_type}{CASES.index(case)}"


def _joined(cases: Sequence[Case]) -> onnx.ModelProto:
    """All cases of an operator set as one model, which compiles faster."""
    models = [onnx.compose.add_prefix(c.model(c.good[0]), f"{_label(c)}/") for c in cases]
    graph = helper.make_graph(
        [n for m in models for n in m.graph.node],
        "cases",
        [v for m in models for v in m.graph.input],
        [v for m in models for v in m.graph.output],
    )
    return helper.make_model(graph, opset_imports=models[0].opset_import, ir_version=9)


def _feeds(cases: Sequence[Case], case: Case, sample: Sequence[Array | None]) -> dict[str, Array]:
    """Operands of one case, and those of the others that lead to the declared shapes."""
    samples = {_label(c): (c, sample if c is case else c.good[0]) for c in cases}
    return {f"{n}/{k}": v for n, (c, s) in samples.items() for k, v in c.feeds(s).items()}


@pytest.mark.parametrize("opset", sorted({c.opset for c in CASES}))
def test_operands_lead_to_the_declared_shape_or_fail(tmp_path: Path, opset: int) -> None:
    cases = [c for c in CASES if c.opset == opset]
    compile_model(
        from_proto(_joined(cases)),
        parse_target("native"),
        tmp_path / "model.so",
        declared_sizes=True,
    )
    runtime = Runtime(tmp_path / "model.so")
    for case in cases:
        for sample in case.good:
            expected = reference(case.model(case.good[0]), case.feeds(sample))
            found = runtime.run(_feeds(cases, case, sample))
            for name, array in expected.items():
                own = found[f"{_label(case)}/{name}"]
                assert own.shape == array.shape
                np.testing.assert_allclose(own, array, rtol=1e-5, atol=1e-5)
        for sample in case.bad:
            named = rf"^node '{_label(case)}/node' \({case.op_type}\): "
            with pytest.raises(SecateurError, match=named):
                runtime.run(_feeds(cases, case, sample))


def test_every_operator_whose_shape_an_operand_decides_is_tried() -> None:
    """Those with a check of their own, one for all reductions, are in the table."""
    unproven = {"GroupNormalization", "MeanVarianceNormalization", "MelWeightMatrix"}
    tried = {case.op_type for case in CASES}
    assert tried >= (set(expectations._CHECKS) | expectations.CHECKED_WITHIN) - unproven


_ANY_SIZE = {
    "AffineGrid", "BlackmanWindow", "CenterCropPad", "ConstantOfShape", "HammingWindow",
    "HannWindow", "NonZero", "Pad", "Range", "Resize", "Slice", "Upsample", "OneHot",
    "NonMaxSuppression", "MaxUnpool",
}  # fmt: skip
"""Operators of which some operand makes results of any size."""


@pytest.mark.parametrize("case", [c for c in CASES if c.op_type not in _ANY_SIZE], ids=_label)
def test_sizes_that_no_operand_leads_to_are_refused(case: Case) -> None:
    """A declaration that contradicts the other operands, whatever the run feeds."""
    wrong = dataclasses.replace(case, out=[[s + 91 for s in shape] for shape in case.out])
    with pytest.raises(SecateurError, match="node"):
        lower(from_proto(wrong.model(case.good[0])), parse_target("native"), declared_sizes=True)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_regions_that_a_run_gives(mode: str, tmp_path: Path) -> None:
    """As ONNX Runtime: sizes follow from scales alone, axes that aren't scaled stay whole."""
    crop: dict[str, Any] = {"mode": mode, "axes": [2, 3], "extrapolation_value": 7.0}
    crop["coordinate_transformation_mode"] = "tf_crop_and_resize"
    node = helper.make_node("Resize", ["x", "region", "scales"], ["y"], **crop)
    inputs = [_info("x", F, [1, 1, 4, 4]), _info("region", F, [4]), _info("scales", F, [2])]
    graph = helper.make_graph([node], "regions", inputs, [_info("y", F, [1, 1, 2, 4])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    target, path = parse_target("native"), tmp_path / "model.so"
    compile_model(from_proto(model), target, path, declared_sizes=True)
    runtime, x = Runtime(path), floats(1, 1, 4, 4)
    for region, scales in (
        ([0.1, 0.2, 0.7, 0.8], [0.5, 1]),
        ([-0.2, 0.3, 0.7, 1.2], [0.5, 1.05]),
        ([0.25, 0.5, 0.75, 1.4], [0.6, 1.2]),
    ):
        feeds = {"x": x, "region": np.asarray(region, F), "scales": np.asarray(scales, F)}
        expected = reference(model, feeds)["y"]
        np.testing.assert_allclose(runtime.run(feeds)["y"], expected, atol=1e-5)
    for scales in ([1, 1], [0.5, 2], [np.nan, 1]):
        feeds = {"x": x, "region": F([0, 0, 0.5, 1]), "scales": np.asarray(scales, F)}
        with pytest.raises(SecateurError, match=r"\(Resize\)"):
            runtime.run(feeds)


# --- loops -----------------------------------------------------------------------


def _loop(condition: onnx.NodeProto, inputs: Sequence[str], rows: int) -> onnx.ModelProto:
    """Adds 1 to `x` in every step and stacks the sums; `rows` of them are declared."""
    body = helper.make_graph(
        [condition, helper.make_node("Add", ["held", "one"], ["next"]),
         helper.make_node("Identity", ["next"], ["row"])],
        "body",
        [_info("step", np.int64, []), _info("going", np.bool_, []), _info("held", F, [2])],
        [_info("on", np.bool_, []), _info("next", F, [2]), _info("row", F, [2])],
    )  # fmt: skip
    infos = {"trips": (np.int64, []), "start": (np.bool_, []), "end": (np.int64, [])}
    used = [n for n in ("trips", "start", "end") if n in (*inputs, *condition.input)]
    graph = helper.make_graph(
        [helper.make_node("Loop", [*inputs, "x"], ["y", "ys"], "loop", body=body)],
        "loop",
        [_info("x", F, [2]), *(_info(n, *infos[n]) for n in used)],
        [_info("y", F, [2]), _info("ys", F, [rows, 2])],
        [onnx.numpy_helper.from_array(np.ones(2, F), "one")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


_KEEP = helper.make_node("Identity", ["going"], ["on"])
_UNTIL = helper.make_node("Less", ["step", "end"], ["on"])


@pytest.mark.parametrize(
    ("condition", "inputs", "rows", "good", "bad"),
    [
        (_KEEP, ["trips", "start"], 3, [(3, True)], [(2, True), (4, True), (3, False), (-1, True)]),
        (_KEEP, ["trips", ""], 3, [(3,)], [(2,), (FAR + 3,), (-3,)]),
        (_UNTIL, ["trips", "start"], 3,
         [(3, True, 9), (9, True, 2), (3, True, 2)],
         [(9, True, 9), (9, True, 1), (2, True, 2), (9, False, 2)]),
        (_UNTIL, ["", ""], 3, [(2,)], [(1,), (3,), (0,)]),
    ],
)  # fmt: skip
def test_loops_make_the_declared_steps_or_fail(
    tmp_path: Path, condition: Any, inputs: Any, rows: int, good: Any, bad: Any
) -> None:
    model = _loop(condition, inputs, rows)
    names = [i.name for i in model.graph.input]
    compile_model(
        from_proto(model), parse_target("native"), tmp_path / "model.so", declared_sizes=True
    )
    runtime = Runtime(tmp_path / "model.so")
    for values in (*good, *bad):
        feeds = dict(zip(names, [floats(2), *map(np.asarray, values)], strict=True))
        if values in bad:
            with pytest.raises(SecateurError, match=r"^node 'loop' \(Loop\)"):
                runtime.run(feeds)
            continue
        found = runtime.run(feeds)
        for name, array in reference(model, feeds).items():
            np.testing.assert_allclose(found[name], array, rtol=1e-6)


@pytest.mark.parametrize("trips", [2, 3, 5])
def test_a_constant_number_of_steps_beats_a_declaration(tmp_path: Path, trips: int) -> None:
    model = _loop(_KEEP, ["trips", ""], 3)
    del model.graph.input[1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(number(trips), "trips"))
    path = tmp_path / "model.so"
    if trips != 3:
        with pytest.raises(SecateurError, match="declared as"):
            compile_model(from_proto(model), parse_target("native"), path, declared_sizes=True)
        return
    compile_model(from_proto(model), parse_target("native"), path, declared_sizes=True)
    np.testing.assert_allclose(Runtime(path).run({"x": np.zeros(2, F)})["y"], [3, 3])


SIZES_OF_INPUTS = {
    "TopK": """
graph g (%x: float[6], %k: int64[1]) -> (%v: float[3], %i: int64[3]) {
  %v, %i = TopK(%x, %k)
}""",
    "Slice": """
graph g (%x: float[6], %a: int64[1], %k: int64[1]) -> (%y: float[3]) {
  %y = Slice(%x, %a, %k)
}""",
    "Reshape": """
graph g (%x: float[6], %k: int64[2]) -> (%y: float[2, 3]) {
  %y = Reshape(%x, %k)
}""",
    "OneHot": """
graph g (%x: int64[6], %k: int64[1], %v: float[2]) -> (%y: float[6, 3]) {
  %y = OneHot(%x, %k, %v)
}""",
    "Resize": """
graph g (%x: float[1, 1, 2, 2], %k: float[4]) -> (%y: float[1, 1, 4, 4]) {
  %y = Resize(%x, _, %k)
}""",
}


@pytest.mark.parametrize("name", SIZES_OF_INPUTS)
def test_inputs_that_give_sizes_are_refused_unless_asked_for(name: str, tmp_path: Path) -> None:
    model = parse(SIZES_OF_INPUTS[name])
    told = rf"\({name}\): only a run tells size 2 of 'y', and nothing says how large"
    if name == "Resize":  # others have fewer elements than an input, or are told how many
        with pytest.raises(UnsupportedError, match=told):
            compile_model(model, parse_target("native"), tmp_path / "no.so")
        assert not (tmp_path / "no.so").exists()
    compile_model(model, parse_target("native"), tmp_path / "yes.so", declared_sizes=True)
    assert (tmp_path / "yes.so").exists()


EMPTY = {
    "Reshape": ("""
graph g (%x: float[0, 3, 4], %k: int64[3]) -> (%y: float[3, 4, 0]) {
  %y = Reshape(%x, %k) {allowzero = 1}
}""", [3, 4, 0], [3, 0, 4]),
    "ConstantOfShape": ("""
graph g (%k: int64[1]) -> (%y: float[0]) {
  %y = ConstantOfShape(%k)
}""", [0], [2]),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_outputs_are_empty_where_that_is_declared(name: str, tmp_path: Path) -> None:
    """Also where nothing else says so; elsewhere a declared 0 may be a size not known."""
    text, good, bad = EMPTY[name]
    compile_model(parse(text), parse_target("native"), tmp_path / "m.so", declared_sizes=True)
    runtime = Runtime(tmp_path / "m.so")
    feeds = {"x": np.zeros((0, 3, 4), F)} if name == "Reshape" else {}
    assert runtime.run({**feeds, "k": np.int64(good)})["y"].shape == tuple(good)
    with pytest.raises(SecateurError, match=rf"\({name}\)"):
        runtime.run({**feeds, "k": np.int64(bad)})


SIZES = {
    name: operands for name, (operands, _) in expectations._CHECKS.items() if name not in TOLD
} | expectations._OF_SIZES
"""Operands that give a result its size, which runs don't read."""


@pytest.mark.parametrize("op_type", sorted(SIZES))
def test_inputs_give_no_sizes_to_results(op_type: str) -> None:
    """Each by itself; constants do, as do operands of other domains, and those that name axes."""
    count = max(SIZES[op_type], default=0) + 1
    names = [f"x{i}" for i in range(count)]
    for domain, position in itertools.product(("", "com.acme"), range(count)):
        constants = [n for i, n in enumerate(names) if i != position]
        graph = helper.make_graph(
            [helper.make_node(op_type, names, ["y"], "sized", domain=domain)],
            "g",
            [helper.make_tensor_value_info(names[position], TensorProto.INT64, [1])],
            [helper.make_empty_tensor_value_info("y")],
            [helper.make_tensor(n, TensorProto.INT64, [1], [1]) for n in constants],
        )
        model = from_proto(helper.make_model(graph))
        gives = not domain and position in SIZES[op_type] and op_type not in expectations._OF_AXES
        if gives:
            with pytest.raises(UnsupportedNodesError, match=f"input 'x{position}' gives a result"):
                expectations.refuse_sizes_of_inputs(model)
        else:
            expectations.refuse_sizes_of_inputs(model)
