"""Functions of one number, as vectors, scalars and tables, against their formulas in float64."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.functions.definitions import FUNCTIONS, ScalarFunction, by_operator
from secateur.backends.tvm.functions.tables import NumpyArithmetic, tabulate
from secateur.backends.tvm.lowering.elementwise import PLAIN_FUNCTIONS, RULES
from secateur.backends.tvm.lowering.loops import RULES as LOOPS
from secateur.backends.tvm.plan.programs import dequantize, quantize
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ..graphs import Net, feeds, reference
from ..test_networks import TARGETS, run

Array = Any

LIMITS = {
    "Exp": 1.5e-7,
    "Sigmoid": 4e-7,
    "Tanh": 2e-7,
    "Log": 2e-7,
    "Softplus": 4e-7,
    "Erf": 4e-7,
}
"""Relative errors of the functions that are pieces of others."""

OTHERS = 2e-6
"""Errors of functions made of these, relative to the larger of the value and the argument."""

VARIED: dict[str, list[dict[str, float]]] = {
    "Celu": [{"alpha": 0.3}],
    "Elu": [{"alpha": 0.0}, {"alpha": -0.7}],
    "HardSigmoid": [{"alpha": 0.0}, {"alpha": -0.3, "beta": 0.0}],
    "LeakyRelu": [{"alpha": 0.0}, {"alpha": -2.0}],
    "Selu": [{"alpha": 0.5, "gamma": -1.0}],
    "Swish": [{"alpha": -1.7}],
    "ThresholdedRelu": [{"alpha": 0.0}, {"alpha": -1.0}],
}
"""Parameters beside the defaults."""

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-30, 89.0, -89.0, 1e30, -1e30, 3e38, -3e38]


def grid(count: int) -> Array:
    x = np.concatenate([np.linspace(-86, 88.7, count), np.linspace(-3, 3, count // 2)])
    return np.concatenate([x, np.geomspace(1e-44, 1e38, count // 4), SPECIAL])


def variants(dtype: str = "float32") -> Iterator[tuple[ScalarFunction, dict[str, float]]]:
    """Functions that have operators on numbers of a type, with parameters."""
    kind = {"float16": "tensor(float16)", "float32": "tensor(float)", "float64": "tensor(double)"}
    for op_type, function in sorted(by_operator().items()):
        if (
            kind[dtype]
            not in onnx.defs.get_schema(op_type, 24).type_constraints[0].allowed_type_strs
        ):
            continue
        for given in [{}, *VARIED.get(op_type, [])]:
            yield function, {**function.parameters, **given}


def exact(function: ScalarFunction, parameters: dict[str, float], x: Array) -> Array:
    with np.errstate(all="ignore"):
        single = {name: float(np.float32(value)) for name, value in parameters.items()}
        return function.formula(NumpyArithmetic(np.float64), x.astype(np.float64), **single)


def run_all(target: str, folder: Path, x: Array) -> list[Array]:
    """Results of all operators with all their parameters, in the order of `variants`."""
    return list(run(model_of([*variants(x.dtype.name)], x, 24), target, folder, {"x": x}).values())


def model_of(
    nodes: list[tuple[ScalarFunction, dict[str, float]]], x: Array, opset: int
) -> onnx.ModelProto:
    """A model that computes functions of one input."""
    net = Net(None, 0)
    outputs = [net.node(f.op_type, "x", **parameters) for f, parameters in nodes]
    model = net.model({"x": x.shape}, outputs)
    model.opset_import[0].version, model.ir_version = opset, 10
    for value in (*model.graph.input, *model.graph.output):
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, x.shape))
    return model


def assert_near(found: Array, wanted: Array, x: Array, function: ScalarFunction) -> None:
    with np.errstate(all="ignore"):
        narrow = wanted.astype(x.dtype)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted), function.op_type)
    finite = np.isfinite(narrow) & np.isfinite(x)
    np.testing.assert_array_equal(np.isinf(found[finite]), np.isinf(narrow[finite]))
    limit, least = LIMITS.get(function.op_type, OTHERS), 1.18e-38
    if x.dtype == np.float16:
        limit, least = 1e-3, 6e-8
    scale = np.abs(wanted[finite])
    if function.op_type not in LIMITS:
        near_zero = np.abs(x[finite].astype(np.float64)) if not _CANCELS & function.pieces else 1
        scale = np.maximum(scale, np.minimum(near_zero, 1))
    error = np.abs(found[finite].astype(np.float64) - wanted[finite])
    worst = np.argmax(error - limit * scale)
    assert error[worst] <= (limit * scale)[worst] + least, (function.op_type, x[finite][worst])


_CANCELS = {"decay", "exp"}
"""Pieces from which a formula takes 1, near 0: that leaves no more than roundings of 1."""


@pytest.mark.parametrize("target", TARGETS)
def test_vectors(tmp_path: Path, target: str) -> None:
    x = grid(20000).astype(np.float32)
    for (function, parameters), found in zip(variants(), run_all(target, tmp_path, x), strict=True):
        assert_near(found, exact(function, parameters, x), x, function)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_scalars(tmp_path: Path, dtype: str) -> None:
    with np.errstate(over="ignore"):
        x = grid(400).astype(dtype)
    results = run_all(TARGETS[-1], tmp_path, x)
    for (function, parameters), found in zip(variants(dtype), results, strict=True):
        assert_near(found, exact(function, parameters, x), x, function)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads an x86 CPU's exception flags")
@pytest.mark.parametrize("target", TARGETS)
def test_saturated_functions_pass_through_no_subnormal_number(tmp_path: Path, target: str) -> None:
    """CPUs take a hundred times as long for a vector with one; e^-86 is still a normal number.

    Mish's is what e^-44 squared would be.
    """
    large = np.linspace(0.5, 86, 4000)
    x = np.concatenate([large, -large]).astype(np.float32)
    library, environment = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
    subnormal, underflow = 0x02, 0x10
    functions = [(f, p) for f, p in variants() if p == f.parameters and f.op_type != "Mish"]
    model = model_of(functions, x, 24)
    compile_model(from_proto(model), parse_target(target), tmp_path / "model.so")
    runtime = Runtime(tmp_path / "model.so")
    library.fesetenv(ctypes.c_void_p(-1))  # the default, with no flag set
    runtime.run({"x": x})
    library.fegetenv(environment)
    assert not environment[7] & (subnormal | underflow)


def test_zero_stays_where_onnx_says_so(tmp_path: Path) -> None:
    """The sign of a zero, too, where the operator gives the number itself."""
    x = np.float32([0.0, -0.0] * 8)
    for (function, parameters), found in zip(
        variants(), run_all(TARGETS[-1], tmp_path, x), strict=True
    ):
        if function.op_type in ("Elu", "LeakyRelu", "Neg", "Floor", "Ceil", "Round", "Sqrt"):
            wanted = exact(function, parameters, x)
            np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted), function.op_type)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_tables(name: str) -> None:
    """All 256 values of a byte, computed in float32 steps, then quantized."""
    function = FUNCTIONS[name]
    parameters = {k: v + 0.25 for k, v in function.parameters.items()}
    program = dequantize("uint8", 0.05, 120).then(name, **parameters)
    found = tabulate(quantize(program, 1 / 32, 100, "uint8"))
    if not function.is_costly:
        return
    assert [s.name for s in found.instructions] == ["table"]
    x = (np.arange(256) - 120) * np.float64(np.float32(0.05))
    wanted = np.clip(np.nan_to_num(exact(function, parameters, x), nan=-1e9), -1e9, 1e9)
    wanted = np.rint(wanted * 32) + 100
    values = np.array(found.instructions[0]["values"])
    assert np.abs(values - np.clip(wanted, 0, 255)).max() <= (name == "log")
    assert np.mean(values != np.clip(wanted, 0, 255)) < 0.02


def test_every_operator_of_the_table_has_its_lowerings() -> None:
    assert by_operator().keys() - RULES.keys() == PLAIN_FUNCTIONS.keys()
    assert by_operator().keys() <= LOOPS.keys()


def test_formulas_are_what_onnx_runtime_computes() -> None:
    x = np.concatenate([np.linspace(-9, 9, 181), np.linspace(-1e-3, 1e-3, 5)]).astype(np.float32)
    known = [(f, p) for f, p in variants() if f.op_type != "Swish"]  # of a later operator set
    results = reference(model_of(known, x, 22), {"x": x}).values()
    for (function, parameters), wanted in zip(known, results, strict=True):
        found = exact(function, parameters, x)
        np.testing.assert_allclose(found, wanted, 2e-5, 2e-6, err_msg=function.op_type)


def test_long_chains_of_functions_compile_and_match(tmp_path: Path) -> None:
    """TVM spells out what conditions depend on: that must not double with each function."""
    net = Net(None, 0)
    value = "x"
    for name in ("Sigmoid", "Tanh", "Softplus", "Erf", "Exp", "Log", "Elu", "Selu", "Celu", "Tanh"):
        value = net.node(name, value)
    model = net.model({"x": (10000,)}, [value])
    inputs = feeds(model)
    found = run(model, TARGETS[-1], tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5)
