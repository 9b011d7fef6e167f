"""The structures of `interface.h`, for calls of loaded libraries by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from ..tvm.graphs import Array


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("dimensions", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_size_t),
    ]


class Pool(ctypes.Structure):
    _fields_ = [("pool", ctypes.c_void_p), ("threads", ctypes.c_uint32), ("run", ctypes.c_void_p)]


class Call(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("inputs", ctypes.POINTER(Tensor)),
        ("outputs", ctypes.POINTER(Tensor)),
        ("input_count", ctypes.c_size_t),
        ("output_count", ctypes.c_size_t),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("weights", ctypes.c_void_p),
        ("weights_bytes", ctypes.c_size_t),
        ("pool", ctypes.POINTER(Pool)),
        ("capacity", ctypes.c_int64),
    ]


def sizes_of(*sizes: int) -> Any:
    return (ctypes.c_int64 * len(sizes))(*sizes)


def tensors_of(arrays: Sequence[Array]) -> Any:
    """Inputs or outputs of a call."""
    each = [Tensor(a.ctypes.data, a.nbytes, sizes_of(*a.shape), a.ndim) for a in arrays]
    return (Tensor * max(1, len(each)))(*each)
