"""What inference of a node was based on, so that only what has changed is inferred again.

Types are facts about values, and rewrites keep what values mean: the types of a node's results
stay right while its operator, its attributes, the types of its operands and the constants among
them are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import TensorProto, helper

from .graph import Inference, Node, Value, normalize_domain, tensor_type
from .model import Model
from .symbolic.expressions import Size, symbol
from .symbolic.facts import INTEGERS, LIMIT, Contents, Facts, Shape, constant_contents
from .symbolic.registry import find_contents, find_shapes
from .tensor import Tensor


def is_fresh(node: Node, versions: Mapping[str, int]) -> bool:
    """Whether a node's results have the types that inference would find, bodies included."""
    noted = node.inference
    if noted is None or noted.basis != basis(node, versions):
        return False
    return all(is_fresh(inner, versions) for body in node.subgraphs() for inner in body.nodes)


def note_inference(
    node: Node, model: Model, versions: Mapping[str, int], *, is_proven: bool | None
) -> None:
    """Note that the types of a node's results are inferred from what it reads now.

    Nothing is noted where a result's type is incomplete and depends on sizes that other nodes
    compute: these may become known although the node and its operands stay the same.
    """
    can_change = not all(map(is_complete, node.outputs)) and any(computed_sizes(node, model))
    node.inference = None if can_change else Inference(basis(node, versions), is_proven)


def basis(node: Node, versions: Mapping[str, int]) -> tuple[object, ...]:
    """What the types of a node's results follow from, to be compared with what it is later.

    Types are replaced, never changed in place, so that comparing unchanged ones is quick.
    A result that isn't there differs from one without a type, which inference has yet to find.
    """
    return (
        node.op_type,
        node.overload,
        versions.get(normalize_domain(node.domain)),
        [attribute.proto for attribute in node.attributes.values()],
        [None if value is None else _operand(value) for value in node.inputs],
        ["" if value is None else value.type for value in node.outputs],
    )


def _operand(value: Value) -> object:
    if value.const is not None:
        return value.const
    if value.producer is not None and value.producer.op_type == "Constant":
        return [attribute.proto for attribute in value.producer.attributes.values()]
    return value.type


def is_complete(value: Value | None) -> bool:
    """Whether a value has a type, and every axis of a tensor a size or a name."""
    if value is None:
        return True
    if value.type is not None and tensor_type(value.type) is None:
        return True
    return value.shape is not None and None not in value.shape


def is_static(value: Value | None) -> bool:
    """Whether a value is a tensor of known sizes."""
    return value is None or (
        value.dtype != TensorProto.UNDEFINED
        and value.shape is not None
        and all(isinstance(size, int) for size in value.shape)
    )


def computed_sizes(node: Node, model: Model) -> Iterator[Value]:
    """Operands that may be sizes which other nodes compute."""
    for value in node.inputs:
        if value is None or value.dtype not in INTEGERS or model.constant(value) is not None:
            continue
        shape = value.shape
        if shape is None or (len(shape) < 2 and all(s is None or _is_few(s) for s in shape)):
            yield value


def _is_few(size: int | str) -> bool:
    return isinstance(size, str) or size <= LIMIT


def _named(shape: Shape | None) -> tuple[int | str, ...] | None:
    """A shape as types say it; None where a size is neither a number nor a name alone."""
    names: list[int | str] = []
    for size in shape or ():
        atom = None if isinstance(size, int) else size.atom
        name = size if isinstance(size, int) else atom.of if atom is not None else None
        if not isinstance(name, int | str):
            return None
        names.append(name)
    return None if shape is None else tuple(names)


def _allows(value: Value, shape: tuple[int | str, ...]) -> bool:
    """Whether what is known of a value's shape is part of another one."""
    known = value.shape
    return known is None or (
        len(known) == len(shape)
        and all(a is None or a == b for a, b in zip(known, shape, strict=True))
    )


class ComputedSizes(Facts):
    """Elements of shape computations, found on demand from the nodes before."""

    _DEEPEST = 100
    """Nodes in a row up to which elements are followed."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._contents: dict[Value, Contents | None] = {}
        self._depth = 0

    def confirms(self, node: Node) -> bool:
        """Whether the operator's rule gives the types that a node's results have.

        Every size has to be a number or the name of one. Results of which the element type is
        known, but not all sizes, get those that the rule gives.
        """
        if not node.outputs or not all(value is None or value.dtype for value in node.outputs):
            return False
        found = find_shapes(node, self)
        if len(found) < len(node.outputs):
            return False
        shapes = [_named(shape) for shape in found]
        pairs = [(v, s) for v, s in zip(node.outputs, shapes, strict=False) if v is not None]
        if not all(shape is not None and _allows(value, shape) for value, shape in pairs):
            return False
        for value, shape in pairs:
            if value.shape != shape:
                value.set_tensor_type(value.dtype, shape)
        return True

    def known(self, node: Node) -> dict[Value, Tensor] | None:
        """The computed sizes that a node reads, as constants; None where a run tells them."""
        found: dict[Value, Tensor] = {}
        for value in computed_sizes(node, self.model):
            contents = self.contents(value)
            if contents is None or not all(isinstance(x, int) for x in contents.flat):
                return None
            dtype = helper.tensor_dtype_to_np_dtype(value.dtype)
            found[value] = Tensor.from_array(np.asarray(contents.astype(dtype)))
        return found

    def shape(self, value: Value | None) -> Shape | None:
        shape = None if value is None else value.shape
        if shape is None:
            return None
        return tuple(self._size(size) for size in shape)

    def _size(self, size: int | str | None) -> Size:
        if size is None:
            return self.unknown()
        return size if isinstance(size, int) else symbol(size, of=size)

    def contents(self, value: Value | None) -> Contents | None:
        if value is None:
            return None
        if value not in self._contents:
            self._contents[value] = self._find(value)
        return self._contents[value]

    def _find(self, value: Value) -> Contents | None:
        constant = constant_contents(self.model, value)
        if constant is not None or value.producer is None or self._depth >= self._DEEPEST:
            return constant
        self._depth += 1
        found = find_contents(value.producer, self)
        self._depth -= 1
        return found[value.output_index] if value.output_index < len(found) else None
