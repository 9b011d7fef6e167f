"""Small integers that follow from the sizes of the inputs: what shape computations come to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .....ir.graph import Node, Value
from .....ir.symbolic import expressions as e
from .....ir.symbolic.expressions import Expression
from ...graph.most import is_decided
from ...plan.operations import LoopsOp
from ...plan.sizes import is_open, size_of, stand_in
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import PrimFunc
from ..context import Constant, Lowering, Stored
from .base import Array


def known_contents(lowering: Lowering, node: Node) -> bool:
    """Define the results of a node whose elements are all known as sizes, if it has but such.

    A kernel stores them for those who need them in memory; nobody else pays for it. Elements that
    are the same in every run are a constant.
    """
    results = [v for v in node.outputs if v is not None]
    found = [_elements(lowering, v) for v in results]
    if not results or any(elements is None for elements in found):
        return False
    for value, elements in zip(results, found, strict=True):
        assert elements is not None
        tensor = lowering.tensor(value)
        if not is_open(*elements.flat):
            lowering.items[value] = Constant(elements.astype(tensor.dtype))
            continue
        numbers = tuple(elements.reshape(-1).tolist())
        build = functools.partial(store_sizes, numbers, tensor.dtype)
        key = ("sizes", tensor.dtype, numbers)
        lowering.add(LoopsOp(node.label, [tensor], [], build, key))
        lowering.items[value] = Stored(tensor)
    return True


def _elements(lowering: Lowering, value: Value) -> np.ndarray[Any, Any] | None:
    """The elements of a value as sizes, where all of them are known."""
    elements = lowering.sizes.contents(value) if lowering.sizes is not None else None
    if elements is not None and not any(isinstance(size, Expression) for size in elements.flat):
        return elements
    return lowering.contents(value)


def require_told(lowering: Lowering, node: Node) -> None:
    """Let runs be refused in which an Expand is told a size that its operand can't be repeated to,
    another one than 1 along an axis of more, and a TopK more elements than there are."""
    told = lowering.sizes.contents(node.input(1)) if lowering.sizes is not None else None
    result = node.output(0)
    if node.op_type not in ("Expand", "TopK") or told is None or result is None:
        return
    if node.op_type == "TopK":
        given = lowering.sizes.shape(node.input(0)) if lowering.sizes is not None else None
        whole = given[int(node.get("axis", -1))] if given else 0
        if is_decided(whole):
            least = stand_in(e.minimum(whole, told.flat[0]))
            lowering.require_equal(least, stand_in(told.flat[0]))
        return
    shape = lowering.shape(result)
    for size, found in zip(told.flat[::-1], shape[::-1], strict=False):
        if is_decided(size):
            other = e.choose(e.equal(size, 1), size_of(found), size)
            lowering.require_equal(stand_in(other), found)


def store_sizes(numbers: Sequence[int], dtype: str) -> PrimFunc:
    """A kernel that writes sizes to memory."""
    k = KernelBuilder()
    y = Array(k, "Y", (len(numbers),), dtype)
    for index, number in enumerate(numbers):
        y.put(number, index)
    return k.finish()
