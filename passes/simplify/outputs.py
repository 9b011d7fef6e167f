"""A model that ends earlier: at values that the user names."""

from __future__ import annotations

import dataclasses
import difflib

from ...ir.errors import SecateurError
from ...ir.graph import Value
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ..base import Context, Pass, PassResult
from .dead import RemoveDeadNodes


@dataclasses.dataclass(frozen=True)
class CutOutputs(Pass):
    """Make the model's outputs those values of the main graph that are named, in that order.

    The name of a node stands for its outputs. Nodes and inputs that nothing needs any more go.
    Raises SecateurError where there is no such value, or its type is not known.
    """

    outputs: tuple[str, ...]

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        if not self.outputs:
            return PassResult(False)
        infer_shapes(model)
        graph = model.graph
        found = list(dict.fromkeys(v for name in self.outputs for v in _named(model, name)))
        for value in found:
            if value.type is None:
                raise SecateurError(f"output '{value.name}': its type is not known")
        before = list(graph.outputs)
        graph.replace_outputs(found)
        RemoveDeadNodes().run(model)
        for value in list(graph.inputs):
            if not value.uses and value.name not in graph.initializers:
                value.is_input = False
                graph.inputs.remove(value)
        return PassResult(before != found, {"outputs": len(found)})


def _named(model: Model, name: str) -> list[Value]:
    values = {v.name: v for node in model.graph.nodes for v in node.outputs if v is not None}
    if name in values:
        return [values[name]]
    for node in model.graph.nodes:
        if node.label == name:
            return [value for value in node.outputs if value is not None]
    near = difflib.get_close_matches(name, values, 1)
    hint = f"; the nearest is '{near[0]}'" if near else ""
    raise SecateurError(f"outputs: no node and no value that a node makes is called '{name}'{hint}")
