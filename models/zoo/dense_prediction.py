"""Networks with an image as output: U-Net, super-resolution and an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from .layers import ConvNormAct


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNormAct(inputs, outputs, 3, activation=nn.ReLU()),
        ConvNormAct(outputs, outputs, 3, activation=nn.ReLU()),
    )


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015), padded, upsampling by transposed convolution."""

    def __init__(
        self, widths: Sequence[int] = (64, 128, 256, 512, 1024), channels: int = 3, classes: int = 2
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(double_conv(i, o) for i, o in pairwise((channels, *widths)))
        deep = list(reversed(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairwise(deep))
        self.merge = nn.ModuleList(double_conv(2 * o, o) for o in deep[1:])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


class ResidualConvs(nn.Module):
    """`x + conv(relu(conv(x)))`, without normalisation (Lim et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.relu(self.first(x)))


class SuperResolution(nn.Module):
    """EDSR-like (Lim et al. 2017): residual trunk, then PixelShuffle by 2 `doublings` times."""

    def __init__(self, width: int = 64, depth: int = 8, doublings: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(
            *(ResidualConvs(width) for _ in range(depth)), nn.Conv2d(width, width, 3, padding=1)
        )
        upsample: list[nn.Module] = []
        for _ in range(doublings):
            upsample += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.upsample = nn.Sequential(*upsample)
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        return self.tail(self.upsample(x + self.body(x)))


def autoencoder(
    widths: Sequence[int] = (32, 64, 128, 256), channels: int = 3, code: int = 64
) -> nn.Module:
    """Convolutional autoencoder: strided convolutions down, transposed convolutions up."""
    sizes = (channels, *widths)
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [
            nn.Conv2d(i, o, 3, 2, 1),
            nn.BatchNorm2d(o),
            nn.LeakyReLU(0.1),
        ]
    layers += [nn.Conv2d(widths[-1], code, 1), nn.ReLU(), nn.Conv2d(code, widths[-1], 1)]
    back = sizes[::-1]
    for i, o in pairwise(back):
        layers.append(nn.ConvTranspose2d(i, o, 3, 2, 1, output_padding=1))
        layers += [nn.BatchNorm2d(o), nn.ReLU()] if o != channels else [nn.Sigmoid()]
    return nn.Sequential(*layers)
