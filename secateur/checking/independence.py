"""Comparison of a batch's outputs with those of its samples run one by one, to confirm a proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from ..data.batches import MORE_SAMPLES, runs
from ..data.npz import DataError
from ..ir.dependencies.batch import Batch
from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.reference import Session
from ..ir.tensor import Array
from ..passes.batch import inspect_batch
from ..reporting.report import Check
from .agreement import compare
from .checks import ROUNDING, Feeds, check_feeds, describe
from .rounding import Rounding
from .runners import Runner
from .running import open_model

STEPS = 0.05
"""Largest difference that counts as rounding in quantized models, where it may be steps."""


def check_independent(model: Model, batch: Batch, feeds: Feeds, seed: int) -> Check:
    """Run batches, and their samples one at a time, in ONNX Runtime.

    `batch` is that of the model, and proven. Samples come from runs with one sample among
    `feeds`. Raises SecateurError where a batch gives other results than its samples.
    """
    name = "batches against their samples"
    inputs = {value.name for value in batch.inputs}
    outputs = {value.name for value in batch.outputs}
    single = [dict(feed) for feed in feeds if all(len(feed[n]) == 1 for n in inputs)]
    if not single:
        return Check(name, False, "not compared: no inputs to run on")
    shapes = {n: array.shape for n, array in single[0].items()}  # runs may be of several sizes
    single = [feed for feed in single if all(feed[n].shape == s for n, s in shapes.items())]
    while len(single) < max(MORE_SAMPLES):
        single.append(_other_sample(single[0], inputs, seed + len(single)))
    whole = [
        {**single[0], **{n: np.concatenate([f[n] for f in single[:size]]) for n in inputs}}
        for size in MORE_SAMPLES
    ]
    session = Session(model, optimize=False, trial=True)
    if not all(runs(session, feed) for feed in whole):
        return Check(name, False, "not compared: ONNX Runtime takes one sample only")
    apart = _Apart(session, inputs, outputs)
    quantized = any(node.op_type.endswith("QuantizeLinear") for node in model.all_nodes())
    tolerance = STEPS if quantized else ROUNDING
    agreement = compare(apart, session, whole)
    if not agreement.within(tolerance):
        agreement = compare(apart, session, whole, Rounding.of(model, whole, agreement.flips))
    detail = describe(agreement)
    if not agreement.within(tolerance):
        raise SecateurError(f"{name}: {detail}: samples affect each other; nothing was written")
    return Check(name, True, detail, dataclasses.asdict(agreement))


def verify_batch(path: Path) -> list[Check]:
    """What is known of the first axis that a model's inputs leave open, compared with runs."""
    model = open_model(path)
    batch = inspect_batch(model)
    if not batch.inputs:
        return []
    if batch.obstacle is not None:
        return [Check("batch", True, f"none: {batch.obstacle}")]
    try:
        found = check_independent(model, batch, check_feeds(model, None, 0), 0)
    except DataError as error:
        return [Check("batch", True, f"of independent samples, not compared: {error}")]
    return [Check("batch", True, f"of independent samples, {found.detail}")]


@dataclasses.dataclass(frozen=True)
class _Apart:
    """Runs a batch one sample at a time. The named inputs and outputs have samples."""

    runner: Runner
    inputs: Collection[str]
    outputs: Collection[str]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        count = len(next(array for name, array in feeds.items() if name in self.inputs))
        results = [
            self.runner.run({n: a[i : i + 1] if n in self.inputs else a for n, a in feeds.items()})
            for i in range(count)
        ]
        return {
            name: np.concatenate([r[name] for r in results]) if name in self.outputs else array
            for name, array in results[-1].items()
        }


def _other_sample(
    feed: Mapping[str, Array], inputs: Collection[str], seed: int
) -> dict[str, Array]:
    """Another sample of the same values, elsewhere, so that they are as valid."""
    generator = np.random.default_rng(seed)

    def moved(array: Array) -> Array:
        return generator.permutation(array.reshape(-1)).reshape(array.shape)

    return {name: moved(a) if name in inputs else a for name, a in feed.items()}
