"""The C source of an artifact's entry: its kernels called in order, constants, metadata.

    int secateur_run(void *const *inputs, void *const *outputs, void *arena,
                     int threads, int first, int last)

makes the calls from `first` up to before `last`; `last` beyond the last call copies the
outputs that need it, too. It returns 0, or, of a call that failed, `fault | call << 8`: a
code of `faults.py` and the number of the call in the metadata's `calls`. Outputs hold no
result then, and the next run is as good as any. Pointers need no alignment; the arena is memory
for `arena_bytes` of the metadata, which is JSON text at `secateur_metadata`.
"""

from __future__ import annotations

from ..faults import CALL_SHIFT
from ..plan.memory import Memory, Place
from ..plan.schedule import Schedule

_SOURCE = """\
#define HIDDEN __attribute__((visibility("hidden")))
#define STEP(i, call) \\
    case i: \\
        if (last <= i) return 0; \\
        if (call != 0) return secateur_fault() | i << {shift};

__asm__(
    ".section .rodata\\n"
    ".balign 64\\n"
    ".hidden secateur_constants\\n"
    ".globl secateur_constants\\n"
    "secateur_constants:\\n"
    ".incbin \\"{constants}\\"\\n"
    ".globl secateur_metadata\\n"
    "secateur_metadata:\\n"
    ".incbin \\"{metadata}\\"\\n"
    ".byte 0\\n"
    ".text\\n");
extern HIDDEN unsigned char secateur_constants[];

{declarations}

HIDDEN void use_threads(int count);
HIDDEN int secateur_fault(void);

int secateur_run(
    void *const *inputs, void *const *outputs, void *arena, int threads, int first, int last
) {{
    unsigned char *const constants = secateur_constants, *const memory = arena;
    (void)inputs, (void)outputs, (void)constants, (void)memory;
    use_threads(threads);
    switch (first) {{
{steps}
    default:
        if (last <= {count}) return 0;
{copies}
    }}
    return 0;
}}
"""


def source(schedule: Schedule, memory: Memory, constants: str, metadata: str) -> str:
    """The source, which includes the files `constants` and `metadata` beside it when compiled."""
    arities = {call.kernel: len(call.arguments) for call in schedule.calls}
    declarations = [
        f"HIDDEN int {kernel}({', '.join(['void *'] * count) or 'void'});"
        for kernel, count in sorted(arities.items())
    ]
    steps = [
        f"    STEP({index}, {call.kernel}"
        f"({', '.join(_pointer(memory.places[b]) for b in call.arguments)}))"
        for index, call in enumerate(schedule.calls)
    ]
    copies = [
        f"        __builtin_memcpy(outputs[{c.output}], {_pointer(c.source)}, {c.nbytes});"
        for c in memory.copies
    ]
    return _SOURCE.format(
        constants=constants,
        metadata=metadata,
        declarations="\n".join(declarations),
        steps="\n".join(steps),
        copies="\n".join(copies),
        count=len(schedule.calls),
        shift=CALL_SHIFT,
    )


def _pointer(place: Place) -> str:
    if place.kind == "constant":
        return f"constants + {place.offset}"
    if place.kind == "arena":
        return f"memory + {place.offset}"
    base = f"{place.kind}s[{place.index}]"
    return f"(unsigned char *){base} + {place.offset}" if place.offset else base
