"""Every elementwise operator on the values that go wrong: NaN, infinities, extremes, zeros.

The cases come from the tables of rules: an operator without one fails a test. All cases of
an element type are outputs of one model, which runs on every pair of special values, in
vectors, in their tails and alone, and must compute what ONNX Runtime computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.lowering import elementwise as fused
from secateur.backends.tvm.lowering.loops import RULES
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto
from secateur.ir.ops import Trait, with_trait

from ...onnx_runtime import session_of
from .graphs import reference
from .test_networks import TARGETS

Array = Any

OPSET = 22

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One node. An input is an operand of the model, None or a constant number.

    "x" and "y" are vectors, "s" is one number; "b" and "c" are vectors of booleans.
    """

    op_type: str
    inputs: tuple[Any, ...] = ("x",)
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return "_".join(str(p) for p in (self.op_type, *self.inputs, *self.attributes))


def _case(op_type: str, *inputs: Any, **attributes: Any) -> Case:
    return Case(op_type, inputs or ("x",), tuple(attributes.items()))


_APART = {
    "BitCast",
    "BitShift",
    "Cast",
    "CastLike",
    "Clip",
    "Mod",
    "Not",
    "Swish",
    "SwiGLU",
    "Where",
}
_APART |= {"And", "Or", "Xor"}
"""Operators with cases of their own below, or tested elsewhere."""

_UNARY = sorted(with_trait(Trait.POINTWISE) - _APART)
_BINARY = sorted(with_trait(Trait.BROADCASTS) - _APART)

CASES = [
    *(_case(op_type) for op_type in _UNARY),
    *(_case(op_type, "x", "y") for op_type in _BINARY),
    *(_case(op_type, "b", "c") for op_type in ("And", "Or", "Xor")),
    _case("Not", "b"),
    *(_case("BitShift", "x", "y", direction=d) for d in ("LEFT", "RIGHT")),
    _case("Cast", to=TensorProto.FLOAT),
    _case("CastLike", "x", "y"),
    *(_case("Celu", alpha=a) for a in (0.5, 2.0)),
    *(
        _case("Clip", "x", *bounds)
        for bounds in ((-1, 2), (None, 2), (0, None), ("s",), (1, "s"), ("s", "s"))
    ),
    *(_case(op_type, "x", "x") for op_type in ("Add", "Div", "Max", "Min", "Mul", "Sub", "Equal")),
    *(_case(op_type, "x", 0) for op_type in ("Add", "Max", "Min", "Mul", "Sub", "Pow")),
    *(_case(op_type, 0, "x") for op_type in ("Add", "Max", "Mul", "Sub")),
    *(_case("Max", *inputs) for inputs in (("x", 1, "y"), (2, "x", 1), ("x",))),
    _case("Min", "x", "y", 1),
    *(_case(o, "x", v) for o in ("Add", "Div", "Max", "Min", "Mul") for v in (np.inf, np.nan)),
    *(_case("Div", *inputs) for inputs in (("x", 0.0), (0.0, "x"), ("x", 3), (3, "x"))),
    *(_case("Pow", "x", v) for v in (0.5, 1, 2, 3, -0.5, -1, 4)),
    _case("Pow", 2, "x"),
    _case("Dropout"),
    _case("Elu", alpha=0.0),
    _case("Gelu", approximate="tanh"),
    _case("HardSigmoid", alpha=0.0, beta=0.25),
    *(_case("IsInf", detect_negative=n, detect_positive=1 - n) for n in (0, 1)),
    *(_case("LeakyRelu", alpha=a) for a in (0.0, 3.0, -1.0)),
    *(_case("Mod", "x", "y", fmod=f) for f in (0, 1)),
    *(_case("PRelu", "x", v) for v in (0, 0.25)),
    *(_case("Where", "b", *inputs) for inputs in (("x", "y"), ("x", 0), (np.nan, "x"))),
]

# Div and Mod of integers are in test_division, all conversions in test_conversions.
OTHERS = {"BatchNormalization", "DequantizeLinear", "QuantizeLinear", "Swish"}
"""Operators tested elsewhere; Swish is of an opset that ONNX Runtime has no kernels for."""

