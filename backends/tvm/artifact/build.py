"""From a schedule to a shared object: one object per kernel, the entry, constants, linking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.scratch import scratch_folder
from ....ir.tensor import Array
from ..cache import Cache
from ..plan.memory import assign_memory
from ..plan.memory_check import check_memory
from ..plan.schedule import Schedule
from ..targets import Target
from ..tensorir.types import PrimFunc
from .entry import source
from .objects import compile_functions, compile_runtime
from .symbols import LIBC, undefined
from .toolchain import compile_source, link_shared


def build_library(
    schedule: Schedule,
    functions: Mapping[str, PrimFunc],
    digests: Mapping[str, str],
    writes: Mapping[str, Sequence[int]],
    metadata: Mapping[str, Any],
    target: Target,
    cache: Cache,
    path: Path,
) -> int:
    """Compile and link the kernels that a schedule calls; how many came from the cache.

    `digests` are those of the functions' content, `writes` the arguments that each writes.
    Raises UnsupportedError where TVM can't compile a kernel, SecateurError where linking fails.
    """
    memory = assign_memory(schedule)
    check_memory(schedule, memory, writes)
    text = json.dumps({**metadata, "arena_bytes": memory.arena_bytes})
    with scratch_folder() as folder:
        objects = compile_functions(functions, digests, target, cache, folder)
        _write_constants(folder / "constants", memory.constants)
        (folder / "metadata").write_text(text, encoding="utf-8")
        entry = folder / "entry.c"
        entry.write_text(source(schedule, memory, "constants", "metadata"), encoding="utf-8")
        compile_source(target, entry, entry.with_suffix(".o"), freestanding=True)
        own = [entry.with_suffix(".o"), *compile_runtime(target, cache, folder)]
        link_shared(target, [*objects.paths, *own], path)
    check_symbols(path, target)
    return objects.reused


def check_symbols(path: Path, target: Target) -> None:
    """Raise UnsupportedError where a process that has but libc can't load the artifact."""
    foreign = sorted(undefined(path) - LIBC)
    if foreign:
        raise UnsupportedError(
            f"the artifact for {target.name} would need {', '.join(foreign)}, which libc lacks"
        )


def _write_constants(path: Path, constants: Sequence[tuple[int, Array]]) -> None:
    with path.open("wb") as file:
        for offset, array in constants:
            file.seek(offset)
            file.write(np.ascontiguousarray(array).data)
