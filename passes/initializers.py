"""Initializers that stand for themselves, not for defaults of graph inputs."""

from __future__ import annotations

from ..ir.model import Model

SEPARATE_SINCE = 4
"""IR version from which initializers need not be graph inputs."""


def separate_initializers(model: Model) -> bool:
    """Raise a model of IR version 3 to 4, where its initializers are inputs no more.

    Before version 4 every initializer had to be listed among the graph inputs too, so
    that no constant could be added without adding an input. Models of later versions
    stay as they are: there a listed initializer is a default that callers may override.
    """
    if model.extra.ir_version >= SEPARATE_SINCE:
        return False
    graph = model.graph
    for value in graph.inputs:
        value.is_input = value.const is None
    graph.inputs = [value for value in graph.inputs if value.is_input]
    model.extra.ir_version = SEPARATE_SINCE
    return True
