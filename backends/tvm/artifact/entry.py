"""The C source of an artifact's entry: its kernels called in order, constants, metadata.

    int secateur_run(void *const *inputs, void *const *outputs, void *arena,
                     int threads, int first, int last)

makes the calls from `first` up to before `last`; `last` beyond the last call copies the
outputs that need it, too. It returns 0, or, of a call that failed, `fault | call << 8`: a
code of `faults.py` and the number of the call in the metadata's `calls`. Outputs hold no
result then, and the next run is as good as any. Inputs and outputs are aligned to their elements,
the arena to 64 bytes; it has `arena_bytes` of the metadata, which is JSON text at
`secateur_metadata`, and `scratch_bytes` more for each thread after the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ....ir.symbolic.expressions import Size, single
from ..faults import CALL_SHIFT, Fault
from ..plan.memory import ALIGNMENT, Memory, OpenMemory, Place
from ..plan.schedule import Buffer, CallLoop, Schedule
from ..plan.sizes import size_of
from .convention import ParallelLoop, Signature, body_name, loop_name
from .size_code import Sizes

_SOURCE = """\
#include "context.h"

{macros}
{data}

{declarations}

{linkage}int secateur_run{level}(
    void *const *inputs, void *const *outputs, void *arena, int threads, int first, int last
) {{
    unsigned char *const constants = secateur_constants, *const memory = arena;
    unsigned char *const scratch = memory + {arena};
    const secateur_context context = {{{share}, threads, scratch, {scratch}, 0, 0}};
    int fault = 0;{variables}
    (void)inputs, (void)outputs, (void)constants, (void)memory, (void)context, (void)fault;
    switch (first) {{
{steps}
    default:
        if (last <= {count}) return 0;
{copies}
    }}
    return 0;
}}
"""


MACROS = f"""\
#define CALL(i, call) \\
    if (call != 0) return fault | i << {CALL_SHIFT};

#define START(i) \\
    case i: \\
        if (last <= i) return 0;

#define STEP(i, call) \\
    START(i) \\
    CALL(i, call)
"""
"""What `run_steps` writes, where some of the calls can be made alone."""

GUARDED = f"""\
#define GUARDED(i, left_out, refused, check, call) \\
    if (!(left_out)) {{ \\
        if (refused) return {int(Fault.SIZE)} | check << {CALL_SHIFT}; \\
        CALL(i, call) \\
    }}
