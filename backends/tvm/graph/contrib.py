"""Operators of ONNX Runtime's own domain, defined by standard ones.

`DEFINITIONS` is the whole list: what isn't in it is refused, and left to ONNX Runtime with
fallback. Semantics are those of its ContribOperators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, helper, numpy_helper

from ....ir.display import printable
from ....ir.errors import UnsupportedError
from ....ir.graph import Node

DOMAIN = "com.microsoft"


class Body:
    """The nodes of one node's definition. Inputs that it lacks are None."""

    def __init__(self, node: Node, opset: int) -> None:
        self.node, self.opset = node, opset
        self.nodes: list[NodeProto] = []
        self.inputs = [f"in{i}" if v is not None else None for i, v in enumerate(node.inputs)]

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its result."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def number(self, value: float) -> str:
        """A number of the first input's type."""
        first = self.node.input(0)
        dtype = helper.tensor_dtype_to_np_dtype(first.dtype if first is not None else 1)
        tensor = numpy_helper.from_array(np.asarray(value, dtype))
        return self("Constant", value=tensor)

    def integers(self, *values: int) -> str:
        return self("Constant", value=numpy_helper.from_array(np.asarray(values, np.int64)))

    def given(self, index: int) -> str | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, index: int) -> str:
        found = self.given(index)
        if found is None:
            self.fail(f"input {index} is missing")
        return found

    def wants(self, index: int) -> bool:
        found = self.node.output(index)
        return found is not None and bool(found.uses or found.is_graph_output)

    def fail(self, reason: str) -> NoReturn:
        raise UnsupportedError(f"node '{self.node.label}' ({self.node.op_type}): {reason}")


def define(node: Node, opset: int) -> FunctionProto:
    """A node's definition. Raises UnsupportedError where its form has none."""
    body = Body(node, opset)
    results = DEFINITIONS[node.op_type](body)
    names = [f"out{i}" for i in range(len(node.outputs))]
    for index, name in enumerate(names):
        if index < len(results):
            body.nodes.append(helper.make_node("Identity", [results[index]], [name]))
        elif body.wants(index):
            body.fail(f"output {index} isn't supported")
    return helper.make_function(
        "",
        node.op_type,
        [name or f"in{i}" for i, name in enumerate(body.inputs)],
        names,
        body.nodes,
        [onnx.helper.make_opsetid("", opset)],
    )


def _erf_gelu(b: Body, x: str) -> str:
    inner = b("Erf", b("Div", x, b.number(math.sqrt(2))))
    return b("Mul", b("Mul", x, b("Add", inner, b.number(1))), b.number(0.5))


def _gelu(b: Body) -> list[str]:
    return [_erf_gelu(b, b.required(0))]


def _bias_gelu(b: Body) -> list[str]:
    return [_erf_gelu(b, b("Add", b.required(0), b.required(1)))]


def _fast_gelu(b: Body) -> list[str]:
    x, bias = b.required(0), b.given(1)
    x = x if bias is None else b("Add", x, bias)
    cube = b("Mul", b("Mul", b("Mul", x, x), x), b.number(0.044715))
    inner = b("Tanh", b("Mul", b("Add", x, cube), b.number(math.sqrt(2 / math.pi))))
    return [b("Mul", b("Mul", x, b("Add", inner, b.number(1))), b.number(0.5))]


def _quick_gelu(b: Body) -> list[str]:
    x = b.required(0)
    scaled = b("Mul", x, b.number(float(b.node.get("alpha", 1.702))))
    return [b("Mul", x, b("Sigmoid", scaled))]


