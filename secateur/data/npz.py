"""`.npz` files: arrays by name, whose headers are looked at before any data is.

Files are untrusted: nothing is unpickled or extracted, a header costs a few kilobytes
whatever it says, data is mapped where it is stored as it is, and else bounded.
"""

from __future__ import annotations

import ast
import dataclasses
import lzma
import math
import struct
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np

from ..ir.element_count import element_count
from ..ir.errors import SecateurError
from ..ir.files import open_regular
from ..ir.tensor import Array

MOST_UNPACKED = 1 << 30
"""Bytes of data that may be unpacked into memory, all arrays of a file together."""

_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}
_MOST_HEADER = 10_000
_BLOCK = 1 << 20
_LOCAL = struct.Struct("<4s22xHH")
"""The header before a member's data: its mark, and how long the name and what follows it are."""

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)
"""What reading a damaged archive raises."""


class DataError(SecateurError):
    """Sample data that is unreadable or does not fit the model."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a member says of its array; `offset` is where the data begins in the member."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int
    swapped: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """An `.npz` file that is open. Raises DataError."""

    def __init__(self, path: Path) -> None:
        self._headers: dict[str, Header] = {}
        self._unpacked = 0
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise DataError(error.strerror or str(error)) from None
        try:
            self._archive = zipfile.ZipFile(self._file)
            self._members = self._named(self._archive.infolist())
        except _DAMAGE:
            self._file.close()
            raise DataError("not an .npz file, or a damaged one") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._archive.close()
        self._file.close()

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def header(self, name: str) -> Header:
        """Type and shape of an array, checked against the bytes that its member holds."""
        if name not in self._headers:
            info = self._members[name]
            if info.flag_bits & 1:
                raise _error(name, "is encrypted")
            try:
                with self._archive.open(info) as file:
                    header = self._headers[name] = read_header(file, name)
            except (*_DAMAGE, OSError) as error:
                raise self._damaged(name, error) from None
            held = info.file_size - header.offset
            if header.nbytes != held:
                raise _error(
                    name,
                    f"of shape {list(header.shape)} needs {header.nbytes} bytes, "
                    f"the file holds {held}",
                )
        return self._headers[name]

    def read(self, name: str) -> Array:
        """An array in native byte order: mapped where that can be, in memory otherwise."""
        header, info = self.header(name), self._members[name]
        order: Literal["C", "F"] = "F" if header.fortran else "C"
        mapped = info.compress_type == zipfile.ZIP_STORED and not header.swapped
        if not mapped:
            self._unpacked += header.nbytes
            if self._unpacked > MOST_UNPACKED:
                raise _error(
                    name,
                    f"unpacks to {header.nbytes:,} bytes, and {MOST_UNPACKED:,} is the most for "
                    "all arrays; numpy.savez writes files that are read piece by piece",
                )
        try:
            with self._archive.open(info) as file:
                file.read(header.offset)
                content = None if mapped else np.empty(header.nbytes, np.uint8)
                filled = 0
                # To the end also where nothing is kept, which checks the checksum.
                while block := file.read(_BLOCK):
                    if content is not None:
                        content[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
                    filled += len(block)
            if filled != header.nbytes:
                raise EOFError
            if content is not None:
                stored = header.dtype.newbyteorder() if header.swapped else header.dtype
                array = content.view(stored).reshape(header.shape, order=order)
                return np.ascontiguousarray(array, header.dtype)
            return self._map(info, header, order)
        except (*_DAMAGE, OSError) as error:
            raise self._damaged(name, error) from None

    def _map(self, info: zipfile.ZipInfo, header: Header, order: Literal["C", "F"]) -> Array:
        if header.nbytes == 0:
            return np.empty(header.shape, header.dtype)
        self._file.seek(info.header_offset)
        mark, name, extra = _LOCAL.unpack(self._file.read(_LOCAL.size))
        if mark != b"PK\x03\x04":
            raise zipfile.BadZipFile
        start = info.header_offset + _LOCAL.size + name + extra + header.offset
        return np.memmap(self._file, header.dtype, "r", start, header.shape, order)

    def _named(self, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name == info.filename or name in members:
                raise DataError(f"'{info.filename[:100]}' is not an array of its own")
            members[name] = info
        return members

    def _damaged(self, name: str, error: BaseException) -> DataError:
        if isinstance(error, NotImplementedError):
            return _error(name, "is compressed in a way that is not read")
        return _error(name, "is damaged or truncated")


def read_header(file: IO[bytes], name: str) -> Header:
    """What an `.npy` file says of its array, which `name` calls in errors. Raises DataError."""
    start = file.read(len(_MAGIC) + 2)
    if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + 2:
        raise _error(name, "is no .npy file")
    form = _LENGTHS.get(start[-2])
    if form is None or start[-1] != 0:
        raise _error(name, f"has .npy format {start[-2]}.{start[-1]}; 1 to 3 are read")
    (length,) = struct.unpack(form, file.read(struct.calcsize(form)))
    text = file.read(min(length, _MOST_HEADER + 1))
    if len(text) != length:
        raise _error(name, "has a malformed header")
    try:
        entries = ast.literal_eval(text.decode("utf-8" if start[-2] == 3 else "latin1"))
        shape, description = entries["shape"], entries["descr"]
        fortran = entries["fortran_order"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise _error(name, "has a malformed header") from None
    sizes = isinstance(shape, tuple) and all(type(size) is int for size in shape)
    if not sizes or type(fortran) is not bool or len(entries) != 3:
        raise _error(name, "has a malformed header")
    if element_count(shape) is None:
        raise _error(name, f"has the impossible shape {str(list(shape))[:100]}")
    dtype = _dtype(description, name)
    offset = len(start) + struct.calcsize(form) + length
    return Header(shape, dtype.newbyteorder("="), fortran, offset, not dtype.isnative)


def _dtype(description: Any, name: str) -> np.dtype[Any]:
    if not isinstance(description, str):
        raise _error(name, "has elements of several fields")
    try:
        dtype: np.dtype[Any] = np.dtype(description)
    except (TypeError, ValueError, SyntaxError):
        raise _error(name, f"has elements of no type: {description[:50]!r}") from None
    if dtype.hasobject:
        raise _error(name, "holds Python objects, which are not loaded")
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0 or dtype.subdtype is not None:
        raise _error(name, f"has elements of type {description[:50]!r}, no plain numbers")
    return dtype


def _error(name: str, problem: str) -> DataError:
    return DataError(f"array '{name[:100]}' {problem}")
