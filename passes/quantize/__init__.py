"""Quantization: integers by calibration or at run time, and float16."""

from .accurate import Quantize
from .dynamic import QuantizeDynamic
from .half import StoreFloat16
from .restore import RestoreFloat
from .schemes import SCHEMES
from .static import QuantizeStatic

__all__ = [
    "SCHEMES",
    "Quantize",
    "QuantizeDynamic",
    "QuantizeStatic",
    "RestoreFloat",
    "StoreFloat16",
]
