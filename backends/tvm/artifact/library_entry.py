"""The C source of a C library's entry: what a call has is checked, then kernels run in order.

Where only a run fixes sizes (`size_code.py`), those of the inputs are checked first, dimensions and
bytes of all tensors follow from them, and the workspace begins with the tables by which its buffers
are found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ..faults import CALL_SHIFT
from ..plan.memory import ALIGNMENT, Memory, OpenMemory
from ..plan.schedule import CacheRows
from ..plan.sizes import size_of
from ..targets import Target
from .build import Kernels
from .convention import Signature
from .cpu_features import cpu_levels
from .entry import (
    GUARDED,
    SHARE_ALONE,
    declarations,
    read_lines,
    run_steps,
    shares_loops,
    step_variables,
)
from .interface import Interface, expected
from .objects import Objects
from .options import LibraryOptions
from .size_code import Sizes, largest_arena, room, size_functions, table_bytes

MOST_THREADS = 256
"""Of a call; `native/threads.c` and the header have the number, too."""

HEADER_BYTES = 64
"""Bytes at the beginning of a workspace, and of a file of weights, that say what it is."""

_SOURCE = """\
#include <stddef.h>
#include <stdint.h>

#include "secateur_model.h"
#include "context.h"
#include "call.h"

{features}

#define CALL(i, call) \\
    if (call != 0) return fault | i << {shift};

#define STEP(i, call) CALL(i, call)
#define START(i)

{guarded}#define SECATEUR_CALL_SHIFT {shift}
#ifdef SECATEUR_PROFILE
#include "profile.h"
#endif

{weights}
{alone}
{declarations}

static const unsigned char digest[32] = {{{digest}}};
{tables}
{samples}

static size_t threads_of(const secateur_call *call) {{
    size_t threads = 1;
    if (call == NULL) return 1;
    if (call->pool != NULL) threads = {pools} ? call->pool->threads : 1;
    else if ({own}) threads = call->threads;
    return threads < 1 ? 1 : threads > {most_threads} ? {most_threads} : threads;
}}

{workspace_bytes}
/* Whether the workspace has the mark that a run of this library leaves. */
static int is_marked(const unsigned char *workspace) {{
    for (int i = 0; i < 32; i++) {{
        if (workspace[i] != digest[i]) return 0;
    }}
    return 1;
}}

