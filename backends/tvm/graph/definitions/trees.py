"""Ensembles of decision trees as one operator on tables, `TREE_SUMS`, and what follows its sums."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from .....ir.stand_ins import TREE_SUMS
from .....ir.tensor import Array
from .body import ML, Body, definition
from .classical import _array, _text, best, binary, class_labels, matrix, transformed

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
"""How nodes compare a feature with their number, by the number that tables have for it."""

LEAF = "LEAF"
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


@dataclasses.dataclass
class Forest:
    """Nodes of all trees by number. Of a leaf both successors are the leaf itself, and `first` and
    `count` say which of the contributions, pairs of a target and a weight, are its own."""

    features: Array
    modes: Array
    splits: Array
    yes: Array
    no: Array
    missing: Array
    roots: Array
    first: Array
    count: Array
    targets: Array
    weights: Array

    def depths(self) -> Array | None:
        """Steps from each root to its deepest leaf; None where nodes lead in a circle."""
        depth = np.zeros(len(self.roots), np.int32)
        current = [np.asarray([r]) for r in self.roots]
        for tree, nodes in enumerate(current):
            steps = 0
            while True:
                nodes = np.unique(nodes[self.yes[nodes] != nodes])
                if not nodes.size:
                    break
                steps += 1
                if steps > len(self.features):
                    return None
                nodes = np.concatenate([self.yes[nodes], self.no[nodes]])
            depth[tree] = steps
        return depth


def _list(b: Body, name: str, dtype: npt.DTypeLike) -> Array:
    """An attribute's numbers, or those of the tensor that newer versions have instead."""
    tensor = b.attribute(f"{name}_as_tensor", None)
    if tensor is not None:
        return _array(tensor).reshape(-1)
    found = b.attribute(name, None)
    if found is None:
        return np.zeros(0, dtype)
    if hasattr(found, "numpy") or hasattr(found, "data_type"):
        return _array(found).reshape(-1)
    return np.asarray(found, dtype)


def _modes(b: Body) -> Array:
    """The modes of nodes by number; leaves have -1."""
    numbers = {name: i for i, name in enumerate(MODES)} | {LEAF: -1}
    names = [_text(m) for m in b.attribute("nodes_modes", ())]
    unknown = next((n for n in names if n not in numbers), None)
    if unknown is not None:
        b.fail(f"node mode {unknown!r} isn't supported")
    return np.asarray([numbers[n] for n in names], np.int32)


def _forest(b: Body, prefix: str) -> Forest:
    """The tables of TreeEnsembleClassifier and TreeEnsembleRegressor, which name nodes by tree."""
    modes = _modes(b)
    trees, nodes = _list(b, "nodes_treeids", np.int64), _list(b, "nodes_nodeids", np.int64)
    ids = {key: i for i, key in enumerate(zip(trees.tolist(), nodes.tolist(), strict=True))}
    features, splits = _list(b, "nodes_featureids", np.int64), _list(b, "nodes_values", np.float32)
    yes, no = _list(b, "nodes_truenodeids", np.int64), _list(b, "nodes_falsenodeids", np.int64)
    if len({len(a) for a in (modes, trees, nodes, features, splits, yes, no)}) != 1 or not ids:
        b.fail("its lists of nodes have different sizes, or none")
    own = np.arange(len(modes))
    follow = []
    for list_ in (yes, no):
        found = [
            own[i] if modes[i] < 0 else ids.get((tree, node), -1)
            for i, (tree, node) in enumerate(zip(trees.tolist(), list_.tolist(), strict=True))
        ]
        follow.append(np.asarray(found, np.int32))
    starts: dict[int, int] = {}  # the first node of a tree that is listed is its root
    for i, tree in enumerate(trees.tolist()):
        starts.setdefault(tree, i)
    owners = zip(
        _list(b, f"{prefix}_treeids", np.int64).tolist(),
        _list(b, f"{prefix}_nodeids", np.int64).tolist(),
        strict=True,
    )
    places = np.asarray([ids.get(key, -1) for key in owners], np.int32)
    order = np.argsort(places, kind="stable")
    count = np.bincount(places[places >= 0], minlength=len(modes)).astype(np.int32)
    targets = _list(b, f"{prefix}_ids", np.int64)
    weights = _list(b, f"{prefix}_weights", np.float32)
    if len(targets) != len(places) or len(weights) != len(places) or (places < 0).any():
        b.fail("its lists of weights have different sizes, or name nodes that there aren't")
    tracks = _list(b, "nodes_missing_value_tracks_true", np.int64)
    return Forest(
        features,
        modes,
        splits,
        follow[0],
        follow[1],
        tracks if len(tracks) == len(modes) else np.zeros(len(modes), np.int64),
        np.asarray(sorted(starts.values()), np.int32),
        np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32),
        count,
        targets[order],
        weights[order],
    )


