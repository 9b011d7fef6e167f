"""SqueezeNet 1.1, and LeNet-5: convolutional networks without normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Fire(nn.Module):
    """1x1 squeeze, then 1x1 and 3x3 expand side by side (Iandola et al. 2016)."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1(x)), self.relu(self.expand3(x))], 1)


def squeezenet(
    stem: int = 64,
    fires: Sequence[Sequence[tuple[int, int]]] = (
        ((16, 64), (16, 64)),
        ((32, 128), (32, 128)),
        ((48, 192), (48, 192), (64, 256), (64, 256)),
    ),
    classes: int = 1000,
) -> nn.Module:
    """SqueezeNet 1.1; `fires` holds (squeeze, expand) widths per stage."""
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, 2), nn.ReLU()]
    channels = stem
    for stage in fires:
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for squeeze, expand in stage:
            layers.append(Fire(channels, squeeze, expand))
            channels = 2 * expand
    return nn.Sequential(
        *layers,
        nn.Dropout(0.5),
        nn.Conv2d(channels, classes, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
    )


def lenet5(
    widths: Sequence[int] = (6, 16), hidden: Sequence[int] = (120, 84), classes: int = 10
) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, for 1x32x32 images."""
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(1, first, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(1),
        nn.Linear(second * 25, hidden[0]),
        nn.ReLU(),
        nn.Linear(hidden[0], hidden[1]),
        nn.ReLU(),
        nn.Linear(hidden[1], classes),
    )
