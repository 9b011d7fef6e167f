"""Inputs with default values become constants."""

from __future__ import annotations

import dataclasses

from ...ir.graph import Value
from ...ir.model import Model
from ..base import Context, Pass, PassResult
from ..initializers import SEPARATE_SINCE


@dataclasses.dataclass(frozen=True)
class FreezeDefaults(Pass):
    """Make constants of inputs that have a default value: callers can't replace it any more.

    Many exporters list every weight among the inputs. From IR version 4 on that lets a
    caller override each of them, so that no pass may change or fold it.
    """

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        frozen = inputs_with_defaults(model)
        for value in frozen:
            value.is_input = False
        graph = model.graph
        graph.inputs[:] = [v for v in graph.inputs if v.const is None]
        if frozen:
            model.extra.ir_version = max(model.extra.ir_version, SEPARATE_SINCE)
        return PassResult(bool(frozen), {"frozen": len(frozen)})


def inputs_with_defaults(model: Model) -> list[Value]:
    """Inputs of the main graph whose default value callers may override."""
    return [v for v in model.graph.inputs if v.const is not None and model.constant(v) is None]
