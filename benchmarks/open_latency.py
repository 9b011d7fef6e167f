"""Latency of artifacts with open sizes beside static ones and ONNX Runtime, interleaved.

    python benchmarks/open_latency.py [NAME]... [--models DIR] [--sizes 8,37,128] [--threads 1]

DIR holds models of the zoo with open lengths, as `python -m secateur.models.zoo NAME --variant
kept -o DIR` writes them. Each is compiled once with open sizes, and once for each size; ONNX
Runtime runs the model as it is. The three take turns in one process; times are medians, ratios
have their least and greatest beside them. Batch 1.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import load
from secateur.ir.reference import Session
from secateur.passes.simplify import FixInputShapes

MODELS = ("bert", "lstm", "gru", "bidirectional_lstm", "gqa_decoder")
TURNS = 25
Feeds = dict[str, Any]


def interleave(runs: Sequence[Callable[[], object]], turns: int) -> list[list[float]]:
    """Seconds of each run in each turn; of two runs in a row the second counts."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(turns):
        for run, times in zip(runs, found, strict=True):
            run()
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return found


def inputs_of(model: Model, size: int) -> Feeds:
    """Random inputs with one sample, and `size` for every other open size."""
    random = np.random.default_rng(0)
    feeds: Feeds = {}
    for value in model.graph.inputs:
        shape = [
            d if isinstance(d, int) else 1 if axis == 0 else size
            for axis, d in enumerate(value.shape or ())
        ]
        real = value.dtype == 1
        made = random.standard_normal(shape) if real else random.integers(0, 2, shape)
        feeds[value.name] = made.astype(np.float32 if real else np.int64)
    return feeds


def measure(path: Path, sizes: Sequence[int], threads: int, folder: Path) -> None:
    """Print a row for each size."""
    model, target = load(path), parse_target("native")
    start = time.perf_counter()
    compile_model(model, target, folder / "open.so")
    seconds = time.perf_counter() - start
    open_, session = Runtime(folder / "open.so", threads), Session(model, threads=threads)
    for size in sizes:
        feeds = inputs_of(model, size)
        fixed = load(path)
        FixInputShapes(tuple((n, a.shape) for n, a in feeds.items())).run(fixed)
        compile_model(fixed, target, folder / f"{size}.so")
        static = Runtime(folder / f"{size}.so", threads)
        want, have = session.run(feeds), open_.run(feeds)
        for name, array in want.items():
            np.testing.assert_allclose(have[name], array, rtol=1e-3, atol=1e-4)
        runs = [functools.partial(each.run, feeds) for each in (open_, static, session)]
        times = interleave(runs, TURNS)
        cells = [f"{statistics.median(t) * 1e3:.3f}" for t in times]
        for other in times[1:]:
            ratios = [b / a for a, b in zip(times[0], other, strict=True)]
            middle = statistics.median(ratios)
            cells.append(f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        click.echo(f"| {path.name.split('.')[0]} | {size} | {' | '.join(cells)} | {seconds:.0f} |")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--models", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--sizes", default="8,37,128", help="Open sizes, separated by commas.")
@click.option("--threads", default=1)
def main(names: tuple[str, ...], models: Path, sizes: str, threads: int) -> None:
    times = ("open ms", "static ms", "ONNX Runtime ms", "static / open", "ONNX Runtime / open")
    titles = ("model", "size", *times, "s to compile")
    click.echo(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name in names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                chosen = [int(size) for size in sizes.split(",")]
                measure(models / f"{name}.kept.onnx", chosen, threads, Path(folder))
            except SecateurError as error:
                click.echo(f"| {name} | {error} |")


if __name__ == "__main__":
    main()
