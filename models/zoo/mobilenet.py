"""MobileNet v1, v2, v3-small and EfficientNet-B0: depthwise-separable convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .layers import Classifier, ConvNormAct, SqueezeExcite, round_channels


def mobilenet_v1(
    stem: int = 32,
    blocks: Sequence[tuple[int, int]] = (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *((512, 1),) * 5,
        (1024, 2),
        (1024, 1),
    ),
    classes: int = 1000,
) -> nn.Module:
    """MobileNet v1 (Howard et al. 2017); `blocks` holds (outputs, stride)."""
    layers: list[nn.Module] = [ConvNormAct(3, stem, 3, 2, activation=nn.ReLU())]
    channels = stem
    for outputs, stride in blocks:
        layers += [
            ConvNormAct(channels, channels, 3, stride, groups=channels, activation=nn.ReLU()),
            ConvNormAct(channels, outputs, activation=nn.ReLU()),
        ]
        channels = outputs
    return nn.Sequential(*layers, Classifier(channels, classes))


class InvertedResidual(nn.Module):
    """Expand, depthwise, optionally squeeze-and-excite, project; added where shapes match."""

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(ConvNormAct(inputs, expanded, activation=activation()))
        layers.append(
            ConvNormAct(
                expanded, expanded, kernel, stride, groups=expanded, activation=activation()
            )
        )
        if squeeze is not None:
            layers.append(squeeze)
        layers.append(ConvNormAct(expanded, outputs))
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2(
    stem: int = 32,
    stages: Sequence[tuple[int, int, int, int]] = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ),
    head: int = 1280,
    classes: int = 1000,
) -> nn.Module:
    """MobileNet v2 (Sandler et al. 2018); `stages` holds (expansion, outputs, depth, stride)."""
    layers: list[nn.Module] = [ConvNormAct(3, stem, 3, 2, activation=nn.ReLU6())]
    channels = stem
    for expansion, outputs, depth, stage_stride in stages:
        for block in range(depth):
            stride = stage_stride if block == 0 else 1
            layers.append(
                InvertedResidual(channels, channels * expansion, outputs, 3, stride, nn.ReLU6)
            )
            channels = outputs
    layers.append(ConvNormAct(channels, head, activation=nn.ReLU6()))
    return nn.Sequential(*layers, Classifier(head, classes))


def mobilenet_v3_small(
    stem: int = 16,
    blocks: Sequence[tuple[int, int, int, bool, bool, int]] = (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    ),
    head: tuple[int, int] = (576, 1024),
    classes: int = 1000,
) -> nn.Module:
    """MobileNet v3-small (Howard et al. 2019, table 2).

    `blocks` holds (kernel, expanded, outputs, squeeze-and-excite, hard-swish, stride).
    """
    layers: list[nn.Module] = [ConvNormAct(3, stem, 3, 2, activation=nn.Hardswish())]
    channels = stem
    for kernel, expanded, outputs, excite, hard_swish, stride in blocks:
        squeeze = None
        if excite:
            squeeze = SqueezeExcite(
                expanded, round_channels(expanded / 4), nn.ReLU(), nn.Hardsigmoid()
            )
        activation = nn.Hardswish if hard_swish else nn.ReLU
        layers.append(
            InvertedResidual(channels, expanded, outputs, kernel, stride, activation, squeeze)
        )
        channels = outputs
    return nn.Sequential(
        *layers,
        ConvNormAct(channels, head[0], activation=nn.Hardswish()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(head[0], head[1]),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(head[1], classes),
    )


def efficientnet_b0(
    stem: int = 32,
    stages: Sequence[tuple[int, int, int, int, int]] = (
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ),
    head: int = 1280,
    classes: int = 1000,
) -> nn.Module:
    """EfficientNet-B0 (Tan and Le 2019).

    `stages` holds (expansion, kernel, outputs, depth, stride).
    """
    layers: list[nn.Module] = [ConvNormAct(3, stem, 3, 2, activation=nn.SiLU())]
    channels = stem
    for expansion, kernel, outputs, depth, stage_stride in stages:
        for block in range(depth):
            expanded = channels * expansion
            squeeze = SqueezeExcite(expanded, max(1, channels // 4), nn.SiLU())
            stride = stage_stride if block == 0 else 1
            layers.append(
                InvertedResidual(channels, expanded, outputs, kernel, stride, nn.SiLU, squeeze)
            )
            channels = outputs
    layers.append(ConvNormAct(channels, head, activation=nn.SiLU()))
    return nn.Sequential(*layers, nn.Dropout(0.2), Classifier(head, classes))