def _sums(b: Body, forest: Forest, targets: int, aggregate: str) -> str:
    """[rows, targets]: what the leaves that rows come to contribute. Checks all tables."""
    features = b.size(0, -1)
    nodes = len(forest.modes)
    inner = forest.modes >= 0
    inside = [
        (forest.yes, nodes),
        (forest.no, nodes),
        (forest.features[inner], features),
        (forest.targets, targets),
        (forest.roots, nodes),
    ]
    if aggregate not in AGGREGATES:
        b.fail(f"aggregate_function {aggregate!r} isn't known")
    if any(a.size and (a.min() < 0 or a.max() >= size) for a, size in inside) or targets < 1:
        b.fail("its tables lead to nodes, features or targets that there aren't")
    depths = forest.depths()
    if depths is None:
        b.fail("its nodes lead in a circle")
    wide = np.dtype(np.float64)
    dtype = wide if wide in (b.dtype(0), forest.splits.dtype) else np.dtype(np.float32)
    tables = [
        np.where(inner, forest.features, 0).astype(np.int32),
        forest.modes.astype(np.int32),
        forest.splits.astype(dtype),
        forest.yes.astype(np.int32),
        forest.no.astype(np.int32),
        (forest.missing != 0).astype(np.int32),
        forest.roots.astype(np.int32),
        depths,
        forest.first.astype(np.int32),
        forest.count.astype(np.int32),
        np.append(forest.targets, 0).astype(np.int32),
        np.append(forest.weights, 0).astype(dtype),
    ]
    operands = [b.cast(matrix(b), dtype), *(b.value(t) for t in tables)]
    return b.internal(TREE_SUMS, operands, targets=targets, aggregate=aggregate)


@definition("TreeEnsembleRegressor", domain=ML)
def _regressor(b: Body) -> list[str]:
    targets = int(b.attribute("n_targets", 1))
    aggregate = _text(b.attribute("aggregate_function", "SUM"))
    sums = _sums(b, _forest(b, "target"), targets, aggregate)
    base = _list(b, "base_values", np.float32)
    if base.size not in (0, targets):
        b.fail(f"{base.size} base values for {targets} targets")
    if base.size:
        sums = b("Add", sums, b.value(base, _sum_type(b)))
    return [transformed(b, b.cast(sums, np.float32))]


def _sum_type(b: Body) -> type[np.floating[Any]]:
    splits = _list(b, "nodes_values", np.float32).dtype
    return np.float64 if np.dtype(np.float64) in (b.dtype(0), splits) else np.float32


@definition("TreeEnsembleClassifier", domain=ML)
def _classifier(b: Body) -> list[str]:
    names = b.attribute("classlabels_strings", ())
    count = max(len(names), len(b.attribute("classlabels_int64s", ())))
    forest = _forest(b, "class")
    if count < 2:
        b.fail(f"{count} classes")
    base = _list(b, "base_values", np.float32).astype(np.float32)
    if base.size not in ((0, 1, 2) if count == 2 else (0, count)):
        b.fail(f"{base.size} base values for {count} classes")
    labels = class_labels(b, "classlabels_int64s", count)
    if count == 2:
        return _of_two(b, forest, base, labels)
    scores = b.cast(_sums(b, forest, count, "SUM"), np.float32)
    if base.size:
        scores = b("Add", scores, b.value(base))
    return [best(b, scores, labels), transformed(b, scores)]


