"""What nothing can be quantized with: constants, scales and samples, named in the message."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.passes.base import Context
from secateur.passes.quantize import SCHEMES, Quantize

from .test_equalization import node
from .test_quantize_accurate import IMAGES, network
from .test_quantize_integer import build, random


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_constant_that_is_no_number_is_named(scheme: str, broken: float) -> None:
    weights = random(1, 4, 3, 3, 3)
    weights[1, 2, 0, 1] = broken
    model = from_proto(build([node("Conv", "x w", "y")], {"w": weights}, ["N", 3, 8, 8]))
    with pytest.raises(SecateurError, match=r"node 'y' \(Conv\): constant 'w' holds NaN or inf"):
        Quantize(scheme=scheme).run(model, Context({"x": IMAGES}))


def rounded(scale: float, *, weight: bool = False) -> onnx.ModelProto:
    """A convolution of what is rounded by a scale, or by a weight of zeros that has the scale."""
    source, other = ("x", "c") if weight else ("d", "w")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "round"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    if weight:
        nodes = [helper.make_node("DequantizeLinear", ["i", "s"], ["c"])]
    nodes.append(helper.make_node("Conv", [source, other], ["f"]))
    nodes.append(helper.make_node("Conv", ["f", "v"], ["y"]))
    constants = {"s": np.float32(scale), "z": np.uint8(3), "w": random(1, 4, 3, 3, 3)}
    constants |= {"i": np.zeros((4, 3, 3, 3), np.int8), "v": random(1, 4, 4, 1, 1)}
    read = {name for each in nodes for name in each.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("requantize", [False, True])
@pytest.mark.parametrize("scale", [0.0, -0.5, np.nan, np.inf])
def test_scales_of_quantized_models_are_numbers_above_zero(scale: float, requantize: bool) -> None:
    message = rf"node 'round' \(QuantizeLinear\): scale 's' is {scale:g}; scales are numbers"
    with pytest.raises(SecateurError, match=message):
        Quantize(requantize=requantize).run(from_proto(rounded(scale)), Context({"x": IMAGES}))


def test_a_weight_of_zeros_may_have_a_scale_of_zero() -> None:
    model = from_proto(rounded(0.0, weight=True))
    result = Quantize(accuracy="fast", table=False).run(model, Context({"x": IMAGES}))
    assert result.statistics["quantized"] == {"Conv": 1}


@pytest.mark.parametrize("accuracy", ["good", "best"])
def test_a_sample_that_the_model_refuses_is_named(accuracy: str) -> None:
    """Where an input's type allows numbers that the model doesn't take, as indices of tokens."""
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["e"], "embedding"),
        helper.make_node("MatMul", ["e", "w"], ["y"]),
    ]
    constants: dict[str, Any] = {"table": random(1, 10, 4), "w": random(2, 4, 4)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tokens = np.random.default_rng(0).integers(0, 10, (20, 6))
    tokens[9, 2] = 11
    with pytest.raises(SecateurError, match=r"sample 9: .*Gather.*'embedding'.*idx=11"):
        Quantize(accuracy=accuracy).run(from_proto(model), Context({"tokens": tokens}))


def test_what_overflows_is_named_and_nothing_else_is_said() -> None:
    context = Context({"x": IMAGES * np.float32(1e37)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SecateurError, match=r"of node 'f' \(Relu\) becomes infinite"):
            Quantize().run(network(), context)
