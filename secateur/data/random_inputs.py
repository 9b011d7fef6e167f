"""Random inputs that a model can run with, for comparisons and timings without sample data.

A model says too little of its inputs to make some by its word alone: open sizes have to be
multiples of strides, equal what a constant has, be large enough for a window; an integer
may have to be a sample rate. So ONNX Runtime is asked: starting from usual sizes, one open
size at a time gets the value with which the model runs furthest. What comes into question
are powers of two and the numbers that the model itself holds.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import AttributeProto, TensorProto, helper

from ..ir.cost import size_at, symbols_of
from ..ir.element_count import element_count
from ..ir.errors import SecateurError
from ..ir.graph import Attribute, Value, tensor_type
from ..ir.model import Model
from ..ir.reference import Session
from ..ir.tensor import Array
from ..ir.trials import processor_seconds
from ..passes.sizes import axis_name
from .inputs import model_inputs
from .npz import DataError

OPEN_SIZES = (8, 32, 128, 512)
"""Sizes to try for all open axes at once; networks that downsample need large ones."""

USUAL_SIZES = (1, 2, 3, 4, 16, 64, 224, 256, 48, 96, 160, 192, 320, 384, 640, 7, 14, 28, 56)
"""Further sizes to try for one open axis at a time."""

_RANKS = (2, 4, 3, 1, 0, 5)
"""Numbers of axes to try for an input that declares none."""

_SECONDS = 10.0
"""Processor time after which the search gives up."""

_ELEMENTS = 2**24
"""Largest number of elements of an input."""

_COMBINATIONS = 500
"""Most combinations to try where the search is stuck."""

_MODEL_NUMBERS = 64
"""Most numbers of the model's own to try."""


def random_feed(model: Model, seed: int) -> dict[str, Array]:
    """One run's random inputs, with which ONNX Runtime can run the model.

    A free first axis is 1 where that will do. Raises DataError where nothing is found.
    """
    return _Search(model, seed).first()


def random_feeds(model: Model, seed: int) -> list[dict[str, Array]]:
    """Inputs of several runs: that of `random_feed`, then with more samples, and with other
    sizes where those are open. Raises DataError where nothing is found."""
    search = _Search(model, seed)
    return [search.first(), *search.others()]


def describe_feeds(feeds: Sequence[Mapping[str, Array]]) -> str:
    """The inputs' shapes, run by run: `x 1x3x32x32; x 3x3x32x32`."""
    shapes = [
        ", ".join(
            f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}" for name, array in f.items()
        )
        for f in feeds
    ]
    return "; ".join(dict.fromkeys(s for s in shapes if s)) or "no inputs"


Assignment = dict[str, int]
"""Open sizes, numbers of axes and kinds of values by the name of what they belong to."""


