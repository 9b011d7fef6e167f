"""Records of operators: that each trait is true, by ONNX's own cases and by values all over."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from secateur.ir.axes.dims import resolve
from secateur.ir.dependencies.analysis import analyze
from secateur.ir.onnx_io import from_proto
from secateur.ir.ops import Trait, operator, operators, with_trait
from secateur.ir.ops.records import Operator, add, table
from tests.backend_cases import Case, generated_cases

Array = Any

ROOT = Path(__file__).parents[2]

GRID = np.float32([-50, -7.5, -2, -1, -0.75, -0.5, -0.1, 0, 0.1, 0.25, 0.5, 0.9, 1, 1.5, 3, 50])
"""Numbers on both sides of where functions of one number turn."""

ATTRIBUTES: dict[str, list[dict[str, Any]]] = {
    "Celu": [{"alpha": 0.3}],
    "Elu": [{"alpha": -0.3}],
    "Gelu": [{"approximate": "tanh"}],
    "HardSigmoid": [{"alpha": -0.3, "beta": 0.1}, {"alpha": 2.0, "beta": -1.0}],
    "LeakyRelu": [{"alpha": -0.5}, {"alpha": 2.0}],
    "Selu": [{"alpha": -1.0, "gamma": 2.0}],
    "Shrink": [{"lambd": 0.2, "bias": 1.0}],
    "Swish": [{"alpha": -0.7}],
    "ThresholdedRelu": [{"alpha": -0.7}],
}
"""Attributes that may turn a function round; what is true of all attributes has to hold."""

NUMBERLESS = {"BitCast", "Cast", "CastLike", "BitwiseNot", "Clip", "Not"}
"""Pointwise operators of other types, or whose other operands say what they do."""

LOGIC = {"And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift", "Where"}
"""Operators with operands that are no floats."""


def evaluate(op_type: str, *operands: Array, **attributes: Any) -> Array:
    """One node's first result, by ONNX's reference."""
    names = [f"x{i}" for i in range(len(operands))]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    kinds = [helper.np_dtype_to_tensor_dtype(x.dtype) for x in operands]
    inputs = [
        helper.make_tensor_value_info(n, k, x.shape)
        for n, k, x in zip(names, kinds, operands, strict=True)
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph)
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, dict(zip(names, operands, strict=True)))[0]


def known(op_type: str) -> Trait:
    record = operator(op_type)
    assert record is not None
    return record.traits


FACTOR = 4
"""A power of two, so that products are exact."""


def check_function(traits: Trait, values: Array, result: Array) -> None:
    """Traits of a function of one number, of rising `values`."""
    finite = result[~np.isnan(result.astype(float))]
    if Trait.NON_NEGATIVE in traits:
        assert (finite >= 0).all()
    if Trait.ZERO_AT_ZERO in traits:
        assert not result[values == 0].any()


@pytest.mark.parametrize("op_type", sorted(with_trait(Trait.POINTWISE) - NUMBERLESS))
def test_functions_of_one_number(op_type: str) -> None:
    for attributes in [{}, *ATTRIBUTES.get(op_type, [])]:
        result = evaluate(op_type, GRID, **attributes)
        assert result.shape == GRID.shape
        check_function(known(op_type), GRID, result)
        if Trait.HOMOGENEOUS in known(op_type):
            scaled = evaluate(op_type, FACTOR * GRID, **attributes)
            np.testing.assert_array_equal(scaled, FACTOR * result)


def test_wrong_traits_are_found() -> None:
    for op_type, wrong in (
        ("Sigmoid", Trait.ZERO_AT_ZERO),
        ("Tanh", Trait.NON_NEGATIVE),
        ("Cos", Trait.ZERO_AT_ZERO),
    ):
        with pytest.raises(AssertionError):
            check_function(wrong, GRID, evaluate(op_type, GRID))


@pytest.mark.parametrize("op_type", sorted(with_trait(Trait.BROADCASTS) - LOGIC - {"SwiGLU"}))
def test_functions_of_two_numbers(op_type: str) -> None:
    traits = known(op_type)
    left, right = np.meshgrid(GRID, GRID, indexing="ij")
    attributes = {"fmod": 1} if op_type == "Mod" else {}
    result = evaluate(op_type, left, right, **attributes)
    assert result.shape == (GRID.size, GRID.size)
    zero = GRID == 0
    if Trait.ZERO_AT_ZERO in traits:
        assert not result[np.ix_(zero, zero)].any()
    if Trait.ZERO_AT_ANY_ZERO in traits:
        assert not result[zero].any()
        assert not result[:, zero].any()
    if Trait.ZERO_AT_FIRST_ZERO in traits:
        positive = GRID > 0
        assert not result[np.ix_(zero, positive)].any()


def test_functions_of_truth_values_and_bits() -> None:
    truth = np.array([False, True])
    bits = np.array([0, 1, 6], np.uint8)
    pairs = [(truth, ["And", "Or", "Xor"]), (bits, ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])]
    for values, op_types in pairs:
        for op_type in op_types:
            result = evaluate(op_type, values[:, None], values[None, :])
            assert not result[0, 0]
            if Trait.ZERO_AT_ANY_ZERO in known(op_type):
                assert not result[0].any()
                assert not result[:, 0].any()
            else:
                assert result[0].any()


# --- by ONNX's cases ---------------------------------------------------------------------


def arrays(values: Any) -> list[Any]:
    return [numpy_helper.to_array(x) if isinstance(x, TensorProto) else x for x in values]


def cases() -> Iterator[tuple[str, list[Any], list[Any], Case]]:
    """Operator, operands and results of ONNX's cases of one node on tensors."""
    for case in generated_cases():
        nodes = case.model.graph.node
        if case.data and len(nodes) == 1 and nodes[0].domain in ("", "ai.onnx"):
            inputs, outputs = (arrays(x) for x in case.data[0])
            if all(isinstance(x, np.ndarray) for x in (*inputs, *outputs)) and all(nodes[0].input):
                yield nodes[0].op_type, inputs, outputs, case


