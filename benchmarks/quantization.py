"""Accuracy, size and speed of quantized models beside peers', same samples, over several draws.

    python -m benchmarks.quantization [--draws 5] [--calibration 128] [--test 1000]
        [--models resnet8 FILE ...] [--samples FITTED.npz JUDGED.npz] [--power 2]
        [--ways ours onnxruntime peers schemes equalization bound] [--peer nncf=PYTHON ...]
        [--methods default ...] [--latency]

Models and images are those beside the project (../shared); without them there is nothing to do.
A FILE is that of a net which takes CIFAR-10's images in 0..255, as the zoo's trained ones do, or
what `--samples` holds: arrays by the inputs' names, of those judged with `labels` where there are
some. `--power` scales channels of consecutive layers by 10^-POWER..10^POWER, which leaves the
function as it is. Each draw calibrates with other samples. Noise is that of the outputs in front of
a last Softmax, accuracy the share that is classified as labelled; both are means over draws,
accuracy with the standard error of the difference to float. Latencies are medians of single runs in
turns, with the least and the most, in ONNX Runtime and of the artifact, one thread each, of the
first draw's files. `--peer` names a worker in
`quantization_workers/` and an interpreter that has what it runs; where a peer fails, that is said.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.dependencies.analysis import analyze
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import load, save
from secateur.ir.reference import Session
from secateur.passes.base import Context
from secateur.passes.manager import PassManager
from secateur.passes.opset import ConvertOpset
from secateur.passes.quantize import Quantize, QuantizeStatic
from secateur.passes.quantize.calibrate import exposing
from secateur.passes.quantize.equalize import apply_factors
from secateur.passes.quantize.opset import QDQ_OPSET
from secateur.passes.quantize.regions import find_regions
from secateur.passes.quantize.schemes import SCHEMES
from secateur.passes.simplify import simplify_pipeline
from secateur.passes.sizes import infer_sizes

WORKERS = {
    "nncf": ("NNCF", ("default", "accurate")),
    "aimet": ("AIMET", ("default", "equalised", "AdaRound")),
    "quark": ("Quark", ("default", "AdaRound", "AdaQuant")),
    "neural_compressor": ("neural-compressor", ("default", "SmoothQuant")),
}
"""What peers are called, and the ways in which each quantizes; the first is its default."""


class PeerError(Exception):
    """A peer failed; the last line of what it said."""


SHARED = Path(__file__).parents[2] / "shared"
Array = Any
Make = Callable[[Array, Path], None]
"""Writes the model quantized with samples."""

REPEATS = 100


def images(split: str, count: int) -> tuple[Array, Array]:
    """CIFAR-10 images [count, 3, 32, 32] in 0..255, and their labels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        tool = SHARED / "tools" / "make_npz.py"
        subprocess.run([sys.executable, tool, split, str(count), path], check=True)
        with np.load(path) as data:
            return data["input_1"], data["labels"]


def enlarged(pictures: Array) -> Array:
    return np.repeat(np.repeat(pictures, 3, axis=2), 3, axis=3) / np.float32(255)


def spectra(count: int, seed: int) -> Array:
    """Correlated features, as log-mel spectra of machines are [count, 640]."""
    mixing = np.random.default_rng(0).normal(size=(16, 640))
    found = np.random.default_rng(seed).normal(size=(count, 16)) @ mixing * 2 - 20
    return found.astype(np.float32)


def data_of(
    model: str, arguments: argparse.Namespace, name: str
) -> tuple[list[Array], Array, Array | None]:
    """Samples of each draw, those that are judged by, and the labels of these."""
    count, draws, test = arguments.calibration, arguments.draws, arguments.test
    labels = None
    if arguments.samples and model not in FILES:
        fitted, judged = (np.load(path) for path in arguments.samples)
        labels = judged["labels"][:test] if "labels" in judged.files else None
        pool, judged = fitted[name], judged[name][:test]
        if len(pool) < count * draws:
            orders = [np.random.default_rng(draw).permutation(len(pool)) for draw in range(draws)]
            return [pool[order[:count]] for order in orders], judged, labels
    elif model == "autoencoder":
        pool, judged = spectra(count * draws, 1), spectra(test, 2)
    else:
        pool, _ = images("train", count * draws)
        judged, labels = images("test", test)
        if model == "vww":
            pool, judged, labels = enlarged(pool), enlarged(judged), None
    return [pool[draw * count : (draw + 1) * count] for draw in range(draws)], judged, labels


def scaled(model: Model, power: float) -> None:
    """Scale channels by as much as that, at random; what the model computes stays."""
    generator = np.random.default_rng(0)
    for region in find_regions(analyze(model, prune_normalized=True)):
        apply_factors(model, region, 10 ** generator.uniform(-power, power, region.size))


