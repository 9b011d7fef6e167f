"""C that computes sizes which only a run fixes, checks them and places buffers by them.

`find_sizes` fills `n`, the numbers that all sizes follow from, with those of the inputs, and
returns a fault with the code of `Fault.SIZE` and the number of a `SizeCheck` in the place of a
call's where sizes aren't admitted; `place` says where each buffer of the arena lies in a run. Both
entries, an artifact's (`open_entry.py`) and a C library's (`library_entry.py`), include them.
What data decide is added by one `find_sizes_K` for each number that a run reads; until then the
most that a size may be counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from ....ir.errors import UnsupportedError
from ....ir.symbolic import expressions as e
from ....ir.symbolic.expressions import (
    Atom,
    Expression,
    Size,
    atoms,
    divide_exactly,
    is_nonnegative,
    leaves,
    single,
    single_term,
)
from ..faults import CALL_SHIFT, Fault
from ..graph.data_sizes import SATURATES
from ..graph.most import MOST
from ..plan.memory import OpenMemory
from ..plan.schedule import Buffer, KernelCall, OpenShapes, Schedule
from ..plan.sizes import (
    ROOM,
    bounds_of,
    empty_symbols,
    expanded,
    is_bounded,
    is_computable,
    least_with_empty,
    may_be_none,
    most_of,
    size_of,
)

MOST_PLACED = 4096
"""Buffers that a run places: their tables lie on the stack where shapes are asked for."""

_SOURCE = """\
#define REFUSE_IF(i, condition) \\
    if (condition) return {fault} | i << {shift};

/* The sizes that all others follow from, of those of the inputs, which are checked; `capacity` is
 * how many rows caches have room for, 0 for those that they hold. */
static int find_sizes(const secateur_size *given, secateur_size capacity, secateur_size *n) {{
    int bad = 0;
    (void)capacity;
{sizes}
    return 0;
}}

static const secateur_range ranges[] = {{{ranges}}};

{stacks}

