"""Measuring kernels on this machine, and keeping the fastest forms."""
