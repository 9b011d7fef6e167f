"""What was decided for a float model, kept beside it, so that it can be done again in part."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from ...ir.graph import Node, Value
from ...ir.model import Model
from .bodies import graphs
from .overrides import Override
from .parameters import QuantParams
from .place import Placement
from .rules import Operands, Role


@dataclasses.dataclass
class Decision:
    """A float model, what of it becomes integer, and the parameters of every source value.

    `places` leads from the places of its nodes, those of bodies too, to those of the same nodes in
    the quantized model.
    """

    model: Model
    placement: Placement
    params: dict[Value, QuantParams]
    overrides: dict[Node, Override] = dataclasses.field(default_factory=dict)
    places: dict[int, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Model,
        placement: Placement,
        params: Mapping[Value, QuantParams],
        overrides: Mapping[Node, Override],
    ) -> Decision:
        """On a copy of the model, which may then be rewritten."""
        return cls(model, placement, dict(params), dict(overrides))._on(model.clone())

    def follow(self, quantized: Model, placement: Placement) -> None:
        """Note where nodes of `placement`, which is of the quantized model, came to lie."""
        places = {node: place for place, node in enumerate(quantized.graph.all_nodes())}
        twins = zip(self.placement.nodes, placement.nodes, strict=True)
        own = {node: place for place, node in enumerate(self.nodes)}
        self.places = {own[node]: places[twin] for node, twin in twins}

    @property
    def nodes(self) -> list[Node]:
        """What places count: nodes, and after each those of its bodies."""
        return list(self.model.graph.all_nodes())

    def units(self) -> list[int]:
        """Places of the nodes that compute with rounded numbers, and don't only move them."""
        return [
            place
            for place, node in enumerate(self.nodes)
            if node in self.placement.nodes and is_unit(self.placement.nodes[node])
        ]

    def part(self, places: Collection[int]) -> Decision:
        """On a copy of the model, only some of the nodes integer."""
        copy = self._on(self.model.clone())
        own = copy.nodes
        nodes = {own[place] for place in places}
        old = copy.placement
        read = {node.input(p) for node in nodes for p in old.nodes[node].activations}

        def reads(node: Node, value: Value) -> bool:
            return any(node.input(p) is value for p in old.nodes[node].activations)

        made = {value for node in nodes for value in node.outputs}
        absorbed = {value: clip for value, clip in old.absorbed.items() if value in made}
        made |= {clip.outputs[0] for clip in absorbed.values()}
        copy.placement = Placement(
            {node: operands for node, operands in old.nodes.items() if node in nodes},
            absorbed,
            [value for value in old.values if value in read or value in made],
            old.sources,
            {},
            [(g, v) for g, v in old.captured if any(n.graph is g and reads(n, v) for n in nodes)],
        )
        return copy

    def _on(self, model: Model) -> Decision:
        """The same of a copy of the model."""
        nodes = dict(zip(self.nodes, model.graph.all_nodes(), strict=True))
        inside = dict(zip(graphs(self.model), graphs(model), strict=True))
        values = {value.name: value for graph in inside.values() for value in graph.values()}

        def value(old: Value) -> Value:
            return values[old.name]

        old = self.placement
        placement = Placement(
            {nodes[node]: operands for node, operands in old.nodes.items()},
            {value(v): nodes[node] for v, node in old.absorbed.items()},
            [value(v) for v in old.values],
            {value(v): value(source) for v, source in old.sources.items()},
            {nodes[node]: why for node, why in old.reasons.items()},
            [(inside[graph], value(v)) for graph, v in old.captured],
        )
        params = {value(v): params for v, params in self.params.items()}
        overrides = {nodes[n]: override for n, override in self.overrides.items() if n in nodes}
        return Decision(model, placement, params, overrides, dict(self.places))


def is_unit(operands: Operands) -> bool:
    """Whether rounding at a node costs something of its own."""
    return not operands.shares_parameters and operands.role is not Role.CLIPPING


def clip_of(placement: Placement, node: Node) -> Node | None:
    """The absorbed clip that a node's result saturates like."""
    result = node.output(0)
    if result is None:
        return None
    behind = placement.absorbed.get(result)
    if behind is not None:
        return behind
    source = placement.sources.get(result)
    clips = {clip.outputs[0]: clip for clip in placement.absorbed.values()}
    return clips.get(source) if source is not None else None
