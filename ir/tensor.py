"""Constant tensors that stay where they are until somebody reads their elements."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from onnx import SparseTensorProto, TensorProto, external_data_helper, helper, numpy_helper

from .element_count import element_count
from .errors import ModelError
from .unknown_fields import copy_unknown_fields, varint

Array = npt.NDArray[Any]

_PACKED_BITS: dict[int, int] = {
    int(number): bits
    for name, bits in {
        "INT4": 4,
        "UINT4": 4,
        "FLOAT4E2M1": 4,
        "INT2": 2,
        "UINT2": 2,
        "FLOAT6E2M3": 6,
        "FLOAT6E3M2": 6,
    }.items()
    for known, number in TensorProto.DataType.items()
    if known == name  # older versions of onnx lack some
}
"""Bits of one element, for the types whose elements share bytes."""

_BYTES_IN_NUMBERS = frozenset(dtype for dtype, bits in _PACKED_BITS.items() if 8 % bits == 0)
"""Of these types, those whose typed field holds a packed byte in each number."""

_PLAIN_TYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.INT64,
        TensorProto.INT32,
        TensorProto.INT8,
        TensorProto.UINT8,
    }
)
"""Types whose arrays hold the very bytes that are stored."""

FLOAT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)
"""Types in which models compute: those that arithmetic operators take."""

_DATA_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}


@cache
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


@dataclasses.dataclass(frozen=True)
class FileRegion:
    """Where an external tensor's bytes lie; `stamp` tells whether the file was replaced."""

    path: Path
    offset: int
    length: int
    stamp: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path, offset: int, length: int) -> FileRegion:
        """A region of the file as it is now."""
        return cls(path, offset, length, _stamp(path))

    def read(self, start: int, size: int) -> bytes:
        """Up to `size` bytes of the region from its byte `start` on.

        Mapped pages count as resident until they are unmapped, bytes read this way don't.
        """
        self.check()
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset + start)
            return file.read(max(0, min(size, self.length - start)))

    def check(self) -> None:
        """Raise ModelError where the file is no longer the one that the model was read with."""
        if _stamp(self.path) != self.stamp:
            raise ModelError(f"{self.path}: changed since the model was read")


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)


