"""Work grows with what a model is made of, and no faster."""

from __future__ import annotations

import cProfile
import pstats

import pytest

from benchmarks.pruning_scale import NETWORKS
from secateur.ir.onnx_io import from_proto
from secateur.passes.prune import PruneChannels


def calls(kind, size):
    """Functions called while a network is pruned: time, without the machine's noise."""
    model = from_proto(NETWORKS[kind](size))
    profile = cProfile.Profile()
    profile.runcall(PruneChannels(macs=0.7).run, model)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "size", "most"), [("residual", 80, 5), ("flat", 200, 5), ("nested", 20, 9)]
)
def test_pruning_takes_time_in_proportion(kind, size, most):
    """Four times the layers; of nested concatenations the weights alone grow to 16 times."""
    assert calls(kind, 4 * size) < most * calls(kind, size)
