"""Operators that index by data, fed with hostile data between pages that nothing may touch.

Each case is one node with operands that only a run tells. ONNX Runtime says what is right:
where it has a result of the declared shapes that is the artifact's, where it refuses the
artifact fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("tvm")

from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.lowering.loops import RULES as LOOPS
from secateur.backends.tvm.lowering.lower import RULES
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto
from secateur.ir.ops import Trait, with_trait

from .child import Child, Feeds, KilledError, RefusedError

Array = Any

INTEGERS = (
    *(0, 1, 2, 3, 5, 9, 100, -1, -2, -4, -9, -100, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31)),
    *(2**31, 2**32, 2**32 + 1, 2**62, -(2**62), 2**63 - 1, -(2**63), 2**64 - 1),
)
FLOATS = (0.0, -0.5, 1.5, 7.0, -7.0, 1e4, -1e4, 3e9, -3e9, 1e30, -1e30, np.inf, -np.inf, np.nan)


def ramp(*shape: int, dtype: str = "float32") -> Array:
    return (np.arange(np.prod(shape), dtype="int64") % 7 + 1).reshape(shape).astype(dtype)


def ints(*values: Any, dtype: str = "int64") -> Array:
    return np.array(values[0] if len(values) == 1 else values, dtype)


@dataclasses.dataclass(frozen=True)
class Case:
    """A node, feeds that are right, and which of them are turned hostile.

    `unlike` are hostile numbers for which ONNX Runtime's own result means nothing.
    """

    op_type: str
    feeds: Feeds
    hostile: str
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    opset: int = 16
    outputs: int = 1
    unlike: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        mode = "-".join(str(v) for v in self.attributes.values() if isinstance(v, str))
        kinds = "-".join(f"{n}-{self.feeds[n].dtype}" for n in self.hostile)
        return "-".join(filter(None, (self.op_type, mode, kinds)))

    def model(self) -> onnx.ModelProto:
        """Feeds that are named "_" are omitted inputs; those that aren't tensors are constants."""
        given = {n: a for n, a in self.feeds.items() if n[0] != "_"}
        names = ["" if n[0] == "_" else n for n in self.feeds]
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op_type, names, outputs, name="node", **self.attributes)
        constants = [n for n in given if n.isupper()]
        kind = helper.np_dtype_to_tensor_dtype
        graph = helper.make_graph(
            [node],
            "g",
            [
                helper.make_tensor_value_info(n, kind(a.dtype), a.shape)
                for n, a in given.items()
                if n not in constants
            ],
            [helper.make_empty_tensor_value_info(n) for n in outputs],
            [onnx.numpy_helper.from_array(given[n], n) for n in constants],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def runtime_feeds(self) -> Feeds:
        return {n: a for n, a in self.feeds.items() if n[0] != "_" and not n.isupper()}

    def ignores(self, number: float) -> bool:
        return number in self.unlike or (number != number and bool(self.unlike))

    def attacks(self) -> Iterator[tuple[str, float, Feeds]]:
        """Every hostile number in all places of an operand, and in its last place alone."""
        base = self.runtime_feeds()
        for name in self.hostile:
            array = base[name]
            floats = array.dtype.kind == "f"
            for number in FLOATS if floats else INTEGERS:
                if not floats:
                    info = np.iinfo(array.dtype)
                    if not info.min <= number <= info.max:
                        continue
                with np.errstate(over="ignore"):
                    everywhere = np.full_like(array, number)
                last = array.copy()
                last.reshape(-1)[-1:] = everywhere.reshape(-1)[-1:]
                for feed in (everywhere, last)[: 2 if array.size > 1 else 1]:
                    yield f"{name} = {number}", number, {**base, name: feed}


def indexing() -> Iterator[Case]:
    """Gather and scatter."""
    for dtype in ("int32", "int64"):
        i = ints([1, 0, -1], dtype=dtype)
        yield Case("Gather", {"x": ramp(4, 3), "i": i}, "i")
        yield Case("Gather", {"x": ramp(2, 4, 3), "i": i.reshape(1, 3)}, "i", {"axis": 1})
        at = ints([[1, 0, -1]], dtype=dtype)
        yield Case("GatherElements", {"x": ramp(4, 3), "i": at}, "i")
        scattered = {"x": ramp(4, 3), "i": at, "u": ramp(1, 3)}
        for reduction in ("none", "add"):
            yield Case("ScatterElements", scattered, "i", {"reduction": reduction})
    yield Case("Scatter", {"x": ramp(4, 3), "i": ints([[1, 0, 1]]), "u": ramp(1, 3)}, "i", opset=9)
    yield Case("GatherND", {"x": ramp(4, 3, 2), "i": ints([[1, 0], [-1, 2]])}, "i")
    batched = {"x": ramp(2, 4, 3), "i": ints([[1], [-1]])}
    yield Case("GatherND", batched, "i", {"batch_dims": 1})
    updates = {"x": ramp(4, 3), "i": ints([[1], [-1]]), "u": ramp(2, 3)}
    for reduction in ("none", "mul"):
        yield Case("ScatterND", updates, "i", {"reduction": reduction})
    cache = {"x": ramp(2, 5, 3), "u": ramp(2, 2, 3), "i": ints(0, 1)}
    for mode in ("linear", "circular"):
        yield Case("TensorScatter", cache, "i", {"mode": mode}, 24)
    for dtype, values in (("int64", "float32"), ("int64", "int64")):
        given = {"i": ints([1, 0, -1], dtype=dtype), "D": ints([4]), "v": ramp(2, dtype=values)}
        yield Case("OneHot", given, "i", opset=13)
    scores = {"x": ramp(3, 4), "t": ints(1, 0, 3)}
    for op_type in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
        yield Case(op_type, scores, "t", {"reduction": "none"}, 13)
        yield Case(op_type, scores, "t", {"ignore_index": -100}, 13)
    rotary = {"x": ramp(1, 1, 2, 4), "c": ramp(5, 2), "s": ramp(5, 2), "p": ints([[0, 1]])}
    yield Case("RotaryEmbedding", rotary, "p", opset=23)
    pooled = {"x": ramp(1, 2, 3), "i": ints([[[0, 2, 5], [6, 8, 11]]])}
    yield Case("MaxUnpool", pooled, "i", {"kernel_shape": [2], "strides": [2]})


def ranges() -> Iterator[Case]:
    """Slices, pads, lengths, axes."""
    bounds = {"x": ramp(6, 5), "s": ints(4, 1), "e": ints(1, 4), "a": ints(0, 1), "t": ints(-1, 2)}
    for names in ("s", "e", "a", "t"):
        yield Case("Slice", bounds, names, opset=13)
    yield Case("Slice", {"x": ramp(9), "s": ints([2], dtype="int32"), "E": ints([2**31 - 1],
               dtype="int32")}, "s", opset=13)  # fmt: skip
    for mode in ("constant", "edge", "reflect", "wrap"):
        pads = {"x": ramp(4, 3), "p": ints(1, 2, 2, 0), "_v": None, "a": ints(0, 1)}
        yield Case("Pad", pads, "pa", {"mode": mode}, 19)
        yield Case("Pad", {"x": ramp(4), "p": ints(-1, 2)}, "p", {"mode": mode}, 19)
    lengths = {"x": ramp(4, 3, 2), "l": ints(4, 1, 2)}
    yield Case("ReverseSequence", lengths, "l", {"batch_axis": 1, "time_axis": 0})
    lengths = {"x": ramp(3, 4, 2), "l": ints(4, 1, 2)}
    yield Case("ReverseSequence", lengths, "l", {"batch_axis": 0, "time_axis": 1})
    for op_type, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        weights = {"w": ramp(2, gates * 2, 3) / 9, "r": ramp(2, gates * 2, 2) / 9}
        given = {"x": ramp(4, 2, 3), **weights, "_b": None, "l": ints(3, 1, dtype="int32")}
        attributes = {"hidden_size": 2, "direction": "bidirectional"}
        yield Case(op_type, given, "l", attributes, 14, 2)
    keys = {"q": ramp(2, 1, 2, 4), "k": ramp(2, 1, 3, 4), "v": ramp(2, 1, 3, 4)}
    padded = {**keys, "_m": None, "_k": None, "_v": None, "n": ints(2, 3)}
    yield Case("Attention", padded, "n", opset=24)
    yield Case("ReduceSum", {"x": ramp(3, 3, 3), "a": ints(1, 2)}, "a")
    yield Case("CumSum", {"x": ramp(3, 4), "a": ints(1)}, "a")
    yield Case("Trilu", {"x": ramp(3, 4), "k": ints(1)}, "k")
    yield Case("DFT", {"x": ramp(2, 4, 4, 1), "_n": None, "a": ints(1)}, "a", {}, 20)
    framed = {"x": ramp(1, 12, 1), "s": ints(2), "_w": None, "L": ints(4)}
    yield Case("STFT", framed, "s", opset=17)
    columns = {"x": ramp(1, 6, 9), "I": ints(4, 5), "b": ints(2, 3)}
    yield Case("Col2Im", columns, "b", opset=18)


def sampling() -> Iterator[Case]:
    """Boxes and places as floats, and operators that count what they find."""
    attributes: dict[str, Any]
    odd = (3e9, -3e9, 1e30, -1e30, np.inf, -np.inf, np.nan)
    boxes = {"x": ramp(2, 2, 5, 6), "r": ramp(3, 4) * [0.2, 0.3, 1, 1], "b": ints(1, 0, 1)}
    boxes["r"] = boxes["r"].astype("float32")
    for mode, ratio in (("avg", 0), ("avg", 2), ("max", 0)):
        attributes = {"mode": mode, "output_height": 2, "output_width": 3, "sampling_ratio": ratio}
        yield Case("RoiAlign", boxes, "rb", attributes, unlike=odd)
    corners = np.array([[1, 0, 0, 3, 4], [0, 1, 1, 5, 5]], "float32")
    attributes = {"pooled_shape": [2, 2]}
    yield Case("MaxRoiPool", {"x": ramp(2, 2, 5, 6), "r": corners}, "r", attributes, unlike=odd)
    grid = {"x": ramp(1, 2, 4, 5), "g": (ramp(1, 3, 3, 2) - 4) / 3}
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            named = mode if mode == "nearest" else f"bi{mode}"
            attributes = {"mode": named, "padding_mode": padding}
            unlike = () if padding == "zeros" else odd[:2]
            yield Case("GridSample", grid, "g", attributes, unlike=(*unlike, 1e4, -1e4))
    deformed = {"x": ramp(1, 2, 4, 4), "w": ramp(2, 2, 2, 2), "o": ramp(1, 8, 3, 3) / 3}
    yield Case("DeformConv", deformed, "o", opset=19, unlike=odd)
    scaled = {"x": ramp(1, 1, 4, 4), "_r": None, "s": np.array([1, 1, 1.5, 2], "float32")}
    for mode in ("nearest", "linear"):
        yield Case("Resize", scaled, "s", {"mode": mode}, unlike=FLOATS)
    cropped = {"x": ramp(1, 1, 4, 4), "r": ramp(8) / 9, "_s": None, "Z": ints(1, 1, 5, 3)}
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    yield Case("Resize", cropped, "r", attributes, unlike=odd)
    # As many as they find now: other numbers are refused.
    yield Case("NonZero", {"x": ramp(3, 4)}, "x")
    yield Case("Compress", {"x": ramp(4, 3), "c": np.array([1, 0, 1, 1], bool)}, "", {"axis": 0})
    found = {"b": ramp(1, 3, 4), "s": ramp(1, 2, 3), "m": ints([2]), "i": ramp(1) / 9, "t": ramp(1)}
    yield Case("NonMaxSuppression", found, "bsmit", unlike=odd)
    yield Case("TopK", {"x": ramp(3, 5), "K": ints([2])}, "x", outputs=2)


CASES = [*indexing(), *ranges(), *sampling()]


def by_operator() -> Iterator[Any]:
    """All cases; but for an operator's first they are slow tests."""
    seen: set[str] = set()
    for case in CASES:
        marks = [pytest.mark.slow] if case.op_type in seen else []
        seen.add(case.op_type)
        yield pytest.param(case, id=case.label, marks=marks)


@pytest.fixture(scope="module")
def children() -> Iterator[tuple[Child, Child]]:
    """A process that runs artifacts, and one that runs ONNX Runtime, which may crash."""
    pair = Child(), Child()
    yield pair
    for child in pair:
        child.close()


def declared(model: onnx.ModelProto, results: Feeds) -> onnx.ModelProto:
    """The model with the types of results as those of its outputs."""
    for value in model.graph.output:
        array = results[value.name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape))
    return model


