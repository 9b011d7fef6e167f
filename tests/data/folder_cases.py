"""What tests of folders of samples build."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from secateur.data.datasets import DataError, FileSource, load_dataset
from secateur.data.preprocessing import Preprocessing
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto

KINDS = {
    np.float32: TensorProto.FLOAT,
    np.uint8: TensorProto.UINT8,
    np.float16: TensorProto.FLOAT16,
}


def reading(dtype: Any = np.float32, **shapes: list[int | str | None]) -> Model:
    """A model that reads inputs of these shapes and gives each back."""
    kind = KINDS[dtype]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, None) for name in shapes]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in shapes]
    opset = [helper.make_opsetid("", 13)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


def picture(path: Path, pixels: Any, **options: Any) -> Path:
    """Write pixels, uint8 [h, w] or [h, w, 3], as a picture; the name says in which format."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def recording(path: Path, samples: Any, rate: int = 16000, width: int = 2) -> Path:
    """Write samples in -1..1, [time] or [time, channels], as linear PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.asarray(samples, np.float64)
    samples = samples[:, None] if samples.ndim == 1 else samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = np.rint(samples * (2 ** (8 * width - 1) - 1)).astype("<i8")
        if width == 1:
            whole = whole + 128
        content = whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
        file.writeframes(content)
    return path


def coco(path: Path, images: dict[str, list[tuple[int, list[float]]]], **extra: Any) -> Path:
    """Write annotations: boxes x, y, width, height with a category's number, by picture."""
    annotations = []
    for number, boxes in enumerate(images.values()):
        for category, box in boxes:
            entry = {"image_id": number, "category_id": category, "bbox": box, **extra}
            annotations.append({"id": len(annotations) + 1, **entry})
    categories = sorted({category for boxes in images.values() for category, _ in boxes} | {1})
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(images)],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"kind {c}"} for c in categories],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


RAW = Preprocessing()
MODEL = reading(x=[1, 3, 8, 8])


def load(
    root: Path, how: Preprocessing | None = RAW, model: Any = MODEL, kind: str | None = None
) -> Any:
    return load_dataset(FileSource(root, how), model, kind)


def fails(root: Path, message: str, **options: Any) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_all(root, **options)
    assert "\n" not in str(caught.value)


def read_all(root: Path, **options: Any) -> None:
    data = load(root, **options)
    data.samples.arrays["x"][:]
    list(data.labels if data.labels is not None else [])
