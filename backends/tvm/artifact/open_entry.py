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

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ....ir.errors import UnsupportedError
from ....ir.symbolic.expressions import Atom, Expression, Size, atoms
from ..faults import CALL_SHIFT, Fault
from ..graph.open_sizes import MOST
from ..plan.memory import OpenMemory
from ..plan.schedule import OpenShapes, Schedule
from ..plan.sizes import bounds_of, size_of
from .convention import Signature
from .entry import declarations, level_fields, run_steps, scratch_bytes, shares_loops

MOST_PLACED = 4096
"""Buffers that a run places: their tables lie on the stack where shapes are asked for."""

_SOURCE = """\
#include "context.h"
#include "sizes.h"

#define STEP(i, call) \\
    case i: \\
        if (last <= i) return 0; \\
        if (call != 0) return fault | i << {shift};

#define REFUSE_IF(i, condition) \\
    if (condition) return {fault} | i << {shift};

{data}

{declarations}

/* The sizes that all others follow from, of those of the inputs, which are checked. */
static int find_sizes(const secateur_size *given, secateur_size *n) {{
    int bad = 0;
{sizes}
    return 0;
}}

static const secateur_range ranges[] = {{{ranges}}};

/* Places of the arena's buffers behind the tables that they are found in; the bytes of all. */
static secateur_size place(
    const secateur_size *n, secateur_size *at, secateur_size *bytes, int *live
) {{
    int bad = 0;
{bytes}
    (void)n, (void)bad;
    return {tables} + secateur_place({buffers}, ranges, bytes, at, live);
}}

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
    int fault = 0, bad = 0;
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


@dataclasses.dataclass(frozen=True)
class SizeCheck:
    """What a run requires of the inputs' sizes, in words; `input` and `axis` where it is about
    one of them."""

    text: str
    input: int | None = None
    axis: int | None = None


class Sizes:
    """How an entry computes sizes: `atoms` in order, `checks` that it makes on the way."""

    def __init__(self, shapes: OpenShapes, extra: Sequence[Size]) -> None:
        every = [size_of(d) for shape in (*shapes.inputs, *shapes.outputs) for d in shape]
        every += [size_of(elements) for elements in shapes.elements]
        every += [size_of(size) for pair in shapes.equal for size in pair]
        self.shapes = shapes
        self.atoms = atoms([*every, *extra])
        self.numbers = {atom: index for index, atom in enumerate(self.atoms)}
        self.checks: list[SizeCheck] = []
        self.lines = list(self._lines())

    def code(self, size: Size) -> str:
        """The C expression of a size."""
        if isinstance(size, int):
            return str(size)
        terms = [self._term(monomial, factor) for monomial, factor in size.terms.items()]
        total = terms[0]
        for term in terms[1:]:
            total = f"secateur_plus({total}, {term}, &bad)"
        return total

    def _term(self, monomial: tuple[Atom, ...], factor: int) -> str:
        parts = [f"n[{self.numbers[atom]}]" for atom in monomial]
        parts += [str(factor)] if factor != 1 or not parts else []
        product = parts[0]
        for part in parts[1:]:
            product = f"secateur_times({product}, {part}, &bad)"
        return product

    def _check(self, condition: str, check: SizeCheck) -> str:
        self.checks.append(check)
        return f"    REFUSE_IF({len(self.checks) - 1}, {condition})"

    def _lines(self) -> Iterator[str]:
        for atom in self.atoms:
            if atom.op:
                continue
            index, (axis, dim) = self.numbers[atom], self._given(atom)
            yield f"    n[{index}] = given[{self._position(axis, dim)}];"
            yield self._in_range(atom, SizeCheck(_admitted(atom), axis, dim))
        for atom in self.atoms:
            if not atom.op:
                continue
            text = f"size {atom.key} would not be within what the model can be run with"
            yield f"    n[{self.numbers[atom]}] = {self._function(atom)};"
            yield self._in_range(atom, SizeCheck(text))
            if atom.op == "part":
                whole, divisor = atom.operands
                exact = f"{self.code(atom.operands[0])} % {divisor} != 0"
                yield self._check(exact, SizeCheck(f"{whole} must be a multiple of {divisor}"))
        for position, shape in enumerate(self.shapes.inputs):
            for axis, dim in enumerate(shape):
                size = size_of(dim)
                given = f"given[{self._position(position, axis)}]"
                check = SizeCheck(f"must be {size}", position, axis)
                yield self._check(f"{given} != {self.code(size)}", check)
        for a, b in self.shapes.equal:
            text = f"{size_of(a)} and {size_of(b)} must be equal"
            condition = f"{self.code(size_of(a))} != {self.code(size_of(b))}"
            yield self._check(condition, SizeCheck(text))
        for elements in self.shapes.elements:
            size = size_of(elements)
            text = f"a tensor would have {size} elements, more than {MOST}"
            yield self._check(f"{self.code(size)} > {MOST}", SizeCheck(text))
        yield self._check("bad", SizeCheck("a size would be too large"))

    def _in_range(self, atom: Atom, check: SizeCheck) -> str:
        number, (low, high) = f"n[{self.numbers[atom]}]", bounds_of(atom)
        return self._check(f"bad || {number} < {low} || {number} > {high}", check)

    def _function(self, atom: Atom) -> str:
        operands = [self.code(size) for size in atom.operands]
        if atom.op == "dim":
            return operands[0]
        name = "floor" if atom.op == "part" else atom.op
        rest = ", &bad" if name == "floor" else ""
        return f"secateur_{name}({', '.join(operands)}{rest})"

    def _given(self, symbol: Atom) -> tuple[int, int]:
        """An axis of an input whose size is a symbol, or a multiple of a part of it."""
        for index, shape in enumerate(self.shapes.inputs):
            for axis, dim in enumerate(shape):
                found = atoms([size_of(dim)])
                if symbol in found and all(a == symbol or a.op == "part" for a in found):
                    return index, axis
        raise AssertionError(f"no input has the size {symbol}")

    def _position(self, index: int, axis: int) -> int:
        return sum(map(len, self.shapes.inputs[:index])) + axis


def _admitted(symbol: Atom) -> str:
    low, high = symbol.range
    most = f" to {high}" if high is not None and high < MOST else " up"
    return f"'{symbol.key}' is from {low}{most}"


def open_source(
    schedule: Schedule,
    memory: OpenMemory,
    signatures: Mapping[str, Signature],
    sizes: Sizes,
    level: int | None = None,
) -> str:
    """The source, as `entry.source`."""
    assert schedule.open is not None
    steps, copies = run_steps(schedule, memory, signatures, sizes.code)
    room = max(1, len(memory.temporaries))
    outputs = [size_of(d) for shape in schedule.open.outputs for d in shape]
    return _SOURCE.format(
        **level_fields(level),
        declarations=declarations(signatures),
        sizes="\n".join(sizes.lines),
        atoms=max(1, len(sizes.atoms)),
        ranges=", ".join(f"{{{t.first}, {t.last}}}" for t in memory.temporaries) or "{0, 0}",
        bytes="\n".join(
            f"    bytes[{index}] = {sizes.code(size_of(t.nbytes))};"
            for index, t in enumerate(memory.temporaries)
        ),
        outputs="\n".join(
            f"    outputs[{index}] = {sizes.code(size)};" for index, size in enumerate(outputs)
        ),
        tables=table_bytes(memory),
        buffers=len(memory.temporaries),
        room=room,
        steps=steps,
        copies=copies,
        count=len(schedule.calls),
        shift=CALL_SHIFT,
        fault=int(Fault.SIZE),
        scratch=scratch_bytes(signatures),
        share="secateur_share_threads_1" if shares_loops(signatures) else "0",
    )


def sizes_of_run(schedule: Schedule, memory: OpenMemory) -> Sizes:
    """How the entry of a schedule computes all sizes that it needs."""
    assert schedule.open is not None
    if len(memory.temporaries) > MOST_PLACED:
        raise UnsupportedError(
            f"{len(memory.temporaries)} results between nodes are more than the {MOST_PLACED} that "
            "an artifact with open sizes places; --input-shape fixes the sizes"
        )
    extra = [size_of(t.nbytes) for t in memory.temporaries]
    extra += [size_of(c.nbytes) for c in memory.copies]
    extra += [Expression({(atom,): 1}) for call in schedule.calls for atom in call.sizes]
    return Sizes(schedule.open, extra)


def table_bytes(memory: OpenMemory) -> int:
    """Bytes at the arena's beginning where the entry keeps what it places buffers by."""
    return -(-20 * max(1, len(memory.temporaries)) // 64) * 64