"""
"""And where sizes may be 0 that kernels take for 1 or more."""

CONSTANTS = "extern HIDDEN unsigned char secateur_constants[];"

DATA = f"""\
__asm__(
    ".section .rodata\\n"
    ".balign 64\\n"
    ".hidden secateur_constants\\n"
    ".globl secateur_constants\\n"
    "secateur_constants:\\n"
    ".incbin \\"constants\\"\\n"
    ".globl secateur_metadata\\n"
    "secateur_metadata:\\n"
    ".incbin \\"metadata\\"\\n"
    ".byte 0\\n"
    ".text\\n");
{CONSTANTS}"""
"""Declares `secateur_constants` and `secateur_metadata`, which hold what the files do."""


SHARE_ALONE = """\
static int share_alone(const secateur_context *context, secateur_body body, void *data) {
    return body(data, context->scratch, 0, 1);
}
"""
"""A `secateur_sharing` without threads."""


def scratch_bytes(signatures: Mapping[str, Signature]) -> int:
    """Bytes that each thread needs for what kernels keep beyond their stack."""
    sizes = [s.scratch for s in signatures.values()]
    sizes += [b.scratch for s in signatures.values() for b in s.bodies]
    return max((_offsets(each)[1] for each in sizes), default=0)


def source(
    schedule: Schedule,
    memory: Memory,
    signatures: Mapping[str, Signature],
    level: int | None = None,
) -> str:
    """The source, which includes the files `constants` and `metadata` beside it when compiled.

    That of one `level` of several (`levels.py`) has its number in its functions' names, and what
    the files hold lies elsewhere.
    """
    steps, copies = run_steps(schedule, memory, signatures)
    return _SOURCE.format(
        **level_fields(level),
        declarations=declarations(signatures),
        steps=steps,
        copies=copies,
        macros=MACROS,
        variables=step_variables(schedule),
        count=len(schedule.calls),
        arena=memory.arena_bytes,
        scratch=scratch_bytes(signatures),
        share="secateur_share_threads_1" if shares_loops(signatures) else "0",
    )


def level_fields(level: int | None) -> dict[str, str]:
    """What the source of an entry says by the level that it is of, if it is of one."""
    if level is None:
        return {"data": DATA, "linkage": "", "level": ""}
    return {"data": CONSTANTS, "linkage": "HIDDEN ", "level": f"_{level}"}


def shares_loops(signatures: Mapping[str, Signature]) -> bool:
    """Whether any kernel has a parallel loop."""
    return any(signature.bodies for signature in signatures.values())


def run_steps(
    schedule: Schedule,
    memory: Memory | OpenMemory,
    signatures: Mapping[str, Signature],
    sizes: Sizes | None = None,
) -> tuple[str, str]:
    """A line `STEP(index, call)` for each call, and lines that copy outputs which need it.

    Before the first call that needs it the rows of a cache are brought there, after `START(index)`.
    Around the calls of a loop is one of C, before whose first call stands `START(index)`; that call
    is a line `CALL(index, call)`. Calls of a branch look at its condition, since one that is made
    alone doesn't come from there.

    They refer to `inputs`, `outputs`, `constants`, `memory`, `scratch`, `fault` and `context`, to
    `step_variables`, and where a run places buffers, to `buffers` and `at` instead of `memory`.
    Where data decide `sizes` some calls are two lines, `START(index)` and `GUARDED(index, left out,
    refused, check, call)`, and a line `READ(place, number)` is what is read before a call, other
    than the first.
    """
    arena = "memory + {1}"
    code = str if sizes is None else sizes.code
    if isinstance(memory, OpenMemory):
        arena = _OPEN_ARENA

    def pointer(buffer: Buffer) -> str:
        return _pointer(memory.places[buffer], arena, code)

    steps = []
    for index, call in enumerate(schedule.calls):
        numbers = [f"(int)({code(single(atom))})" for atom in call.sizes]
        pointers = [*map(pointer, call.arguments)]
        made = _call(call.kernel, signatures[call.kernel], pointers, numbers)
        begun = [loop for loop in reversed(schedule.loops) if loop.first == index]
        guard = sizes.guards[index] if sizes is not None and sizes.guards else None
        around = [loop for loop in schedule.loops if loop.first < index < loop.last]
        left = _left(around, pointer)
        keys = [*(loop.step.key for loop in around), *[None] * (index > 0)]
        read = read_lines(index, memory, sizes, keys)
        steps += [*left, *read] if read else []
        kept = keep_lines(index, memory, sizes)
        is_apart = begun or kept or left or guard is not None
        steps += [f"    START({index})"] if is_apart else []
        steps += [*left, *kept]
        for loop in begun:
            steps.append(_for(loop, pointer, code))
            steps += read_lines(index, memory, sizes, [loop.step.key])
        if guard is None:
            steps.append(f"    {'CALL' if is_apart else 'STEP'}({index}, {made})")
        else:
            rest = f"{guard.left_out}, {guard.refused}, {guard.check}, {made}"
            steps.append(f"    GUARDED({index}, {rest})")
        for loop in schedule.loops:
            if loop.last == index + 1:
                read = read_lines(index + 1, memory, sizes, [loop.step.key])
                steps += [*_left([loop, *around], pointer), *read] if read else []
                steps += _end(loop, index, pointer)
    if schedule.calls:
        steps += read_lines(len(schedule.calls), memory, sizes, [None])
    copies = [
        f"    __builtin_memcpy(outputs[{c.output}], {_pointer(c.source, arena, code)}, "
        f"{code(size_of(c.nbytes))});"
        for c in memory.copies
    ]
    return "\n".join(steps), "\n".join(copies)


MOST_STEPS = 2**31 - 1
"""Of a loop that data may end: one that goes on is a run that never ends."""


def _for(loop: CallLoop, pointer: Callable[[Buffer], str], code: Callable[[Size], str]) -> str:
    step = loop.step.key
    most = str(MOST_STEPS) if loop.steps is None else code(size_of(loop.steps))
    conditions = [f"{step} < {most}"]
    if loop.limit is not None:
        conditions.append(f"{step} < *(const long long *)({pointer(loop.limit)})")
    if loop.proceed is not None:
        conditions.append(_is_made(loop, pointer(loop.proceed)))
    return f"    for ({step} = 0; {' && '.join(conditions)}; {step}++) {{"


def _is_made(loop: CallLoop, proceed: str) -> str:
    return f"{'!' if loop.unless else ''}*(const unsigned char *)({proceed})"


def _left(loops: Sequence[CallLoop], pointer: Callable[[Buffer], str]) -> list[str]:
    """Lines that leave loops that are branches which this run doesn't make."""
    return [
        f"    if (!({_is_made(loop, pointer(loop.proceed))})) break;"
        for loop in loops
        if loop.unless is not None and loop.proceed is not None
    ]


