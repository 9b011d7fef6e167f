"""A program that measures a C library on the device: static, with inputs and expected outputs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....ir.errors import SecateurError
from ....ir.tensor import Array
from ..cache import Cache
from ..plan.memory import ALIGNMENT
from ..targets import Target
from .interface import Interface, quoted
from .objects import NATIVE
from .toolchain import link_program

CALL_FIELDS = ("operation", "operator", "kernel", "dtype", "macs")
"""What the program prints of every call, from the metadata."""


@dataclasses.dataclass(frozen=True)
class BenchData:
    """Inputs of one run by name, what outputs are expected, and how far these may lie apart: the
    largest difference over the largest magnitude."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: float


@dataclasses.dataclass(frozen=True)
class BenchParts:
    """What a program is linked from besides its own sources."""

    entry: Path
    """The source of the entry, to be compiled so that its calls can be timed."""
    objects: Sequence[Path]
    sources: Sequence[str]
    """Names of the C sources of the runtime."""


def build_bench(
    parts: BenchParts,
    interface: Interface,
    calls: Sequence[Mapping[str, Any]],
    data: BenchData,
    weights: Path | None,
    target: Target,
    cache: Cache,
    path: Path,
) -> None:
    """Link the program `path` in the folder of the entry, which has the library's headers.

    `weights` is the file of weights that lie apart. Raises SecateurError where the data aren't
    those of the model, or linking fails.
    """
    folder = parts.entry.parent
    samples = _samples(interface, data)
    blob, inputs, outputs, after = _blob(interface, data, samples)
    with (folder / "bench_blob").open("wb") as file:
        file.write(blob)
        if weights is not None:
            with weights.open("rb") as source:
                shutil.copyfileobj(source, file)
    named = [", ".join(f'"{k}": {json.dumps(call[k])}' for k in CALL_FIELDS) for call in calls]
    (folder / "bench_data.c").write_text(
        _SOURCE.format(
            name=interface.name,
            inputs=", ".join(map(str, [*inputs, 0])),
            outputs=", ".join(map(str, [*outputs, 0])),
            weights=after,
            samples=samples,
            dimensions=", ".join(
                str(size) for t in interface.inputs for size in data.inputs[t.name].shape
            )
            or "0",
            output_bytes=", ".join(str(data.outputs[t.name].nbytes) for t in interface.outputs)
            or "0",
            tolerance=repr(data.tolerance),
            calls=",\n    ".join([*map(quoted, named), "0"]),
            count=len(named),
        ),
        encoding="utf-8",
    )
    profiled = folder / "secateur_profiled.c"
    profiled.write_text("#define SECATEUR_PROFILE\n" + parts.entry.read_text("utf-8"), "utf-8")
    for name in ("bench.c", *parts.sources):
        shutil.copy(NATIVE / name, folder)
    sources = ["bench.c", "bench_data.c", profiled.name, *parts.sources]
    link_program(target, folder, sources, parts.objects, path, cache.folder)


def _samples(interface: Interface, data: BenchData) -> int:
    sizes = {len(data.inputs[t.name]) for t in interface.inputs if t.is_batch}
    if len(sizes) > 1:
        raise SecateurError("the inputs to measure with have different numbers of samples")
    return sizes.pop() if sizes else 1


def _blob(
    interface: Interface, data: BenchData, samples: int
) -> tuple[bytes, list[int], list[int], int]:
    """All tensors, where each begins, and where there is room for more."""
    content = bytearray()
    starts = []
    both = [(data.inputs, t) for t in interface.inputs] + [
        (data.outputs, t) for t in interface.outputs
    ]
    for arrays, tensor in both:
        array = np.ascontiguousarray(arrays[tensor.name])
        wanted = [samples, *tensor.dimensions[1:]] if tensor.is_batch else tensor.dimensions
        if not _fits(array.shape, wanted):
            raise SecateurError(f"'{tensor.name}': {array.shape} is another size than the model's")
        starts.append(len(content))
        content += array.tobytes()
        content += bytes(-len(content) % ALIGNMENT)
    count = len(interface.inputs)
    return bytes(content), starts[:count], starts[count:], len(content)


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether sizes are those wanted, of which -1 may be any."""
    return len(shape) == len(wanted) and all(
        want in (-1, size) for size, want in zip(shape, wanted, strict=True)
    )


_SOURCE = """\
#include "bench.h"
#include "secateur_model.h"

__asm__(
    ".section .rodata\\n"
    ".balign 64\\n"
    ".globl bench_data\\n"
    "bench_data:\\n"
    ".incbin \\"bench_blob\\"\\n"
    ".byte 0\\n"
    ".text\\n");

const secateur_model *const bench_model = &{name}_model;
const size_t bench_inputs[] = {{{inputs}}};
const size_t bench_outputs[] = {{{outputs}}};
const size_t bench_weights = {weights}u;
const int64_t bench_samples = {samples};
const int64_t bench_dimensions[] = {{{dimensions}}};
const size_t bench_output_bytes[] = {{{output_bytes}}};
const double bench_tolerance = {tolerance};
const char *const bench_calls[] = {{
    {calls}}};
const size_t bench_call_count = {count}u;
"""