def _fused_matmul(b: Body) -> list[str]:
    if int(b.node.get("transBatchA", 0)) or int(b.node.get("transBatchB", 0)):
        b.fail("transposed batches aren't supported")
    operands = []
    for index, name in enumerate(("transA", "transB")):
        operand, value = b.required(index), b.node.input(index)
        if int(b.node.get(name, 0)):
            if value is None or value.shape is None:
                b.fail(f"the rank of input {index} isn't known")
            rank = len(value.shape)
            if rank > 1:
                operand = b("Transpose", operand, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(operand)
    product = b("MatMul", *operands)
    alpha = float(b.node.get("alpha", 1.0))
    return [product if alpha == 1.0 else b("Mul", product, b.number(alpha))]


_ACTIVATIONS: dict[str, dict[str, float]] = {
    "": {},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "Relu": {},
    "Sigmoid": {},
    "Tanh": {},
}
"""Activations that a fused operator may end in, with the default values of their parameters."""


def _activated(b: Body, x: str, given: Sequence[float | None]) -> str:
    """What the activation that the node names makes of a value; `given` are its parameters."""
    name = str(b.node.get("activation", ""))
    if name == "Clip" and len(given) == 2 and None not in given:
        return b("Clip", x, *(b.number(float(bound or 0)) for bound in given))
    if name not in _ACTIVATIONS:
        b.fail(f"activation '{printable(name)}' isn't supported")
    parameters = dict(_ACTIVATIONS[name])
    for key, value in zip(parameters, given, strict=False):
        if value is not None:
            parameters[key] = float(value)
    return b(name, x, **parameters) if name else x


def _attributes(b: Body, *names: str) -> dict[str, Any]:
    """Those attributes that the node has, to be handed on."""
    return {name: b.node.get(name) for name in names if name in b.node.attributes}


def _fused_conv(b: Body) -> list[str]:
    """The sum of a convolution and of an optional fourth operand, then the activation."""
    windows = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    result = b("Conv", b.required(0), b.required(1), b.given(2) or "", **_attributes(b, *windows))
    beside = b.given(3)
    result = result if beside is None else b("Add", result, beside)
    return [_activated(b, result, list(b.node.get("activation_params", ())))]


def _fused_gemm(b: Body) -> list[str]:
    products = _attributes(b, "alpha", "beta", "transA", "transB")
    result = b("Gemm", b.required(0), b.required(1), b.given(2) or "", **products)
    return [_activated(b, result, [b.node.get(f"activation_{x}") for x in ("alpha", "beta")])]


def _skip_sum(b: Body, bias: int) -> str:
    total = b("Add", b.required(0), b.required(1))
    given = b.given(bias)
    return total if given is None else b("Add", total, given)


def _mean(b: Body, x: str) -> str:
    if b.opset >= 18:
        return b("ReduceMean", x, b.integers(-1), keepdims=1)
    return b("ReduceMean", x, axes=[-1], keepdims=1)


def _normalized(b: Body, x: str, epsilon: float) -> str:
    """x divided by the root of the mean of its squares."""
    square = b("Add", _mean(b, b("Mul", x, x)), b.number(epsilon))
    return b("Div", x, b("Sqrt", square))


def _skip_results(b: Body, total: str, result: str) -> list[str]:
    """Statistics, outputs 1 and 2, are of training alone."""
    if b.wants(1) or b.wants(2):
        b.fail("its statistics aren't supported")
    return [result, total, total, total]


def _skip_layer_normalization(b: Body) -> list[str]:
    total, beta = _skip_sum(b, 4), b.given(3)
    centered = b("Sub", total, _mean(b, total))
    result = b("Mul", _normalized(b, centered, float(b.node.get("epsilon", 1e-12))), b.required(2))
    return _skip_results(b, total, result if beta is None else b("Add", result, beta))


def _skip_simplified(b: Body) -> list[str]:
    total = _skip_sum(b, 3)
    scaled = _normalized(b, total, float(b.node.get("epsilon", 1e-12)))
    return _skip_results(b, total, b("Mul", scaled, b.required(2)))


DEFINITIONS: dict[str, Callable[[Body], list[str]]] = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": _skip_simplified,
}
