"""Kernels that read and write each element once: elementwise, transposition, concatenation."""
