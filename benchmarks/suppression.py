"""NonMaxSuppression of many boxes: an artifact beside ONNX Runtime.

    python benchmarks/suppression.py [--boxes 8400] [--classes 80] [--turns 5]

Boxes are random, and of so many the score exceeds the limit; at most 100 of a class are kept. Both
take turns on one thread; times are medians in milliseconds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto


@click.command()
@click.option("--boxes", default=8400)
@click.option("--classes", default=80)
@click.option("--turns", default=5)
def main(boxes: int, classes: int, turns: int) -> None:
    """Time and compare."""
    limits = {"most": np.int64(100), "overlap": np.float32(0.5), "least": np.float32(0.25)}
    constants = [numpy_helper.from_array(np.array([n]), name) for name, n in limits.items()]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *limits], ["kept"])
    ends = {"boxes": [1, boxes, 4], "scores": [1, classes, boxes]}
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends.items()]
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, None)
    graph = helper.make_graph([node], "suppression", given, [kept], constants)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    random = np.random.default_rng(0)
    middle, half = 640 * random.random((1, boxes, 2)), 5 + 50 * random.random((1, boxes, 2))
    corners = np.concatenate([middle - half, middle + half], -1).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        compile_model(from_proto(model), parse_target("native"), Path(folder) / "m.so")
        runtime = Runtime(Path(folder) / "m.so")
        for count in (870, 8_970, boxes * classes // 10, boxes * classes):
            passing = random.random((1, classes, boxes)) < count / (boxes * classes)
            scores = 0.25 + 0.75 * random.random((1, classes, boxes))
            feeds = {"boxes": corners, "scores": np.where(passing, scores, 0).astype(np.float32)}
            runs: list[Callable[[], np.ndarray]] = [
                lambda feeds=feeds: runtime.run(feeds)["kept"],
                lambda feeds=feeds: session.run(None, feeds)[0],
            ]
            times: list[list[float]] = [[], []]
            found = [run() for run in runs]
            for _ in range(turns):
                for run, own in zip(runs, times, strict=True):
                    start = time.perf_counter()
                    run()
                    own.append(time.perf_counter() - start)
            ours, theirs = (1e3 * statistics.median(own) for own in times)
            equal = "equal" if np.array_equal(*found) else "different"
            click.echo(
                f"{passing.sum()} scores pass: {equal}, artifact {ours:.2f}, "
                f"ONNX Runtime {theirs:.2f}: {theirs / ours:.2f} times as long"
            )


if __name__ == "__main__":
    main()
