"""Packing weights: lossless, and decoded by a few lines of C (`native/unpack.c`).

    head    "secateur packed1", bytes of the weights (8), their adler32 (4), records (4)
    record  where its first byte lies (8), bytes (4), bytes of its code (4), stride (1), kind (1),
            six zeros; then the code

All numbers are little-endian. A record holds every `stride`th byte, one of each element of an
array: exponents of floats have few values where the bytes of a fraction have all. They are stored,
coded by a canonical prefix code of 11 bits at most (the lengths of 256 symbols, 4 bits each, then
the codes, the first bit highest), or all equal (the one byte). What no record holds is 0.
"""

from __future__ import annotations

import heapq
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from ....ir.tensor import Array

MOST_BITS = 11
"""Of a code: the decoder has a table of all."""

_MAGIC = b"secateur packed1"
_STORED, _CODED, _EQUAL = 0, 1, 2
_FEW = 512
"""Bytes of an array below which a code costs more than it saves."""
_MOST_SYMBOLS = 1 << 22
"""Of a record."""


def pack(weights: bytes, arrays: Sequence[tuple[int, Array]]) -> bytes:
    """Packed `weights`, in which arrays lie at offsets."""
    records: list[bytes] = []
    content = np.frombuffer(weights, np.uint8)
    end = 0
    for offset, array in sorted(arrays, key=lambda each: each[0]):
        if offset > end:
            records += _records(content, end, offset, 1)
        end = offset + array.nbytes
        stride = array.dtype.itemsize if array.nbytes >= _FEW else 1
        records += _records(content, offset, end, stride)
    records += _records(content, end, len(weights), 1)
    head = struct.pack("<QII", len(weights), zlib.adler32(weights), len(records))
    return b"".join([_MAGIC, head, *records])


def _records(content: Array, begin: int, end: int, stride: int) -> Iterator[bytes]:
    """The records of the bytes from `begin` to `end`; none where these are zeros."""
    step = _MOST_SYMBOLS * stride
    for start in range(begin, end, step):
        for first in range(start, min(start + stride, end)):
            symbols = content[first : min(start + step, end) : stride]
            if not symbols.any():
                continue
            kind, code = _code(symbols)
            fields = (first, len(symbols), len(code), stride, kind, b"")
            yield struct.pack("<QIIBB6s", *fields) + code


def _code(symbols: Array) -> tuple[int, bytes]:
    """The shortest way to write bytes down."""
    stored = symbols.tobytes()
    counts = np.bincount(symbols, minlength=256)
    if counts.max() == len(symbols):
        return _EQUAL, stored[:1]
    lengths = code_lengths(counts)
    size = 128 + -(-int(counts @ lengths) // 8)
    if size >= len(stored):
        return _STORED, stored
    pairs = lengths.reshape(128, 2)
    table = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()
    return _CODED, table + _bits(symbols, lengths)


def code_lengths(counts: Array) -> Array:
    """Bits of each symbol's code, `MOST_BITS` at most, so that the sum over all that are counted is
    the least: by packages of pairs, merged as often as a code may be long."""
    single = sorted((int(c), (s,)) for s, c in enumerate(counts) if c)
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(MOST_BITS):
        merged = list(heapq.merge(single, packages))
        pairs = zip(merged[::2], merged[1::2], strict=False)
        packages = [(a + b, first + second) for (a, first), (b, second) in pairs]
    lengths = np.zeros(256, np.int64)
    for _, symbols in packages[: len(single) - 1]:
        np.add.at(lengths, list(symbols), 1)
    return lengths


def _bits(symbols: Array, lengths: Array) -> bytes:
    """The codes of symbols, one after the other."""
    codes = np.zeros(256, np.int64)
    code = 0
    for length in range(1, MOST_BITS + 1):
        for symbol in np.flatnonzero(lengths == length):
            codes[symbol] = code << (MOST_BITS - length)
            code += 1
        code <<= 1
    positions = np.arange(MOST_BITS)
    wide = (codes[:, None] >> (MOST_BITS - 1 - positions) & 1).astype(np.uint8)
    kept = positions < lengths[:, None]
    return np.packbits(wide[symbols][kept[symbols]]).tobytes()
