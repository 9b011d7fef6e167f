"""Residual networks: ResNet-50, ResNeXt-50 32x4d, RegNetY-400MF and ResNet-8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .layers import Classifier, ConvNormAct, SqueezeExcite


class Residual(nn.Module):
    """`relu(body(x) + shortcut(x))`; the shortcut is a projection where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNormAct(inputs, outputs, 1, stride, padding=0)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def basic_block(inputs: int, outputs: int, stride: int) -> Residual:
    """Two 3x3 convolutions (He et al. 2016)."""
    body = nn.Sequential(
        ConvNormAct(inputs, outputs, 3, stride, activation=nn.ReLU()),
        ConvNormAct(outputs, outputs, 3),
    )
    return Residual(inputs, outputs, stride, body)


def bottleneck(
    inputs: int, middle: int, outputs: int, stride: int, groups: int = 1, squeezed: int = 0
) -> Residual:
    """1x1, grouped 3x3 and 1x1 convolutions; `squeezed` > 0 adds squeeze-and-excitation."""
    body = nn.Sequential(
        ConvNormAct(inputs, middle, activation=nn.ReLU()),
        ConvNormAct(middle, middle, 3, stride, groups=groups, activation=nn.ReLU()),
        *([SqueezeExcite(middle, squeezed)] if squeezed else []),
        ConvNormAct(middle, outputs),
    )
    return Residual(inputs, outputs, stride, body)


def resnet50(
    stem: int = 64,
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (3, 4, 6, 3),
    expansion: int = 4,
    groups: int = 1,
    group_width: int = 0,
    classes: int = 1000,
) -> nn.Module:
    """ResNet-50 (He et al. 2016); stride on the 3x3 convolution.

    With `groups`, ResNeXt (Xie et al. 2017): the first stage's groups have
    `group_width` channels each, and each further stage doubles that.
    """
    layers: list[nn.Module] = [
        ConvNormAct(3, stem, 7, 2, activation=nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = stem
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        middle = groups * group_width * 2**stage if group_width else width
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(bottleneck(channels, middle, width * expansion, stride, groups))
            channels = width * expansion
    return nn.Sequential(*layers, Classifier(channels, classes))


def resnext50(
    stem: int = 64,
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (3, 4, 6, 3),
    groups: int = 32,
    group_width: int = 4,
    classes: int = 1000,
) -> nn.Module:
    """ResNeXt-50 32x4d (Xie et al. 2017)."""
    return resnet50(stem, widths, depths, groups=groups, group_width=group_width, classes=classes)


def regnet_y_400mf(
    stem: int = 32,
    widths: Sequence[int] = (48, 104, 208, 440),
    depths: Sequence[int] = (1, 3, 6, 6),
    group_width: int = 8,
    classes: int = 1000,
) -> nn.Module:
    """RegNetY-400MF (Radosavovic et al. 2020): grouped bottlenecks with squeeze-and-excitation."""
    layers: list[nn.Module] = [ConvNormAct(3, stem, 3, 2, activation=nn.ReLU())]
    channels = stem
    for width, depth in zip(widths, depths, strict=True):
        for block in range(depth):
            stride = 2 if block == 0 else 1
            squeezed = round(channels / 4)
            groups = width // group_width
            layers.append(bottleneck(channels, width, width, stride, groups, squeezed))
            channels = width
    return nn.Sequential(*layers, Classifier(channels, classes))


def resnet8(widths: Sequence[int] = (16, 32, 64), classes: int = 10) -> nn.Module:
    """ResNet-8 for CIFAR-10, as in MLPerf Tiny (Banbury et al. 2021)."""
    layers: list[nn.Module] = [ConvNormAct(3, widths[0], 3, activation=nn.ReLU())]
    channels = widths[0]
    for stage, width in enumerate(widths):
        layers.append(basic_block(channels, width, 2 if stage else 1))
        channels = width
    return nn.Sequential(*layers, Classifier(channels, classes))
