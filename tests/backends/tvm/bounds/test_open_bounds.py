"""Proofs for kernels whose sizes only a run fixes."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.bounds import Verdict, prove
from secateur.backends.tvm.plan.size_facts import facts_of
from secateur.backends.tvm.plan.sizes import stand_in, stand_in_of_axis
from secateur.backends.tvm.tensorir.builder import KernelBuilder, load
from secateur.backends.tvm.tensorir.sizes import sizes_of
from secateur.ir.symbolic.expressions import (
    add,
    floor_divide,
    maximum,
    minimum,
    negative,
    symbol,
)

N = stand_in(symbol("n", 1, 2**31 - 2**16))
M = stand_in(symbol("m", 1, 2**31 - 2**16))
K = stand_in(symbol("k", 1, 2**31 - 2**16))
FIRST_FIVE = minimum(symbol("n", 1, 2**31 - 2**16), 5)
FIVE = stand_in(FIRST_FIVE)
REST = stand_in_of_axis(maximum(0, add(symbol("n", 1, 2**31 - 2**16), negative(FIRST_FIVE))))
HALF = stand_in_of_axis(floor_divide(add(symbol("n", 1, 2**31 - 2**16), 1), 2))


def verdict(k: KernelBuilder) -> Verdict:
    function = k.finish()
    return prove(function, sizes=facts_of(sizes_of(function)))


@pytest.mark.parametrize("short", [0, 1])
def test_an_axis_of_an_open_size(short: int) -> None:
    """Rows and columns, of a buffer that is whole, and of one an element too short."""
    k = KernelBuilder()
    x = k.parameter("X", (N * M * 4,), "float32")
    y = k.parameter("Y", (N * M * 4 - short,), "float32")
    with k.loop(N, "i") as i, k.loop(M, "j") as j, k.loop(4, "c") as c:
        at = (i * M + j) * 4 + c
        k.store(y, load(x, at), at)
    found = verdict(k)
    assert bool(found.unproven) == bool(short)


@pytest.mark.parametrize("more", [0, 1])
def test_an_index_that_passes_the_end(more: int) -> None:
    """Once by a constant, where a row ends."""
    k = KernelBuilder()
    x = k.parameter("X", (N * M,), "float32")
    with k.loop(N, "i") as i, k.loop(M, "j") as j:
        k.store(x, load(x, i * M + j + more), i * M + j)
    assert bool(verdict(k).unproven) == bool(more)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_sizes_that_follow_from_others(factor: int) -> None:
    """Twice half of n, rounded up, minus one, is within n; three times isn't."""
    k = KernelBuilder()
    x = k.parameter("X", (N,), "float32")
    y = k.parameter("Y", (HALF,), "float32")
    with k.loop(HALF, "i") as i:
        k.store(y, load(x, i * factor), i)
    assert bool(verdict(k).unproven) == (factor == 3)


@pytest.mark.parametrize("again", [False, True])
def test_what_a_condition_proves_ends_with_it(again: bool) -> None:
    """The next element exists where there is one; the same access behind that isn't proven."""
    k = KernelBuilder()
    x = k.parameter("X", (N,), "float32")
    y = k.parameter("Y", (N,), "float32")
    with k.loop(N, "i") as i:
        with k.when(i + 1 < N):
            k.store(y, load(x, i + 1), i)
        if again:
            k.store(y, load(x, i + 1), i)
    assert bool(verdict(k).unproven) == again


def test_axes_of_different_sizes() -> None:
    """n by n is no bound for n by m."""
    k = KernelBuilder()
    x = k.parameter("X", (N * N,), "float32")
    with k.loop(N, "i") as i, k.loop(M, "j") as j:
        k.store(x, load(x, i * N + j), i * N + j)
    assert verdict(k).unproven


def test_numbers_of_32_bits() -> None:
    """A product that no buffer has may pass what an index holds."""
    k = KernelBuilder()
    x = k.parameter("X", (N,), "float32")
    y = k.parameter("Y", (M,), "float32")
    with k.loop(N, "i") as i:
        k.store(x, load(x, i * M - i * M + i), i)
    k.store(y, load(y, 0), 0)
    assert verdict(k).unproven


@pytest.mark.parametrize("more", [0, 1])
def test_the_first_of_three_axes_cut_off(more: int) -> None:
    """The elements of five rows, or of as many as there are, fit 32 bits as those of all do."""
    k = KernelBuilder()
    x = k.parameter("X", (N * (M * K),), "float32")
    y = k.parameter("Y", (REST * (M * K),), "float32")
    with k.loop(REST * (M * K), "j") as j:
        k.store(y, load(x, FIVE * (M * K) + j + more), j)
    assert bool(verdict(k).unproven) == bool(more)


@pytest.mark.parametrize("more", [0, 1])
def test_quotients_of_what_is_less_than_the_divisor(more: int) -> None:
    """One group has all channels, however many: each is in group 0, and at its own place."""
    k = KernelBuilder()
    x = k.parameter("X", (1,), "float32")
    y = k.parameter("Y", (N,), "float32")
    with k.loop(N, "i") as i:
        k.store(y, load(x, (i + more) // N), i % N)
    assert bool(verdict(k).unproven) == bool(more)


def test_windows_of_images_that_were_halved_twice() -> None:
    """Rows of an image fit its windows, of which the image is that of a strided convolution."""
    rows = floor_divide(symbol("h", 4, 2**31 - 2**16), 4)
    half = add(rows, negative(floor_divide(rows, 2)))
    windows = negative(floor_divide(negative(half), 7))
    for size, wanted in ((half, True), (add(half, 1), False)):
        k = KernelBuilder()
        x = k.parameter("X", (N * (7 * stand_in_of_axis(windows)) * M,), "float32")
        y = k.parameter("Y", (N * stand_in_of_axis(size) * M,), "float32")
        lines = stand_in_of_axis(size)
        with k.loop(N, "n") as n, k.loop(lines, "i") as i, k.loop(M, "j") as j:
            at = (n * (7 * stand_in_of_axis(windows)) + i) * M + j
            k.store(y, load(x, at), (n * lines + i) * M + j)
        assert (not verdict(k).unproven) == wanted