def same(found: Feeds, expected: Feeds) -> bool:
    return all(
        np.allclose(found[n], a, rtol=1e-4, atol=1e-4, equal_nan=True) for n, a in expected.items()
    )


def test_every_operator_that_indexes_by_data_has_a_case() -> None:
    lowered = {*RULES, *LOOPS}
    indexing = with_trait(Trait.INDEXES | Trait.COUNTED) & lowered
    assert indexing - {case.op_type for case in CASES} == {
        "Unique",  # refused
        "Upsample",  # its scales are known when compiling
    }


@pytest.mark.parametrize("case", list(by_operator()))
def test_hostile_data(case: Case, tmp_path: Path, children: tuple[Child, Child]) -> None:
    artifacts, reference = children
    model = case.model()
    content, good = model.SerializeToString(), case.runtime_feeds()
    expected = reference.refer(content, good)
    path = tmp_path / "m.so"
    target = parse_target("native")
    compile_model(from_proto(declared(model, expected)), target, path, declared_sizes=True)
    assert same(artifacts.run_guarded(path, good), expected)
    wrong = []
    for label, number, feeds in case.attacks():
        found: Feeds | None
        try:
            found = artifacts.run_guarded(path, feeds)
        except RefusedError as error:
            found, reason = None, str(error)
        except KilledError as error:
            wrong.append(f"{label}: {error}")
            continue
        try:
            right: Feeds | None = reference.refer(content, feeds)
        except RefusedError:
            right = None
        except KilledError:
            continue
        if right is not None and any(right[n].shape != a.shape for n, a in expected.items()):
            right = None
        if found is not None and right is None:
            wrong.append(f"{label}: a result where ONNX Runtime refuses")
        elif right is None or case.ignores(number):
            continue
        elif found is None and "fault 3" not in reason:
            wrong.append(f"{label}: {reason}")
        elif found is not None and not same(found, right):
            wrong.append(f"{label}: wrong")
    assert not wrong, "\n".join(wrong)
    assert same(artifacts.run_guarded(path, good), expected)
