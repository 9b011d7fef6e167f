"""Grouped operators behind and before everything that cuts channels elsewhere.

What is written is valid, keeps as many channels in each group, and computes what the masked
original does; where the channels that go are zero anyway, what the original itself does.
"""

import numpy as np
import pytest

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto

from .blocks import Skip, need
from .graphs import finish
from .network import Network
from .oracle import assert_equals_masked, check_seeds, prune_at_random
from .test_planted import check as check_planted

CHUNK = 40
"""Networks of one test."""


def grouped(net, x, depthwise=False):
    """A convolution, transposed or not, of any number of groups and output channels."""
    n, c, size = net.shapes[x]
    group = c if depthwise else net.choose([g for g in range(1, c + 1) if c % g == 0])
    per_group = net.choose([1, 2, 2, 3])
    out = group * per_group
    need(out <= 24)
    transposed = net.maybe()
    weight = net.weights(c, per_group, 1) if transposed else net.weights(out, c // group, 1)
    bias = [net.weights(out)] * net.maybe()
    op_type = "ConvTranspose" if transposed else "Conv"
    return net.node(op_type, [x, weight, *bias], (n, out, size), group=group)


def place(net, size):
    """Where to cut: mostly between pairs or triples."""
    step = net.choose([1, 2, 2, 3])
    return net.choose(range(step, size, step) or [1])


def halves(net, x):
    """Split, maybe swapped or with a branch in between, and joined."""
    n, c, size = net.shapes[x]
    need(c > 1)
    at = place(net, c)
    a, b = net.split(x, 1, [at, c - at])
    if net.maybe():
        b = net.node("Relu", [b], net.shapes[b])
    parts = [b, a] if net.maybe() else [a, b]
    return net.node("Concat", parts, (n, c, size), axis=1)


def rotated(net, x):
    """Channels in another order, by a Gather."""
    n, c, size = net.shapes[x]
    need(c > 1)
    at = place(net, c)
    order = net.random.permutation(c) if net.maybe(4) else np.roll(np.arange(c), at)
    return net.node("Gather", [x, net.initializer(order)], (n, c, size), axis=1)


def shuffled(net, x):
    n, c, size = net.shapes[x]
    groups = net.choose([g for g in range(1, c + 1) if c % g == 0])
    y = net.reshape(x, [[0], groups, c // groups, [2]])
    y = net.node("Transpose", [y], (n, c // groups, groups, size), perm=[0, 2, 1, 3])
    return net.reshape(y, [[0], [1, 2], [3]])


def joined(net, x):
    """With more channels of its own."""
    n, c, size = net.shapes[x]
    y = grouped(net, x)
    total = c + net.shapes[y][1]
    need(total <= 24)
    return net.node("Concat", [x, y], (n, total, size), axis=1)


def added(net, x):
    shape = net.shapes[x]
    others = [y for y, s in net.shapes.items() if s == shape and y != x]
    need(others)
    return net.node("Add", [x, net.choose(others)], shape)


def depthwise(net, x):
    return grouped(net, x, depthwise=True)


MOVES = [halves, rotated, rotated, shuffled, joined, added]


def grouped_network(seed, planted=False):
    random = np.random.default_rng(seed)

    def choose(options):
        options = list(options)
        return options[random.integers(len(options))]

    net = Network(choose, opset=17, seed=seed, planted=planted)
    x = net.input((2, 3, 4))
    width = choose([4, 4, 6, 8])
    x = net.node("Conv", [x, net.weights(width, 3, 1), net.weights(width)], (2, width, 4))
    for _ in range(choose([1, 1, 2])):
        for step in (depthwise, *(choose(MOVES) for _ in range(choose([1, 2, 3]))), grouped):
            before = net.checkpoint()
            try:
                x = step(net, x)
            except Skip:
                net.restore(before)
    return net.model(finish(net)), net.feeds


def assert_equal_groups(model):
    for node in model.graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        group, (rows, columns, _) = node.get("group", 1), node.input(1).shape
        channels = columns * group if node.op_type == "Conv" else rows
        assert node.input(0).shape[1] == channels
        assert rows % group == 0


def check(seed):
    proto, feeds = grouped_network(seed)
    share = (None, 0.5, 1.0)[seed % 3]
    result = prune_at_random(from_proto(proto), np.random.default_rng(seed), share)
    assert_equals_masked(result, feeds)
    infer_shapes(result.pruned)
    assert_equal_groups(result.pruned)
    proto, feeds = grouped_network(seed, planted=True)
    zero = check_planted(from_proto(proto), feeds, seed)
    return bool(result.selection), zero > 0


def check_chunk(chunk):
    seeds = range(chunk * CHUNK, (chunk + 1) * CHUNK)
    pruned = check_seeds("grouped_network", check, seeds)
    assert (pruned > (CHUNK / 3, CHUNK / 8)).all(), pruned


@pytest.mark.parametrize("chunk", range(1))
def test_groups_stay_equal(chunk):
    check_chunk(chunk)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(1, 4))
def test_many_groups_stay_equal(chunk):
    check_chunk(chunk)