def first_result(case: Case, inputs: list[Any]) -> Array:
    """What ONNX's reference makes of other inputs than a case has."""
    evaluator = ReferenceEvaluator(case.model)
    return evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))[0]


def scales(case: Case, inputs: list[Any], result: Array) -> bool:
    """Whether the first result grows with the first operand."""
    if not is_numeric(result) or result.dtype == bool:
        return True
    found = first_result(case, [inputs[0] * FACTOR, *inputs[1:]])
    return np.allclose(found.astype(float), FACTOR * result.astype(float), rtol=1e-3)


def is_numeric(array: Array) -> bool:
    return array.dtype.kind in "fiub"


SMALL = 300
"""Elements of an operand in the cases that are evaluated once for each pair of axes."""

LARGE = 20_000
"""Elements of an operand of whose cases ONNX's reference takes seconds, and which smaller ones are
like."""


def test_traits_hold_in_onnx_cases() -> None:
    checked: dict[Trait, set[str]] = {t: set() for t in Trait}
    for op_type, inputs, outputs, case in cases():
        traits = known(op_type)
        if not inputs or not outputs or inputs[0].size > LARGE:
            continue
        first, result = inputs[0], outputs[0]
        checks = {
            Trait.SAME_SHAPE: lambda a=first, b=result: a.shape == b.shape,
            Trait.NON_NEGATIVE: lambda b=result: not is_numeric(b) or not (b < 0).any(),
            Trait.MOVES: lambda a=first, bs=outputs: all(
                a.dtype == b.dtype and set(b.ravel().tolist()) <= {*a.ravel().tolist()} for b in bs
            ),
            Trait.HOMOGENEOUS: lambda c=case, xs=inputs, b=result: scales(c, xs, b),
            Trait.BROADCASTS: lambda xs=inputs, b=result: (
                np.broadcast_shapes(*(x.shape for x in xs)) == b.shape
            ),
        }
        for trait, check in checks.items():
            if trait in traits:
                assert check(), f"{case.name}: {trait}"
                checked[trait].add(op_type)
    for trait, most in (
        (Trait.SAME_SHAPE, 8),
        (Trait.MOVES, 2),
        (Trait.BROADCASTS, 4),
        (Trait.HOMOGENEOUS, 2),
    ):
        missed = with_trait(trait) - checked[trait]
        assert len(missed) <= most, (trait, missed)


MADE_OF_OTHERS = {"AffineGrid", "CausalConvWithState", "If", "LinearAttention", "Loop", "Scan",
                  "SequenceMap"}  # fmt: skip
"""Operators with functions or subgraphs, of which their schemas don't say what is random."""


def test_reshapes_keep_elements_in_order() -> None:
    checked = set()
    for op_type, inputs, outputs, case in cases():
        if Trait.IN_ORDER in known(op_type) and is_numeric(inputs[0]):
            np.testing.assert_array_equal(inputs[0].ravel(), outputs[0].ravel(), case.name)
            checked.add(op_type)
    assert checked == with_trait(Trait.IN_ORDER)