FILES = {
    "resnet8": "mlperf_tiny_resnet8.onnx",
    "vww": "mlperf_tiny_vww_mobilenet.onnx",
    "autoencoder": "mlperf_tiny_anomaly_autoencoder.onnx",
}


class Judge:
    """Runs models on test samples and compares them with the original."""

    def __init__(self, original: Model, samples: Array, labels: Array | None) -> None:
        self.original, self.samples, self.labels = original, samples, labels
        self.name = original.graph.inputs[0].name
        last = original.graph.nodes[-1]
        self.output = last.outputs[0].name  # type: ignore[union-attr]
        if last.op_type == "Softmax":
            self.output = last.inputs[0].name  # type: ignore[union-attr]
        self.expected = self.run(original)

    def run(self, model: Model) -> Array:
        session = Session(exposing(model, [self.output]), threads=2)
        return np.concatenate(
            [session.run({self.name: x[None]})[self.output].reshape(1, -1) for x in self.samples]
        )

    def sqnr(self, found: Array) -> float:
        noise = np.square(found - self.expected, dtype=np.float64).sum()
        power = np.square(self.expected, dtype=np.float64).sum()
        return float(10 * np.log10(power / max(noise, 1e-300)))

    def right(self, found: Array) -> float:
        """Share of the samples that are classified as labelled."""
        return float((found.argmax(axis=1) == self.labels).mean())


def ways(
    model: Model, name: str, kinds: list[str], peers: dict[str, str], methods: list[str] | None
) -> dict[str, Make]:
    def ours(pass_: Any) -> Make:
        def make(samples: Array, path: Path) -> None:
            copy = model.clone()
            pass_.run(copy, Context({name: samples}))
            save(copy, path)

        return make

    found: dict[str, Make] = {}
    if "ours" in kinds:
        found["secateur, min-max alone"] = ours(QuantizeStatic())
        for accuracy in ("fast", "good", "best"):
            found[f"secateur, {accuracy}"] = ours(Quantize(accuracy=accuracy))
    if "schemes" in kinds:
        for scheme in SCHEMES:
            found[f"secateur, scheme {scheme}"] = ours(Quantize(scheme=scheme))
    if "equalization" in kinds:
        for channels, equal in itertools.product((True, False), (False, True)):
            title = f"{'per channel' if channels else 'per tensor'}{', equalized' * equal}"
            options = {"calibrator": "mse", "correct_biases": True, "equalize": equal}
            found[title] = ours(QuantizeStatic(per_channel=channels, **options))
    if "bound" in kinds:
        found["activations alone"] = activations_alone(model, name)
    if "onnxruntime" in kinds:
        for method in ("MinMax", "Percentile", "Entropy"):
            found[f"ONNX Runtime, {method}"] = peer(model, name, method)
    if "peers" in kinds:
        for worker, python in peers.items():
            title, known = WORKERS[worker]
            for method in (one for one in known if methods is None or one in methods):
                made = other_environment(model, name, worker, python, method)
                found[f"{title}, {method}"] = made
    return found


def activations_alone(model: Model, name: str) -> Make:
    """Weights as they are, as no rounding of them can be better than."""

    def make(samples: Array, path: Path) -> None:
        copy = model.clone()
        QuantizeStatic(calibrator="mse").run(copy, Context({name: samples}))
        made = {v.name: node for node in model.graph.nodes for v in node.outputs if v is not None}
        for node in copy.graph.nodes:
            result, stored = node.output(0), node.input(1)
            twin = made.get(result.name) if result is not None else None
            weights = model.constant(twin.input(1)) if twin is not None else None
            restored = stored is not None and stored.producer is not None
            if weights is not None and restored and node.op_type in ("Conv", "Gemm", "MatMul"):
                new = copy.graph.add_initializer(copy.fresh_name("float"), weights)
                node.set_input(1, new)
        save(copy, path)

    return make


def float_file(model: Model, path: Path) -> None:
    """The model as peers take it."""
    copy = model.clone()
    if copy.opset < QDQ_OPSET:
        ConvertOpset(QDQ_OPSET).run(copy)
    save(copy, path)


def peer(model: Model, name: str, method: str) -> Make:
    def make(samples: Array, path: Path) -> None:
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left = iter(samples)

            def get_next(self) -> dict[str, Array] | None:
                sample = next(self.left, None)
                return None if sample is None else {name: sample[None]}

        before = path.with_name("float.onnx")
        float_file(model, before)
        quantization.quantize_static(
            before,
            path,
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, method),
        )

    return make


