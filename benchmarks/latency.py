"""Latency of compiled models beside ONNX Runtime, interleaved in one process.

    python benchmarks/latency.py [NAME]... [--models DIR] [--target native] [--threads 1]

DIR holds full-sized models as `python -m secateur.models.zoo -o DIR` writes them
(NAME.folded.onnx). Each is measured in float32 and, quantized with random data, in int8:
secateur's artifact and ONNX Runtime take turns, and a turn's two times make one ratio.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.runtime import Runtime
from secateur.backends.tvm.targets import Target, parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import load
from secateur.models.zoo.inputs import random_inputs
from secateur.passes.base import Context
from secateur.passes.prune import PruneChannels
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.reference import Session
from secateur.passes.simplify import simplify_pipeline

MODELS = (
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet",
    "densenet121",
    "inception_v1",
    "shufflenet_v2",
    "efficientnet_b0",
    "yolo",
    "unet",
    "vit_tiny",
    "bert",
    "ds_cnn",
    "lstm",
    "resnet8",
)
HEADLINE = ("resnet50", "mobilenet_v2")
Feeds = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Times:
    """Milliseconds of one runner."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        values = [s * 1e3 for s in seconds]
        return cls(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is the median of ONNX Runtime's time over secateur's, by turn."""

    model: str
    precision: str
    threads: int
    secateur: Times
    onnxruntime: Times
    ratio: float
    cpu_ratio: float
    difference: float
    compile_seconds: float


def interleave(
    runners: Sequence[Callable[[], Any]], seconds: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Wall and CPU seconds of each runner, in turns, for about `seconds` in all."""
    for run in runners:
        run()
    wall: list[list[float]] = [[] for _ in runners]
    cpu: list[list[float]] = [[] for _ in runners]
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(wall[0]) < 5:
        for index, run in enumerate(runners):
            start, busy = time.perf_counter(), time.process_time()
            run()
            wall[index].append(time.perf_counter() - start)
            cpu[index].append(time.process_time() - busy)
        if len(wall[0]) >= 1000:
            break
    return wall, cpu


def paired(first: Sequence[float], second: Sequence[float]) -> float:
    """The median ratio of what was measured in the same turn."""
    return statistics.median(b / a for a, b in zip(first, second, strict=True))


def compare(
    name: str,
    precision: str,
    model: Model,
    against: Model,
    target: Target,
    threads: int,
    seconds: float,
) -> Row:
    """Measure `model` compiled against `against` in ONNX Runtime on the same inputs."""
    feeds = random_inputs(model, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        report = compile_model(model, target, path)
        runtime = Runtime(path, threads)
    session = Session(against, threads=threads)
    wall, cpu = interleave([lambda: runtime.run(feeds), lambda: session.run(feeds)], seconds)
    expected = Session(model, threads=threads).run(feeds)
    return Row(
        name,
        precision,
        threads,
        Times.of(wall[0]),
        Times.of(wall[1]),
        paired(*wall),
        paired(*cpu),
        _difference(runtime.run(feeds), expected),
        report.seconds,
    )


def _difference(found: Feeds, expected: Feeds) -> float:
    """Largest absolute difference over the largest absolute value."""
    worst = 0.0
    for name, array in expected.items():
        scale = float(np.abs(array).max()) or 1.0
        worst = max(worst, float(np.abs(found[name].astype(np.float64) - array).max()) / scale)
    return worst


def prepare(path: Path) -> Model:
    model = load(path)
    for step in simplify_pipeline():
        step.run(model)
    return model


def quantize(model: Model) -> Model:
    """An int8 version; the ranges are those of random inputs."""
    result = model.clone()
    samples = [random_inputs(model, seed=seed) for seed in range(2)]
    calibration = {k: np.concatenate([s[k] for s in samples]) for k in samples[0]}
    QuantizeStatic().run(result, Context(calibration=calibration))
    return result


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, with geometric means."""
    lines = [
        "| model | precision | threads | secateur ms (min-max) | ONNX Runtime ms (min-max) "
        "| ratio | CPU ratio | difference | compile s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.model} | {r.precision} | {r.threads} | {_times(r.secateur)} "
            f"| {_times(r.onnxruntime)} | {r.ratio:.2f} | {r.cpu_ratio:.2f} "
            f"| {r.difference:.1e} | {r.compile_seconds:.1f} |"
        )
    for precision in dict.fromkeys(r.precision for r in rows):
        for threads in dict.fromkeys(r.threads for r in rows):
            ratios = [r.ratio for r in rows if (r.precision, r.threads) == (precision, threads)]
            if ratios:
                lines.append(
                    f"\n{precision}, {threads} thread{'s' * (threads > 1)}: geometric mean "
                    f"{statistics.geometric_mean(ratios):.2f}, smallest {min(ratios):.2f}"
                )
    return "\n".join(lines)


def _times(times: Times) -> str:
    return f"{times.median:.2f} ({times.minimum:.2f}-{times.maximum:.2f})"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--models", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--target", "target_name", default="native", show_default=True)
@click.option("--threads", multiple=True, type=int, default=(1,), show_default=True)
@click.option("--precision", multiple=True, default=("float32", "int8"), show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Time per comparison.")
@click.option("--headline", is_flag=True, help="Pruned to half and int8, against float32.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(
    names: tuple[str, ...],
    models: Path,
    target_name: str,
    threads: tuple[int, ...],
    precision: tuple[str, ...],
    seconds: float,
    headline: bool,
    json_path: Path | None,
) -> None:
    """Measure and print a table; models that can't be compiled are named on stderr."""
    target = parse_target(target_name)
    rows: list[Row] = []
    for name in names or (HEADLINE if headline else MODELS):
        path = models / f"{name}.folded.onnx"
        if not path.exists():
            click.echo(f"{name}: no {path}", err=True)
            continue
        original = prepare(path)
        for kind in ("pruned int8",) if headline else precision:
            try:
                model, against = original, original
                if headline:
                    pruned = original.clone()
                    PruneChannels(macs=0.5, align=target.block).run(pruned)
                    model = quantize(pruned)
                elif kind == "int8":
                    model = against = quantize(original)
                for count in threads:
                    row = compare(name, kind, model, against, target, count, seconds)
                    rows.append(row)
                    click.echo(
                        f"{name} {kind} {count}: {row.secateur.median:.2f} ms, ONNX Runtime "
                        f"{row.onnxruntime.median:.2f} ms, ratio {row.ratio:.2f} "
                        f"(CPU {row.cpu_ratio:.2f}), difference {row.difference:.1e}",
                        err=True,
                    )
            except SecateurError as error:
                click.echo(f"{name} {kind}: {error}", err=True)
    click.echo(table(rows))
    if json_path is not None:
        json_path.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1) + "\n")
    sys.exit(0 if rows else 1)


if __name__ == "__main__":
    main()
