"""What can go around each operator, as text; `python -m tests.ir.axes.golden_groups` writes it.

The models are those of `test_operators.py`, which prove that what goes together may go: each of
ONNX's cases between layers that make all of its axes prunable. This keeps what was found: nothing
that could be pruned is locked from one day to the next without being seen.

A paragraph of `tests/golden/axes/groups.txt` is a case: its name with the operator's
multiply-accumulates, and a line for each group, with the axes of parameters that are tied and their
size, and the reason where it is locked. Of cases of an operator that look alike the first stands
there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from secateur.ir.cost import count
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.passes.prune.inspection import GroupReport, inspect_groups

from ...paragraphs import read_paragraphs
from .test_operators import CASES, OPERATORS, wrap

PATH = Path(__file__).parents[2] / "golden" / "axes" / "groups.txt"
INTERFACE = ("graph input", "graph output")
"""Locks of the axes that the layers around a case have outside."""


def described(name: str) -> list[str]:
    """A line for each group of a case that isn't just the interface of its layers."""
    proto, _ = wrap(CASES[name], np.random.default_rng(0))
    model = from_proto(proto)
    infer_shapes(model)
    operators = {node.op_type for node in CASES[name].model.graph.node} - {"Einsum"}
    macs = sum(n.macs for n in count(model).per_node if n.op_type in operators)
    groups = inspect_groups(model)
    lines = sorted(line(g) for g in groups if g.lock is None or g.lock.op_type not in INTERFACE)
    return [f"macs {macs}", *lines] if macs else lines


def line(group: GroupReport) -> str:
    tied = " ".join(sorted(f"{axis.name}.{axis.axis}" for axis in group.parameters))
    text = f"{group.size}/{group.together} {tied}"
    return text if group.lock is None else f"{text} [{group.lock.op_type}: {group.lock.reason}]"


def read() -> dict[str, list[str]]:
    """What stands in the file, by case."""
    return read_paragraphs(PATH)


def main() -> None:
    paragraphs = []
    for names in OPERATORS.values():
        seen = set()
        for name in names:
            text = "\n".join(described(name))
            if text and text not in seen and not name.endswith("_expanded"):
                seen.add(text)
                paragraphs.append(f"{name}\n{text}\n")
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text("\n".join(paragraphs), encoding="utf-8")


if __name__ == "__main__":
    main()
