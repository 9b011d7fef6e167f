"""Tensors of a plan, views of them, and what every operation has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ....ir.tensor import Array
from .sizes import exact_quotient, is_open
from .strides import row_major


@dataclasses.dataclass(eq=False)
class PlanTensor:
    """A value at run time, or a constant where `const` is set.

    `readers` are the operations that read it, each once; `kept` says that something
    besides them needs it as it is (a graph output).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    const: Array | None = None
    producer: Operation | None = None
    readers: list[Operation] = dataclasses.field(default_factory=list)
    kept: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether the tensor may have the blocked layout: N, C, [H,] W with a known C."""
        return len(self.shape) in (3, 4) and not is_open(self.shape[1])


@dataclasses.dataclass(eq=False)
class View:
    """How an elementwise operation reads a tensor: as it is, or through strides."""

    tensor: PlanTensor
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    offset: int = 0

    @classmethod
    def of(cls, tensor: PlanTensor) -> View:
        return cls(tensor, tensor.shape)

    @property
    def is_whole(self) -> bool:
        return self.strides is None and self.shape == self.tensor.shape

    @property
    def element_strides(self) -> tuple[int, ...]:
        """Elements between neighbours on each axis; 0 where the axis has one element."""
        found = row_major(self.shape) if self.strides is None else self.strides
        return tuple(s if size != 1 else 0 for s, size in zip(found, self.shape, strict=True))

    @property
    def first_channel(self) -> int | None:
        """Where the view is some channels of whole images in order, the first of them."""
        whole, part = self.tensor.shape, self.shape
        if not self.tensor.is_image or len(part) != len(whole) or not self.tensor.elements:
            return None
        if (part[0], *part[2:]) != (whole[0], *whole[2:]):
            return None
        steps = row_major(whole)
        own = zip(self.element_strides, steps, part, strict=True)
        first = exact_quotient(self.offset, steps[1])
        if first is None or first + part[1] > whole[1]:
            return None
        return None if any(n != 1 and s != t for s, t, n in own) else first


def broadcast_strides(tensor: PlanTensor, shape: Sequence[int]) -> list[int]:
    """A tensor's strides over a shape that it broadcasts to."""
    own = row_major(tensor.shape)
    strides = [s if size != 1 else 0 for s, size in zip(own, tensor.shape, strict=True)]
    return [0] * (len(shape) - len(strides)) + strides


@dataclasses.dataclass(eq=False)
class Operation:
    """Base: what runs at one point of the plan. `label` names the ONNX node it came from."""

    label: str
    outputs: list[PlanTensor]

    @property
    def output(self) -> PlanTensor:
        return self.outputs[0]

    def reads(self) -> list[PlanTensor]:
        """All tensors read, constants included."""
        raise NotImplementedError
