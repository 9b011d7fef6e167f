"""Statistics that a model keeps of its training, in BatchNormalization, and those of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..ir.graph import Node, Value, normalize_domain
from ..ir.model import Model
from ..ir.partition import extract
from ..ir.reference import Session
from ..ir.tensor import Array


def normalizations(model: Model) -> list[Node]:
    """Nodes that hold the statistics of what they read in training, the first first."""
    return [
        node
        for node in model.graph.nodes
        if node.op_type == "BatchNormalization"
        and normalize_domain(node.domain) == ""
        and all(model.constant(node.input(position)) is not None for position in (3, 4))
        and node.inputs[0] is not None
        and node.inputs[0].producer is not None
    ]


def session_up_to(model: Model, values: Iterable[Value | None]) -> Session:
    """A session of the beginning of a model, whose outputs are these values.

    Raises SecateurError where that can't run.
    """
    wanted = list(dict.fromkeys(value for value in values if value is not None))
    graph = model.graph.nodes
    position = max(graph.index(v.producer) for v in wanted if v.producer is not None)
    return Session(extract(model, graph[: position + 1], wanted)[0], threads=0)


def distances(
    session: Session, model: Model, nodes: Sequence[Node], feeds: Iterable[Mapping[str, Array]]
) -> list[Array]:
    """How far statistics on some runs are from those that each node keeps.

    For each node and channel the square of the mean's distance and of the deviation's, in
    units of the deviation that is kept.
    """
    names = set(session.input_names)
    runs = [session.run({k: v for k, v in feed.items() if k in names}) for feed in feeds]
    found = []
    for node in nodes:
        value = node.inputs[0]
        mean, variance = (model.constant(node.input(position)) for position in (3, 4))
        assert value is not None
        assert mean is not None
        assert variance is not None
        seen = np.concatenate([run[value.name] for run in runs]).astype(np.float64)
        axes = (0, *range(2, seen.ndim))
        deviation = np.sqrt(np.asarray(variance.numpy(), np.float64) + 1e-12)
        centre = (seen.mean(axes) - mean.numpy()) / deviation
        found.append(np.square(centre) + np.square(seen.std(axes) / deviation - 1))
    return found
