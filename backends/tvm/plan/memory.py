"""Memory planning: buffers with disjoint live ranges share the arena."""

from __future__ import annotations

import bisect
import dataclasses

from ....ir.tensor import Array
from .schedule import Buffer, Schedule

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a buffer lies: `kind` is "input", "output", "constant" or "arena".

    `index` is that of the input or output, `offset` in bytes from its beginning, or from
    that of all constants or of the arena.
    """

    kind: str
    index: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Copy:
    """An output that is no buffer of its own: copied after the last call."""

    source: Place
    output: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Places of all buffers, by the identity of each; offsets of constants in their blob."""

    places: dict[Buffer, Place]
    constants: tuple[tuple[int, Array], ...]
    constant_bytes: int
    arena_bytes: int
    copies: tuple[Copy, ...]


@dataclasses.dataclass(frozen=True)
class ArenaBlock:
    """Where a buffer lies in the arena, from its first call to its last, by their numbers."""

    first: int
    last: int
    offset: int
    nbytes: int


def arena_blocks(schedule: Schedule) -> tuple[ArenaBlock, ...]:
    """The buffers of the arena over time."""
    memory = assign_memory(schedule)
    ends: dict[Buffer, tuple[int, int]] = {}
    for now, call in enumerate(schedule.calls):
        for buffer in call.arguments:
            root, _ = buffer.root()
            if memory.places[root].kind == "arena":
                ends[root] = (ends.get(root, (now, now))[0], now)
    return tuple(
        ArenaBlock(first, last, memory.places[root].offset, root.nbytes)
        for root, (first, last) in ends.items()
    )


def assign_memory(schedule: Schedule) -> Memory:
    """Place every buffer.

    A buffer takes the smallest gap of the arena that holds it when it is first used, so
    that memory used recently, and still cached, is used again soon.
    """
    roots: dict[Buffer, Place] = {}
    constants: list[tuple[int, Array]] = []
    constant_bytes = 0
    used = [[buffer.root()[0] for buffer in call.arguments] for call in schedule.calls]
    copied: list[tuple[Buffer, int]] = []
    for index, buffer in enumerate(schedule.outputs):
        root, offset = buffer.root()
        temporary = root.input is None and root.array is None
        if temporary and offset == 0 and root.nbytes == buffer.nbytes and root not in roots:
            roots[root] = Place("output", index, 0)
        else:
            copied.append((buffer, index))
    used.append([buffer.root()[0] for buffer, _ in copied])  # after the last call
    last = {root: now for now, found in enumerate(used) for root in found}
    arena = _Arena()
    for now, found in enumerate(used):
        for root in found:
            if root in roots:
                continue
            if root.input is not None:
                roots[root] = Place("input", root.input, 0)
            elif root.array is not None:
                roots[root] = Place("constant", 0, constant_bytes)
                constants.append((constant_bytes, root.array))
                constant_bytes += _aligned(root.nbytes)
            else:
                roots[root] = Place("arena", 0, arena.take(_aligned(root.nbytes)))
        for root in dict.fromkeys(found):
            if roots[root].kind == "arena" and last[root] == now:
                arena.give(roots[root].offset, _aligned(root.nbytes))
    places = dict(roots)
    for buffer in (*(b for c in schedule.calls for b in c.arguments), *schedule.outputs):
        root, offset = buffer.root()
        places[buffer] = dataclasses.replace(roots[root], offset=roots[root].offset + offset)
    return Memory(
        places,
        tuple(constants),
        constant_bytes,
        arena.size,
        tuple(Copy(places[buffer], index, buffer.nbytes) for buffer, index in copied),
    )


class _Arena:
    """Free gaps of an arena that grows as needed, by their beginnings."""

    def __init__(self) -> None:
        self.size = 0
        self._starts: list[int] = []
        self._ends: list[int] = []

    def take(self, nbytes: int) -> int:
        gaps = range(len(self._starts))
        fitting = [i for i in gaps if self._ends[i] - self._starts[i] >= nbytes]
        if fitting:
            best = min(fitting, key=lambda i: self._ends[i] - self._starts[i])
            start = self._starts[best]
            self._starts[best] += nbytes
            if self._starts[best] == self._ends[best]:
                del self._starts[best], self._ends[best]
            return start
        start = self.size
        if self._ends and self._ends[-1] == self.size:  # grow the gap at the end
            start = self._starts.pop()
            self._ends.pop()
        self.size = start + nbytes
        return start

    def give(self, start: int, nbytes: int) -> None:
        end = start + nbytes
        at = bisect.bisect_left(self._starts, start)
        if at < len(self._starts) and self._starts[at] == end:
            end = self._ends[at]
            del self._starts[at], self._ends[at]
        if at > 0 and self._ends[at - 1] == start:
            self._ends[at - 1] = end
            return
        self._starts.insert(at, start)
        self._ends.insert(at, end)


def _aligned(nbytes: int) -> int:
    return -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
