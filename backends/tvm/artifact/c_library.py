"""A C library of a model: headers, static and shared library, description, pkg-config file.

    NAME.h NAME.hpp NAME.py libNAME.a libNAME.so NAME.json NAME.pc [NAME.weights]

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

from ....ir.errors import UnsupportedError
from ....ir.scratch import scratch_folder
from ..cache import Cache
from ..faults import CALL_SHIFT
from ..plan.memory import ALIGNMENT, ConstantPool, Memory
from ..targets import Target
from .bench import BenchData, BenchParts, build_bench
from .bindings import cpp_header, python_module
from .build import Kernels, link_checked, write_constants
from .cpu_features import cpu_levels
from .entry import SHARE_ALONE, declarations, run_steps, scratch_bytes, shares_loops
from .interface import CTensor, Interface, description, expected, header, of_metadata
from .levels import joined_metadata
from .objects import NATIVE, Objects, compile_functions, compile_runtime, lacking_in_libc
from .options import LibraryOptions
from .toolchain import archive, compile_source

MOST_THREADS = 256
"""Of a call; `native/threads.c` and the header have the number, too."""

_BLOCK = 1 << 20
"""Bytes of weights that are read at a time."""

_HEADER_BYTES = 64
"""Bytes at the beginning of a workspace, and of a file of weights, that say what it is."""

_SOURCE = """\
#include <stddef.h>
#include <stdint.h>

#include "secateur_model.h"
#include "context.h"
#include "call.h"

{features}

#define STEP(i, call) \\
    if (call != 0) return fault | i << {shift};

#define SECATEUR_CALL_SHIFT {shift}
#ifdef SECATEUR_PROFILE
#include "profile.h"
#endif

{weights}
{alone}
{declarations}

static const unsigned char digest[32] = {{{digest}}};
static const int64_t dimensions[] = {{{dimensions}}};
static const Expected inputs_expected[] = {{{inputs}}};
static const Expected outputs_expected[] = {{{outputs}}};

{samples}

static size_t threads_of(const secateur_call *call) {{
    size_t threads = 1;
    if (call == NULL) return 1;
    if (call->pool != NULL) threads = {pools} ? call->pool->threads : 1;
    else if ({own}) threads = call->threads;
    return threads < 1 ? 1 : threads > {most_threads} ? {most_threads} : threads;
}}

size_t {name}_workspace_bytes(const secateur_call *call) {{
    return {workspace}u + (threads_of(call) - 1) * {scratch}u;
}}

/* Whether the workspace has the mark that a run of this library leaves. */
static int is_marked(const unsigned char *workspace) {{
    for (int i = 0; i < 32; i++) {{
        if (workspace[i] != digest[i]) return 0;
    }}
    return 1;
}}

int {name}_run(const secateur_call *call) {{
    if (call == NULL || call->version != SECATEUR_INTERFACE ||
        call->input_count != {input_count} || call->output_count != {output_count} ||
        (call->inputs == NULL && {input_count} > 0) ||
        (call->outputs == NULL && {output_count} > 0)) {{
        return SECATEUR_BAD_CALL;
    }}
    if (call->pool != NULL && (call->pool->threads < 1 || call->pool->threads > {most_threads} ||
                               call->pool->run == NULL)) {{
        return SECATEUR_BAD_POOL;
    }}
    int64_t samples = -1;
    int status = secateur_check_inputs(
        call->inputs, inputs_expected, dimensions, {input_count}, &samples);
    if (samples < 0) samples = 1;
    if (status == 0 && samples == 0 && {shared_outputs}) status = SECATEUR_BAD_INPUT;
    if (status == 0) {{
        status = secateur_check_outputs(call->outputs, outputs_expected, {output_count}, samples);
    }}
    if (status != 0) return status;
    unsigned char *workspace = call->workspace;
    if (workspace == NULL || !secateur_is_aligned(workspace, {alignment}) ||
        call->workspace_bytes < {name}_workspace_bytes(call)) {{
        return SECATEUR_BAD_WORKSPACE;
    }}
{find_weights}
    if (!is_marked(workspace)) {{
        int level = secateur_choose(secateur_levels, {levels});
        if (level < 0) return SECATEUR_BAD_CPU;
        for (int i = 0; i < 32; i++) workspace[i] = digest[i];
        workspace[32] = (unsigned char)level;
    }}
    unsigned char *memory = workspace + {header_bytes};
    int misuse = 0;
    const secateur_context context = {{
        {share}, (int)threads_of(call), memory + {arena}, {scratch}, call->pool, &misuse}};
    /* Samples without elements are all alike. */
    int64_t rounds = {no_elements} && samples > 1 ? 1 : samples;
    void *ins[{input_room}], *outs[{output_room}];
    for (int64_t sample = 0; sample < rounds; sample++) {{
        for (int i = 0; i < {input_count}; i++) {{
            const Expected *e = &inputs_expected[i];
            size_t at = e->is_batch ? (size_t)sample * e->bytes : 0;
            ins[i] = (unsigned char *)call->inputs[i].data + at;
        }}
        for (int i = 0; i < {output_count}; i++) {{
            const Expected *e = &outputs_expected[i];
            size_t at = e->is_batch ? (size_t)sample * e->bytes : 0;
            outs[i] = (unsigned char *)call->outputs[i].data + at;
        }}
        status = {run};
        if (status == 0) status = misuse;
        if (status != 0) return status;
    }}
    secateur_write_dimensions(call->outputs, outputs_expected, dimensions, {output_count}, samples);
    return 0;
}}
"""

_SAMPLE = """\
static int run_sample_{level}(
    void *const *inputs, void *const *outputs, unsigned char *constants, unsigned char *memory,
    const secateur_context *shared
) {{
    const secateur_context context = *shared;
    unsigned char *const scratch = context.scratch;
    int fault = 0;
    (void)inputs, (void)outputs, (void)constants, (void)memory, (void)scratch, (void)fault;
{steps}
{copies}
    return 0;
}}
"""
"""A run of one sample by the code of one level."""

_RUN = "run_sample_{level}(ins, outs, (unsigned char *)constants, memory, &context)"

_LEVEL = """\