class Tensor:
    """An immutable constant: a `TensorProto` as read, a mapped file region, or an array.

    `dtype` is a `TensorProto.DataType`, `shape` a tuple of ints. `numpy()` gives
    the elements; for external data they are memory-mapped, not read.
    """

    __slots__ = ("_array", "_proto", "_region", "_sparse", "dtype", "shape")

    def __init__(
        self,
        dtype: int,
        shape: tuple[int, ...],
        *,
        array: Array | None = None,
        proto: TensorProto | None = None,
        region: FileRegion | None = None,
        sparse: SparseTensorProto | None = None,
    ) -> None:
        self.dtype = dtype
        self.shape = shape
        self._array = array
        self._proto = proto
        self._region = region
        self._sparse = sparse

    @classmethod
    def from_array(cls, array: npt.ArrayLike, dtype: int | None = None) -> Tensor:
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
            raise ModelError(f"tensor '{proto.name}': negative dimension in shape {list(shape)}")
        where = f"tensor '{proto.name}'"
        if proto.data_type not in _DATA_TYPES:
            raise ModelError(f"{where}: unknown data type {proto.data_type}")
        _check_shape(where, shape)
        region = None
        if proto.data_location == TensorProto.EXTERNAL:
            region = _external_region(proto, shape, base_dir)
        else:
            _check_embedded_size(proto, shape)
        return cls(proto.data_type, shape, proto=proto, region=region)

    @classmethod
    def from_sparse(cls, proto: SparseTensorProto) -> Tensor:
        """Wrap a `SparseTensorProto`; its elements are made dense when they are read."""
        where = f"sparse tensor '{proto.values.name}'"
        for part in (proto.values, proto.indices):
            if part.data_location == TensorProto.EXTERNAL:
                raise ModelError(f"{where}: external data in sparse tensors is not supported")
            cls.from_proto(part)
        if any(d < 0 for d in proto.dims):
            raise ModelError(f"{where}: negative dimension in shape {list(proto.dims)}")
        _check_shape(where, tuple(proto.dims))
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
        return self._region is not None

    def numpy(self) -> Array:
        """The elements, read-only by convention."""
        if self._array is not None:
            return self._array
        if self._sparse is not None:
            return _densify(self._sparse)
        assert self._proto is not None
        if self._region is not None:
            return self._map(self._region)
        array = _elements(self._proto)
        if self.size <= _CACHED_ELEMENTS:
            self._array = array
        return array

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
            strings = [
                x if isinstance(x, bytes) else str(x).encode("utf-8", "surrogateescape")
                for x in array.ravel()
            ]
            return TensorProto(
                name=name, data_type=self.dtype, dims=self.shape, string_data=strings
            )
        return self._packed(name)

    def fill(self, proto: TensorProto, name: str) -> None:
        """As `to_proto`, into a proto that is there already, with one copy less."""
        if self._proto is None and self._array is not None and self.dtype in _PLAIN_TYPES:
            proto.name, proto.data_type = name, self.dtype
            proto.dims.extend(self.shape)
            little = self._array.dtype.newbyteorder("<")
            proto.raw_data = self._array.astype(little, copy=False).tobytes()
        else:
            proto.CopyFrom(self.to_proto(name))

    def to_sparse_proto(self, name: str) -> SparseTensorProto:
        assert self._sparse is not None
        proto = SparseTensorProto()
        proto.CopyFrom(self._sparse)
        if proto.values.name != name:
            proto.values.name = name
        return proto

    def proto_bytes(self, name: str) -> int:
        """Bytes of the serialized `to_proto(name)`, without copying elements where that can be."""
        if self._proto is None and self._array is not None and self.dtype in _PLAIN_TYPES:
            data = 1 + len(varint(self.nbytes)) + self.nbytes
            return int(self.header(name).ByteSize()) + data
        return int(self.to_proto(name).ByteSize())

    def embedded(self, name: str) -> TensorProto:
        """A `TensorProto` called `name` that holds the data, wherever it lies now."""
        return self._packed(name) if self.is_external else self.to_proto(name)

    def header(self, name: str) -> TensorProto:
        """A `TensorProto` called `name` with type, shape and annotations, but no data."""
        proto = TensorProto(name=name, data_type=self.dtype, dims=self.shape)
        if self._proto is not None:
            if self._proto.HasField("doc_string"):
                proto.doc_string = self._proto.doc_string
            proto.metadata_props.extend(self._proto.metadata_props)
            copy_unknown_fields(self._proto, proto)
        return proto

    @property
    def region(self) -> FileRegion | None:
        """Where the elements lie, if in a file beside the model."""
        return self._region

    def comes_from(self, path: Path) -> bool:
        """Whether the elements lie in that file."""
        return self._region is not None and self._region.path == path.resolve()

    def write_to(self, file: BinaryIO) -> None:
        """Append the storage bytes to a file, a piece at a time. Not for strings."""
        if self._region is not None:
            _copy_region(self._region, file)
        elif self._proto is not None and self._proto.HasField("raw_data"):
            file.write(self._proto.raw_data)
        elif self._array is not None and self.dtype not in _PACKED_BITS:
            _write_array(self._array, file)
        else:
            file.write(self._packed().raw_data)

    def move(self, region: FileRegion, location: str) -> None:
        """Note that the bytes of this external tensor now lie elsewhere, unchanged."""
        proto = TensorProto()
        assert self._proto is not None
        proto.CopyFrom(self._proto)
        set_external(proto, location, region.offset, region.length)
        self._proto, self._region = proto, region

    def _packed(self, name: str = "") -> TensorProto:
        proto = numpy_helper.from_array(np.asarray(self.numpy(), order="C"), name)
        if proto.data_type != self.dtype:
            raise ModelError(
                f"tensor '{name}': an array of {proto.data_type} does not store {self.dtype}"
            )
        return proto

    def _map(self, region: FileRegion) -> Array:
        region.check()
        if self.dtype in _PACKED_BITS or self.size == 0:
            raw = TensorProto(data_type=self.dtype, dims=self.shape)
            with open(region.path, "rb") as file:
                file.seek(region.offset)
                raw.raw_data = file.read(region.length)
            return numpy_helper.to_array(raw)
        return np.memmap(
            region.path,
            dtype=helper.tensor_dtype_to_np_dtype(self.dtype),
            mode="r",
            offset=region.offset,
            shape=self.shape,
        )

    def __repr__(self) -> str:
        return f"Tensor({TensorProto.DataType.Name(self.dtype)}, {list(self.shape)})"


def _check_shape(where: str, shape: tuple[int, ...]) -> None:
    """Refuse what no array can have."""
    if element_count(shape) is None:
        raise ModelError(f"{where}: impossible shape {list(shape[:8])}")


def set_external(proto: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor's proto refer to bytes of the file `location` instead of holding data."""
    for field in (*_TYPED_FIELDS, "raw_data", "external_data"):
        proto.ClearField(field)
    proto.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=text)


