"""Parts of quantization by themselves: zeros, biases that broadcast, values that overflow."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.text import parse_model
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.quantize.weights import FULL_RANGE, quantize_weight

HEADER = 'model <ir_version = 8, opset = ["" = 17]>\n'


def quantize(model: Model, *shape: int, largest: float = 1.0) -> None:
    x = np.random.default_rng(0).uniform(0, largest, shape).astype(np.float32)
    QuantizeStatic().run(model, Context({"x": x}))


@pytest.mark.parametrize("bound", [0.0, 0.25])
def test_a_channel_of_zeros_has_scale_one_or_the_bound(bound: float) -> None:
    weight = np.float32([[127, -1], [0, 0]])
    found = quantize_weight(weight, 0, FULL_RANGE, bound)
    np.testing.assert_array_equal(found.scale, [1, bound or 1])
    np.testing.assert_array_equal(found.integers, weight)


@pytest.mark.parametrize("bias", ["float[] = 0.5", "float[1] = [0.5]", "float[1, 3] = [[1, 2, 3]]"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_bias_that_broadcasts_gets_a_number_for_each_channel(bias: str, transposed: int) -> None:
    weight = "float[3, 2] = [[1, 2], [3, 4], [5, 7]]"
    if not transposed:
        weight = "float[2, 3] = [[1, 3, 5], [2, 4, 7]]"
    model = parse_model(f"""{HEADER}graph g (%x: float[1, 2]) -> (%y: float[1, 3]) {{
  const %w: {weight}
  const %b: {bias}
  %y = Gemm(%x, %w, %b) {{transB = {transposed}}}
}}""")
    quantize(model, 8, 1, 2)
    (gemm,) = (node for node in model.graph.nodes if node.op_type == "Gemm")
    dequantized = gemm.inputs[2]
    assert dequantized is not None
    assert dequantized.producer is not None
    integers = dequantized.producer.inputs[0]
    assert integers is not None
    assert integers.const is not None
    assert integers.const.shape[-1] == 3


@pytest.mark.parametrize("behind", ["Relu(%c)", "Identity(%c)"])
def test_what_overflows_is_an_error_behind_a_clip_too(behind: str) -> None:
    model = parse_model(f"""{HEADER}graph g (%x: float[1, 1, 2, 2]) -> (%y: float[1, 1, 2, 2]) {{
  const %w: float[1, 1, 1, 1] = [[[[100]]]]
  %c = Conv(%x, %w)
  %y = {behind}
}}""")
    with pytest.raises(SecateurError, match="becomes infinite"):
        quantize(model, 4, 1, 1, 2, 2, largest=3e38)
