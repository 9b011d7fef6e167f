"""Convolution of blocked images: direct, depthwise and Winograd."""
