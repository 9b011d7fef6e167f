"""Quantize one ONNX file with AMD Quark; runs in Quark's own environment.

Usage: quark_worker.py MODEL OUT SAMPLES INPUT METHOD. `default` is its U8S8_AAWS with weights per
channel, `AdaRound` and `AdaQuant` what it learns with the settings that go with that.
"""

from __future__ import annotations

import sys

from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config.config import Config
from quark.onnx.quantization.config.custom_config import get_default_config
from samples import Samples


def main(source: str, target: str, samples: str, name: str, method: str) -> None:
    ending = "" if method == "default" else f"_{method.upper()}"
    config = get_default_config(f"U8S8_AAWS{ending}")
    config.per_channel = True
    reader = Samples(samples, name)
    ModelQuantizer(Config(global_quant_config=config)).quantize_model(source, target, reader)


main(*sys.argv[1:])
