"""Pictures as inputs of models. Needs Pillow, the extra `images`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from ..ir.errors import SecateurError
from ..ir.files import open_regular
from ..ir.graph import Value
from ..ir.model import Model
from ..ir.tensor import Array
from .folders import FileError, SampleFolder
from .inputs import model_inputs
from .npz import DataError
from .preprocessing import MOST_PIXELS, PRESETS, Placing, Preprocessing, place, resized
from .streams import StreamedArray

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of 8-bit pictures; others would lose what they hold without a word."""

COLOURS = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True)
class PictureInput:
    """A model's input that takes pictures: `size` is height and width."""

    name: str
    dtype: np.dtype[Any]
    colours: int
    last: bool
    """Whether channels are the last axis."""
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (*self.size, self.colours) if self.last else (self.colours, *self.size)

    @classmethod
    def of(cls, model: Model, how: Preprocessing) -> PictureInput:
        """The input of the model, in the size that it or `how` says. Raises DataError."""
        value = only_input(model)
        last, sizes = layout(value, how)
        colours, *size = sizes
        found = how.size or tuple(side for side in size if isinstance(side, int))
        if len(found) != 2:
            raise DataError(
                f"input '{value.name}' leaves its height or width open: --preprocess size=224x224"
            )
        given = how.size
        if given and any(isinstance(s, int) and s != g for s, g in zip(size, given, strict=True)):
            raise DataError(
                f"preprocess: size {given[0]}x{given[1]} is not the input's, {size[0]}x{size[1]}"
            )
        dtype = checked_type(value, how, colours)
        return cls(value.name, dtype, colours, last, (found[0], found[1]))


def only_input(model: Model) -> Value:
    """The one input of a model that pictures are for. Raises DataError where there are others."""
    inputs = model_inputs(model)
    if len(inputs) != 1:
        names = ", ".join(f"'{value.name[:100]}'" for value in inputs[:8])
        raise DataError(
            f"pictures are for models with one input, and this one has {len(inputs)} "
            f"({names}); make constants of others with --input-value, or give .npy files or a "
            "function"
        )
    return inputs[0]


def checked_type(value: Value, how: Preprocessing, colours: int) -> np.dtype[Any]:
    """The type of an input's numbers. Raises DataError where `how` doesn't suit the input."""
    if how.channels == "bgr" and colours == 1:
        raise DataError(f"preprocess: channels bgr, and input '{value.name}' has one channel")
    for name in ("mean", "std"):
        if len(getattr(how, name)) not in (1, colours):
            raise DataError(
                f"preprocess: {name} has {len(getattr(how, name))} numbers, and input "
                f"'{value.name}' {colours} channel(s)"
            )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.dtype))
    if how.dtype not in ("auto", dtype.name):
        raise DataError(f"preprocess: dtype {how.dtype} is not the input's, {dtype}")
    return dtype


def layout(value: Value, how: Preprocessing) -> tuple[bool, list[Any]]:
    """Whether channels come last, and the sizes of channels, height and width."""
    shape = value.shape
    if shape is None or len(shape) not in (3, 4):
        raise DataError(f"input '{value.name}' takes no pictures: it has not 3 or 4 axes")
    first, *_, final = axes = list(shape[-3:])
    if how.layout == "auto":
        fits = [k for k, size in ((False, first), (True, final)) if size in COLOURS]
        if not fits:
            raise DataError(
                f"input '{value.name}' of shape {list(shape)} has no axis of 1 or 3 channels; "
                "--preprocess layout=nchw or nhwc says which it is"
            )
        last = fits[0]
    else:
        last = how.layout == "nhwc"
    sizes = [axes[2], axes[0], axes[1]] if last else axes
    if not isinstance(sizes[0], int):
        sizes[0] = 3
    if sizes[0] not in COLOURS:
        raise DataError(f"input '{value.name}' has {sizes[0]} channels; pictures have 1 or 3")
    return last, sizes


