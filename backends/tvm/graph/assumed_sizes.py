"""Inputs that give results their sizes (a Reshape's target): solved for from declared shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from onnx import TensorProto, helper

from ....ir.graph import Graph, Node, Value, normalize_domain
from ....ir.infer import infer_shapes
from ....ir.model import Model
from ....ir.schemas import input_names
from ....ir.stand_ins import REQUIRE
from ....ir.symbolic.analysis import SizeAnalysis
from ....ir.symbolic.expressions import Expression, Size, symbol
from ....ir.symbolic.facts import Shape, scalar, vector
from ....ir.tensor import Array, Tensor
from ....passes.simplify import simplify_pipeline

_ELEMENTS = 8
"""Elements of an input that may be sizes: a shape's."""

_TRIALS = 64
"""Assignments of declared sizes to elements that are tried where no equation tells them."""

_Known = Mapping[tuple[str, int], int]
"""Numbers of elements, by the input's name and the element's position."""


def assume_sizes(model: Model) -> bool:
    """Fix elements of small integer inputs that declared results decide; whether there were any.

    Where sizes inside the model follow from what such an input holds, and sizes of the declared
    results do, too, these are equations for its elements. Elements that they tell become
    constants, and a run whose input holds others fails (`REQUIRE`). Elements that no size depends
    on stay the caller's.
    """
    inputs = [v for v in model.graph.inputs if _may_give_sizes(model, v)]
    if not inputs or not any(_is_open(v) for v in model.graph.values()):
        return False
    known = _solve(model, inputs)
    guarded = next((v for v in model.graph.outputs if v.producer is not None), None)
    if not known or guarded is None:
        return False
    conditions = [_fix(model, v, known) for v in inputs if any(n == v.name for n, _ in known)]
    _guard(model, guarded, conditions)
    for step in simplify_pipeline():
        step.run(model)
    infer_shapes(model)
    return True


def _may_give_sizes(model: Model, value: Value) -> bool:
    if value.dtype not in (TensorProto.INT64, TensorProto.INT32) or not value.uses:
        return False
    shape = value.shape
    if model.constant(value) is not None or shape is None or len(shape) > 1:
        return False
    if any(_names_axes(model, *use) for use in value.uses):
        return False  # of which several may lead to one size
    return all(isinstance(size, int) and 0 < size <= _ELEMENTS for size in shape)


def _names_axes(model: Model, user: Node | Graph, position: int) -> bool:
    """Whether an operand says which axes an operator is about."""
    if not isinstance(user, Node):
        return False
    domain = normalize_domain(user.domain)
    names = input_names(user.op_type, domain, model.opsets.get(domain, model.opset))
    return position < len(names) and names[position] in ("axis", "axes")


def _is_open(value: Value) -> bool:
    return value.shape is None or not all(isinstance(size, int) for size in value.shape)


def _solve(model: Model, inputs: list[Value]) -> _Known:
    """The elements without which results don't have their declared sizes; empty if unknown."""
    known: dict[tuple[str, int], int] = {}
    found = _results(model, inputs, known)
    for declared, shape in found:
        for wanted, size in zip(declared, shape or (), strict=False):
            atom = size.atom if isinstance(size, Expression) else None
            if isinstance(wanted, int) and atom is not None and isinstance(atom.of, tuple):
                known.setdefault(atom.of, wanted)
    found = _results(model, inputs, known) if known else found
    if all(_equal(*pair) for pair in found):
        return known
    for trial in _trials(model, inputs, known):
        if all(_equal(*pair) for pair in _results(model, inputs, trial)):
            return trial
    return {}