def _of_two(b: Body, forest: Forest, base: Array, labels: Array) -> list[str]:
    """Label and scores of two classes, as ONNX Runtime has them.

    The second class's score decides where a row has come to a leaf with a weight of that class, and
    the first's alone where it hasn't. It decides by being above 0, or above a half if leaves have
    weights of one class alone and none is negative. Where both classes have weights, labels are 0
    and 1. A class that nothing has come to has the score 0, whatever its base value.
    """
    alone = len(np.unique(forest.targets)) == 1
    positive = alone and bool((forest.weights >= 0).all())
    known = [_is_always_met(forest, c) for c in (0, 1)]
    bases = [b.value(v, np.float32) for v in base]
    zero, limit = b.value(0, np.float32), b.value(0.5 if positive else 0, np.float32)
    if None in known:
        sums = b.cast(_sums(b, _with_counts(forest), 4, "SUM"), np.float32)
        first, second, *counts = b.split(sums, 1, (1, 1, 1, 1))
    else:
        sums = b.cast(_sums(b, forest, 2, "SUM"), np.float32)
        first, second = b.split(sums, 1, (1, 1))

    def choose(target: int, met: str, other: str) -> str:
        """One of two values, as a row has met a weight of a class or not."""
        if known[target] is None:
            return b("Where", b("Greater", counts[target], zero), met, other)
        return met if known[target] else other

    def pair(x: str, y: str) -> str:
        return transformed(b, b("Concat", x, y, axis=1))

    if len(bases) == 2:
        single = choose(0, b("Add", first, bases[0]), first)
        joint = b("Add", first, bases[1])
        scores = choose(1, pair(choose(0, b("Neg", joint), first), joint), pair(single, second))
        decides = choose(1, joint, single)
    else:
        if bases:
            first = choose(0, b("Add", first, bases[0]), first)
        scores, decides = pair(first, second), choose(1, second, first)
        if not known[1]:
            if bases and not alone:
                b.fail("one base value, and leaves without a weight of the second of two classes")
            scores = choose(1, scores, _of_one_score(b, first, positive=positive))
    label = binary(b, b("Greater", decides, limit), labels if alone else np.arange(2))
    return [label, scores]


def _of_one_score(b: Body, score: str, *, positive: bool) -> str:
    """The scores of two classes, of which the second's is known."""
    transform = _text(b.attribute("post_transform", "NONE"))
    if transform == "PROBIT":
        b.fail("post_transform PROBIT of one score for two classes")
    negative = b("Neg", score)
    if transform == "LOGISTIC":
        return b("Sigmoid", b("Concat", negative, score, axis=1))
    other = b("Sub", b.value(1, np.float32), score) if positive else negative
    return b("Concat", other, score, axis=1)


def _is_always_met(forest: Forest, target: int) -> bool | None:
    """Whether every row comes to a leaf with a weight of a class; None where some rows may."""
    if not (forest.targets == target).any():
        return False
    owners = np.repeat(np.arange(len(forest.first)), forest.count)
    without = np.setdiff1d(np.flatnonzero(forest.modes < 0), owners[forest.targets == target])
    return True if not without.size else None


def _with_counts(forest: Forest) -> Forest:
    """The same trees with two more targets: how many weights of each of two classes were met."""
    targets, weights = np.repeat(forest.targets, 2), np.repeat(forest.weights, 2)
    targets[1::2] += 2
    weights[1::2] = 1
    twice = {"first": 2 * forest.first, "count": 2 * forest.count}
    return dataclasses.replace(forest, targets=targets, weights=weights, **twice)