class Pictures:
    """Pictures of a folder as one input of a model, checked by their headers. Raises DataError."""

    def __init__(
        self,
        folder: SampleFolder,
        names: list[str],
        model: Model,
        how: Preprocessing | None,
        *,
        as_pixels: bool = False,
    ) -> None:
        """With `as_pixels` the model takes pixels, and `how` says, with layout and type, what it
        makes of them: `embedding.embed`."""
        pillow()
        if how is None:
            raise DataError(
                "say how pictures become inputs: --preprocess and one of " + ", ".join(PRESETS)
            )
        self.folder, self.names, self.how, self.as_pixels = folder, names, how, as_pixels
        self.input = PictureInput.of(model, how.placing_only() if as_pixels else how)
        self.last, self.dtype = self.input.last, self.input.dtype
        if as_pixels:
            self.last, self.dtype = how.layout == "nhwc", np.dtype(how.dtype)
        self.placings: list[Placing] = []
        for name in names:
            with opened(folder, name) as image, _named(name):
                self.placings.append(place(image.height, image.width, self.input.size, how))

    @property
    def input_name(self) -> str:
        return self.input.name

    @property
    def array(self) -> StreamedArray:
        return StreamedArray.of_files(
            self.names, self.input.shape, self.input.dtype, self.read, self.folder.root
        )

    def read(self, index: int) -> Array:
        """One sample, as the model gets it."""
        pixels = self.pixels(index)
        return pixels if self.as_pixels else self.finished(pixels)

    def pixels(self, index: int) -> Array:
        """What is resized and pasted, uint8 [height, width, channels] in RGB or gray."""
        name, placing = self.names[index], self.placings[index]
        with opened(self.folder, name) as image, _named(name):
            decoded = image.convert(COLOURS[self.input.colours])
            array = resized(decoded, placing.inner, self.how.kernel)
        array = array.reshape(*placing.inner, self.input.colours)
        return placing.paste(array, self.input.size, self.how.pad)

    def finished(self, pixels: Array) -> Array:
        """Of pixels, the channels in order and layout, as numbers that the network takes."""
        if self.how.channels == "bgr":
            pixels = pixels[..., ::-1]
        array = self.how.normalized(pixels, self.dtype)
        return np.ascontiguousarray(array if self.last else array.transpose(2, 0, 1))

    def like(self, name: str) -> Array:
        """Another picture of the folder in the values of the input, in its own size."""
        with opened(self.folder, name) as image, _named(name):
            array = np.asarray(image.convert(COLOURS[self.input.colours]))
        return self.finished(array.reshape(*array.shape[:2], self.input.colours))

    def mask(self, index: int, name: str) -> Array:
        """A picture whose pixels are class indices, placed like a sample; outside 255."""
        placing = self.placings[index]
        with opened(self.folder, name) as image, _named(name):
            if image.mode not in ("L", "P", "1"):
                raise FileError(name, f"a mask has one channel, not mode {image.mode}")
            if (image.height, image.width) != (placing.height, placing.width):
                raise FileError(name, "a mask has the size of its picture")
            array = resized(image, placing.inner, "nearest").astype(np.uint8)
        return placing.paste(array, self.input.size, 255)


@contextlib.contextmanager
def opened(folder: SampleFolder, name: str) -> Iterator[Image]:
    """A picture whose header was looked at, and nothing else. Raises DataError."""
    image_module = pillow()
    try:
        with open_regular(folder.path(name)) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the number of pixels is checked below
            with image_module.open(file, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise FileError(
                        name,
                        f"has {image.width}x{image.height} pixels; {MOST_PIXELS:,} is the most",
                    )
                if image.mode not in MODES:
                    raise FileError(name, f"is a picture of mode {image.mode}; 8-bit ones are read")
                yield image
    except SecateurError:
        raise
    except image_module.UnidentifiedImageError:
        raise FileError(name, "is no picture, or a damaged one") from None
    except image_module.DecompressionBombError:
        raise FileError(name, f"has more pixels than {MOST_PIXELS:,}") from None
    except OSError as error:
        raise FileError(name, error) from None


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the file in whatever a decoder raises."""
    try:
        yield
    except FileError:
        raise
    except MemoryError:
        raise FileError(name, "needs too much memory") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        text = " ".join(str(error).split()) or type(error).__name__
        raise FileError(name, f"can't be decoded: {text[:200]}") from None


def pillow() -> Any:
    """Pillow's module Image. Raises DataError where it isn't installed."""
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        raise DataError("pictures need Pillow: pip install 'secateur[images]'") from None
