"""Compiling one file, as it is, and the targets that there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.tvm.targets import Target, can_run_here, parse_target, targets

if TYPE_CHECKING:
    from ..data.fixed_inputs import FixedInputs
    from .optimize import Progress

ARTIFACT = "model.so"


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What was compiled: the file, whether this machine runs it, and the compiler's report."""

    target: str
    file: Path
    file_bytes: int
    runs_here: bool
    compiler: dict[str, Any]


def known_targets() -> list[Target]:
    """All targets, those of installed packages included."""
    return list(targets().values())


def compile_file(
    source: Path,
    folder: Path,
    target: str,
    progress: Progress,
    *,
    fixed: FixedInputs | None = None,
    cache: Path | bool = True,
    tune: float = 0.0,
    fallback: bool = False,
    declared_sizes: bool = False,
    dump_plan: Path | None = None,
) -> Compilation:
    """Compile the model in `source` into `folder`, which changes whole or not at all."""
    from ..checking.running import open_model
    from .output import output_folder

    machine = parse_target(target)
    with output_folder(folder, (ARTIFACT,)) as written:
        progress.begin("import")
        model = open_model(source, fixed)
        progress.end()
        progress.begin("compile")
        from ..backends.tvm.cache import Cache
        from ..backends.tvm.compile import compile_model  # imports TVM

        built = compile_model(
            model,
            machine,
            written / ARTIFACT,
            cache=Cache.open(cache),
            tune_minutes=tune,
            fallback=fallback,
            declared_sizes=declared_sizes,
            dump_plan=dump_plan,
        )
        size = (written / ARTIFACT).stat().st_size
        progress.end()
    report = dataclasses.asdict(built)
    return Compilation(machine.name, folder / ARTIFACT, size, can_run_here(machine), report)
