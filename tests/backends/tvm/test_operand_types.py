"""Operands of unknown or impossible types are refused, whatever takes a node apart."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.graph.expand import EXPANDED
from secateur.backends.tvm.graph.prepare import prepare
from tests import odd_types

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

TAKEN_APART = {
    "ConcatFromSequence",
    "If",
    "Loop",
    "Scan",
    "SequenceAt",
    "SplitToSequence",
} | EXPANDED


def test_operators_that_are_taken_apart() -> None:
    cases = [
        (name, proto)
        for name, proto in odd_types.models()
        if any(node.op_type in TAKEN_APART for node in proto.graph.node)
    ]
    assert len(cases) > 300
    found = odd_types.failures(cases[::3], prepare)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_every_operator() -> None:
    found = odd_types.failures(list(odd_types.models()), prepare)
    assert not found, "\n".join(found)
