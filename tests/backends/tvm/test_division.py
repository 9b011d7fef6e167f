"""Integers divided by zero and by -1, by constants and by what a run is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import from_proto

Array = Any

DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NODES: list[tuple[str, dict[str, int]]] = [("Div", {}), ("Mod", {"fmod": 0}), ("Mod", {"fmod": 1})]


def quotients(op_type: str, fmod: int, a: Array, b: Array) -> Array:
    """Exact, then cut to the type: ONNX Runtime itself stops where a quotient has no place."""
    results = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        towards_zero = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        by_sign = x - towards_zero * y if fmod else x % y
        results.append(towards_zero if op_type == "Div" else by_sign)
    limits = np.iinfo(a.dtype)
    span = int(limits.max) - int(limits.min) + 1
    wrapped = [(r - int(limits.min)) % span + int(limits.min) for r in results]
    return np.array(wrapped, a.dtype)


def build(dtype: str, size: int, divisors: Array | None = None) -> onnx.ModelProto:
    """All nodes of `x` and `y`, or constants in place of `y`."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info(name, kind, [size]) for name in ("x", "y")]
    constants = []
    if divisors is not None:
        constants.append(numpy_helper.from_array(divisors, "y"))
        inputs.pop()
    nodes, outputs = [], []
    for i, (op_type, attributes) in enumerate(NODES):
        nodes.append(helper.make_node(op_type, ["x", "y"], [f"o{i}"], f"node{i}", **attributes))
        outputs.append(helper.make_tensor_value_info(f"o{i}", kind, [size]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=9)


def compiled(model: onnx.ModelProto, folder: Path) -> Runtime:
    compile_model(from_proto(model), parse_target("native"), folder / "model.so")
    return Runtime(folder / "model.so")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_quotient(tmp_path: Path, dtype: str) -> None:
    limits = np.iinfo(dtype)
    numbers = [n for n in (limits.min, -7, -2, -1, 0, 1, 3, limits.max) if n >= limits.min]
    pairs = [(a, b) for a in dict.fromkeys(numbers) for b in dict.fromkeys(numbers) if b]
    a, b = (np.array(side, dtype) for side in zip(*pairs, strict=True))
    runtime = compiled(build(dtype, len(pairs)), tmp_path)
    found = runtime.run({"x": a, "y": b})
    for i, (op_type, attributes) in enumerate(NODES):
        expected = quotients(op_type, attributes.get("fmod", 0), a, b)
        np.testing.assert_array_equal(found[f"o{i}"], expected, err_msg=str(NODES[i]))
    for position in (0, len(pairs) // 2, len(pairs) - 1):
        zero = b.copy()
        zero[position] = 0
        with pytest.raises(SecateurError, match=r"node0.*divided by zero"):
            runtime.run({"x": a, "y": zero})
    np.testing.assert_array_equal(runtime.run({"x": a, "y": b})["o0"], found["o0"])


@pytest.mark.parametrize("divisors", [[-1], [2, -1, 3], [5, 3, -7]])
def test_constant_divisors(tmp_path: Path, divisors: list[int]) -> None:
    """Two nodes that differ in their constants alone are two kernels."""
    b = np.resize(np.array(divisors, np.int32), 3)
    a = np.array([-(2**31), -(2**31), 2**31 - 1], np.int32)
    found = compiled(build("int32", 3, b), tmp_path).run({"x": a})
    for i, (op_type, attributes) in enumerate(NODES):
        expected = quotients(op_type, attributes.get("fmod", 0), a, b)
        np.testing.assert_array_equal(found[f"o{i}"], expected)


def test_constant_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"node0.*divided by zero"):
        compiled(build("int32", 2, np.array([1, 0], np.int32)), tmp_path)