/* Places of the arena's buffers behind the tables that they are found in; the bytes of all. */
static secateur_size place(
    const secateur_size *n, secateur_size *at, secateur_size *bytes, int *live
) {{
    int bad = 0;
{bytes}
    (void)n, (void)bad;
{placed}
    return {tables} + all;
}}
"""

_READ = """
/* The sizes that follow from one more number that a run has read. */
static int find_sizes_{place}(secateur_size given, secateur_size *n) {{
    int bad = 0;
{lines}
    return 0;
}}
"""

_PLACED = """\
    secateur_size all = secateur_place({buffers}, ranges, bytes, at, live);
    int best = -1;
    for (int i = 0; i < {stacks}; i++) {{
        secateur_size other = secateur_stack({buffers}, stacks[i], bytes, at);
        if (other <= all) all = other, best = i;
    }}
    if (best >= 0) {{
        secateur_stack({buffers}, stacks[best], bytes, at);
    }} else if ({stacks}) {{
        secateur_place({buffers}, ranges, bytes, at, live);
    }}"""

_WITHIN = """\
    /* Smaller buffers may leave worse gaps: then they lie as the largest do. */
    static const secateur_size largest[] = {{{offsets}}};
    if (all > {most}) {{
        for (int i = 0; i < {buffers}; i++) at[i] = largest[i];
        all = {most};
    }}"""


@dataclasses.dataclass(frozen=True)
class SizeCheck:
    """What a run requires of the inputs' sizes, in words; `input` and `axis` where it is about
    one of them."""

    text: str
    input: int | None = None
    axis: int | None = None


@dataclasses.dataclass(frozen=True)
class Guard:
    """Conditions, as C, under which a call is left out, since what it makes has no elements, and
    under which a run ends before it, since what it reads has none; the number of that check."""

    left_out: str
    refused: str
    check: int


class Sizes:
    """How an entry computes sizes: `atoms` in order, `checks` that it makes on the way."""

    def __init__(self, shapes: OpenShapes, extra: Sequence[Size]) -> None:
        every = [size_of(d) for shape in (*shapes.inputs, *shapes.outputs) for d in shape]
        self.shapes = shapes
        every += [self._most_of(elements) for elements in shapes.elements]
        every += [size_of(size) for pair in shapes.equal for size in pair]
        every += [size for shape in shapes.outputs for size in self._most_sizes(shape)]
        every += [single(read.atom) for read in shapes.reads]
        self.atoms = [atom for atom in atoms([*every, *extra]) if atom.op != "step"]
        self.numbers = {atom: index for index, atom in enumerate(self.atoms)}
        self.checks: list[SizeCheck] = []
        self.guards: list[Guard | None] = []
        """For each call, where sizes may be 0 that plans take for 1 or more."""
        self._places = {read.atom: index for index, read in enumerate(shapes.reads)}
        self.lines = list(self._lines())
        self.read_lines = [list(self._read_lines(index)) for index in range(len(shapes.reads))]

    def code(self, size: Size) -> str:
        """The C expression of a size."""
        if isinstance(size, int):
            return str(size)
        terms = [self._term(monomial, factor) for monomial, factor in size.terms.items()]
        total = terms[0]
        for term in terms[1:]:
            total = f"secateur_plus({total}, {term}, &bad)"
        return total

    def output_lines(self, to: str = "outputs", *, most: bool = False) -> str:
        """Lines that write the dimensions of all outputs, one after the other, to an array; with
        `most` the largest that data may decide."""
        sizes = [size_of(d) for shape in self.shapes.outputs for d in shape]
        if most:
            sizes = [s for shape in self.shapes.outputs for s in self._most_sizes(shape)]
        lines = [f"    {to}[{index}] = {self.code(size)};" for index, size in enumerate(sizes)]
        return "\n".join(lines)

    def _most_sizes(self, shape: Sequence[int]) -> list[Size]:
        """Dimensions of as many elements as an output may have: the largest, but where fewer are
        known to be all."""
        if not shape:
            return []
        sizes, elements = [*map(self._most_of, shape)], self._most_of(math.prod(shape))
        return sizes if e.multiply(*sizes) == elements else [elements, *[1] * (len(shape) - 1)]

    def _most_of(self, size: int) -> Size:
        most = most_of(size_of(size), self.shapes.equal)
        assert most is not None, size
        return most

    def read_after(self, size: Size) -> int:
        """The last number that a run reads before it knows a size, by its place; -1 if none."""
        found = [self._places[leaf] for leaf in leaves(size) if leaf in self._places]
        return max(found, default=-1)

    def _read_lines(self, place: int) -> Iterator[str]:
        """What a run computes and checks once it has read a number."""
        read = self.shapes.reads[place]
        taken = "given"
        if read.atom.of == SATURATES:
            taken = f"secateur_max(-{MOST}, secateur_min(given, {MOST}))"
        yield f"    n[{self.numbers[read.atom]}] = {taken};"
        low, high = read.atom.range
        bounds = [f"from {low}"] * (low is not None) + [f"to {high}"] * (high is not None)
        text = f"{read.label}: {read.atom.key} must be {' '.join(bounds) or 'a size'}"
        yield self._in_range(read.atom, SizeCheck(text))
        for atom in self.atoms:
            if self.read_after(single(atom)) != place or atom.op == "data":
                continue
            number = f"n[{self.numbers[atom]}]"
            yield f"    {number} = {self._function(atom)};"
            most = atom.operands[1:] if atom.op in ("dim", "checked") else ()
            if atom.op == "checked":
                up = f" to {most[0]}" if most else " up"
                text = f"{read.label}: {atom.operands[0]} must be from 0{up}"
                yield self._in_range(atom, SizeCheck(text))
            else:  # a call for which it is too small is left out, or ends the run
                limit = most[0] if most else bounds_of(atom)[1]
                text = f"{read.label}: size {atom.key} must be at most {limit}"
                yield self._check(f"bad || {number} > {bounds_of(atom)[1]}", SizeCheck(text))
            for size in most:
                yield self._check(f"{number} > {self.code(size)}", SizeCheck(text))
        for a, b in self.shapes.equal:
            if max(self.read_after(size_of(a)), self.read_after(size_of(b))) == place:
                yield self._equal(a, b)
        yield self._check("bad", SizeCheck("a size would be too large"))

    def _equal(self, a: int, b: int) -> str:
        text = f"{expanded(size_of(a))} and {expanded(size_of(b))} must be equal"
        return self._check(f"{self.code(size_of(a))} != {self.code(size_of(b))}", SizeCheck(text))

    def guard(self, call: KernelCall, results: AbstractSet[Buffer]) -> Guard | None:
        """What a run finds out before a call of sizes that may be 0; None for others.

        `results` are the buffers that something reads after the call that writes them.
        """
        wanted = [size_of(b.nbytes) for b in call.written if b.root()[0] in results]
        made = list(dict.fromkeys(wanted)) if all(map(may_be_none, wanted)) else []
        left_out = " && ".join(f"{self.code(size)} < 1" for size in made)
        least = least_with_empty if call.takes_empty else bounds_of
        parts: list[tuple[Size, int]] = [(single(a), least(a)[0]) for a in call.sizes]
        if not call.takes_empty:
            parts += [(size_of(b.nbytes), 1) for b in call.arguments if b not in call.written]
        needed = [
            (size, low)
            for size, low in dict.fromkeys(parts)
            if may_be_none(size) and low > -MOST and not (low == 1 and _are_none_with(made, size))
        ]
        refused = [f"{self.code(size)} < {low}" for size, low in needed]
        if not left_out and not refused:
            return None
        if refused:
            text = "an operand has no elements in this run, which it isn't compiled for"
            self.checks.append(SizeCheck(f"node '{call.label}': {text}"))
        check = len(self.checks) - 1 if refused else 0
        return Guard(left_out or "0", " || ".join(refused) or "0", check)

    def _term(self, monomial: tuple[Atom, ...], factor: int) -> str:
        parts = [a.key if a.op == "step" else f"n[{self.numbers[a]}]" for a in monomial]
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
            if not atom.op or self.read_after(single(atom)) >= 0:
                continue
            yield f"    n[{self.numbers[atom]}] = {self._function(atom)};"
            if _is_symbol(atom):
                continue
            yield self._in_range(atom, self._derived(atom))
            if atom.op == "part":
                whole, divisor = atom.operands
                exact = f"{self.code(atom.operands[0])} % {divisor} != 0"
                yield self._check(exact, SizeCheck(f"{whole} must be a multiple of {divisor}"))
        for position, shape in enumerate(self.shapes.inputs):
            for axis, dim in enumerate(shape):
                size = size_of(dim)
                given = f"given[{self._position(position, axis)}]"
                check = SizeCheck(f"must be {expanded(size)}", position, axis)
                yield self._check(f"{given} != {self.code(size)}", check)
        for a, b in self.shapes.equal:
            if self.read_after(size_of(a)) < 0 and self.read_after(size_of(b)) < 0:
                yield self._equal(a, b)
        for elements in self.shapes.elements:
            size = self._most_of(elements)
            text = f"a tensor would have {expanded(size)} elements, more than {MOST}"
            yield self._check(f"{self.code(size)} > {MOST}", SizeCheck(text))
        yield self._check("bad", SizeCheck("a size would be too large"))

    def _derived(self, atom: Atom) -> SizeCheck:
        """What is said of a size that follows from others and isn't within its bounds. Where it
        follows from one symbol it is said of the axis that has it, with the least it may be."""
        if atom.op in ROOM:
            return SizeCheck(f"the capacity must be from {atom.operands[0]} to {MOST}")
        size = expanded(single(atom))
        text = f"size {size} would not be within what the model can be run with"
        symbols = {a for a in leaves(size) if not a.op}
        if len(symbols) != 1:
            return SizeCheck(text)
        (symbol,) = symbols
        grows = all(a.op in ("", "floor", "min", "max") for a in atoms([size]))
        least = _least_within(size, symbol, bounds_of(atom)) if grows else None
        if least is not None:
            text = f"{text}; the least '{symbol.key}' is {least}"
        return SizeCheck(text, *self._given(symbol))

    def _in_range(self, atom: Atom, check: SizeCheck) -> str:
        number, (low, high) = f"n[{self.numbers[atom]}]", bounds_of(atom)
        empty = [f"n[{self.numbers[symbol]}] == 0" for symbol in empty_symbols(single(atom))]
        if atom.op and low == 1 and empty:
            return self._check(
                f"bad || {number} < !({' || '.join(empty)}) || {number} > {high}", check
            )
        return self._check(f"bad || {number} < {low} || {number} > {high}", check)

    def _function(self, atom: Atom) -> str:
        operands = [self.code(size) for size in atom.operands]
        if atom.op in ("dim", "checked"):
            return operands[0]
        name = {"part": "floor", "choose": "either"}.get(atom.op, atom.op)
        rest = ", &bad" if name in ("floor", "div") else ""
        operands = ["capacity"] * (atom.op in ROOM) + operands
        return f"secateur_{name}({', '.join(operands)}{rest})"

    def _given(self, symbol: Atom) -> tuple[int, int]:
        """An axis of an input whose size is a symbol, or a multiple of a part of it."""
        for index, shape in enumerate(self.shapes.inputs):
            for axis, dim in enumerate(shape):
                found = atoms([expanded(size_of(dim))])
                if symbol in found and all(a == symbol or a.op == "part" for a in found):
                    return index, axis
        raise AssertionError(f"no input has the size {symbol}")

    def _position(self, index: int, axis: int) -> int:
        return sum(map(len, self.shapes.inputs[:index])) + axis


def _are_none_with(made: Sequence[Size], size: Size) -> bool:
    """Whether results have no elements in every run in which a size, never negative, is 0."""
    term = single_term(expanded(size))
    if not made or term is None or not is_nonnegative(expanded(size)):
        return False
    factors = Expression({term[1]: 1})
    return all(divide_exactly(expanded(result), factors) is not None for result in made)


def _is_symbol(atom: Atom) -> bool:
    """Whether an axis has the size of a symbol, which is checked."""
    own = atom.operands[0] if atom.op == "dim" and len(atom.operands) == 1 else None
    return isinstance(own, Expression) and own.atom is not None and not own.atom.op


def _least_within(size: Size, symbol: Atom, bounds: tuple[int, int]) -> int | None:
    """The least number for a symbol with which a size that grows with it is within bounds; None
    where that is the symbol's own or isn't found."""

    def fits(number: int) -> bool:
        found = e.substitute(size, lambda atom: number)
        return isinstance(found, int) and bounds[0] <= found <= bounds[1]

    low = symbol.range.low or 0
    if fits(low):
        return None
    step = 1
    while not fits(low + step):
        low, step = low + step, 2 * step
        if step > MOST:
            return None
    least = low + step
    while least - low > 1:
        middle = (low + least) // 2
        low, least = (low, middle) if fits(middle) else (middle, least)
    return least


def _admitted(symbol: Atom) -> str:
    low, high = symbol.range
    most = f" to {high}" if is_bounded(symbol) else " up"
    return f"'{symbol.key}' is from {low}{most}"


def size_functions(memory: OpenMemory, sizes: Sizes) -> str:
    """The source of `find_sizes` and `place`, which needs `sizes.h`."""
    largest, count = memory.largest, len(memory.temporaries)
    placed = _PLACED.format(buffers=count, stacks=len(memory.stacks))
    if largest is not None:
        offsets = ", ".join(map(str, [*largest.offsets, 0]))
        placed += "\n" + _WITHIN.format(buffers=count, offsets=offsets, most=largest.nbytes)
    found = "".join(
        _READ.format(place=place, lines="\n".join(lines))
        for place, lines in enumerate(sizes.read_lines)
    )
    text = _SOURCE.format(
        sizes="\n".join(sizes.lines),
        ranges=", ".join(f"{{{t.first}, {t.last}}}" for t in memory.temporaries) or "{0, 0}",
        bytes="\n".join(
            f"    bytes[{index}] = {sizes.code(size_of(t.nbytes))};"
            for index, t in enumerate(memory.temporaries)
        ),
        placed=placed,
        stacks=_stacks(memory),
        tables=table_bytes(memory),
        shift=CALL_SHIFT,
        fault=int(Fault.SIZE),
    )
    return text + found


def _stacks(memory: OpenMemory) -> str:
    """Tables for `secateur_stack`."""
    lines = []
    for index, stack in enumerate(memory.stacks):
        numbers = (n for buffer, below in stack for n in (buffer, len(below), *below))
        text = ", ".join(map(str, numbers)) or "0"
        lines.append(f"static const unsigned short stack_{index}[] = {{{text}}};")
    names = ", ".join(f"stack_{index}" for index in range(len(memory.stacks)))
    lines.append(f"static const unsigned short *const stacks[] = {{{names or '0'}}};")
    return "\n".join(lines)


def largest_arena(memory: OpenMemory) -> int | None:
    """Bytes that the buffers of no run exceed, without threads' scratch."""
    return None if memory.largest is None else table_bytes(memory) + memory.largest.nbytes


