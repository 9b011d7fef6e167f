"""Accuracy and size of quantized models beside ONNX Runtime's calibrators, same samples.

    python -m benchmarks.quantization [--calibration 256] [--test 500] [--models resnet8 ...]

Models and images are those beside the project (../shared); without them there is nothing to do.
Noise is that of the outputs in front of a last Softmax, accuracy that on CIFAR-10's test images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from secateur.ir.model import Model
from secateur.ir.onnx_io import load, save
from secateur.ir.reference import Session
from secateur.passes.base import Context
from secateur.passes.manager import PassManager
from secateur.passes.opset import ConvertOpset
from secateur.passes.quantize import Quantize, QuantizeStatic
from secateur.passes.quantize.calibrate import exposing
from secateur.passes.quantize.opset import QDQ_OPSET
from secateur.passes.simplify import simplify_pipeline
from secateur.passes.sizes import infer_sizes

SHARED = Path(__file__).parents[2] / "shared"
Array = Any


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


def data_of(model: str, calibration: int, test: int) -> tuple[Array, Array, Array | None]:
    if model == "autoencoder":
        return spectra(calibration, 1), spectra(test, 2), None
    fitted, _ = images("train", calibration)
    judged, labels = images("test", test)
    if model == "vww":
        return enlarged(fitted), enlarged(judged), None
    return fitted, judged, labels


FILES = {
    "resnet8": "mlperf_tiny_resnet8.onnx",
    "vww": "mlperf_tiny_vww_mobilenet.onnx",
    "autoencoder": "mlperf_tiny_anomaly_autoencoder.onnx",
}


class Judge:
    """Runs models on test samples and compares them with the original."""

    def __init__(self, original: Model, samples: Array, labels: Array | None) -> None:
        self.samples, self.labels = samples, labels
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

    def cells(self, model: Model, size: int, seconds: float) -> list[str]:
        found = self.run(model)
        noise = np.square(found - self.expected, dtype=np.float64).sum()
        ratio = 10 * np.log10(np.square(self.expected, dtype=np.float64).sum() / max(noise, 1e-300))
        top1 = ""
        if self.labels is not None:
            top1 = f"{100 * (found.argmax(axis=1) == self.labels).mean():.2f} %"
        return [f"{ratio:.1f} dB", top1, f"{size:,}", f"{seconds:.0f} s"]


def ways(model: Model, samples: Array, name: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    def ours(pass_: Any) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            copy = model.clone()
            pass_.run(copy, Context({name: samples}))
            save(copy, path)

        return make

    yield "secateur, min-max alone", ours(QuantizeStatic())
    for accuracy in ("fast", "good", "best"):
        yield f"secateur, {accuracy}", ours(Quantize(accuracy=accuracy))
    for method in ("MinMax", "Percentile", "Entropy"):
        yield f"ONNX Runtime, {method}", peer(model, samples, name, method)


def peer(model: Model, samples: Array, name: str, method: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left = iter(samples)

            def get_next(self) -> dict[str, Array] | None:
                sample = next(self.left, None)
                return None if sample is None else {name: sample[None]}

        before = path.with_name("float.onnx")
        copy = model.clone()
        if copy.opset < QDQ_OPSET:
            ConvertOpset(QDQ_OPSET).run(copy)
        save(copy, before)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--models", nargs="+", choices=FILES, default=list(FILES))
    arguments = parser.parse_args()
    if not SHARED.exists():
        parser.error("the models and images beside the project are missing")
    print("| model | | SQNR | top-1 | bytes | time |\n| --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        model = load(SHARED / "models" / FILES[name])
        PassManager(simplify_pipeline()).run(model, Context())
        infer_sizes(model)
        fitted, judged, labels = data_of(name, arguments.calibration, arguments.test)
        judge = Judge(model, judged, labels)
        if labels is not None:
            share = (judge.expected.argmax(axis=1) == labels).mean()
            print(f"| {name} | float32 | | {100 * share:.2f} % | | |")
        for way, make in ways(model, fitted, judge.name):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "quantized.onnx"
                start = time.perf_counter()
                make(path)
                seconds = time.perf_counter() - start
                cells = judge.cells(load(path), path.stat().st_size, seconds)
            print(f"| {name} | {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