def _external_region(
    proto: TensorProto, shape: tuple[int, ...], base_dir: Path | None
) -> FileRegion:
    where = f"tensor '{proto.name}'"
    try:
        info = external_data_helper.ExternalDataInfo(proto)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{where}: malformed external data entry ({error})") from None
    if base_dir is None:
        raise ModelError(f"{where}: external data, but the model was not read from a file")
    root = base_dir.resolve()
    try:
        path = (root / info.location).resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL in it, or a loop of links
        raise ModelError(f"{where}: malformed external data path {info.location!r}") from None
    if not info.location or os.path.isabs(info.location) or not path.is_relative_to(root):
        raise ModelError(f"{where}: external data '{info.location}' leaves the model's folder")
    if not path.is_file():
        problem = "no regular file" if path.exists() else "missing"
        raise ModelError(f"{where}: external data file '{info.location}' is {problem}")
    need = storage_bytes(proto.data_type, shape)
    offset = info.offset or 0
    if info.length and info.length != need:
        raise ModelError(f"{where}: external data of {info.length} bytes, its shape needs {need}")
    if offset < 0 or offset + need > path.stat().st_size:
        raise ModelError(f"{where}: external data file '{info.location}' is too short")
    return FileRegion.of(path, offset, need)


_TYPED_FIELDS = (
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)


def _check_embedded_size(proto: TensorProto, shape: tuple[int, ...]) -> None:
    """Whether the data in the proto is as long as its shape says."""
    where = f"tensor '{proto.name}'"
    if proto.HasField("segment"):
        raise ModelError(f"{where}: data in segments is not supported")
    if proto.HasField("raw_data") and proto.data_type != TensorProto.STRING:
        stored, need, unit = len(proto.raw_data), storage_bytes(proto.data_type, shape), "bytes"
    else:
        field = helper.tensor_dtype_to_field(proto.data_type)
        stored, need, unit = len(getattr(proto, field)), math.prod(shape), "numbers"
        if proto.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            need *= 2
        elif proto.data_type in _BYTES_IN_NUMBERS:
            need = storage_bytes(proto.data_type, shape)
    if stored != need:
        raise ModelError(f"{where}: {stored} {unit} stored, its shape {list(shape)} needs {need}")


_CACHED_ELEMENTS = 1024
"""Elements up to which a tensor keeps the array made of its proto: passes ask often."""

_CHUNK = 1 << 22
"""Bytes copied at a time."""


def _copy_region(region: FileRegion, target: BinaryIO) -> None:
    for start in range(0, region.length, _CHUNK):
        piece = region.read(start, _CHUNK)
        if len(piece) != min(_CHUNK, region.length - start):
            raise ModelError(f"{region.path}: shorter than when the model was read")
        target.write(piece)


def _write_array(array: Array, target: BinaryIO) -> None:
    """Write an array's elements little-endian; one that is no solid block goes in pieces."""
    little = array.dtype.newbyteorder("<")
    if array.flags.c_contiguous and array.dtype == little:
        target.write(array.reshape(-1).view(np.uint8).data)
        return
    if array.nbytes <= _CHUNK or array.ndim == 0:
        target.write(array.astype(little, order="C").tobytes())
        return
    for part in array:
        _write_array(part, target)


_DENSE_LIMIT = 2**31
"""Bytes above which a sparse tensor is not made dense: its shape is only a claim."""


def _elements(proto: TensorProto) -> Array:
    """The elements of an embedded tensor."""
    if proto.data_type in _PLAIN_TYPES and proto.HasField("raw_data"):
        stored = np.dtype(helper.tensor_dtype_to_np_dtype(proto.data_type)).newbyteorder("<")
        native = np.frombuffer(proto.raw_data, stored).astype(stored.newbyteorder("="), copy=False)
        return native.reshape(tuple(proto.dims))
    if proto.data_type == TensorProto.STRING:
        words = [word.decode("utf-8", "surrogateescape") for word in proto.string_data]
        return np.array(words, object).reshape(tuple(proto.dims))
    return numpy_helper.to_array(proto)


def _densify(sparse: SparseTensorProto) -> Array:
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    if element_count(shape, _DENSE_LIMIT // max(1, values.itemsize)) is None:
        raise ModelError(f"sparse tensor '{sparse.values.name}': {list(shape)} is too large")
    dense = np.zeros(shape, dtype=values.dtype)
    try:
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (IndexError, ValueError):
        raise ModelError(f"sparse tensor '{sparse.values.name}': indices out of range") from None
    return dense
