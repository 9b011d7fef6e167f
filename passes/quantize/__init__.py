"""Quantization to 8-bit integers: calibration, placement of QDQ pairs, weights."""

from .static import QuantizeStatic, expected_placement

__all__ = ["QuantizeStatic", "expected_placement"]
