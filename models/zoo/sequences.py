"""Sequence and audio classifiers: recurrent networks, a TCN and a keyword spotter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from .layers import Classifier, ConvNormAct


class TokenLSTM(nn.Module):
    """Token ids `[N, S]` to classes by stacked LSTMs.

    One direction reads off the last step; both directions take the maximum over time.
    """

    def __init__(
        self,
        vocabulary: int = 10000,
        embedding: int = 128,
        hidden: int = 256,
        depth: int = 2,
        bidirectional: bool = False,
        classes: int = 5,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, depth, batch_first=True, bidirectional=bidirectional)
        self.bidirectional = bidirectional
        self.head = nn.Linear(2 * hidden if bidirectional else hidden, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.embed(tokens))
        return self.head(y.max(1).values if self.bidirectional else y[:, -1])


def bidirectional_lstm(**options: int) -> nn.Module:
    return TokenLSTM(bidirectional=True, **options)


class FrameGRU(nn.Module):
    """Feature frames `[N, S, F]` to classes by stacked GRUs, reading the last hidden state."""

    def __init__(
        self, features: int = 40, hidden: int = 256, depth: int = 2, classes: int = 12
    ) -> None:
        super().__init__()
        self.project = nn.Linear(features, hidden)
        self.gru = nn.GRU(hidden, hidden, depth, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        _, state = self.gru(torch.relu(self.project(frames)))
        return self.head(state[-1])


class TemporalBlock(nn.Module):
    """Two dilated causal convolutions and a residual (Bai et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.excess = (kernel - 1) * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, kernel, padding=self.excess, dilation=dilation)
        self.norm1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, kernel, padding=self.excess, dilation=dilation)
        self.norm2 = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x))[:, :, : -self.excess])
        y = torch.relu(self.norm2(self.conv2(y))[:, :, : -self.excess])
        return torch.relu(y + self.shortcut(x))


class TCN(nn.Module):
    """Temporal convolutional network (Bai et al. 2018): `[N, F, T]` to classes."""

    def __init__(
        self,
        features: int = 40,
        widths: Sequence[int] = (64, 64, 128, 128),
        kernel: int = 3,
        classes: int = 12,
    ) -> None:
        super().__init__()
        sizes = (features, *widths)
        self.blocks = nn.Sequential(
            *(TemporalBlock(i, o, kernel, 2**level) for level, (i, o) in enumerate(pairwise(sizes)))
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x)[:, :, -1])


def ds_cnn(width: int = 64, depth: int = 4, classes: int = 12) -> nn.Module:
    """DS-CNN for keyword spotting (Zhang et al. 2017, as in MLPerf Tiny): MFCC `[N, 1, 49, 10]`."""
    layers: list[nn.Module] = [
        ConvNormAct(1, width, (10, 4), 2, padding=(5, 1), activation=nn.ReLU())
    ]
    for _ in range(depth):
        layers += [
            ConvNormAct(width, width, 3, groups=width, activation=nn.ReLU()),
            ConvNormAct(width, width, activation=nn.ReLU()),
        ]
    return nn.Sequential(*layers, Classifier(width, classes))
