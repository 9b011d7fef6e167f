"""A quantized model as the float one that it stands for: for quantization anew, in another scheme.

Constants become what DequantizeLinear makes of them. A QuantizeLinear with its DequantizeLinear is
a Clip to what its integers tell, since saturation may be a Relu's work; integers that are only
moved between the two are moved as floats. Products whose activations a run quantizes become
products of floats. Rounding alone is gone.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, helper

from ...ir.errors import SecateurError
from ...ir.graph import Graph, Node, Value, normalize_domain
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.ops import Trait, traits
from ...ir.tensor import Array, Tensor
from ..base import Context, Note, Pass, PassResult
from .parameters import QuantParams

INTEGER_OPERATORS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "ConvInteger",
    "MatMulInteger",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
"""Operators of quantized models, besides those of other domains that begin with QLinear."""


BOUNDS_AS_INPUTS = 11
"""The first operator set in which Clip has them as inputs."""

ALREADY = "it is quantized already (--requantize begins with the floats that it stands for)"


def already_quantized(model: Model) -> dict[Node, str]:
    """Nodes that are quantized, or compute between those, with the reason to leave them alone."""
    found: dict[Node, str] = {}
    for node in model.graph.all_nodes():
        restored = [v.producer for v in node.inputs if v is not None and _is_restored(v)]
        constant = any(n is not None and _is_fixed(model, n.input(0)) for n in restored)
        readers = [user for v in node.outputs if v is not None for user in v.users]
        rounded = any(n.op_type == "QuantizeLinear" for n in readers)
        between = bool(restored) and rounded and not any(_is_weight(model, v) for v in node.inputs)
        if is_integer(node) or constant or between:
            found[node] = ALREADY
    return found


def check_scales(model: Model) -> None:
    """Raise SecateurError where a constant scale is none: it is NaN or infinite, or what it divides
    becomes the ends of the integers only."""
    for node in model.all_nodes():
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = model.constant(node.input(1))
        steps = None if scale is None else scale.numpy().astype(np.float64)
        if steps is None or not steps.size:
            continue
        rounds = node.op_type == "QuantizeLinear"
        wrong = ~np.isfinite(steps) | ((steps <= 0) & rounds)
        if wrong.any():
            which = node.input(1)
            assert which is not None
            raise SecateurError(
                f"node '{node.label}' ({node.op_type}): scale '{which.name}' is "
                f"{steps[wrong].flat[0]:g}; scales are numbers above zero"
            )


def _is_restored(value: Value) -> bool:
    return value.producer is not None and value.producer.op_type == "DequantizeLinear"


def _is_fixed(model: Model, value: Value | None) -> bool:
    return model.constant(value) is not None


def _is_weight(model: Model, value: Value | None) -> bool:
    tensor = model.constant(value)
    return tensor is not None and tensor.dtype == TensorProto.FLOAT and len(tensor.shape) > 1


def given_params(value: Value, model: Model) -> QuantParams | None:
    """What a value is rounded by next to it, in a model that is quantized in part."""
    producer = value.producer
    nodes = [] if producer is None or not _is_restored(value) else [producer]
    nodes += [user for user in value.users if user.op_type == "QuantizeLinear"]
    for node in nodes:
        scale, zero = model.constant(node.input(1)), model.constant(node.input(2))
        if scale is None or zero is None or scale.size != 1 or zero.size != 1:
            continue
        dtype = zero.numpy().dtype
        if dtype.kind in "ui":
            step = float(scale.numpy().reshape(()))
            return QuantParams(step, int(zero.numpy().reshape(())), dtype)
    return None


def is_integer(node: Node) -> bool:
    """Whether a node is there since the model is quantized."""
    return node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear")


@dataclasses.dataclass(frozen=True)
class RestoreFloat(Pass):
    """Replace quantized operators by the float ones that they stand for.

    Operators that hold their scales, as QLinearConv, have to be pairs of QuantizeLinear and
    DequantizeLinear before. Statistics: counts of what was `restored`; notes name what stays.
    """

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        infer_shapes(model)
        counts = Counter[str]()
        for graph in list(model.graph.all_graphs()):
            work = _Restoring(model, graph)
            work.constants()
            work.products()
            work.pairs()
            work.clean()
            counts += work.restored
        notes = [
            Note.at(node, "has no float form that is known")
            for node in model.all_nodes()
            if is_integer(node)
        ]
        restored = dict(sorted(counts.items()))
        return PassResult(bool(restored), {"restored": restored}, notes)


class _Restoring:
    """Puts float operators in the place of a graph's integer ones, between dequantized values."""

    def __init__(self, model: Model, graph: Graph) -> None:
        self.model = model
        self.graph = graph
        self.restored: Counter[str] = Counter()
        self.twins: dict[Value, Value | None] = {}
        self.before: dict[Node, list[Node]] = {}

    # --- constants ---

    def constants(self) -> None:
        """DequantizeLinear of constants."""
        for node in self.nodes("DequantizeLinear"):
            result = node.outputs[0]
            array = dequantized(node, self.model)
            if result is None or array is None or result.is_graph_output:
                continue
            tensor = Tensor.from_array(array, result.dtype or TensorProto.FLOAT)
            value = self.graph.add_initializer(
                self.model.fresh_name(f"{result.name}_float"), tensor
            )
            result.replace_uses(value)
            self.restored["constants"] += 1

    # --- products whose activations a run quantizes ---

    def products(self) -> None:
        """MatMulInteger and ConvInteger of what DynamicQuantizeLinear gives, and their scales."""
        for node in [*self.nodes("MatMulInteger"), *self.nodes("ConvInteger")]:
            if self.product(node):
                self.restored["products"] += 1

    def product(self, node: Node) -> bool:
        weights = self.model.constant(node.input(1))
        rounded = self.rounded_whole(node) or self.rounded_by_rows(node)
        if rounded is None or weights is None:
            return False
        source, rows = rounded
        last, scale = self.scaled(node, rows)
        if last is None:
            return False
        matrix = weights.numpy().astype(np.float32)
        zero = self.model.constant(node.input(3))
        if zero is not None:
            point = zero.numpy().astype(np.float32)
            if point.ndim == 1 and point.size > 1 and node.op_type == "ConvInteger":
                point = point.reshape(-1, *[1] * (matrix.ndim - 1))
            matrix = matrix - point
        if scale is not None:
            matrix = _times(matrix, scale, is_convolution=node.op_type == "ConvInteger")
        name = self.model.fresh_name("weight_float")
        new = self.graph.add_initializer(name, Tensor.from_array(matrix.astype(np.float32)))
        old = last.outputs[0]
        assert old is not None
        made = Value(self.model.fresh_name("product"), old.type)
        kind = "Conv" if node.op_type == "ConvInteger" else "MatMul"
        product = Node(kind, [source, new], [made], dict(node.attributes), name=node.name)
        self.put(last, product)
        _give_up(old, made)
        return True

    def rounded_whole(self, node: Node) -> tuple[Value, Value] | None:
        """The floats that DynamicQuantizeLinear rounds for a product, and their scale."""
        made = _producer(node.input(0), "DynamicQuantizeLinear")
        if made is None or node.input(2) is not made.outputs[2]:
            return None
        source, scale = made.input(0), made.outputs[1]
        return None if source is None or scale is None else (source, scale)

    def rounded_by_rows(self, node: Node) -> tuple[Value, Value] | None:
        """As `rounded_whole`, of floats whose rows have a scale each, as `QuantizeDynamic` writes
        them: rows by their reciprocals, rounded by a scale of 1."""
        rounding = _producer(node.input(0), "QuantizeLinear")
        steps = None if rounding is None else _producer(rounding.input(0), "Mul")
        if rounding is None or steps is None:
            return None
        one, points = (self.model.constant(n.input(i)) for n, i in ((rounding, 1), (rounding, 2)))
        source, divided = steps.input(0), _producer(steps.input(1), "Div")
        magnitude = None if divided is None else divided.input(1)
        largest = _producer(magnitude, "Max")
        if source is None or magnitude is None or largest is None:
            return None
        ends = [_producer(v, "ReduceMax") for v in largest.inputs]
        same = self.model.constant(node.input(2))
        if (
            not any(end is not None and end.input(0) is source for end in ends)
            or one is None
            or one.numpy().tolist() != 1
            or points is None
            or same is None
            or points.numpy().tolist() != same.numpy().tolist()
        ):
            return None
        scales = [u.outputs[0] for u in magnitude.users if u.op_type == "Div" and u is not divided]
        return None if len(scales) != 1 or scales[0] is None else (source, scales[0])

    def scaled(self, node: Node, scale: Value) -> tuple[Node | None, Array | None]:
        """The node behind which the sums of a product are floats, and the weights' scale there."""
        sums = node.outputs[0]
        casts = [] if sums is None else sums.users
        if len(casts) != 1 or casts[0].op_type != "Cast" or casts[0].get("to") != TensorProto.FLOAT:
            return None, None
        last, factor = _sole_product(casts[0])
        if last is None or factor is scale:
            return last, None
        both = _producer(factor, "Mul")
        if both is not None and scale in both.inputs:
            other = self.model.constant(next((v for v in both.inputs if v is not scale), None))
            return (None, None) if other is None else (last, other.numpy())
        own = self.model.constant(factor)
        last, factor = _sole_product(last)
        return (None, None) if own is None or factor is not scale else (last, own.numpy())

    # --- pairs ---

    def pairs(self) -> None:
        """QuantizeLinear and DequantizeLinear, with or without movement of integers between."""
        for node in self.nodes("DequantizeLinear"):
            result, integers = node.outputs[0], node.input(0)
            twin = None if integers is None else self.twin(integers)
            if result is None or twin is None:
                continue
            _give_up(result, twin)
            self.restored["pairs"] += 1

    def twin(self, integers: Value) -> Value | None:
        """The float value that integers stand for; None where that isn't known."""
        if integers not in self.twins:
            self.twins[integers] = self.made_twin(integers)
        return self.twins[integers]

    def made_twin(self, integers: Value) -> Value | None:
        node = integers.producer
        if node is None:
            return None
        if node.op_type == "QuantizeLinear" and normalize_domain(node.domain) == "":
            return self.clipped(node)
        moved = node.input(0)
        if moved is None or not (Trait.MOVES in traits(node) or node.op_type == "MaxPool"):
            return None
        source = self.twin(moved)
        if source is None or any(v is not None for v in node.outputs[1:]):
            return None
        result = Value(self.model.fresh_name(f"{integers.name}_float"))
        result.set_tensor_type(source.dtype, integers.shape)
        inputs = [source, *node.inputs[1:]]
        self.put(node, Node(node.op_type, inputs, [result], dict(node.attributes), name=node.name))
        return result

    def clipped(self, node: Node) -> Value | None:
        """What a QuantizeLinear of the whole tensor reads, clipped to what its integers tell."""
        source, integers = node.input(0), node.outputs[0]
        scale, zero = self.model.constant(node.input(1)), self.model.constant(node.input(2))
        if source is None or integers is None or scale is None or scale.size != 1:
            return None
        if node.input(2) is not None and zero is None:
            return None
        try:
            limits = np.iinfo(helper.tensor_dtype_to_np_dtype(integers.dtype or TensorProto.UINT8))
        except (ValueError, KeyError):  # small floats
            return None
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(source.dtype or TensorProto.FLOAT))
        point = 0 if zero is None else int(zero.numpy().reshape(()))
        step = float(scale.numpy().reshape(()))
        ends = [(float(limit) - point) * step for limit in (limits.min, limits.max)]
        result = Value(self.model.fresh_name(f"{source.name}_clipped"))
        result.set_tensor_type(source.dtype or TensorProto.FLOAT, source.shape)
        clip = Node("Clip", [source], [result])
        if self.model.opset < BOUNDS_AS_INPUTS:
            clip.set("min", ends[0])
            clip.set("max", ends[1])
        else:
            for position, end in enumerate(ends):
                bound = Tensor.from_array(np.asarray(end, dtype))
                name = self.model.fresh_name("bound")
                clip.set_input(position + 1, self.graph.add_initializer(name, bound))
        self.put(node, clip)
        return result

    # --- pieces ---

    def nodes(self, op_type: str) -> Iterator[Node]:
        for node in list(self.graph.nodes):
            if node.op_type == op_type and normalize_domain(node.domain) == "":
                yield node

    def put(self, place: Node, node: Node) -> None:
        """A new node in front of another one."""
        node.graph = self.graph
        self.before.setdefault(place, []).append(node)

    def clean(self) -> None:
        """Bring new nodes into order, and drop what nothing reads any more."""
        order: list[Node] = []
        for node in self.graph.nodes:
            order += [*self.before.get(node, ()), node]
        self.graph.nodes = order
        dead: set[Node] = set()
        for node in reversed(order):
            if all(v is None or not v.uses for v in node.outputs) and not node.subgraphs():
                node.detach_inputs()
                dead.add(node)
        self.graph.remove_nodes(dead)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses and not value.is_input:
                del self.graph.initializers[name]
        self.graph.sort()


