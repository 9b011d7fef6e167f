"""A one-stage detector in the manner of YOLOv8: C2f, SPPF, a PAN neck and a DFL head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .layers import ConvNormAct


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> ConvNormAct:
    return ConvNormAct(inputs, outputs, kernel, stride, activation=nn.SiLU())


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width, 3), conv(width, width, 3))
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class C2f(nn.Module):
    """Split in two; a chain of bottlenecks on one half; all stages concatenated."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.expand = conv(inputs, 2 * half)
        self.blocks = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))
        self.merge = conv((2 + depth) * half, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.expand(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.merge(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling by three chained 5x5 max poolings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = conv(width, width // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.merge = conv(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.reduce(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.merge(torch.cat(parts, 1))


class DFL(nn.Module):
    """Distribution focal loss decoding (Li et al. 2020): softmax over bins, then their mean.

    `[N, 4 * bins, A]` becomes distances `[N, 4, A]`.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.project = nn.Conv2d(bins, 1, 1, bias=False)
        self.project.weight.data = torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1)
        self.project.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, anchors = x.shape
        x = x.view(batch, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        return self.project(x).view(batch, 4, anchors)


class Detect(nn.Module):
    """Box and class branches per scale; boxes as centre and size in pixels."""

    strides = (8, 16, 32)

    def __init__(self, channels: Sequence[int], classes: int, bins: int, image: int) -> None:
        super().__init__()
        box = max(16, channels[0] // 4, 4 * bins)
        score = max(channels[0], min(classes, 100))
        self.outputs = (4 * bins, classes)
        self.boxes = nn.ModuleList(
            nn.Sequential(conv(c, box, 3), conv(box, box, 3), nn.Conv2d(box, 4 * bins, 1))
            for c in channels
        )
        self.scores = nn.ModuleList(
            nn.Sequential(conv(c, score, 3), conv(score, score, 3), nn.Conv2d(score, classes, 1))
            for c in channels
        )
        self.dfl = DFL(bins)
        anchors, steps = zip(*(_grid(image // s, s) for s in self.strides), strict=True)
        self.register_buffer("anchors", torch.cat(anchors, 1))
        self.register_buffer("steps", torch.cat(steps, 1))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        rows = []
        for x, box, score in zip(features, self.boxes, self.scores, strict=True):
            y = torch.cat([box(x), score(x)], 1)
            rows.append(y.view(y.shape[0], sum(self.outputs), -1))
        boxes, scores = torch.cat(rows, 2).split(self.outputs, 1)
        near, far = self.dfl(boxes).chunk(2, 1)
        low, high = self.anchors - near, self.anchors + far
        decoded = torch.cat([(low + high) / 2, high - low], 1) * self.steps
        return torch.cat([decoded, scores.sigmoid()], 1)


def _grid(size: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres of a feature map's cells `[2, size * size]`, and the stride of each cell."""
    centres = torch.arange(size, dtype=torch.float32) + 0.5
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([columns.flatten(), rows.flatten()])
    return points, torch.full((1, size * size), float(stride))


class Yolo(nn.Module):
    """The nano size by default. Input `[N, 3, image, image]`, output `[N, 4 + classes, cells]`."""

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        depths: Sequence[int] = (1, 2, 2, 1),
        neck_depth: int = 1,
        classes: int = 80,
        bins: int = 16,
        image: int = 640,
    ) -> None:
        super().__init__()
        w = widths
        self.stem = conv(3, w[0], 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(w[i], w[i + 1], 3, 2), C2f(w[i + 1], w[i + 1], depths[i], True))
            for i in range(4)
        )
        self.sppf = SPPF(w[4])
        self.upsample = nn.Upsample(scale_factor=2)
        self.up4 = C2f(w[4] + w[3], w[3], neck_depth, False)
        self.up3 = C2f(w[3] + w[2], w[2], neck_depth, False)
        self.down3 = conv(w[2], w[2], 3, 2)
        self.out4 = C2f(w[2] + w[3], w[3], neck_depth, False)
        self.down4 = conv(w[3], w[3], 3, 2)
        self.out5 = C2f(w[3] + w[4], w[4], neck_depth, False)
        self.detect = Detect((w[2], w[3], w[4]), classes, bins, image)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        p3, p4, p5 = features[1], features[2], self.sppf(features[3])
        n4 = self.up4(torch.cat([self.upsample(p5), p4], 1))
        n3 = self.up3(torch.cat([self.upsample(n4), p3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), n4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), p5], 1))
        return self.detect([n3, n4, n5])
