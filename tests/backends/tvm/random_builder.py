"""Grows a random graph node by node, each evaluated at once, so that it is well-conditioned.

Every value is known in several runs: of the graph's own inputs; twice with the results of nodes
that round moved by a little; and of fewer samples where the graph has a batch. A node
is taken back where the moved runs differ by more than rounding explains (a step, a tie, a
cancellation), where it mixes samples, and where ONNX Runtime doesn't take it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...onnx_runtime import session_of

Array = Any
Shape = tuple[int, ...]

BATCH = 5
CHOSEN = slice(None, None, -2)
"""The samples of the run with fewer of them: in another order, so that none affects another."""
FEWER = len(range(BATCH)[CHOSEN])
MOST_ELEMENTS = 4096
LARGEST = 1e4
NUDGE = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-6}
"""How much the results of nodes that round are moved, as a share of their magnitude."""
STEADY = {False: 5e-5, True: 2e-2}
"""How far moved runs may be apart, as a share of the magnitude: without and with float16."""
FLOATS = ("float32", "float64", "float16")
SIGNED = ("int64", "int32")
NUMBERS = ("float32", "float32", "float32", "int64", "int32", "float64", "float16", "uint8")
ANY = (*NUMBERS, "bool")


class ImpossibleError(Exception):
    """A draw that leads to no node."""


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """A value of the graph: its name, whether it is constant, and what it is in each run."""

    name: str
    runs: list[Array]
    constant: bool = False
    sampled: bool = False
    rough: bool = False

    @property
    def array(self) -> Array:
        return self.runs[0]

    @property
    def dtype(self) -> str:
        return str(self.array.dtype)

    @property
    def shape(self) -> Shape:
        return tuple(self.array.shape)

    @property
    def rank(self) -> int:
        return int(self.array.ndim)


class Builder:
    """A graph that grows. Raises ImpossibleError where what is drawn can't be."""

    def __init__(self, random: np.random.Generator, opset: int, *, batch: bool) -> None:
        self.random, self.opset, self.batch = random, opset, batch
        self.empty = not batch and random.random() < 0.06
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[Drawn] = []
        self.values: list[Drawn] = []
        self.count = 0

    # --- drawing ---

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def between(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        if high < low:
            raise ImpossibleError("no number")
        return int(self.random.integers(low, high + 1))

    def size(self) -> int:
        if self.empty and self.chance(0.1):
            return 0
        return int(self.one_of(1, 2, 3, 3, 4, 5, 7, 8, 9, 16, 17))

    def sizes(self, rank: int) -> Shape:
        while True:
            shape = tuple(self.size() for _ in range(rank))
            if math.prod(shape) <= MOST_ELEMENTS // 2:
                return shape

    def numbers(self, shape: Sequence[int], dtype: str, low: float = -2, high: float = 2) -> Array:
        if dtype == "bool":
            return np.asarray(self.random.random(tuple(shape)) < 0.5)
        if dtype in FLOATS:
            return np.asarray(self.random.uniform(low, high, tuple(shape))).astype(dtype)
        least, most = (0, 256) if dtype == "uint8" else (-128, 128) if dtype == "int8" else (-9, 10)
        return np.asarray(self.random.integers(least, most, tuple(shape))).astype(dtype)

    def axis(self, rank: int, *, signed: bool = True) -> int:
        """An axis, which isn't the batch's, and is counted from the end at times."""
        first = 1 if self.batch else 0
        axis = self.between(first, rank - 1)
        return axis - rank if signed and self.chance(0.4) else axis

    def axes(self, rank: int, *, signed: bool = True) -> list[int]:
        first = 1 if self.batch else 0
        if rank <= first:
            raise ImpossibleError("no axis")
        count = self.between(1, rank - first)
        chosen = self.random.permutation(np.arange(first, rank))[:count].tolist()
        return [a - rank if signed and self.chance(0.3) else a for a in chosen]

    # --- values ---

    def name(self, prefix: str = "t") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def input(self, array: Array) -> Drawn:
        """An input of the graph; of its samples where the first axis is the batch."""
        sampled = self.batch and array.ndim > 0 and array.shape[0] == BATCH
        runs = [array, array, array]
        if self.batch:
            runs.append(array[CHOSEN] if sampled else array)
        value = Drawn(self.name("x"), runs, sampled=sampled)
        self.inputs.append(value)
        self.values.append(value)
        return value

    def constant(self, array: Array) -> Drawn:
        """A constant: mostly an initializer, else a node, or one that folding finds."""
        array = np.asarray(array)
        name = self.name("c")
        way = self.random.random()
        tensor = numpy_helper.from_array(array, name)
        if way < 0.7:
            self.initializers.append(tensor)
        elif way < 0.9:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            source = self.name("c")
            self.initializers.append(numpy_helper.from_array(array, source))
            self.nodes.append(helper.make_node("Identity", [source], [name]))
        return Drawn(name, [array] * (4 if self.batch else 3), constant=True)

    def ints(self, values: Any, dtype: str = "int64") -> Drawn:
        return self.constant(np.asarray(values, dtype))

    def fresh(self, shape: Sequence[int], dtype: str, low: float = -2, high: float = 2) -> Drawn:
        """A new input; in graphs with a batch its first axis mostly is the batch."""
        shape = tuple(shape)
        if self.batch and shape and self.chance(0.9):
            shape = (BATCH, *shape[1:])
        return self.input(self.numbers(shape, dtype, low, high))

    def pick(
        self,
        dtypes: Sequence[str] = FLOATS[:1],
        ranks: Sequence[int] = (1, 2, 3, 4),
        fits: Callable[[Drawn], bool] = lambda value: True,
    ) -> Drawn:
        """A value of the graph, late ones preferred, or else an input."""
        found = [v for v in self.values if v.dtype in dtypes and v.rank in ranks and fits(v)]
        if found and self.chance(0.85):
            late = [v for v in found if v.rank == max(ranks, key=lambda r: r == v.rank)] or found
            return late[-1 - min(int(self.random.geometric(0.4)) - 1, len(late) - 1)]
        other = [v for v in self.values if v.dtype in dtypes and v.rank > 0]
        if other and self.chance(0.6):
            value = self._ranked(other[-1 - min(self.between(0, 2), len(other) - 1)], ranks)
        else:
            dtype = self.one_of(*dtypes)
            value = self.fresh(self.sizes(int(self.one_of(*ranks))), dtype)
        if not fits(value):
            raise ImpossibleError("no such value")
        return value

    def _ranked(self, value: Drawn, ranks: Sequence[int]) -> Drawn:
        """The value itself, or its elements in another number of axes."""
        if value.rank in ranks:
            return value
        rank = int(self.one_of(*ranks))
        if rank == 0:
            raise ImpossibleError("no number")
        shape = list(value.shape)
        while len(shape) < rank:
            shape.insert(self.between(1, len(shape)), 1)
        while len(shape) > rank:
            last = shape.pop()
            shape[-1] *= last
        if self.batch and value.sampled:
            shape[0] = -1 if rank > 1 else shape[0]
        return self.node("Reshape", [value, self.ints(shape)])[0]

    def operand(self, shape: Sequence[int], dtype: str, low: float = -2, high: float = 2) -> Drawn:
        """An operand of a given shape: a value that there is, a constant or an input."""
        shape = tuple(shape)
        found = [v for v in self.values if v.dtype == dtype and v.shape == shape]
        if found and (low, high) == (-2, 2) and self.chance(0.5):
            return found[self.between(0, len(found) - 1)]
        if self.chance(0.75) and not (self.batch and shape and shape[0] == BATCH):
            return self.constant(self.numbers(shape, dtype, low, high))
        return self.input(self.numbers(shape, dtype, low, high))

    def weights(self, *shape: int, dtype: str = "float32") -> Drawn:
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        array = (self.random.standard_normal(shape) * scale).astype(dtype)
        if self.chance(0.85) or (self.batch and shape[0] == BATCH):
            return self.constant(array)
        return self.input(array)

    def within(self, value: Drawn, low: float, high: float) -> Drawn:
        """The value where its elements are in a range, else brought into it."""
        array = value.array
        if array.size and low <= array.min() and array.max() <= high:
            return value
        kind = value.array.dtype.type
        squashed = self.node("Sigmoid" if math.isfinite(high) else "Abs", [value])[0]
        low, high = max(low, -LARGEST), high if math.isfinite(high) else low + 1
        spread = self.node("Mul", [squashed, self.constant(kind((high - low) * 0.9))])[0]
        return self.node("Add", [spread, self.constant(kind(low + (high - low) * 0.05))])[0]

    # --- nodes ---

    def node(
        self,
        op_type: str,
        inputs: Sequence[Drawn | None],
        outputs: int | Sequence[bool] = 1,
        *,
        exact: bool = False,
        **attributes: Any,
    ) -> list[Drawn]:
        """Add a node; results that aren't wanted are left out. `exact` ones don't round."""
        wanted = [True] * outputs if isinstance(outputs, int) else list(outputs)
        names = [self.name() if want else "" for want in wanted]
        attributes = {n: a for n, a in attributes.items() if a is not None}
        node = helper.make_node(
            op_type, ["" if v is None else v.name for v in inputs], names, name=f"n{self.count}",
            **attributes,
        )  # fmt: skip
        given = {v.name: v for v in inputs if v is not None}
        runs = self._evaluate(node, list(given.values()))
        rough = any(v.rough for v in given.values())
        found = []
        for index, name in enumerate(n for n in names if n):
            arrays = [run[index] for run in runs]
            found.append(self._checked(name, arrays, rough=rough, exact=exact))
        self.nodes.append(node)
        self.values.extend(found)
        return found

    def _evaluate(self, node: onnx.NodeProto, given: Sequence[Drawn]) -> list[list[Array]]:
        dynamic = [v for v in given if not v.constant]
        infos = [
            helper.make_tensor_value_info(
                v.name, helper.np_dtype_to_tensor_dtype(v.array.dtype), [None] * v.rank
            )
            for v in dynamic
        ]
        graph = helper.make_graph(
            [node],
            "node",
            infos,
            [helper.make_empty_tensor_value_info(n) for n in node.output if n],
            [numpy_helper.from_array(v.array, v.name) for v in given if v.constant],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
        )
        try:
            session = session_of(model, optimize=False)
            return [
                session.run(None, {v.name: v.runs[run] for v in dynamic})
                for run in range(4 if self.batch else 3)
            ]
        except Exception as error:  # ONNX Runtime raises a family of unrelated types
            raise ImpossibleError(str(error)) from None

    def _checked(self, name: str, arrays: list[Array], *, rough: bool, exact: bool) -> Drawn:
        if not all(isinstance(a, np.ndarray) for a in arrays):
            raise ImpossibleError("no tensor")
        array, *moved = arrays
        if array.size > MOST_ELEMENTS or (array.size == 0 and not self.empty):
            raise ImpossibleError("too large, or empty")
        sampled = False
        if self.batch:
            sampled = self._sampled(array, moved.pop())
        kind = str(array.dtype)
        if kind in FLOATS:
            rough = rough or kind == "float16"
            scale = float(np.abs(array).max(initial=0.0))
            if not np.isfinite(array).all() or scale > LARGEST:
                raise ImpossibleError("not finite, or large")
            sign = self.random.choice((-1.0, 1.0), array.shape)
            for index, other in enumerate(moved):
                if other.shape != array.shape or not _close(array, other, STEADY[rough] * scale):
                    raise ImpossibleError("ill-conditioned")
                if not exact:
                    step = sign * (NUDGE[kind] * scale * (-1) ** index)
                    arrays[index + 1] = np.where(array == 0, other, other + step).astype(kind)
        elif any(o.shape != array.shape or not (o == array).all() for o in moved):
            raise ImpossibleError("at a step")
        return Drawn(name, arrays, sampled=sampled, rough=rough)

    def _sampled(self, array: Array, sample: Array) -> bool:
        """Whether a value has samples along its first axis; those that mix them are impossible."""
        if array.shape == sample.shape and (array == sample).all():
            return False
        pieces = array.ndim == sample.ndim > 0
        if pieces and FEWER * array.shape[0] == BATCH * sample.shape[0]:
            chosen = array.reshape(BATCH, -1)[CHOSEN].reshape(sample.shape)
            scale = float(np.abs(array.astype(np.float64)).max(initial=0.0))
            if _close(chosen, sample, 1e-5 * scale if str(array.dtype) in FLOATS else 0):
                return True
        raise ImpossibleError("mixes samples")


def _close(a: Array, b: Array, tolerance: float) -> bool:
    return bool((np.abs(a.astype(np.float64) - b.astype(np.float64)) <= tolerance).all())
