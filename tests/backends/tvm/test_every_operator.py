"""Every operator that can be lowered, compiled and compared with ONNX Runtime."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper

from secateur.backends.tvm.graph.expand import EXPANDED
from secateur.backends.tvm.lowering import lower
from secateur.backends.tvm.lowering.loops import RULES as LOOPS
from secateur.backends.tvm.lowering.lower import RULES
from secateur.ir.ops import Trait, with_trait
from tests.backend_cases import Case, generated_cases
from tests.backends.tvm.joined import Feeds, Joined, Part, compile_parts, frozen, part_of

Array = Any

RANDOM = with_trait(Trait.RANDOM)
"""Their results are no function of their inputs."""

SEQUENCES = {"SequenceMap"}
"""They work on what isn't a tensor, in models of several nodes."""

SPECIAL = {
    "NaN": [np.nan],
    "infinity": [np.inf, -np.inf],
    "edges": [-0.0, 1e-40, 1e-30, 1e15, -1e15],
}
"""What floating-point inputs hold among other numbers, by the name of the kind."""

NAN_WINS = {"ReduceMax", "ReduceMin", "MaxPool", "GlobalMaxPool", "MaxRoiPool", "RoiAlign"}
NAN_WINS |= {"ScatterElements", "ScatterND"}
NAN_WINS |= {"RNN", "GRU", "LSTM"}
"""Any NaN in their window, among updates of an element, or in a sequence gives NaN; with ONNX
Runtime it depends on where it stands, and recurrent layers lose it."""

FIRST_ONLY = {"NonMaxSuppression", "Resize", "RoiAlign", "Upsample", "AffineGrid", "OneHot"}
FIRST_ONLY |= {"Conv", "ConvTranspose", "RNN", "GRU", "LSTM"}
"""Their other floats are sizes, thresholds and scales, or weights, of which it depends on the
order of work whether an infinite one meets the zeros of a padding or of a first state."""

FINITE_WEIGHTS = {"BatchNormalization"}
"""Where their scale is infinite, the order of work decides whether infinity is subtracted from
infinity: the mean is subtracted before the multiplication by the scale, or a multiple of it after.
"""

UNEQUAL = {
    "DeformConv": "pixels outside of the image are zeros, which may meet infinite weights",
    "InstanceNormalization": "a deviation that isn't finite is divided by in another order",
    "ReduceLogSumExp": "ONNX Runtime takes exponentials of large numbers, and gives infinity",
    "LRN": "ONNX Runtime slides a sum over channels, in which NaN stays",
    "Hardmax": "which element of a row is the largest has no answer with NaN",
    "TopK": "the order of NaN among numbers isn't defined",
    "QLinearMatMul": "scales of quantization are finite",
    "DynamicQuantizeLinear": "a range that isn't finite has no scale",
    "Range": "its floats decide how many numbers there are",
    "DFT": "infinity meets sines that are nearly zero",
    "STFT": "infinity meets sines that are nearly zero",
    "Attention": "scores pass the largest float where sums go in another order",
    "MaxUnpool": "ONNX Runtime counts places in another shape than ONNX, where one is given",
    "LinearAttention": "products pass the largest float in another order",
}
"""Operators whose results on special values aren't compared, with the reason."""

UNEQUAL_ON = {
    ("infinity", "LayerNormalization"): "ONNX Runtime's mean of one infinite number is NaN",
    ("infinity", "MaxPool"): "ONNX Runtime's maxima start at the lowest finite number",
    ("infinity", "Resize"): "an infinite pixel may meet a weight of zero, before or after others",
    ("NaN", "ConvTranspose"): "a kernel that strides don't divide is padded with zeros",
    ("infinity", "ConvTranspose"): "a kernel that strides don't divide is padded with zeros",
    ("NaN", "GridSample"): "a pixel that is no number may meet a weight of zero, or none",
    ("infinity", "GridSample"): "an infinite pixel may meet a weight of zero, or none",
    ("edges", "GridSample"): "beyond integers ONNX Runtime's coordinates are on the other side",
    ("edges", "ReduceLogSum"): "large numbers cancel in the order in which they are summed",
    ("edges", "ReduceMean"): "large numbers cancel in the order in which they are summed",
}
"""The same for one kind of special values."""


