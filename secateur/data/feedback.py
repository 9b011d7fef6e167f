"""Samples of models that hear or see a stream: states that one step hands to the next."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from onnx import helper

from ..ir.graph import Value
from ..ir.model import Model
from ..ir.onnx_io import load
from ..ir.reference import Session
from ..ir.tensor import Array
from .inputs import model_inputs
from .npz import DataError


def with_states(
    model: Model | str | os.PathLike[str],
    sequences: Iterable[Iterable[Mapping[str, Array]]],
    states: Mapping[str, str],
) -> Iterator[dict[str, Array]]:
    """All inputs before each step of a model whose states are fed back, as samples.

    Each of `sequences` yields dicts with the other inputs of one step, in their shapes.
    `states` says for each input that is a state which output is its next value. At the start of
    a sequence a state is zero, or what the first dict has for it. The steps are computed in ONNX
    Runtime by `model`, the original one, so that all stages of a run are measured on the same
    states. A function for `--calibration` and `--evaluation` yields what this yields; with
    labels, it adds them to the dicts.

    Raises DataError where a name is no input or output, or where zeros have no known shape.
    """
    model = model if isinstance(model, Model) else load(model)
    inputs = {value.name: value for value in model_inputs(model)}
    session = Session(model)
    for state, output in states.items():
        if state not in inputs:
            raise DataError(f"state '{state}' is no input of the model: {', '.join(inputs)}")
        if output not in session.output_names:
            names = ", ".join(session.output_names)
            raise DataError(f"state '{state}': '{output}' is no output of the model: {names}")
    for steps in sequences:
        current: dict[str, Array] = {}
        for given in steps:
            missing = inputs.keys() - states.keys() - given.keys()
            if missing:
                raise DataError(f"a step has no '{min(missing)}'")
            if not current:
                current = {state: _start(inputs[state], inputs, given) for state in states}
            feed = {**given, **current}
            yield feed
            found = session.run({name: feed[name] for name in inputs}, [*states.values()])
            current = {state: found[output] for state, output in states.items()}


def _start(value: Value, inputs: Mapping[str, Value], given: Mapping[str, Array]) -> Array:
    """A state before the first step: given, or zeros of the sizes that the other inputs have."""
    if value.name in given:
        return np.asarray(given[value.name])
    sizes = {
        symbol: int(size)
        for name, array in given.items()
        if name in inputs
        for symbol, size in zip(inputs[name].shape or (), np.shape(array), strict=False)
        if isinstance(symbol, str)
    }
    shape = [sizes.get(s) if isinstance(s, str) else s for s in value.shape or (None,)]
    if None in shape:
        raise DataError(
            f"state '{value.name}' has a shape that isn't known before the first step; give it "
            "in the first dict of a sequence"
        )
    return np.zeros(
        [s for s in shape if s is not None], helper.tensor_dtype_to_np_dtype(value.dtype)
    )
