"""The C source of the entry of an artifact some of whose sizes only a run fixes.

    int secateur_shapes(const int64_t *dimensions, int64_t *outputs, int64_t *arena_bytes)
    int secateur_run(void *const *inputs, void *const *outputs, void *arena,
                     int threads, int first, int last, const int64_t *dimensions)

`dimensions` are those of all inputs, one after the other, and, where the model has caches, how many
rows these have room for, 0 for as many as they hold. `secateur_shapes` gives those of all
outputs in the same way, and the bytes of the arena for one thread; `secateur_run` is as in
`entry.py`, but that it takes them again, and that a fault with the code of `Fault.SIZE` has the
number of one of the metadata's `size_checks`, by which inputs' sizes were refused, in the
place of a call's. Buffers are placed anew in each run: an entry keeps no state.

Where data decide sizes `secateur_shapes` gives the largest dimensions that outputs may have, which
is what they need memory for, and `secateur_run` takes one more argument, `int64_t *found`: when all
calls are made it writes there the dimensions that they have.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan.memory import OpenMemory
from ..plan.schedule import Schedule
from .convention import Signature
from .entry import (
    GUARDED,
    MACROS,
    declarations,
    level_fields,
    read_lines,
    run_steps,
    scratch_bytes,
    shares_loops,
    step_variables,
)
from .size_code import Sizes, kept_from, room, size_functions, table_bytes

_SOURCE = """\
#include "context.h"
#include "sizes.h"

{macros}
{guarded}{data}

{declarations}

{size_functions}
{linkage}int secateur_shapes{level}(
    const secateur_size *given, secateur_size *outputs, secateur_size *arena_bytes
) {{
    secateur_size n[{atoms}], at[{room}], bytes[{room}];
    int live[{room}], bad = 0;
    const int status = find_sizes(given, {capacity}, n);
    if (status != 0) return status;
{outputs}
    (void)outputs, (void)bad;
    *arena_bytes = place(n, at, bytes, live) + {scratch};
    return 0;
}}

{linkage}int secateur_run{level}(
    void *const *inputs, void *const *outputs, void *arena, int threads, int first, int last,
    const secateur_size *given{found}
) {{
{numbers}
    if (status != 0) return status;
    unsigned char *const constants = secateur_constants, *const memory = arena;
    secateur_size *const at = arena, *const bytes = at + {room};
    unsigned char *const scratch = memory + place(n, at, bytes, (int *)(bytes + {room}));
    unsigned char *const buffers = memory + {tables};
    const secateur_context context = {{{share}, threads, scratch, {scratch}, 0, 0}};
    int fault = 0, bad = 0;{variables}
    (void)inputs, (void)outputs, (void)constants, (void)buffers, (void)context, (void)fault;
    (void)bad;
{first_reads}    switch (first) {{
{steps}
    default:
        if (last <= {count}) return 0;
{copies}
{write_found}    }}
    return 0;
}}
"""

_READ = """\
#define READ(place, number) \\
    kept[place] = number; \\
    status = find_sizes_##place(kept[place], n); \\
    if (status != 0) return status;
"""

_NUMBERS = """\
    secateur_size n[{atoms}];
    const int status = find_sizes(given, {capacity}, n);"""

_KEPT_NUMBERS = """\
    secateur_size n[{atoms}], *const kept = (secateur_size *)((unsigned char *)arena + {kept});
    int status = find_sizes(given, {capacity}, n);"""


def open_source(
    schedule: Schedule,
    memory: OpenMemory,
    signatures: Mapping[str, Signature],
    sizes: Sizes,
    level: int | None = None,
) -> str:
    """The source, as `entry.source`."""
    steps, copies = run_steps(schedule, memory, signatures, sizes)
    inputs = sizes.shapes.inputs
    capacity = f"given[{sum(map(len, inputs))}]" if sizes.shapes.caches else "0"
    return _SOURCE.format(
        **_decided_parts(schedule, memory, sizes, capacity),
        capacity=capacity,
        **level_fields(level),
        declarations=declarations(signatures),
        size_functions=size_functions(memory, sizes),
        atoms=max(1, len(sizes.atoms)),
        outputs=sizes.output_lines(most=True),
        tables=table_bytes(memory),
        room=room(memory),
        steps=steps,
        copies=copies,
        count=len(schedule.calls),
        macros=MACROS,
        variables=step_variables(schedule),
        scratch=scratch_bytes(signatures),
        share="secateur_share_threads_1" if shares_loops(signatures) else "0",
    )


def _decided_parts(
    schedule: Schedule, memory: OpenMemory, sizes: Sizes, capacity: str
) -> dict[str, str]:
    """What the source has where data decide sizes. The numbers that a run reads lie in the arena,
    where one of later calls finds those of earlier ones."""
    reads, atoms = sizes.shapes.reads, max(1, len(sizes.atoms))
    if not reads:
        none = dict.fromkeys(("found", "first_reads", "write_found"), "")
        return {
            **none,
            "guarded": GUARDED if sizes.guards else "",
            "numbers": _NUMBERS.format(atoms=atoms, capacity=capacity),
        }
    lines = read_lines(0, memory, sizes, [None])
    for place, read in enumerate(reads):
        if read.step is not None:  # perhaps no round reads it
            lines.append(f"    if (first == 0) kept[{place}] = {max(read.atom.range.low or 0, 0)};")
        begins = any(
            read.call == each.first for each in schedule.loops if each.step.key == read.step
        )
        after = f"first {'>' if begins else '>='} {read.call}"
        if read.call > 0 or begins:
            lines.append(f"    if ({after}) {{ READ({place}, kept[{place}]) }}")
    return {
        "guarded": GUARDED + _READ,
        "found": ", secateur_size *found",
        "numbers": _KEPT_NUMBERS.format(atoms=atoms, kept=kept_from(memory), capacity=capacity),
        "first_reads": "".join(f"{line}\n" for line in lines),
        "write_found": sizes.output_lines("found") + "\n",
    }