def _end(loop: CallLoop, index: int, pointer: Callable[[Buffer], str]) -> list[str]:
    if loop.steps is not None:
        return ["    }"]
    fault = f"return {int(Fault.LIMIT)} | {index} << {CALL_SHIFT};"
    return ["    }", f"    if ({loop.step.key} == {MOST_STEPS}) {fault}"]


def step_variables(schedule: Schedule) -> str:
    """Declarations of the numbers of the rounds of loops, each on a line after the one before."""
    return "".join(f"\n    long long {loop.step.key} = 0;" for loop in schedule.loops)


_OPEN_ARENA = "buffers + at[{0.index}] + {1}"


def read_lines(
    call: int, memory: Memory | OpenMemory, sizes: Sizes | None, steps: Sequence[str | None]
) -> list[str]:
    """A line `READ(place, number)` for each number of sizes that is read before a call, in a loop
    of one of these steps, or with None in no loop."""
    lines = []
    for place, read in enumerate(sizes.shapes.reads if sizes is not None else ()):
        if read.call == call and read.step in steps:
            assert sizes is not None
            pointer = _pointer(memory.places[read.buffer], _OPEN_ARENA, sizes.code)
            number = f"((const __{read.dtype.upper()}_TYPE__ *)({pointer}))[{read.index}]"
            lines.append(f"    READ({place}, {number})")
    return lines


def keep_lines(call: int, memory: Memory | OpenMemory, sizes: Sizes | None) -> list[str]:
    """A line for each cache whose rows have to be in an output from this call on."""
    lines = []
    for cache in sizes.shapes.caches if sizes is not None else ():
        if cache.call == call:
            assert sizes is not None
            output = _pointer(memory.places[cache.buffer], _OPEN_ARENA, sizes.code)
            numbers = (cache.outer, cache.nbytes, cache.before, cache.after)
            rest = ", ".join(sizes.code(size_of(number)) for number in numbers)
            lines.append(f"    secateur_keep({output}, inputs[{cache.input}], {rest});")
    return lines


def declarations(signatures: Mapping[str, Signature]) -> str:
    """Declarations of the kernels, and the functions that share out their parallel loops."""
    return "\n".join(_declarations(signatures))


