"""Unsigned bytes of a model that are kept as signed ones, where instructions take these alone.

QuantizeLinear to uint8 is the same as to int8 with a zero point that is 128 less. That is done
where every node around computes with differences from the zero point, so that results are the
same to the bit; additions, products and means of bytes add zero points to floats before they
round, and want one type.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....ir.graph import Graph, Node, Value
from ....ir.tensor import Array

Constants = Callable[[Value | None], Array | None]
"""A value's elements where it is constant."""

_THROUGH = frozenset({"Relu", "Clip"})
_EITHER = frozenset({"Conv", "MaxPool", "Concat", "GlobalAveragePool"}) | _THROUGH
_PRODUCTS = frozenset({"MatMul", "Gemm"})
_FUNCTIONS = frozenset({"HardSigmoid", "HardSwish"})
"""Of floats alone: no instruction computes them of bytes and a zero point."""


def may_be_signed(node: Node, graph: Graph, constant: Constants) -> bool:
    """Whether the result of a graph's QuantizeLinear may be kept so."""
    value = node.output(0)
    if value is None or value.is_graph_output or not value.users:
        return False
    return _is_made(node.input(0)) and all(
        _reads(value, user, graph, constant) for user in value.users
    )


def only_for_depthwise(node: Node) -> bool:
    """Whether depthwise convolutions are all that reads what a QuantizeLinear makes."""
    value = node.output(0)
    readers = [] if value is None else value.users
    read = [user.output(0) for user in readers]
    users = [user for found in read if found is not None for user in found.users]
    return bool(users) and all(map(_is_depthwise, users))


def _is_depthwise(node: Node) -> bool:
    if node.op_type != "Conv":
        return False
    shape = None if (weights := node.input(1)) is None else weights.shape
    return shape is not None and len(shape) > 1 and shape[1] == 1 and node.get("group", 1) > 1


def _is_made(value: Value | None) -> bool:
    """Whether what makes a float value rounds it by its difference from the zero point."""
    maker = None if value is None else value.producer
    while maker is not None and maker.op_type in _THROUGH:
        value = maker.input(0)
        maker = None if value is None else value.producer
    return maker is None or maker.op_type in _EITHER | _PRODUCTS | _FUNCTIONS


def _reads(value: Value, node: Node, graph: Graph, constant: Constants) -> bool:
    """Whether a node is a DequantizeLinear that leaves integers to readers of either type."""
    scale, zero, read = node.input(1), node.input(2), node.output(0)
    if node.op_type != "DequantizeLinear" or node.graph is not graph:
        return False
    if node.input(0) is not value or read is None or node.get("block_size", 0):
        return False
    known, point = constant(scale), constant(zero)
    if known is None or known.size != 1 or known.dtype != np.float32:
        return False
    if zero is not None and (point is None or point.size != 1):
        return False
    return all(
        user.op_type in _EITHER
        or (user.op_type in _PRODUCTS and constant(user.input(1)) is not None)
        for user in read.users
    )
