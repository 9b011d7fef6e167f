"""Latency of artifacts with open sizes beside static ones and ONNX Runtime, interleaved.

    python benchmarks/open_latency.py [NAME]... [--models DIR] [--sizes 8,37,128] [--threads 1]
                                      [--open lengths|images|batches]

DIR holds models of the zoo with open lengths, as `python -m secateur.models.zoo NAME --variant
kept -o DIR` writes them. Each is compiled once with open sizes, and once for each size; ONNX
Runtime runs the model as it is. The three take turns in one process; times are medians, ratios
have their least and greatest beside them. With `--open images` rows and columns of images are
open, and as many as the size says; with `--open batches` the first axis is; else that is 1. The
last two columns are bytes of the arenas, open and static. Text recognition (`crnn`) and detection
(`detector`) are models of `open_models.py`, which need no DIR: their own sizes are open.
"""

from __future__ import annotations

import ctypes
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from open_models import MADE

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load
from secateur.ir.reference import Session
from secateur.ir.symbolic.analysis import Admitted
from secateur.passes.simplify import FixInputShapes

MODELS = ("bert", "lstm", "gru", "bidirectional_lstm", "gqa_decoder")
TURNS = 25
Feeds = dict[str, Any]


def arena_bytes(artifact: Path, feeds: Feeds) -> int:
    """What an artifact asks for, besides the arrays, to run these inputs on one thread."""
    library = ctypes.CDLL(str(artifact))
    text = ctypes.addressof(ctypes.c_char.in_dll(library, "secateur_metadata"))
    metadata = json.loads(ctypes.string_at(text))
    if not hasattr(library, "secateur_shapes"):  # which artifacts with open sizes have
        return int(metadata["arena_bytes"])
    sizes = [size for given in metadata["inputs"] for size in feeds[given["name"]].shape]
    outputs = (ctypes.c_int64 * sum(len(o["shape"]) for o in metadata["outputs"]))()
    found = ctypes.c_int64()
    library.secateur_shapes((ctypes.c_int64 * len(sizes))(*sizes), outputs, ctypes.byref(found))
    return found.value


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


def opened(path: Path, what: str) -> Model:
    """The model, its images' rows and columns open if `what` says so."""
    if path.name in MADE:
        return from_proto(MADE[path.name]())
    model = load(path)
    if what == "images":
        for value in model.graph.inputs:
            if value.shape is not None and len(value.shape) == 4:
                value.set_tensor_type(value.dtype, [*value.shape[:2], "rows", "columns"])
        for node in model.graph.nodes:
            for output in node.outputs:
                if output is not None and output.dtype:
                    output.set_tensor_type(output.dtype, None)
    return model


def inputs_of(model: Model, size: int, what: str = "lengths") -> Feeds:
    """Random inputs with one sample, and `size` for every other open size, or samples."""
    first = size if what == "batches" else 1
    random = np.random.default_rng(0)
    feeds: Feeds = {}
    for value in model.graph.inputs:
        shape = [
            d if isinstance(d, int) else first if axis == 0 else size
            for axis, d in enumerate(value.shape or ())
        ]
        real = value.dtype == 1
        made = random.standard_normal(shape) if real else random.integers(0, 2, shape)
        feeds[value.name] = made.astype(np.float32 if real else np.int64)
    return feeds


def measure(path: Path, what: str, sizes: Sequence[int], threads: int, folder: Path) -> None:
    """Print a row for each size."""
    model, target = opened(path, what), parse_target("native")
    start = time.perf_counter()
    batches = {str(v.shape[0]): Admitted(1) for v in model.graph.inputs if v.shape}
    compile_model(model, target, folder / "open.so", sizes=batches if what == "batches" else None)
    seconds = time.perf_counter() - start
    open_, exact = Runtime(folder / "open.so", threads), Session(model, threads=threads)
    session = Session(model, threads=threads, fast=True)  # whose sums of bytes may saturate
    for size in sizes:
        feeds = inputs_of(model, size, what)
        fixed = opened(path, what)
        FixInputShapes(tuple((n, a.shape) for n, a in feeds.items())).run(fixed)
        compile_model(fixed, target, folder / f"{size}.so")
        static = Runtime(folder / f"{size}.so", threads)
        have, known = open_.run(feeds), static.run(feeds)
        for name, array in exact.run(feeds).items():
            largest = float(np.abs(array).max())
            np.testing.assert_allclose(have[name], known[name], rtol=0, atol=0.05 * largest)
            np.testing.assert_allclose(have[name], array, rtol=0, atol=0.05 * largest)  # int8, too
        runs = [functools.partial(each.run, feeds) for each in (open_, static, session)]
        times = interleave(runs, TURNS)
        cells = [f"{statistics.median(t) * 1e3:.3f}" for t in times]
        for other in times[1:]:
            ratios = [b / a for a, b in zip(times[0], other, strict=True)]
            middle = statistics.median(ratios)
            cells.append(f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        arenas = [arena_bytes(folder / f"{name}.so", feeds) for name in ("open", size)]
        cells += [f"{seconds:.0f}", *(f"{each:,}" for each in arenas)]
        click.echo(f"| {path.name.split('.')[0]} | {size} | {' | '.join(cells)} |")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--models", type=click.Path(path_type=Path, exists=True), default=Path(), metavar="DIR"
)
@click.option("--sizes", default="8,37,128", help="Open sizes, separated by commas.")
@click.option("--threads", default=1)
@click.option(
    "--open", "what", type=click.Choice(("lengths", "images", "batches")), default="lengths"
)
def main(names: tuple[str, ...], models: Path, sizes: str, threads: int, what: str) -> None:
    times = ("open ms", "static ms", "ONNX Runtime ms", "static / open", "ONNX Runtime / open")
    titles = ("model", "size", *times, "s to compile", "open arena", "static arena")
    click.echo(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name in names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                chosen = [int(size) for size in sizes.split(",")]
                path = Path(name) if name in MADE else models / f"{name}.kept.onnx"
                measure(path, what, chosen, threads, Path(folder))
            except SecateurError as error:
                click.echo(f"| {name} | {error} |")


if __name__ == "__main__":
    main()
