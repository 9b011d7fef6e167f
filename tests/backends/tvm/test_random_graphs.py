"""Random graphs over all lowered operators equal ONNX Runtime, and hardly any is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from numpy.random import default_rng

pytest.importorskip("tvm")

from secateur.backends.tvm.graph.expand import EXPANDED
from secateur.backends.tvm.lowering.loops import RULES as LOOPS
from secateur.backends.tvm.lowering.lower import RULES

from .random_builder import Builder
from .random_graphs import GROUP, OPSETS, Findings, available, check, grow, settings
from .random_nodes import ENTRIES, LEFT_OUT


def test_every_lowered_operator_is_drawn() -> None:
    """An operator has an entry, or a reason why it has none."""
    lowered = {name for name in {*RULES, *LOOPS, *EXPANDED} if "::" not in name}
    assert lowered - ENTRIES.keys() == LEFT_OUT.keys()
    assert ENTRIES.keys() <= lowered


def test_every_entry_makes_nodes() -> None:
    """No entry is one that only looks as if it drew something."""
    for op in sorted(ENTRIES):
        opset = next(o for o in sorted(OPSETS) if op in available(o))
        for attempt in range(12):
            builder = Builder(default_rng(attempt), opset, batch=False)
            if grow(builder, op):
                assert op in {node.op_type for node in builder.nodes}
                break
        else:
            pytest.fail(f"nothing drawn for {op}")


def check_findings(findings: Findings, count: int) -> None:
    assert not findings.wrong, "\n".join(f"seed {s}: {t}" for s, t in findings.wrong.items())
    assert len(findings.refused) <= 0.05 * count, findings.refused
    assert findings.equal + len(findings.refused) == count


def test_random_graphs(tmp_path: Path) -> None:
    """Of a few operator sets, some of them with a batch."""
    seeds = [k * GROUP + n for k in (1, 3, 12) for n in range(8)]
    assert {settings(seed)[1] for seed in seeds} == {False, True}
    check_findings(check(seeds, tmp_path), len(seeds))


@pytest.mark.slow
def test_many_random_graphs(tmp_path: Path) -> None:
    findings = Findings()
    for start in range(2000, 2064, GROUP):
        findings.add(check(range(start, start + GROUP), tmp_path / str(start)))
    check_findings(findings, 64)
