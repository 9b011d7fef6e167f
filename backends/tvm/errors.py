"""Errors that name the nodes of a model that can't be compiled."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.errors import UnsupportedError
from ...ir.graph import Node


class UnprovenError(UnsupportedError):
    """A kernel that isn't proven to stay within its buffers; `label` is its node's."""

    def __init__(self, label: str, message: str) -> None:
        self.label = label
        super().__init__(message)


class UnsupportedNodesError(UnsupportedError):
    """Nodes that can't be lowered.

    `reasons` are those of nodes that fail by themselves, `dependents` the nodes whose
    operands' shapes or types are unknown because of these or of graph inputs, whose
    reasons are `inputs`.
    """

    def __init__(
        self, reasons: Mapping[Node, str], dependents: list[Node], inputs: list[str]
    ) -> None:
        self.reasons = reasons
        self.dependents = dependents
        self.inputs = inputs
        texts = list(dict.fromkeys([*inputs, *reasons.values()]))
        super().__init__(
            texts[0] if len(texts) == 1 else f"{len(texts)} problems: " + "; ".join(texts)
        )

    def all_reasons(self) -> dict[Node, str]:
        """All nodes that can't be lowered, each with a reason."""
        unknown = "what it reads is known only at run time, or of a type that kernels lack"
        later = {n: f"node '{n.label}' ({n.op_type}): {unknown}" for n in self.dependents}
        return {**self.reasons, **later}
