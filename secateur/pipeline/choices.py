"""Names that options and recipes take for ways to quantize, as in `passes/quantize/`, which takes
long to import, and to compute."""

from __future__ import annotations

from typing import Literal

SchemeName = Literal[
    "int8",
    "int8-7bit",
    "int8-per-tensor",
    "int8-signed",
    "int8-symmetric",
    "int16",
    "dynamic",
    "dynamic-per-token",
    "float16",
]
ProfileName = Literal[
    "x86-vnni", "x86-avx2", "arm-dotprod", "arm-neon", "onnxruntime", "openvino", "tensorrt"
]
Accuracy = Literal["fast", "good", "best"]
Activation = Literal["uint8", "int8", "uint16", "int16"]
PrecisionName = Literal["bf16", "fp16"]
