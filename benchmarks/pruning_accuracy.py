"""What pruning costs, with recovery and without, over several draws of calibration samples.

    python benchmarks/pruning_accuracy.py MODEL POOL.npz TEST.npz --macs 0.7 --macs 0.5

Calibration samples are drawn from POOL, whose labels are not looked at; TEST has labels, and
nothing is chosen by it. For each share of the MACs: top-1 of the cut and of the recovered
model, points lost with the standard error of the paired difference, and the divergence of the
recovered model's scores from the original's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from secateur.data.datasets import load_dataset
from secateur.ir.model import Model
from secateur.ir.onnx_io import load
from secateur.ir.reference import Session
from secateur.passes.base import Context
from secateur.passes.linear.divergence import Divergence
from secateur.passes.linear.opening import open_batch
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels, Recover
from secateur.passes.simplify import simplify_pipeline
from secateur.passes.sizes import infer_sizes

Array = Any
BATCH = 100


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("pool", type=click.Path(exists=True, path_type=Path))
@click.argument("test", type=click.Path(exists=True, path_type=Path))
@click.option("--macs", "shares", type=float, multiple=True, default=(0.7, 0.5))
@click.option("--samples", type=int, default=512, show_default=True, help="Of each draw.")
@click.option("--draws", type=int, default=5, show_default=True)
@click.option("--search", type=float, default=0.0, help="Minutes of search for widths.")
def main(
    model: Path,
    pool: Path,
    test: Path,
    shares: tuple[float, ...],
    samples: int,
    draws: int,
    search: float,
) -> None:
    original = load(model)
    PassManager(simplify_pipeline()).run(original)
    infer_sizes(original)
    labelled = load_dataset(test, original)
    arrays = load_dataset(pool, original).samples.arrays
    if labelled.labels is None:
        raise click.UsageError(f"{test} has no labels")
    scores = outputs(original, labelled.samples.arrays)
    right = scores.argmax(axis=1) == labelled.labels
    click.echo(f"original {100 * right.mean():.2f} %, {len(right)} samples")
    for share in shares:
        lost, cut, distances = [], [], []
        for draw in range(draws):
            chosen = np.random.default_rng(draw).permutation(len(next(iter(arrays.values()))))
            drawn = {name: array[chosen[:samples]] for name, array in arrays.items()}
            found = {}
            for recovery in (False, True):
                pruned = original.clone()
                passes = [PruneChannels(macs=share, search=search), *[Recover()] * recovery]
                PassManager(passes).run(pruned, Context(drawn, seed=draw))
                infer_sizes(pruned)
                found[recovery] = outputs(pruned, labelled.samples.arrays)
            kept = found[True].argmax(axis=1) == labelled.labels
            cut.append(100 * np.mean(found[False].argmax(axis=1) == labelled.labels))
            lost.append(100 * (right.astype(float) - kept))
            distance = Divergence()
            distance.add({"scores": scores}, {"scores": found[True]})
            distances.append(distance.value)
        paired = np.mean(lost, axis=0)
        error = paired.std(ddof=1) / np.sqrt(len(paired))
        draws_error = np.std([each.mean() for each in lost])
        click.echo(
            f"{share:.0%} of the MACs: cut {np.mean(cut):.2f} %, recovered "
            f"{100 * right.mean() - paired.mean():.2f} %: {paired.mean():.2f} points lost "
            f"(standard error {error:.2f}, between draws {draws_error:.2f}), "
            f"divergence {np.mean(distances):.4f}"
        )


def outputs(model: Model, arrays: dict[str, Array]) -> Array:
    """The first output of all samples, [samples, classes]."""
    with open_batch(model, arrays) as opened:
        session = Session(model, threads=0)
        size = BATCH if opened else 1
        count = len(next(iter(arrays.values())))
        found = []
        for start in range(0, count, size):
            feeds = {name: array[start : start + size] for name, array in arrays.items()}
            found.append(session.run(feeds)[session.output_names[0]])
    return np.concatenate(found).reshape(count, -1)


if __name__ == "__main__":
    main()