def _producer(value: Value | None, op_type: str) -> Node | None:
    """The node that computes a value, if it is of this operator."""
    node = None if value is None else value.producer
    return node if node is not None and node.op_type == op_type else None


def _sole_product(node: Node) -> tuple[Node | None, Value | None]:
    """The Mul that alone reads a node's result, and its other factor."""
    result = node.outputs[0]
    users = [] if result is None else result.users
    if len(users) != 1 or users[0].op_type != "Mul":
        return None, None
    return users[0], next((v for v in users[0].inputs if v is not result), None)


def _give_up(old: Value, new: Value) -> None:
    """Let `new` be read in place of `old`, which may be an output of the graph."""
    if old.can_be_replaced_by(new):
        old.replace_uses(new)
        return
    producer = old.producer
    assert producer is not None
    producer.op_type, producer.domain = "Identity", ""
    producer.attributes.clear()
    producer.set_inputs([new])


def _times(matrix: Array, scale: Array, *, is_convolution: bool) -> Array:
    """Weights by their scales: one, or one for each output."""
    if scale.size == 1:
        return np.asarray(matrix * scale.reshape(()))
    flat = scale.reshape(-1)
    shape = (-1, *[1] * (matrix.ndim - 1)) if is_convolution else (-1,)
    return np.asarray(matrix * flat.reshape(shape))


