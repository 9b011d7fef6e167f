"""What a bench program runs a library on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.reference import Session
from ..ir.tensor import Array

if TYPE_CHECKING:
    from ..backends.tvm.artifact.bench import BenchData


def bench_data(model: Model, feeds: Sequence[Mapping[str, Array]]) -> BenchData:
    """What a program measures a library of `model` with: the first of `feeds`, and what ONNX
    Runtime makes of it. A quantized model may take another step here and there.

    Raises SecateurError where there are no inputs.
    """
    from ..backends.tvm.artifact.bench import BenchData  # imports TVM

    if not feeds:
        raise SecateurError("there are no inputs to measure with (--input-shape fixes sizes)")
    quantized = any("QuantizeLinear" in node.op_type for node in model.all_nodes())
    tolerance = 0.05 if quantized else 1e-4
    return BenchData(feeds[0], Session(model).run(feeds[0]), tolerance)
