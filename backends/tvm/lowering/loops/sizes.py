"""Small integers that follow from the sizes of the inputs: what shape computations come to."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from .....ir.graph import Node
from ...plan.operations import LoopsOp
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import PrimFunc
from ..context import Lowering, Stored
from .base import Array


def known_contents(lowering: Lowering, node: Node) -> bool:
    """Define the results of a node whose elements are all known as sizes, if it has but such.

    The kernel stores them for those who need them in memory; nobody else pays for it.
    """
    results = [v for v in node.outputs if v is not None]
    found = [lowering.contents(v) for v in results]
    if not results or any(elements is None for elements in found):
        return False
    for value, elements in zip(results, found, strict=True):
        assert elements is not None
        tensor = lowering.tensor(value)
        numbers = tuple(elements.reshape(-1).tolist())
        build = functools.partial(_store, numbers, tensor.dtype)
        key = ("sizes", tensor.dtype, numbers)
        lowering.add(LoopsOp(node.label, [tensor], [], build, key))
        lowering.items[value] = Stored(tensor)
    return True


def _store(numbers: Sequence[int], dtype: str) -> PrimFunc:
    """A kernel that writes sizes to memory."""
    k = KernelBuilder()
    y = Array(k, "Y", (len(numbers),), dtype)
    for index, number in enumerate(numbers):
        y.put(number, index)
    return k.finish()
