"""Any folder of ONNX files, compiled and run beside ONNX Runtime: one table.

    python benchmarks/fetch_models.py models
    python benchmarks/real_models.py models --results results.json -o table.md

Every file is simplified, compiled for this machine with an empty cache, once more without copies of
weights for Winograd, and quantized with random data (`--int8`); in a process of its own, which may
take `--limit` seconds. Open sizes, and numbers that a result's size depends on, are those of the
first random inputs that ONNX Runtime runs with. Times are processor seconds for compilation and
medians of interleaved runs on one thread for latency, ONNX Runtime's over the artifact's.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

RUNS = 15
"""Turns of a measurement, and the least."""

WINOGRAD, DIRECT, ALLOWANCE = 1.6, 1.3, 100_000
"""How many times its weights an artifact may have, and how many bytes more."""


@dataclasses.dataclass
class Row:
    """What became of a file; numbers are None where it didn't come to them."""

    name: str
    status: str = ""
    nodes: int | None = None
    simplified: int | None = None
    shapes: str = ""
    seconds: float | None = None
    weights: int | None = None
    artifact: int | None = None
    direct: int | None = None
    difference: float | None = None
    milliseconds: float | None = None
    ratio: float | None = None
    integer_ratio: float | None = None
    detail: str = ""

    @property
    def within(self) -> bool | None:
        """Whether the artifact is as small as it should be."""
        if self.weights is None or self.artifact is None or self.direct is None:
            return None
        limits = ((self.artifact, WINOGRAD), (self.direct, DIRECT))
        return all(size <= factor * self.weights + ALLOWANCE for size, factor in limits)


def measure(path: Path, *, int8: bool, fallback: bool) -> Row:
    """A file's row. Raises SecateurError where the model can't even be read."""
    from secateur.data.random_inputs import describe_feeds, random_feed
    from secateur.ir.errors import SecateurError, UnsupportedError
    from secateur.ir.onnx_io import load
    from secateur.ir.tensor import Tensor
    from secateur.passes.simplify import FixInputShapes, simplify_pipeline

    row = Row(path.name)
    model = load(path)
    row.nodes = sum(1 for g in model.graph.all_graphs() for _ in g.nodes)
    feed = random_feed(model, 0)
    row.shapes = describe_feeds([feed])
    open_ = tuple((n, tuple(x.shape)) for n, x in feed.items() if _is_open(model, n))
    if open_:
        FixInputShapes(open_).run(model)
    simplified = model.clone()
    for step in simplify_pipeline():
        step.run(simplified)
    row.simplified = sum(1 for g in simplified.graph.all_graphs() for _ in g.nodes)
    tensors = {id(v.const): v.const for g in simplified.graph.all_graphs() for v in g.values()
               if isinstance(v.const, Tensor)}  # fmt: skip
    row.weights = sum(t.numpy().nbytes for t in tensors.values())
    original, given = model.clone(), feed
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compiled(row, model, Path(folder), feed, (original, given))
            row.status = "whole"
        except UnsupportedError as error:
            row.detail = str(error)[:400]
            model, feed = _with_numbers(original.clone(), feed)
            try:
                _compiled(row, model, Path(folder), feed, (original, given))
                row.status = "whole, numbers fixed"
            except UnsupportedError as again:
                row.status, row.detail = "refused", str(again)[:400]
                if not fallback:
                    return row
                _compiled(row, model, Path(folder), feed, (original, given), fallback=True)
                row.status = "fallback"
        if int8:
            try:
                row.integer_ratio = _quantized(model, Path(folder), feed)
            except SecateurError as error:
                row.detail += f" int8: {error!s:.200}"
    return row


def _is_open(model: Any, name: str) -> bool:
    value = next(v for v in model.graph.inputs if v.name == name)
    return value.shape is None or not all(isinstance(d, int) for d in value.shape)


