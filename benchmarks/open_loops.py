"""A GRU that is spelled out as a Scan, or as a Loop that TensorFlow's converter writes.

    python benchmarks/open_loops.py [--hidden 128] [--lengths 16,200]

Each form is compiled once for any length. The artifact and ONNX Runtime take turns on one thread;
times are medians in milliseconds.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx.parser
import onnxruntime
from onnx import ModelProto, numpy_helper

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

CELL = """gates = Gemm(row, w, bw)
own = Gemm(state, r, br)
zx, rx, hx = Split <axis = -1> (gates, parts)
zh, rh, hh = Split <axis = -1> (own, parts)
z0 = Add(zx, zh)
z = Sigmoid(z0)
r0 = Add(rx, rh)
reset = Sigmoid(r0)
kept = Mul(reset, hh)
h0 = Add(hx, kept)
new = Tanh(h0)
old = Mul(z, state)
rest = Sub(unit, z)
part = Mul(rest, new)
next = Add(old, part)
out = Identity(next)"""

FORMS = {
    "Scan": """last, y = Scan <num_scan_inputs = 1, body = step
(float[b, H] state, float[b, I] row) => (float[b, H] next, float[b, H] out) { CELL }> (h, x)""",
    "Loop": """s = Shape(x)
steps = Gather(s, zero)
n = Cast <to = 6> (steps)
most = ReduceMax <keepdims = 0> (n)
trips = Cast <to = 7> (most)
go = Less(first, n)
k, last, y = Loop <body = step (int64 i, bool on, int32 j, float[b, H] state)
=> (bool more, int32 j2, float[b, H] next, float[b, H] out)
{ row = Gather(x, j) CELL j2 = Add(j, second) below = Less(j2, n) within = Less(j2, most)
more = And(below, within) }> (trips, go, first, h)""",
}


def gru(form: str, hidden: int, inputs: int) -> ModelProto:
    """The model of a form, with random weights."""
    body = FORMS[form].replace("CELL", CELL).replace("H]", f"{hidden}]").replace("I]", f"{inputs}]")
    ends = f"(float[b, {hidden}] h, float[n, b, {inputs}] x)"
    results = f"(float[b, {hidden}] last, float[n, b, {hidden}] y)"
    constants = "int64 zero = {0}, int32 first = {0}, int32 second = {1}, float unit = {1.0}"
    constants += f", int64[3] parts = {{{hidden}, {hidden}, {hidden}}}"
    text = f"agraph {ends} => {results} <{constants}> {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}')
    random = np.random.default_rng(0)
    for name, shape in (("w", (inputs, 3 * hidden)), ("r", (hidden, 3 * hidden))):
        drawn = random.standard_normal(shape) * shape[0] ** -0.5
        model.graph.initializer.append(numpy_helper.from_array(drawn.astype(np.float32), name))
        bias = random.standard_normal(3 * hidden).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(bias, f"b{name}"))
    return model


@click.command()
@click.option("--hidden", default=128)
@click.option("--lengths", default="16,200")
@click.option("--turns", default=40)
def main(hidden: int, lengths: str, turns: int) -> None:
    """Run both forms and print a table."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    inputs = hidden // 2
    click.echo("| form | steps | artifact, ms | ONNX Runtime, ms | ONNX Runtime / artifact |")
    click.echo("|---|---|---|---|---|")
    for form in FORMS:
        model = gru(form, hidden, inputs)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.so"
            admitted = read_admitted(["b=1..", "n=1.."])
            compile_model(from_proto(model), parse_target("native"), path, sizes=admitted)
            runtime = Runtime(path)
        for steps in map(int, lengths.split(",")):
            draw = np.random.default_rng(steps).standard_normal
            feeds = {
                "h": draw((1, hidden)).astype(np.float32),
                "x": draw((steps, 1, inputs)).astype(np.float32),
            }
            times: tuple[list[float], list[float]] = ([], [])
            runs = (runtime.run, functools.partial(session.run, None))
            for _ in range(turns):
                for own, run in zip(times, runs, strict=True):
                    start = time.perf_counter()
                    run(feeds)
                    own.append(time.perf_counter() - start)
            right = session.run(["y"], feeds)[0]
            np.testing.assert_allclose(runtime.run(feeds)["y"], right, rtol=1e-4, atol=1e-5)
            ours, theirs = (1e3 * statistics.median(own) for own in times)
            row = f"{form} | {steps} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.1f}"
            click.echo(f"| {row} |")


if __name__ == "__main__":
    main()
