"""Digests of kernels: equal TensorIR, in whatever model, has one object file and one verdict."""

from __future__ import annotations

import hashlib

import tvm

from .types import PrimFunc

CONVENTION = "4"
"""How kernels are called: part of their names, so that a program whose libraries were made at
different times doesn't call one for another."""


def kernel_name(kind: str, content: str, machine: str) -> str:
    """The name of a kernel, by the digest of its TensorIR and the target's description."""
    text = "\n".join((CONVENTION, content, machine))
    return f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def digest(function: PrimFunc) -> str:
    """A hexadecimal digest of a function's TensorIR."""
    return hashlib.sha256(tvm.ir.save_json(function).encode()).hexdigest()