@definition("TreeEnsemble", domain=ML)
def _ensemble(b: Body) -> list[str]:
    """Nodes and leaves by number; a successor is a node or a leaf."""
    numbers = _array(b.attribute("nodes_modes", None)).reshape(-1)
    if any(not 0 <= int(n) <= len(MODES) for n in numbers):
        b.fail("a node's mode isn't known")
    nodes = len(numbers)
    features = _list(b, "nodes_featureids", np.int64)
    splits = _list(b, "nodes_splits", np.float32)
    targets = _list(b, "leaf_targetids", np.int64)
    weights = _list(b, "leaf_weights", np.float32)
    roots = _list(b, "tree_roots", np.int64)
    follow = []
    for side in ("true", "false"):
        ids, leaves = (_list(b, f"nodes_{side}{k}", np.int64) for k in ("nodeids", "leafs"))
        if len(ids) != nodes or len(leaves) != nodes:
            b.fail("its lists of nodes have different sizes")
        follow.append(np.where(leaves != 0, ids + nodes, ids))
        limit = np.where(leaves != 0, len(targets), nodes)
        if ((ids < 0) | (ids >= limit)).any():
            b.fail("its tables lead to nodes, features or targets that there aren't")
    if len(features) != nodes or len(splits) != nodes or len(targets) != len(weights):
        b.fail("its lists of nodes have different sizes")
    tracks = _list(b, "nodes_missing_value_tracks_true", np.int64)
    tracks = tracks if len(tracks) == nodes else np.zeros(nodes, np.int64)
    numbers = numbers.astype(np.int64)
    # A tree of one leaf has a node both of whose successors are that leaf.
    own = np.arange(nodes, nodes + len(targets))
    nothing = np.zeros(len(targets), np.int64)
    forest = Forest(
        np.concatenate([features, nothing]),
        np.concatenate([numbers, nothing - 1]),
        np.concatenate([splits, nothing.astype(splits.dtype)]),
        np.concatenate([follow[0], own]),
        np.concatenate([follow[1], own]),
        np.concatenate([tracks, nothing]),
        roots,
        np.concatenate([np.zeros(nodes, np.int64), np.arange(len(targets))]),
        np.concatenate([np.zeros(nodes, np.int64), nothing + 1]),
        targets,
        weights,
    )
    _spell_members(b, forest)
    aggregate = _chosen(b, "aggregate_function", AGGREGATES, 1)
    sums = _sums(b, forest, int(b.attribute("n_targets", 1)), aggregate)
    name = _chosen(b, "post_transform", TRANSFORMS, 0)
    if name != "NONE":
        sums = transformed(b, b.cast(sums, np.float32), name)
    return [b.cast(sums, b.dtype(0))]


def _spell_members(b: Body, forest: Forest) -> None:
    """Make of a node that asks for a member of a set one for each member, each after the other.

    The attribute lists the sets one by one, each with NaN at its end.
    """
    equal, member = MODES.index("BRANCH_EQ"), len(MODES)
    asking = np.flatnonzero(forest.modes == member)
    if not asking.size:
        return
    values = _list(b, "membership_values", np.float32)
    ends = np.flatnonzero(np.isnan(values))
    if len(ends) != len(asking):
        b.fail(f"{len(ends)} sets for {len(asking)} nodes that ask for members")
    start = 0
    for node, end in zip(asking.tolist(), ends.tolist(), strict=True):
        own, start = values[start:end], end + 1
        forest.modes[node] = equal
        if not own.size:
            forest.yes[node] = forest.no[node]
            continue
        forest.splits[node] = own[0]
        last, no = node, forest.no[node]
        for value in own[1:]:
            number = len(forest.modes)
            forest.no[last] = number
            for name, entry in (
                ("features", forest.features[node]),
                ("modes", equal),
                ("splits", value),
                ("yes", forest.yes[node]),
                ("no", no),
                ("missing", forest.missing[node]),
                ("first", 0),
                ("count", 0),
            ):
                table = getattr(forest, name)
                setattr(forest, name, np.append(table, table.dtype.type(entry)))
            last = number


def _chosen(b: Body, attribute: str, names: tuple[str, ...], default: int) -> str:
    """What an attribute stands for that is a number."""
    code = int(b.attribute(attribute, default))
    if not 0 <= code < len(names):
        b.fail(f"{attribute} {code} isn't known")
    return names[code]
