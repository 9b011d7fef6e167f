"""Kernels as TensorIR, a folder for each kind."""
