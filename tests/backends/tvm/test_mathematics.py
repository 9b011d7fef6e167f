"""Elementary functions on vectors against double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from .graphs import Net, feeds, reference
from .test_networks import TARGETS, run

Array = Any

_FUNCTIONS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "Exp": (np.exp, 1.5e-7),
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 4e-7),
    "Tanh": (np.tanh, 2e-7),
    "Log": (np.log, 2e-7),
    "Softplus": (lambda x: np.logaddexp(0, x), 4e-7),
    "Erf": (np.vectorize(math.erf), 1.2e-7),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", _FUNCTIONS)
def test_relative_errors_and_limits(tmp_path: Path, name: str, target: str) -> None:
    x = np.concatenate(
        [np.linspace(-86, 88.7, 40001), np.linspace(-3, 3, 20001), np.geomspace(1e-44, 1e38, 9001)]
    )
    x = np.concatenate([x, [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, 89.0, 1e30, -1e30]])
    x = x.astype(np.float32)
    net = Net(None, 0)
    model = net.model({"x": x.shape}, [net.node(name, "x")])
    found = next(iter(run(model, target, tmp_path, {"x": x}).values())).astype(np.float64)
    function, limit = _FUNCTIONS[name]
    with np.errstate(all="ignore"):
        exact = function(x.astype(np.float64))
        narrow = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(narrow))
    finite = np.isfinite(narrow)
    np.testing.assert_allclose(found[finite], exact[finite], rtol=limit, atol=2e-38)


def test_long_chains_of_functions_compile_and_match(tmp_path: Path) -> None:
    """TVM spells out what conditions depend on: that must not double with each function."""
    net = Net(None, 0)
    value = "x"
    for name in ("Sigmoid", "Tanh", "Softplus", "Erf", "Exp", "Log", "Elu", "Sigmoid", "Tanh"):
        value = net.node(name, value)
    model = net.model({"x": (10000,)}, [value])
    inputs = feeds(model)
    found = run(model, TARGETS[-1], tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5)
