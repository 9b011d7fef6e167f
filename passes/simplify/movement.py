"""Operators that only move elements, merged with one another or moved out of the way."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ...ir.graph import Node, Value
from ...ir.ops import Trait, traits, with_trait
from .rewriter import FURTHEST, Rewriter, RuleSet, only_reader, producer
from .shape_chains import reshape_target
from .shapes import integers, is_definite

RULES = RuleSet()

_UNBOUNDED = 2**31 - 1

RESHAPES = tuple(sorted(with_trait(Trait.IN_ORDER)))


# --- reshapes ------------------------------------------------------------------------------


@RULES.on(*RESHAPES)
def merge_reshapes(node: Node, rewriter: Rewriter) -> bool:
    """A reshape of a reshape is one reshape, where its target is (nearly) known."""
    inner = producer(node.input(0), *RESHAPES)
    source = None if inner is None else inner.input(0)
    return source is not None and _reshape_from(node, source, rewriter)


@RULES.on(*RESHAPES)
def reshape_instead_of_transpose(node: Node, rewriter: Rewriter) -> bool:
    """A transpose that moves only axes of size 1 vanishes in the reshape after it."""
    transpose = producer(node.input(0), "Transpose")
    if transpose is None or not _moves_only_ones(transpose, rewriter):
        return False
    source = transpose.input(0)
    return source is not None and _reshape_from(node, source, rewriter)


@RULES.on("Transpose")
def transpose_ones_by_reshape(node: Node, rewriter: Rewriter) -> bool:
    """A reshape before a transpose that moves only axes of size 1 does both."""
    inner = producer(node.input(0), *RESHAPES)
    if inner is None or only_reader(inner.outputs[0] or Value("")) is not node:
        return False
    source = inner.input(0)
    if source is None or not _moves_only_ones(node, rewriter):
        return False
    return _reshape_from(node, source, rewriter)


def _reshape_from(node: Node, source: Value, rewriter: Rewriter) -> bool:
    """Let a reshape of `source` to the shape of the node's result take the node's place."""
    output = node.output(0)
    shape = rewriter.analysis.shape(output)
    if output is None or shape is None or rewriter.opset < 5 or 0 in shape:
        return False
    if not is_definite(node, rewriter):
        return False
    target = reshape_target(list(shape), rewriter.analysis.shape(source))
    if target is None:
        return False
    target_value = rewriter.constant(node, np.array(target, np.int64), f"{node.label}_shape")
    new = rewriter.add(node, "Reshape", [source, target_value], type=output.type, hint=node.name)
    return rewriter.replace(output, new)


def _moves_only_ones(node: Node, rewriter: Rewriter) -> bool:
    shape = rewriter.analysis.shape(node.input(0))
    order = _order(node)
    if shape is None or order is None or len(order) != len(shape):
        return False
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)


# --- transposes ----------------------------------------------------------------------------


def _order(transpose: Node) -> list[int] | None:
    """Where each axis of the result comes from; None where even the rank is unknown."""
    order, source = transpose.get("perm"), transpose.input(0)
    if order is not None:
        return list(order)
    rank = None if source is None else source.rank
    return None if rank is None else list(reversed(range(rank)))


@RULES.on("Transpose")
def merge_transposes(node: Node, rewriter: Rewriter) -> bool:
    """A transpose of a transpose is one transpose, or none."""
    inner = producer(node.input(0), "Transpose")
    output = node.output(0)
    if inner is None or output is None:
        return False
    source, first, second = inner.input(0), _order(inner), _order(node)
    if source is None or first is None or second is None:
        return False
    order = [first[axis] for axis in second]
    if order == sorted(order):
        return rewriter.forward(node, output, source)
    new = rewriter.add(
        node, "Transpose", [source], {"perm": order}, type=output.type, hint=node.name
    )
    return rewriter.replace(output, new)


BROADCASTING = with_trait(Trait.BROADCASTS)


def pointwise_chain(
    value: Value, rewriter: Rewriter
) -> tuple[list[Node], Value | None, Node | None]:
    """Pointwise operators that a value goes through, each its operand's only reader; what
    they result in, and what alone reads that."""
    chain: list[Node] = []
    result: Value | None = value
    reader = only_reader(value)
    while reader is not None and len(chain) < FURTHEST and commutes(reader, result, rewriter):
        chain.append(reader)
        result = reader.output(0)
        reader = None if result is None else only_reader(result)
    return chain, result, reader


@RULES.on("Transpose")
def push_transpose_down(node: Node, rewriter: Rewriter) -> bool:
    """Transpose -> pointwise operators -> Transpose: move the first next to the second."""
    order, output = _order(node), node.output(0)
    if order is None or output is None or rewriter.opset < 7:
        return False
    chain, _, reader = pointwise_chain(output, rewriter)
    if not chain or reader is None or reader.op_type != "Transpose":
        return False
    _swap(node, chain, order, rewriter)
    return True


@RULES.on("Transpose")
def push_transpose_from_above(node: Node, rewriter: Rewriter) -> bool:
    """The same, where what has changed is the second."""
    above = start_of_chain(node, ("Transpose",), rewriter)
    return above is not None and push_transpose_down(above, rewriter)


def start_of_chain(node: Node, kinds: tuple[str, ...], rewriter: Rewriter) -> Node | None:
    """The node of one of these operators above the pointwise operators that a node reads."""
    value = node.input(0)
    for _ in range(FURTHEST):
        above = None if value is None else value.producer
        if above is None or above.domain not in ("", "ai.onnx"):
            return None
        if above.op_type in kinds:
            return above if value is not node.input(0) else None
        if not traits(above) & (Trait.POINTWISE | Trait.BROADCASTS):
            return None
        value = next((v for v in above.inputs if rewriter.tensor(v) is None), None)
    return None


def commutes(node: Node, source: Value | None, rewriter: Rewriter) -> bool:
    """Whether a node treats `source` element by element, beside constants at most."""
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or source is None:
        return False
    known = traits(node)
    if Trait.POINTWISE in known:
        return node.input(0) is source
    if Trait.BROADCASTS not in known or len(node.inputs) != 2:
        return False
    other = node.inputs[1] if node.inputs[0] is source else node.inputs[0]
    shape = rewriter.analysis.shape(source)
    kept = shape is not None and rewriter.analysis.shape(node.output(0)) == shape
    return kept and rewriter.tensor(other) is not None


def _swap(node: Node, chain: list[Node], order: list[int], rewriter: Rewriter) -> None:
    """Apply the chain to the transpose's input and the transpose to the chain's result."""
    source = node.input(0)
    assert source is not None
    inverse = [order.index(axis) for axis in range(len(order))]
    last = chain[-1].output(0)
    assert last is not None
    value, previous = source, node.output(0)
    for link in chain:
        inputs = [
            value if v is previous else _unaligned(v, inverse, link, rewriter) for v in link.inputs
        ]
        previous = link.output(0)
        assert previous is not None
        value = rewriter.add(chain[-1], link.op_type, inputs, dict(link.attributes), hint=link.name)
        shape = source.shape
        if previous.dtype and shape is not None:
            value.set_tensor_type(previous.dtype, shape)
    moved = rewriter.add(chain[-1], "Transpose", [value], {"perm": order}, type=last.type)
    rewriter.replace(last, moved)


def _unaligned(
    value: Value | None, inverse: list[int], node: Node, rewriter: Rewriter
) -> Value | None:
    """A constant operand as it lies before the transpose."""
    array = rewriter.array(value)
    if value is None or array is None or array.size == 1 or node.op_type == "Clip":
        return value
    full = array.reshape([1] * (len(inverse) - array.ndim) + list(array.shape))
    return rewriter.constant(node, full.transpose(inverse), value.name)


@RULES.on(*BROADCASTING)
def transpose_after_joining(node: Node, rewriter: Rewriter) -> bool:
    """Both operands transposed alike: once after the operator instead."""
    output = node.output(0)
    before = [producer(v, "Transpose") for v in node.inputs]
    if output is None or rewriter.opset < 7 or len(before) != 2 or before[0] is before[1]:
        return False
    sources: list[Value] = []
    order = None if before[0] is None else _order(before[0])
    for transpose in before:
        if transpose is None or order is None or _order(transpose) != order:
            return False
        source = transpose.input(0)
        if source is None or only_reader(transpose.outputs[0] or source) is not node:
            return False
        sources.append(source)
    if order is None or any(source.rank != len(order) for source in sources):
        return False
    joined = rewriter.add(node, node.op_type, sources, dict(node.attributes), hint=node.name)
    _type_before(joined, output, order)
    new = rewriter.add(node, "Transpose", [joined], {"perm": order}, type=output.type)
    return rewriter.replace(output, new)


@RULES.on("Concat")
def transpose_after_concat(node: Node, rewriter: Rewriter) -> bool:
    """All parts transposed alike: once after the concatenation instead."""
    output = node.output(0)
    parts = [producer(v, "Transpose") for v in node.inputs]
    if output is None or len(parts) < 2 or len(set(parts)) != len(parts):
        return False
    sources: list[Value] = []
    order = None if parts[0] is None else _order(parts[0])
    for part in parts:
        source = None if part is None else part.input(0)
        if part is None or source is None or not order or _order(part) != order:
            return False
        if only_reader(part.outputs[0] or source) is not node:
            return False
        sources.append(source)
    if not order:
        return False
    axis = order[node.get("axis", 1) % len(order)]
    joined = rewriter.add(node, "Concat", sources, {"axis": axis}, hint=node.name)
    _type_before(joined, output, order)
    new = rewriter.add(node, "Transpose", [joined], {"perm": order}, type=output.type)
    return rewriter.replace(output, new)


def _type_before(value: Value, transposed: Value, order: list[int]) -> None:
    shape = transposed.shape
    if transposed.dtype and shape is not None:
        sizes = [shape[order.index(axis)] for axis in range(len(order))]
        value.set_tensor_type(transposed.dtype, sizes)


@RULES.on("Gemm")
def transpose_inside_gemm(node: Node, rewriter: Rewriter) -> bool:
    """Gemm transposes its operands itself."""
    for index, flag in ((0, "transA"), (1, "transB")):
        transpose = producer(node.input(index), "Transpose")
        source = None if transpose is None else transpose.input(0)
        if transpose is None or source is None or source.rank != 2:
            continue
        if transpose.get("perm", [1, 0]) == [1, 0]:
            node.set(flag, 0 if node.get(flag, 0) else 1)
            rewriter.set_input(node, index, source)
            return True
    return False


# --- concatenations and slices -------------------------------------------------------------


@RULES.on("Concat")
def merge_concatenations(node: Node, rewriter: Rewriter) -> bool:
    """Concat(Concat(a, b), c) is Concat(a, b, c), where nothing else reads the inner one."""
    if _enclosing(node) is not None:
        return False  # in one go from the outermost, or each level would copy the last
    merged: list[Value | None] = []
    pending = list(reversed(node.inputs))
    while pending:
        value = pending.pop()
        inner = producer(value, "Concat")
        if inner is not None and _enclosing(inner) is not None:
            pending.extend(reversed(inner.inputs))
        else:
            merged.append(value)
    if len(merged) == len(node.inputs):
        return False
    rewriter.set_inputs(node, merged)
    return True


def _enclosing(node: Node) -> Node | None:
    """The concatenation along the same axis that alone reads a concatenation."""
    output = node.output(0)
    reader = None if output is None else only_reader(output)
    if reader is None or output is None or reader.op_type != "Concat" or reader.domain:
        return None
    axis, outer = node.get("axis", 1), reader.get("axis", 1)
    alike = axis == outer or (output.rank is not None and (axis - outer) % output.rank == 0)
    return reader if alike else None


@RULES.on("Gather")
def gather_from_part(node: Node, rewriter: Rewriter) -> bool:
    """One index out of a concatenation: out of the part it lies in."""
    concat = producer(node.input(0), "Concat")
    indices = rewriter.ints(node.input(1))
    output = node.output(0)
    if concat is None or output is None or indices is None or len(indices) != 1:
        return False
    shape = rewriter.analysis.shape(node.input(0))
    if shape is None:
        return False
    axis = node.get("axis", 0) % len(shape)
    if concat.get("axis", 1) % len(shape) != axis:
        return False
    found = _find_part(concat, indices[0], axis, rewriter)
    if found is None:
        return False
    part, index = found
    position = rewriter.array(node.input(1))
    assert position is not None
    operand = rewriter.constant(node, np.full_like(position, index), f"{node.label}_index")
    new = rewriter.add(
        node, "Gather", [part, operand], {"axis": axis}, type=output.type, hint=node.name
    )
    return rewriter.replace(output, new)


def _find_part(concat: Node, index: int, axis: int, rewriter: Rewriter) -> tuple[Value, int] | None:
    """The input of a concatenation that `index` falls into, and where in it."""
    parts = [v for v in concat.inputs if v is not None]
    step = -1 if index < 0 else 1
    left = -index - 1 if index < 0 else index
    for part in parts[::step]:
        shape = rewriter.analysis.shape(part)
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            return None
        if left < size:
            return part, (left if step > 0 else -left - 1)
        left -= size
    return None


@RULES.on("Squeeze")
def gather_instead_of_slice(node: Node, rewriter: Rewriter) -> bool:
    """Slice to one index, then Squeeze: Gather of that index."""
    slice_ = producer(node.input(0), "Slice")
    source = None if slice_ is None else slice_.input(0)
    output = node.output(0)
    if slice_ is None or source is None or output is None or rewriter.opset < 10:
        return False
    operands, axes = _slice_operands(slice_, rewriter), integers(rewriter, node, "axes", 1)
    if operands is None or axes is None or len(operands[0]) != 1 or source.rank is None:
        return False
    (start,), (end,), (axis,), (step,) = operands
    if [a % source.rank for a in axes] != [axis] or step != 1:
        return False
    if end != start + 1 and not (start == -1 and end >= _UNBOUNDED):
        return False
    index = rewriter.constant(node, np.array(start, np.int64), f"{node.label}_index")
    new = rewriter.add(
        node, "Gather", [source, index], {"axis": axis}, type=output.type, hint=node.name
    )
    return rewriter.replace(output, new)


@RULES.on("Gather")
def reshape_instead_of_gather(node: Node, rewriter: Rewriter) -> bool:
    """The only index of an axis of size 1, taken before a reshape, is part of the reshape."""
    source, output = node.input(0), node.output(0)
    shape = rewriter.analysis.shape(source)
    position = rewriter.tensor(node.input(1))
    if not shape or output is None or source is None or position is None or position.shape != ():
        return False
    reader = only_reader(output)
    if shape[node.get("axis", 0) % len(shape)] != 1 or reader is None:
        return False
    return reader.op_type in RESHAPES and _reshape_from(node, source, rewriter)


@RULES.on("Slice")
def merge_slices(node: Node, rewriter: Rewriter) -> bool:
    """Slices along different axes, one after the other, are one."""
    inner = producer(node.input(0), "Slice")
    source = None if inner is None else inner.input(0)
    output = node.output(0)
    if inner is None or source is None or output is None or rewriter.opset < 10:
        return False
    if only_reader(inner.outputs[0] or source) is not node:
        return False
    first, second = (_slice_operands(n, rewriter) for n in (inner, node))
    if first is None or second is None or set(first[2]) & set(second[2]):
        return False
    operands = [
        rewriter.constant(node, np.array([*a, *b], np.int64), f"{node.label}_{name}")
        for name, a, b in zip(("starts", "ends", "axes", "steps"), first, second, strict=True)
    ]
    new = rewriter.add(node, "Slice", [source, *operands], type=output.type, hint=node.name)
    return rewriter.replace(output, new)


def _slice_operands(
    node: Node, rewriter: Rewriter
) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Constant starts, ends, axes (not negative) and steps."""
    starts, ends = rewriter.ints(node.input(1)), rewriter.ints(node.input(2))
    axes, steps = rewriter.ints(node.input(3)), rewriter.ints(node.input(4))
    rank = None if node.inputs[0] is None else node.inputs[0].rank
    if starts is None or ends is None or rank is None:
        return None
    if (axes is None and node.input(3)) or (steps is None and node.input(4)):
        return None
    axes = [a % rank for a in axes] if axes is not None else list(range(len(starts)))
    return starts, ends, axes, steps if steps is not None else [1] * len(starts)


