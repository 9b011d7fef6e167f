"""Random networks, pruned at random, compute what their masked originals do.

Every value of the pruned network is compared, in its predicted size; the pruned model
passes ONNX's checker with full shape inference.
"""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from secateur.ir.onnx_io import from_proto, to_proto

from .graphs import network, networks
from .oracle import assert_equals_masked, check_seeds, prune_at_random

CHUNK = 100
"""Networks of one test."""


def check(proto, feeds, seed):
    """Whether anything was pruned."""
    share = (None, None, 0.5, 1.0)[seed % 4]
    result = prune_at_random(from_proto(proto), np.random.default_rng(seed), share)
    assert_equals_masked(result, feeds)
    onnx.checker.check_model(to_proto(result.pruned), full_check=True)
    return bool(result.selection)


def check_chunk(chunk):
    seeds = range(chunk * CHUNK, (chunk + 1) * CHUNK)
    pruned = check_seeds("network", lambda seed: check(*network(seed), seed), seeds)
    assert pruned > CHUNK / 2


@pytest.mark.parametrize("chunk", range(1))
def test_pruned_networks_equal_masked_ones(chunk):
    check_chunk(chunk)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(1, 48))
def test_many_pruned_networks_equal_masked_ones(chunk):
    check_chunk(chunk)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_small_pruned_networks_equal_masked_ones(case):
    """The same through hypothesis, which shrinks what fails."""
    check(*case)