REASONS = (
    "a type that kernels lack",
    "computed at run time",
    "computed operands decide",
    "nothing confirms the declared",
)
"""Why cases may be refused; a rule that fails, or accesses that can't be proven, are no reasons."""

STATED = 1e-3
"""Relative error of what ONNX says of its cases: some numbers have four digits."""

MANY = 1000
"""More than an operator has cases."""

SEVERAL = 8
"""Cases of an operator that its own test takes, at most, spread over all of them."""


def lowered() -> set[str]:
    """Operators that models can have, but for those that no comparison says anything of."""
    standard = {name for name in {*RULES, *LOOPS, *EXPANDED} if "::" not in name}
    return standard - RANDOM - SEQUENCES - {"SimplifiedLayerNormalization"}  # see test_contrib.py


def cases(per_operator: int) -> list[Part]:
    """For each operator the first cases of ONNX that are models of one node, and of those without a
    fast rule all that have a form of their own: test_fast_and_plain.py has the others."""
    found: collections.Counter[str] = collections.Counter()
    seen: dict[str, set[object]] = collections.defaultdict(set)
    parts = []
    for case in generated_cases():
        nodes = case.model.graph.node
        if not case.data or len(nodes) != 1 or nodes[0].op_type not in lowered():
            continue
        op_type, form = nodes[0].op_type, set(form_of(nodes[0]))
        plain = op_type in LOOPS.keys() - RULES.keys()
        if found[op_type] >= per_operator and not (plain and form - seen[op_type]):
            continue
        part = part_of(case.name, case.model, arrays_of(case))
        if part is not None and has_numbers(part):
            found[op_type] += 1
            seen[op_type] |= form
            parts.append(part)
    return [*parts, *OWN]


def form_of(node: onnx.NodeProto) -> Iterator[object]:
    """What choices a node has: names and flags among its attributes, operands and results."""
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes) or (isinstance(value, int) and value in (0, 1)):
            yield attribute.name, value
    yield "operands", tuple(map(bool, node.input))
    yield "results", tuple(map(bool, node.output))


def arrays_of(case: Case) -> list[Any]:
    return [numpy_helper.to_array(x) if isinstance(x, TensorProto) else x for x in case.data[0][0]]


def has_numbers(part: Part) -> bool:
    return all(x.dtype.kind in "fiub" for x in part.feeds.values())


def model_of(
    op_type: str,
    feeds: dict[str, Array],
    constants: dict[str, Array] | None = None,
    opset: int = 17,
    **attributes: Any,
) -> Part:
    """A model of one node that reads all feeds, then the constants."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in feeds.items()
    ]
    constants = constants or {}
    node = helper.make_node(op_type, [*feeds, *constants], ["y"], **attributes)
    output = helper.make_empty_tensor_value_info("y")
    initializers = [numpy_helper.from_array(x, n) for n, x in constants.items()]
    graph = helper.make_graph([node], "own", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Part(f"own {op_type}", model, feeds)


_X = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)

OWN = [
    model_of("ConvTranspose", {"x": _X}, {"w": _X.reshape(3, 2, 5, 6), "b": np.float32([1, 2])}),
    model_of("ConvTranspose", {"x": _X}, {"w": _X.reshape(3, 2, 5, 6), "b": np.float32(range(6))},
         group=3),
    model_of("ConvInteger", {"x": np.uint8(_X * 40 + 99)},
         {"w": np.uint8(_X * 40 + 120), "x0": np.uint8(99), "w0": np.uint8([120])}),
    model_of("CumSum", {"x": _X}, {"axis": np.int64(-2)}, exclusive=1),
    model_of("GatherND", {"x": _X}, {"i": np.int64([[2, 5], [0, -1]])}, batch_dims=1),
    model_of("GlobalLpPool", {"x": _X}, p=2),
    model_of("Hardmax", {"x": _X}, opset=12, axis=1),
    model_of("Hardmax", {"x": _X}, opset=13, axis=1),
    model_of("Einsum", {"x": _X, "z": _X[:1, :1].reshape(1, 1, 5, 6)},
         equation="...ij,...jk->...ik"),
    model_of("MaxRoiPool", {"x": _X},
         {"r": np.float32([[0, 0, 0, 3, 4], [1, 1, 1, 4, 5], [0, 9, 9, 12, 12]])},
         pooled_shape=[2, 2]),
    model_of("MelWeightMatrix", {},
         {"bins": np.int64(8), "length": np.int64(16), "rate": np.int64(8192),
          "low": np.float32(0), "high": np.float32(4096)}),
    model_of("STFT", {"x": _X.reshape(2, -1, 1)},
         {"step": np.int64(8), "window": np.ones(16, np.float32), "length": np.int64(16)}),
]  # fmt: skip
"""Operators of which ONNX has no case of one node on tensors, or none whose sizes are constant, or
which meant something else in older versions; operands that broadcast, and regions beyond the image,
of which it has none either."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Joined]:
    refused: dict[str, str] = {}
    found = list(compile_parts(cases(1), tmp_path_factory.mktemp("joined"), refused=refused))
    assert len(refused) < 12, refused
    return found