def single_calls(signatures: Mapping[str, Signature]) -> str:
    """The source of `int NAME_alone(void *const *arguments, void *scratch)` for each kernel,
    which calls it on one thread. For measuring; the status is 0 or another number."""
    lines = ['#include "context.h"', SHARE_ALONE, declarations(signatures)]
    for name, signature in signatures.items():
        pointers = [f"arguments[{i}]" for i in range(signature.arguments)]
        call = _call(name, signature, pointers)
        lines += [
            f"int {name}_alone(void *const *arguments, unsigned char *scratch) {{",
            "    const secateur_context context = {share_alone, 1, scratch, 0, 0, 0};",
            "    int fault = 0;",
            "    (void)arguments, (void)context, (void)fault;",
            f"    return {call};",
            "}",
        ]
    return "\n".join(lines)


def _call(
    kernel: str, signature: Signature, pointers: Sequence[str], sizes: Sequence[str] = ()
) -> str:
    """The call of a kernel on buffers; `scratch`, `fault` and `context` are variables there."""
    arguments = [*pointers, *sizes]
    arguments += [f"scratch + {offset}" for offset in _offsets(signature.scratch)[0]]
    arguments += ["&fault"] * signature.faults
    arguments += ["&context"] * bool(signature.bodies)
    return f"{kernel}({', '.join(arguments)})"


def _declarations(signatures: Mapping[str, Signature]) -> Iterator[str]:
    for name, signature in sorted(signatures.items()):
        types = ["void *"] * signature.arguments + ["int"] * signature.sizes
        types += ["void *"] * len(signature.scratch)
        types += ["int *"] * signature.faults
        types += ["const secateur_context *"] * bool(signature.bodies)
        yield f"HIDDEN int {name}({', '.join(types) or 'void'});"
        for index, body in enumerate(signature.bodies):
            yield from _loop(name, index, signature.arguments, body)


def _loop(kernel: str, index: int, arguments: int, body: ParallelLoop) -> Iterator[str]:
    """The function that shares out one parallel loop of a kernel.

    It is weak, since every library with the kernel has it.
    """
    name, inner = loop_name(kernel, index), body_name(kernel, index)
    pointers = [f"a{i}" for i in range(arguments)]
    integers = [f"v{i}" for i in range(body.variables)]
    fields = [*(f"void *{p};" for p in pointers), *(f"int {v};" for v in integers)]
    types = ["void *"] * arguments + ["int"] * body.variables
    types += ["void *"] * len(body.scratch) + ["int *"] * body.faults + ["int", "int"]
    given = [f"d->{field}" for field in (*pointers, *integers)]
    given += [f"scratch + {offset}" for offset in _offsets(body.scratch)[0]]
    given += ["&fault"] * body.faults + ["task", "tasks"]
    call = f"{inner}({', '.join(given)})"
    taken = [f"void *{p}" for p in pointers] + ["int *fault"] * body.faults
    taken += [f"int {v}" for v in integers] + ["const secateur_context *context"]
    initial = ", ".join([*pointers, *integers]) or "0"
    share = f"context->share(context, {name}_task, &d)"
    yield f"HIDDEN int {inner}({', '.join(types)});"
    yield f"struct {name} {{ {' '.join(fields) or 'int none;'} }};"
    yield f"static int {name}_task(void *data, unsigned char *scratch, int task, int tasks) {{"
    yield f"    const struct {name} *d = data;"
    yield "    int fault = 0;"
    yield "    (void)d, (void)scratch, (void)fault;"
    yield f"    return {call} != 0 ? fault : 0;"
    yield "}"
    yield f"HIDDEN __attribute__((weak)) int {name}({', '.join(taken)});"
    yield f"int {name}({', '.join(taken)}) {{"
    yield f"    struct {name} d = {{{initial}}};"
    yield f"    return {f'*fault = {share}' if body.faults else share};"
    yield "}"


def _offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where buffers of these sizes lie, one after the other, and the bytes of all."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _pointer(place: Place, arena: str, code: Callable[[Size], str]) -> str:
    if place.kind == "constant":
        return f"constants + {place.offset}"
    if place.kind == "arena":
        return arena.format(place, code(size_of(place.offset)))
    base = f"{place.kind}s[{place.index}]"
    offset = code(size_of(place.offset))
    return base if offset == "0" else f"(unsigned char *){base} + {offset}"
