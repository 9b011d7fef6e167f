"""How a picture or a recording becomes a model's input, as data: presets and single settings.

A picture is decoded to 8-bit RGB or gray, resized, cropped or padded to the input's size, its
channels put in order, and then (x * scale - mean) / std, channel by channel.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.tensor import Array
from .npz import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FITS = ("stretch", "crop", "letterbox")
KERNELS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "linear")
"""Pillow's, which widen where a picture shrinks, and `linear`, which does not."""

LARGEST_SIDE = 16384
"""Pixels along a side of what a model gets."""

MOST_PIXELS = 1 << 26
"""Of a picture that is decoded or resized: three channels of it take 200 MB."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens between a file and a model's input.

    `size`: height and width, by default the input's. `fit`: `stretch`; `crop`, of which the
    middle is taken after the picture was resized so that `crop_share` of its shorter side
    remain; or `letterbox`, the whole picture with a border of the grey `pad`. `kernel`: one of
    `KERNELS`; `linear` is bilinear without antialiasing, as in OpenCV's INTER_LINEAR and
    TensorFlow's image resizing. `channels`: `rgb` or `bgr`. `layout`: `nchw`, `nhwc`, or `auto`
    to see it in the input's shape. `mean` and `std` are in units after `scale` and in the order
    of `channels`, one number for each or one for all. `dtype`: NumPy's name of the type,
    `auto` for the input's.

    Of recordings: samples lie in -1..1 before `scale`. `rate`: samples a second that files must
    have. `length`: samples of an input, by default the input's; longer recordings lose their
    end, shorter ones are filled up with silence.
    """

    size: tuple[int, int] | None = None
    fit: str = "stretch"
    crop_share: float = 1.0
    kernel: str = "bilinear"
    pad: int = 114
    channels: str = "rgb"
    layout: str = "auto"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: str = "auto"
    rate: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        _choose("fit", self.fit, FITS)
        _choose("kernel", self.kernel, KERNELS)
        _choose("channels", self.channels, ("rgb", "bgr"))
        _choose("layout", self.layout, ("auto", "nchw", "nhwc"))
        _choose("dtype", self.dtype, ("auto", *_DTYPES))
        if self.size is not None and not all(0 < side <= LARGEST_SIDE for side in self.size):
            raise DataError(f"preprocess: size: sides lie between 1 and {LARGEST_SIDE}")
        if not 0 < self.crop_share <= 1:
            raise DataError("preprocess: crop-share lies above 0 and up to 1")
        if not 0 <= self.pad <= 255:
            raise DataError("preprocess: pad lies between 0 and 255")
        numbers = [self.scale, *self.mean, *self.std]
        if not all(map(math.isfinite, numbers)) or 0 in (self.scale, *self.std):
            raise DataError("preprocess: scale, mean and std are finite, scale and std not zero")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, 3):
                raise DataError(f"preprocess: {name} takes one number, or one for each channel")
        for name in ("rate", "length"):
            if (getattr(self, name) or 1) < 1:
                raise DataError(f"preprocess: {name} is a positive number")

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Preprocessing:
        """Of a preset's name and settings `key=value`, of which the last word counts.

        Numbers in a list are separated by colons, sides of a size by x: `imagenet`,
        `size=256x256`, `mean=0.5:0.5:0.5`. Raises DataError.
        """
        settings: dict[str, Any] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals:
                settings = {**preset(text), **settings}
                continue
            settings[_field(key)] = _parsed(_field(key), value)
        return cls(**settings)

    @classmethod
    def of(cls, given: Preprocessing | str | Sequence[str] | Mapping[str, Any]) -> Preprocessing:
        """As users write it in Python: a preset, texts as on the command line, or settings, among
        them `preset`. Raises DataError."""
        if isinstance(given, Preprocessing):
            return given
        if isinstance(given, str):
            return cls.parse([given])
        if not isinstance(given, Mapping):
            return cls.parse(given)
        settings = dict(given)
        start = settings.pop("preset", None)
        chosen = {} if start is None else preset(start)
        for key, value in settings.items():
            name = _field(key)
            if name in ("mean", "std") and isinstance(value, (int, float)):
                value = (value,)
            if isinstance(value, list):
                value = tuple(value)
            chosen[name] = _parsed(name, value) if isinstance(value, str) else value
        try:
            return cls(**chosen)
        except (TypeError, ValueError) as error:
            raise DataError(f"preprocess: {error}") from None

    def placing_only(self) -> Preprocessing:
        """What is left to do for a model that does the rest: pixels, placed, in RGB or gray."""
        kept = {
            name: getattr(self, name) for name in ("size", "fit", "crop_share", "kernel", "pad")
        }
        return Preprocessing(**kept, layout="nhwc")

    def settings(self) -> dict[str, Any]:
        """What differs from doing nothing, for a report."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def normalized(self, array: Array, dtype: np.dtype[Any]) -> Array:
        """(x * scale - mean) / std of an array whose last axis is channels, in `dtype`.

        Integers are rounded, and stay within the type's limits.
        """
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        whole = np.issubdtype(dtype, np.integer)
        if self.scale == 1 and not mean.any() and (std == 1).all() and array.dtype == dtype:
            return array
        found = (array.astype(np.float32) * np.float32(self.scale) - mean) / std
        if whole:
            limits = np.iinfo(dtype)
            found = np.clip(np.rint(found), limits.min, limits.max)
        return found.astype(dtype)


_DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int16", "int32", "int64")

_IMAGENET: dict[str, Any] = {
    "fit": "crop",
    "crop_share": 0.875,
    "scale": 1 / 255,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}

PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": _IMAGENET,
    "yolo": {"fit": "letterbox", "kernel": "linear", "scale": 1 / 255},
    "tf": {
        "fit": "crop",
        "crop_share": 0.875,
        "kernel": "linear",
        "scale": 1 / 127.5,
        "mean": (1.0,),
    },
    "caffe": {
        "fit": "crop",
        "crop_share": 0.875,
        "channels": "bgr",
        "mean": (103.939, 116.779, 123.68),
    },
    "raw": {},
}
"""`imagenet`: torchvision's; `yolo`: Ultralytics' letterbox, 0..1; `tf`: -1..1; `caffe`: BGR less
the mean; `raw`: 0..255, stretched."""


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset. Raises DataError, which names the nearest one."""
    _choose("preset", name, tuple(PRESETS))
    return dict(PRESETS[name])


