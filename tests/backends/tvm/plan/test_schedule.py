"""Buffers in memory: what is in use at the same time never meets."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.compile import compile_library
from secateur.backends.tvm.plan.memory import ALIGNMENT, Memory, assign_memory
from secateur.backends.tvm.plan.memory_check import check_memory
from secateur.backends.tvm.plan.schedule import Buffer, KernelCall, Schedule
from secateur.backends.tvm.targets import parse_target
from secateur.models import zoo


@st.composite
def schedules(draw: Any) -> Schedule:
    """Calls that read what was written before, at times a part of it, and write new buffers."""
    known = [Buffer(draw(st.integers(1, 500)), input=i) for i in range(draw(st.integers(0, 2)))]
    known += [Buffer(8, array=np.arange(i, i + 8, dtype=np.uint8)) for i in range(2)]
    schedule = Schedule()
    for index in range(draw(st.integers(0, 12))):
        reads = [known[i] for i in draw(st.lists(st.integers(0, len(known) - 1), max_size=3))]
        writes = [Buffer(draw(st.integers(0, 1000))) for _ in range(draw(st.integers(1, 2)))]
        if draw(st.booleans()):  # a part of a larger buffer that later calls may write, too
            whole = Buffer(1000)
            writes = [whole.part(0, 100), whole.part(200, 300).part(50, 100)]
            known.append(whole)
        schedule.calls.append(KernelCall(f"k{index}", (*reads, *writes)))
        known += writes
    schedule.outputs = [known[i] for i in draw(st.lists(st.integers(0, len(known) - 1)))]
    return schedule


def _spans(schedule: Schedule, memory: Memory) -> list[tuple[int, int, int, int]]:
    """First and last time of use, first and last byte of everything in the arena."""
    uses: dict[Buffer, list[int]] = {}
    for now, call in enumerate(schedule.calls):
        for buffer in call.arguments:
            uses.setdefault(buffer.root()[0], []).append(now)
    for buffer in schedule.outputs:
        uses.setdefault(buffer.root()[0], []).append(len(schedule.calls))
    found = []
    for buffer, times in uses.items():
        place = memory.places.get(buffer) or memory.places[_part(schedule, buffer)]
        if place.kind == "arena":
            start = place.offset - (0 if buffer in memory.places else _offset(schedule, buffer))
            found.append((min(times), max(times), start, start + buffer.nbytes))
    return found


def _part(schedule: Schedule, root: Buffer) -> Buffer:
    buffers = [*(b for c in schedule.calls for b in c.arguments), *schedule.outputs]
    return next(b for b in buffers if b.root()[0] is root)


def _offset(schedule: Schedule, root: Buffer) -> int:
    return _part(schedule, root).root()[1]


@given(schedules())
@settings(max_examples=300, deadline=None)
def test_what_is_in_use_together_does_not_overlap(schedule: Schedule) -> None:
    memory = assign_memory(schedule)
    spans = _spans(schedule, memory)
    for i, (first, last, start, end) in enumerate(spans):
        assert start >= 0
        assert start % ALIGNMENT == 0
        assert end <= memory.arena_bytes
        for other_first, other_last, other_start, other_end in spans[:i]:
            together = first <= other_last and other_first <= last
            assert not (together and start < other_end and other_start < end)


@given(schedules())
@settings(max_examples=300, deadline=None)
def test_the_check_finds_planned_memory_right(schedule: Schedule) -> None:
    """Calls write the arguments that nothing before them wrote."""
    known: set[Buffer] = set()
    writes: dict[str, list[int]] = {}
    for call in schedule.calls:
        roots = [b.root()[0] for b in call.arguments]
        fresh = [r not in known and r.input is None and r.array is None for r in roots]
        writes[call.kernel] = [i for i, new in enumerate(fresh) if new]
        known.update(roots)
    check_memory(schedule, assign_memory(schedule), writes)


@pytest.mark.parametrize("fault", ["moved", "shared", "past the end", "short arena"])
def test_the_check_finds_faults(fault: str) -> None:
    """Each way in which buffers could meet, put in."""
    a, b, c = (Buffer(1000) for _ in range(3))
    x = Buffer(1000, input=0)
    schedule = Schedule(
        [KernelCall("k", (x, a)), KernelCall("k", (a, b)), KernelCall("l", (a, b, c))], [c]
    )
    memory = assign_memory(schedule)
    writes = {"k": [1], "l": [2]}
    check_memory(schedule, memory, writes)
    places = dict(memory.places)
    if fault == "moved":
        places[b] = dataclasses.replace(places[b], offset=places[a].offset + 960)
    elif fault == "shared":
        places[b] = places[a]
    elif fault == "past the end":
        places[c] = dataclasses.replace(places[c], offset=8)
    size = memory.arena_bytes - 64 if fault == "short arena" else memory.arena_bytes
    broken = dataclasses.replace(memory, places=places, arena_bytes=size)
    with pytest.raises(AssertionError, match="memory of the artifact"):
        check_memory(schedule, broken, writes)


@pytest.mark.parametrize("target", ["input", "constant", "argument", "part"])
def test_the_check_finds_writes_where_none_may_be(target: str) -> None:
    whole = Buffer(1000)
    x, a = Buffer(1000, input=0), Buffer(1000)
    constant = Buffer(1000, array=np.zeros(1000, np.uint8))
    first = KernelCall("k", (x, constant, whole))
    other = {
        "input": KernelCall("l", (a, x)),
        "constant": KernelCall("l", (x, constant)),
        "argument": KernelCall("l", (whole, whole)),
        "part": KernelCall("l", (whole.part(0, 500), whole.part(499, 100))),
    }[target]
    schedule = Schedule([first, KernelCall("k", (x, constant, a)), other], [])
    with pytest.raises(AssertionError, match="writes"):
        check_memory(schedule, assign_memory(schedule), {"k": [2], "l": [1]})


@given(schedules())
@settings(max_examples=300, deadline=None)
def test_every_output_arrives_where_the_caller_wants_it(schedule: Schedule) -> None:
    memory = assign_memory(schedule)
    copied = {copy.output: copy for copy in memory.copies}
    for index, buffer in enumerate(schedule.outputs):
        place = memory.places[buffer]
        if index in copied:
            assert copied[index].source == place
            assert copied[index].nbytes == buffer.nbytes
        else:
            assert (place.kind, place.index, place.offset) == ("output", index, 0)
    ends = [0]
    for offset, array in memory.constants:
        assert offset >= ends[-1]
        ends.append(offset + array.nbytes)
    assert ends[-1] <= memory.constant_bytes


def test_memory_is_used_again() -> None:
    """A chain of equal buffers needs the memory of two."""
    chain = [Buffer(1000) for _ in range(10)]
    calls = [KernelCall("k", (a, b)) for a, b in itertools.pairwise(chain)]
    memory = assign_memory(Schedule(calls, [chain[-1]]))
    assert memory.arena_bytes == 2 * 1024


@given(schedules())
@settings(max_examples=200, deadline=None)
def test_the_arena_is_no_smaller_than_what_is_live(schedule: Schedule) -> None:
    """Counted call by call, and near it."""
    memory = assign_memory(schedule)
    spans = [(f, n, -(-max(e - s, 1) // 64) * 64) for f, n, s, e in _spans(schedule, memory)]
    times = range(len(schedule.calls) + 1)
    live = max(sum(size for f, n, size in spans if f <= t <= n) for t in times)
    assert memory.live_bytes == live <= memory.arena_bytes


def test_other_orders_are_tried_where_the_order_of_use_wastes_memory() -> None:
    """A growing chain: each buffer is larger than the gap that the one before the last left."""
    chain = [Buffer(64 * 2**i) for i in range(8)] + [Buffer(64 * 2**i) for i in range(8)]
    calls = [KernelCall("k", (a, b)) for a, b in itertools.pairwise(chain)]
    schedule = Schedule([*calls, KernelCall("l", (chain[-1],))], [])
    memory = assign_memory(schedule)
    assert memory.live_bytes == 64 * (2**7 + 2**6)
    assert memory.arena_bytes == memory.live_bytes
    check_memory(schedule, memory, {"k": [1], "l": []})


ZOO = ("autoencoder", "mobilenet_v2", "unet", "vit_tiny", "gqa_decoder", "super_resolution", "tcn")
"""Those whose arenas came furthest from the bound, and usual ones."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_arenas_of_the_zoo_are_within_a_tenth_of_what_is_live(tmp_path: Path, name: str) -> None:
    model = zoo.load_tiny(name, "folded")
    options = LibraryOptions("net", threads="none")
    compile_library(model, parse_target("x86-64-v3"), tmp_path, options)
    said = json.loads((tmp_path / "net.json").read_text())
    assert said["live_bytes"] <= said["arena_bytes"] <= 1.1 * said["live_bytes"]
