"""Prune a model at random and compare with the same model masked (see passes/prune/masking)."""

import re
from dataclasses import dataclass

import numpy as np
import onnx

from secateur.ir.axes.selection import Selection
from secateur.ir.dependencies.analysis import analyze
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import to_proto
from secateur.passes.prune.apply import apply_selection
from secateur.passes.prune.computed_weights import analyze_folded
from secateur.passes.prune.groups import find_groups
from secateur.passes.prune.masking import PruningRecord, mask

from ...onnx_runtime import session_of

FOREIGN = r"bfloat16|float[48]|int[24]\b"
"""Element types, as ONNX Runtime writes them, that NumPy doesn't have."""


@dataclass
class Pruned:
    original: object
    pruned: object
    record: PruningRecord
    groups: list
    selection: Selection

    @property
    def outputs(self):
        return {v.name for v in self.original.graph.outputs}


def random_selection(groups, rng, share=None):
    """Admissible: every group takes whole steps, at random places of its dims.

    Removes something where anything may go.
    """
    left = {d: d.size - 1 for g in groups for d in g.move}
    removed = dict.fromkeys(left, 0)
    free = [group for group in groups if group.lock is None]
    for least in (0, 1):
        for group in free if not any(removed.values()) else ():
            most = min(left[d] // n for d, n in group.move.items())
            steps = int(rng.integers(0, most + 1)) if share is None else int(share * most)
            steps = max(steps, min(least, most))
            for dim, n in group.move.items():
                left[dim] -= n * steps
                removed[dim] += n * steps
    return Selection({d: np.sort(rng.permutation(d.size)[n:]) for d, n in removed.items() if n})


def analyze_either(model, rng, **options):
    """Analyze with weights folded that are computed from constants, or with none folded."""
    infer_shapes(model)
    return (analyze_folded if rng.integers(2) else analyze)(model, **options)


def prune_at_random(model, rng, share=None, **options):
    infer_shapes(model)
    original = model.clone()
    analysis = analyze_either(model, rng, **options)
    groups = find_groups(analysis)
    selection = random_selection(groups, rng, share)
    record = PruningRecord.of(analysis, selection)
    apply_selection(analysis, selection)
    return Pruned(original, model, record, groups, selection)


def assert_equals_masked(result, feeds, rtol=1e-5):
    """The pruned model computes what the masked original does.

    Holds every value that both have, not only outputs: the pruned one is the kept part
    of the masked one, and so of exactly the predicted size.
    """
    expected = run_masked(result, feeds)
    try:
        assert_equals(result, feeds, expected, rtol)
    except AssertionError:
        # Differences and near-constant normalizations magnify rounding: allow what
        # rounding the inputs differently does to the masked original itself.
        assert_equals(result, feeds, expected, rtol, _rounding(result, feeds, expected))


def _rounding(result, feeds, expected):
    """How far each value moves when the inputs move by about one unit in the last place."""
    moved = {}
    rng = np.random.default_rng(0)
    for _ in range(4):
        for name, value in run_masked(result, noisy(feeds, rng, 2e-7)).items():
            if not isinstance(value, list) and value.dtype.kind == "f":
                distance = np.abs(value - expected[name])
                largest = distance[np.isfinite(distance)].max(initial=0.0)
                moved[name] = max(moved.get(name, 0.0), 4 * largest)
    return moved


def noisy(feeds, rng, share):
    """Inputs that differ by a share of themselves."""
    return {
        name: (x * (1 + rng.uniform(-share, share, x.shape))).astype(x.dtype)
        if x.dtype.kind == "f"
        else x
        for name, x in feeds.items()
    }


def run_masked(result, feeds):
    """Every value of the masked original."""
    return run_all(mask(result.original, result.record), feeds)


def assert_equals(result, feeds, expected, rtol=1e-5, slack=None):
    """As `assert_equals_masked`, against the values of the masked original."""
    actual = run_all(result.pruned, feeds)
    for name, part in expected.items():
        if name not in actual:
            continue
        for axis, keep in enumerate(result.record.values.get(name, ())):
            if keep is not None:
                part = np.compress(keep.mask(part.shape[axis]), part, axis)
        if name in result.outputs or isinstance(part, list) or part.dtype.kind in "fc":
            assert_close(actual[name], part, rtol, name, (slack or {}).get(name, 0.0))
        else:  # integers may count indices or index them
            assert actual[name].shape == part.shape, name


def run_all(model, feeds):
    """Every value of the main graph, but for those of types that NumPy lacks."""
    proto = to_proto(model)
    known = {o.name for o in proto.graph.output}
    names = [n for node in proto.graph.node for n in node.output if n and n not in known]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = session_of(proto, optimize=False)
    names = [o.name for o in session.get_outputs() if not re.search(FOREIGN, o.type)]
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_close(actual, expected, rtol=1e-5, name="", slack=0.0):
    if isinstance(expected, list):
        assert len(actual) == len(expected), name
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b, rtol, name)
        return
    assert actual.shape == expected.shape, name
    if actual.dtype.kind in "fc":
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(actual), finite, err_msg=name)
        scale = np.abs(expected[finite]).max(initial=0.0)
        np.testing.assert_allclose(
            actual[finite], expected[finite], rtol=rtol, atol=rtol * scale + slack, err_msg=name
        )
    else:
        np.testing.assert_array_equal(actual, expected, err_msg=name)


def check_seeds(name, check, seeds):
    """Run `check` on every seed, so that one failure names all; the sum of what it returns.

    `name` is how the failures call the network of a seed.
    """
    total, failures = 0, []
    for seed in seeds:
        try:
            total = total + np.asarray(check(seed), int)
        except Exception as error:  # reported with the seed below
            failures.append(f"{name}({seed}): {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    return total