def dequantized(node: Node, model: Model) -> Array | None:
    """What a DequantizeLinear of constants gives; None where it has others or another form."""
    tensors = [model.constant(node.input(i)) for i in range(3)]
    integers, scale, zero = tensors
    if integers is None or scale is None or (node.input(2) is not None and zero is None):
        return None
    steps = scale.numpy()
    points = np.zeros(steps.shape) if zero is None else zero.numpy().astype(np.float64)
    numbers = integers.numpy().astype(np.float64)
    if steps.size == 1 and steps.ndim <= 1:
        steps, points = steps.reshape(()), points.reshape(())
    elif steps.ndim == 1:
        axis = int(node.get("axis", 1)) % max(numbers.ndim, 1)
        if numbers.ndim <= axis or steps.size != numbers.shape[axis]:
            raise SecateurError(f"node '{node.label}': its scales don't fit its integers")
        shape = [-1 if i == axis else 1 for i in range(numbers.ndim)]
        steps, points = steps.reshape(shape), points.reshape(shape)
    else:
        block, axis = int(node.get("block_size", 0)), int(node.get("axis", 1))
        if block < 1:
            return None
        size = numbers.shape[axis]
        steps, points = (np.repeat(a, block, axis).take(range(size), axis) for a in (steps, points))
    dtype = scale.numpy().dtype
    return np.asarray(((numbers - points) * steps.astype(np.float64)).astype(dtype))
