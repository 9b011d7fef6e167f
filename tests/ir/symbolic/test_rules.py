"""Rules for shapes and elements, held against every operator test case that ONNX ships."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from secateur.ir.graph import Node, Value
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.symbolic import expressions as e
from secateur.ir.symbolic import registry
from secateur.ir.symbolic.expressions import Size
from secateur.ir.symbolic.facts import Contents, Facts, Shape, contents_of
from secateur.ir.symbolic.ranges import ANY, NATURAL, Range
from secateur.ir.symbolic.registry import (
    RuleError,
    contents_rules,
    find_contents,
    find_shapes,
    shape_rules,
)
from secateur.ir.text import parse_model
from tests.backend_cases import generated_cases


class Given(Facts):
    """Shapes and elements as given; with `symbolic`, each number of them a symbol of its own."""

    def __init__(self, model: Model, arrays: Mapping[Value, Any], *, symbolic: bool) -> None:
        super().__init__(model)
        self.arrays = arrays
        self.symbolic = symbolic
        self.known: dict[str, int] = {}

    def _size(self, number: int, range: Range) -> Size:
        if not self.symbolic:
            return number
        name = f"s{len(self.known)}"
        self.known[name] = number
        return e.symbol(name, *range)

    def shape(self, value: Value | None) -> Shape | None:
        if value not in self.arrays:
            return None
        return tuple(self._size(n, NATURAL) for n in self.arrays[value].shape)

    def contents(self, value: Value | None) -> Contents | None:
        if value not in self.arrays:
            return None
        found = contents_of(self.arrays[value])
        if found is None:
            return None
        for index, number in enumerate(found.flat):
            found.flat[index] = self._size(number, ANY)
        return found

    def evaluate(self, size: Size) -> Size:
        return e.substitute(size, lambda leaf: self.known.get(leaf.key, e.single(leaf)))


def nodes_of_cases() -> Iterator[tuple[str, Model, Node, dict[Value, Any], list[Any]]]:
    """Models of one node with operands and results, as arrays."""
    for case in generated_cases():
        if len(case.model.graph.node) != 1 or not case.data:
            continue
        inputs, outputs = case.data[0]
        if not all(isinstance(x, np.ndarray) for x in (*inputs, *outputs)):
            continue
        model = from_proto(case.model)
        (node,) = model.graph.nodes
        yield case.name, model, node, dict(zip(model.graph.inputs, inputs, strict=True)), outputs


@pytest.mark.parametrize("symbolic", [False, True])
def test_rules_agree_with_what_operators_compute(symbolic: bool) -> None:
    """Where the rule says a number, it is right; for plain numbers it mostly says one."""
    seen: set[str] = set()
    for name, model, node, arrays, outputs in nodes_of_cases():
        facts = Given(model, arrays, symbolic=symbolic)
        results = [v for v in node.outputs if v is not None]
        expected = dict(zip(results, outputs, strict=True))
        for value, shape in zip(node.outputs, find_shapes(node, facts), strict=False):
            if value is None or shape is None:
                continue
            found = [facts.evaluate(size) for size in shape]
            assert len(found) == expected[value].ndim, name
            for size, actual in zip(found, expected[value].shape, strict=True):
                assert not isinstance(size, int) or size == actual, (name, found)
                seen.update([node.op_type] if isinstance(size, int) else [])
        for value, contents in zip(node.outputs, find_contents(node, facts), strict=False):
            if value is None or contents is None:
                continue
            assert contents.shape == expected[value].shape, name
            for element, actual in zip(contents.flat, expected[value].flat, strict=True):
                number = facts.evaluate(element)
                assert not isinstance(number, int) or number == int(actual), name
    assert symbolic or set(shape_rules()) - seen <= UNSEEN


UNSEEN = {
    "BlockProduct",
    "GlobalLpPool",
    "If",
    "OneHot",
    "RandomNormalLike",
    "RandomUniformLike",
    "Require",
    "Size",
    "TreeSums",
    "Upsample",
}
"""Operators without a case of one node on arrays whose results have sizes, and those inside the
compiler."""


def test_only_misfit_nodes_have_no_answer() -> None:
    """Whatever attributes and operands say, a rule answers or finds that they don't fit."""
    chance = random.Random(5)
    ruled = {*shape_rules(), *contents_rules()}
    for _, model, node, arrays, _ in nodes_of_cases():
        if node.op_type not in ruled:
            continue
        for _ in range(3):
            damage(node, chance)
            shuffled = dict(arrays)
            for value in arrays:
                if chance.random() < 0.3:
                    shuffled[value] = chance.choice(list(arrays.values()))
                elif chance.random() < 0.2:
                    del shuffled[value]
            facts = Given(model, shuffled, symbolic=chance.random() < 0.5)
            find_shapes(node, facts)
            find_contents(node, facts)


def damage(node: Node, chance: random.Random) -> None:
    """Change an attribute to another value of its type, or drop an operand."""
    for name in list(node.attributes):
        value = node.get(name)
        if isinstance(value, bool | int):
            node.set(name, chance.randint(-4, 4))
        elif isinstance(value, list) and value and isinstance(value[0], int):
            changed = [chance.randint(-3, 3) for _ in range(chance.randint(1, 5))]
            node.set(name, changed)
    if node.inputs and chance.random() < 0.2:
        node.set_input(chance.randrange(len(node.inputs)), None)


def test_a_mistake_in_a_rule_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(node: Node, facts: Facts) -> list[Shape | None]:
        return [node.attributes["no such attribute"].value]

    model = parse_model("""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[2]) -> (%y: float[2]) { %y = Relu @act(%x) }""")
    monkeypatch.setattr(registry, "shape_rules", lambda: {"Relu": broken})
    with pytest.raises(RuleError, match=r"'act'.*Relu.*broken.*KeyError.*no such attribute"):
        find_shapes(model.graph.nodes[0], Facts(model))


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(ValueError, match="two rules"):
        registry.shape_rule("Relu")(lambda node, facts: [])
