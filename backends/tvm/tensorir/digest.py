"""Digests of kernels: equal TensorIR, in whatever model, has one object file and one verdict."""

from __future__ import annotations

import hashlib

import tvm

from .types import PrimFunc


def digest(function: PrimFunc) -> str:
    """A hexadecimal digest of a function's TensorIR."""
    return hashlib.sha256(tvm.ir.save_json(function).encode()).hexdigest()