def test_linear_operators_commute_with_mixtures_of_indices() -> None:
    random = np.random.default_rng(0)
    checked = set()
    for op_type, inputs, outputs, case in cases():
        if Trait.LINEAR not in known(op_type) or inputs[0].dtype != np.float32:
            continue
        if inputs[0].size > SMALL:
            continue
        if Trait.RANDOM in known(op_type) and "training" in case.name:
            continue
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for name, array in zip([v.name for v in model.graph.input[1:]], inputs[1:], strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
            model.graph.input.remove(next(v for v in model.graph.input if v.name == name))
        analysis = analyze(from_proto(model))
        graph = analysis.model.graph
        before, after = (analysis.axes.get(v) or () for v in (graph.inputs[0], graph.outputs[0]))
        x, y = inputs[0].astype(np.float64), outputs[0]
        for i, j in itertools.product(range(len(before)), range(len(after))):
            dims = resolve(before[i])
            if len(dims) == 1 and len(dims[0]) == 1 and dims == resolve(after[j]):
                mixture = random.standard_normal((x.shape[i], y.shape[j]))
                mixed = np.moveaxis(np.tensordot(mixture, x, (1, i)), 0, i).astype(y.dtype)
                expected = np.moveaxis(np.tensordot(mixture, y, (1, j)), 0, j)
                np.testing.assert_allclose(
                    first_result(case, [mixed, *inputs[1:]]),
                    expected,
                    rtol=1e-4,
                    atol=1e-4,
                    err_msg=f"{case.name} {i} {j}",
                )
                checked.add(op_type)
    assert checked == with_trait(Trait.LINEAR)


def test_random_operators_are_those_that_schemas_call_random() -> None:
    random = onnx.defs.OpSchema.NodeDeterminism.NonDeterministic  # type: ignore[attr-defined]
    schemas = onnx.defs.get_all_schemas()
    said = {s.name for s in schemas if s.node_determinism == random}  # type: ignore[attr-defined]
    assert said - MADE_OF_OTHERS == with_trait(Trait.RANDOM)


def test_sizes_that_only_a_run_tells_are_left_open_by_inference() -> None:
    for op_type, _, _, case in cases():
        counted = op_type in with_trait(Trait.COUNTED)
        if counted:
            model = onnx.ModelProto()
            model.CopyFrom(case.model)
            for value in model.graph.output:
                value.type.tensor_type.ClearField("shape")
            inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type
            assert any(not d.HasField("dim_value") for d in inferred.shape.dim), case.name


# --- the table ---------------------------------------------------------------------------


def test_versions_have_one_record_each() -> None:
    legacy, modern = operator("Add", version=6), operator("Add", version=7)
    assert legacy is not modern
    assert operator("Add") is modern
    assert legacy is not None
    assert Trait.BROADCASTS not in legacy.traits
    for (domain, op_type), records in operators().items():
        for a, b in itertools.combinations(records, 2):
            both = a.holds_in(max(a.since, b.since)) and b.holds_in(max(a.since, b.since))
            assert not both, (domain, op_type)


def test_a_second_record_is_refused() -> None:
    operators()
    before = list(table["", "Relu"])
    with pytest.raises(ValueError, match="Relu has two records"):
        add(Operator("", "Relu", "again"))
    assert table["", "Relu"] == before


def test_macs_belong_to_operators_with_rules() -> None:
    for (domain, op_type), records in operators().items():
        for record in records:
            assert record.macs is None or not isinstance(record.axes, str), (domain, op_type)


# --- who else lists operators ------------------------------------------------------------


def lists_of_operators() -> Iterator[tuple[str, set[str]]]:
    """Where four operators or more are listed outside of the records, and which."""
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    for folder in ("ir", "passes", "backends"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.is_relative_to(ROOT / "ir" / "ops"):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Set | ast.Tuple | ast.List):
                    values = [e.value for e in node.elts if isinstance(e, ast.Constant)]
                    listed = {v for v in values if isinstance(v, str)}
                    if len(listed) >= 4 and len(listed) == len(node.elts) and listed <= names:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", listed


def test_no_list_repeats_a_trait() -> None:
    """Neither as a whole nor but for a few operators, which is how such lists differ."""
    for place, listed in lists_of_operators():
        for trait in Trait:
            stated = with_trait(trait)
            apart = len(listed ^ stated)
            assert apart > len(listed | stated) // 4, f"{place} lists what {trait} says"


def test_every_trait_is_read() -> None:
    """By an analysis, a pass or the compiler, or by a test that asks for cases of operators."""
    readers = [
        path
        for folder in ("ir", "passes", "backends", "tests/backends")
        for path in (ROOT / folder).rglob("*.py")
        if not path.is_relative_to(ROOT / "ir" / "ops")
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in readers)
    unread = [t.name for t in Trait if t.value and not re.search(rf"\bTrait\.{t.name}\b", text)]
    assert not unread
