"""A C library of a model: headers, static and shared library, description, pkg-config file.

    NAME.h NAME.hpp NAME.py libNAME.a libNAME.so NAME.json NAME.pc
    [NAME.weights | NAME.weights.packed]

The library takes memory from its caller only, and keeps nothing from run to run, but for threads
of its own where it has some.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....ir.display import printable
from ....ir.errors import UnsupportedError
from ....ir.files import hash_file
from ....ir.scratch import scratch_folder
from ....ir.tensor import Array
from ..cache import Cache
from ..faults import refusal
from ..plan.memory import ConstantPool, OpenMemory, assign_open_memory
from ..targets import Target
from .bench import BenchData, BenchParts, build_bench
from .bindings import cpp_header, python_module
from .build import Kernels, link_checked, write_constants
from .entry import scratch_bytes, shares_loops
from .interface import CTensor, Interface, description, header, of_metadata
from .levels import joined_metadata
from .library_entry import (
    HEADER_BYTES,
    MOST_THREADS,
    LibraryLevel,
    library_source,
    most_arena_bytes,
)
from .objects import NATIVE, Objects, compile_functions, compile_runtime, lacking_in_libc
from .options import LibraryOptions
from .packing import pack
from .size_code import largest_arena, sizes_of_run
from .toolchain import archive, compile_source


def _describe(level: LibraryLevel) -> dict[str, Any]:
    """What `NAME.json` says of a level."""
    memory, sizes = level.memory, level.sizes
    if isinstance(memory, OpenMemory):
        assert sizes is not None
        checks = [dataclasses.asdict(check) for check in sizes.checks]
        said: dict[str, Any] = {"arena_bytes": largest_arena(memory), "size_checks": checks}
        said |= {"data_sizes": True} if sizes.shapes.reads else {}
    else:
        said = {"arena_bytes": memory.arena_bytes, "live_bytes": memory.live_bytes}
    return {**level.kernels.metadata, **said, "scratch_bytes": scratch_bytes(level.signatures)}


def build_c_library(
    kernels: Sequence[Kernels],
    target: Target,
    cache: Cache,
    folder: Path,
    options: LibraryOptions,
    bench: BenchData | None = None,
) -> int:
    """Write the library's files into `folder`; how many kernels came from the cache.

    `kernels` are those of each of the target's levels. With `bench` also a program that measures
    it, with these inputs.

    Raises UnsupportedError where TVM can't compile a kernel, SecateurError where linking fails.
    """
    if bench is not None and len(kernels) > 1:
        raise UnsupportedError("a program that measures is for one target: leave out --bench")
    if kernels[0].schedule.open is not None and len(kernels) > 1:
        raise UnsupportedError(
            "a C library whose sizes a run fixes is for one target: name one, or --input-shape "
            "fixes the sizes of inputs"
        )
    constants = ConstantPool()
    with scratch_folder() as work:
        levels: list[LibraryLevel] = []
        for each, level in zip(kernels, target.levels, strict=True):
            done = sum(len(known.objects.paths) for known in levels)
            objects = compile_functions(each.functions, each.digests, level, cache, work, done)
            levels.append(_placed(each, constants, objects))
        write_constants(work / "constants", constants.placed)
        interface = _interface(levels, constants.nbytes, options, target, work)
        # No file here is named after the model, whose name may be any other's.
        entry, texts = work / "secateur_entry.c", work / "secateur_description.c"
        (work / "secateur_model.h").write_text(header(interface), encoding="utf-8")
        _check_address_space(interface, target)
        entry.write_text(library_source(levels, interface, target, options), encoding="utf-8")
        texts.write_text(description(interface), encoding="utf-8")
        for source in NATIVE.glob("*.h"):
            shutil.copy(source, work)
        own = []
        calls = sum(len(level.kernels.schedule.calls) for level in levels)
        for source in (entry, texts):
            own.append(source.with_suffix(".o"))
            compile_source(target, source, own[-1], calls=calls)
        shares = any(shares_loops(level.signatures) for level in levels)
        sources = ["unpack.c"] * options.weights_packed
        sources += ["pool.c"] * (shares and options.threads != "none")
        sources += ["threads.c"] * (shares and options.threads == "own")
        runtime = compile_runtime(target.levels[-1], cache, work, sources)
        made = [file for level in levels for file in level.objects.paths]
        members = [*own, *runtime, *made]
        lacking = compile_runtime(target, cache, work, lacking_in_libc(target))
        archive(target, members, folder / options.archive)
        if options.shared:
            shared = folder / f"lib{options.name}.so"
            link_checked(target, [*members, *lacking], shared, shared.name)
        shutil.copy(work / "secateur_model.h", folder / f"{options.name}.h")
        weights = work / "weights" if options.has_weights_apart else None
        if weights is not None:
            _write_weights(weights, interface, work / "constants")
            if options.weights_packed:
                packed = pack(weights.read_bytes(), _arrays_of_weights(constants))
                (folder / f"{options.name}.weights.packed").write_bytes(packed)
            else:
                shutil.copy(weights, folder / f"{options.name}.weights")
        if bench is not None:
            parts = BenchParts(entry, [own[1], *made], sources)
            described, path = kernels[0].metadata["calls"], folder / f"{options.name}_bench"
            build_bench(parts, interface, described, bench, weights, target, cache, path)
    fields = {**_metadata(levels, target), **_description_of(interface)}
    text = json.dumps(fields, indent=1)
    texts_of = {
        "json": text + "\n",
        "pc": _pkg_config(interface, shares),
        "hpp": cpp_header(interface),
    }
    if options.shared:
        texts_of["py"] = python_module(interface)
    for ending, content in texts_of.items():
        (folder / f"{options.name}.{ending}").write_text(content, encoding="utf-8")
    return sum(level.objects.reused for level in levels)


def _placed(kernels: Kernels, constants: ConstantPool, objects: Objects) -> LibraryLevel:
    """A level with its memory, and how a run computes sizes if only that fixes them."""
    if kernels.schedule.open is None:
        return LibraryLevel(kernels, kernels.assign_memory(constants), objects)
    memory = assign_open_memory(kernels.schedule, constants)
    return LibraryLevel(kernels, memory, objects, sizes_of_run(kernels.schedule, memory))


def _metadata(levels: Sequence[LibraryLevel], target: Target) -> dict[str, Any]:
    """What `NAME.json` says besides what its interface is."""
    each = [_describe(level) for level in levels]
    return joined_metadata(target, each) if len(each) > 1 else each[0]


def _interface(
    levels: Sequence[LibraryLevel],
    constant_bytes: int,
    options: LibraryOptions,
    target: Target,
    work: Path,
) -> Interface:
    metadata = levels[0].kernels.metadata
    scratch = max(scratch_bytes(level.signatures) for level in levels)
    digest = hashlib.sha256()
    hash_file(digest, work / "constants")
    parts: list[object] = []
    for level in levels:
        parts += [dict(level.kernels.metadata), dict(level.kernels.digests)]
    parts += [options.name, options.threads, options.labels, options.has_weights_apart]
    sizes, texts, arena = levels[0].sizes, None, most_arena_bytes(levels)
    if sizes is not None:
        inputs = metadata["inputs"]
        names = [None if c.input is None else inputs[c.input]["name"] for c in sizes.checks]
        texts = tuple(
            printable(refusal(check.text, name, check.axis))
            for check, name in zip(sizes.checks, names, strict=True)
        )
        parts.append(texts)
    digest.update(json.dumps(parts, sort_keys=True).encode())
    apart = HEADER_BYTES + constant_bytes if options.has_weights_apart else 0
    return Interface(
        options.name,
        target.name,
        tuple(level.name for level in target.variants),
        digest.hexdigest(),
        of_metadata(metadata, "inputs"),
        of_metadata(metadata, "outputs"),
        options.labels,
        None if arena is None else HEADER_BYTES + arena + scratch,
        scratch,
        apart,
        options.threads == "own",
        texts,
        options.weights_packed,
        bool(sizes is not None and sizes.shapes.reads),
    )


_ADDRESSED = 2**31
"""Bytes that one block of memory may have where addresses have 32 bits."""


def _check_address_space(interface: Interface, target: Target) -> None:
    """Raise UnsupportedError where sizes don't fit into a 32-bit machine's."""
    if target.machine != "armv7l":
        return
    sizes = {
        "workspace": (interface.workspace_bytes or 0)
        + (MOST_THREADS - 1) * interface.scratch_bytes,
        "weights": interface.weights_bytes,
        **{f"tensor '{t.name}'": t.nbytes for t in (*interface.inputs, *interface.outputs)},
    }
    for what, size in sizes.items():
        if size >= _ADDRESSED:
            raise UnsupportedError(f"{what}: {size:,} bytes are too many for {target.name}")


def _write_weights(path: Path, interface: Interface, constants: Path) -> None:
    """The digest, which the library compares, and the constants."""
    with path.open("wb") as file, constants.open("rb") as source:
        file.write(bytes.fromhex(interface.digest).ljust(HEADER_BYTES, b"\0"))
        shutil.copyfileobj(source, file)
        file.truncate(interface.weights_bytes)


def _arrays_of_weights(constants: ConstantPool) -> list[tuple[int, Array]]:
    """The arrays of a file of weights, with the places where they lie."""
    return [(HEADER_BYTES + offset, array) for offset, array in constants.placed]


def _description_of(interface: Interface) -> dict[str, Any]:
    def tensor(t: CTensor) -> dict[str, Any]:
        known = {key: value for key, value in dataclasses.asdict(t).items() if value is not None}
        return {**known, "bytes": t.nbytes}

    return {
        "name": interface.name,
        "digest": interface.digest,
        "inputs": [tensor(t) for t in interface.inputs],
        "outputs": [tensor(t) for t in interface.outputs],
        "labels": list(interface.labels),
        "workspace_bytes": interface.workspace_bytes,
        "weights_bytes": interface.weights_bytes,
    }


def _pkg_config(interface: Interface, shares: bool) -> str:
    libraries = "-lm -pthread" if interface.has_threads and shares else "-lm"
    name = interface.name
    return (
        "prefix=${pcfiledir}\n\n"
        f"Name: {name}\n"
        f"Description: A neural network compiled for {interface.target}\n"
        f"Version: {interface.digest[:12]}\n"
        f"Libs: -L${{prefix}} -l{name}\n"
        f"Libs.private: {libraries}\n"
        "Cflags: -I${prefix}\n"
    )
