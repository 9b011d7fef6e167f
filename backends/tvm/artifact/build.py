"""From a schedule to a shared object: one object per kernel, the entry, constants, linking."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....ir.errors import SecateurError, UnsupportedError
from ....ir.scratch import scratch_folder
from ....ir.tensor import Array
from ..cache import Cache
from ..plan.memory import ConstantPool, Memory, assign_memory, assign_open_memory
from ..plan.memory_check import check_memory
from ..plan.schedule import Schedule
from ..targets import Target
from ..tensorir.types import PrimFunc
from .entry import scratch_bytes, shares_loops, source
from .levels import dispatch_source, joined_metadata
from .objects import NATIVE, Objects, compile_functions, compile_runtime, lacking_in_libc
from .open_entry import open_source
from .size_code import largest_arena, sizes_of_run
from .symbols import LIBC, libraries, undefined
from .toolchain import compile_source, link_shared


@dataclasses.dataclass(frozen=True)
class Kernels:
    """What an artifact is built from: a schedule and the kernels that it calls, by name.

    `digests` are those of the functions' content, `writes` the arguments that each writes, and
    `metadata` what the artifact says of itself.
    """

    schedule: Schedule
    functions: Mapping[str, PrimFunc]
    digests: Mapping[str, str]
    writes: Mapping[str, Sequence[int]]
    metadata: Mapping[str, Any]

    def assign_memory(self, constants: ConstantPool | None = None) -> Memory:
        """Places of all buffers, checked; `constants` may hold those of other kernels already."""
        memory = assign_memory(self.schedule, constants)
        check_memory(self.schedule, memory, self.writes)
        return memory

    def most_arena_bytes(self) -> int | None:
        """Bytes of the arena, for the largest sizes where only a run fixes them; None where these
        have no bound."""
        if self.schedule.open is None:
            return self.assign_memory().arena_bytes
        return largest_arena(assign_open_memory(self.schedule))


def build_library(levels: Sequence[Kernels], target: Target, cache: Cache, path: Path) -> int:
    """Compile and link the kernels of each of the target's levels into a shared object; how many
    came from the cache.

    Raises UnsupportedError where TVM can't compile a kernel, SecateurError where linking fails.
    """
    if not target.links:
        raise SecateurError(
            f"no shared object can be linked for {target.name} here: --format library makes a "
            "static library"
        )
    constants = ConstantPool()
    with scratch_folder() as folder:
        for source_file in NATIVE.glob("*.h"):
            shutil.copy(source_file, folder)
        several = len(levels) > 1
        built: list[_BuiltLevel] = []
        for index, (kernels, level) in enumerate(zip(levels, target.levels, strict=True)):
            done = sum(len(known.objects.paths) for known in built)
            number = index if several else None
            built.append(_build_level(kernels, level, constants, cache, folder, done, number))
        metadata = [level.metadata for level in built]
        text = json.dumps(joined_metadata(target, metadata) if several else metadata[0])
        (folder / "metadata").write_text(text, encoding="utf-8")
        write_constants(folder / "constants", constants.placed)
        entries = [level.entry for level in built]
        if several:
            entries.append(folder / "dispatch.c")
            shapes = levels[0].schedule.open
            is_decided = shapes is not None and bool(shapes.reads)
            text = dispatch_source(target.levels, shapes is not None, is_decided)
            entries[-1].write_text(text, encoding="utf-8")
        for entry in entries:
            calls = max(len(kernels.schedule.calls) for kernels in levels)
            compile_source(target, entry, entry.with_suffix(".o"), freestanding=True, calls=calls)
        shares = any(shares_loops(level.objects.signatures) for level in built)
        sources = ["threads.c"] * shares + lacking_in_libc(target)
        runtime = compile_runtime(target.levels[-1], cache, folder, sources)
        kernel_objects = [file for level in built for file in level.objects.paths]
        own = [*(entry.with_suffix(".o") for entry in entries), *runtime]
        link_checked(target, [*kernel_objects, *own], path)
    return sum(level.objects.reused for level in built)


@dataclasses.dataclass(frozen=True)
class _BuiltLevel:
    """What an artifact has of one level: objects, the entry's source and what it says of itself."""

    objects: Objects
    entry: Path
    metadata: Mapping[str, Any]


def _build_level(
    kernels: Kernels,
    target: Target,
    constants: ConstantPool,
    cache: Cache,
    folder: Path,
    done: int,
    level: int | None,
) -> _BuiltLevel:
    """Compile one level's kernels, where so many objects are done already; `level` is its number
    if there are several."""
    objects = compile_functions(kernels.functions, kernels.digests, target, cache, folder, done)
    schedule, signatures = kernels.schedule, objects.signatures
    scratch = scratch_bytes(signatures)
    if schedule.open is None:
        memory = kernels.assign_memory(constants)
        more: dict[str, Any] = {"arena_bytes": memory.arena_bytes + scratch}
        text = source(schedule, memory, signatures, level)
    else:
        placed = assign_open_memory(schedule, constants)
        sizes = sizes_of_run(schedule, placed)
        largest = largest_arena(placed)
        more = {
            "arena_bytes": None if largest is None else largest + scratch,
            "size_checks": [dataclasses.asdict(check) for check in sizes.checks],
            **({"data_sizes": True} if schedule.open.reads else {}),
        }
        text = open_source(schedule, placed, signatures, sizes, level)
    entry = folder / ("entry.c" if level is None else f"entry_{level}.c")
    entry.write_text(text, encoding="utf-8")
    return _BuiltLevel(objects, entry, {**kernels.metadata, **more, "scratch_bytes": scratch})


def link_checked(
    target: Target, objects: Sequence[Path], path: Path, name: str | None = None
) -> None:
    """Link a shared object that names the libraries which it needs.

    Raises UnsupportedError where libc and libm don't suffice, SecateurError where linking fails.
    """
    link_shared(target, objects, path, name=name, libraries=libraries(target))
    check_symbols(path, target)


def check_symbols(path: Path, target: Target) -> None:
    """Raise UnsupportedError where a process that has but libc can't load the artifact."""
    foreign = sorted(undefined(path) - LIBC)
    if foreign:
        raise UnsupportedError(
            f"the artifact for {target.name} would need {', '.join(foreign)}, which libc lacks"
        )


def write_constants(path: Path, constants: Sequence[tuple[int, Array]]) -> None:
    """A file of the constants, each at its offset."""
    with path.open("wb") as file:
        for offset, array in constants:
            file.seek(offset)
            file.write(np.ascontiguousarray(array).data)
