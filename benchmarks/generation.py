"""A decoder with caches generates tokens one by one: artifacts beside ONNX Runtime.

    python benchmarks/generation.py [--tokens 64] [--turns 3]

The model has the sizes of the zoo's decoder and random weights. One artifact is for the prompt,
which has nothing before it, one for any number of tokens before. They and ONNX Runtime take turns
on one thread; times are medians over the tokens after the prompt, in milliseconds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
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
from tests.backends.tvm.cached_decoder import CachedDecoder, DecoderSizes, generate

Run = Callable[[Any], Any]
SIZES = DecoderSizes(32000, 512, 8, 8, 4, 1408)


def timed(run: Run, times: list[float]) -> Run:
    def measured(feeds: Any) -> Any:
        start = time.perf_counter()
        found = run(feeds)
        times.append(time.perf_counter() - start)
        return found

    return measured


@click.command()
@click.option("--tokens", default=64)
@click.option("--turns", default=3)
def main(tokens: int, turns: int) -> None:
    """Generate and compare."""
    model = CachedDecoder(SIZES).model()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]

    def reference(feeds: Any) -> Any:
        return dict(zip(names, session.run(names, feeds), strict=True))

    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        for past in ("past=0", "past=1.."):
            path, admitted = Path(folder) / past, read_admitted(["b=1..", "s=1..", past])
            compile_model(from_proto(model), parse_target("native"), path, sizes=admitted)
            runs.append(Runtime(path).run)
        prompt = np.random.default_rng(0).integers(0, SIZES.vocabulary, (1, 16))
        for _ in range(turns):
            own: list[float] = []
            other: list[float] = []
            found = generate(SIZES, prompt, tokens, runs[0], timed(runs[1], own))
            right = generate(SIZES, prompt, tokens, reference, timed(reference, other))
            furthest = max(
                float(np.abs(a - b).max()) for a, b in zip(found[1], right[1], strict=True)
            )
            ours, theirs = (1e3 * statistics.median(times) for times in (own, other))
            same = sum(a == b for a, b in zip(found[0], right[0], strict=True))
            click.echo(
                f"{same} of {tokens} tokens equal, scores within {furthest:.1e}; artifact "
                f"{ours:.2f}, ONNX Runtime {theirs:.2f}: {theirs / ours:.2f} times as long"
            )


if __name__ == "__main__":
    main()
