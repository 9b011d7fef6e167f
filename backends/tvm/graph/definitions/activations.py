"""Activations, and products and convolutions that end in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .....ir.display import printable
from .body import Body, definition


def _erf_gelu(b: Body, x: str) -> str:
    inner = b("Erf", b("Div", x, b.number(math.sqrt(2))))
    return b("Mul", b("Mul", x, b("Add", inner, b.number(1))), b.number(0.5))


@definition("Gelu")
def _gelu(b: Body) -> list[str]:
    return [_erf_gelu(b, b.required(0))]


@definition("BiasGelu")
def _bias_gelu(b: Body) -> list[str]:
    return [_erf_gelu(b, b("Add", b.required(0), b.required(1)))]


@definition("FastGelu")
def _fast_gelu(b: Body) -> list[str]:
    x, bias = b.required(0), b.given(1)
    x = x if bias is None else b("Add", x, bias)
    cube = b("Mul", b("Mul", b("Mul", x, x), x), b.number(0.044715))
    inner = b("Tanh", b("Mul", b("Add", x, cube), b.number(math.sqrt(2 / math.pi))))
    return [b("Mul", b("Mul", x, b("Add", inner, b.number(1))), b.number(0.5))]


@definition("QuickGelu")
def _quick_gelu(b: Body) -> list[str]:
    x = b.required(0)
    scaled = b("Mul", x, b.number(float(b.node.get("alpha", 1.702))))
    return [b("Mul", x, b("Sigmoid", scaled))]


@definition("FusedMatMul", "TransposeMatMul")
def _fused_matmul(b: Body) -> list[str]:
    if int(b.node.get("transBatchA", 0)) or int(b.node.get("transBatchB", 0)):
        b.fail("transposed batches aren't supported")
    operands = []
    for index, name in enumerate(("transA", "transB")):
        operand = b.required(index)
        if int(b.node.get(name, 0)):
            rank = b.rank(index)
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


@definition("FusedConv")
def _fused_conv(b: Body) -> list[str]:
    """The sum of a convolution and of an optional fourth operand, then the activation."""
    windows = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    result = b("Conv", b.required(0), b.required(1), b.given(2), **b.attributes(*windows))
    beside = b.given(3)
    result = result if beside is None else b("Add", result, beside)
    return [_activated(b, result, list(b.node.get("activation_params", ())))]


@definition("FusedGemm")
def _fused_gemm(b: Body) -> list[str]:
    products = b.attributes("alpha", "beta", "transA", "transB")
    result = b("Gemm", b.required(0), b.required(1), b.given(2), **products)
    return [_activated(b, result, [b.node.get(f"activation_{x}") for x in ("alpha", "beta")])]
