"""Unique against NumPy and ONNX Runtime, where the model declares how many results there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import from_proto

from .graphs import reference

Array = Any
RESULTS = ("y", "first", "inverse", "counts")


def model(x: Array, sizes: list[Any], wanted: tuple[str, ...], **attributes: int) -> Any:
    """Unique of a tensor like `x`, whose results have the sizes that are given."""
    kinds = {"y": helper.np_dtype_to_tensor_dtype(x.dtype)}
    shapes = dict(zip(RESULTS, sizes, strict=True))
    node = helper.make_node(
        "Unique", ["x"], [n if n in wanted else "" for n in RESULTS], **attributes
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kinds["y"], x.shape)],
        [helper.make_tensor_value_info(n, kinds.get(n, 7), shapes[n]) for n in wanted],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def built(proto: onnx.ModelProto, folder: Path) -> Runtime:
    path = folder / "m.so"
    compile_model(from_proto(proto), parse_target("native"), path, declared_sizes=True)
    return Runtime(path)


RANDOM = np.random.default_rng(3)
TENSORS = {
    "one": np.float32([3.5]),
    "few": RANDOM.integers(0, 9, 37).astype(np.float32),
    "sorted already": np.arange(16, dtype=np.int64),
    "backwards": np.arange(17, dtype=np.int64)[::-1].copy(),
    "alike": np.full(8, -2, np.int8),
    "infinite": np.float64([np.inf, -np.inf, 0.0, np.inf, 1.0, -1.0]),
}


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize("name", TENSORS)
def test_elements_that_differ(name: str, in_order: int, tmp_path: Path) -> None:
    x = TENSORS[name]
    count = len(np.unique(x))
    proto = model(x, [[count], [count], [len(x)], [count]], RESULTS, sorted=in_order)
    found = built(proto, tmp_path).run({"x": x})
    for result, expected in reference(proto, {"x": x}).items():
        np.testing.assert_array_equal(found[result], expected, result)


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_slices_that_differ(axis: int, in_order: int, tmp_path: Path) -> None:
    """One declared size tells those of the other results."""
    x = RANDOM.integers(0, 2, (4, 5, 3)).astype(np.float32)
    count = np.unique(x, axis=axis).shape[axis]
    shape: list[Any] = list(x.shape)
    shape[axis] = "n"
    sizes = [shape, ["n"], [x.shape[axis]], [count]]
    proto = model(x, sizes, RESULTS, sorted=in_order, axis=axis)
    found = built(proto, tmp_path).run({"x": x})
    for result, expected in reference(proto, {"x": x}).items():
        np.testing.assert_array_equal(found[result], expected, result)


@pytest.mark.parametrize("wanted", [("y",), ("y", "counts"), ("y", "inverse")])
def test_results_that_nothing_names(wanted: tuple[str, ...], tmp_path: Path) -> None:
    x = TENSORS["few"]
    count = len(np.unique(x))
    proto = model(x, [[count], [count], [len(x)], [count]], wanted)
    found = built(proto, tmp_path).run({"x": x})
    for result, expected in reference(proto, {"x": x}).items():
        np.testing.assert_array_equal(found[result], expected, result)


def test_nan_is_the_largest_number(tmp_path: Path) -> None:
    x = np.float32([np.nan, 1, np.nan, -np.inf, 1, np.inf])
    proto = model(x, [[4], [4], [6], [4]], RESULTS)
    found = built(proto, tmp_path).run({"x": x})
    np.testing.assert_array_equal(found["y"], np.unique(x))
    np.testing.assert_array_equal(found["counts"], [1, 2, 1, 2])
    np.testing.assert_array_equal(found["inverse"], [3, 1, 3, 0, 1, 2])


@pytest.mark.parametrize("count", [3, 5])
def test_another_number_of_results_ends_the_run(count: int, tmp_path: Path) -> None:
    x = np.float32([1, 2, 3, 4, 1])
    runtime = built(model(x, [[count], [count], [5], [count]], RESULTS), tmp_path)
    with pytest.raises(SecateurError, match=r"\(Unique\)"):
        runtime.run({"x": x})
    right = np.float32([1, 2, 3, 3, 1] if count == 3 else [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(runtime.run({"x": right})["y"], np.unique(right))


def test_undeclared_sizes_are_refused(tmp_path: Path) -> None:
    proto = model(TENSORS["few"], [["n"], ["n"], ["m"], ["n"]], RESULTS)
    with pytest.raises(UnsupportedError, match="declares none"):
        built(proto, tmp_path)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_has_no_elements_that_differ(
    shape: tuple[int, ...], count: int, tmp_path: Path
) -> None:
    """Whatever the model declares."""
    axis = {"axis": 0} if len(shape) > 1 else {}
    sizes = [[count, *shape[1:]], [count], [shape[0]], [count]]
    proto = model(np.zeros(shape, np.float32), sizes, RESULTS, **axis)
    with pytest.raises(UnsupportedError, match=r"empty|differ"):
        built(proto, tmp_path)
