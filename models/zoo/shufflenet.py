"""ShuffleNet v1 and v2: channel shuffles, grouped 1x1 convolutions and channel splits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .layers import Classifier, ConvNormAct


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Interleave the channels of `groups` groups: `[N, G*C, H, W]` as `[N, C*G, H, W]`."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1 (Zhang et al. 2018, figure 2).

    At stride 2 the average-pooled input is concatenated instead of added.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, groups: int, first_groups: int
    ) -> None:
        super().__init__()
        middle = outputs // 4
        self.groups = groups
        self.stride = stride
        self.reduce = ConvNormAct(inputs, middle, groups=first_groups, activation=nn.ReLU())
        self.depthwise = ConvNormAct(middle, middle, 3, stride, groups=middle)
        self.expand = ConvNormAct(
            middle, outputs - inputs if stride == 2 else outputs, groups=groups
        )
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = channel_shuffle(self.reduce(x), self.groups)
        y = self.expand(self.depthwise(y))
        if self.stride == 2:
            return self.relu(torch.cat([self.pool(x), y], 1))
        return self.relu(x + y)


def shufflenet_v1(
    groups: int = 3,
    stem: int = 24,
    widths: Sequence[int] = (240, 480, 960),
    depths: Sequence[int] = (4, 8, 4),
    classes: int = 1000,
) -> nn.Module:
    """ShuffleNet 1x with 3 groups (Zhang et al. 2018)."""
    layers: list[nn.Module] = [
        ConvNormAct(3, stem, 3, 2, activation=nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = stem
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for block in range(depth):
            first_groups = 1 if stage == 0 and block == 0 else groups
            stride = 2 if block == 0 else 1
            layers.append(ShuffleUnitV1(channels, width, stride, groups, first_groups))
            channels = width
    return nn.Sequential(*layers, Classifier(channels, classes))


class ShuffleUnitV2(nn.Module):
    """Half of the channels pass, half are convolved; then shuffle (Ma et al. 2018, figure 3)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        if stride == 2:
            self.shortcut = nn.Sequential(
                ConvNormAct(inputs, inputs, 3, 2, groups=inputs),
                ConvNormAct(inputs, half, activation=nn.ReLU()),
            )
        self.body = nn.Sequential(
            ConvNormAct(inputs if stride == 2 else half, half, activation=nn.ReLU()),
            ConvNormAct(half, half, 3, stride, groups=half),
            ConvNormAct(half, half, activation=nn.ReLU()),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 2:
            y = torch.cat([self.shortcut(x), self.body(x)], 1)
        else:
            left, right = x.chunk(2, 1)
            y = torch.cat([left, self.body(right)], 1)
        return channel_shuffle(y, 2)


def shufflenet_v2(
    stem: int = 24,
    widths: Sequence[int] = (116, 232, 464),
    depths: Sequence[int] = (4, 8, 4),
    head: int = 1024,
    classes: int = 1000,
) -> nn.Module:
    """ShuffleNet v2 1x (Ma et al. 2018)."""
    layers: list[nn.Module] = [
        ConvNormAct(3, stem, 3, 2, activation=nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = stem
    for width, depth in zip(widths, depths, strict=True):
        for block in range(depth):
            layers.append(ShuffleUnitV2(channels, width, 2 if block == 0 else 1))
            channels = width
    layers.append(ConvNormAct(channels, head, activation=nn.ReLU()))
    return nn.Sequential(*layers, Classifier(head, classes))
