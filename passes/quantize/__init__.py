"""Quantization to 8-bit integers: calibration, placement of QDQ pairs, weights."""

from .accurate import Quantize
from .static import QuantizeStatic, expected_placement

__all__ = ["Quantize", "QuantizeStatic", "expected_placement"]