def _choose(what: str, given: Any, known: Sequence[str]) -> None:
    if given in known:
        return
    near = difflib.get_close_matches(str(given), known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DataError(f"preprocess: {what} '{given}' is unknown; {hint}there are {', '.join(known)}")


def _field(key: str) -> str:
    names = [field.name for field in dataclasses.fields(Preprocessing)]
    name = key.strip().replace("-", "_")
    _choose("setting", name, names)
    return name


def _parsed(name: str, text: str) -> Any:
    try:
        if name == "size":
            sides = [int(side) for side in text.lower().split("x")]
            return (sides[0], sides[-1]) if len(sides) < 3 else int("")
        if name in ("mean", "std"):
            return tuple(_number(part) for part in text.split(":"))
        if name in ("scale", "crop_share"):
            return _number(text)
        return int(text) if name in ("pad", "rate", "length") else text
    except ValueError:
        raise DataError(f"preprocess: {name}: '{text}' can't be read") from None


def _number(text: str) -> float:
    """A decimal number or a fraction, as 1/255."""
    above, slash, below = text.partition("/")
    if not slash:
        return float(text)
    if float(below) == 0:
        raise ValueError
    return float(above) / float(below)


# --- geometry ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Placing:
    """Where a picture of `height` and `width` pixels lies in a model's input.

    It is resized to `inner` (height, width), whose corner is at `top` and `left` of the input:
    negative where it is cropped.
    """

    height: int
    width: int
    inner: tuple[int, int]
    top: int = 0
    left: int = 0

    def to_picture(self, boxes: Array) -> Array:
        """Boxes [n, 4] of corners x, y, x, y in the input, in the picture's pixels and within."""
        scale = [self.inner[1] / self.width, self.inner[0] / self.height] * 2
        moved = (np.asarray(boxes, np.float64) - [self.left, self.top] * 2) / scale
        return np.clip(moved, 0, [self.width, self.height] * 2)

    def paste(self, inner: Array, size: tuple[int, int], pad: int) -> Array:
        """The input of height and width `size`, around or out of the resized picture."""
        if inner.shape[:2] == size and not self.top and not self.left:
            return inner
        made = np.full((*size, *inner.shape[2:]), pad, inner.dtype)
        rows, columns = (
            (slice(max(0, at), at + length), slice(max(0, -at), full - at))
            for at, length, full in zip((self.top, self.left), self.inner, size, strict=True)
        )
        made[rows[0], columns[0]] = inner[rows[1], columns[1]]
        return made


def place(height: int, width: int, size: tuple[int, int], how: Preprocessing) -> Placing:
    """Where a picture of a height and width goes in an input of another. Raises DataError."""
    if how.fit == "stretch":
        return Placing(height, width, size)
    if how.fit == "letterbox":
        ratio = min(size[0] / height, size[1] / width)
        inner = max(1, round(height * ratio)), max(1, round(width * ratio))
        top, left = (
            round((whole - part) / 2 - 0.1) for whole, part in zip(size, inner, strict=True)
        )
        return Placing(height, width, inner, top, left)
    before = round(size[0] / how.crop_share), round(size[1] / how.crop_share)
    ratio = max(before[0] / height, before[1] / width)
    inner = max(before[0], int(height * ratio)), max(before[1], int(width * ratio))
    if inner[0] * inner[1] > MOST_PIXELS:
        raise DataError(f"of {width}x{height} pixels is too narrow to be cropped")
    top, left = (round((part - whole) / 2) for whole, part in zip(size, inner, strict=True))
    return Placing(height, width, inner, -top, -left)


def resized(image: Image, size: tuple[int, int], kernel: str) -> Array:
    """The picture with a height and width, uint8, by one of `KERNELS`."""
    if (image.height, image.width) == size:
        return np.asarray(image)
    if kernel == "linear":
        return _linear(np.asarray(image), size)
    from PIL.Image import Resampling

    height, width = size
    return np.asarray(image.resize((width, height), Resampling[kernel.upper()]))


def _linear(image: Array, size: tuple[int, int]) -> Array:
    """Between the two nearest pixels along each axis, whose middles lie at halves."""
    found = image.astype(np.float32)
    for axis, count in enumerate(size):
        before = image.shape[axis]
        at = np.clip((np.arange(count) + 0.5) * before / count - 0.5, 0, before - 1)
        low = np.floor(at).astype(np.intp)
        share = (at - low).astype(np.float32)
        share = share.reshape([-1 if k == axis else 1 for k in range(found.ndim)])
        above = np.minimum(low + 1, before - 1)
        found = found.take(low, axis) * (1 - share) + found.take(above, axis) * share
    return np.rint(found).astype(np.uint8)