def test_no_operator_is_left_out(artifacts: list[Joined]) -> None:
    parts = [part for joined in artifacts for part in joined.parts.values()]
    compiled = {op_type for part in parts for op_type in part.operators}
    assert lowered() - compiled == {"Unique"}  # its results' sizes depend on the data


def test_compiled_operators_equal_onnx_runtime(artifacts: list[Joined]) -> None:
    """Or ONNX, where it is not what ONNX says."""
    stated = {part.name: outputs for part, outputs in _all_parts()}
    for joined in artifacts:
        check_one_or_other(joined, stated)
    assert sum(len(joined.parts) for joined in artifacts) > 250


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_values_go_where_onnx_runtime_lets_them(artifacts: list[Joined], kind: str) -> None:
    assert check_special(artifacts, kind) > 100


def check_special(artifacts: list[Joined], kind: str) -> int:
    count = 0
    for joined in artifacts:
        feeds = {p: special(part, kind) for p, part in joined.parts.items()}
        unequal = {*UNEQUAL, *(op_type for of, op_type in UNEQUAL_ON if of == kind)}
        skipped = {p for p, part in joined.parts.items() if part.operators & unequal}
        count += check(joined, feeds, skipped)
    return count


def special(part: Part, kind: str) -> Feeds:
    """The part's inputs with special values among their floating-point numbers.

    Each part has draws of its own, which stay the same whatever other parts there are.
    """
    random = np.random.default_rng(list(f"{part.name} {kind}".encode()))
    feeds = dict(part.feeds)
    first_only = FIRST_ONLY | (FINITE_WEIGHTS if kind == "infinity" else set())
    names = list(feeds)[:1] if part.operators & first_only else list(feeds)
    names = [] if part.operators & {"Range"} else names
    for name in names:
        x = feeds[name]
        if x.dtype.kind != "f" or not x.size:
            continue
        chosen = np.asarray(random.random(x.shape) < 0.2)
        chosen.flat[random.integers(x.size)] = True
        with np.errstate(over="ignore"):
            values = random.choice(SPECIAL[kind], x.shape).astype(x.dtype)
        feeds[name] = np.where(chosen, values, x)
    return feeds


def check(joined: Joined, feeds: dict[str, Feeds], skipped: set[str] | None = None) -> int:
    """Compare all parts; how many had something to be compared with."""
    found = joined.run(feeds)
    count = 0
    for prefix, part in joined.parts.items():
        expected = None if prefix in (skipped or ()) else part.reference(feeds[prefix])
        if expected is None:
            continue
        count += 1
        for name, want in expected.items():
            assert_close(found[prefix][name], want, f"{part.name}: {name}", part.operators)
    return count


