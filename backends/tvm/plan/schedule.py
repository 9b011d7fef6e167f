"""The schedule: calls of kernels on buffers, in order.

Buffers are plain memory; shapes and layouts are known to those who emit the calls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ....ir.symbolic.expressions import Atom
from ....ir.tensor import Array


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory of `nbytes`.

    An input of the model has its index as `input`, a constant its elements as `array`. A
    part of another buffer says which as `whole`, and at which byte it begins.
    """

    nbytes: int
    input: int | None = None
    array: Array | None = None
    whole: Buffer | None = None
    offset: int = 0

    def part(self, offset: int, nbytes: int) -> Buffer:
        """`nbytes` of this buffer from a byte on."""
        return Buffer(nbytes, whole=self, offset=offset)

    def root(self) -> tuple[Buffer, int]:
        """The buffer that this one lies in, itself if none, and where."""
        buffer, offset = self, 0
        while buffer.whole is not None:
            offset += buffer.offset
            buffer = buffer.whole
        return buffer, offset


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A call of a kernel: what it reads, then what it writes, and open sizes.

    Where data decide sizes a run leaves out a call all of whose results, among the buffers
    `written`, have no elements, and ends where the kernel isn't proven for operands without any
    (`takes_empty`). `label` is the node's.
    """

    kernel: str
    arguments: tuple[Buffer, ...]
    sizes: tuple[Atom, ...] = ()
    written: tuple[Buffer, ...] = ()
    takes_empty: bool = False
    label: str = ""


@dataclasses.dataclass(frozen=True)
class CallLoop:
    """Calls from `first` up to before `last` that a run makes again and again.

    `step` is the number of the round, from 0 up, in offsets of what the calls read and write;
    there are as many as `steps` says, a size, or the number that `limit` holds, an int64. Where
    there is a buffer `proceed`, its first byte says before each round whether it is made. Of a
    branch, which is one round, `unless` says whether it is made where that byte is 0.
    """

    first: int
    last: int
    step: Atom
    steps: int | None
    limit: Buffer | None = None
    proceed: Buffer | None = None
    unless: bool | None = None

    def buffers(self) -> list[Buffer]:
        """What a run looks at before each round."""
        return [buffer for buffer in (self.limit, self.proceed) if buffer is not None]


@dataclasses.dataclass
class Schedule:
    """`outputs` are buffers that hold the results after the last call; `open` says what follows
    from the sizes that only a run fixes, where there are any. Of `loops` inner ones come before
    those around them."""

    calls: list[KernelCall] = dataclasses.field(default_factory=list)
    outputs: list[Buffer] = dataclasses.field(default_factory=list)
    loops: list[CallLoop] = dataclasses.field(default_factory=list)
    open: OpenShapes | None = None


@dataclasses.dataclass
class OpenShapes:
    """Shapes of a model's inputs and outputs some of whose sizes only a run fixes.

    `elements` are how many such tensors on the way have, `equal` sizes that must be so, `reads`
    what data decide, in the order in which a run knows it; `caches` are inputs that outputs
    continue.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    equal: tuple[tuple[int, int], ...] = ()
    elements: dict[int, None] = dataclasses.field(default_factory=dict)
    reads: list[SizeRead] = dataclasses.field(default_factory=list)
    caches: list[CacheRows] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class SizeRead:
    """A number of sizes, `atom`, that a run reads from a buffer before the call of this number.

    It is the element `index` of those of `dtype`; `label` says where it comes from. In a loop of
    calls, whose `step` it is then, each round reads it, perhaps behind the last call.
    """

    atom: Atom
    buffer: Buffer
    index: int
    dtype: str
    call: int
    label: str
    step: str | None = None


@dataclasses.dataclass(frozen=True)
class CacheRows:
    """Rows of an input, by its index, which are in an output's buffer, too, from a call on.

    They are `outer` runs of `nbytes`, `before` bytes apart in the input and `after` in the buffer.
    """

    input: int
    buffer: Buffer
    call: int
    outer: int
    nbytes: int
    before: int
    after: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """All numbers of it that a run may fix."""
        return (self.outer, self.nbytes, self.before, self.after)


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * np.dtype(dtype).itemsize
