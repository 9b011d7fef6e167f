"""The C source of the entry of an artifact some of whose sizes only a run fixes.

    int secateur_shapes(const int64_t *dimensions, int64_t *outputs, int64_t *arena_bytes)
    int secateur_run(void *const *inputs, void *const *outputs, void *arena,
                     int threads, int first, int last, const int64_t *dimensions)

`dimensions` are those of all inputs, one after the other. `secateur_shapes` gives those of all
outputs in the same way, and the bytes of the arena for one thread; `secateur_run` is as in
`entry.py`, but that it takes them again, and that a fault with the code of `Fault.SIZE` has the
number of one of the metadata's `size_checks`, by which inputs' sizes were refused, in the
place of a call's. Buffers are placed anew in each run: an entry keeps no state.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan.memory import OpenMemory
from ..plan.schedule import Schedule
from .convention import Signature
from .entry import (
    MACROS,
    declarations,
    level_fields,
    run_steps,
    scratch_bytes,
    shares_loops,
    step_variables,
)
from .size_code import Sizes, room, size_functions, table_bytes

_SOURCE = """\
#include "context.h"
#include "sizes.h"

{macros}
{data}

{declarations}

{size_functions}
{linkage}int secateur_shapes{level}(
    const secateur_size *given, secateur_size *outputs, secateur_size *arena_bytes
) {{
    secateur_size n[{atoms}], at[{room}], bytes[{room}];
    int live[{room}], bad = 0;
    const int status = find_sizes(given, n);
    if (status != 0) return status;
{outputs}
    (void)outputs, (void)bad;
    *arena_bytes = place(n, at, bytes, live) + {scratch};
    return 0;
}}

{linkage}int secateur_run{level}(
    void *const *inputs, void *const *outputs, void *arena, int threads, int first, int last,
    const secateur_size *given
) {{
    secateur_size n[{atoms}];
    const int status = find_sizes(given, n);
    if (status != 0) return status;
    unsigned char *const constants = secateur_constants, *const memory = arena;
    secateur_size *const at = arena, *const bytes = at + {room};
    unsigned char *const scratch = memory + place(n, at, bytes, (int *)(bytes + {room}));
    unsigned char *const buffers = memory + {tables};
    const secateur_context context = {{{share}, threads, scratch, {scratch}, 0, 0}};
    int fault = 0, bad = 0;{variables}
    (void)inputs, (void)outputs, (void)constants, (void)buffers, (void)context, (void)fault;
    (void)bad;
    switch (first) {{
{steps}
    default:
        if (last <= {count}) return 0;
{copies}
    }}
    return 0;
}}
"""


def open_source(
    schedule: Schedule,
    memory: OpenMemory,
    signatures: Mapping[str, Signature],
    sizes: Sizes,
    level: int | None = None,
) -> str:
    """The source, as `entry.source`."""
    steps, copies = run_steps(schedule, memory, signatures, sizes.code)
    return _SOURCE.format(
        **level_fields(level),
        declarations=declarations(signatures),
        size_functions=size_functions(memory, sizes),
        atoms=max(1, len(sizes.atoms)),
        outputs=sizes.output_lines(),
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