int {name}_level(void) {{
    return secateur_choose(secateur_levels, {levels});
}}
"""

_OWN_WEIGHTS = """\
#ifdef __APPLE__
#define DATA ".section __TEXT,__const\\n"
#define HIDE ".private_extern "
#define SYMBOL "_{name}_constants"
#else
#define DATA ".section .rodata\\n"
#define HIDE ".hidden "
#define SYMBOL "{name}_constants"
#endif
__asm__(
    DATA
    ".balign 64\\n"
    HIDE SYMBOL "\\n"
    ".globl " SYMBOL "\\n"
    SYMBOL ":\\n"
    ".incbin \\"constants\\"\\n"
    ".text\\n");
extern HIDDEN const unsigned char {name}_constants[];
"""

_FIND_OWN = """\
    const unsigned char *constants = {name}_constants;
"""

_FIND_GIVEN = """\
    const unsigned char *constants = call->weights;
    if (constants == NULL || !secateur_is_aligned(constants, {alignment}) ||
        call->weights_bytes < {bytes}u || !is_marked(constants)) {{
        return SECATEUR_BAD_WEIGHTS;
    }}
    constants += {header_bytes};
"""


@dataclasses.dataclass(frozen=True)
class _LibraryLevel:
    """The compiled kernels of one level, and where its buffers lie."""

    kernels: Kernels
    memory: Memory
    objects: Objects

    def description(self) -> dict[str, Any]:
        """What `NAME.json` says of it."""
        sizes = {
            "arena_bytes": self.memory.arena_bytes,
            "live_bytes": self.memory.live_bytes,
            "scratch_bytes": scratch_bytes(self.objects.signatures),
        }
        return {**self.kernels.metadata, **sizes}


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
    constants = ConstantPool()
    with scratch_folder() as work:
        levels: list[_LibraryLevel] = []
        for each, level in zip(kernels, target.levels, strict=True):
            done = sum(len(known.objects.paths) for known in levels)
            objects = compile_functions(each.functions, each.digests, level, cache, work, done)
            levels.append(_LibraryLevel(each, each.assign_memory(constants), objects))
        write_constants(work / "constants", constants.placed)
        interface = _interface(levels, constants.nbytes, options, target, work)
        # No file here is named after the model, whose name may be any other's.
        entry, texts = work / "secateur_entry.c", work / "secateur_description.c"
        (work / "secateur_model.h").write_text(header(interface), encoding="utf-8")
        _check_address_space(interface, target)
        entry.write_text(_entry(levels, interface, target, options), encoding="utf-8")
        texts.write_text(description(interface), encoding="utf-8")
        for source in NATIVE.glob("*.h"):
            shutil.copy(source, work)
        own = []
        calls = sum(len(level.kernels.schedule.calls) for level in levels)
        for source in (entry, texts):
            own.append(source.with_suffix(".o"))
            compile_source(target, source, own[-1], calls=calls)
        shares = any(shares_loops(level.objects.signatures) for level in levels)
        sources = ["pool.c"] * (shares and options.threads != "none")
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
        weights = folder / f"{options.name}.weights" if options.weights_apart else None
        if weights is not None:
            _write_weights(weights, interface, work / "constants")
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


def _metadata(levels: Sequence[_LibraryLevel], target: Target) -> dict[str, Any]:
    """What `NAME.json` says besides what its interface is."""
    each = [level.description() for level in levels]
    return joined_metadata(target, each) if len(each) > 1 else each[0]


def _interface(
    levels: Sequence[_LibraryLevel],
    constant_bytes: int,
    options: LibraryOptions,
    target: Target,
    work: Path,
) -> Interface:
    metadata = levels[0].kernels.metadata
    scratch = max(scratch_bytes(level.objects.signatures) for level in levels)
    digest = hashlib.sha256()
    with (work / "constants").open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    parts: list[Any] = []
    for level in levels:
        parts += [dict(level.kernels.metadata), dict(level.kernels.digests)]
    parts += [options.name, options.threads, options.labels, options.weights_apart]
    digest.update(json.dumps(parts, sort_keys=True).encode())
    apart = _HEADER_BYTES + constant_bytes if options.weights_apart else 0
    return Interface(
        options.name,
        target.name,
        tuple(level.name for level in target.variants),
        digest.hexdigest(),
        tuple(of_metadata(entry) for entry in metadata["inputs"]),
        tuple(of_metadata(entry) for entry in metadata["outputs"]),
        options.labels,
        _HEADER_BYTES + _arena_bytes(levels) + scratch,
        scratch,
        apart,
        options.threads == "own",
    )


def _arena_bytes(levels: Sequence[_LibraryLevel]) -> int:
    """Bytes of the arena, whichever level is run."""
    return max(level.memory.arena_bytes for level in levels)


def _entry(
    levels: Sequence[_LibraryLevel], interface: Interface, target: Target, options: LibraryOptions
) -> str:
    name = interface.name
    signatures = {k: s for level in levels for k, s in level.objects.signatures.items()}
    shares = shares_loops(signatures)
    inputs, sizes = expected(interface.inputs, 0)
    outputs, more = expected(interface.outputs, len(sizes))
    numbers = {"name": name, "header_bytes": _HEADER_BYTES, "alignment": ALIGNMENT}
    tensors = (*interface.inputs, *interface.outputs)
    find = _FIND_GIVEN if options.weights_apart else _FIND_OWN
    text = _SOURCE.format(
        **numbers,
        features=cpu_levels(target.levels),
        levels=len(levels),
        shift=CALL_SHIFT,
        most_threads=MOST_THREADS,
        weights="" if options.weights_apart else _OWN_WEIGHTS.format(name=name),
        find_weights=find.format(**numbers, bytes=interface.weights_bytes),
        declarations=declarations(signatures),
        digest=", ".join(str(byte) for byte in bytes.fromhex(interface.digest)),
        dimensions=", ".join(map(str, [*sizes, *more, 0])),
        inputs=", ".join([*inputs, "{0}"]),
        outputs=", ".join([*outputs, "{0}"]),
        samples="\n".join(_sample(index, level) for index, level in enumerate(levels)),
        run=_run(len(levels)),
        alone=SHARE_ALONE if shares else "",
        share=_sharing(options.threads) if shares else "NULL",
        pools=int(options.threads != "none"),
        shared_outputs=int(any(not t.is_batch for t in interface.outputs)),
        no_elements=int(all(t.nbytes == 0 for t in tensors if t.is_batch)),
        own=int(interface.has_threads),
        workspace=interface.workspace_bytes,
        scratch=interface.scratch_bytes,
        arena=_arena_bytes(levels),
        input_count=len(interface.inputs),
        output_count=len(interface.outputs),
        input_room=max(1, len(interface.inputs)),
        output_room=max(1, len(interface.outputs)),
    )
    return text + (_LEVEL.format(name=name, levels=len(levels)) if interface.levels else "")


def _sample(index: int, level: _LibraryLevel) -> str:
    """The function that runs one sample by a level's kernels."""
    schedule, signatures = level.kernels.schedule, level.objects.signatures
    steps, copies = run_steps(schedule, level.memory, signatures)
    return _SAMPLE.format(level=index, steps=steps, copies=copies)