def room(memory: OpenMemory) -> int:
    """Entries of each of the tables that a run places buffers by."""
    return max(1, len(memory.temporaries))


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
    extra += [size_of(place.offset) for place in memory.places.values()]
    extra += [size_of(size) for cache in schedule.open.caches for size in cache.sizes]
    extra += [size_of(loop.steps) for loop in schedule.loops if loop.steps is not None]
    sizes = Sizes(schedule.open, extra)
    if any(may_be_none(single(atom)) for atom in sizes.atoms):
        results = _results(schedule)
        sizes.guards = [sizes.guard(call, results) for call in schedule.calls]
    unknown = [atom.key for atom in sizes.atoms if not is_computable(atom)]
    if unknown:
        raise UnsupportedError(f"an artifact can't compute the size {unknown[0]} of a run")
    return sizes


def _results(schedule: Schedule) -> set[Buffer]:
    """The buffers that something reads after the call that writes them: none is scratch."""
    assert schedule.open is not None
    found = {buffer.root()[0] for buffer in schedule.outputs}
    found |= {read.buffer.root()[0] for read in schedule.open.reads}
    for call in schedule.calls:
        found |= {b.root()[0] for b in call.arguments if b not in call.written}
    return found


def table_bytes(memory: OpenMemory) -> int:
    """Bytes at the arena's beginning where the entry keeps what it places buffers by, and what it
    reads of sizes that data decide."""
    end = kept_from(memory) + 8 * memory.reads if memory.reads else 20 * room(memory)
    return -(-end // 64) * 64


def kept_from(memory: OpenMemory) -> int:
    """Where the numbers that a run reads lie in the tables."""
    return -(-20 * room(memory) // 8) * 8
