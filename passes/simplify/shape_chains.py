"""Computations of shapes, replaced by what they are known to give."""

from __future__ import annotations

import numpy as np
from onnx import helper

from ...ir.graph import Node, Value
from ...ir.symbolic.expressions import Size
from ...ir.symbolic.facts import is_size
from ...ir.symbolic.registry import contents_rules
from ...ir.tensor import Array
from .rewriter import Rewriter, RuleSet

RULES = RuleSet()


@RULES.on(*contents_rules())
def replace_known_elements(node: Node, rewriter: Rewriter) -> bool:
    """Shape -> Gather -> Concat and the like, where every element is a known number."""
    output = node.output(0)
    array = None if output is None else known_array(output, rewriter)
    if output is None or array is None or output.is_graph_output:
        return False
    rewriter.make_constant(output, array)
    return True


def known_array(value: Value, rewriter: Rewriter) -> Array | None:
    """The elements of a shape tensor, where they are all known numbers."""
    found = rewriter.analysis.contents(value)
    if found is None or rewriter.tensor(value) is not None:
        return None
    if not all(isinstance(x, int) for x in found.flat) or not value.dtype:
        return None
    return found.astype(helper.tensor_dtype_to_np_dtype(value.dtype))


@RULES.on("Reshape")
def reshape_to_constant(node: Node, rewriter: Rewriter) -> bool:
    """A computed target of which at most one size is neither known nor copied."""
    source, target = node.input(0), node.input(1)
    if target is None or node.get("allowzero", 0):
        return False
    sizes = rewriter.analysis.elements(target)
    if sizes is None or source is None:
        return False
    constant = reshape_target(sizes, rewriter.analysis.shape(source))
    if constant is None or constant == rewriter.ints(target):
        return False
    name = f"{node.label}_shape"
    rewriter.set_input(node, 1, rewriter.constant(node, np.array(constant, np.int64), name))
    return True


def reshape_target(sizes: list[Size], source: tuple[Size, ...] | None) -> list[int] | None:
    """A constant Reshape target for `sizes`: 0 copies an input's size, one -1 is worked out."""
    target: list[int] = []
    for axis, size in enumerate(sizes):
        if isinstance(size, int):
            target.append(size)
        elif source is not None and axis < len(source) and source[axis] == size:
            target.append(0)
        elif is_size(size):
            target.append(-1)
        else:
            return None
    return target if target.count(-1) <= 1 else None


@RULES.on("Shape")
def take_shape_of_first(node: Node, rewriter: Rewriter) -> bool:
    """Read the shape off the first value that has it: what computes a later one may go."""
    source = node.input(0)
    first = None if source is None else rewriter.analysis.first_of_shape(source, node)
    if first is None:
        return False
    rewriter.set_input(node, 0, first)
    return True


@RULES.on(*contents_rules())
def take_first_with_elements(node: Node, rewriter: Rewriter) -> bool:
    """Two ways to compute the same sizes are one too many."""
    output = node.output(0)
    first = None if output is None else rewriter.analysis.first_with_elements(output, node)
    if output is None or first is None:
        return False
    return rewriter.replace(output, first)
