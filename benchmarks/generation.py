"""A decoder with caches generates tokens one by one: an artifact beside ONNX Runtime.

    python benchmarks/generation.py [--tokens 64] [--turns 3] [--past 64 --past 512]

The model has the sizes of the zoo's decoder and random weights. One artifact, for any number of
tokens before, runs with caches that stay in one memory, and with others that each run copies; these
and ONNX Runtime take turns on one thread. First they generate from a prompt on; then each makes one
token after as many as `--past` says, again and again. Times are medians in milliseconds.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto
from tests.backends.tvm.cached_decoder import CachedDecoder, DecoderSizes, InPlace, steps

Run = Callable[[Any], Any]
ORDER = random.Random(0)
SIZES = DecoderSizes(32000, 512, 8, 8, 4, 1408)


def timed(run: Run, times: list[float]) -> Run:
    def measured(feeds: Any) -> Any:
        start = time.perf_counter()
        found = run(feeds)
        times.append(time.perf_counter() - start)
        return found

    return measured


def shuffled(names: Iterable[str]) -> list[str]:
    """Another order each time: who runs after another one with its weights finds them cached."""
    return ORDER.sample(found := sorted(names), len(found))


def generated(runs: dict[str, Run], tokens: int) -> None:
    """Generate tokens from a prompt on in turns, and compare them and their scores with ONNX
    Runtime's. Times are of those after the first."""
    prompt = np.random.default_rng(0).integers(0, SIZES.vocabulary, (1, 16))
    times: dict[str, list[float]] = {name: [] for name in runs}
    each = {name: steps(SIZES, prompt, timed(run, times[name])) for name, run in runs.items()}
    scores = [{name: next(each[name]) for name in shuffled(runs)} for _ in range(tokens)]
    medians = {name: 1e3 * statistics.median(own[1:]) for name, own in times.items()}
    for name in runs:
        same = sum(int(found[name].argmax() == found[THEIRS].argmax()) for found in scores)
        furthest = max(float(np.abs(found[name] - found[THEIRS]).max()) for found in scores)
        click.echo(
            f"{name}: {same} of {tokens} tokens equal, scores within {furthest:.1e}; "
            f"{medians[name]:.2f}, ONNX Runtime {medians[THEIRS] / medians[name]:.2f} times as long"
        )


def after(past: int, runtime: Runtime, reference: Run) -> None:
    """One token after many, whose caches hold random numbers."""
    generator = np.random.default_rng(past)
    shape = (1, SIZES.kv_heads, past, SIZES.size)
    names = [f"{what}{index}" for index in range(SIZES.depth) for what in ("keys", "values")]
    held = {name: generator.standard_normal(shape).astype(np.float32) for name in names}
    ids = np.array([[5]])
    caches = runtime.caches(past + 1)
    runs: dict[str, Run] = {
        IN_PLACE: lambda _: runtime.run({"ids": ids}, caches),
        COPIED: runtime.run,
        THEIRS: reference,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(21):
        caches.fill(held)
        for name in shuffled(runs):
            timed(runs[name], times[name])({"ids": ids, **held})
    medians = {name: 1e3 * statistics.median(each) for name, each in times.items()}
    click.echo(f"after {past}: " + ", ".join(f"{n} {each:.2f}" for n, each in medians.items()))


IN_PLACE, COPIED, THEIRS = "in place", "copied", "ONNX Runtime"


@click.command()
@click.option("--tokens", default=64)
@click.option("--turns", default=3)
@click.option("--past", multiple=True, type=int, default=(64, 512, 2048))
def main(tokens: int, turns: int, past: tuple[int, ...]) -> None:
    """Generate and compare."""
    model = CachedDecoder(SIZES).model()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]

    def reference(feeds: Any) -> Any:
        return dict(zip(names, session.run(names, feeds), strict=True))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.so"
        admitted = read_admitted(["b=1..", "s=1..", "past=0.."])
        compile_model(from_proto(model), parse_target("native"), path, sizes=admitted)
        runtime = Runtime(path)
        in_place = InPlace(runtime, 16 + tokens)
        runs: dict[str, Run] = {IN_PLACE: in_place, COPIED: runtime.run, THEIRS: reference}
        for _ in range(turns):
            in_place.caches.reset()
            generated(runs, tokens)
        for each in past:
            after(each, runtime, reference)


if __name__ == "__main__":
    main()
