"""From a schedule to a shared object: one object per kernel, the entry, constants, linking."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.scratch import scratch_folder
from ....ir.tensor import Array
from ..cache import Cache
from ..plan.memory import Memory, assign_memory, assign_open_memory
from ..plan.memory_check import check_memory
from ..plan.schedule import Schedule
from ..targets import Target
from ..tensorir.types import PrimFunc
from .entry import scratch_bytes, shares_loops, source
from .objects import NATIVE, compile_functions, compile_runtime, lacking_in_libc
from .open_entry import open_source, sizes_of_run
from .symbols import LIBC, LIBRARIES, undefined
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

    def assign_memory(self) -> Memory:
        """Places of all buffers, checked."""
        memory = assign_memory(self.schedule)
        check_memory(self.schedule, memory, self.writes)
        return memory


def build_library(kernels: Kernels, target: Target, cache: Cache, path: Path) -> int:
    """Compile and link kernels into a shared object; how many came from the cache.

    Raises UnsupportedError where TVM can't compile a kernel, SecateurError where linking fails.
    """
    schedule = kernels.schedule
    with scratch_folder() as folder:
        objects = compile_functions(kernels.functions, kernels.digests, target, cache, folder)
        signatures = objects.signatures
        scratch = scratch_bytes(signatures)
        if schedule.open is None:
            memory = kernels.assign_memory()
            constants = memory.constants
            more: dict[str, Any] = {"arena_bytes": memory.arena_bytes + scratch}
            text = source(schedule, memory, signatures, "constants", "metadata")
        else:
            placed = assign_open_memory(schedule)
            constants = placed.constants
            sizes = sizes_of_run(schedule, placed)
            more = {"size_checks": [dataclasses.asdict(check) for check in sizes.checks]}
            text = open_source(schedule, placed, signatures, sizes, "constants", "metadata")
            shutil.copy(NATIVE / "sizes.h", folder)
        metadata = json.dumps({**kernels.metadata, **more, "scratch_bytes": scratch})
        write_constants(folder / "constants", constants)
        (folder / "metadata").write_text(metadata, encoding="utf-8")
        entry = folder / "entry.c"
        entry.write_text(text, encoding="utf-8")
        shutil.copy(NATIVE / "context.h", folder)
        calls = len(kernels.schedule.calls)
        compile_source(target, entry, entry.with_suffix(".o"), freestanding=True, calls=calls)
        sources = ["threads.c"] * shares_loops(signatures) + lacking_in_libc(target)
        runtime = compile_runtime(target, cache, folder, sources)
        own = [entry.with_suffix(".o"), *runtime]
        link_checked(target, [*objects.paths, *own], path)
    return objects.reused


def link_checked(
    target: Target, objects: Sequence[Path], path: Path, name: str | None = None
) -> None:
    """Link a shared object that names the libraries which it needs.

    Raises UnsupportedError where libc and libm don't suffice, SecateurError where linking fails.
    """
    link_shared(target, objects, path, name=name, libraries=LIBRARIES)
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
