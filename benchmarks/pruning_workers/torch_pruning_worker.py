"""Prune one architecture of the zoo with Torch-Pruning; runs in its own environment.

Usage: torch_pruning_worker.py NAME VARIANT SCALE OUT RATIO. Prints {"seconds": ...} on
the last line. The module is pruned as it is, without patches, and then exported. Its
output layers are told apart for it, which its users do by hand.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch_pruning
from torch import nn

from secateur.models.zoo import ZOO
from secateur.models.zoo.export import build, example, to_onnx
from secateur.models.zoo.transformers import Decoder
from secateur.models.zoo.yolo import Yolo

LEAVES = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def output_layers(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[nn.Module]:
    """What makes the graph's outputs: mostly the layer that runs last."""
    if isinstance(module, Yolo):
        detect = module.detect
        return [branch[-1] for branch in (*detect.boxes, *detect.scores)] + [detect.dfl]
    if isinstance(module, Decoder):
        return [module.embed]  # tied to the output projection
    order: list[nn.Module] = []
    hooks = [
        leaf.register_forward_hook(lambda m, i, o: order.append(m))
        for leaf in module.modules()
        if isinstance(leaf, LEAVES)
    ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return order[-1:]


def main(name: str, variant: str, scale: str, target: str, ratio: str) -> None:
    entry = ZOO[name]
    module = build(entry, scale)
    inputs = example(entry.inputs(scale))
    start = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        module,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=float(ratio),
        ignored_layers=output_layers(module, inputs),
    )
    pruner.step()
    seconds = time.perf_counter() - start
    proto = to_onnx(module, entry, variant, scale)
    Path(target).write_bytes(proto.SerializeToString(deterministic=True))
    print(json.dumps({"seconds": seconds}))


main(*sys.argv[1:])
