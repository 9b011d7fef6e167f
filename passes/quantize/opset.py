"""Raises a model's operator set to the first version that can express what it is to hold."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.errors import SecateurError, UnsupportedError
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import Array
from ..compare import deviation
from ..opset import ConvertOpset

QDQ_OPSET = 13
"""DequantizeLinear has `axis` from opset 13 on."""

_TOLERANCE = 1e-4


def raise_opset(model: Model, feeds: Mapping[str, Array] | None, wanted: int = QDQ_OPSET) -> bool:
    """Convert an older model in place, if need be, and check it on one run's inputs, if there are.

    Raises UnsupportedError where it can't be converted or would compute something else.
    """
    if "" not in model.opsets or model.opset >= wanted:
        return False
    before = {} if feeds is None else Session(model, optimize=False, trial=True).run(feeds)
    converted = model.clone()
    try:
        ConvertOpset(wanted).run(converted)
        after = {} if feeds is None else Session(converted, optimize=False, trial=True).run(feeds)
    except SecateurError as error:
        raise UnsupportedError(f"{_failure(model, wanted)}: {error}") from None
    for name, expected in before.items():
        if deviation(expected, after[name]) > _TOLERANCE:
            raise UnsupportedError(f"{_failure(model, wanted)}: output '{name}' would change")
    model.graph, model.extra = converted.graph, converted.extra
    model.functions = converted.functions
    return True


def _failure(model: Model, wanted: int) -> str:
    return (
        f"quantization needs opset {wanted} and the model, of opset {model.opset}, "
        "can't be converted (export it anew)"
    )
