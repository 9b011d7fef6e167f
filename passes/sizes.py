"""Sizes: inference that follows shape computations, and those at which costs are counted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np
from onnx import helper

from ..ir.cost import Cost, ShapeOf, count, known_shape
from ..ir.errors import SecateurError
from ..ir.graph import Value, tensor_type
from ..ir.infer import infer_shapes
from ..ir.model import Model
from ..ir.symbolic.analysis import SizeAnalysis
from .loop_states import infer_loop_states
from .simplify.input_shapes import replace_symbols


def infer_sizes(model: Model) -> None:
    """As `ir.infer.infer_shapes`; what that leaves open is followed symbolically.

    ONNX's inference loses sizes behind chains such as Shape, Gather, Div, Slice, and in
    Loops, and with them the cost of all that comes after.
    """
    infer_shapes(model)
    infer_loop_states(model)
    if _leaves_sizes_open(model):
        SizeAnalysis(model).run()


def _leaves_sizes_open(model: Model) -> bool:
    """Whether a result has a rank or a size that is neither a number nor an input's symbol.

    Exporters name the sizes that they lost track of, too.
    """
    known = {size for value in model.graph.inputs for size in value.shape or ()}
    known.discard(None)
    for node in model.all_nodes():
        for value in node.outputs:
            if value is None or (value.type is not None and tensor_type(value.type) is None):
                continue
            shape = value.shape
            if shape is None or not all(isinstance(s, int) or s in known for s in shape):
                return True
    return False


# --- sizes at which costs are counted ----------------------------------------------

_IMAGE, _TOKENS, _WAVE, _VOLUME = 224, 128, 16_000, 32
"""Usual sizes: rows and columns of an image, steps of a sequence, samples of a sound, the edge
of a volume."""

_SCALES = (1.0, 2.0, 0.5, 0.25, 4.0)
"""Tried in turn, where the model contradicts itself at the usual sizes."""


@dataclasses.dataclass(frozen=True)
class CountedSizes:
    """The sizes at which a model with open ones is counted.

    `chosen` gives them by symbol, or by input and axis where the size has no name. What
    is not in it counts as 1: the first axis of every input, which mostly is a batch.
    """

    chosen: Mapping[str, int]

    @classmethod
    def usual(cls, model: Model) -> tuple[CountedSizes, ShapeOf]:
        """The usual sizes of such inputs (images, tokens, sound), as far as inference
        accepts them, and the shapes of the model's values at them.

        Shapes must have been inferred (`infer_sizes`).
        """
        inputs = [v for v in model.graph.inputs if v.const is None]
        batches = {axis_name(v, 0) for v in inputs if v.shape}
        usual = {n: s for v in inputs for n, s in _usual_sizes(v).items() if n not in batches}
        if not usual:
            return cls({}), known_shape
        for scale in _SCALES:
            sizes = cls({name: int(size * scale) for name, size in usual.items()})
            with contextlib.suppress(SecateurError):
                return sizes, sizes._shapes(model)
        return cls({}), known_shape

    def count(self, model: Model) -> Cost:
        """What the model costs at these sizes."""
        shape_of: ShapeOf = known_shape
        if self.chosen:
            with contextlib.suppress(SecateurError):
                shape_of = self._shapes(model)
        return count(model, shape_of)

    def _shapes(self, model: Model) -> ShapeOf:
        """The shapes of a model's values at these sizes. Raises where they contradict it."""
        fixed = model.clone()
        replace_symbols(fixed, self.chosen)
        for value in fixed.graph.inputs:
            if value.const is None and value.shape is not None:
                sizes = [
                    s if s is not None else self.chosen.get(axis_name(value, axis))
                    for axis, s in enumerate(value.shape)
                ]
                value.set_tensor_type(value.dtype, sizes)
        infer_sizes(fixed)
        pairs = zip(_values(model), _values(fixed), strict=True)
        shapes = {value: known_shape(other) for value, other in pairs}
        return lambda value: shapes[value] if value in shapes else known_shape(value)


def axis_name(value: Value, axis: int) -> str:
    """What an open size of an input is called: its symbol, else its place."""
    size = value.shape[axis] if value.shape is not None else None
    return size if isinstance(size, str) else f"axis {axis} of {value.name}"


def _values(model: Model) -> list[Value]:
    return [value for graph in model.graph.all_graphs() for value in graph.values()]


def _open_axes(value: Value) -> list[int]:
    """Axes of an input behind the first whose sizes are open."""
    if value.shape is None:
        return []
    return [a for a, size in enumerate(value.shape) if a > 0 and not isinstance(size, int)]


def _usual_sizes(value: Value) -> dict[str, int]:
    """Usual sizes of an input's open axes; channels of images are left open."""
    axes = _open_axes(value)
    rank = value.rank or 0
    if rank >= 4:
        last = value.shape[-1] if value.shape is not None else None
        channel = rank - 1 if isinstance(last, int) and last <= 4 and 1 in axes else 1
        usual = _IMAGE if rank == 4 else _VOLUME
        axes = [axis for axis in axes if axis != channel]
    elif rank == 2 and _is_float(value):
        usual = _WAVE
    else:
        usual = _TOKENS
    return {axis_name(value, axis): usual for axis in axes}


def _is_float(value: Value) -> bool:
    return bool(value.dtype) and np.dtype(helper.tensor_dtype_to_np_dtype(value.dtype)).kind == "f"
