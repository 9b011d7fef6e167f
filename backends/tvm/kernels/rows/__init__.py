"""Kernels over rows of elements: normalizations, reductions and softmax."""
