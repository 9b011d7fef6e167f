"""Latency of compiled models beside ONNX Runtime, interleaved in one process.

    python benchmarks/latency.py [NAME]... [--models DIR] [--target native] [--threads 1]

DIR holds full-sized models as `python -m secateur.models.zoo -o DIR` writes them
(NAME.folded.onnx). Each is measured in float32 and, quantized with random data, in int8:
secateur's artifact, ONNX Runtime and, where it is installed, OpenVINO take turns of two runs
each. The second runs are what the table's times are of, and two of one turn make one ratio:
a device runs one model. The first runs of a turn find caches full of another's code and
weights; the ratio of those is the one called cold. With `--precision bf16` (or fp16) the
artifact multiplies in 16 bits, ONNX Runtime in float32, OpenVINO as it does by itself.

`--kernels` adds what each kernel costs on one thread, with its share of the
multiply-accumulates that the machine was measured to be capable of.
"""

from __future__ import annotations

import dataclasses
import functools
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
import openvino_peer

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import Target, parse_target
from secateur.backends.tvm.tuning.measure import measure_peak, profile
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import load
from secateur.ir.reference import Session
from secateur.models.zoo.inputs import random_inputs
from secateur.passes.base import Context
from secateur.passes.prune import PruneChannels
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.simplify import simplify_pipeline
from secateur.pipeline.precision import choose_precision, target_for

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
    """One comparison. Ratios are medians of another's time over secateur's, by turn.

    `kernels` is a table of the kernels, if asked for.
    """

    model: str
    precision: str
    threads: int
    secateur: Times
    onnxruntime: Times
    ratio: float
    cold_ratio: float
    difference: float
    compile_seconds: float
    openvino: Times | None = None
    openvino_ratio: float | None = None
    kernels: str = ""