def _with_numbers(model: Any, feed: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model with integer inputs of one element fixed, and what is left to feed."""
    from secateur.passes.simplify import FixInputValues

    fixed = {n: str(x.item()) for n, x in feed.items() if x.size == 1 and x.dtype.kind in "iu"}
    if fixed:
        FixInputValues(tuple(fixed.items())).run(model)
    return model, {n: x for n, x in feed.items() if n not in fixed}


def _compiled(
    row: Row,
    model: Any,
    folder: Path,
    feed: dict[str, Any],
    reference: tuple[Any, dict[str, Any]],
    *,
    fallback: bool = False,
) -> None:
    """Compile, compare and time; `reference` is what ONNX Runtime runs, and its inputs."""
    from secateur.backends.tvm.artifact.runtime import Runtime
    from secateur.backends.tvm.cache import Cache
    from secateur.backends.tvm.compile import compile_model
    from secateur.backends.tvm.targets import parse_target
    from secateur.ir.reference import Session

    target, path = parse_target("native"), folder / "model.so"
    start = time.process_time()
    report = compile_model(
        model, target, path, cache=Cache.none(), fallback=fallback, declared_sizes=True
    )
    row.seconds, row.artifact = time.process_time() - start, report.bytes
    small = compile_model(
        model, target, folder / "direct.so", copies=0, fallback=fallback, declared_sizes=True
    )
    row.direct = small.bytes
    session, runtime = Session(reference[0], fast=True), Runtime(path)
    expected, found = session.run(reference[1]), runtime.run(feed)
    row.difference = max(
        (_difference(found[name], value) for name, value in expected.items()), default=0.0
    )
    row.milliseconds, row.ratio = _times(
        lambda: session.run(reference[1]), lambda: runtime.run(feed)
    )


def _quantized(model: Any, folder: Path, feed: dict[str, Any]) -> float:
    """ONNX Runtime's time over the artifact's of the model in int8."""
    from secateur.backends.tvm.artifact.runtime import Runtime
    from secateur.backends.tvm.compile import compile_model
    from secateur.backends.tvm.targets import parse_target
    from secateur.ir.reference import Session
    from secateur.passes.base import Context
    from secateur.passes.quantize import QuantizeStatic
    from secateur.passes.simplify import simplify_pipeline

    model = model.clone()
    for step in simplify_pipeline():
        step.run(model)
    samples = {name: value[None] for name, value in feed.items()}  # one, with an axis in front
    QuantizeStatic().run(model, Context(calibration=samples))
    compile_model(model, parse_target("native"), folder / "int8.so", declared_sizes=True)
    session, runtime = Session(model, fast=True), Runtime(folder / "int8.so")
    return _times(lambda: session.run(feed), lambda: runtime.run(feed))[1]


def _difference(own: Any, other: Any) -> float:
    """The largest difference as a share of the largest number."""
    own, other = np.asarray(own), np.asarray(other)
    if own.shape != other.shape:
        return float("inf")
    if not other.size:
        return 0.0
    a, b = own.astype(np.float64), other.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    kept = np.isfinite(b)
    largest = float(np.abs(b[kept]).max(initial=0.0)) or 1.0
    return float(np.abs(a - b)[kept].max(initial=0.0)) / largest


def _times(reference: Callable[[], Any], run: Callable[[], Any]) -> tuple[float, float]:
    """The artifact's median time in milliseconds, and ONNX Runtime's over it."""
    own, other = [], []
    start = time.perf_counter()
    while len(own) < RUNS or (time.perf_counter() - start < 1.0 and len(own) < 20 * RUNS):
        for function, times in ((reference, other), (run, own)):
            function()  # the first of two finds caches full of another's weights
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
        if len(own) >= 3 and time.perf_counter() - start > 30:
            break
    ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
    return statistics.median(own) * 1e3, ratio


# --- many files ----------------------------------------------------------------------------


def _work(path: Path, options: dict[str, bool], sender: Any) -> None:
    from secateur.ir.errors import SecateurError

    try:
        row = measure(path, **options)
    except SecateurError as error:
        row = Row(path.name, "error", detail=str(error)[:400])
    except Exception:  # whatever else escapes is a defect
        row = Row(path.name, "crash", detail=traceback.format_exc()[-600:])
    sender.send(row)


def run(path: Path, options: dict[str, bool], limit: float) -> Row:
    """A file's row, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(path, options, sender), daemon=True)
    worker.start()
    sender.close()
    try:
        row: Row = receiver.recv() if receiver.poll(limit) else Row(path.name, "too long")
    except EOFError:
        row = Row(path.name, "crash", detail="the process ended")
    worker.kill()
    worker.join()
    return row


def table(rows: dict[str, Row]) -> str:
    head = (
        "model",
        "",
        "nodes",
        "simplified",
        "compiled in, s",
        "weights, kB",
        "artifact, kB",
        "without Winograd",
        "small enough",
        "difference",
        "ms",
        "ONNX Runtime",
        "int8",
    )

    def text(value: Any, digits: str = "") -> str:
        return "" if value is None else format(value, digits)

    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, r in sorted(rows.items()):
        small = {None: "", True: "yes", False: "no"}[r.within]
        sizes = (None if n is None else n / 1000 for n in (r.weights, r.artifact, r.direct))
        cells = [
            name,
            r.status,
            text(r.nodes),
            text(r.simplified),
            text(r.seconds, ".1f"),
            *(text(n, ".0f") for n in sizes),
            small,
            text(r.difference, ".0e"),
            text(r.milliseconds, ".3g"),
            text(r.ratio, ".2f"),
            text(r.integer_ratio, ".2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ratios = [r.ratio for r in rows.values() if r.ratio]
    if ratios:
        mean = statistics.geometric_mean(ratios)
        lines.append(f"\n{len(rows)} files, {len(ratios)} measured: geometric mean {mean:.2f}.")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--results", type=click.Path(path_type=Path), help="Rows that are known, as JSON.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the table here.")
@click.option("--int8", is_flag=True, help="Quantize with random data, too.")
@click.option("--fallback", is_flag=True, help="Leave what can't be compiled to ONNX Runtime.")
@click.option("--limit", default=300.0, help="Seconds for one file.")
def main(
    folder: Path,
    results: Path | None,
    output: Path | None,
    int8: bool,
    fallback: bool,
    limit: float,
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: dict[str, Row] = {}
    if results is not None and results.is_file():
        known = json.loads(results.read_text())
        rows = {name: Row(**fields) for name, fields in known.items()}
    for path in sorted(folder.rglob("*.onnx")):
        name = str(path.relative_to(folder))
        if name in rows:
            continue
        rows[name] = run(path, {"int8": int8, "fallback": fallback}, limit)
        click.echo(f"{name}: {dataclasses.asdict(rows[name])}", err=True)
        if results is not None:
            text = json.dumps({n: dataclasses.asdict(r) for n, r in rows.items()}, indent=1)
            results.write_text(text)
    click.echo(table(rows))
    if output is not None:
        output.write_text(table(rows))


if __name__ == "__main__":
    main()
