"""Kernels on the rows and columns of images: pooling and resizing."""
