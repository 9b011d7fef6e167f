"""Functions of one byte as tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.functions.tables import tabulate
from secateur.backends.tvm.plan.programs import ProgramBuilder, dequantize, quantize

from ..graphs import Net, feeds, reference
from ..graphs import quantize as quantize_model
from ..test_networks import TARGETS, run


def test_sigmoid_of_a_byte_is_one_lookup() -> None:
    program = quantize(dequantize("uint8", 0.05, 120).then("sigmoid"), 1 / 256, 0, "uint8")
    found = tabulate(program)
    assert [s.name for s in found.instructions] == ["table"]
    x = (np.arange(256) - 120) * 0.05
    expected = np.clip(np.rint(256 / (1 + np.exp(-x))), 0, 255)
    np.testing.assert_array_equal(found.instructions[0]["values"], expected)


def test_what_depends_on_more_than_one_byte_stays() -> None:
    builder = ProgramBuilder(["int32", "float32", "uint8"])
    byte = builder.add("requantize", (0, 1), "uint8", scale=1.0, zero_point=3, input_scale=1.0)
    silu = builder.add("dequantize", (byte,), "float32", scale=0.1, zero_point=3)
    silu = builder.add("silu", (silu,), "float32")
    silu = builder.add("quantize", (silu,), "uint8", scale=0.1, zero_point=9)
    parameters = {"scale_a": 0.1, "zero_a": 9, "scale_b": 0.1, "zero_b": 0}
    builder.add("qlinear_add", (silu, 2), "uint8", scale=0.2, zero_point=1, **parameters)
    found = tabulate(builder.build())
    assert [s.name for s in found.instructions] == ["requantize", "table", "qlinear_add"]


def test_cheap_functions_are_computed() -> None:
    program = quantize(dequantize("uint8", 0.05, 120), 0.06, 120, "uint8")
    assert tabulate(program) == program


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize("width", [3, 5, 40])
def test_quantized_swish_matches(tmp_path: Path, activation: str, width: int) -> None:
    """Alone on a row-major tensor, and behind a convolution with ragged channels."""
    net = Net(None, 4)
    value = net.node("Conv", "x", net.weight(width, 6, 1, 1))
    value = net.node("Mul", value, net.node("Sigmoid", value))
    other = net.node("Mul", "x", net.node("Sigmoid", "x"))
    model = quantize_model(net.model({"x": (1, 6, 5, 7)}, [value, other]), activation)
    inputs = feeds(model)
    found = run(model, TARGETS[-1], tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("columns", [1, 2, 3, 6, 7])
def test_any_number_of_pixels_is_looked_up_together(tmp_path: Path, columns: int) -> None:
    net = Net(None, 4)
    value = net.node("Conv", "x", net.weight(20, 6, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Mul", value, net.node("Sigmoid", value))
    model = quantize_model(net.model({"x": (1, 6, 5, columns)}, [value]), "uint8")
    inputs = feeds(model)
    found = run(model, TARGETS[-1], tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_array_equal(found[name], array)
