"""Recurrent layers: initial states of zero are what they start from anyway."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from ...ir.graph import Node, Value
from .rewriter import Rewriter, RuleSet, producer

RULES = RuleSet()

_KEEPS_ZERO = ("Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose")


@RULES.on("LSTM", "GRU", "RNN")
def drop_zero_states(node: Node, rewriter: Rewriter) -> bool:
    """Initial states (inputs 5 and 6) default to zero."""
    inputs = list(node.inputs)
    for index in (5, 6):
        if index < len(inputs) and is_zero(inputs[index], rewriter):
            inputs[index] = None
    while inputs and inputs[-1] is None:
        inputs.pop()
    if inputs == list(node.inputs):
        return False
    rewriter.set_inputs(node, inputs)
    return True


def is_zero(value: Value | None, rewriter: Rewriter) -> bool:
    """Whether a value is certainly all zeros, of whatever size."""
    if value is None:
        return False
    array = rewriter.array(value, 2**20)
    if array is not None:
        return not np.any(array)
    made = producer(value, "ConstantOfShape")
    if made is not None:
        element = made.get("value")
        return element is None or not numpy_helper.to_array(element).any()
    moved = producer(value, *_KEEPS_ZERO, "Unsqueeze")
    return moved is not None and is_zero(moved.input(0), rewriter)
