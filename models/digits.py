"""A small residual CNN that reads handwritten digits, trained here with numpy in seconds.

    python -m secateur.models.digits OUTDIR

writes `digits.onnx` (float32, BatchNormalization kept), `calibration.npz` (training
images) and `evaluation.npz` (held-out images and labels). The data are scikit-learn's
bundled 8x8 grey images, so nothing is downloaded; the same seed gives the same bytes.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..ir.errors import SecateurError
from ..ir.onnx_io import atomic_files
from .training import (
    BatchNorm,
    Block,
    Dense,
    GlobalPool,
    Relu,
    TrainedConvolution,
    TrainedLayer,
    TrainedResidual,
    parameters,
    train,
)

INPUT = "image"
HELD_OUT = 400
"""Images that training never sees; the other 1,397 are trained on."""

Float = NDArray[np.float32]


def network(seed: int) -> list[TrainedLayer]:
    """Stem of 16 channels, residual blocks of 16, 32 and 64, the second one depthwise.

    [1, N, 8, 8] -> [10, N], as in `training`.
    """
    rng = np.random.default_rng(seed)

    def conv(name: str, inputs: int, outputs: int, **options: int) -> list[TrainedLayer]:
        return [
            TrainedConvolution(f"{name}.conv", rng, inputs, outputs, **options),
            BatchNorm(f"{name}.bn", outputs),
        ]

    return [
        *conv("stem", 1, 16),
        Relu("stem.relu"),
        TrainedResidual(
            "block1",
            Block([*conv("block1.1", 16, 16), Relu("block1.1.relu"), *conv("block1.2", 16, 16)]),
        ),
        Relu("block1.relu"),
        TrainedResidual(
            "block2",
            Block(
                [
                    *conv("block2.1", 16, 32, kernel=1),
                    Relu("block2.1.relu"),
                    *conv("block2.2", 32, 32, groups=32, stride=2),
                    Relu("block2.2.relu"),
                    *conv("block2.3", 32, 32, kernel=1),
                ]
            ),
            Block(conv("block2.skip", 16, 32, kernel=1, stride=2)),
        ),
        Relu("block2.relu"),
        TrainedResidual(
            "block3",
            Block(
                [
                    *conv("block3.1", 32, 64, stride=2),
                    Relu("block3.1.relu"),
                    *conv("block3.2", 64, 64),
                ]
            ),
            Block(conv("block3.skip", 32, 64, kernel=1, stride=2)),
        ),
        Relu("block3.relu"),
        GlobalPool("pool"),
        Dense("classifier", rng, 64, 10),
    ]


def load_digits(seed: int) -> tuple[Float, NDArray[np.int64], Float, NDArray[np.int64]]:
    """Training images [n, 1, 8, 8] in 0..1 and labels, then the held-out ones."""
    try:
        from sklearn import datasets
    except ImportError:
        raise SecateurError(
            "the digits are part of scikit-learn, which is not installed: "
            "pip install 'secateur[examples]'"
        ) from None
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = labels[order].astype(np.int64)
    return images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]


def to_onnx(layers: Sequence[TrainedLayer], batch: int | str) -> onnx.ModelProto:
    """The network as an ONNX model in inference mode."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def emit(layers: Sequence[TrainedLayer], value: str) -> str:
        for layer in layers:
            value = emit_layer(layer, value)
        return value

    def emit_layer(layer: TrainedLayer, value: str) -> str:
        if isinstance(layer, TrainedResidual):
            main, skip = emit(layer.main.layers, value), emit(layer.skip.layers, value)
            nodes.append(helper.make_node("Add", [main, skip], [layer.name], name=layer.name))
            return layer.name
        inputs = [value]
        for name, array in layer.tensors().items():
            weights.append(numpy_helper.from_array(array, f"{layer.name}.{name}"))
            inputs.append(weights[-1].name)
        op_type, attributes = layer.operator()
        if op_type == "Gemm":
            nodes.append(helper.make_node("Flatten", [value], [f"{layer.name}.in"]))
            inputs[0] = f"{layer.name}.in"
        nodes.append(helper.make_node(op_type, inputs, [layer.name], name=layer.name, **attributes))
        return layer.name

    result = emit(layers, INPUT)
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, [batch, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    model.producer_name = "secateur"
    onnx.checker.check_model(model, full_check=True)
    return model


def make(folder: Path, *, epochs: int = 12, batch: int | str = 1, seed: int = 0) -> float:
    """Train, write the three files, and return the held-out accuracy (0..1)."""
    images, labels, test_images, test_labels = load_digits(seed)
    layers = network(seed)
    train(layers, images.transpose(1, 0, 2, 3), labels, epochs=epochs, seed=seed)
    scores = Block(layers).forward(test_images.transpose(1, 0, 2, 3), training=False)
    model = to_onnx(layers, batch)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("digits.onnx", "calibration.npz", "evaluation.npz")
    with atomic_files(*(folder / name for name in names)) as (model_file, calibration, evaluation):
        model_file.write_bytes(model.SerializeToString(deterministic=True))
        save_npz(calibration, {INPUT: images})
        save_npz(evaluation, {INPUT: test_images, "labels": test_labels})
    return float((scores.argmax(axis=0) == test_labels).mean())


def save_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """As numpy.savez, but with a constant time stamp, so that equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m secateur.models.digits OUTDIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        accuracy = make(folder)
    except (SecateurError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    count = sum(array.size for array in parameters(network(0)))
    print(
        f"{folder / 'digits.onnx'}: {count:,} parameters, {100 * accuracy:.1f} % of "
        f"{HELD_OUT} held-out digits right"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
