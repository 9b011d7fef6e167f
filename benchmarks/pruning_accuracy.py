"""What pruning costs, with recovery and without, over several draws of calibration samples.

    python benchmarks/pruning_accuracy.py MODEL POOL.npz TEST.npz --macs 0.7 --macs 0.5

Calibration samples are drawn from POOL, whose labels are not looked at; TEST has labels, and
nothing is chosen by it. For each share of the MACs a row of a table: top-1 of the cut and of
the recovered model, points lost with the standard error of the paired difference, the
divergence of the recovered model's scores from the original's, and with --int8 top-1 after
quantizing it, too. `--limit 'NAME=..0.75'` has a group lose something that would stay whole.

With --net NAME, MODEL is a net of `secateur.models.zoo.trained` whose weights lie beside it
as .pt; where Torch-Pruning is installed, it prunes them to the same MACs, in eight ways, of
which the best on TEST counts, and the same with BatchNormalization recalibrated on the
calibration samples of the first draw.
"""

from __future__ import annotations

import sys
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
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.simplify import simplify_pipeline
from secateur.passes.sizes import infer_sizes

Array = Any
BATCH = 100

HEADER = ["MACs", "cut", "recovered", "points lost", "between draws", "divergence"]


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("pool", type=click.Path(exists=True, path_type=Path))
@click.argument("test", type=click.Path(exists=True, path_type=Path))
@click.option("--macs", "shares", type=float, multiple=True, default=(0.7, 0.5))
@click.option("--samples", type=int, default=512, show_default=True, help="Of each draw.")
@click.option("--draws", type=int, default=5, show_default=True)
@click.option("--search", type=float, default=0.0, help="Minutes of search for widths.")
@click.option("--limit", "limits", multiple=True, help="As of `secateur prune`: a stream, too.")
@click.option("--int8", is_flag=True, help="Quantize what was recovered, too.")
@click.option("--net", help="Name of the net, to compare with Torch-Pruning.")
def main(
    model: Path,
    pool: Path,
    test: Path,
    shares: tuple[float, ...],
    samples: int,
    draws: int,
    search: float,
    limits: tuple[str, ...],
    int8: bool,
    net: str | None,
) -> None:
    original = load(model)
    PassManager(simplify_pipeline()).run(original)
    infer_sizes(original)
    labelled = load_dataset(test, original)
    arrays = load_dataset(pool, original).samples.arrays
    if labelled.labels is None:
        raise click.UsageError(f"{test} has no labels")
    inputs, labels = labelled.samples.arrays, labelled.labels
    scores = outputs(original, inputs)
    right = scores.argmax(axis=1) == labels
    peer = None if net is None else find_peer(net, model, inputs, labels)
    print(f"original {percent(right)} %, {len(right)} samples, {draws} draws of {samples}\n")
    header = HEADER + ["int8"] * int8 + ["Torch-Pruning", "recalibrated"] * (peer is not None)
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for share in shares:
        rows = []
        for number in range(draws):
            pruning = PruneChannels(macs=share, search=search, limits=limits)
            draw = Draw(original, arrays, samples, number, pruning, int8)
            rows.append(draw.measure(inputs, labels))
            reached = percent(rows[-1]["recovered"])
            print(f"{share:.0%}, draw {number}: {reached} %", file=sys.stderr, flush=True)
        lost = [100 * (right.astype(float) - row["recovered"]) for row in rows]
        paired = np.mean(lost, axis=0)
        error = paired.std(ddof=1) / np.sqrt(len(paired))
        distances = []
        for row in rows:
            distance = Divergence()
            distance.add({"scores": scores}, {"scores": row["scores"]})
            distances.append(distance.value)
        cells = [
            f"{np.mean([row['macs'] for row in rows]):.1%}",
            percent([row["cut"] for row in rows]),
            percent([row["recovered"] for row in rows]),
            f"{paired.mean():.2f} ± {error:.2f}",
            f"{np.std([each.mean() for each in lost]):.2f}",
            f"{np.mean(distances):.3f}",
        ]
        if int8:
            cells.append(percent([row["int8"] for row in rows]))
        if peer is not None:
            images = next(iter(arrays.values()))
            cells += peer.cells(share, images[drawn(images, samples, 0)])
        print(f"| {' | '.join(cells)} |", flush=True)


def drawn(array: Array, samples: int, draw: int) -> Array:
    """Which samples of a pool a draw takes."""
    return np.random.default_rng(draw).permutation(len(array))[:samples]


def percent(right: Any) -> str:
    return f"{100 * np.mean(right):.2f}"


class Draw:
    """One draw of calibration samples, and the model that they make."""

    def __init__(
        self,
        original: Model,
        arrays: dict[str, Array],
        samples: int,
        draw: int,
        pruning: PruneChannels,
        int8: bool,
    ) -> None:
        first = next(iter(arrays.values()))
        chosen = drawn(first, samples, draw)
        self.context = Context({name: a[chosen] for name, a in arrays.items()}, seed=draw)
        self.original, self.pruning, self.int8 = original, pruning, int8

    def measure(self, inputs: dict[str, Array], labels: Array) -> dict[str, Array]:
        """Which samples the cut, the recovered and the quantized model are right about."""
        model = self.original.clone()
        (record,) = PassManager([self.pruning]).run(model, self.context)
        statistics = record.result.statistics
        infer_sizes(model)
        cut = outputs(model, inputs).argmax(axis=1) == labels
        PassManager([Recover()]).run(model, self.context.after(record.result))
        infer_sizes(model)
        scores = outputs(model, inputs)
        found = {
            "macs": statistics["macs_after"] / statistics["macs_before"],
            "cut": cut,
            "recovered": scores.argmax(axis=1) == labels,
            "scores": scores,
        }
        if self.int8:
            PassManager([QuantizeStatic()]).run(model, self.context)
            infer_sizes(model)
            found["int8"] = outputs(model, inputs).argmax(axis=1) == labels
        return found


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


def find_peer(net: str, model: Path, inputs: dict[str, Array], labels: Array) -> Any:
    try:
        from torch_pruning_peer import TorchPruning
    except ImportError:
        print("Torch-Pruning is not installed: not compared", file=sys.stderr)
        return None
    return TorchPruning(net, model.with_suffix(".pt"), next(iter(inputs.values())), labels)


if __name__ == "__main__":
    main()
