"""Recurrent layers: initial states of zero are what they start from anyway."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from ...ir.graph import Node, Value
from ...ir.ops import Trait, traits
from .rewriter import Rewriter, RuleSet, producer

RULES = RuleSet()


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
    made = value.producer
    return made is not None and _keeps_zeros(made) and is_zero(made.input(0), rewriter)


def _keeps_zeros(node: Node) -> bool:
    """Whether zeros in the first operand give zeros."""
    known = traits(node)
    return Trait.MOVES in known or (Trait.POINTWISE | Trait.ZERO_AT_ZERO) in known