def assert_close(
    have: Array, want: Array, what: str, operators: set[str], rtol: float = 1e-4
) -> None:
    have, want = np.asarray(have), np.asarray(want)
    assert (have.shape, have.dtype) == (want.shape, want.dtype), what
    if want.dtype.kind != "f":
        np.testing.assert_array_equal(have, want, err_msg=what)
        return
    rtol = 4e-3 if want.dtype == np.float16 else rtol
    with np.errstate(over="ignore", invalid="ignore"):
        have, want = have.astype(np.float64), want.astype(np.float64)
        if operators & NAN_WINS:
            want = np.where(np.isnan(have), have, want)
        largest = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
        atol = 1e-5 * largest + 1e-6
    np.testing.assert_allclose(have, want, rtol=rtol, atol=atol, err_msg=what)


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["all", "plain"])
@pytest.mark.parametrize("op_type", sorted(lowered() - {"Unique"}))
def test_an_operator_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op_type: str, rules: str
) -> None:
    """The tests above of one operator, in seconds and on more of its cases, and of its plain loops
    where it has a fast rule, too: for who works on it."""
    if rules == "plain":
        if op_type not in RULES or op_type not in LOOPS:
            pytest.skip("has one rule")
        monkeypatch.setattr(lower, "RULES", {})
    stated = {part.name: outputs for part, outputs in _all_parts()}
    parts = [part for part in cases(MANY) if op_type in part.operators]
    own = [part for part in parts if part in OWN]
    rest = [part for part in parts if part not in OWN]
    chosen = [*rest[:: -(-len(rest) // SEVERAL) or 1], *own]
    for part in [part for part in chosen if len(part.feeds) > 1]:
        chosen.append(frozen(part))
        stated[chosen[-1].name] = stated.get(part.name, [])
    refused: dict[str, str] = {}
    found = list(compile_parts(chosen, tmp_path, refused=refused))
    assert all(any(words in why for words in REASONS) for why in refused.values()), refused
    for joined in found:
        check_one_or_other(joined, stated)
    for kind in SPECIAL:
        check_special(found, kind)


@pytest.mark.slow
@pytest.mark.parametrize("share", range(3))
def test_many_cases(tmp_path: Path, share: int) -> None:
    """Cases of ONNX with tensors of numbers, as ONNX Runtime computes them or as ONNX says, which
    differ in places. Most refusals are for types that kernels lack.

    Those of a quarter; `benchmarks/coverage.py` takes all.
    """
    chosen = [pair for pair in _all_parts() if has_numbers(pair[0])][4 * share :: 12]
    stated = {part.name: outputs for part, outputs in chosen}
    refused: dict[str, str] = {}
    for joined in compile_parts([part for part, _ in chosen], tmp_path, refused=refused):
        check_one_or_other(joined, stated)
    assert len(refused) <= 0.15 * len(chosen), refused


def check_one_or_other(joined: Joined, stated: dict[str, list[Array]]) -> None:
    """Each part gives what ONNX Runtime computes or, where they differ, what ONNX says."""
    found = joined.run({p: part.feeds for p, part in joined.parts.items()})
    for prefix, part in joined.parts.items():
        have = list(found[prefix].values())
        computed = part.reference(part.feeds)
        if computed is None or _differ(have, list(computed.values()), part):
            problem = _differ(have, stated[part.name], part, STATED)
            assert not problem, problem


def _differ(have: list[Array], want: list[Array], part: Part, rtol: float = 1e-4) -> str:
    try:
        for index, (a, b) in enumerate(zip(have, want, strict=True)):
            assert_close(a, b, f"{part.name}: output {index}", part.operators, rtol)
    except AssertionError as error:
        return str(error)
    return ""


def _all_parts() -> Iterator[tuple[Part, list[Array]]]:
    for case in generated_cases():
        part = part_of(case.name, case.model, arrays_of(case)) if case.data else None
        if part is not None and not part.operators & RANDOM:
            outputs = case.data[0][1]
            yield (
                part,
                [numpy_helper.to_array(x) if isinstance(x, TensorProto) else x for x in outputs],
            )


def test_the_comparison_sees_a_wrong_result() -> None:
    """Infinite bounds, NaN everywhere and other shapes would pass unnoticed otherwise."""
    want = np.array([1.0, np.nan, np.inf], np.float32)
    assert_close(want.copy(), want, "equal", set())
    wrong = [[1.01, np.nan, np.inf], [1.0, 2.0, np.inf], [1.0, np.nan, -np.inf], [np.nan] * 3]
    for have, operators in itertools.product(wrong[:3], ({"Add"}, {"ReduceMax"})):
        with pytest.raises(AssertionError):
            assert_close(np.array(have, np.float32), want, "wrong", operators)
    with pytest.raises(AssertionError):
        assert_close(np.array(wrong[3], np.float32), want, "wrong", {"Add"})
