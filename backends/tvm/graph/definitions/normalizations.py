"""Normalizations of a sum, as of a residual stream and what is added to it, or of embeddings."""

from __future__ import annotations

import numpy as np

from .body import Body, definition


def _skip_sum(b: Body, bias: int) -> str:
    total = b("Add", b.required(0), b.required(1))
    given = b.given(bias)
    return total if given is None else b("Add", total, given)


def _normalized(b: Body, x: str, epsilon: float) -> str:
    """x divided by the root of the mean of its squares."""
    square = b("Add", b.reduced("ReduceMean", b("Mul", x, x), -1), b.number(epsilon))
    return b("Div", x, b("Sqrt", square))


def _skip_results(b: Body, total: str, result: str) -> list[str]:
    """Statistics, outputs 1 and 2, are of training alone."""
    if b.wants(1) or b.wants(2):
        b.fail("its statistics aren't supported")
    return [result, total, total, total]


@definition("SkipLayerNormalization")
def _skip_layer_normalization(b: Body) -> list[str]:
    total, beta = _skip_sum(b, 4), b.given(3)
    centered = b("Sub", total, b.reduced("ReduceMean", total, -1))
    result = b("Mul", _normalized(b, centered, float(b.node.get("epsilon", 1e-12))), b.required(2))
    return _skip_results(b, total, result if beta is None else b("Add", result, beta))


@definition("SkipSimplifiedLayerNormalization")
def _skip_simplified(b: Body) -> list[str]:
    total = _skip_sum(b, 3)
    scaled = _normalized(b, total, float(b.node.get("epsilon", 1e-12)))
    return _skip_results(b, total, b("Mul", scaled, b.required(2)))


@definition("EmbedLayerNormalization")
def _embed_layer_normalization(b: Body) -> list[str | None]:
    """Word, position and segment embeddings, summed and normalized; how many of a mask count."""
    ids, words = b.required(0), b.required(2)
    total = b("Gather", words, ids, axis=0)
    if b.given(8) is not None:
        total = b("Add", total, b("Gather", b.required(3), b.required(8), axis=0))
    else:
        steps = b.size(0, 1)
        total = b("Add", total, b.sliced(b.required(3), 0, 0, steps))
    if b.given(1) is not None:
        total = b("Add", total, b("Gather", b.required(4), b.required(1), axis=0))
    epsilon = b.value(b.attribute("epsilon", 1e-12), b.dtype(2))
    centered = b("Sub", total, b.reduced("ReduceMean", total, -1))
    square = b("Add", b.reduced("ReduceMean", b("Mul", centered, centered), -1), epsilon)
    scaled = b("Mul", b("Div", centered, b("Sqrt", square)), b.required(5))
    count: str | None = None
    if b.wants(1) and int(b.attribute("mask_index_type", 1)) != 0:
        mask = b.given(7)
        if mask is not None:
            count = b.cast(b.reduced("ReduceSum", mask, 1, keepdims=0), np.int32)
        else:
            count = b.cast(b.reduced("ReduceSum", b("Mul", ids, b.number(0)), 1, keepdims=0), "i4")
    return [b("Add", scaled, b.required(6)), count, total]
