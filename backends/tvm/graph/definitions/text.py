"""Counting sequences of numbers that stand for words."""

from __future__ import annotations

import itertools

import numpy as np

from .body import Body, definition

MOST_PLACES = 1 << 24
"""Elements of a row of counts."""


@definition("TfIdfVectorizer", domain="")
def _tf_idf(b: Body) -> list[str]:
    """How often each sequence of numbers occurs in a row, also with numbers skipped between."""
    if b.attribute("pool_strings", ()):
        b.fail("compiled models have no strings")
    pool = np.asarray(b.attribute("pool_int64s", ()), np.int64)
    starts = [int(i) for i in b.attribute("ngram_counts", ())]
    places = np.asarray(b.attribute("ngram_indexes", ()), np.int64)
    least, most = int(b.attribute("min_gram_length", 0)), int(b.attribute("max_gram_length", 0))
    skips = int(b.attribute("max_skip_count", 0))
    mode = b.attribute("mode", "TF")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    rank = b.rank(0)
    length = b.size(0, -1)
    bounds = [*starts, len(pool)]
    if rank not in (1, 2) or mode not in ("TF", "IDF", "TFIDF") or not places.size:
        b.fail("its form isn't supported")
    if any(not 0 <= a <= c for a, c in itertools.pairwise(bounds)) or places.min() < 0:
        b.fail("its lists of sequences have no order")
    x = b.cast(b.required(0), np.int64)
    x = x if rank == 2 else b.unsqueezed(x, 0)
    counted, order, before = [], [], 0
    for size, (first, end) in enumerate(itertools.pairwise(bounds), 1):
        count = (end - first) // size
        own, before = places[before : before + count], before + count
        if (end - first) % size or len(own) != count:
            b.fail("its lists of sequences have different sizes")
        if not least <= size <= most or not count:
            continue
        grams = pool[first:end].reshape(count, size)
        total = None
        for step in range(1, (skips if size > 1 else 0) + 2):
            windows = length - (size - 1) * step
            if windows < 1:
                break
            same = None
            for j in range(size):
                part = b.unsqueezed(b.sliced(x, 1, j * step, j * step + windows), 2)
                equal = b("Equal", part, b.value(grams[:, j]))
                same = equal if same is None else b("And", same, equal)
            assert same is not None
            hits = b.reduced("ReduceSum", b.cast(same, np.float32), 1, keepdims=0)
            total = hits if total is None else b("Add", total, hits)
        if total is not None:
            counted.append(total)
            order.append(own)
    width = int(places.max()) + 1
    if width > MOST_PLACES:
        b.fail(f"{width} places are too many")
    found = np.concatenate(order) if order else np.zeros(0, np.int64)
    nothing = b("Mul", b.sliced(x, 1, 0, 1), b.value(0, np.int64))
    counted.append(b.cast(nothing, np.float32))
    source = np.full(width, len(found), np.int64)
    source[found] = np.arange(len(found))
    y = b("Gather", b("Concat", *counted, axis=1), b.value(source), axis=1)
    y = y if rank == 2 else b.squeezed(y, 0)
    weights = np.ones(width, np.float32)
    given = np.asarray(b.attribute("weights", ()), np.float32)
    if given.size == places.size:
        weights[places] = given
    if mode == "IDF":
        y = b.cast(b("Greater", y, b.value(0, np.float32)), np.float32)
    return [y if mode == "TF" else b("Mul", y, b.value(weights))]
