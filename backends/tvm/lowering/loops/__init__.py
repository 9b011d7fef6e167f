"""Every ONNX operator without a tuned kernel: plain loops with the standard's semantics.

`RULES` maps operator types of the standard domain to rules. Each emits a `LoopsOp`, or
raises UnsupportedError where the node's form has no static meaning.
"""

from . import (  # noqa: F401  # each registers its rules
    convolution,
    elementwise,
    generators,
    indexing,
    matmul,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    roi,
    selection,
    signal,
    sorting,
)
from .base import RULES

__all__ = ["RULES"]
