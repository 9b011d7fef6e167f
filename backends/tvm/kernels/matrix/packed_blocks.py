"""What the kernel of a product with weights in blocks is told: sizes, packed weights, a tile."""

from __future__ import annotations

import dataclasses

import numpy as np

from .....ir.tensor import Array
from ...plan.programs import Program
from ...plan.sizes import is_open, typical
from ...targets import Target
from ..convolution.tiles import divisors
from .matmul import MatrixOperand, MatrixTile

WORD = 32
"""Bits of a word, the numbers of one column that are loaded together."""


@dataclasses.dataclass(frozen=True)
class BlockProduct:
    """float32 [rows, depth] @ [depth, columns] of `bits` each, in blocks along the depth.

    `zeros` is the type of the zero points, one for each block of a column: "uint8", packed as the
    numbers are, or "float32"; where it is "", all are half of the range. With `by_bytes`
    activations are rounded to bytes, by a scale for each block of a row.
    """

    rows: int
    depth: int
    columns: int
    bits: int
    block: int
    program: Program
    operands: tuple[MatrixOperand, ...]
    zeros: str
    by_bytes: bool

    @property
    def blocks(self) -> int:
        return -(-self.depth // self.block)

    @property
    def words(self) -> int:
        """Words of a block of a column."""
        return self.block * self.bits // WORD

    @property
    def per_word(self) -> int:
        return WORD // self.bits

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1

    @property
    def is_signed(self) -> bool:
        """Whether words hold numbers less half of the range, so that an infinity among the
        activations meets nothing but the weights."""
        return self.bits == 8 and not self.zeros and not self.by_bytes

    @property
    def spreads(self) -> bool:
        """Whether there are so many rows that each group of weights is made floats before."""
        return not self.by_bytes and not is_open(self.rows) and self.rows >= _MANY

    def vectors(self, target: Target) -> int:
        return -(-self.columns // target.lanes)


_MANY = 16
"""Rows from which on taking weights apart for all of them is faster than for each tile."""

_SPREAD = 2**19
"""Bytes of floats of a group of columns that stay in a cache."""


def multiplies_bytes(target: Target) -> bool:
    """Whether there are instructions for sums of products of bytes."""
    return target.machine == "x86_64" or "dotprod" in target.features


def pack_weights(product: BlockProduct, target: Target, tile: MatrixTile, numbers: Array) -> Array:
    """Numbers [columns, blocks, block] as words [group, block, word, vector * lane].

    A word has its numbers one after the other; or, for bytes, those of four neighbours in its
    bytes, next to them the following four.
    """
    columns, blocks, _ = numbers.shape
    padded = np.zeros((product.vectors(target) * target.lanes, blocks, product.block), np.uint32)
    padded[:columns] = numbers ^ 128 if product.is_signed else numbers
    words = padded.reshape(*padded.shape[:2], product.words, product.per_word)
    places = np.arange(product.per_word)
    if product.by_bytes:
        places = places % 4 * (8 // product.bits) + places // 4
    packed = np.bitwise_or.reduce(words << (places * product.bits).astype(np.uint32), axis=-1)
    return _by_groups(packed, target, tile).view(np.int32)


def pack_scales(product: BlockProduct, target: Target, tile: MatrixTile, scales: Array) -> Array:
    """[columns, blocks] as [group, block, vector * lane]."""
    columns, blocks = scales.shape
    padded = np.zeros((product.vectors(target) * target.lanes, blocks), scales.dtype)
    padded[:columns] = scales
    return _by_groups(padded, target, tile)


def pack_zeros(product: BlockProduct, target: Target, tile: MatrixTile, zeros: Array) -> Array:
    """[columns, blocks] as bytes [group, byte, vector * lane], of successive blocks each."""
    columns, blocks = zeros.shape
    each = 8 // product.bits
    padded = np.zeros((columns, -(-blocks // each) * each), np.uint8)
    padded[:, :blocks] = zeros
    shifts = (np.arange(each) * product.bits).astype(np.uint8)
    joined = np.bitwise_or.reduce(padded.reshape(columns, -1, each) << shifts, axis=-1)
    return pack_scales(product, target, tile, joined)


def _by_groups(array: Array, target: Target, tile: MatrixTile) -> Array:
    """[columns, ...] as [group, ..., columns of a group]."""
    width = tile.vectors * target.lanes
    return np.ascontiguousarray(np.moveaxis(array.reshape(-1, width, *array.shape[1:]), 1, -1))


_SPARE = 6
"""Registers for what is neither sums nor weights."""


def choose_tile(product: BlockProduct, target: Target) -> MatrixTile:
    """The tile for which a small model of the inner loop counts the fewest cycles."""
    if product.spreads:
        several = 4 * product.depth * 2 * target.lanes <= _SPREAD
        vectors = 2 if several and product.vectors(target) % 2 == 0 else 1
        return MatrixTile(vectors, min(product.rows, (target.registers - 2 - vectors) // vectors))
    rows = typical(product.rows)
    per_byte = 4 if product.by_bytes else 1
    unpack = 1.5 if product.by_bytes else 2.25
    found = []
    for vectors in divisors(product.vectors(target)):
        for count in range(1, min(rows, 16) + 1):
            if vectors > 8 or vectors * (count + 1) > target.registers - _SPARE:
                continue
            tiles = -(-rows // count) * (product.vectors(target) // vectors)
            steps = product.block / per_byte
            inner = max(vectors * (count + unpack), 4.0) + count / 2
            found.append((tiles * (steps * inner + 4 * vectors * count), vectors, count))
    _, vectors, count = min(found)
    return MatrixTile(vectors, count)
