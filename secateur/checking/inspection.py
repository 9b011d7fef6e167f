"""What a file's model is made of, what it costs, and which channels can go together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..backends.tvm.artifact.description import describe_artifact
from ..data.fixed_inputs import FixedInputs
from ..passes.batch import inspect_batch
from ..passes.prune import inspect_groups
from .measure import cost_of, describe_model, file_bytes
from .running import open_model


def inspect_artifact(path: Path) -> dict[str, Any] | None:
    """What a compiled artifact says of itself, for any machine; None for other files.

    Raises SecateurError for damaged ones, and for C libraries, which say it in NAME.json.
    """
    return describe_artifact(path)


def inspect_file(path: Path, fixed: FixedInputs | None = None) -> dict[str, Any]:
    """Everything that `secateur inspect --json` shows."""
    model = open_model(path, fixed)
    cost = cost_of(model)
    nodes = Counter(node.op_type for node in model.all_nodes())
    macs: Counter[str] = Counter()
    for node in cost.per_node:
        macs[node.op_type] += node.macs
    return {
        **describe_model(model),
        "batch": inspect_batch(model).as_dict(),
        "nodes": cost.nodes,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "uncounted": cost.uncounted,
        "weight_bytes": cost.weight_bytes,
        "file_bytes": file_bytes(model),
        "operators": [
            {"type": name, "nodes": number, "macs": macs[name]}
            for name, number in nodes.most_common()
        ],
        "groups": [group.as_dict() for group in inspect_groups(model)],
    }
