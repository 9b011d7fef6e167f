"""Widths allocated by latency against widths allocated by MACs, at equal measured latency.

    python benchmarks/latency_budgets.py MODEL POOL.npz TEST.npz --target native

Calibration samples are drawn from POOL, whose labels are not looked at; TEST has labels, and
nothing is chosen by it. The model is pruned to budgets of latency and to budgets of MACs, each
result is recovered and compiled, and all artifacts are measured in turns. Printed are shares of
the original's latency (median of all turns, with the least and greatest ratio of one turn),
top-1, and the divergence of the scores on TEST from the original's, which chance moves less; and
for each result by latency what results by MACs have at its latency, on the straight lines
between them, which flatter least near a point. `--json` writes the numbers to a file.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.data.datasets import load_dataset
from secateur.ir.model import Model
from secateur.ir.onnx_io import load
from secateur.ir.reference import Session
from secateur.passes.base import Context
from secateur.passes.linear.divergence import Divergence
from secateur.passes.linear.opening import open_batch
from secateur.pipeline.latency import Machine
from secateur.pipeline.pruning import prune_model
from secateur.pipeline.steps import recover_step, run_step, simplify_step

Array = Any
BATCH = 100


@dataclasses.dataclass(frozen=True)
class Row:
    """A model pruned to a share of `kind`; `ratios` of latency to the original's, and `latency`
    their median."""

    kind: str
    share: float
    latency: float
    ratios: Array
    top1: float
    divergence: float


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("pool", type=click.Path(exists=True, path_type=Path))
@click.argument("test", type=click.Path(exists=True, path_type=Path))
@click.option("--target", default="native", show_default=True)
@click.option("--latency", type=float, multiple=True, default=(0.8, 0.65, 0.5))
@click.option("--macs", type=float, multiple=True, default=(0.85, 0.7, 0.55, 0.4))
@click.option("--samples", type=int, default=256, show_default=True)
@click.option("--turns", type=int, default=200, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(
    model: Path,
    pool: Path,
    test: Path,
    target: str,
    latency: tuple[float, ...],
    macs: tuple[float, ...],
    samples: int,
    turns: int,
    seed: int,
    file: Path | None,
) -> None:
    original = load(model)
    run_step(simplify_step(), original, Context())
    labelled = load_dataset(test, original)
    if labelled.labels is None:
        raise click.UsageError(f"{test} has no labels")
    arrays = load_dataset(pool, original).samples.arrays
    chosen = np.random.default_rng(seed).permutation(len(next(iter(arrays.values()))))[:samples]
    context = Context({name: array[chosen] for name, array in arrays.items()}, seed)
    one = {name: array[:1] for name, array in labelled.samples.arrays.items()}
    machine = Machine(parse_target(target), Cache.of_user(), feed=one)
    options: dict[str, Any] = {"align": machine.target.lanes}
    models = {("original", 1.0): original}
    for kind, shares in (("macs", macs), ("latency", latency)):
        for share in shares:
            start = time.perf_counter()
            goal = {**options, kind: share}
            pruned, result = prune_model(original.clone(), goal, context, machine=machine)
            run_step(recover_step(), pruned, result.context)
            models[kind, share] = pruned
            seconds = time.perf_counter() - start
            click.echo(f"pruned to {share:.0%} of {kind} in {seconds:.0f} s", err=True)
    times = measure(models, machine, one, turns)
    whole = outputs(original, labelled.samples.arrays)
    rows = []
    for key, pruned in models.items():
        ratios = times[key] / times["original", 1.0]
        found = outputs(pruned, labelled.samples.arrays)
        apart = Divergence()
        apart.add(whole, found)
        right = top1(found, labelled.labels)
        rows.append(Row(*key, float(np.median(ratios)), ratios, right, apart.value))
    by_macs = sorted((row for row in rows if row.kind != "latency"), key=lambda row: row.latency)
    click.echo(
        "by        share  latency (least-greatest)  top-1  divergence  by MACs at that latency"
    )
    for row in rows:
        low, high = np.percentile(row.ratios, [5, 95])
        other = ""
        places = [point.latency for point in by_macs]
        if row.kind == "latency" and row.latency < places[0]:
            other = "no result by MACs is as fast"
        elif row.kind == "latency":
            at = float(np.interp(row.latency, places, [point.top1 for point in by_macs]))
            far = float(np.interp(row.latency, places, [point.divergence for point in by_macs]))
            other = (
                f"{at:6.2f} ({row.top1 - at:+.2f})  {far:.4f} ({row.divergence / far:.2f} of it)"
            )
        click.echo(
            f"{row.kind:9} {row.share:5.2f}  {row.latency:.3f} ({low:.3f}-{high:.3f})  "
            f"{row.top1:5.2f}  {row.divergence:.4f}  {other}"
        )
    if file is not None:
        fields = ("kind", "share", "latency", "top1", "divergence")
        found = [{name: getattr(row, name) for name in fields} for row in rows]
        file.write_text(json.dumps(found, indent=2))


def measure(
    models: Mapping[Any, Model], machine: Machine, feeds: Mapping[str, Array], turns: int
) -> dict[Any, Array]:
    """Seconds of a run of each model's artifact, in turns; the least of five in each turn."""
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for index, (key, model) in enumerate(models.items()):
            path = Path(folder) / f"{index}.so"
            compile_model(model, machine.target, path, cache=machine.cache)
            runners[key] = Runtime(path, machine.threads)
            runners[key].run(feeds)
        spent: dict[Any, list[float]] = {key: [] for key in runners}
        for _ in range(turns):
            for key, runner in runners.items():
                runs = []
                for _ in range(5):
                    start = time.perf_counter()
                    runner.run(feeds)
                    runs.append(time.perf_counter() - start)
                spent[key].append(min(runs))
    return {key: np.array(own) for key, own in spent.items()}


def outputs(model: Model, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The first output of all samples, scores [samples, classes]."""
    with open_batch(model, arrays) as opened:
        session = Session(model, threads=0)
        size, name = BATCH if opened else 1, session.output_names[0]
        samples = len(next(iter(arrays.values())))
        scores = [
            session.run({n: array[start : start + size] for n, array in arrays.items()})[name]
            for start in range(0, samples, size)
        ]
    return {"scores": np.concatenate(scores).reshape(samples, -1)}


def top1(scores: Mapping[str, Array], labels: Array) -> float:
    """Per cent of the samples whose largest score is the label's."""
    return 100 * float(np.mean(scores["scores"].argmax(axis=1) == labels))


if __name__ == "__main__":
    main()
