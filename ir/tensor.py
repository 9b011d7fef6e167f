"""Constant tensors that stay where they are until somebody reads their elements."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import SparseTensorProto, TensorProto, external_data_helper, helper, numpy_helper

from .errors import ModelError

Array = npt.NDArray[Any]

_PACKED_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}


def element_bits(dtype: int) -> int:
    """Bits that one element of an ONNX data type occupies in storage (strings: 0)."""
    if dtype in _PACKED_BITS:
        return _PACKED_BITS[dtype]
    if dtype in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 0
    return 8 * int(np.dtype(helper.tensor_dtype_to_np_dtype(dtype)).itemsize)


def storage_bytes(dtype: int, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this type and shape occupies in storage."""
    return -(-math.prod(shape) * element_bits(dtype) // 8)


class Tensor:
    """An immutable constant: a `TensorProto` as read, a mapped file region, or an array.

    `dtype` is a `TensorProto.DataType`, `shape` a tuple of ints. `numpy()` gives
    the elements; for external data they are memory-mapped, not read.
    """

    __slots__ = ("_array", "_path", "_proto", "_sparse", "dtype", "shape")

    def __init__(
        self,
        dtype: int,
        shape: tuple[int, ...],
        *,
        array: Array | None = None,
        proto: TensorProto | None = None,
        path: Path | None = None,
        sparse: SparseTensorProto | None = None,
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self._array = array
        self._proto = proto
        self._path = path
        self._sparse = sparse

    @classmethod
    def from_array(cls, array: Any, dtype: int | None = None) -> Tensor:
        """A constant of a numpy array; `dtype` defaults to the array's own."""
        array = np.asarray(array)
        if dtype is None:
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        return cls(dtype, tuple(array.shape), array=array)

    @classmethod
    def from_proto(cls, proto: TensorProto, base_dir: Path | None = None) -> Tensor:
        """Wrap a `TensorProto` without copying; external data is checked, not read.

        Raises ModelError where the external file is missing, too short, or lies
        outside `base_dir`, and where the stored bytes don't fit the shape.
        """
        shape = tuple(proto.dims)
        if any(d < 0 for d in shape):
            raise ModelError(f"initializer '{proto.name}': negative dimension in shape {shape}")
        path = None
        if proto.data_location == TensorProto.EXTERNAL:
            path = _checked_external_path(proto, shape, base_dir)
        else:
            _check_embedded_size(proto, shape)
        return cls(proto.data_type, shape, proto=proto, path=path)

    @classmethod
    def from_sparse(cls, proto: SparseTensorProto) -> Tensor:
        return cls(proto.values.data_type, tuple(proto.dims), sparse=proto)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Storage bytes (strings count as 0)."""
        return storage_bytes(self.dtype, self.shape)

    @property
    def is_sparse(self) -> bool:
        return self._sparse is not None

    @property
    def is_external(self) -> bool:
        """Whether the elements lie in a file beside the model."""
        return self._path is not None

    def numpy(self) -> Array:
        """The elements, read-only by convention."""
        if self._array is not None:
            return self._array
        if self._sparse is not None:
            return _densify(self._sparse)
        assert self._proto is not None
        if self._path is not None:
            return self._map_external()
        return numpy_helper.to_array(self._proto)

    def to_proto(self, name: str) -> TensorProto:
        """A `TensorProto` called `name`; unchanged tensors come back field by field as read."""
        if self._proto is not None:
            if self._proto.name == name:
                return self._proto
            proto = TensorProto()
            proto.CopyFrom(self._proto)
            proto.name = name
            return proto
        array = self.numpy()
        if self.dtype == TensorProto.STRING:
            strings = [x if isinstance(x, bytes) else str(x).encode() for x in array.ravel()]
            return TensorProto(
                name=name, data_type=self.dtype, dims=self.shape, string_data=strings
            )
        proto = numpy_helper.from_array(np.asarray(array, order="C"), name)
        if proto.data_type != self.dtype:
            raise ModelError(
                f"initializer '{name}': array of {array.dtype} does not store {self.dtype}"
            )
        return proto

    def to_sparse_proto(self, name: str) -> SparseTensorProto:
        assert self._sparse is not None
        proto = SparseTensorProto()
        proto.CopyFrom(self._sparse)
        proto.values.name = name
        return proto

    def _map_external(self) -> Array:
        assert self._proto is not None
        assert self._path is not None
        info = external_data_helper.ExternalDataInfo(self._proto)
        if self.dtype in _PACKED_BITS or self.size == 0:
            raw = TensorProto(data_type=self.dtype, dims=self.shape)
            with open(self._path, "rb") as file:
                file.seek(info.offset or 0)
                raw.raw_data = file.read(self.nbytes)
            return numpy_helper.to_array(raw)
        return np.memmap(
            self._path,
            dtype=helper.tensor_dtype_to_np_dtype(self.dtype),
            mode="r",
            offset=info.offset or 0,
            shape=self.shape,
        )

    def __repr__(self) -> str:
        return f"Tensor({TensorProto.DataType.Name(self.dtype)}, {list(self.shape)})"


def _checked_external_path(
    proto: TensorProto, shape: tuple[int, ...], base_dir: Path | None
) -> Path:
    where = f"initializer '{proto.name}'"
    try:
        info = external_data_helper.ExternalDataInfo(proto)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{where}: malformed external data entry ({error})") from None
    if base_dir is None:
        raise ModelError(f"{where}: external data, but the model was not read from a file")
    root = base_dir.resolve()
    path = (root / info.location).resolve()
    if not info.location or os.path.isabs(info.location) or not path.is_relative_to(root):
        raise ModelError(f"{where}: external data '{info.location}' leaves the model's folder")
    if not path.is_file():
        raise ModelError(f"{where}: external data file '{info.location}' is missing")
    need = storage_bytes(proto.data_type, shape)
    offset = info.offset or 0
    if info.length is not None and info.length != need:
        raise ModelError(f"{where}: external data of {info.length} bytes, its shape needs {need}")
    if offset < 0 or offset + need > path.stat().st_size:
        raise ModelError(f"{where}: external data file '{info.location}' is too short")
    return path


def _check_embedded_size(proto: TensorProto, shape: tuple[int, ...]) -> None:
    try:
        bits = element_bits(proto.data_type)
    except KeyError:
        raise ModelError(
            f"initializer '{proto.name}': unknown data type {proto.data_type}"
        ) from None
    if proto.HasField("raw_data") and bits:
        stored, need = len(proto.raw_data), storage_bytes(proto.data_type, shape)
        if stored != need:
            raise ModelError(
                f"initializer '{proto.name}': {stored} bytes stored, "
                f"its shape {list(shape)} needs {need}"
            )


def _densify(sparse: SparseTensorProto) -> Array:
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
