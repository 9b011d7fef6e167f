"""Memory planning: buffers with disjoint live ranges share the arena."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import heapq
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ....ir.symbolic.expressions import Atom, atoms, range_of, substitute
from ....ir.tensor import Array
from .schedule import Buffer, Schedule
from .sizes import is_bounded, most_of, size_of, stand_in

log = logging.getLogger(__name__)

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
    live_bytes: int
    """The most bytes of the arena that are live during one call: it can't be smaller."""
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
    temporaries = _Places(schedule, ConstantPool()).temporaries
    return tuple(
        ArenaBlock(first, last, memory.places[root].offset, root.nbytes)
        for root, (first, last) in temporaries.items()
    )


class ConstantPool:
    """The constants of schedules in one block of memory: equal ones lie there once."""

    def __init__(self) -> None:
        self.placed: list[tuple[int, Array]] = []
        self.nbytes = 0
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def place(self, array: Array) -> int:
        """Where an array's elements lie."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = (array.dtype.str, array.shape, hashlib.sha256(content.data).digest())
        if key not in self._known:
            self._known[key] = self.nbytes
            self.placed.append((self.nbytes, array))
            self.nbytes += _aligned(array.nbytes)
        return self._known[key]


def assign_memory(schedule: Schedule, constants: ConstantPool | None = None) -> Memory:
    """Place every buffer, so that the arena comes near the least that there could be.

    Buffers that are live during one call are disjoint: no arena is smaller than the sum of their
    bytes, and `Memory.live_bytes` is the largest such sum. In the order of their first use each
    takes the smallest gap of the arena that holds it, so that memory used recently, and still
    cached, is used again soon. Where that wastes memory other orders are tried, and the smallest
    arena wins. `constants` may hold those of other schedules already.
    """
    places = _Places(schedule, constants or ConstantPool())
    ranges = [
        _Range(first, last, _aligned(root.nbytes))
        for root, (first, last) in places.temporaries.items()
    ]
    live = _most_live(ranges)
    offsets, size = _place(ranges, live)
    roots = dict(places.roots)
    for root, offset in zip(places.temporaries, offsets, strict=True):
        roots[root] = Place("arena", 0, offset)
        first, last = places.temporaries[root]
        log.debug("calls %d to %d: %d bytes at %d", first, last, root.nbytes, offset)
    log.debug("arena: %d bytes, at least %d are live at once", size, live)
    found = places.of_all(roots)
    return Memory(
        found,
        tuple(places.constants.placed),
        places.constants.nbytes,
        size,
        live,
        tuple(Copy(found[buffer], index, buffer.nbytes) for buffer, index in places.copied),
    )


class _Places:
    """Where the buffers of a schedule lie that aren't temporaries, and how long these live.

    `temporaries` are in the order of their first use, each with the first and the last call that
    uses it; `copied` are outputs that are no buffers of their own.
    """

    def __init__(self, schedule: Schedule, constants: ConstantPool) -> None:
        self.schedule, self.constants = schedule, constants
        self.roots: dict[Buffer, Place] = {}
        self.copied: list[tuple[Buffer, int]] = []
        self.temporaries: dict[Buffer, tuple[int, int]] = {}
        used = [[buffer.root()[0] for buffer in call.arguments] for call in schedule.calls]
        for index, buffer in enumerate(schedule.outputs):
            root, offset = buffer.root()
            temporary = root.input is None and root.array is None
            whole = offset == 0 and root.nbytes == buffer.nbytes
            if temporary and whole and root not in self.roots:
                self.roots[root] = Place("output", index, 0)
            else:
                self.copied.append((buffer, index))
        used.append([buffer.root()[0] for buffer, _ in self.copied])  # after the last call
        for loop in schedule.loops:
            for buffer in loop.buffers():  # looked at before each round, and after the last
                used[loop.first].append(buffer.root()[0])
                used[loop.last - 1].append(buffer.root()[0])
        for read in schedule.open.reads if schedule.open is not None else ():
            used[max(read.call - 1, 0)].append(read.buffer.root()[0])
        last = {root: now for now, found in enumerate(used) for root in found}
        first = {root: now for now, found in reversed([*enumerate(used)]) for root in found}
        for loop in schedule.loops:
            for root in dict.fromkeys(r for u in used[loop.first : loop.last] for r in u):
                if first[root] < loop.first or last[root] >= loop.last:  # held from round to round
                    first[root] = min(first[root], loop.first)
                    last[root] = max(last[root], loop.last - 1)
        found_roots = dict.fromkeys(root for found in used for root in found)
        for root in sorted(found_roots, key=first.__getitem__):
            if root not in self.roots:
                self._add(root, first[root], last[root])

    def _add(self, root: Buffer, now: int, last: int) -> None:
        if root.input is not None:
            self.roots[root] = Place("input", root.input, 0)
        elif root.array is not None:
            self.roots[root] = Place("constant", 0, self.constants.place(root.array))
        else:
            self.temporaries[root] = (now, last)

    def of_all(self, roots: Mapping[Buffer, Place]) -> dict[Buffer, Place]:
        """The places of all buffers, parts of others included."""
        places = dict(roots)
        calls = self.schedule.calls
        reads = self.schedule.open.reads if self.schedule.open is not None else ()
        used = [*(b for c in calls for b in c.arguments), *self.schedule.outputs]
        used += [b for loop in self.schedule.loops for b in loop.buffers()]
        used += [read.buffer for read in reads]
        for buffer in used:
            root, offset = buffer.root()
            place = roots[root]
            places[buffer] = dataclasses.replace(place, offset=place.offset + offset)
        return places


@dataclasses.dataclass(frozen=True)
class Temporary:
    """A buffer of the arena of `nbytes`, which a run may fix, in use from one call to another."""

    first: int
    last: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class OpenMemory:
    """As `Memory`, but that a run places the buffers of the arena, `temporaries`, in the order of
    their first use: the index of a `Place` in the arena is that of the temporary."""

    places: dict[Buffer, Place]
    constants: tuple[tuple[int, Array], ...]
    constant_bytes: int
    temporaries: tuple[Temporary, ...]
    copies: tuple[Copy, ...]
    largest: Largest | None
    """None where a size of an input has no bound."""
    stacks: tuple[Stack, ...] = ()
    reads: int = 0
    """How many numbers a run reads for sizes that data decide."""


Stack = tuple[tuple[int, tuple[int, ...]], ...]
"""Temporaries from the lowest in the arena to the highest, each with those that lie below it and
are in use during one of the same calls: a run puts it on top of them, whatever their bytes."""

STACKED = (48, 512)
"""Sizes at which stacks waste nothing, or little; a run takes the one that suits its own best."""


@dataclasses.dataclass(frozen=True)
class Largest:
    """Offsets of the temporaries at which each has room for the most bytes that it may take, and
    the bytes of that arena: no run needs more."""

    offsets: tuple[int, ...]
    nbytes: int


def assign_open_memory(schedule: Schedule, constants: ConstantPool | None = None) -> OpenMemory:
    """Places of all buffers of a schedule whose sizes only a run fixes, and the largest arena."""
    places = _Places(schedule, constants or ConstantPool())
    roots = dict(places.roots)
    for index, root in enumerate(places.temporaries):
        roots[root] = Place("arena", index, 0)
    found = places.of_all(roots)
    return OpenMemory(
        found,
        tuple(places.constants.placed),
        places.constants.nbytes,
        tuple(Temporary(*ends, _room(schedule, root)) for root, ends in places.temporaries.items()),
        tuple(Copy(found[buffer], index, buffer.nbytes) for buffer, index in places.copied),
        _largest(schedule, places),
        tuple(dict.fromkeys(_stack(places, size) for size in STACKED))
        if len(places.temporaries) <= MOST_ORDERED
        else (),
        len(schedule.open.reads) if schedule.open is not None else 0,
    )


def _room(schedule: Schedule, root: Buffer) -> int:
    """Bytes that a run keeps for a buffer: the most where data decide how many it has."""
    assert schedule.open is not None
    most = most_of(size_of(root.nbytes), schedule.open.equal)
    assert most is not None, root.nbytes
    return stand_in(most)


def _stack(places: _Places, size: int) -> Stack:
    """The temporaries as they lie best where open sizes are about this one."""

    def typical(symbol: Atom) -> int:
        low, high = symbol.range
        return max(low or 1, size if high is None else min(size, high))

    ranges = []
    for root, (first, last) in places.temporaries.items():
        nbytes = substitute(size_of(_room(places.schedule, root)), typical)
        assert isinstance(nbytes, int)
        ranges.append(_Range(first, last, _aligned(nbytes)))
    offsets, _ = _place(ranges, _most_live(ranges))
    order = sorted(range(len(ranges)), key=lambda index: offsets[index])
    return tuple(
        (index, tuple(other for other in order[:place] if ranges[other].meets(ranges[index])))
        for place, index in enumerate(order)
    )


def _largest(schedule: Schedule, places: _Places) -> Largest | None:
    assert schedule.open is not None
    given = [size_of(size) for shape in schedule.open.inputs for size in shape]
    if any(not is_bounded(atom) for atom in atoms(given) if not atom.op):
        return None
    ranges = []
    for root, (first, last) in places.temporaries.items():
        high = range_of(size_of(_room(schedule, root))).high
        if high is None:
            return None
        ranges.append(_Range(first, last, _aligned(high)))
    offsets, size = _place(ranges, _most_live(ranges))
    return Largest(tuple(offsets), size)


WASTEFUL = 1.1
"""Bytes of an arena for each that has to be, beyond which more orders are tried."""

TRIES = 8
"""How often what lies highest comes first, from each of the orders."""

MOST_TRIED = 200
"""Buffers up to which that is done."""

MOST_ORDERED = 1000
"""Buffers up to which several orders are tried, which takes time with their square."""


@dataclasses.dataclass(frozen=True)
class _Range:
    """A temporary's calls, from the first to the last that uses it, and its bytes."""

    first: int
    last: int
    nbytes: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1

    def meets(self, other: _Range) -> bool:
        """Whether both are in use during one call."""
        return self.first <= other.last and other.first <= self.last


