"""More inputs than there are samples: mixtures of them, and images moved and tinted.

What the original puts out for each says what is right, whether or not it looks like a sample
(Zhang et al., "mixup", 2018; Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient
and Consistent", 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...ir.reference import Session
from ...ir.tensor import Array
from .divergence import Divergence

COLOURS = 4
"""Largest number of channels of an axis that counts colours."""

SHIFT = 0.1
"""Of an image's rows and columns, by which it is shifted at most."""

CONTRAST, BRIGHTNESS, TINT = 0.5, 0.4, 0.15
"""Share by which an image's contrast and brightness, and each of its colours, change at most."""

SAME = 0.25
"""Divergence of the outputs that a change of the images makes, as a share of that between
samples, up to which the model is taken to see the same in them."""

LOOKED_AT = 64
"""Samples on which that is looked at, or a few more."""


def colour_axis(shape: tuple[int, ...]) -> int | None:
    """Which axis counts the colours of images of a shape [samples, ...]; None if there is none."""
    if len(shape) != 4 or min(shape[1:]) < 1:
        return None
    for axis in (1, 3):
        if shape[axis] <= COLOURS < min(n for i, n in enumerate(shape) if i not in (0, axis)):
            return axis
    return None


def rows(feeds: Mapping[str, Array]) -> int:
    """The size of the first axis."""
    return max((len(array) for array in feeds.values() if array.ndim), default=1)


Change = Callable[[Mapping[str, Array]], dict[str, Array]]


