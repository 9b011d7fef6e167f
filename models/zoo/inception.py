"""Inception v1 (GoogLeNet) and Inception v3, without auxiliary classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .layers import Classifier, ConvNormAct


class Branches(nn.Module):
    """Modules side by side, their outputs concatenated over the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def conv(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 1,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
) -> ConvNormAct:
    return ConvNormAct(inputs, outputs, kernel, stride, padding=padding, activation=nn.ReLU())


def inception_v1_block(
    inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int
) -> Branches:
    return Branches(
        conv(inputs, one),
        nn.Sequential(conv(inputs, three[0]), conv(three[0], three[1], 3)),
        nn.Sequential(conv(inputs, five[0]), conv(five[0], five[1], 5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, pool)),
    )


INCEPTION_V1 = (
    ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
)
"""Widths of the blocks per stage (Szegedy et al. 2015, table 1)."""


def inception_v1(
    stem: tuple[int, int] = (64, 192),
    blocks: Sequence[Sequence[tuple[int, tuple[int, int], tuple[int, int], int]]] = INCEPTION_V1,
    classes: int = 1000,
) -> nn.Module:
    """GoogLeNet (Szegedy et al. 2015) with BatchNormalization in place of LRN."""
    layers: list[nn.Module] = [
        conv(3, stem[0], 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        conv(stem[0], stem[0]),
        conv(stem[0], stem[1], 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ]
    channels = stem[1]
    for stage, widths in enumerate(blocks):
        if stage:
            layers.append(nn.MaxPool2d(3 if stage == 1 else 2, 2, ceil_mode=True))
        for one, three, five, pool in widths:
            layers.append(inception_v1_block(channels, one, three, five, pool))
            channels = one + three[1] + five[1] + pool
    return nn.Sequential(*layers, nn.Dropout(0.2), Classifier(channels, classes))


def inception_v3(scale: float = 1.0, classes: int = 1000, repeat: bool = True) -> nn.Module:
    """Inception v3 (Szegedy et al. 2016).

    `scale` multiplies all widths; `repeat=False` keeps one block of each kind.
    """

    def w(channels: int) -> int:
        return max(4, round(channels * scale))

    layers: list[nn.Module] = [
        conv(3, w(32), 3, 2, 0),
        conv(w(32), w(32), 3, padding=0),
        conv(w(32), w(64), 3),
        nn.MaxPool2d(3, 2),
        conv(w(64), w(80)),
        conv(w(80), w(192), 3, padding=0),
        nn.MaxPool2d(3, 2),
    ]
    channels = w(192)
    for pool in (32, 64, 64) if repeat else (32,):
        layers.append(_block_a(channels, pool, w))
        channels = 2 * w(64) + w(96) + w(pool)
    layers.append(_block_b(channels, w))
    channels += w(384) + w(96)
    for middle in (128, 160, 160, 192) if repeat else (128,):
        layers.append(_block_c(channels, middle, w))
        channels = 4 * w(192)
    layers.append(_block_d(channels, w))
    channels += w(320) + w(192)
    for _ in range(2 if repeat else 1):
        layers.append(_block_e(channels, w))
        channels = w(320) + 4 * w(384) + w(192)
    return nn.Sequential(*layers, nn.Dropout(0.5), Classifier(channels, classes))


Width = Callable[[int], int]


def _block_a(inputs: int, pool: int, w: Width) -> Branches:
    return Branches(
        conv(inputs, w(64)),
        nn.Sequential(conv(inputs, w(48)), conv(w(48), w(64), 5)),
        nn.Sequential(conv(inputs, w(64)), conv(w(64), w(96), 3), conv(w(96), w(96), 3)),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, w(pool))),
    )


def _block_b(inputs: int, w: Width) -> Branches:
    return Branches(
        conv(inputs, w(384), 3, 2, 0),
        nn.Sequential(conv(inputs, w(64)), conv(w(64), w(96), 3), conv(w(96), w(96), 3, 2, 0)),
        nn.MaxPool2d(3, 2),
    )


def _block_c(inputs: int, middle: int, w: Width) -> Branches:
    row, column, m = (1, 7), (7, 1), w(middle)
    return Branches(
        conv(inputs, w(192)),
        nn.Sequential(conv(inputs, m), conv(m, m, row), conv(m, w(192), column)),
        nn.Sequential(
            conv(inputs, m),
            conv(m, m, column),
            conv(m, m, row),
            conv(m, m, column),
            conv(m, w(192), row),
        ),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, w(192))),
    )


def _block_d(inputs: int, w: Width) -> Branches:
    return Branches(
        nn.Sequential(conv(inputs, w(192)), conv(w(192), w(320), 3, 2, 0)),
        nn.Sequential(
            conv(inputs, w(192)),
            conv(w(192), w(192), (1, 7)),
            conv(w(192), w(192), (7, 1)),
            conv(w(192), w(192), 3, 2, 0),
        ),
        nn.MaxPool2d(3, 2),
    )


def _block_e(inputs: int, w: Width) -> Branches:
    def split() -> Branches:
        return Branches(conv(w(384), w(384), (1, 3)), conv(w(384), w(384), (3, 1)))

    return Branches(
        conv(inputs, w(320)),
        nn.Sequential(conv(inputs, w(384)), split()),
        nn.Sequential(conv(inputs, w(448)), conv(w(448), w(384), 3), split()),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, w(192))),
    )