_ORDERS: tuple[Callable[[_Range], tuple[int, ...]], ...] = (
    lambda r: (-r.nbytes, r.first),
    lambda r: (-r.length * r.nbytes, r.first),
    lambda r: (-r.length, -r.nbytes),
    lambda r: (r.first, -r.nbytes),
    lambda r: (-r.last, -r.nbytes),
)
"""In which temporaries are placed, where the order of use wastes memory."""


def _most_live(ranges: Sequence[_Range]) -> int:
    """The most bytes that are live during one call."""
    changes: dict[int, int] = {}
    for r in ranges:
        changes[r.first] = changes.get(r.first, 0) + r.nbytes
        changes[r.last + 1] = changes.get(r.last + 1, 0) - r.nbytes
    now = most = 0
    for call in sorted(changes):
        now += changes[call]
        most = max(most, now)
    return most


def _place(ranges: Sequence[_Range], least: int) -> tuple[list[int], int]:
    """Offsets, and the bytes of the arena, which are `least` or more."""
    best = _in_order_of_use(ranges)
    if len(ranges) > MOST_ORDERED:
        return best
    for order in _ORDERS:
        if best[1] == least:
            break
        found = _in_order(ranges, sorted(range(len(ranges)), key=lambda i: order(ranges[i])))
        best = min(best, found, key=lambda placed: placed[1])
    if best[1] <= WASTEFUL * least or len(ranges) > MOST_TRIED:
        return best
    return _with_highest_first(ranges, least, best)


