"""Static quantization of LSTM, GRU and RNN: bytes as inputs and weights, floats as states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from secateur.ir.model import Model
from secateur.ir.ops.recurrent import GATES
from secateur.ir.reference import Session
from secateur.ir.verify import verify
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic, StoreFloat16
from secateur.passes.quantize.calibrate import exposing
from secateur.passes.quantize.errors import operator_errors
from secateur.passes.samples import Samples

from .recurrent_models import HIDDEN, feed_of, recurrent_model, samples_of
from .test_equalization import sqnr

DIRECTIONS = ("forward", "reverse", "bidirectional")


def quantized(model: Model, **options: Any) -> tuple[Model, Any]:
    copy = model.clone()
    result = QuantizeStatic(**options).run(copy, Context(samples_of(model)))
    verify(copy)
    return copy, result


def stored_as_bytes(model: Model) -> set[int]:
    """Positions of the layer's inputs that come from int8 or uint8."""
    (layer,) = (node for node in model.graph.nodes if node.op_type in GATES)
    found = set()
    for position, value in enumerate(layer.inputs):
        restore = value.producer if value is not None else None
        if restore is not None and restore.op_type == "DequantizeLinear":
            integers = restore.input(0)
            assert integers is not None
            assert integers.dtype in (TensorProto.INT8, TensorProto.UINT8)
            found.add(position)
    return found


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_layers_read_bytes(kind: str, direction: str, per_channel: bool) -> None:
    model = recurrent_model(kind, direction)
    rounded, result = quantized(model, per_channel=per_channel)
    assert result.statistics["quantized"] == {kind: 1}
    assert stored_as_bytes(rounded) == {0, 1, 2}
    for seed, steps in ((10, 7), (11, 1), (12, 30)):
        feed = feed_of(model, seed, steps)
        want, have = Session(model).run(feed), Session(rounded).run(feed)
        for name, array in want.items():
            assert sqnr(array, have[name]) > 22, (name, steps)


def test_a_row_of_large_weights_leaves_the_others_their_steps() -> None:
    """Rows are gates of units: one scale each, of both directions."""
    weights = np.random.default_rng(5).standard_normal((2, 4 * HIDDEN, HIDDEN)).astype(np.float32)
    weights[0, 3] *= 1000
    rounded, _ = quantized(recurrent_model("LSTM", "bidirectional", constants={"r": weights}))
    restore = next(n for n in rounded.graph.nodes if n.op_type == "LSTM").input(2)
    assert restore is not None
    session = Session(exposing(rounded, [restore.name]), optimize=False)
    got = session.run(feed_of(rounded, 0))[restore.name]
    step = np.abs(weights).max(axis=(0, 2)) / 127
    assert (np.abs(got - weights) <= step[None, :, None] * 0.5001).all()


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        ("x w r", {}),
        ("x w r b l", {}),
        ("x w r b l i _ p", {}),
        ("x w r b _ i", {"clip": 0.4}),
        ("x w r b", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
    ],
)
def test_what_else_layers_take_stays_as_it_is(inputs: str, attributes: Any) -> None:
    model = recurrent_model("LSTM", inputs=inputs, **attributes)
    rounded, _ = quantized(model)
    assert stored_as_bytes(rounded) == {0, 1, 2}
    feed = feed_of(model, 3)
    want, have = Session(model).run(feed), Session(rounded).run(feed)
    assert all(sqnr(want[name], have[name]) > 22 for name in want)


def test_weights_that_a_run_computes_keep_a_layer_float() -> None:
    model = recurrent_model("GRU", inputs="x w s b _ i", lead=("Add r o -> s",))
    result = QuantizeStatic().run(model, Context(samples_of(model)))
    assert result.statistics["quantized"] == {}
    (note,) = (note for note in result.notes if note.op_type == "GRU")
    assert note.reason == "its recurrent weight is not a constant"


@pytest.mark.parametrize("outputs", ["z", "z h", "z y"])
def test_a_clip_behind_a_layer_is_its_own(outputs: str) -> None:
    """Either result may be clipped; the other one isn't."""
    for source in ("y", "h"):
        tail = (f"Relu {source} -> c", "MatMul c m -> z")
        weights = np.random.default_rng(2).standard_normal((HIDDEN, 4)).astype(np.float32)
        model = recurrent_model("RNN", tail=tail, outputs=outputs, constants={"m": weights})
        rounded, result = quantized(model)
        assert result.statistics["quantized"]["MatMul"] == 1
        for seed in (7, 8):
            feed = feed_of(model, seed)
            want, have = Session(model).run(feed), Session(rounded).run(feed)
            assert all(sqnr(want[name], have[name]) > 20 for name in want)


def test_errors_of_each_layer_are_told() -> None:
    """Of layers with states that are given, and of which only the last state is read."""
    model = recurrent_model("LSTM", outputs="h")
    copy = model.clone()
    samples = samples_of(model)
    result = QuantizeStatic().run(copy, Context(samples))
    (error,) = operator_errors(result.artifacts["decision"], copy, Samples(model, samples))
    assert error.sqnr_db is not None
    assert 22 < error.sqnr_db < 60


def test_another_scheme_takes_the_place_of_bytes() -> None:
    model = recurrent_model("GRU", "bidirectional")
    rounded, _ = quantized(model)
    StoreFloat16().run(rounded, Context(samples_of(model)))
    verify(rounded)
    feed = feed_of(model, 4)
    want, have = Session(model).run(feed), Session(rounded).run(feed)
    assert all(sqnr(want[name], have[name]) > 20 for name in want)
