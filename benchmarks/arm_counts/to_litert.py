"""Writes a network of the zoo as LiteRT's file, in float32 and with static int8.

    python to_litert.py NAME FOLDER

For `arm_peers.py`, by a Python that has litert-torch and ai-edge-quantizer.
"""

import sys
from pathlib import Path

import litert_torch
import torch
from ai_edge_quantizer import quantizer, recipe

from secateur.models.zoo.registry import ZOO


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    entry = ZOO[name]
    torch.manual_seed(0)
    samples = [torch.randn(each.shape) for each in entry.inputs("full")]
    whole = folder / f"{name}.tflite"
    litert_torch.convert(entry.build("full").eval(), tuple(samples)).export(str(whole))
    quantizing = quantizer.Quantizer(str(whole), recipe.static_wi8_ai8())
    feeds = {f"args_{index}": sample.numpy() for index, sample in enumerate(samples)}
    statistics = quantizing.calibrate({"serving_default": [feeds]})
    file = folder / f"{name}.int8.tflite"
    quantizing.quantize(statistics).export_model(str(file), overwrite=True)


if __name__ == "__main__":
    main()
