"""Sizes and places that an entry computes while a model runs."""

from __future__ import annotations

import ctypes
import shutil
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.objects import NATIVE
from secateur.backends.tvm.artifact.size_code import _least_within
from secateur.backends.tvm.artifact.toolchain import compile_source, link_shared
from secateur.backends.tvm.targets import parse_target
from secateur.ir.symbolic import expressions as e

Array = Any
VOID = ctypes.c_void_p

SOURCE = """
#include "sizes.h"
typedef secateur_size size;
size place(int count, const secateur_range *ranges, const size *bytes, size *at, int *live) {
    return secateur_place(count, ranges, bytes, at, live);
}
size stack(int count, const unsigned short *stack, const size *bytes, size *at) {
    return secateur_stack(count, stack, bytes, at);
}
size floor_(size a, size b, int *bad) { return secateur_floor(a, b, bad); }
size times(size a, size b, int *bad) { return secateur_times(a, b, bad); }
size plus(size a, size b, int *bad) { return secateur_plus(a, b, bad); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("sizes")
    shutil.copy(NATIVE / "sizes.h", folder)
    (folder / "own.c").write_text(SOURCE)
    target = parse_target("native")
    compile_source(target, folder / "own.c", folder / "own.o", freestanding=True)
    link_shared(target, [folder / "own.o"], folder / "own.so")
    found = ctypes.CDLL(str(folder / "own.so"))
    for function in (found.place, found.stack, found.floor_, found.times, found.plus):
        function.restype = ctypes.c_int64
    return found


def test_buffers_in_use_together_lie_apart(library: ctypes.CDLL) -> None:
    """Of random live ranges and sizes, none too; no arena is larger than all buffers together."""
    random = np.random.default_rng(0)
    for _ in range(300):
        count = int(random.integers(1, 30))
        first = np.sort(random.integers(0, 20, count))
        last = first + random.integers(0, 8, count)
        nbytes = random.integers(0, 5, count) * random.choice([1, 64, 1000], count)
        ranges = np.ascontiguousarray(np.stack([first, last], 1), np.int32)
        sizes, at = np.ascontiguousarray(nbytes, np.int64), np.zeros(count, np.int64)
        live = np.zeros(count, np.int32)
        pointers = (ctypes.c_void_p(a.ctypes.data) for a in (ranges, sizes, at, live))
        whole = library.place(count, *pointers)
        lines = np.maximum(-(-nbytes // 64), 1) * 64
        assert (at >= 0).all()
        assert (at % 64 == 0).all()
        assert (at + lines <= whole).all()
        assert whole <= lines.sum()
        together = max(lines[(first <= now) & (now <= last)].sum() for now in range(30))
        assert together <= whole
        check_apart(first, last, at, lines)
        order = random.permutation(count).tolist()
        numbers = []
        for place, i in enumerate(order):
            below = [j for j in order[:place] if first[i] <= last[j] and first[j] <= last[i]]
            numbers += [i, len(below), *below]
        table = np.array(numbers, np.uint16)
        whole = library.stack(count, *(a.ctypes.data_as(VOID) for a in (table, sizes, at)))
        assert (at + lines).max() == whole
        check_apart(first, last, at, lines)


def check_apart(first: Array, last: Array, at: Array, lines: Array) -> None:
    for i in range(len(at)):
        for j in range(i):
            if first[i] <= last[j]:  # begins no earlier
                assert at[i] + lines[i] <= at[j] or at[j] + lines[j] <= at[i]


def test_sizes_that_are_too_large_are_noted(library: ctypes.CDLL) -> None:
    """Arithmetic is that of integers, or says that it isn't."""
    most = 2**31 - 1
    for name, function in (("times", np.multiply), ("plus", np.add)):
        for a, b in ((3, 4), (-3, 4), (most, most), (most + 1, 1), (1, -most - 1), (2**62, 2**62)):
            bad = ctypes.c_int(0)
            own = getattr(library, name)(ctypes.c_int64(a), ctypes.c_int64(b), ctypes.byref(bad))
            assert bool(bad.value) == (max(abs(a), abs(b)) > most)
            assert bad.value or own == function(a, b, dtype=object)
    for a, b in ((7, 2), (-7, 2), (-8, 2), (0, 5), (7, 0), (7, -1)):
        bad = ctypes.c_int(0)
        own = library.floor_(ctypes.c_int64(a), ctypes.c_int64(b), ctypes.byref(bad))
        assert bool(bad.value) == (b < 1)
        assert bad.value or own == a // b


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("shift", [-40, -3, 0])
@pytest.mark.parametrize("divisor", [1, 4])
def test_the_least_number_with_which_a_size_is_one(
    first: int, factor: int, shift: int, divisor: int
) -> None:
    symbol = e.symbol("n", first)
    assert isinstance(symbol, e.Expression)
    assert symbol.atom is not None
    size = e.floor_divide(e.add(e.multiply(factor, symbol), shift), divisor)
    for least in (0, 1, 7):
        fitting = (n for n in range(first, 200) if (factor * n + shift) // divisor >= least)
        expected = next(fitting)
        found = _least_within(size, symbol.atom, (least, 1 << 31))
        assert found == (None if expected == first else expected)
    assert _least_within(size, symbol.atom, (-2000, -1000)) is None
