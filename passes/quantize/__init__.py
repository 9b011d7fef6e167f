"""Quantization to 8-bit integers: calibration, placement of QDQ pairs, weights."""

from .static import QuantizeStatic

__all__ = ["QuantizeStatic"]
