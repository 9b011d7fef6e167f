"""Writing a model with its constants in a file beside it, without holding them in memory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

from onnx import GraphProto, TensorProto

from .graph import Value
from .model import Model
from .tensor import FileRegion, Tensor, set_external

EMBED_LIMIT = 2**31 - 2**24
"""Bytes of constants above which a written model keeps them in a file beside it.

A protobuf message holds at most 2 GiB; the margin leaves room for the graph itself.
"""

_ALIGNMENT = 4096
_SMALLEST = 1024
"""Bytes from which a tensor goes into the file, where the model is too large for one message."""


def constant_tensors(model: Model) -> list[Tensor]:
    """Every tensor that writing the model stores: initializers and external attributes."""
    found = [
        value.const
        for graph in model.all_graphs()
        for value in graph.initializers.values()
        if value.const is not None
    ]
    attributes = [a.tensor for node in model.all_nodes() for a in node.attributes.values()]
    return found + [tensor for tensor in attributes if tensor is not None]


def external_files(model: Model) -> list[Path]:
    """The files in which constants of a model lie, each once, in order of their names."""
    return sorted({t.region.path for t in constant_tensors(model) if t.region is not None})


class ExternalData(contextlib.AbstractContextManager["ExternalData"]):
    """Puts tensors into the file `path`, which protos will call `location`.

    The file is made when the first tensor goes there: those that came from a file, and
    all but small ones where together they are too large for a protobuf message.
    """

    def __init__(self, model: Model, path: Path, location: str) -> None:
        self._everything = sum(t.nbytes for t in constant_tensors(model)) > EMBED_LIMIT
        self._path = path
        self._location = location
        self._file: BinaryIO | None = None
        self._placed: dict[Tensor, tuple[int, int]] = {}

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def initializer(self, value: Value, tensor: Tensor, graph: GraphProto) -> None:
        """Write an initializer into a graph's proto."""
        if tensor.is_sparse:
            graph.sparse_initializer.append(tensor.to_sparse_proto(value.name))
        else:
            graph.initializer.append(self.attribute(tensor, value.name))

    def attribute(self, tensor: Tensor, name: str) -> TensorProto:
        """The proto of a tensor, which refers to the file or holds its data."""
        large = self._everything and tensor.nbytes >= _SMALLEST
        if tensor.dtype == TensorProto.STRING or not (tensor.is_external or large):
            return tensor.to_proto(name)
        if tensor not in self._placed:
            self._placed[tensor] = self._append(tensor)
        proto = tensor.header(name)
        set_external(proto, self._location, *self._placed[tensor])
        return proto

    def settle(self, target: Path) -> None:
        """Once the file has become `target`: let tensors that came from there find it again."""
        for tensor, (offset, length) in self._placed.items():
            if tensor.comes_from(target):
                tensor.move(FileRegion.of(target, offset, length), self._location)

    def _append(self, tensor: Tensor) -> tuple[int, int]:
        if self._file is None:
            self._file = open(self._path, "wb")  # noqa: SIM115 - closed by __exit__
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        tensor.write_to(self._file)
        return offset, self._file.tell() - offset
