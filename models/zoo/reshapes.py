"""A network full of reshapes whose targets are literals, as converters and authors write them."""

from __future__ import annotations

import torch
from torch import nn

from .layers import ConvNormAct


class HardCodedReshapes(nn.Module):
    """Convolutions, attention over positions and channel shuffles with every size spelled out.

    Each reshape's target is a list of literals, with channel counts in it, so that
    pruning a channel must rewrite the constant.
    """

    def __init__(self, width: int = 64, heads: int = 4, image: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.width, self.heads, self.side = width, heads, image // 4
        self.stem = ConvNormAct(3, width, 3, 2, activation=nn.ReLU())
        self.grouped = ConvNormAct(width, width, 3, 2, groups=2, activation=nn.ReLU())
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.refine = ConvNormAct(width, 2 * width, 3, activation=nn.ReLU())
        self.reduce = nn.Conv2d(2 * width, width // 4, 1)
        self.hidden = nn.Linear(width // 4 * self.side**2, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Self-attention over `[N, positions, width]`."""
        shape = (-1, self.side**2, self.heads, self.width // self.heads)
        query = self.query(x).reshape(shape).permute(0, 2, 1, 3)
        key = self.key(x).reshape(shape).permute(0, 2, 3, 1)
        value = self.value(x).reshape(shape).permute(0, 2, 1, 3)
        y = ((query @ key) * (self.width // self.heads) ** -0.5).softmax(-1) @ value
        return self.output(y.permute(0, 2, 1, 3).reshape(-1, self.side**2, self.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width, side = self.width, self.side
        x = self.stem(x)
        x = x.reshape(-1, 2, width // 2, 2 * side, 2 * side).transpose(1, 2)
        x = self.grouped(x.reshape(-1, width, 2 * side, 2 * side))
        tokens = x.reshape(-1, width, side * side).permute(0, 2, 1)
        tokens = tokens + self.attend(tokens)
        x = self.refine(tokens.permute(0, 2, 1).reshape(-1, width, side, side))
        x = torch.relu(self.reduce(x)).reshape(-1, width // 4 * side * side)
        return self.head(torch.relu(self.hidden(x)))
