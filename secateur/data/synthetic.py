"""Inputs made up in place of samples, for recovery where there are no data at all.

Images are made of shapes that lie on top of each other, many small and few large ones (dead
leaves: Lee, Mumford and Huang, "Occlusion Models for Natural Images", 2001; as training data
Baradad et al., "Learning to See by Looking at Noise", 2021), and of noise whose amplitude falls
with the frequency, with colours that go together, and a brightness and contrast of their own.
Other inputs are noise. Where the model keeps statistics of what it was trained on, in
BatchNormalization, the images are those of several kinds that come nearest to these.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto, helper

from ..ir.errors import SecateurError
from ..ir.graph import Node, Value, normalize_domain
from ..ir.model import Model
from ..ir.reference import Session
from ..ir.tensor import Array
from ..passes.linear.mixtures import colour_axis
from .inputs import model_inputs
from .npz import DataError
from .random_inputs import random_feed
from .statistics import distances, normalizations, session_up_to

PREFIX = "synthetic"

COUNT = 512
"""Samples that are made."""

LOOKED_AT = 32
"""Samples on which statistics are compared."""

KINDS = tuple(itertools.product((0.09, 0.15), (0.15, 0.2, 0.3), (0.1, 0.3)))
"""Radius of the smallest shapes over the image's side, typical contrast, and how far colours
differ."""

USUAL = (0.09, 0.2, 0.3)
"""The kind that is taken where nothing is known."""

SHAPES = 40
"""Of an image; most are covered by others."""

TEXTURE = 0.45
"""Deviation of the noise, over that of the shapes."""

SMOOTHNESS = 1.5
"""Power of the frequency with which the noise's amplitude falls."""