def interleave(
    runners: Sequence[Callable[[], Any]], seconds: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of each runner's second run of a turn, and of its first, for `seconds` in all."""
    for run in runners:
        run()
    warm: list[list[float]] = [[] for _ in runners]
    cold: list[list[float]] = [[] for _ in runners]
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(warm[0]) < 5:
        for index, run in enumerate(runners):
            for times in (cold, warm):
                start = time.perf_counter()
                run()
                times[index].append(time.perf_counter() - start)
        if len(warm[0]) >= 1000:
            break
    return warm, cold


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
    *,
    copies: float | None = None,
    by_kernel: bool = False,
) -> Row:
    """Measure `model` compiled against `against` elsewhere on the same inputs."""
    feeds = random_inputs(model, seed=0)
    options: dict[str, Any] = {"copies": copies, "declared_sizes": False, "sizes": None}
    in_halves = precision in ("bf16", "fp16")
    if in_halves:
        target = target_for(target.name, precision)
        choose_precision(model, target, precision, None, 0, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        report = compile_model(model, target, path, **options)
        runtime = Runtime(path, threads)
        kernels = kernel_table(path, feeds, target) if by_kernel else ""
    session = Session(against, threads=threads, fast=True)
    runners = [lambda: runtime.run(feeds), lambda: session.run(feeds)]
    peer = open_peer(name, against, threads, exact=not in_halves)
    if peer is not None:
        runners.append(lambda: peer(feeds))
    warm, cold = interleave(runners, seconds)
    expected = Session(model, threads=threads).run(feeds)
    return Row(
        name,
        precision,
        threads,
        Times.of(warm[0]),
        Times.of(warm[1]),
        paired(warm[0], warm[1]),
        paired(cold[0], cold[1]),
        _difference(runtime.run(feeds), expected),
        report.seconds,
        Times.of(warm[2]) if peer is not None else None,
        paired(warm[0], warm[2]) if peer is not None else None,
        kernels,
    )


def open_peer(
    name: str, model: Model, threads: int, *, exact: bool
) -> Callable[[Feeds], Feeds] | None:
    """The model in OpenVINO; None, and a line on stderr where it fails, without it."""
    if not openvino_peer.is_installed():
        return None
    try:
        return openvino_peer.open_model(model, threads, exact=exact)
    except RuntimeError as error:
        click.echo(f"{name}: OpenVINO: {' '.join(str(error).split())[:200]}", err=True)
        return None


def kernel_table(path: Path, feeds: Feeds, target: Target) -> str:
    """The kernels of an artifact in Markdown, the dearest first."""
    kernels = profile(path, feeds)
    whole = sum(k.microseconds for k in kernels)
    lines = [
        "| kernel | calls | us | share | GMAC/s | of the peak | first node |",
        "|---|---|---|---|---|---|---|",
    ]
    for k in kernels:
        speed = k.macs / k.microseconds / 1e3 if k.microseconds else 0.0
        peak = _peak(target, "float32" if k.input_dtype == "float32" else "uint8") / 1e9
        works = f"{speed:.1f} | {100 * speed / peak:.0f} %" if k.macs else "- | -"
        lines.append(
            f"| {k.kernel} | {k.calls} | {k.microseconds:.1f} "
            f"| {100 * k.microseconds / whole:.1f} % | {works} | {k.operations[0]} |"
        )
    return "\n".join(lines)


@functools.cache
def _peak(target: Target, dtype: str) -> float:
    return measure_peak(target, dtype)


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
    peer = any(r.openvino is not None for r in rows)
    lines = [
        "| model | precision | threads | secateur ms (min-max) | ONNX Runtime ms (min-max) "
        "| ratio | cold | difference | compile s |"
        + (" OpenVINO ms (min-max) | ratio |" if peer else ""),
        "|---|---|---|---|---|---|---|---|---|" + ("---|---|" if peer else ""),
    ]
    for r in rows:
        line = (
            f"| {r.model} | {r.precision} | {r.threads} | {_times(r.secateur)} "
            f"| {_times(r.onnxruntime)} | {r.ratio:.2f} | {r.cold_ratio:.2f} "
            f"| {r.difference:.1e} | {r.compile_seconds:.1f} |"
        )
        if r.openvino is not None:
            line += f" {_times(r.openvino)} | {r.openvino_ratio:.2f} |"
        elif peer:
            line += " - | - |"
        lines.append(line)
    for precision in dict.fromkeys(r.precision for r in rows):
        for threads in dict.fromkeys(r.threads for r in rows):
            own = [r for r in rows if (r.precision, r.threads) == (precision, threads)]
            title = f"{precision}, {threads} thread{'s' * (threads > 1)}"
            for other, ratios in (
                ("", [r.ratio for r in own]),
                (" against OpenVINO", [r.openvino_ratio for r in own if r.openvino_ratio]),
            ):
                if ratios:
                    lines.append(
                        f"\n{title}{other}: geometric mean "
                        f"{statistics.geometric_mean(ratios):.2f}, smallest {min(ratios):.2f}"
                    )
    for r in rows:
        if r.kernels:
            lines.append(f"\n{r.model} {r.precision}, kernels on one thread:\n\n{r.kernels}")
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
@click.option("--copies", type=float, help="As of `secateur compile`.")
@click.option("--kernels", is_flag=True, help="Add what each kernel costs on one thread.")
@click.option("--headline", is_flag=True, help="Pruned to half and int8, against float32.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(
    names: tuple[str, ...],
    models: Path,
    target_name: str,
    threads: tuple[int, ...],
    precision: tuple[str, ...],
    seconds: float,
    copies: float | None,
    kernels: bool,
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
                    row = compare(
                        name,
                        kind,
                        model,
                        against,
                        target,
                        count,
                        seconds,
                        copies=copies,
                        by_kernel=kernels and count == threads[0],
                    )
                    rows.append(row)
                    click.echo(
                        f"{name} {kind} {count}: {row.secateur.median:.2f} ms, ONNX Runtime "
                        f"{row.onnxruntime.median:.2f} ms, ratio {row.ratio:.2f} "
                        f"(cold {row.cold_ratio:.2f}), difference {row.difference:.1e}",
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