int {name}_run(const secateur_call *call) {{
    if (call == NULL || call->version < 1 || call->version > SECATEUR_INTERFACE ||
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
{find_sizes}    int status = secateur_check_inputs(
        call->inputs, inputs_expected, dimensions, {input_count}, &samples);
    if (samples < 0) samples = 1;
    if (status == 0 && samples == 0 && {shared_outputs}) status = SECATEUR_BAD_INPUT;
    if (status == 0) {{
        status = secateur_check_outputs(call->outputs, outputs_expected, {output_count}, samples);
    }}
{apart}    if (status != 0) return status;
    unsigned char *workspace = call->workspace;
{place}    if (workspace == NULL || !secateur_is_aligned(workspace, {alignment}) ||
        call->workspace_bytes < {needed}) {{
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
{found}    secateur_write_dimensions(
        call->outputs, outputs_expected, dimensions, {output_count}, samples);
    return 0;
}}
"""

_READ = """\
#define READ(place, number) \\
    status = find_sizes_##place(number, n); \\
    if (status != 0) return status;

"""

_FOUND = """\
    const secateur_size *const n = sizes.n;
    int64_t *const outputs = sizes.dimensions + {first_output};
    int bad = 0;
    (void)bad;
{output_dimensions}
"""
"""Dimensions of outputs that the run's data decided, in the place of the largest."""

_SAMPLE = """\
static int run_sample_{level}(
    void *const *inputs, void *const *outputs, unsigned char *constants, unsigned char *memory,
    const secateur_context *shared{sizes_taken}
) {{
    const secateur_context context = *shared;
    unsigned char *const scratch = context.scratch;
    int fault = 0;{variables}
    (void)inputs, (void)outputs, (void)constants, (void)memory, (void)scratch, (void)fault;
{sizes_used}{steps}
{copies}
    return 0;
}}
"""
"""A run of one sample by the code of one level."""

_RUN = "run_sample_{level}(ins, outs, (unsigned char *)constants, memory, &context{sizes_passed})"

_LEVEL = """\

int {name}_level(void) {{
    return secateur_choose(secateur_levels, {levels});
}}
"""

_UNPACK = """\

int {name}_unpack_weights(
    const void *packed, size_t packed_bytes, void *weights, size_t weights_bytes
) {{
    if (packed == NULL || weights == NULL || !secateur_is_aligned(weights, {alignment}) ||
        weights_bytes < {bytes}u ||
        !secateur_unpack_1(packed, packed_bytes, weights, {bytes}u) || !is_marked(weights)) {{
        return SECATEUR_BAD_WEIGHTS;
    }}
    return 0;
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

_FIXED_TABLES = """\
static const int64_t dimensions[] = {{{dimensions}}};
static const Expected inputs_expected[] = {{{inputs}}};
static const Expected outputs_expected[] = {{{outputs}}};
"""

_FIXED_WORKSPACE = """\
size_t {name}_workspace_bytes(const secateur_call *call) {{
    return {workspace}u + (threads_of(call) - 1) * {scratch}u;
}}
"""

_OPEN_TABLES = """\
#include "sizes.h"
#include "open_call.h"
{caches}
{size_functions}
/* What is known before a run: dimensions, -1 where they are open, and the bytes of one element. */
static const int64_t known_dimensions[] = {{{dimensions}}};
static const Expected inputs_known[] = {{{inputs}}};
static const Expected outputs_known[] = {{{outputs}}};

/* What the inputs' dimensions say: the numbers that sizes follow from, and of all tensors, of one
 * sample, what they have to be. */
typedef struct {{
    secateur_size n[{atoms}];
    int64_t dimensions[{dimension_count}];
    Expected inputs[{input_room}], outputs[{output_room}];
}} CallSizes;

static int is_call(const secateur_call *call) {{
    return call != NULL && call->version >= 1 && call->version <= SECATEUR_INTERFACE &&
           call->input_count == {input_count} && call->output_count == {output_count} &&
           (call->inputs != NULL || {input_count} == 0) &&
           (call->outputs != NULL || {output_count} == 0);
}}

static int find_call_sizes(const secateur_call *call, CallSizes *s) {{
    int bad = 0;
    int status = secateur_read_dimensions(
        call->inputs, inputs_known, known_dimensions, {input_count}, s->dimensions);
    if (status == 0) status = find_sizes(
        s->dimensions, secateur_capacity(call), s->n);
    if (status != 0) return status;
    const secateur_size *const n = s->n;
    int64_t *const outputs = s->dimensions + {first_output};
    (void)n, (void)outputs, (void)bad;
{output_dimensions}
    status = secateur_count_bytes(
        inputs_known, s->dimensions, {input_count}, SECATEUR_BAD_INPUT, s->inputs);
    if (status == 0) {{
        status = secateur_count_bytes(
            outputs_known, s->dimensions, {output_count}, SECATEUR_BAD_OUTPUT, s->outputs);
    }}
{cache_bytes}    return status;
}}
"""

_OPEN_WORKSPACE = """\
static uint64_t whole_workspace(const secateur_call *call, secateur_size arena) {{
    return {header_bytes}u + (uint64_t)arena + (uint64_t)threads_of(call) * {scratch}u;
}}

size_t {name}_workspace_bytes(const secateur_call *call) {{
    CallSizes sizes;
    secateur_size at[{room}], bytes[{room}], arena = {largest};
    int live[{room}];
    if (call != NULL && call->input_count > 0) {{
        if (!is_call(call) || find_call_sizes(call, &sizes) != 0) return 0;
        arena = place(sizes.n, at, bytes, live);
    }}
    if (arena < 0) return 0;
    const uint64_t whole = whole_workspace(call, arena);
    return whole > SIZE_MAX / 2 ? 0 : (size_t)whole;
}}

int {name}_shapes(const secateur_call *call) {{
    CallSizes sizes;
    int64_t samples = -1;
    if (!is_call(call)) return SECATEUR_BAD_CALL;
    int status = find_call_sizes(call, &sizes);
    if (status == 0) {{
        status = secateur_count_samples(
            call->inputs, sizes.inputs, sizes.dimensions, {input_count}, &samples);
    }}
    if (status == 0) status = secateur_check_ranks(call->outputs, outputs_known, {output_count});
    if (status != 0) return status;
    secateur_write_dimensions(
        call->outputs, sizes.outputs, sizes.dimensions, {output_count}, samples < 0 ? 1 : samples);
    return 0;
}}
"""

_FIND_SIZES = """\
    CallSizes sizes;
    const int refused = find_call_sizes(call, &sizes);
    if (refused != 0) return refused;
    const Expected *const inputs_expected = sizes.inputs, *const outputs_expected = sizes.outputs;
    const int64_t *const dimensions = sizes.dimensions;
"""

_PLACE = """\
    if (workspace == NULL || !secateur_is_aligned(workspace, {alignment}) ||
        call->workspace_bytes < {header_bytes} + {table_bytes}) {{
        return SECATEUR_BAD_WORKSPACE;
    }}
    secateur_size *const at = (secateur_size *)(workspace + {header_bytes});
    secateur_size *const bytes = at + {room};
    const secateur_size arena = place(sizes.n, at, bytes, (int *)(bytes + {room}));
"""

_APART = """\
    if (status == 0) {{
        const secateur_size *const n = sizes.n;
        int bad = 0;
        const secateur_cache caches[] = {{{caches}}};
        (void)n, (void)bad;
        status = secateur_check_apart(
            call, inputs_expected, outputs_expected, caches, {count}, samples);
    }}
"""

_BUFFERS = """\
    unsigned char *const buffers = memory + {table_bytes};
    int bad = 0;
    (void)n, (void)at, (void)buffers, (void)bad;
"""


@dataclasses.dataclass(frozen=True)
class LibraryLevel:
    """The compiled kernels of one level, where its buffers lie, and how a run computes sizes where
    only that fixes them."""

    kernels: Kernels
    memory: Memory | OpenMemory
    objects: Objects
    sizes: Sizes | None = None

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """How each kernel is called."""
        return self.objects.signatures


def most_arena_bytes(levels: Sequence[LibraryLevel]) -> int | None:
    """Bytes of the arena, whichever level is run; None where the sizes of inputs have no bound."""
    found = []
    for level in levels:
        memory = level.memory
        most = largest_arena(memory) if isinstance(memory, OpenMemory) else memory.arena_bytes
        if most is None:
            return None
        found.append(most)
    return max(found)


def library_source(
    levels: Sequence[LibraryLevel], interface: Interface, target: Target, options: LibraryOptions
) -> str:
    """The source, which includes the header as `secateur_model.h`, and the file `constants`.

    Levels whose sizes only a run fixes are one.
    """
    name = interface.name
    signatures = {k: s for level in levels for k, s in level.signatures.items()}
    shares = shares_loops(signatures)
    inputs, dims = expected(interface.inputs, 0, of_elements=interface.is_open)
    outputs, more = expected(interface.outputs, len(dims), of_elements=interface.is_open)
    tensors = (*interface.inputs, *interface.outputs)
    find = _FIND_GIVEN if options.has_weights_apart else _FIND_OWN
    numbers: dict[str, object] = {
        "name": name,
        "header_bytes": HEADER_BYTES,
        "alignment": ALIGNMENT,
        "scratch": interface.scratch_bytes,
        "input_count": len(interface.inputs),
        "output_count": len(interface.outputs),
        "input_room": max(1, len(interface.inputs)),
        "output_room": max(1, len(interface.outputs)),
        "dimensions": ", ".join(map(str, [*dims, *more, 0])),
        "dimension_count": len(dims) + len(more) + 1,
        "first_output": len(dims),
        "inputs": ", ".join([*inputs, "{0}"]),
        "outputs": ", ".join([*outputs, "{0}"]),
    }
    arena = most_arena_bytes(levels)
    parts = {
        "tables": _FIXED_TABLES.format(**numbers),
        "workspace_bytes": _FIXED_WORKSPACE.format(**numbers, workspace=interface.workspace_bytes),
        "needed": f"{name}_workspace_bytes(call)",
        "arena": str(arena),
        "find_sizes": "",
        "place": "",
        "guarded": "",
        "found": "",
        "apart": "",
    }
    if interface.is_open:
        parts = _open_parts(levels[0], numbers, arena)
    text = _SOURCE.format(
        **numbers,
        **parts,
        features=cpu_levels(target.levels),
        levels=len(levels),
        shift=CALL_SHIFT,
        most_threads=MOST_THREADS,
        weights="" if options.has_weights_apart else _OWN_WEIGHTS.format(name=name),
        find_weights=find.format(**numbers, bytes=interface.weights_bytes),
        declarations=declarations(signatures),
        digest=", ".join(str(byte) for byte in bytes.fromhex(interface.digest)),
        samples="\n".join(_sample(index, level) for index, level in enumerate(levels)),
        run=_run(len(levels), interface.is_open),
        alone=SHARE_ALONE if shares else "",
        share=_sharing(options.threads) if shares else "NULL",
        pools=int(options.threads != "none"),
        shared_outputs=int(any(not t.is_batch for t in interface.outputs)),
        no_elements=int(all(0 in t.shape for t in tensors if t.is_batch)),
        own=int(interface.has_threads),
    )
    if interface.levels:
        text += _LEVEL.format(name=name, levels=len(levels))
    if interface.has_packed_weights:
        text += _UNPACK.format(**numbers, bytes=interface.weights_bytes)
    return text


def _open_parts(
    level: LibraryLevel, numbers: Mapping[str, object], arena: int | None
) -> dict[str, str]:
    """What the source has in the place of what is known before a run."""
    memory, sizes = level.memory, level.sizes
    assert isinstance(memory, OpenMemory)
    assert sizes is not None
    parts = {"guarded": GUARDED if sizes.guards else "", "found": "", "apart": ""}
    if sizes.shapes.caches:
        parts["apart"] = _apart(level, sizes)
    if sizes.shapes.reads:
        parts |= {
            "guarded": GUARDED + _READ,
            "found": _FOUND.format(**numbers, output_dimensions=sizes.output_lines()),
        }
    tables = {"table_bytes": table_bytes(memory), "room": room(memory)}
    return {
        "tables": _OPEN_TABLES.format(
            **numbers,
            size_functions=size_functions(memory, sizes),
            atoms=max(1, len(sizes.atoms)),
            output_dimensions=sizes.output_lines(most=True),
            cache_bytes=_cache_bytes(level, sizes),
            caches='#include "caches.h"\n' if sizes.shapes.caches else "",
        ),
        **parts,
        "workspace_bytes": _OPEN_WORKSPACE.format(
            **numbers, **tables, largest=-1 if arena is None else arena
        ),
        "needed": "whole_workspace(call, arena)",
        "arena": "arena",
        "find_sizes": _FIND_SIZES,
        "place": _PLACE.format(**numbers, **tables),
    }


def _caches(level: LibraryLevel, sizes: Sizes) -> list[tuple[CacheRows, int]]:
    """Caches, each with the index of its output."""
    outputs = level.kernels.schedule.outputs
    return [(cache, outputs.index(cache.buffer)) for cache in sizes.shapes.caches]


def _cache_bytes(level: LibraryLevel, sizes: Sizes) -> str:
    """Lines that let caches have the bytes of all rows that there is memory for."""
    lines = []
    for cache, output in _caches(level, sizes):
        for kind, index, run in (
            ("input", cache.input, cache.before),
            ("output", output, cache.after),
        ):
            nbytes = sizes.code(size_of(cache.outer * run))
            bad = f"SECATEUR_BAD_{kind.upper()} | {index} << 8"
            lines.append(
                f"    if (status == 0 && (uint64_t)({nbytes}) > SIZE_MAX / 2) return {bad};"
            )
            lines.append(f"    s->{kind}s[{index}].bytes = (size_t)({nbytes});")
    return "".join(f"{line}\n" for line in lines)


def _apart(level: LibraryLevel, sizes: Sizes) -> str:
    """Lines that refuse tensors in one memory that aren't caches in their own."""
    caches = _caches(level, sizes)
    each = [f"{{{c.input}, {output}, {sizes.code(size_of(c.outer))}}}" for c, output in caches]
    return _APART.format(caches=", ".join(each), count=len(caches))


def _sample(index: int, level: LibraryLevel) -> str:
    """The function that runs one sample by a level's kernels."""
    memory, sizes, schedule = level.memory, level.sizes, level.kernels.schedule
    if isinstance(memory, OpenMemory):
        assert sizes is not None
        steps, copies = run_steps(schedule, memory, level.signatures, sizes)
        used = _BUFFERS.format(table_bytes=table_bytes(memory))
        taken = ", const secateur_size *n, const secateur_size *at"
        if sizes.shapes.reads:
            taken = ", secateur_size *n, const secateur_size *at"
            used += "    int status = 0;\n"
            used += "".join(f"{line}\n" for line in read_lines(0, memory, sizes, [None]))
    else:
        steps, copies = run_steps(schedule, memory, level.signatures)
        taken = used = ""
    return _SAMPLE.format(
        level=index,
        steps=steps,
        copies=copies,
        sizes_taken=taken,
        sizes_used=used,
        variables=step_variables(schedule),
    )


def _run(levels: int, is_open: bool) -> str:
    """The status of a sample that the workspace's level runs."""
    passed = ", sizes.n, at" if is_open else ""
    calls = [_RUN.format(level=level, sizes_passed=passed) for level in range(levels)]
    if levels == 1:
        return calls[0]
    chosen = [f"workspace[32] == {level} ? {call}" for level, call in enumerate(calls)]
    return "\n            : ".join([*chosen, "SECATEUR_BAD_CPU"])


def _sharing(threads: str) -> str:
    """The function that shares out the loops of a call, as an expression."""
    if threads == "none":
        return "share_alone"
    else_alone = "share_alone" if threads == "caller" else "secateur_share_threads_1"
    return f"call->pool != NULL ? secateur_share_in_pool_1 : {else_alone}"