def _with_highest_first(
    ranges: Sequence[_Range], least: int, best: tuple[list[int], int]
) -> tuple[list[int], int]:
    """As `best`, or smaller, by orders in which what lay above `least` comes first."""
    for order in _ORDERS:
        indices = sorted(range(len(ranges)), key=lambda i: order(ranges[i]))
        for _ in range(TRIES):
            offsets, size = found = _in_order(ranges, indices)
            best = min(best, found, key=lambda placed: placed[1])
            if size <= WASTEFUL * least:
                return best
            above = {i for i in indices if offsets[i] + ranges[i].nbytes > least}
            indices.sort(key=lambda i: i not in above)
    return best


def _in_order_of_use(ranges: Sequence[_Range]) -> tuple[list[int], int]:
    """Offsets and size where each range, as they begin, takes the smallest gap that holds it."""
    arena, offsets, ends = _Arena(), list[int](), list[tuple[int, int]]()
    for index, r in enumerate(ranges):
        while ends and ends[0][0] < r.first:
            _, ended = heapq.heappop(ends)
            arena.give(offsets[ended], ranges[ended].nbytes)
        offsets.append(arena.take(r.nbytes))
        heapq.heappush(ends, (r.last, index))
    return offsets, arena.size


def _in_order(ranges: Sequence[_Range], order: Sequence[int]) -> tuple[list[int], int]:
    """Offsets and size where each, in any order, takes the smallest gap between those that live
    at the same time."""
    offsets, size = [0] * len(ranges), 0
    done: list[int] = []
    for index in order:
        r = ranges[index]
        taken = sorted(
            (offsets[i], offsets[i] + ranges[i].nbytes) for i in done if ranges[i].meets(r)
        )
        end, best = 0, None
        for start, stop in taken:
            if start - end >= r.nbytes and (best is None or start - end < best[0]):
                best = (start - end, end)
            end = max(end, stop)
        offsets[index] = end if best is None else best[1]
        size = max(size, offsets[index] + r.nbytes)
        done.append(index)
    return offsets, size


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
