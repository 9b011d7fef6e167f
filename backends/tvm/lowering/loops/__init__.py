"""Every ONNX operator without a tuned kernel: plain loops with the standard's semantics.

`RULES` maps operators to rules, by `key`. Each emits a `LoopsOp`, or
raises UnsupportedError where the node's form has no static meaning.
"""

from types import ModuleType

from .....ir.plugins import plugins
from . import (  # noqa: F401  # each registers its rules
    convolution,
    elementwise,
    generators,
    indexing,
    linear_algebra,
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
    suppression,
    trees,
    unique,
)
from .base import RULES, key

plugins("lowerings", ModuleType)

__all__ = ["RULES", "key"]
