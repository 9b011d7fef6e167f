"""Calibrators: ranges from histograms that grow, against the data as a whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.quantize.observers import (
    BINS,
    CALIBRATORS,
    Histogram,
    MovingAverage,
    calibrator,
    percentile_range,
    squared_error_range,
)
from secateur.passes.quantize.parameters import QuantParams, ValueRange
from tests.passes.test_quantize import IMAGES, W, conv
from tests.passes.test_quantize_integer import build, random

UINT8 = np.dtype(np.uint8)


def error(x: np.ndarray, found: ValueRange) -> float:
    params = QuantParams.covering(found, UINT8)
    restored = (params.quantize(x).astype(np.float64) - params.zero_point) * params.scale
    return float(np.square(restored - x).mean())


def chosen(name: str, *arrays: np.ndarray) -> ValueRange:
    observer = calibrator(name)()
    for array in arrays:
        observer.update(array)
    return observer.range()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 3e36])
def test_a_histogram_counts_every_element_whatever_the_order(scale: float) -> None:
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=500).astype(np.float32) * np.float32(scale * f) for f in (1, 9)]
    parts.append(np.zeros(7, np.float32))
    one, other = Histogram(percentile_range), Histogram(percentile_range)
    for part in parts:
        one.update(part)
    for part in reversed(parts):
        other.update(part)
    assert (one.counts == other.counts).all()
    assert (one.first, one.exponent, one.zeros) == (other.first, other.exponent, 7)
    assert one.counts.sum() == 1000
    assert BINS / 4 < one.counts.size <= BINS
    whole = np.concatenate(parts)
    whole = whole[whole != 0]
    edges = one.edges
    np.testing.assert_array_equal(one.centres, (edges[1:] + edges[:-1]) / 2)
    expected = [((whole >= a) & (whole < b)).sum() for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(one.counts, expected)


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("constant", [0.0, -3.0, 1e-38])
def test_constant_data_has_a_range_with_zero(name: str, constant: float) -> None:
    x = np.full(50, constant, np.float32)
    params = QuantParams.covering(chosen(name, x, x), UINT8)
    restored = (params.quantize(x) - float(params.zero_point)) * params.scale
    np.testing.assert_allclose(restored, x, rtol=1e-6, atol=1e-19)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_ranges_lie_within_what_was_seen(name: str) -> None:
    x = np.random.default_rng(1).laplace(size=20000).astype(np.float32)
    found = chosen(name, x[:3000], x[3000:], x[:0])
    assert x.min() - 1e-6 <= found.low < 0 < found.high <= x.max() + 1e-6


def test_least_squared_error_is_the_least_there_is() -> None:
    generator = np.random.default_rng(2)
    for x in (
        generator.laplace(size=40000),
        np.maximum(generator.normal(size=40000), 0) ** 3,
        generator.standard_t(3, size=40000),
    ):
        x = x.astype(np.float32)
        found = error(x, chosen("mse", x))
        low, high = float(x.min()), float(x.max())
        tried = [
            error(x, ValueRange(low * a, high * b))
            for a in np.linspace(1, 0.1, 19)
            for b in np.linspace(1, 0.1, 19)
        ]
        assert found <= min(tried) * 1.02
        assert found < error(x, ValueRange(low, high))


def test_uniform_data_is_not_clipped() -> None:
    x = np.random.default_rng(3).uniform(-1, 2, 30000).astype(np.float32)
    for name in ("mse", "entropy"):
        found = chosen(name, x)
        assert found.low < -0.98
        assert found.high > 1.96


def test_an_outlier_does_not_stretch_the_range() -> None:
    x = np.random.default_rng(4).normal(size=100000).astype(np.float32)
    x[5] = 80.0
    assert chosen("min-max", x).high == 80
    for name in ("percentile", "entropy"):
        assert chosen(name, x).high < 20, name


def test_the_share_of_the_percentile() -> None:
    x = np.linspace(-1, 1, 100001, dtype=np.float32)
    for share in (99.0, 99.9):
        found = chosen(f"percentile:{share}", x)
        assert (x < found.low).mean() == pytest.approx((1 - share / 100) / 2, abs=1e-3)
        assert (x > found.high).mean() == pytest.approx((1 - share / 100) / 2, abs=1e-3)


def test_the_moving_average_forgets_one_wild_run() -> None:
    average = MovingAverage()
    for run in range(50):
        average.update(np.float32([-1, 100 if run == 20 else 1]))
    assert average.range().low == pytest.approx(-1)
    assert average.range().high == pytest.approx(1 + 99 / 50)


@pytest.mark.parametrize("name", ["kl", "percentile:x", "percentile:0", "mse:3", "percentile:nan"])
def test_unknown_calibrators(name: str) -> None:
    with pytest.raises(SecateurError, match=f"calibrator '{name}'"):
        QuantizeStatic(calibrator=name).run(
            from_proto(build([conv("x", "w")], {"w": W}, ["N", 3, 6, 6])), Context({"x": IMAGES})
        )


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize(("bad", "what"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_what_breaks_is_named_with_its_sample(name: str, bad: float, what: str) -> None:
    images = random(0, 20, 3, 6, 6)
    images[17, 1, 2, 3] = bad
    images[19] = bad
    proto = build([conv("x", "w")], {"w": W}, ["N", 3, 6, 6])
    with pytest.raises(SecateurError, match=f"'x' .*{what} with sample 17"):
        QuantizeStatic(calibrator=name).run(from_proto(proto), Context({"x": images}))


def test_memory_does_not_grow_with_the_data() -> None:
    observer = Histogram(squared_error_range)
    generator = np.random.default_rng(5)
    for power in range(40):
        observer.update((generator.normal(size=1000) * 2.0**power).astype(np.float32))
    assert observer.counts.size <= BINS
    assert observer.counts.sum() + observer.zeros == 40000


@pytest.mark.parametrize("name", sorted(CALIBRATORS))
@pytest.mark.parametrize("exponent", [-12, 10])
def test_ranges_have_the_unit_of_the_data(name: str, exponent: int) -> None:
    """A power of two more, in all elements, is one more in the range, to the last bit."""
    generator = np.random.default_rng(1)
    x = generator.standard_t(3, size=5000).astype(np.float32)
    x[x < 0] *= 0.25
    found, scaled = chosen(name, x), chosen(name, x * np.float32(2.0**exponent))
    assert (scaled.low, scaled.high) == (found.low * 2.0**exponent, found.high * 2.0**exponent)
