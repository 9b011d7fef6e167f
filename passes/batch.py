"""Using a proof that samples are independent (ir/dependencies/batch.py)."""

from __future__ import annotations

from ..ir.declarations import check_declarations
from ..ir.dependencies.batch import Batch, find_batch
from ..ir.errors import UnsupportedError
from ..ir.graph import tensor_type
from ..ir.infer import infer_shapes
from ..ir.model import Model
from .simplify import simplify_pipeline


def inspect_batch(model: Model) -> Batch:
    """As `find_batch`; where that finds no proof, of the simplified model, as is compiled."""
    batch = find_batch(model)
    if batch.obstacle is None:
        return batch
    model = model.clone()
    for step in simplify_pipeline():
        step.run(model)
    infer_shapes(model)
    return find_batch(model)


def check_batch(batch: Batch) -> None:
    """Raise UnsupportedError where samples that the model declares may not be independent."""
    if batch.obstacle is not None:
        names = ", ".join(f"'{value.name}'" for value in batch.inputs)
        raise UnsupportedError(
            f"{batch.obstacle}, so that the open first size of {names} is no batch of independent "
            f"samples; give it a size, as in {batch.advice}"
        )


def take_one_sample(model: Model, batch: Batch) -> None:
    """Fix the shapes of all values at one sample. `batch` is proven, and of this model."""
    for value, shape in batch.shapes.items():
        if value.const is None and tensor_type(value.type) is not None:
            value.set_tensor_type(value.dtype, shape)
    check_declarations(model)
