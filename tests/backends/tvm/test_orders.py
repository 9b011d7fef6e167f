"""Elementwise operators whose operands are read in any order of axes, broadcast or sliced."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.kernels.movement import permutation
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ElementwiseOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds, reference
from .test_networks import TARGETS, run

SHAPES = ((33, 18), (5, 9, 20), (3, 4, 6, 17))


def ordered(net: Net, name: str, order: tuple[int, ...]) -> str:
    return name if order == tuple(sorted(order)) else net.node("Transpose", name, perm=order)


@pytest.mark.parametrize("target", [TARGETS[0], TARGETS[-1]])
def test_pairs_of_orders(tmp_path: Path, target: str) -> None:
    """x and z in all pairs of a few orders: squares, rows, and elements one by one."""
    net = Net(None, 0)
    inputs: dict[str, tuple[int, ...]] = {}
    outputs = []
    for number, shape in enumerate(SHAPES):
        axes = tuple(range(len(shape)))
        orders = list(dict.fromkeys((axes, axes[::-1], (*axes[1:], 0), (0, *axes[:0:-1]))))
        for first, second in itertools.product(orders, orders):
            names = []
            for order in (first, second):
                stored = [0] * len(shape)
                for axis, source in enumerate(order):
                    stored[source] = shape[axis]
                name = f"x{number}_{len(names)}_{order}"
                inputs[name] = tuple(stored)
                names.append(ordered(net, name, order))
            outputs.append(net.node("Sub", *names))
    model = net.model(inputs, outputs)
    arrays = feeds(model, 1)
    found = run(model, target, tmp_path, arrays)
    for name, array in reference(model, arrays).items():
        np.testing.assert_array_equal(found[name], array)
    graph = from_proto(model)
    infer_shapes(graph)
    operations = lower(graph, parse_target(target)).operations
    assert all(isinstance(op, ElementwiseOp) and len(op.views) == 2 for op in operations)


@pytest.mark.parametrize(
    ("sizes", "strides", "squares"),
    [
        ((33, 18), (1, 33), True),
        ((33, 18), (18, 1), False),
        ((4, 4), (1, 4), True),
        ((3, 18), (1, 3), False),
        ((33, 3), (1, 33), False),
        ((33, 18), (1, 0), False),
        ((5, 9, 20), (9, 1, 45), True),
    ],
)
def test_what_is_transposed_in_squares(
    sizes: tuple[int, ...], strides: tuple[int, ...], squares: bool
) -> None:
    assert permutation.fits(sizes, strides) == squares
