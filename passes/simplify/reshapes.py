"""Reshapes moved past pointwise operators, next to the reshape with which they merge or cancel."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Node, Value
from ...ir.symbolic import expressions as e
from ...ir.symbolic.expressions import Size
from ...ir.symbolic.facts import Shape
from ...ir.tensor import Array
from .movement import BROADCASTING, RESHAPES, pointwise_chain, start_of_chain
from .rewriter import Rewriter, RuleSet, only_reader, producer
from .shape_chains import reshape_target

RULES = RuleSet()


@RULES.on(*RESHAPES)
def push_reshape_down(node: Node, rewriter: Rewriter) -> bool:
    """Reshape -> pointwise operators -> Reshape: move the first next to the second."""
    source, output = node.input(0), node.output(0)
    if source is None or output is None or rewriter.opset < 7:
        return False
    before, after = rewriter.analysis.shape(source), rewriter.analysis.shape(output)
    if before is None or after is None or 0 in before:
        return False
    target = reshape_target(list(after), before)
    chain, result, reader = pointwise_chain(output, rewriter)
    if not chain or target is None or reader is None or result is None:
        return False
    if reader.op_type not in RESHAPES or reader.input(0) is not result:
        return False
    operands = _operands(chain, output, _groups(before, after), rewriter)
    if operands is None:
        return False
    value = source
    for link, others in zip(chain, operands, strict=True):
        inputs = [value if other is _CHAIN else other for other in others]
        made = rewriter.add(chain[-1], link.op_type, inputs, dict(link.attributes), hint=link.name)
        _set_type(made, link.output(0), source)
        value = made
    moved = _reshape(chain[-1], value, target, result, rewriter)
    return rewriter.replace(result, moved)


@RULES.on(*RESHAPES)
def push_reshape_from_above(node: Node, rewriter: Rewriter) -> bool:
    """The same, where what has changed is the second."""
    above = start_of_chain(node, RESHAPES, rewriter)
    return above is not None and push_reshape_down(above, rewriter)


@RULES.on(*BROADCASTING)
def reshape_after_joining(node: Node, rewriter: Rewriter) -> bool:
    """Both operands reshaped alike: once after the operator instead."""
    output = node.output(0)
    reshapes = [producer(value, *RESHAPES) for value in node.inputs]
    if output is None or rewriter.opset < 7 or len(reshapes) != 2 or reshapes[0] is reshapes[1]:
        return False
    sources: list[Value] = []
    for reshape in reshapes:
        result = None if reshape is None else reshape.output(0)
        source = None if reshape is None else reshape.input(0)
        if source is None or result is None or only_reader(result) is not node:
            return False
        sources.append(source)
    shapes = [rewriter.analysis.shape(value) for value in (*sources, *node.inputs)]
    if None in shapes or shapes[0] != shapes[1] or shapes[2] != shapes[3]:
        return False
    target = reshape_target(list(shapes[2] or ()), shapes[0])
    if target is None or 0 in (shapes[0] or ()):
        return False
    joined = rewriter.add(node, node.op_type, sources, dict(node.attributes), hint=node.name)
    _set_type(joined, output, sources[0])
    return rewriter.replace(output, _reshape(node, joined, target, output, rewriter))


def _reshape(
    node: Node, source: Value, target: list[int], result: Value, rewriter: Rewriter
) -> Value:
    sizes = rewriter.constant(node, np.array(target, np.int64), f"{node.label}_shape")
    return rewriter.add(node, "Reshape", [source, sizes], type=result.type)


def _set_type(value: Value, like: Value | None, shaped: Value) -> None:
    """The element type of one value with the shape of another."""
    if like is not None and like.dtype and shaped.shape is not None:
        value.set_tensor_type(like.dtype, shaped.shape)


_CHAIN = Value("")
"""Stands for the result of the operator before."""

_Group = tuple[Shape, Shape]
_Operands = list[list[Value | None]]


def _operands(
    chain: list[Node], start: Value, groups: list[_Group], rewriter: Rewriter
) -> _Operands | None:
    """What each operator reads where it comes before the reshape; None where there is no such
    constant."""
    found: _Operands = []
    previous: Value | None = start
    for link in chain:
        operands: list[Value | None] = []
        for value in link.inputs:
            array = None if value is None else rewriter.array(value)
            if value is previous:
                operands.append(_CHAIN)
            elif array is None or link.op_type == "Clip":
                operands.append(value)
            else:
                moved = _regrouped(array, groups)
                if moved is None or value is None:
                    return None
                operands.append(rewriter.constant(link, moved, value.name))
        found.append(operands)
        previous = link.output(0)
    return found


def _regrouped(array: Array, groups: list[_Group]) -> Array | None:
    """A constant operand as it is beside the values before the reshape.

    Each group of axes that the reshape takes together is spanned by the constant as a whole,
    or not at all; anything else has no counterpart.
    """
    rank = sum(len(new) for _, new in groups)
    if array.size == 1:
        return array.reshape(())
    if array.ndim > rank:
        return None
    sizes = [1] * (rank - array.ndim) + list(array.shape)
    wanted: list[int] = []
    for old, new in groups:
        spanned, sizes = sizes[: len(new)], sizes[len(new) :]
        if all(size == 1 for size in spanned):
            wanted += [1] * len(old)
        elif spanned == list(new) and all(isinstance(size, int) for size in old):
            wanted += [size for size in old if isinstance(size, int)]
        else:
            return None
    return array.reshape(wanted)


def _groups(before: Shape, after: Shape) -> list[_Group]:
    """The sizes of the smallest runs of axes that a reshape turns into each other."""
    groups: list[_Group] = []
    old: list[Size] = []
    new: list[Size] = []
    left, right = list(before), list(after)
    while left or right:
        filled, wanted = e.multiply(*old), e.multiply(*new)
        if (old or new) and filled == wanted:
            groups.append((tuple(old), tuple(new)))
            old, new = [], []
        behind = isinstance(filled, int) and isinstance(wanted, int) and filled > wanted
        take_right = bool(new) < bool(old) if not (old and new) else behind
        if right and (take_right or not left):
            new.append(right.pop(0))
        else:
            old.append(left.pop(0))
    groups.append((tuple(old), tuple(new)))
    return groups
