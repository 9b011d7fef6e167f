"""A network as data for drawings: nodes, edges, widths before and after, groups and locks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..data.inputs import model_inputs
from ..ir.graph import Node, Value, outer_reads
from ..ir.model import Model
from ..passes.prune import inspect_groups

MOST_NODES = 1500
"""Nodes that are drawn; a report of more says so and leaves the drawing out."""


def draw(model: Model, after: Model | None = None) -> dict[str, Any]:
    """Nodes of the main graph in order, each with `reads`, the indices of nodes it reads from.

    Of each node's first result the shape, and the number of channels before and, where `after` is
    given and has a value of that name, after. `groups` are those of `inspect_groups`; a node
    lists those whose channels pass it. What is computed from constants alone is left out, but
    counts among the `total`. Too large networks have their number of nodes only.
    """
    total, nodes = len(model.graph.nodes), _fed(model)
    if len(nodes) > MOST_NODES:
        return {"total": total, "nodes": [], "groups": []}
    groups = [group.as_dict() for group in inspect_groups(model)]
    passing: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        for operator in group["operators"]:
            passing.setdefault(operator, []).append(index)
    widths = {} if after is None else _widths(after)
    position = {node: index for index, node in enumerate(nodes)}
    found = []
    for node in nodes:
        value = next((v for v in node.outputs if v is not None), None)
        reads = {position[v.producer] for v in outer_reads(node) if v.producer in position}
        width = None if value is None else channels(value)
        now = None if value is None else widths.get(value.name)
        found.append(
            {
                "node": node.label,
                "op_type": node.op_type,
                "value": None if value is None else value.name,
                "shape": None if value is None or value.shape is None else list(value.shape),
                "channels": width,
                "kept": now if now != width else None,
                "reads": sorted(reads),
                "groups": passing.get(f"{node.label} ({node.op_type})", []),
            }
        )
    return {
        "total": total,
        "nodes": found,
        "groups": [
            {"name": g["name"], "size": g["size"], "lock": _lock(g["lock"])} for g in groups
        ],
    }


def _fed(model: Model) -> list[Node]:
    """The nodes whose results depend on an input; all of a model that has none."""
    fed = set(model_inputs(model))
    found = []
    for node in model.graph.nodes:
        if not fed.isdisjoint(outer_reads(node)):
            found.append(node)
            fed.update(v for v in node.outputs if v is not None)
    return found or model.graph.nodes


def channels(value: Value) -> int | None:
    """How many channels a tensor has: its second axis, or of up to two axes the last."""
    shape = value.shape
    if not shape or len(shape) < 2:
        return None
    size = shape[1] if len(shape) != 3 else shape[2]
    return size if isinstance(size, int) else None


def _widths(model: Model) -> Mapping[str, int | None]:
    return {
        value.name: channels(value)
        for node in model.graph.nodes
        for value in node.outputs
        if value is not None
    }


def _lock(lock: dict[str, Any] | None) -> str | None:
    if lock is None:
        return None
    where = f"{lock['node']} ({lock['op_type']}): " if lock["node"] else ""
    return re.sub(r"\s+", " ", f"{where}{lock['reason']}")
