"""Torch-Pruning on the nets of `secateur.models.zoo.trained`, for pruning_accuracy.py.

Its criteria L2, FPGM, LAMP and random, each with the same share of every layer and with one
ranking of all, in one step; the share is bisected until the MACs of convolutions and matrix
products fit. Written for Torch-Pruning 1.6.1 and torch 2.13, on one thread: where the
processors have other work, several of these small nets' threads wait for each other most of the
time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import nn

from secateur.models.zoo.trained import TRAININGS, Normalized
from secateur.models.zoo.transformers import FusedAttention

Array = Any
BATCH = 100
BISECTIONS = 9

CRITERIA: dict[str, Callable[[], Any]] = {
    "L2": lambda: torch_pruning.importance.MagnitudeImportance(p=2),
    "FPGM": torch_pruning.importance.FPGMImportance,
    "LAMP": torch_pruning.importance.LAMPImportance,
    "random": torch_pruning.importance.RandomImportance,
}


class SizedByWeights(FusedAttention):
    """The same attention, whose heads are as large as its weights make them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(-1)
        return self.project((weights @ value).transpose(1, 2).flatten(2))


class TorchPruning:
    """A trained net, and the samples on which its pruned versions are measured."""

    def __init__(self, net: str, weights: Path, images: Array, labels: Array) -> None:
        torch.set_num_threads(1)
        self.net: nn.Module = Normalized(TRAININGS[net].build())
        self.net.load_state_dict(torch.load(weights))
        self.net.eval()
        for module in self.net.modules():
            if isinstance(module, FusedAttention):
                module.__class__ = SizedByWeights
        self.images, self.labels = torch.from_numpy(images), labels
        self.example = self.images[:1]
        self.whole = macs(self.net, self.example)

    def cells(self, share: float, images: Array) -> list[str]:
        """Top-1 of the best way, and of the best with BatchNormalization recalibrated."""
        plain, tuned = {}, {}
        for name in CRITERIA:
            for ranked in (False, True):
                way = f"{name} {'global' if ranked else 'uniform'}"
                pruned = self.pruned(name, ranked, share)
                plain[way] = self.top1(pruned)
                if any(isinstance(m, nn.BatchNorm2d) for m in pruned.modules()):
                    tuned[way] = self.top1(recalibrated(pruned, images))
        return [best(plain), best(tuned)]

    def pruned(self, criterion: str, ranked: bool, share: float) -> nn.Module:
        low, high = 0.0, 1.0
        found = self.net
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            trial = self._cut(criterion, ranked, middle)
            if macs(trial, self.example) <= share * self.whole:
                high, found = middle, trial
            else:
                low = middle
        return found

    def _cut(self, criterion: str, ranked: bool, ratio: float) -> nn.Module:
        torch.manual_seed(0)
        net = copy.deepcopy(self.net)
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        attention = [m for m in net.modules() if isinstance(m, FusedAttention)]
        pruner = torch_pruning.pruner.BasePruner(
            net,
            self.example,
            importance=CRITERIA[criterion](),
            global_pruning=ranked,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=[last],
            num_heads={module.qkv: module.heads for module in attention},
            prune_head_dims=True,
        )
        pruner.step()
        return net

    def top1(self, net: nn.Module) -> float:
        net.eval()
        with torch.no_grad():
            found = [net(part).argmax(1).numpy() for part in self.images.split(BATCH)]
        return float(np.mean(np.concatenate(found) == self.labels))


def recalibrated(net: nn.Module, images: Array) -> nn.Module:
    """A copy whose BatchNormalization has the statistics of some images."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    net.train()
    with torch.no_grad():
        for part in torch.from_numpy(images).split(BATCH):
            net(part)
    return net


def macs(net: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and fully connected layers."""
    total = 0

    def add(module: Any, inputs: Any, result: torch.Tensor) -> None:
        nonlocal total
        total += result.numel() * module.weight[0].numel()

    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        net(example)
    for hook in hooks:
        hook.remove()
    return total


def best(found: dict[str, float]) -> str:
    if not found:
        return "-"
    way = max(found, key=lambda name: found[name])
    return f"{100 * found[way]:.2f} ({way})"
