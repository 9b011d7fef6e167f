"""Removing channels that are zero anyway leaves the original function, whatever masks say.

Networks are planted with channels that are exactly zero all the way: their weights and
biases make them zero, while consumers' weights for them are not zero. Which elements of
which value are zero is seen by running the original. Dims all of whose places are zero at
an index lose that index, and the pruned network equals the original itself.
"""

from collections import defaultdict

import numpy as np
import onnx
import pytest

from secateur.ir.axes.dims import dims_of
from secateur.ir.axes.selection import Selection
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.tensor import Tensor
from secateur.models.zoo import list_models, load_tiny, random_inputs
from secateur.passes.prune.apply import apply_selection
from secateur.passes.prune.groups import find_groups
from secateur.passes.prune.masking import kept_elements

from .graphs import network
from .oracle import analyze_either, assert_close, check_seeds, noisy, run_all
from .plain import Plain
from .plain import check as check_plain

CHUNK = 40
"""Networks of one test."""


def alive_elements(model, runs):
    """For each value and axis which elements aren't zero in every run."""
    alive = {}
    for found in runs:
        for name, array in found.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
                continue
            for axis in range(array.ndim):
                others = tuple(a for a in range(array.ndim) if a != axis)
                seen = (array != 0).any(axis=others)
                known = alive.get((name, axis))
                alive[name, axis] = seen if known is None else seen | known
    return alive


def zero_indices(analysis, alive, dims):
    """Indices of each dim at which every value that depends on inputs is zero."""
    places = defaultdict(list)
    for value, axes in analysis.axes.items():
        if value in analysis.fixed:
            continue
        for position, axis in enumerate(axes or ()):
            for dim in set(dims_of(axis)) & dims:
                places[dim].append((alive.get((value.name, position)), axis))

    def is_zero(dim, index):
        selection = Selection({dim: np.delete(np.arange(dim.size), index)})
        for seen, axis in places[dim]:
            if seen is None:  # inside of a body
                return False
            keep = kept_elements(selection, axis)
            if seen[~keep.mask(len(seen))].any():
                return False
        return True

    return {d: [i for i in range(d.size) if is_zero(d, i)] for d in dims}


def planted_selection(groups, zero):
    """Take every step of each group that removes zero indices only."""
    left = {d: min(len(found), d.size - 1) for d, found in zero.items()}
    removed = dict.fromkeys(left, 0)
    for group in groups:
        steps = min(left[d] // n for d, n in group.move.items())
        for dim, n in group.move.items():
            left[dim] -= n * steps
            removed[dim] += n * steps
    return Selection({d: np.delete(np.arange(d.size), zero[d][:n]) for d, n in removed.items()})


def check(model, feeds, seed, rtol=1e-4):
    """Prune what is zero. How many indices that were."""
    rng = np.random.default_rng(seed)
    original = model.clone()
    analysis = analyze_either(model, rng)
    groups = [g for g in find_groups(analysis) if g.lock is None]
    runs = [run_all(original, x) for x in (feeds, *(noisy(feeds, rng, 0.3) for _ in range(2)))]
    alive = alive_elements(original, runs)
    zero = zero_indices(analysis, alive, {d for g in groups for d in g.dims})
    selection = planted_selection(groups, zero)
    apply_selection(analysis, selection)
    onnx.checker.check_model(to_proto(model), full_check=True)
    actual = run_all(model, feeds)
    close = [run_all(original, noisy(feeds, rng, 2e-7)) for _ in range(3)]
    for value in original.graph.outputs:
        wanted = runs[0][value.name]
        slack = max(np.abs(c[value.name] - wanted).max(initial=0.0) for c in close)
        assert_close(actual[value.name], wanted, rtol, value.name, 4 * slack)
    return sum(d.size - len(kept) for d, kept in selection.kept.items())


def check_network(seed):
    """Whether a random network has lost zero channels."""
    proto, feeds = network(seed, planted=True)
    return check(from_proto(proto), feeds, seed) > 0


def check_chunk(chunk):
    seeds = range(chunk * CHUNK, (chunk + 1) * CHUNK)
    pruned = check_seeds("network", check_network, seeds)
    assert pruned > CHUNK / 3


@pytest.mark.parametrize("chunk", range(2))
def test_networks_without_their_zero_channels_are_the_same(chunk):
    check_chunk(chunk)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(2, 5))
def test_many_networks_without_their_zero_channels_are_the_same(chunk):
    check_chunk(chunk)


def planted_model(name, variant, rng):
    """A model of the zoo some of whose channels are zero."""
    model = load_tiny(name, variant)
    chosen = {}
    for value in model.graph.initializers.values():
        array = value.const.numpy()
        if array.dtype != np.float32 or array.ndim == 0 or array.min() >= 0:
            continue
        readers = {use.user.op_type for use in value.uses}
        axis = 1 if array.ndim == 2 and readers == {"MatMul"} else 0
        size = array.shape[axis]
        zero = chosen.setdefault(size, rng.permutation(size)[: size // 3])
        array = np.array(array)
        array[(slice(None),) * axis + (zero,)] = 0
        value.const = Tensor.from_array(array)
    return model


@pytest.mark.parametrize("variant", ["folded", "kept"])
@pytest.mark.parametrize("name", ["resnet8", "super_resolution", "bert", "gru"])
def test_models_without_their_zero_channels_are_the_same(name, variant):
    model = planted_model(name, variant, np.random.default_rng(0))
    assert check(model, random_inputs(model), 0, rtol=1e-3) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), list_models())
def test_all_models_without_their_zero_channels_are_the_same(name, variant):
    model = planted_model(name, variant, np.random.default_rng(1))
    check(model, random_inputs(model), 1, rtol=1e-3)


def exponentials(net, x):
    """Softmax over channels, written out."""
    return net.node("Exp", [x], net.shapes[x])


def sigmoids(net, x):
    return net.node("Sigmoid", [x], net.shapes[x])


def remainders(net, x):
    return net.node("Sub", [net.small(np.float32(1)), x], net.shapes[x])


def bounded(net, x):
    """By a Max that leaves nothing at zero."""
    return net.relu(net.node("Max", [x, net.small(np.float32(0.1))], net.shapes[x]))


@pytest.mark.parametrize("step", [exponentials, sigmoids, remainders, bounded])
def test_sums_over_channels_that_zero_does_not_leave_zero(step):
    """The sum would lose what a removed channel adds to it, so the channels stay."""
    net = Plain(planted=True)
    x = net.conv(net.relu(net.conv(net.image(), 6)), 8)
    y = step(net, x)
    y = net.node("Div", [x, net.reduce("ReduceSum", y, [1], True)], net.shapes[x])
    check_plain(net, net.conv(y, 4), [6])
    assert check(from_proto(net.model([y])), net.feeds, 0) > 0


@pytest.mark.parametrize("op_type", ["ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"])
def test_sums_over_channels_that_stay_zero(op_type):
    net = Plain(planted=True)
    x = net.relu(net.conv(net.image(), 8))
    total = net.reduce(op_type, x, [1], True)
    total = net.node("Add", [total, net.small(np.float32(0.1))], net.shapes[total])
    out = net.conv(net.node("Div", [x, total], net.shapes[x]), 4)
    check_plain(net, out, [8])
    assert check(from_proto(net.model([out])), net.feeds, 0) > 0