def _run(levels: int) -> str:
    """The status of a sample that the workspace's level runs."""
    calls = [_RUN.format(level=level) for level in range(levels)]
    if levels == 1:
        return calls[0]
    chosen = [f"workspace[32] == {level} ? {call}" for level, call in enumerate(calls)]
    return "\n            : ".join([*chosen, "SECATEUR_BAD_CPU"])


_ADDRESSED = 2**31
"""Bytes that one block of memory may have where addresses have 32 bits."""


def _check_address_space(interface: Interface, target: Target) -> None:
    """Raise UnsupportedError where sizes don't fit into a 32-bit machine's."""
    if target.machine != "armv7l":
        return
    sizes = {
        "workspace": interface.workspace_bytes + (MOST_THREADS - 1) * interface.scratch_bytes,
        "weights": interface.weights_bytes,
        **{f"tensor '{t.name}'": t.nbytes for t in (*interface.inputs, *interface.outputs)},
    }
    for what, size in sizes.items():
        if size >= _ADDRESSED:
            raise UnsupportedError(f"{what}: {size:,} bytes are too many for {target.name}")


def _sharing(threads: str) -> str:
    """The function that shares out the loops of a call, as an expression."""
    if threads == "none":
        return "share_alone"
    else_alone = "share_alone" if threads == "caller" else "secateur_share_threads_1"
    return f"call->pool != NULL ? secateur_share_in_pool_1 : {else_alone}"


def _write_weights(path: Path, interface: Interface, constants: Path) -> None:
    """The digest, which the library compares, and the constants."""
    with path.open("wb") as file, constants.open("rb") as source:
        file.write(bytes.fromhex(interface.digest).ljust(_HEADER_BYTES, b"\0"))
        shutil.copyfileobj(source, file)
        file.truncate(interface.weights_bytes)


def _description_of(interface: Interface) -> dict[str, Any]:
    def tensor(t: CTensor) -> dict[str, Any]:
        return {**dataclasses.asdict(t), "bytes": t.nbytes}

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
