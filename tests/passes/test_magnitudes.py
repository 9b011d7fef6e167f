"""What a model of ranges says that rounding and clipping do, against rounding and clipping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secateur.passes.quantize.magnitudes import BLOCKS, Magnitudes, RangeModel

INDICES = np.arange(4)
ALIVE = np.ones(4, bool)
UNITS = np.float32([[1e-3], [1.0], [3.0], [40.0]])


def drawn(kind: str, seed: int, runs: int = BLOCKS) -> Any:
    """Values [runs, channels, positions]."""
    generator = np.random.default_rng(seed)
    found = generator.exponential(size=(runs, 4, 50))
    if kind == "signed":
        found *= generator.choice([-1, 0.5], size=found.shape)
    if kind == "sparse":
        found *= generator.random(found.shape) < 0.1
    return (found * UNITS).astype(np.float32)


def magnitudes_of(values: Any) -> Magnitudes:
    found = Magnitudes(values.shape[1])
    for run in values:
        found.add(INDICES, run)
    return found


def rounded(values: Any, scaled: Any, low: float, high: float) -> Any:
    """Mean squared error [channels] of values in 255 steps of a range of them scaled."""
    step = (high - low) / 255
    kept = np.clip(np.rint(scaled / step), np.rint(low / step), np.rint(high / step)) * step
    return np.square((kept - scaled) * (values / np.where(scaled, scaled, 1))).mean(axis=(0, 2))


@pytest.mark.parametrize("kind", ["positive", "signed", "sparse"])
@pytest.mark.parametrize("even", [False, True])
def test_noise_is_that_of_other_samples(kind: str, even: bool) -> None:
    """Within a factor of three, in the mean over draws, where channels are alike and where not."""
    told, made = [], []
    for seed in range(20):
        values = drawn(kind, seed)
        found = magnitudes_of(values)
        factors = found.largest if even else np.ones(4)
        told.append(found.noise(factors, ALIVE, RangeModel()))
        scaled, others = values / factors[:, None], drawn(kind, 100 + seed, 512)
        low, high = min(scaled.min(), 0), max(scaled.max(), 0)
        made.append(rounded(others, others / factors[:, None], low, high))
    ratio = np.mean(told, axis=0) / np.mean(made, axis=0)
    assert (ratio[1:] > 1 / 3).all()
    assert (ratio[1:] < 3).all()


def test_ranges_that_clip_are_those_with_the_least_error() -> None:
    values = np.random.default_rng(0).uniform(0, 100, (8, 4, 4000)).astype(np.float32)
    values[7, 3, 11] = 150
    found = magnitudes_of(values)
    whole, clipping = (
        found.noise(np.ones(4), ALIVE, RangeModel(clips=clips)) for clips in (False, True)
    )
    assert (clipping[:3] < 0.7 * whole[:3]).all()
    found = magnitudes_of(np.minimum(values, 100))  # nothing to be gained
    whole, clipping = (
        found.noise(np.ones(4), ALIVE, RangeModel(clips=clips)) for clips in (False, True)
    )
    np.testing.assert_array_equal(whole, clipping)


def test_steps_and_symmetric_ranges_are_counted() -> None:
    found = magnitudes_of(drawn("positive", 0))
    coarse = found.noise(np.ones(4), ALIVE, RangeModel(headroom=100.0))
    fine = found.noise(np.ones(4), ALIVE, RangeModel(steps=65535.0, headroom=100.0))
    double = found.noise(np.ones(4), ALIVE, RangeModel(symmetric=True, headroom=100.0))
    np.testing.assert_allclose(fine[3] / coarse[3], (255 / 65535) ** 2, rtol=0.2)
    assert double[3] > 2 * coarse[3]


@pytest.mark.parametrize("runs", [1, 2, 3, BLOCKS + 5])
def test_channels_that_are_scaled_have_the_noise_of_their_units(runs: int) -> None:
    values = drawn("signed", 0, runs)
    factors = np.float64([0.5, 2, 8, 1])
    found, other = magnitudes_of(values), magnitudes_of(values / np.float32(factors)[:, None])
    found.scale(factors)
    np.testing.assert_allclose(found.largest, other.largest, rtol=1e-6)
    got, wanted = (one.noise(np.ones(4), ALIVE, RangeModel()) for one in (found, other))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_what_belongs_to_no_channel_is_left_out_and_nan_stays() -> None:
    values = drawn("positive", 0)
    found = Magnitudes(4)
    found.add(np.array([2, -1, 0, -1]), values[0])
    np.testing.assert_array_equal(found.largest[[1, 3]], 0)
    np.testing.assert_allclose(found.largest[[2, 0]], values[0, [0, 2]].max(axis=1))
    values[0, 0, 0] = np.nan
    found.add(INDICES, values[0])
    assert np.isnan(found.largest[0])
    assert np.isfinite(found.largest[1:]).all()