class _Search:
    """Looks for sizes and values of the inputs with which the model runs."""

    def __init__(self, model: Model, seed: int) -> None:
        self.seed = seed
        self.inputs = model_inputs(model)
        for value in self.inputs:
            if tensor_type(value.type) is None or value.dtype == TensorProto.UNDEFINED:
                raise DataError(f"no random inputs: input '{value.name}' is no tensor")
        names = {axis_name(v, a) for v in self.inputs for a in _axes(v) if _is_open(v, a)}
        self.symbols = {name for name in names if not symbols_of(name) or symbols_of(name) - names}
        firsts = {axis_name(v, 0) for v in self.inputs if _is_open(v, 0)}
        self.batches = firsts & self.symbols
        self.numbers = _numbers(model)
        self.choices = dict(self._choices())
        self.found: Assignment | None = None
        named = model.clone()
        for index, node in enumerate(named.graph.nodes):
            node.name = f"node{index}"
        self.length = len(named.graph.nodes)
        try:
            self.session = Session(named, optimize=False, trial=True)
        except SecateurError as error:
            raise DataError(f"no random inputs that the model runs with ({error})") from None
        self.tried = 0
        self.problem = ""
        self.deadline = processor_seconds() + _SECONDS

    def first(self) -> dict[str, Array]:
        """The first inputs found with which the model runs. Raises DataError."""
        starts = [(self._reach(start), start) for start in self._starts()]
        starts.sort(key=lambda pair: -pair[0])
        tries = itertools.chain((start for _, start in starts), self._combinations())
        furthest = -2
        for number, assignment in enumerate(tries):
            reached = self._reach(assignment)
            if reached > furthest or number < len(starts):
                assignment, reached = self._improved(assignment, reached)
            furthest = max(furthest, reached)
            if reached == self.length:
                self.found = assignment
                return self._feed(assignment)
            if processor_seconds() > self.deadline:
                break
        tried = f"{self.tried} combinations of sizes" if self.choices else "its inputs"
        raise DataError(
            f"no random inputs that the model runs with (tried {tried}; {self.problem})"
        )

    def _improved(self, best: Assignment, furthest: int) -> tuple[Assignment, int]:
        """Change one choice at a time as long as the model then runs further."""
        before = -2
        while before < furthest < self.length:
            before = furthest
            for name, values in self.choices.items():
                for value in values:
                    if furthest == self.length or processor_seconds() > self.deadline:
                        return best, furthest
                    reached = self._reach({**best, name: value})
                    if reached > furthest:
                        best, furthest = {**best, name: value}, reached
        return best, furthest

    def others(self) -> Iterator[dict[str, Array]]:
        """Inputs with more samples, and with larger sizes, as far as the model runs with them."""
        assert self.found is not None
        sizes = [n for n in self.choices if n not in self.batches and not _is_special(n)]
        more = {**self.found, **{name: 3 * self.found[name] for name in self.batches}}
        larger = {**self.found, **{name: 2 * self.found[name] for name in sizes}}
        for assignment in (more, larger):
            if assignment != self.found and self._reach(assignment) == self.length:
                yield self._feed(assignment)

    def _choices(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What to try for everything that is open."""
        sizes = tuple(dict.fromkeys((*OPEN_SIZES, *USUAL_SIZES, *self.numbers)))
        for value in self.inputs:
            if value.shape is None:
                yield f"{_RANK}{value.name}", _RANKS
            for axis in _axes(value):
                if _is_open(value, axis) and axis_name(value, axis) in self.symbols:
                    yield axis_name(value, axis), sizes
            if _is_parameter(value):
                yield f"{_VALUES}{value.name}", (_RANDOM, 1, *self.numbers)

    def _starts(self) -> Iterator[Assignment]:
        """Assignments to begin with: the same size for all open axes but the first ones."""
        for size in OPEN_SIZES:
            start = dict.fromkeys(self.choices, size)
            for name, values in self.choices.items():
                if name in self.batches or _is_special(name):
                    start[name] = 1 if name in self.batches else values[0]
            yield start
            if all(name in self.batches or _is_special(name) for name in self.choices):
                return

    def _combinations(self) -> Iterator[Assignment]:
        """Where no choice alone leads on: several at once, of the numbers most likely."""
        likely = {*self.numbers, 1, 2, 3, 4, 8, _RANDOM}
        pools = [[v for v in values if v in likely] for values in self.choices.values()]
        for values in itertools.islice(itertools.product(*pools), _COMBINATIONS):
            yield dict(zip(self.choices, values, strict=True))

    def _reach(self, assignment: Assignment) -> int:
        """How many of the model's nodes run; all of them where the model does."""
        self.tried += 1
        try:
            self.session.run(self._feed(assignment))
        except SecateurError as error:
            self.problem = re.sub(r"Name:'node\d+' ", "", str(error))
            node = re.search(r"Name:'node(\d+)'", str(error))
            return int(node[1]) if node else -1
        return self.length

    def _feed(self, assignment: Assignment) -> dict[str, Array]:
        generator = np.random.default_rng(self.seed)
        return {
            value.name: random_array(
                value,
                self._shape(value, assignment),
                generator,
                assignment.get(f"{_VALUES}{value.name}", _RANDOM),
            )
            for value in self.inputs
        }

    def _shape(self, value: Value, assignment: Assignment) -> list[int]:
        rank = len(value.shape) if value.shape is not None else assignment[f"{_RANK}{value.name}"]
        shape = []
        for axis in range(rank):
            size = None if value.shape is None else value.shape[axis]
            if not isinstance(size, int):
                name = axis_name(value, axis)
                size = assignment[name] if name in self.symbols else size_at(name, assignment)
            shape.append(size)
        if element_count(shape, _ELEMENTS) is None:
            sizes = "x".join(map(str, shape))
            raise DataError(
                f"input '{value.name}': {sizes} elements are too many for random data; "
                f"--input-shape gives an input other sizes"
            )
        return shape


_RANK, _VALUES = "rank of ", "values of "
_RANDOM = -1
"""Stands for random values where others come into question, too."""


def _is_special(name: str) -> bool:
    return name.startswith((_RANK, _VALUES))


def _axes(value: Value) -> range:
    """The axes that an input has, or may have."""
    return range(max(_RANKS) if value.shape is None else len(value.shape))


def _is_open(value: Value, axis: int) -> bool:
    shape = value.shape
    return shape is None or (axis < len(shape) and not isinstance(shape[axis], int))


def _is_parameter(value: Value) -> bool:
    """Whether an input may hold a setting, such as a sample rate, that not any number suits."""
    if value.dtype not in (TensorProto.INT64, TensorProto.INT32):
        return False
    return value.shape is None or len(value.shape) <= 1


def _numbers(model: Model) -> tuple[int, ...]:
    """Numbers that the model holds (elements of small integer constants, known sizes), and
    their quotients by what the inputs' known sizes leave."""
    found: dict[int, None] = {}
    for node in model.all_nodes():
        for value in node.inputs:
            tensor = model.constant(value)
            if tensor is None or tensor.is_sparse:
                continue
            if tensor.size <= 8 and tensor.dtype in (TensorProto.INT64, TensorProto.INT32):
                found.update(dict.fromkeys(int(n) for n in tensor.numpy().reshape(-1)))
            else:
                found.update(dict.fromkeys(tensor.shape))
        for output in node.outputs:
            shape = () if output is None or output.shape is None else output.shape
            found.update(dict.fromkeys(s for s in shape if isinstance(s, int)))
        for name in ("kernel_shape", "strides", "blocksize"):
            found.update(dict.fromkeys(_integers(node.attributes.get(name))))
    known = [math.prod(s for s in v.shape or () if isinstance(s, int)) for v in model_inputs(model)]
    shares = [n // k for n in found for k in known if k > 1 and n % k == 0]
    usable = [n for n in dict.fromkeys((*found, *shares)) if 1 < n <= 2**20]
    return tuple(usable[:_MODEL_NUMBERS])


def _integers(attribute: Attribute | None) -> list[int]:
    """Those that an attribute has by itself, of whatever type it should be."""
    if attribute is None or attribute.proto.ref_attr_name:
        return []
    kind, proto = attribute.proto.type, attribute.proto
    return [proto.i] if kind == AttributeProto.INT else list(proto.ints)


def random_array(
    value: Value, shape: Sequence[int], generator: np.random.Generator, fill: int = _RANDOM
) -> Array:
    """Normal floats, integers 0 and 1 or all `fill`, random booleans, short strings."""
    if value.dtype == TensorProto.STRING:
        return np.array(["a", "b"], object)[generator.integers(0, 2, shape)]
    dtype = helper.tensor_dtype_to_np_dtype(value.dtype)
    if fill != _RANDOM:
        return np.full(shape, fill, dtype)
    if dtype == np.bool_ or dtype.kind in "iu":
        return np.asarray(generator.integers(0, 2, shape)).astype(dtype)
    return np.asarray(generator.standard_normal(shape)).astype(dtype)