STATISTICS = 8
"""Layers, from the first on, whose statistics are compared."""


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Asks for made-up samples; `low` and `high` bound their values, None to read the model."""

    low: float | None = None
    high: float | None = None
    count: int = COUNT
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Synthetic:
        """`synthetic` or `synthetic:LOW:HIGH`. Raises ValueError."""
        name, *bounds = text.split(":")
        if name != PREFIX or len(bounds) not in (0, 2):
            raise ValueError(f"'{text}' is not {PREFIX} or {PREFIX}:LOW:HIGH")
        if not bounds:
            return cls()
        low, high = (float(bound) for bound in bounds)
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"'{text}': LOW has to lie below HIGH")
        return cls(low, high)

    def __str__(self) -> str:
        return PREFIX if self.low is None else f"{PREFIX}:{self.low:g}:{self.high:g}"


def synthetic_arrays(source: Synthetic, model: Model) -> dict[str, Array]:
    """One array for each input, first axis samples.

    Raises DataError where a model takes no such inputs, or the range of an image can't be
    read from it and isn't given.
    """
    feed = random_feed(model, source.seed)
    inputs = model_inputs(model)
    images = {value.name: _Image(model, value, feed[value.name].shape) for value in inputs}
    found: dict[str, Array] = {}
    by_rows = len({array.shape[:1] for array in feed.values()} - {()}) == 1
    for value in inputs:
        image = images[value.name]
        if image.channel_axis is None:
            found[value.name] = _noise(source, feed[value.name], by_rows=by_rows)
        else:
            image.read_range(source)
    drawn = {name: image for name, image in images.items() if image.channel_axis is not None}
    kind = _nearest_kind(source, model, drawn, found)
    for name, image in drawn.items():
        found[name] = image.draw(kind, source.count, source.seed)
    return {value.name: found[value.name] for value in inputs}


class _Image:
    """What is known of an input that is an image: which axis counts colours, and its range."""

    def __init__(self, model: Model, value: Value, shape: tuple[int, ...]) -> None:
        self._model, self._value = model, value
        self.shape = shape
        self.channel_axis = colour_axis(shape) if value.dtype in _IMAGES else None
        self.low, self.high = 0.0, 1.0

    def read_range(self, source: Synthetic) -> None:
        """Take the range that is asked for, else what the model expects."""
        if source.low is not None and source.high is not None:
            self.low, self.high = source.low, source.high
            return
        if self._value.dtype == TensorProto.UINT8:
            self.low, self.high = 0.0, 255.0
            return
        centre = _expected_mean(self._model, self._value)
        if centre is None:
            raise DataError(
                f"{PREFIX}: the range of input '{self._value.name}' can't be read from the model; "
                f"give it as {PREFIX}:LOW:HIGH (as in {PREFIX}:0:255)"
            )
        self.low, self.high = next(
            (bounds for most, bounds in _RANGES if centre <= most), (0.0, 255.0)
        )

    def draw(self, kind: tuple[float, float, float], count: int, seed: int) -> Array:
        """Images of a kind within the range."""
        assert self.channel_axis is not None
        smallest, contrast, colour = kind
        random = np.random.default_rng(seed)
        channels = self.shape[self.channel_axis]
        sides = [n for axis, n in enumerate(self.shape) if axis not in (0, self.channel_axis)]
        found = np.empty((count, channels, *sides), np.float32)
        spectrum = _spectrum(sides)
        for index in range(count):
            image = _shapes(random, channels, sides, smallest * min(sides), colour)
            image += TEXTURE * _texture(random, spectrum)
            image *= contrast * np.exp(0.3 * random.standard_normal()) / max(image.std(), 1e-12)
            level = 0.47 + 0.12 * random.standard_normal()
            tint = 0.06 * random.standard_normal((channels, 1, 1))
            found[index] = level + tint + image
        found = np.clip(found, 0, 1) * (self.high - self.low) + self.low
        moved = np.moveaxis(found, 1, self.channel_axis)
        if self._value.dtype == TensorProto.UINT8:
            moved = np.round(moved)
        dtype = helper.tensor_dtype_to_np_dtype(self._value.dtype)
        return np.ascontiguousarray(moved, dtype)


_IMAGES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8)

_RANGES = ((0.05, (-1.0, 1.0)), (1.0, (0.0, 1.0)))
"""The largest mean that a model expects, and the usual range that has it; else 0 to 255."""


def _shapes(
    random: np.random.Generator, channels: int, sides: list[int], smallest: float, colour: float
) -> Array:
    """Ellipses and rectangles [channels, rows, columns], of mean 0 and deviation 1."""
    image = np.zeros((channels, *sides))
    rows, columns = sides
    largest = 0.75 * min(sides)
    for _ in range(SHAPES):
        radius = min(smallest / (np.sqrt(random.random()) + 1e-3), largest)
        y, x = (random.uniform(-0.1, 1.1) * side for side in sides)
        angle, flat = random.uniform(0, np.pi), random.uniform(0.3, 1)
        reach = radius * np.sqrt(2)
        top, left = max(int(y - reach), 0), max(int(x - reach), 0)
        bottom, right = min(int(y + reach) + 2, rows), min(int(x + reach) + 2, columns)
        down, across = np.mgrid[top : max(bottom, top), left : max(right, left)]
        along = (across - x) * np.cos(angle) + (down - y) * np.sin(angle)
        beside = ((down - y) * np.cos(angle) - (across - x) * np.sin(angle)) / flat
        if random.random() < 0.5:
            inside = np.square(along) + np.square(beside) < radius**2
        else:
            inside = (np.abs(along) < radius) & (np.abs(beside) < radius)
        level = random.standard_normal() + colour * random.standard_normal((channels, 1))
        part = image[:, top : top + inside.shape[0], left : left + inside.shape[1]]
        part[:, inside] = level
    image -= image.mean()
    found: Array = image / max(float(image.std()), 1e-12)
    return found


def _spectrum(sides: list[int]) -> Array:
    grids = np.meshgrid(*(np.fft.fftfreq(n) * n for n in sides), indexing="ij")
    radius = np.sqrt(sum(np.square(grid) for grid in grids))
    found: Array = np.where(radius > 0, 1 / np.maximum(radius, 1) ** SMOOTHNESS, 0)
    return found


def _texture(random: np.random.Generator, spectrum: Array) -> Array:
    """Noise of a spectrum, of mean 0 and deviation 1."""
    noise = np.fft.fftn(random.standard_normal(spectrum.shape)) * spectrum
    field = np.fft.ifftn(noise).real
    found: Array = field / max(float(field.std()), 1e-12)
    return found


def _noise(source: Synthetic, like: Array, *, by_rows: bool) -> Array:
    """Normal, or uniform within the bounds; integers as in the one run that is known to work.

    Either each row or the whole of it is a sample.
    """
    random = np.random.default_rng(source.seed)
    shape = (source.count, *(like.shape[1:] if by_rows and like.ndim else like.shape))
    if like.dtype.kind == "f":
        if source.low is not None and source.high is not None:
            return random.uniform(source.low, source.high, shape).astype(like.dtype)
        return random.standard_normal(shape).astype(like.dtype)
    flat = like.reshape(-1)
    if not flat.size:
        return np.zeros(shape, like.dtype)
    return random.choice(flat, shape).astype(like.dtype)


def _expected_mean(model: Model, value: Value) -> float | None:
    """The value that a model takes for the middle of its input, by what it does with it first."""
    scale, shift = 1.0, 0.0  # what was made of the input so far is scale * input + shift
    while True:
        users = [user for user in value.users if isinstance(user, Node)]
        if len(users) != 1 or normalize_domain(users[0].domain) != "":
            return None
        node = users[0]
        if node.op_type == "BatchNormalization":
            mean = model.constant(node.input(3))
            return None if mean is None else (float(np.mean(mean.numpy())) - shift) / scale
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            other = next((v for v in node.inputs if v is not value), None)
            tensor = model.constant(other)
            if tensor is None or (node.op_type == "Sub" and node.input(0) is not value):
                return None
            number = float(np.mean(tensor.numpy()))
            if node.op_type in ("Mul", "Div"):
                if not number or (node.op_type == "Div" and node.input(0) is not value):
                    return None
                factor = number if node.op_type == "Mul" else 1 / number
                scale, shift = scale * factor, shift * factor
            else:
                shift += number if node.op_type == "Add" else -number
                return -shift / scale
        elif node.op_type not in ("Cast", "Identity", "Reshape", "Transpose"):
            return None
        following = node.output(0)
        if following is None:
            return None
        value = following


def _nearest_kind(
    source: Synthetic,
    model: Model,
    images: Mapping[str, _Image],
    others: Mapping[str, Array],
) -> tuple[float, float, float]:
    """Images of which the first layers' statistics are nearest to those that the model keeps."""
    nodes = normalizations(model)[:STATISTICS]
    if not nodes or not images:
        return USUAL
    try:
        session = session_up_to(model, [node.input(0) for node in nodes])
        found = [
            sum(
                float(distance.mean())
                for distance in distances(
                    session, model, nodes, _feeds(source, session, kind, images, others)
                )
            )
            for kind in KINDS
        ]
    except SecateurError:
        return USUAL
    return KINDS[int(np.argmin(found))]


def _feeds(
    source: Synthetic,
    session: Session,
    kind: tuple[float, float, float],
    images: Mapping[str, _Image],
    others: Mapping[str, Array],
) -> list[dict[str, Array]]:
    """Runs of a few samples, in the size that each input declares."""
    arrays = {name: image.draw(kind, LOOKED_AT, source.seed) for name, image in images.items()}
    size = min(image.shape[0] for image in images.values())
    runs = range(0, LOOKED_AT - size + 1, size)
    return [
        {
            name: (arrays[name] if name in arrays else others[name])[start : start + size]
            for name in session.input_names
        }
        for start in runs
    ]
