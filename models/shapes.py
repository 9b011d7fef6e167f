"""A small detector of circles, squares and triangles, trained here in minutes.

    python -m secateur.models.shapes OUTDIR [STEPS]

writes `shapes.onnx` (float32, BatchNormalization kept, boxes as YOLOv8 puts them out),
and folders of pictures with `annotations.json`, as COCO's: `calibration` and `evaluation`. The
pictures are drawn, so nothing is downloaded. Needs the extras `torch` and `images`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812  as everybody calls it

SIDE, STRIDE = 96, 8
NAMES = ("circle", "square", "triangle")
STEPS, BATCH = 600, 24
CALIBRATION, EVALUATION = 64, 200
"""Pictures."""

Pixels = NDArray[np.uint8]


def scene(random: np.random.Generator, height: int, width: int) -> tuple[Pixels, list[Any]]:
    """A picture [height, width, 3] and its objects: class and corners x, y, x, y."""
    from PIL import Image, ImageDraw

    low = random.integers(0, 256, (3, 4, 3), dtype=np.uint8) // 2
    back = Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(back)
    found: list[Any] = []
    for _ in range(int(random.integers(1, 5))):
        size = float(random.uniform(0.16, 0.4)) * min(height, width)
        x, y = random.uniform(0, width - size), random.uniform(0, height - size)
        box = [float(x), float(y), float(x + size), float(y + size)]
        if any(_covers(box, other) > 0.1 for _, other in found):
            continue
        kind = int(random.integers(len(NAMES)))
        colour = tuple(int(c) for c in random.integers(120, 256, 3))
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(x, y + size), (x + size, y + size), (x + size / 2, y)], fill=colour)
        found.append((kind, box))
    noise = random.normal(0, 6, (height, width, 3))
    return np.clip(np.asarray(back) + noise, 0, 255).astype(np.uint8), found


def _covers(a: list[float], b: list[float]) -> float:
    """Intersection over the smaller area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(0.0, width) * max(0.0, height) / min(areas)


class ShapeDetector(nn.Module):
    """[N, 3, 96, 96] in 0..1 -> [N, 4 + 3, 144]: middles, sizes and scores of classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 24, 48, 64, 64)
        strides = (2, 2, 2, 1, 1)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], 4 + len(NAMES), 1)
        nn.init.constant_(self.head.bias[4:], -math.log(30))
        cells = torch.arange(SIDE // STRIDE) * STRIDE + STRIDE / 2
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        self.register_buffer("middles", torch.stack([x.flatten(), y.flatten()])[None])

    def raw(self, pictures: Any) -> tuple[Any, Any]:
        """Distances of a box's sides from a cell's middle [N, 4, cells], and logits."""
        found = self.head(self.body(pictures)).flatten(2)
        return torch.exp(found[:, :4].clamp(-4, 4)) * 2 * STRIDE, found[:, 4:]

    def forward(self, pictures: Any) -> Any:
        sides, logits = self.raw(pictures)
        first, last = self.middles - sides[:, :2], self.middles + sides[:, 2:]
        return torch.cat([(first + last) / 2, last - first, logits.sigmoid()], 1)


def loss_of(model: ShapeDetector, pictures: Any, objects: Sequence[list[Any]]) -> Any:
    """Focal loss of classes, and 1 - IoU of the boxes of cells near an object's middle."""
    sides, logits = model.raw(pictures)
    wanted = torch.zeros_like(logits)
    boxes = torch.zeros_like(sides)
    middles = model.middles[0]
    for index, found in enumerate(objects):
        for kind, box in found:
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            reach = max(STRIDE * 0.75, (box[2] - box[0]) * 0.2)
            near = ((middles[0] - x).abs() < reach) & ((middles[1] - y).abs() < reach)
            wanted[index, kind, near] = 1
            boxes[index, :, near] = torch.tensor(box)[:, None]
    chance = logits.sigmoid()
    right = torch.where(wanted > 0, chance, 1 - chance)
    weight = torch.where(wanted > 0, 0.75, 0.25) * (1 - right) ** 2
    objects_seen = wanted.sum().clamp(min=1)
    plain = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    total = (weight * plain).sum() / objects_seen * 4
    at = wanted.sum(1) > 0
    low, high = (middles - sides[:, :2]), (middles + sides[:, 2:])
    have = torch.cat([low, high], 1).transpose(1, 2)[at]
    want = boxes.transpose(1, 2)[at]
    inner = torch.minimum(have[:, 2:], want[:, 2:]) - torch.maximum(have[:, :2], want[:, :2])
    inside = inner.clamp(min=0).prod(1)
    areas = (have[:, 2:] - have[:, :2]).prod(1) + (want[:, 2:] - want[:, :2]).prod(1)
    return total + (1 - inside / (areas - inside)).sum() / max(1, len(want)) * 2


def train(steps: int = STEPS, seed: int = 0) -> ShapeDetector:
    """The same seed gives the same network on the same machine."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = ShapeDetector()
    rates = torch.optim.lr_scheduler.OneCycleLR
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    schedule = rates(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        scenes = [scene(random, SIDE, SIDE) for _ in range(BATCH)]
        pictures = np.stack([pixels for pixels, _ in scenes]).transpose(0, 3, 1, 2) / 255
        optimizer.zero_grad()
        loss_of(
            model, torch.tensor(pictures, dtype=torch.float32), [o for _, o in scenes]
        ).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return model


def write_pictures(folder: Path, count: int, seed: int) -> None:
    """Pictures of several shapes and their annotations."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        height, width = (int(side) for side in random.integers(80, 161, 2))
        pixels, objects = scene(random, height, width)
        name = f"{number:04}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for kind, (left, top, right, bottom) in objects:
            sides = [right - left, bottom - top]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kind + 1,
                    "bbox": [left, top, *sides],
                    "area": sides[0] * sides[1],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def make(folder: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Train, and write everything."""
    folder.mkdir(parents=True, exist_ok=True)
    model = train(steps, seed)
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, SIDE, SIDE),),
        str(folder / "shapes.onnx"),
        input_names=["images"],
        output_names=["output0"],
        opset_version=17,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    write_pictures(folder / "calibration", CALIBRATION, seed + 1)
    write_pictures(folder / "evaluation", EVALUATION, seed + 2)


def main(arguments: Sequence[str]) -> int:
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        print("usage: python -m secateur.models.shapes OUTDIR [STEPS]", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    make(folder, int(arguments[1]) if len(arguments) > 1 else STEPS)
    print(f"{folder / 'shapes.onnx'}, {folder / 'calibration'}, {folder / 'evaluation'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
