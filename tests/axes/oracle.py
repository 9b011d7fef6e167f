"""Prune a model at random and compare with the same model masked (see passes/prune/masking)."""

from dataclasses import dataclass

import numpy as np

from secateur.ir.axes.analysis import analyze
from secateur.ir.axes.selection import Selection
from secateur.ir.infer import infer_shapes
from secateur.passes.prune.apply import apply_selection
from secateur.passes.prune.groups import find_groups
from secateur.passes.prune.masking import PruningRecord, mask
from secateur.passes.reference import Session


@dataclass
class Pruned:
    original: object
    pruned: object
    record: PruningRecord
    groups: list
    selection: Selection


def random_selection(groups, rng, share=None):
    """Admissible: every group takes whole steps, at random places of its dims."""
    left = {d: d.size - 1 for g in groups for d in g.move}
    removed = dict.fromkeys(left, 0)
    for group in groups:
        if group.lock is not None:
            continue
        most = min(left[d] // n for d, n in group.move.items())
        steps = int(rng.integers(0, most + 1)) if share is None else int(share * most)
        for dim, n in group.move.items():
            left[dim] -= n * steps
            removed[dim] += n * steps
    return Selection({d: np.sort(rng.permutation(d.size)[n:]) for d, n in removed.items() if n})


def prune_at_random(model, rng, share=None, **options):
    infer_shapes(model)
    original = model.clone()
    analysis = analyze(model, **options)
    groups = find_groups(analysis)
    selection = random_selection(groups, rng, share)
    record = PruningRecord.of(analysis, selection)
    predicted = {
        value.name: [selection.size(axis) for axis in axes]
        for value, axes in analysis.axes.items()
        if axes is not None
    }
    apply_selection(analysis, selection)
    return Pruned(original, model, record, groups, selection), predicted


def assert_equals_masked(result, feeds, predicted=None, rtol=1e-5):
    """The pruned model computes what the masked original does, in predicted sizes."""
    masked = mask(result.original, result.record)
    expected = Session(masked, optimize=False).run(feeds)
    actual = Session(result.pruned, optimize=False).run(feeds)
    for name, reference in expected.items():
        assert_close(actual[name], reference, rtol, name)
    if predicted:
        infer_shapes(result.pruned)
        for graph in result.pruned.all_graphs():
            for value in graph.values():
                if value.name in predicted and value.shape is not None:
                    for got, want in zip(value.shape, predicted[value.name], strict=True):
                        assert not isinstance(got, int) or want is None or got == want, value.name


def assert_close(actual, expected, rtol=1e-5, name=""):
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
            actual[finite], expected[finite], rtol=rtol, atol=rtol * scale, err_msg=name
        )
    else:
        np.testing.assert_array_equal(actual, expected, err_msg=name)
