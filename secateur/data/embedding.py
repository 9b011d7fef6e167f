"""Preprocessing compiled into a model: pixels in, placed by the caller."""

from __future__ import annotations

import dataclasses

from ..ir.model import Model
from ..passes.simplify import EmbedPreprocessing
from ..passes.sizes import infer_sizes
from .datasets import DataSource, FileSource
from .npz import DataError
from .pictures import checked_type, layout, only_input
from .preprocessing import Preprocessing


def embed(model: Model, how: Preprocessing) -> Preprocessing:
    """Let the one input of `model` take pixels: uint8, height and width before channels.

    What the network got before is computed from these as `Pictures.finished` does. Placing is left
    to the caller. Returns `how` with the layout and the type that the input had. Raises
    SecateurError where the input takes no pictures.
    """
    value = only_input(model)
    last, (colours, *_) = layout(value, how)
    dtype = checked_type(value, how, colours)
    if dtype.name == "bool" or dtype.kind not in "fiu":
        raise DataError(f"input '{value.name}' takes no pictures: its type is {dtype}")
    EmbedPreprocessing(
        value.name,
        scale=how.scale,
        mean=how.mean,
        std=how.std,
        reverse=how.channels == "bgr",
        last=last,
    ).run(model)
    infer_sizes(model)
    return dataclasses.replace(how, layout="nhwc" if last else "nchw", dtype=dtype.name)


def as_pixels(source: DataSource | None, how: Preprocessing) -> DataSource | None:
    """Samples for a model that `how` was compiled into: of pictures, their pixels."""
    if not isinstance(source, FileSource):
        return source
    return dataclasses.replace(source, preprocessing=how, as_pixels=True)


def embedded_note(model: Model, how: Preprocessing) -> str:
    """What a reader of a report has to know."""
    value = only_input(model)
    settings = {
        k: v for k, v in how.settings().items() if k in ("scale", "mean", "std", "channels")
    }
    words = ", ".join(
        f"{name} {':'.join(f'{n:g}' for n in given) if isinstance(given, tuple) else given}"
        for name, given in settings.items()
    )
    return (
        f"preprocessing is part of the model: input '{value.name}' takes bytes, height x width x "
        f"channels ({words or 'as they are'})"
    )
