"""Models and artifacts by their files, ready to run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..data.batches import batch_sizes
from ..data.datasets import DataSource, load_dataset
from ..data.fixed_inputs import FixedInputs
from ..data.random_inputs import random_feeds
from ..ir.model import Model
from ..ir.onnx_io import load
from ..ir.reference import Session
from ..ir.tensor import Array
from ..ir.verify import verify
from ..passes.simplify import CutOutputs
from ..passes.sizes import infer_sizes
from .library_runner import LibraryRunner, module_of
from .runners import Runner


def open_model(
    source: Model | str | os.PathLike[str],
    fixed: FixedInputs | None = None,
) -> Model:
    """Read a model, or copy one, verify it, fix inputs and infer all shapes.

    Raises SecateurError where the model is bad or has no such inputs.
    """
    model = source.clone() if isinstance(source, Model) else load(source)
    verify(model)
    for pass_ in (fixed or FixedInputs()).passes():
        pass_.run(model)
    infer_sizes(model)
    return model


def open_runner(
    path: Path, threads: int = 1, outputs: Sequence[str] = (), *, fast: bool = False
) -> Runner:
    """A session of an ONNX file, perhaps up to some `outputs` and `fast`, or the runtime of an
    artifact or a C library (`.so`).

    The latter has the module that was made with it beside it, which is code, too.
    """
    if path.suffix == ".so":
        module = module_of(path)
        if module is not None:
            return LibraryRunner(module, threads)
        from ..backends.tvm.artifact.runtime import Runtime

        return Runtime(path, threads)
    model = load(path)
    CutOutputs(tuple(outputs)).run(model)
    return Session(model, threads=threads, fast=fast)


def feeds_for(model: Model, data: DataSource | None, seed: int) -> Iterable[dict[str, Array]]:
    """Inputs for one run after the other: all samples of a data file, or a few random runs."""
    if data is None:
        return random_feeds(model, seed)
    samples = load_dataset(data, model, labelled=False)
    return samples.feeds(sizes=batch_sizes(model, samples))
