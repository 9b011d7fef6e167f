"""Definitions of operators by standard ones: ONNX Runtime's own, quantized, classical models'."""

from . import (  # noqa: F401  # each registers its definitions
    activations,
    attention,
    classical,
    einsum,
    movement,
    normalizations,
    quantized,
    recurrent,
    text,
    trees,
)
from .body import DEFINITIONS, Declined, NotReady, define

__all__ = ["DEFINITIONS", "Declined", "NotReady", "define"]
