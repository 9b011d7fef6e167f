"""An independent check of memory planning, made for every artifact.

Kernels are proven to stay within their buffers; this shows that buffers lie where they may,
so that no two that are needed at the same time share a byte.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence

from .memory import Memory
from .schedule import Buffer, CallLoop, Schedule


def check_memory(schedule: Schedule, memory: Memory, writes: Mapping[str, Sequence[int]]) -> None:
    """Raise AssertionError, a defect of the compiler, where a buffer lies where it must not.

    `writes` are the arguments that each kernel writes, by their index. Every buffer lies in
    the arena, the constants, an input or an output; written ones not in constants or inputs,
    and apart from all other arguments of the call, on which the kernel's proof and its
    `noalias` rest; buffers of the arena that are needed at the same time don't overlap.
    """
    inputs = {b.input: b.nbytes for b in memory.places if b.input is not None}
    outputs = {index: buffer.nbytes for index, buffer in enumerate(schedule.outputs)}
    for buffer, place in memory.places.items():
        room = {
            "input": inputs.get(place.index),
            "output": outputs.get(place.index),
            "constant": memory.constant_bytes,
            "arena": memory.arena_bytes,
        }[place.kind]
        inside = room is not None and place.offset >= 0 and place.offset + buffer.nbytes <= room
        _require(inside, f"{buffer.nbytes} bytes at {place} pass its end")
        root, offset = buffer.root()
        _require(offset + buffer.nbytes <= root.nbytes, f"a part at {place} passes its buffer")
    for call in schedule.calls:
        for index in writes[call.kernel]:
            written = call.arguments[index]
            kind = memory.places[written].kind
            _require(kind in ("arena", "output"), f"{call.kernel} writes to {kind}")
            for other, argument in enumerate(call.arguments):
                apart = other == index or not _overlap(memory, written, argument)
                _require(apart, f"{call.kernel} writes argument {index} over {other}")
    _check_constants(memory)
    _check_arena(schedule, memory)


def _overlap(memory: Memory, a: Buffer, b: Buffer) -> bool:
    first, second = memory.places[a], memory.places[b]
    if (first.kind, first.index) != (second.kind, second.index):
        return False
    return first.offset < second.offset + b.nbytes and second.offset < first.offset + a.nbytes


def _check_constants(memory: Memory) -> None:
    spans = [(offset, offset + array.nbytes) for offset, array in memory.constants]
    for (_, end), (start, _) in itertools.pairwise(spans):
        _require(end <= start, f"constants overlap at byte {start}")
    _require(not spans or spans[-1][1] <= memory.constant_bytes, "constants pass their end")


def _check_arena(schedule: Schedule, memory: Memory) -> None:
    """Go through the calls with the spans of the arena that are needed then, in order."""
    kept = [b for b in schedule.outputs if memory.places[b].kind == "arena"]
    steps = [list(call.arguments) for call in schedule.calls] + [kept]
    for loop in schedule.loops:
        _hold(loop, steps)
    spans: dict[Buffer, tuple[int, int]] = {}
    last: dict[Buffer, int] = {}
    for now, buffers in enumerate(steps):
        for buffer in buffers:
            place, (root, offset) = memory.places[buffer], buffer.root()
            if place.kind == "arena" and root.nbytes:
                start = place.offset - offset
                span = (start, start + root.nbytes)
                _require(spans.setdefault(root, span) == span, f"a buffer moves from {place}")
                last[root] = now
    live: list[tuple[int, int]] = []
    known: set[Buffer] = set()
    for now, buffers in enumerate(steps):
        roots = [r for r in dict.fromkeys(b.root()[0] for b in buffers) if r in spans]
        for root in roots:
            if root not in known:
                known.add(root)
                span = spans[root]
                at = bisect.bisect_left(live, span)
                _require(at == 0 or live[at - 1][1] <= span[0], f"call {now}: overlap at {span}")
                after = at == len(live) or span[1] <= live[at][0]
                _require(after, f"call {now}: overlap at {span}")
                live.insert(at, span)
        for root in roots:
            if last[root] == now:
                live.remove(spans[root])


def _hold(loop: CallLoop, steps: list[list[Buffer]]) -> None:
    """Let what a loop's calls share with those around it, or with its rounds, be needed in all."""
    inside, outside = steps[loop.first : loop.last], [*steps[: loop.first], *steps[loop.last :]]
    around = {buffer.root()[0] for buffers in outside for buffer in buffers}
    shared = {b: None for buffers in inside for b in buffers if b.root()[0] in around}
    for buffers in inside:
        buffers += [*shared, *loop.buffers()]


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(f"memory of the artifact: {what}")
