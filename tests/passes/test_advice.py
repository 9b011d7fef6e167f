"""Warnings of quantized models: what each is about, on both sides of its threshold."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from secateur.ir.onnx_io import from_proto
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.quantize.advice import (
    LOST,
    MANY,
    NAMED,
    OUTLYING,
    UNEQUAL,
    WORTHWHILE,
    advice,
)
from secateur.passes.quantize.decision import Decision
from secateur.passes.quantize.errors import OperatorError
from tests.passes.test_equalization import node
from tests.passes.test_quantize_accurate import IMAGES
from tests.passes.test_quantize_integer import build, random

HARMLESS = OperatorError(
    "f", "Conv", "v", 40.0, 1.0, 40.0, 1.0, -1.0, 1.0, 0.1, 0.0, (), channels=100, quiet=0, peak=4.0
)
CHANNELS, PIXELS = 3, 64


def decided(nodes: list[Any], constants: dict[str, Any]) -> Decision:
    model = from_proto(build(nodes, constants, ["N", CHANNELS, 8, 8]))
    decision = QuantizeStatic().run(model, Context({"x": IMAGES})).artifacts["decision"]
    assert isinstance(decision, Decision)
    return decision


@pytest.fixture(scope="module")
def plain() -> Decision:
    """One convolution, whole in integers and worth it."""
    weights = {"a": random(1, 64, CHANNELS, 3, 3)}
    return decided([node("Conv", "x a", "y")], weights)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, None),
        ({"quiet": 5}, None),
        ({"quiet": 6}, r"near dead: .*'f' \(6 of 100\)"),
        ({"peak": OUTLYING, "sqnr_db": 1.0}, None),
        ({"peak": OUTLYING + 1, "sqnr_db": LOST - 1}, r"few large values .*'f' \(65 times\)"),
        ({"peak": OUTLYING + 1, "sqnr_db": -3.0}, "few large values"),
        ({"peak": OUTLYING + 1, "sqnr_db": 0.0}, "few large values"),
        ({"peak": OUTLYING + 1, "sqnr_db": LOST}, None),
        ({"peak": OUTLYING + 1, "sqnr_db": None}, None),
    ],
)
def test_errors_of_an_operator(plain: Decision, fields: dict[str, Any], word: str | None) -> None:
    assert MANY * HARMLESS.channels == 5
    found = advice(plain, [HARMLESS, dataclasses.replace(HARMLESS, **fields)])
    assert len(found) == (word is not None)
    if word is not None:
        (text,) = found
        assert re.search(word, text)


@pytest.mark.parametrize("factor", [1.0, UNEQUAL - 1, UNEQUAL + 1, 1 / (UNEQUAL + 1)])
def test_ranges_of_what_is_joined(factor: float) -> None:
    weights = random(1, 64, CHANNELS, 3, 3)
    nodes = [
        node("Conv", "x a", "f"),
        node("Conv", "x b", "g"),
        node("Concat", "f g", "i", axis=1),
        node("Conv", "i c", "y"),
    ]
    constants = {"a": weights, "b": factor * weights, "c": random(2, 32, 128, 1, 1)}
    found = advice(decided(nodes, constants), [])
    unequal = max(factor, 1 / factor) > UNEQUAL
    assert len(found) == unequal
    if unequal:
        assert f"'i' ({UNEQUAL + 1:.0f} times)" in found[0]


@pytest.mark.parametrize("outputs", [1, 4, 5])
def test_work_for_what_is_converted(outputs: int) -> None:
    """Multiply-accumulates of a 3x3 convolution by the elements that it reads and writes."""
    weights = random(1, outputs, CHANNELS, 3, 3)
    decision = decided([node("Conv", "x a", "y", pads=[1] * 4)], {"a": weights})
    found = advice(decision, [])
    converted = PIXELS * (CHANNELS + outputs)
    for_each = PIXELS * weights.size / converted
    assert len(found) == (for_each < WORTHWHILE)
    if found:
        assert f"'y' ({for_each:.1f} for each of {converted:,})" in found[0]


@pytest.mark.parametrize("op_type", ["Conv", "Relu"])
@pytest.mark.parametrize("shared", [False, True])
def test_normalizations_that_a_layer_would_take_in(op_type: str, shared: bool) -> None:
    """Not behind what takes in none, as Relu, nor where others read the layer, too."""
    constants = {"a": random(1, 4, CHANNELS, 3, 3), "s": np.ones(4, np.float32)}
    normalized = node("BatchNormalization", "c s s s s", "y" if not shared else "n")
    before = [node("Conv", "x a", "c")]
    if op_type == "Relu":
        before = [node("Conv", "x a", "b"), node("Relu", "b", "c")]
    after = [node("Add", "n c", "y")] if shared else []
    found = advice(decided([*before, normalized, *after], constants), [])
    warned = [w for w in found if "BatchNormalization stays float" in w and "simplify" in w]
    assert len(warned) == (op_type == "Conv" and not shared)


def test_a_long_list_is_cut_off(plain: Decision) -> None:
    quiet = [dataclasses.replace(HARMLESS, node=f"n{i}", quiet=50) for i in range(NAMED + 2)]
    (text,) = advice(plain, quiet[:NAMED])
    assert "more" not in text
    (text,) = advice(plain, quiet)
    assert f"'n{NAMED - 1}' (50 of 100) and 2 more;" in text