FLOATS = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.3, -2.5, 3.5, 88.9, -104.0, 6e4, -6e4]


def test_every_elementwise_operator_has_a_case() -> None:
    module = "loops.elementwise"
    plain = {name for name, rule in RULES.items() if rule.__module__.endswith(module)}
    assert plain | set(fused.RULES) == {case.op_type for case in CASES} | OTHERS


def special(dtype: str) -> Array:
    """The values of a type that go wrong."""
    if np.dtype(dtype).kind == "f":
        info = np.finfo(dtype)
        extremes = [info.max, info.min, info.tiny, -info.tiny, info.smallest_subnormal]
        return np.array([*FLOATS, *extremes], dtype)
    limits = np.iinfo(dtype)
    numbers = [limits.min, limits.min + 1, -128, -7, -2, -1, 0, 1, 2, 3, 7, 31, 32, 64, limits.max]
    return np.array([n for n in numbers if limits.min <= n <= limits.max], dtype)


def feeds(dtype: str, size: int) -> Iterator[dict[str, Array]]:
    """All pairs of special values, `size` at a time, each in any position."""
    values = special(dtype)
    count = len(values)
    for step in range(-(-count * count // size)):
        at = (np.arange(size) + step * size) % count**2
        flags = np.arange(size) + step
        yield {
            "x": values[at % count],
            "y": values[(at // count + at) % count],
            "s": np.array(values[step % count]),
            "b": flags % 2 == 0,
            "c": flags % 3 == 0,
        }


def element_types(case: Case) -> list[str]:
    """The types that the operator takes for the operands that are no booleans."""
    schema = onnx.defs.get_schema(case.op_type, OPSET)
    if "x" not in case.inputs:
        return ["bool"]
    parameter = schema.inputs[min(case.inputs.index("x"), len(schema.inputs) - 1)]
    names = [name.removeprefix("tensor(").removesuffix(")") for name in parameter.types]
    return [{"float": "float32", "double": "float64"}.get(name, name) for name in names]


def suits(case: Case, dtype: str) -> bool:
    """Whether a case makes sense of a type, booleans being tested together with float32."""
    types = element_types(case)
    if dtype not in types:
        return types == ["bool"] and dtype == "float32"
    if np.dtype(dtype).kind == "f":
        return case.attributes != (("fmod", 0),)  # ONNX Runtime has it from opset 28 on
    numbers = [v for v in case.inputs if isinstance(v, int | float)]
    lowest = np.iinfo(dtype).min
    return case.op_type not in ("Div", "Mod") and all(
        isinstance(v, int) and v >= lowest for v in numbers
    )


def build(cases: list[Case], dtype: str, size: int) -> onnx.ModelProto:
    inputs: dict[str, onnx.ValueInfoProto] = {}
    nodes, constants = [], []
    for case in cases:
        names = []
        for operand in case.inputs:
            if isinstance(operand, str):
                own = "bool" if operand in "bc" else dtype
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(own))
                shape = [] if operand == "s" else [size]
                inputs[operand] = helper.make_tensor_value_info(operand, kind, shape)
                names.append(operand)
            elif operand is None:
                names.append("")
            else:
                names.append(f"k{len(constants)}")
                constants.append(numpy_helper.from_array(np.array(operand, dtype), names[-1]))
        nodes.append(
            helper.make_node(case.op_type, names, [case.name], case.name, **dict(case.attributes))
        )
    outputs = [helper.make_empty_tensor_value_info(case.name) for case in cases]
    graph = helper.make_graph(nodes, "g", list(inputs.values()), outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def references(dtype: str, size: int) -> dict[Case, onnxruntime.InferenceSession]:
    """A session for each case of a type that ONNX Runtime has kernels for."""
    found = {}
    for case in CASES:
        if not suits(case, dtype):
            continue
        model = build([case], dtype, size).SerializeToString()
        try:
            found[case] = session_of(model, optimize=False)
        except Exception as error:  # ONNX Runtime's errors have no common type
            if "NOT_IMPLEMENTED" not in str(error) and "INVALID_GRAPH" not in str(error):
                raise
    return found


def assert_equal(found: Array, expected: Array, case: str) -> None:
    """NaN and infinities in the same places; other numbers within rounding."""
    assert found.dtype == expected.dtype, case
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected, err_msg=case)
        return
    tolerance = {"float16": 1e-3, "float32": 1e-5, "float64": 1e-12}[str(expected.dtype)]
    if case.startswith("Gelu") and "tanh" in case and expected.dtype == np.float64:
        tolerance = 1e-6  # the reference's constants have single precision
    special = ~np.isfinite(expected) | ~np.isfinite(found)
    np.testing.assert_array_equal(found[special], expected[special], err_msg=case)
    np.testing.assert_allclose(
        found[~special].astype(float),
        expected[~special].astype(float),
        rtol=tolerance,
        atol=tolerance / 10,
        err_msg=case,
    )


def check(folder: Path, target: str, dtype: str, size: int) -> None:
    sessions = references(dtype, size)
    assert len(sessions) > 25
    path = folder / "model.so"
    compile_model(from_proto(build(list(sessions), dtype, size)), parse_target(target), path)
    runtime = Runtime(path, 1)
    names = {value.name for case in sessions for value in sessions[case].get_inputs()}
    for values in feeds(dtype, size):
        found = runtime.run({name: values[name] for name in names})
        for case, session in sessions.items():
            inputs = {value.name: values[value.name] for value in session.get_inputs()}
            (expected,) = session.run(None, inputs)
            assert_equal(found[case.name], expected, f"{case.name} {inputs}")


@pytest.mark.parametrize(("dtype", "size"), [("float32", 21), ("int32", 5)])
def test_special_values(tmp_path: Path, dtype: str, size: int) -> None:
    check(tmp_path, "native", dtype, size)


def test_quantization_of_special_values(tmp_path: Path) -> None:
    """Of floats as they are, and of those that a Relu lets pass; NaN is the lowest number."""
    zeros = {"uint8": 10, "int8": -3, "uint16": 7, "int16": 5}
    body = "s = Constant <value = float {0.5}> () h = Cast <to = 1> (x) r = Relu (h)"
    for dtype, zero in zeros.items():
        body += f" z_{dtype} = Constant <value = {dtype} {{{zero}}}> ()"
        for source in "hr":
            body += f" {source}_{dtype} = QuantizeLinear ({source}, s, z_{dtype})"
    outputs = ", ".join(f"{dtype}[35] {source}_{dtype}" for dtype in zeros for source in "hr")
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float[35] x) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    session = session_of(model, optimize=False)
    compile_model(from_proto(model), parse_target("native"), tmp_path / "model.so")
    runtime = Runtime(tmp_path / "model.so")
    for values in feeds("float32", 35):
        found = runtime.run({"x": values["x"]})
        names = [output.name for output in session.get_outputs()]
        for name, expected in zip(names, session.run(None, {"x": values["x"]}), strict=True):
            np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [3, 69])
def test_special_floats_in_every_vector(tmp_path: Path, target: str, size: int) -> None:
    check(tmp_path, target, "float32", size)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float64", *INTEGERS[1::2]])
def test_special_values_of_other_types(tmp_path: Path, dtype: str) -> None:
    check(tmp_path, "native", dtype, 19)


def test_powers_by_one_exponent(tmp_path: Path) -> None:
    """Those that are a few products or roots, and others; of negative numbers and zeros, too."""
    exponents = [*fused.POWERS, 0.0, 4.0, 1.5, -2.0]
    nodes = [helper.make_node("Pow", ["x", f"e{i}"], [f"y{i}"]) for i in range(len(exponents))]
    graph = helper.make_graph(
        nodes,
        "powers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [40])],
        [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, [40]) for n in nodes],
        [numpy_helper.from_array(np.float32(e), f"e{i}") for i, e in enumerate(exponents)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.concatenate([np.linspace(-3, 3, 37), [0.0, -0.0, 1e3]]).astype(np.float32)
    compile_model(from_proto(model), parse_target("native"), tmp_path / "powers.so")
    found = Runtime(tmp_path / "powers.so").run({"x": x})
    for name, want in reference(model, {"x": x}).items():
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-6, err_msg=name)
