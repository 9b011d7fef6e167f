"""Preprocessing as part of a model: what it is given are pictures as decoders leave them."""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import TensorProto, helper

from ...ir.errors import SecateurError
from ...ir.graph import Attribute, Dimension, Node, Value
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.tensor import Tensor
from ..base import Context, Pass, PassResult
from ..initializers import SEPARATE_SINCE, separate_initializers
from .input_values import find_input

_BROADCASTING_SINCE = 7
_ROUND_SINCE = 11


@dataclasses.dataclass(frozen=True)
class EmbedPreprocessing(Pass):
    """Let an input take pictures: bytes, with axes for height, width and channels at the end.

    The nodes that are added compute (x * scale - mean) / std in float32, channel by channel, in the
    input's type; integers are rounded and stay within the type's limits. `reverse` swaps the
    order of channels before that. `last` says that channels are the input's last axis, not the
    third from the end. Raises SecateurError where the input doesn't exist, or the model's operators
    are too old.
    """

    input: str
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    reverse: bool = False
    last: bool = False

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        value = find_input(model, self.input)
        shape = value.shape
        if shape is None or len(shape) < 3:
            raise SecateurError(f"input '{self.input}' takes no pictures: it has not 3 axes")
        if value.is_graph_output:
            raise SecateurError(f"input '{self.input}' is an output, too: nothing can precede it")
        whole = np.issubdtype(helper.tensor_dtype_to_np_dtype(value.dtype), np.integer)
        needed = _ROUND_SINCE if whole else _BROADCASTING_SINCE
        if model.opset < needed:
            raise SecateurError(
                f"preprocessing needs operators of opset {needed}, and the model's are of "
                f"{model.opset}: secateur simplify --opset {needed} converts it"
            )
        separate_initializers(model)
        model.extra.ir_version = max(model.extra.ir_version, SEPARATE_SINCE)
        sizes = list(shape) if self.last else [*shape[:-3], *shape[-2:], shape[-3]]
        writer = _PreprocessingWriter(model, value, sizes)
        self._write(writer, value.dtype, whole=bool(whole), rank=len(shape))
        added = writer.finish()
        infer_shapes(model)
        return PassResult(True, {"nodes": added})

    def _write(self, writer: _PreprocessingWriter, dtype: int, *, whole: bool, rank: int) -> None:
        if self.reverse:
            count = writer.sizes[-1]
            if not isinstance(count, int):
                raise SecateurError(f"input '{self.input}' leaves its number of channels open")
            order = Tensor.from_array(np.arange(count)[::-1].astype(np.int64))
            writer.add("Gather", order, axis=rank - 1)
        if not self.last:
            axes = [*range(rank - 3), rank - 1, rank - 3, rank - 2]
            writer.add("Transpose", perm=axes)
        steps = [
            ("Mul", np.array([self.scale], np.float32), 1),
            ("Sub", np.array(self.mean, np.float32), 0),
            ("Div", np.array(self.std, np.float32), 1),
        ]
        steps = [(op, numbers, none) for op, numbers, none in steps if (numbers != none).any()]
        if not steps:
            writer.cast(dtype)
            return
        writer.cast(TensorProto.FLOAT)
        for op, numbers, _ in steps:
            writer.add(op, Tensor.from_array(numbers if self.last else numbers.reshape(-1, 1, 1)))
        if whole:
            writer.add("Round")
            limits = np.iinfo(helper.tensor_dtype_to_np_dtype(dtype))
            if limits.bits <= 16:  # numbers made of bytes reach no further
                bounds = (limits.min, limits.max)
                writer.add("Clip", *(Tensor.from_array(np.float32(n)) for n in bounds))
        writer.cast(dtype)


class _PreprocessingWriter:
    """Adds nodes between a new input and the value that was the input before."""

    def __init__(self, model: Model, value: Value, sizes: list[Dimension]) -> None:
        self.model, self.old, self.sizes = model, value, sizes
        self.graph = model.graph
        at = self.graph.inputs.index(value)
        name, value.name = value.name, model.fresh_name(f"{value.name}_prepared")
        value.is_input = False
        self.value = Value(name)
        self.value.set_tensor_type(TensorProto.UINT8, sizes)
        self.value.is_input = True
        self.graph.inputs[at] = self.value
        self.dtype: int = TensorProto.UINT8
        self.nodes: list[Node] = []

    def add(self, op: str, *constants: Tensor, **attributes: int | list[int]) -> None:
        """A node that reads what is there so far and constants."""
        read = [
            self.graph.add_initializer(self.model.fresh_name(f"preprocess_{op.lower()}"), constant)
            for constant in constants
        ]
        made = Value(self.model.fresh_name(f"{self.old.name}_{op.lower()}"))
        given = {name: Attribute.of(name, value) for name, value in attributes.items()}
        name = self.model.fresh_name(f"preprocess_{op}")
        self.nodes.append(Node(op, [self.value, *read], [made], given, name=name))
        self.value = made

    def cast(self, dtype: int) -> None:
        if dtype != self.dtype:
            self.add("Cast", to=int(dtype))
            self.dtype = dtype

    def finish(self) -> int:
        """Let the last node write the value that was the input; the number of nodes."""
        if not self.nodes:
            self.add("Identity")
        last = self.nodes[-1]
        last.outputs = (self.old,)
        self.old.producer, self.old.output_index = last, 0
        for node in self.nodes:
            node.graph = self.graph
        self.graph.nodes[:0] = self.nodes
        return len(self.nodes)
