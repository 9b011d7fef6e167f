"""Inputs that steps of all layers together take: mixed, mirrored, shifted and tinted."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.reference import Session
from secateur.passes.linear.divergence import Distances
from secateur.passes.linear.mixtures import (
    BRIGHTNESS,
    CONTRAST,
    TINT,
    Mixtures,
    colour_axis,
    limits,
    mixed,
    moved,
    tinted,
)
from tests.passes.nets import Net


def images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2, 3, 32, 32), 1),
        ((2, 32, 32, 3), 3),
        ((2, 1, 5, 8), 1),
        ((2, 5, 8, 8), None),
        ((2, 3, 4, 4), None),
        ((2, 3, 32), None),
        ((2, 0, 32, 32), None),
    ],
)
def test_images_are_known_by_their_colours(shape, axis):
    assert colour_axis(shape) == axis


@pytest.mark.parametrize("last", [False, True])
def test_images_move_as_a_whole(last):
    """Mirrored and shifted by up to a tenth, with a reflected margin; as written out here."""
    x = images(40, 3, 20, 30)
    feeds = {"x": x.transpose(0, 2, 3, 1) if last else x, "other": x[:, 0, 0]}
    found = moved(feeds, np.random.default_rng(1), mirror=True, shift=True)
    assert found["other"] is feeds["other"]
    array = found["x"].transpose(0, 3, 1, 2) if last else found["x"]
    seen = set()
    for before, after in zip(x, array, strict=True):
        padded = {
            flip: np.pad(before, ((0, 0), (2, 2), (3, 3)), mode="reflect")[:, :, ::flip]
            for flip in (1, -1)
        }
        ways = [
            (flip, i, j)
            for flip in (1, -1)
            for i in range(5)
            for j in range(7)
            if np.array_equal(padded[flip][:, i : i + 20, j : j + 30], after)
        ]
        assert len(ways) == 1
        seen.add(ways[0])
    assert {flip for flip, _, _ in seen} == {1, -1}
    assert len(seen) > 20


def test_one_movement_at_a_time():
    x = images(20, 3, 20, 20)
    mirrored = moved({"x": x}, np.random.default_rng(1), mirror=True, shift=False)["x"]
    flipped = [np.array_equal(a, b[..., ::-1]) for a, b in zip(mirrored, x, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(mirrored, x, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert any(flipped)
    assert any(same)


@pytest.mark.parametrize("last", [False, True])
def test_images_get_a_contrast_and_colours_of_their_own(last):
    """Each channel is the one before, times a factor, and moved: where no limit is met."""
    x = 0.1 * images(40, 3, 8, 8) + np.array([1, 3, 9], np.float32)[:, None, None]
    x[0, :, 0, 0], x[0, :, 0, 1] = -50, 90
    feeds = {"x": x.transpose(0, 2, 3, 1) if last else x, "other": x[:, 0, 0]}
    found = tinted(feeds, limits([feeds]), np.random.default_rng(1))
    assert found["other"] is feeds["other"]
    assert found["x"].dtype == np.float32
    array = found["x"].transpose(0, 3, 1, 2) if last else found["x"]
    flat, before = (a.reshape(*a.shape[:2], -1)[1:].astype(float) for a in (array, x))
    slope = flat.std(axis=2) / before.std(axis=2)
    level = (flat.mean(axis=2) + 50) / (before.mean(axis=2) + 50)
    np.testing.assert_allclose(slope, np.broadcast_to(slope[:, :1], slope.shape), rtol=1e-3)
    assert abs(slope - 1).max() <= CONTRAST + 1e-3
    assert slope.min() < 0.7
    assert slope.max() > 1.3
    assert level.min() >= (1 - BRIGHTNESS) * (1 - TINT) - 1e-3
    assert level.max() <= (1 + BRIGHTNESS) * (1 + TINT) + 1e-3
    ratio = level / level[:, :1]
    assert 0.05 < abs(ratio - 1).max() <= (1 + TINT) / (1 - TINT) - 1 + 1e-3


def test_tinted_images_stay_within_what_was_seen():
    x = images(30, 3, 6, 6)
    other = {"x": x[:10] - 0.5}
    found = tinted({"x": x}, limits([{"x": x}, other]), np.random.default_rng(0))["x"]
    for colour in range(3):
        low, high = x[:, colour].min(), x[:, colour].max()
        low = min(low, other["x"][:, colour].min())
        assert found[:, colour].min() >= low - 1e-5
        assert found[:, colour].max() <= high + 1e-5


def test_only_images_of_real_numbers_are_tinted():
    assert limits([{"x": images(4, 6)}]) == {}
    assert limits([{"x": images(4, 3, 8, 8).astype(np.uint8)}]) == {}
    assert limits([{"x": images(0, 3, 8, 8)}]) == {}


def test_mixtures_lie_between_samples_and_every_second_is_whole():
    one, other = {"x": images(8, 5)}, {"x": 10 + images(8, 5)}
    found = mixed(one, other, np.random.default_rng(0))["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[::2], one["x"][::2])
    assert (np.abs(found[1::2] - one["x"][1::2]).max(axis=1) > 0.1).all()
    tokens = {"x": np.arange(4)}
    assert mixed(tokens, {"x": np.arange(4) + 1}, np.random.default_rng(0))["x"] is tokens["x"]


def scores(side: int, weights: np.ndarray) -> Session:
    """Scores [N, 4] of images [N, 1, side, side]: products with weights [side * side, 4]."""
    net = Net(0)
    return Session(
        net.model(
            ["n", 1, side, side], net.add("Gemm", net.add("Flatten", "x"), net.constant(weights))
        )
    )


def test_images_are_mirrored_only_where_the_model_sees_the_same():
    random = np.random.default_rng(0)
    weights = random.standard_normal((8, 8, 4)).astype(np.float32)
    runs = [{"x": images(32, 1, 8, 8)}, {"x": 2 * images(32, 1, 8, 8)[::-1]}]
    for plain, same in ((weights, False), (weights + weights[:, ::-1], True)):
        session = scores(8, plain.reshape(64, 4))
        found = Mixtures(session, runs, np.random.default_rng(0))
        assert found.mirrored is same
        assert not found.shifted
        assert found.moves is same
        assert not found.tinted
        assert found.draw()["x"].shape == (32, 1, 8, 8)
        copies = found.copies()
        assert len(copies) == (2 if same else 0)
        for copy, run in zip(copies, runs, strict=False):
            np.testing.assert_array_equal(copy["x"], run["x"][..., ::-1])


def test_other_inputs_are_never_moved():
    net = Net(0)
    session = Session(net.model(["n", 6], net.add("Softmax", "x")))
    found = Mixtures(
        session, [{"x": images(16, 6)}, {"x": images(16, 6)}], np.random.default_rng(0)
    )
    assert not found.moves


def test_what_may_be_chance_is_not_worse():
    """Distances between models are judged by those of small parts."""
    net = Net(0)
    random = np.random.default_rng(3)
    model = net.model(["n", 6], net.add("Identity", "x"))
    want = [{"y": images(64, 6)}]

    def off(noise: np.ndarray) -> Distances:
        run = [{"x": want[0]["y"] + noise.astype(np.float32)}]
        renamed = [dict(zip(Session(model).output_names, w.values(), strict=True)) for w in want]
        return Distances(renamed, model, run)

    plain = off(random.standard_normal((64, 6)))
    assert len(plain.parts) == 16
    assert plain.mean == pytest.approx(np.mean(plain.parts))
    assert not off(random.standard_normal((64, 6))).is_worse(plain)
    assert off(3 * random.standard_normal((64, 6))).is_worse(plain)
    assert off(np.full((64, 6), np.nan)).is_worse(plain)
    assert not plain.is_worse(off(3 * random.standard_normal((64, 6))))