class Mixtures:
    """Draws inputs that are like some runs.

    Every second sample is a mixture of two, with a share of its own. Images are mirrored,
    shifted and tinted where the outputs of `model` say that it sees the same in them then.
    """

    def __init__(
        self, model: Session, runs: Sequence[Mapping[str, Array]], generator: np.random.Generator
    ) -> None:
        self._runs = runs
        self._generator = generator
        self._limits = limits(runs)
        looked_at = runs[: max(2, -(-LOOKED_AT // rows(runs[0])))]

        def same(change: Change) -> bool:
            return _sees_the_same(model, looked_at, change)

        self.mirrored = same(lambda run: moved(run, generator, mirror=True, shift=False))
        self.shifted = same(lambda run: moved(run, generator, mirror=False, shift=True))
        self.tinted = same(self._tinted)

    @property
    def moves(self) -> bool:
        return self.mirrored or self.shifted

    def draw(self) -> dict[str, Array]:
        """Inputs of one run."""
        first, second = self._generator.integers(len(self._runs), size=2)
        found = mixed(self._runs[first], self._runs[second], self._generator)
        if self.tinted:
            found = self._tinted(found)
        return moved(found, self._generator, mirror=self.mirrored, shift=self.shifted)

    def copies(self) -> list[dict[str, Array]]:
        """The runs once more, mirrored and tinted; none where the model sees something else."""
        if not (self.mirrored or self.tinted):
            return []
        found = [mirrored(run) if self.mirrored else dict(run) for run in self._runs]
        return [self._tinted(run) for run in found] if self.tinted else found

    def _tinted(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return tinted(feeds, self._limits, self._generator)


Limits = Mapping[str, tuple[Array, Array]]


def limits(runs: Sequence[Mapping[str, Array]]) -> Limits:
    """The least and greatest value of each colour, of the inputs that are images."""
    found = {}
    for name, array in runs[0].items():
        colours = colour_axis(array.shape)
        if colours is None or array.dtype.kind != "f":
            continue
        over = tuple(k for k in range(4) if k != colours)
        parts = [run[name] for run in runs if run[name].size]
        if parts:
            least = np.min([part.min(axis=over, keepdims=True) for part in parts], axis=0)
            greatest = np.max([part.max(axis=over, keepdims=True) for part in parts], axis=0)
            found[name] = (least, greatest)
    return found


def tinted(
    feeds: Mapping[str, Array], limits: Limits, generator: np.random.Generator
) -> dict[str, Array]:
    """Inputs whose images have another contrast, brightness and colour, each one of its own.

    Values stay within the limits of their colour; the least one stands for black.
    """
    found = dict(feeds)
    for name, (least, greatest) in limits.items():
        images = feeds[name] - least
        colours = colour_axis(images.shape)
        if colours is None:
            continue
        flat = [1 if k else len(images) for k in range(4)]
        each = [n if k in (0, colours) else 1 for k, n in enumerate(images.shape)]
        mean = images.mean(axis=tuple(k for k in (1, 2, 3) if k != colours), keepdims=True)
        contrast = generator.uniform(1 - CONTRAST, 1 + CONTRAST, flat)
        level = generator.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS, flat)
        level = level * generator.uniform(1 - TINT, 1 + TINT, each)
        changed = (images - mean) * contrast + mean * level
        within = np.clip(changed, 0, greatest - least) + least
        found[name] = within.astype(feeds[name].dtype)
    return found


def mixed(
    one: Mapping[str, Array], other: Mapping[str, Array], generator: np.random.Generator
) -> dict[str, Array]:
    """A mixture of two runs in which each sample has a share of its own; every second is whole.

    Of inputs that can't be mixed, since they are not numbers on a scale, those of one run.
    """
    if any(a.dtype.kind != "f" or not a.ndim or a.shape != other[n].shape for n, a in one.items()):
        return dict(one)
    count = rows(one)
    shares = np.where(np.arange(count) % 2, generator.random(count), 1.0)
    order = generator.permutation(count)
    found = {}
    for name, array in one.items():
        share = shares.reshape(-1, *[1] * (array.ndim - 1)) if len(array) == count else shares[0]
        second = other[name][order] if len(array) == count else other[name]
        found[name] = (share * array + (1 - share) * second).astype(array.dtype)
    return found


def moved(
    feeds: Mapping[str, Array], generator: np.random.Generator, *, mirror: bool, shift: bool
) -> dict[str, Array]:
    """Inputs whose images are mirrored, every second one or so, and shifted.

    Those of one sample move together. Where an image is shifted away its margin is reflected.
    """
    count = rows(feeds)
    mirrors = generator.random(count) < 0.5 if mirror else np.zeros(count, bool)
    ways = generator.uniform(-1, 1, (count, 2)) if shift else np.zeros((count, 2))
    return _all_moved(feeds, mirrors, ways)


def mirrored(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs all of whose images are mirrored."""
    count = rows(feeds)
    return _all_moved(feeds, np.ones(count, bool), np.zeros((count, 2)))


def _all_moved(feeds: Mapping[str, Array], mirrors: Array, ways: Array) -> dict[str, Array]:
    found = dict(feeds)
    for name, array in feeds.items():
        colours = colour_axis(array.shape) if array.ndim else None
        if colours is not None and len(array) == len(mirrors):
            found[name] = _moved(array, 2 if colours == 1 else 1, mirrors, ways)
    return found


def _moved(images: Array, rows_axis: int, mirrors: Array, ways: Array) -> Array:
    """Images of which some are mirrored, each shifted by a share of what is allowed."""
    down, right = (
        _shifted(images.shape[rows_axis + k], ways[:, k], mirrors if k else None) for k in (0, 1)
    )
    samples = np.arange(len(images))[:, None, None]
    if rows_axis == 1:
        return np.ascontiguousarray(images[samples, down[:, :, None], right[:, None, :]])
    samples, colours = samples[..., None], np.arange(images.shape[1])[None, :, None, None]
    found: Array = images[samples, colours, down[:, None, :, None], right[:, None, None, :]]
    return found


def _shifted(size: int, ways: Array, mirrors: Array | None) -> Array:
    """For each sample which positions of an axis its own positions are read from."""
    most = int(SHIFT * size + 0.5)
    places: Array = np.arange(size)[None] + np.rint(ways * most).astype(int)[:, None]
    places = np.abs(places)
    places = np.minimum(places, 2 * (size - 1) - places)
    if mirrors is not None:
        places = np.where(mirrors[:, None], size - 1 - places, places)
    return places


def _sees_the_same(model: Session, runs: Sequence[Mapping[str, Array]], change: Change) -> bool:
    """Whether outputs for changed images are near those for the images as they are."""
    to_changed, to_others = Divergence(), Divergence()
    outputs = [model.run(run) for run in runs]
    for run, wanted, other in zip(runs, outputs, [*outputs[1:], outputs[0]], strict=True):
        feeds = change(run)
        if all(feeds[name] is array for name, array in run.items()):
            return False
        to_changed.add(wanted, model.run(feeds))
        to_others.add(wanted, other)
    return to_changed.value < SAME * to_others.value < float("inf")
