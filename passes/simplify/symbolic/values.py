"""Elements of small integer tensors, as sizes: what shape computations compute.

Rules give the flat list of an output's elements. Tensors here have rank 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto

from ....ir.graph import Node
from . import expression as e
from .expression import Size
from .facts import LIMIT, Facts

Elements = list[Size]
Rule = Callable[[Node, Facts], "Elements | None"]

RULES: dict[str, Rule] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, function))
        return function

    return register


@rule("Shape")
def shape_of(node: Node, facts: Facts) -> Elements | None:
    shape = facts.shape(node.input(0))
    if shape is None:
        return None
    return list(shape[node.get("start", 0) : node.get("end", len(shape))])


@rule("Size")
def size_of(node: Node, facts: Facts) -> Elements | None:
    shape = facts.shape(node.input(0))
    return None if shape is None else [e.multiply(*shape)]


@rule("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten")
def forward(node: Node, facts: Facts) -> Elements | None:
    return facts.elements(node.input(0))


@rule("Cast")
def cast(node: Node, facts: Facts) -> Elements | None:
    if node.get("to") not in (TensorProto.INT64, TensorProto.INT32):
        return None
    return facts.elements(node.input(0))


@rule("Gather")
def gather(node: Node, facts: Facts) -> Elements | None:
    data, indices = facts.elements(node.input(0)), facts.integers(node.input(1))
    if data is None or indices is None or not facts.is_vector(node.input(0)):
        return None
    if any(not -len(data) <= i < len(data) for i in indices):
        return None
    return [data[i] for i in indices]


@rule("Slice")
def slice_(node: Node, facts: Facts) -> Elements | None:
    data, bounds = facts.elements(node.input(0)), facts.slice_bounds(node)
    if data is None or bounds is None or len(bounds) != 1:
        return None
    _, start, end, step = bounds[0]
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int):
        return None
    if step == 0 or not facts.is_vector(node.input(0)):
        return None
    return data[slice(start, None if step < 0 and end < -len(data) else end, step)]


@rule("Concat")
def concat(node: Node, facts: Facts) -> Elements | None:
    parts = [facts.elements(v) for v in node.inputs]
    if any(part is None for part in parts):
        return None
    return [x for part in parts if part is not None for x in part]


@rule("Add", "Sub", "Mul", "Div", "Max", "Min")
def arithmetic(node: Node, facts: Facts) -> Elements | None:
    functions: dict[str, Callable[[Size, Size], Size]] = {
        "Add": e.add,
        "Sub": lambda a, b: e.add(a, e.negative(b)),
        "Mul": e.multiply,
        "Div": e.divide,
        "Max": e.maximum,
        "Min": e.minimum,
    }
    return _zip(node, facts, functions[node.op_type])


@rule("Equal")
def equal(node: Node, facts: Facts) -> Elements | None:
    found = _zip(node, facts, lambda a, b: _are_equal(a, b))
    return None if found is None or -1 in found else found


def _are_equal(a: Size, b: Size) -> int:
    """1 or 0, or -1 where it depends."""
    if a == b:
        return 1
    difference = e.add(a, e.negative(b))
    if isinstance(difference, int):
        return 0
    positive = e.is_nonnegative(e.add(difference, -1))
    negative = e.is_nonnegative(e.add(e.negative(difference), -1))
    return 0 if positive or negative else -1


@rule("Where")
def where(node: Node, facts: Facts) -> Elements | None:
    parts = [facts.elements(v) for v in node.inputs]
    if len(parts) != 3 or any(part is None for part in parts):
        return None
    lists = [part for part in parts if part is not None]
    length = max(len(part) for part in lists)
    if any(len(part) not in (1, length) for part in lists):
        return None
    condition, yes, no = (part * length if len(part) == 1 else part for part in lists)
    return [y if c else n for c, y, n in zip(condition, yes, no, strict=True)]


@rule("ConstantOfShape")
def constant_of_shape(node: Node, facts: Facts) -> Elements | None:
    sizes = facts.integers(node.input(0))
    value = node.get("value")
    if sizes is None or len(sizes) > 1 or value is None:
        return None
    number = facts.attribute_integer(value)
    count = sizes[0] if sizes else 1
    return [number] * count if number is not None and 0 <= count <= LIMIT else None


@rule("ReduceProd")
def product(node: Node, facts: Facts) -> Elements | None:
    data = facts.elements(node.input(0))
    return None if data is None else [e.multiply(*data)]


@rule("Expand")
def expand(node: Node, facts: Facts) -> Elements | None:
    data, sizes = facts.elements(node.input(0)), facts.integers(node.input(1))
    if data is None or sizes is None or len(sizes) != 1 or len(data) != 1:
        return data if sizes == [1] or sizes == [] else None
    return data * sizes[0] if 0 < sizes[0] <= LIMIT else None


def _zip(node: Node, facts: Facts, function: Callable[[Size, Size], Size]) -> Elements | None:
    if len(node.inputs) != 2:
        return None
    a, b = (facts.elements(v) for v in node.inputs)
    if a is None or b is None or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    length = max(len(a), len(b))
    a, b = (x * length if len(x) == 1 else x for x in (a, b))
    return [function(x, y) for x, y in zip(a, b, strict=True)]
