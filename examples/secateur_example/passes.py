"""A pass that gives names to nodes that have none."""

import dataclasses

from secateur.passes.base import Pass, PassResult


@dataclasses.dataclass(frozen=True)
class NameNodes(Pass):
    """Name nodes without a name after their operator and their place."""

    prefix: str = "node"

    def run(self, model, context=None):
        nameless = [node for node in model.all_nodes() if not node.name]
        for index, node in enumerate(nameless):
            node.name = f"{self.prefix}_{node.op_type}_{index}"
        return PassResult(bool(nameless), {"named": len(nameless)})
