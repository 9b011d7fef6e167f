"""Random graphs with open sizes: equal to ONNX Runtime at each size tried, or refused by node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.symbolic.analysis import Admitted

from . import random_graphs
from .opened import SIZES, kept, open_model, reference, resized

MORE_SIZES = (*SIZES, lambda n: n + 7, lambda n: n + 16)


def check_seed(seed: int, folder: Path, least: int = 1) -> str:
    """What became of a graph: "equal", "refused" or, without sizes to open, "known".

    Where the `least` size is 0, each of them is that in a run of its own, and all in another: as
    ONNX Runtime has it, or refused.
    """
    graph = random_graphs.draw(seed)
    feeds = graph.feeds(3)
    model, sizes = open_model(graph.part.model, feeds)
    if not sizes or reference(model, kept(feeds, model)) is None:
        return "known"
    path = folder / f"{seed}.so"
    names = {name: Admitted(least) for name in sizes}
    try:
        compile_model(from_proto(model), parse_target("native"), path, sizes=names)
    except SecateurError as error:
        assert re.search(r"node '|input", str(error)), error  # noqa: PT017
        assert "please report" not in str(error)  # noqa: PT017
        return "refused"
    runtime = Runtime(path)
    for change in MORE_SIZES:
        check_run(model, runtime, resized(feeds, model, {n: change(s) for n, s in sizes.items()}))
    empty = [{**sizes, name: 0} for name in sizes] + [dict.fromkeys(sizes, 0)]
    for some in empty if least == 0 else ():
        given = resized(feeds, model, some)
        try:
            check_run(model, runtime, given)
        except SecateurError as error:
            assert re.search(REFUSED, str(error)), error  # noqa: PT017
    return "equal"


REFUSED = "has no elements in this run|would not be within|is from|must be|out of range"
"""What is said of sizes of 0 that a model isn't compiled for."""


def check_run(model: onnx.ModelProto, runtime: Runtime, given: Mapping[str, Any]) -> None:
    expected = reference(model, given)
    if expected is None:
        return
    found = runtime.run(given)
    for value, array in zip(model.graph.output, expected, strict=True):
        own = found[value.name]
        assert own.shape == array.shape
        rtol = 1e-2 if array.dtype == np.float16 else 1e-4
        scale = float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) * rtol
        np.testing.assert_allclose(own, array, rtol, max(scale, 1e-6), equal_nan=True)


@pytest.mark.parametrize("first", [2000, pytest.param(2100, marks=pytest.mark.slow)])
def test_random_graphs_with_open_sizes(first: int, tmp_path: Path) -> None:
    count = 6 if first == 2000 else 30
    found = [check_seed(first + i, tmp_path) for i in range(count)]
    assert found.count("equal") > count // 3, found


@pytest.mark.parametrize("first", [2200, pytest.param(2300, marks=pytest.mark.slow)])
def test_random_graphs_with_sizes_of_0(first: int, tmp_path: Path) -> None:
    count = 4 if first == 2200 else 30
    found = [check_seed(first + i, tmp_path, least=0) for i in range(count)]
    assert found.count("equal") > count // 4, found
