"""How many samples the runs of a comparison have."""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.reference import Session
from ..ir.tensor import Array
from .datasets import Dataset

MORE_SAMPLES = (2, 3)
"""Numbers of samples, besides one, where a model leaves that open."""


def batch_sizes(model: Model, data: Dataset) -> list[int]:
    """Numbers of samples for runs of a comparison: one, and more as far as the model runs."""
    if data.samples.batch is not None:
        return [data.samples.batch]
    session = Session(model, optimize=False, trial=True)
    return [1, *(size for size in MORE_SAMPLES if runs(session, data.samples.take(0, size)))]


def runs(session: Session, feed: Mapping[str, Array]) -> bool:
    """Whether ONNX Runtime takes these inputs."""
    try:
        session.run(feed)
    except SecateurError:
        return False
    return True
