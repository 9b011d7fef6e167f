"""Weights too small for a normal float32 count as zero.

Training with weight decay leaves such weights, and x86 CPUs take some hundred times as long for an
instruction that meets one (Intel 64 and IA-32 Architectures Optimization Reference Manual,
"Floating-point exceptions"). A sum of products changes by less than 1.2e-38 times the magnitudes of
what the weights are multiplied by; an infinite input gives NaN then, as with weights of zero.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ....ir.graph import Value
from ....ir.model import Model
from ....ir.tensor import Array, Tensor
from .widen import is_heavy

_SMALLEST = np.finfo(np.float32).smallest_normal
_TOGETHER = 1 << 20
"""Elements that are looked at together, so that large weights need little memory beside them."""


def flush_subnormal(model: Model) -> dict[str, int]:
    """Make zero of them; how many, by the label of the first node that reads them.

    Constants that something else than products reads, too, stay as they are.
    """
    found: dict[str, int] = {}
    seen: set[Value] = set()
    for graph in model.graph.all_graphs():
        for node in graph.nodes:
            for value in node.inputs if is_heavy(node) else ():
                if value is None or value in seen or not isinstance(value.const, Tensor):
                    continue
                seen.add(value)
                if value.const.dtype != TensorProto.FLOAT or value.is_graph_output:
                    continue
                array = value.const.numpy()
                count = _count(array)
                if count and all(is_heavy(user) for user in value.users):
                    zeroed = np.where(np.abs(array) < _SMALLEST, np.float32(0), array)
                    value.const = Tensor.from_array(zeroed)
                    found[node.label] = found.get(node.label, 0) + count
    return found


def _count(array: Array) -> int:
    flat = array.reshape(-1)
    parts = (flat[start : start + _TOGETHER] for start in range(0, flat.size, _TOGETHER))
    return sum(int(((p != 0) & (np.abs(p) < _SMALLEST)).sum()) for p in parts)