def _trials(model: Model, inputs: list[Value], known: _Known) -> Iterator[_Known]:
    """Assignments of the declared sizes, in their order first, to the elements left."""
    places = [(v.name, i) for v in inputs for i in range(_count(v)) if (v.name, i) not in known]
    for output in model.graph.outputs:
        sizes = [size for size in output.shape or () if isinstance(size, int)]
        ordered = itertools.combinations(sizes, len(places))
        others = itertools.permutations(sizes, len(places))
        tried = dict.fromkeys(itertools.islice(itertools.chain(ordered, others), _TRIALS))
        for numbers in tried:
            yield {**known, **dict(zip(places, numbers, strict=True))}


def _results(
    model: Model, inputs: list[Value], known: _Known
) -> list[tuple[Shape | tuple[object, ...], Shape | None]]:
    """What each result is declared as, and what follows from the inputs' elements."""
    work = model.clone()
    declared = [value.shape or () for value in work.graph.outputs]
    for value in work.graph.outputs:
        if value.producer is not None and value.dtype:
            value.set_tensor_type(value.dtype, None)
    names = {v.name for v in inputs}
    analysis = _Given(work, {v: known for v in work.graph.inputs if v.name in names})
    analysis.run()
    return [
        (sizes, analysis.shape(v)) for sizes, v in zip(declared, work.graph.outputs, strict=True)
    ]


def _equal(declared: tuple[object, ...], shape: Shape | None) -> bool:
    return shape is not None and tuple(declared) == tuple(shape)


class _Given(SizeAnalysis):
    """The analysis where elements of inputs are numbers or symbols."""

    def __init__(self, model: Model, given: Mapping[Value, _Known]) -> None:
        super().__init__(model)
        for value, known in given.items():
            elements = [_element(value, i, known) for i in range(_count(value))]
            self._contents[value] = vector(elements) if value.rank else scalar(elements[0])


def _element(value: Value, index: int, known: _Known) -> Size:
    place = value.name, index
    if place in known:
        return known[place]
    return symbol(f"{value.name}[{index}]", of=place)


def _count(value: Value) -> int:
    return math.prod(size for size in value.shape or () if isinstance(size, int))


def _fix(model: Model, value: Value, known: _Known) -> Value:
    """Let readers of an input have constants for elements that are known; whether it has them."""
    dtype = helper.tensor_dtype_to_np_dtype(value.dtype)
    graph = model.graph

    def constant(array: Array) -> Value:
        name = model.fresh_name(f"{value.name}/assumed")
        return graph.add_initializer(name, Tensor.from_array(array))

    def node(op_type: str, inputs: list[Value], **attributes: object) -> Value:
        result = Value(model.fresh_name(f"{value.name}/{op_type}"))
        made = Node(op_type, inputs, [result])
        for name, given in attributes.items():
            made.set(name, given)
        graph.add_node(made)
        return result

    def part(positions: list[int]) -> Value:
        return node("Gather", [value, constant(np.asarray(positions, np.int64))], axis=0)

    users = list(value.uses)
    if not value.rank:
        assumed = constant(np.asarray(known[value.name, 0], dtype))
        condition = node("Equal", [value, assumed])
    else:
        places = range(_count(value))
        fixed = [i for i in places if (value.name, i) in known]
        numbers = constant(np.asarray([known[value.name, i] for i in fixed], dtype))
        condition = node("Equal", [part(fixed), numbers])
        parts = [
            constant(np.asarray([known[value.name, i]], dtype)) if i in fixed else part([i])
            for i in places
        ]
        assumed = node("Concat", parts, axis=0)
    for user, position in users:
        if isinstance(user, Node):
            user.set_input(position, assumed)
    return condition


def _guard(model: Model, result: Value, conditions: list[Value]) -> None:
    """Let a result of the model be one only where the conditions hold."""
    domain, op_type = REQUIRE
    if domain not in model.opsets:
        model.extra.opset_import.add(domain=domain, version=1)
    given = Value(model.fresh_name(f"{result.name}/given"), result.type)
    node = Node(op_type, [result, *conditions], [given], domain=domain, name=result.name)
    model.graph.add_node(node)
    result.replace_uses(given)
    node.set_input(0, result)
    model.graph.sort()
