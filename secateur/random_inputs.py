"""Random inputs, for comparisons and timings without sample data."""

from __future__ import annotations

from .data import model_inputs
from .ir.errors import SecateurError
from .ir.model import Model
from .ir.tensor import Array
from .npz import DataError
from .passes.compare import random_feeds
from .passes.reference import Session

OPEN_SIZES = (8, 32, 128, 512)
"""Sizes to try for axes that a model leaves open; networks that downsample need large ones."""


def random_feed(model: Model, seed: int) -> dict[str, Array]:
    """One run's random inputs, with which ONNX Runtime can run the model.

    A free first axis is 1; other open axes get the first size of `OPEN_SIZES` that the
    model runs with. Raises DataError where there is none.
    """
    sizes = OPEN_SIZES if _has_open_axes(model) else OPEN_SIZES[:1]
    try:
        session = Session(model)
        return _first_that_runs(model, session, seed, sizes)
    except SecateurError as error:
        raise DataError(f"no random inputs that the model runs with ({error})") from None


def _first_that_runs(
    model: Model, session: Session, seed: int, sizes: tuple[int, ...]
) -> dict[str, Array]:
    for size in sizes:
        feed = _feed(model, seed, size)
        try:
            session.run(feed)
            return feed
        except SecateurError:
            if size == sizes[-1]:
                raise
    raise AssertionError("there is a last size")


def _feed(model: Model, seed: int, size: int) -> dict[str, Array]:
    names = {v.shape[0] for v in model_inputs(model) if v.shape}
    batch = {name: 1 for name in names if isinstance(name, str)}
    feeds = random_feeds(model, seed, batch, default=size)
    unnamed = {v.name for v in model_inputs(model) if v.shape and v.shape[0] is None}
    return {name: array[:1] if name in unnamed else array for name, array in feeds.items()}


def _has_open_axes(model: Model) -> bool:
    return any(
        not isinstance(size, int)
        for value in model_inputs(model)
        for size in (value.shape or ())[1:]
    )