@RULES.on("Concat")
def join_what_was_split(node: Node, rewriter: Rewriter) -> bool:
    """Concat of all parts of one Split, in order, is what was split."""
    split = producer(node.input(0), "Split")
    output, source = node.output(0), None if split is None else split.input(0)
    if split is None or source is None or output is None or source.rank is None:
        return False
    same_axis = (split.get("axis", 0) - node.get("axis", 1)) % source.rank == 0
    return same_axis and split.outputs == node.inputs and rewriter.forward(node, output, source)


# --- casts ---------------------------------------------------------------------------------

_HOLDS: dict[int, tuple[int, ...]] = {
    TensorProto.FLOAT16: (TensorProto.FLOAT, TensorProto.DOUBLE),
    TensorProto.BFLOAT16: (TensorProto.FLOAT, TensorProto.DOUBLE),
    TensorProto.FLOAT: (TensorProto.DOUBLE,),
    TensorProto.UINT8: (
        TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT16,
        TensorProto.FLOAT, TensorProto.DOUBLE,
    ),
    TensorProto.INT8: (
        TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT16,
        TensorProto.FLOAT, TensorProto.DOUBLE,
    ),
    TensorProto.INT32: (TensorProto.INT64, TensorProto.DOUBLE),
    TensorProto.BOOL: (
        TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64,
        TensorProto.FLOAT, TensorProto.DOUBLE,
    ),
}  # fmt: skip
"""Types that hold every value of another."""


@RULES.on("Cast")
def merge_casts(node: Node, rewriter: Rewriter) -> bool:
    """A cast of a cast that lost nothing is one cast."""
    inner = producer(node.input(0), "Cast")
    source = None if inner is None else inner.input(0)
    if inner is None or source is None or inner.get("to") not in _HOLDS.get(source.dtype, ()):
        return False
    rewriter.set_input(node, 0, source)
    return True
