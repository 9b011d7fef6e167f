"""Recurrent layers with an open batch, and an open number of steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import LoopsOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.model import Model
from secateur.ir.reference import Session

from .child import Child
from .test_open_sizes import compiled, feeds_of, model_of, with_constants

LAYERS = {
    "LSTM in both directions": (
        "(%x: float[n, b, 5]) -> (%y: float[n, 2, b, 20], %h: float[2, b, 20])",
        '%y, %h = LSTM(%x, %w, %r) {hidden_size = 20, direction = "bidirectional"}',
        {"w": "float[2, 80, 5]", "r": "float[2, 80, 20]"},
    ),
    "LSTM with states": (
        "(%x: float[n, b, 5], %i: float[1, b, 16], %j: float[1, b, 16]) "
        "-> (%y: float[n, 1, b, 16], %c: float[1, b, 16])",
        "%y, _, %c = LSTM(%x, %w, %r, %o, _, %i, %j) {hidden_size = 16}",
        {"w": "float[1, 64, 5]", "r": "float[1, 64, 16]", "o": "float[1, 128]"},
    ),
    "GRU": (
        "(%x: float[6, b, 5]) -> (%y: float[6, 2, b, 20], %h: float[2, b, 20])",
        '%y, %h = GRU(%x, %w, %r) {hidden_size = 20, direction = "bidirectional"}',
        {"w": "float[2, 60, 5]", "r": "float[2, 60, 20]"},
    ),
    "GRU that resets later": (
        "(%x: float[n, b, 5]) -> (%y: float[n, 1, b, 20], %h: float[1, b, 20])",
        "%y, %h = GRU(%x, %w, %r) {hidden_size = 20, linear_before_reset = 1}",
        {"w": "float[1, 60, 5]", "r": "float[1, 60, 20]"},
    ),
}


def layer(name: str) -> tuple[Model, list[str]]:
    """A model, and what is admitted of its sizes."""
    signature, body, constants = LAYERS[name]
    model = model_of(signature, with_constants(body, constants))
    sizes = [d for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)]
    return model, [f"{d}=1.." for d in dict.fromkeys(sizes)]


@pytest.mark.parametrize("name", LAYERS)
def test_no_recurrent_layer_takes_plain_loops(name: str) -> None:
    model, admitted = layer(name)
    plan = lower(model, parse_target("x86-64-v3"), read_admitted(admitted))
    assert not any(isinstance(op, LoopsOp) for op in plan.operations)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LSTM with states", "GRU"])
def test_batches_of_any_size(name: str, tmp_path: Path) -> None:
    """As ONNX Runtime, with pages around all memory that nothing may touch."""
    model, admitted = layer(name)
    compiled(model, tmp_path, *admitted)
    session, child = Session(model, optimize=False), Child()
    for n, b in ((1, 1), (2, 3), (5, 7), (8, 33)):
        feeds = feeds_of(model, {"n": n, "b": b})
        have = child.run_guarded(tmp_path / "m.so", feeds)
        for output, array in session.run(feeds).items():
            np.testing.assert_allclose(have[output], array, rtol=1e-4, atol=1e-5)
    child.close()