def other_environment(model: Model, name: str, worker: str, python: str, method: str) -> Make:
    script = Path(__file__).parent / "quantization_workers" / f"{worker}_worker.py"

    def make(samples: Array, path: Path) -> None:
        before, data = path.with_name("float.onnx"), path.with_name("samples.npy")
        float_file(model, before)
        np.save(data, samples)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [python, script, before, path, data, name, method],
            env=environment,
            cwd=path.parent,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise PeerError((done.stderr.strip().splitlines() or ["no message"])[-1])

    return make


def latencies(files: dict[str, Path], judge: Judge, folder: Path) -> dict[str, list[str]]:
    """Milliseconds in ONNX Runtime and of the artifact, of all files in turns: median, least and
    most."""
    feed = {judge.name: judge.samples[:1]}
    runners: dict[tuple[str, int], Any] = {}
    for number, (way, path) in enumerate(files.items()):
        model = load(path)
        runners[way, 0] = Session(model, fast=True)
        artifact = folder / f"{number}.so"
        try:
            compile_model(model, parse_target("native"), artifact)
            runners[way, 1] = Runtime(artifact)
        except SecateurError as error:
            print(f"{way}: not compiled: {error}", file=sys.stderr)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in runners}
    for _ in range(REPEATS):
        for key, runner in runners.items():
            start = time.perf_counter()
            runner.run(feed)
            times[key].append(1e3 * (time.perf_counter() - start))
    cells = {key: f"{np.median(t):.3f} ({min(t):.3f}-{max(t):.3f})" for key, t in times.items()}
    return {way: [cells[way, 0], cells.get((way, 1), "")] for way in files}


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Print the rows of one model."""
    model = load(SHARED / "models" / FILES[name] if name in FILES else Path(name))
    PassManager(simplify_pipeline()).run(model, Context())
    infer_sizes(model)
    if arguments.power:
        scaled(model, arguments.power)
    fitted, judged, labels = data_of(name, arguments, model.graph.inputs[0].name)
    judge = Judge(model, judged, labels)
    with tempfile.TemporaryDirectory() as folder:
        files = {"float32": Path(folder) / "original.onnx"}
        save(model, files["float32"])
        rows: dict[str, list[str]] = {
            "float32": ["", "", f"{files['float32'].stat().st_size:,}", ""]
        }
        if labels is not None:
            rows["float32"][1] = f"{100 * judge.right(judge.expected):.2f} %"
        made = ways(model, judge.name, arguments.ways, dict(arguments.peer), arguments.methods)
        for number, (way, make) in enumerate(made.items()):
            ratios, gains, seconds, sizes = [], [], [], []
            failure = ""
            for draw, samples in enumerate(fitted):
                (Path(folder) / f"{number}_{draw}").mkdir()
                path = Path(folder) / f"{number}_{draw}" / "quantized.onnx"
                start = time.perf_counter()
                try:
                    make(samples, path)
                except PeerError as refusal:
                    failure = str(refusal)
                    break
                seconds.append(time.perf_counter() - start)
                sizes.append(path.stat().st_size)
                found = judge.run(load(path))
                ratios.append(judge.sqnr(found))
                if labels is not None:
                    gains.append(judge.right(found) - judge.right(judge.expected))
                files.setdefault(way, path)
            if failure:
                print(f"{name}, {way}: fails: {failure}", file=sys.stderr, flush=True)
                continue
            top1 = ""
            if gains:
                error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
                top1 = f"{100 * np.mean(gains):+.2f} (+-{100 * error:.2f})"
            print(f"{name}, {way}: {np.mean(ratios):.1f} dB, {top1}", file=sys.stderr, flush=True)
            rows[way] = [
                f"{np.mean(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f}) dB",
                top1,
                f"{np.mean(sizes):,.0f}",
                f"{np.mean(seconds):.1f} s",
            ]
        times = latencies(files, judge, Path(folder)) if arguments.latency else {}
        for way, row in rows.items():
            cells = [name, way, *row, *times.get(way, [])]
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--models", nargs="+", metavar="NAME|FILE", default=list(FILES))
    kinds = ["ours", "onnxruntime", "peers", "schemes"]
    parser.add_argument(
        "--ways", nargs="+", choices=[*kinds, "equalization", "bound"], default=kinds
    )
    parser.add_argument("--methods", nargs="+", help="of the peers' ways only these")
    parser.add_argument("--samples", nargs=2, metavar="NPZ")
    parser.add_argument("--power", type=float, default=0)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=lambda text: text.split("=", 1),
        metavar="PEER=PYTHON",
    )
    arguments = parser.parse_args()
    if not SHARED.exists():
        parser.error("the models and images beside the project are missing")
    header = ["model", "", "SQNR (range)", "top-1 to float", "bytes", "time"]
    header += ["ONNX Runtime, ms", "artifact, ms"] if arguments.latency else []
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for name in arguments.models:
        measure(name, arguments)


if __name__ == "__main__":
    main()
