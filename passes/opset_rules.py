"""Operators in another version: what onnx's version converter doesn't know or gets wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import defs

from ..ir.errors import UnsupportedError
from ..ir.graph import Attribute, Graph, Node, Value
from ..ir.model import Model
from ..ir.tensor import Array, Tensor

_MEANING_CHANGED = {
    "GridSample": 20,
    "Hardmax": 13,
    "LogSoftmax": 13,
    "Mod": 28,
    "Softmax": 13,
    "Split": 18,
}
"""Versions that gave an operator another meaning without another signature."""

OWN_RULES = frozenset({*_MEANING_CHANGED, "Constant", "Resize", "Shape", "Upsample"})
"""Operators that this module converts, and not only by making inputs attributes."""


def crosses(op_type: str, version: int, one: int, other: int) -> bool:
    """Whether `version`, between two, changed what the operator means."""
    low, high = sorted((one, other))
    return _MEANING_CHANGED.get(op_type) == version and low < version <= high


def broadcasts(node: Node) -> bool:
    """Whether an operator of any number of operands, all alike before version 8, broadcasts."""
    if node.op_type not in ("Max", "Mean", "Min", "Sum"):
        return False
    shapes = [None if value is None else value.shape for value in node.inputs]
    return any(s is None or None in s or s != shapes[0] for s in shapes)


def count_axes_from_front(node: Node) -> None:
    """Replace negative axes, which few operators take before version 11."""
    source = node.input(0)
    rank = None if source is None else source.rank
    if rank is None:
        return
    axis, axes = node.get("axis"), node.get("axes")
    if node.op_type == "OneHot":
        rank += 1
    if node.op_type == "Unsqueeze" and axes:
        rank += len(axes)
    if isinstance(axis, int) and axis < 0:
        node.set("axis", axis + rank)
    if isinstance(axes, list) and any(a < 0 for a in axes):
        node.set("axes", [a + rank if a < 0 else a for a in axes])


_NAMES = {("Pad", "constant_value"): "value", ("TopK", "K"): "k"}
"""Inputs whose attribute was called otherwise."""


def inputs_to_attributes(
    model: Model, node: Node, target: int, fits: Callable[[Node, defs.OpSchema], bool]
) -> bool:
    """Make constant inputs the attributes that they were before: axes, bounds, pads, starts.

    Attributes that an older version lacks go where they say what is the default. Nothing
    is changed where something remains that it can't say; `fits` tells whether it takes
    the node's element types.
    """
    newer, older = (defs.get_schema(node.op_type, v) for v in (model.opset, target))
    if node.op_type in _MEANING_CHANGED or older.max_input > len(older.inputs):
        return False
    attributes = {
        name: attribute
        for name, attribute in node.attributes.items()
        if name in older.attributes or not _is_default(attribute, newer.attributes.get(name))
    }
    empty_axes = False
    extra = slice(older.max_input, None)
    for value, formal in zip(node.inputs[extra], newer.inputs[extra], strict=False):
        if value is None:
            continue
        tensor = model.constant(value)
        if tensor is None:
            return False
        array = tensor.numpy()
        name = _NAMES.get((node.op_type, formal.name), formal.name)
        if name == "axes" and array.size == 0:
            empty_axes = True
        elif name in older.attributes:
            attributes[name] = _attribute(name, array, older.attributes[name])
        elif not _is_neutral(node.op_type, name, array):
            return False
    if (empty_axes or "axes" not in attributes) and node.get("noop_with_empty_axes", 0):
        return False
    attributes.pop("noop_with_empty_axes", None)
    return _settle(node, attributes, older, fits)


def _settle(
    node: Node,
    attributes: dict[str, Attribute],
    older: defs.OpSchema,
    fits: Callable[[Node, defs.OpSchema], bool],
) -> bool:
    required = {name for name, formal in older.attributes.items() if formal.required}
    if not required <= set(attributes) <= set(older.attributes):
        return False
    before, inputs = node.attributes, node.inputs
    node.attributes = attributes
    node.set_inputs(inputs[: older.max_input])
    if fits(node, older):
        return True
    node.attributes = before
    node.set_inputs(inputs)
    return False


def _is_default(attribute: Attribute, formal: defs.OpSchema.Attribute | None) -> bool:
    default = None if formal is None else formal.default_value
    return (
        default is not None
        and default.name == attribute.proto.name
        and (default.SerializeToString() == attribute.proto.SerializeToString())
    )


def _attribute(name: str, array: Array, formal: defs.OpSchema.Attribute) -> Attribute:
    several = formal.type in (defs.OpSchema.AttrType.INTS, defs.OpSchema.AttrType.FLOATS)
    elements = array.reshape(-1).tolist()
    kind = int(formal.type.value)  # type: ignore[attr-defined]
    return Attribute.of(name, elements if several else elements[0], kind)


def _is_neutral(op_type: str, name: str, array: Array) -> bool:
    """Whether an input says what an older version does anyway."""
    if (op_type, name) == ("Slice", "steps"):
        return bool((array == 1).all())
    return (op_type, name) == ("Dropout", "training_mode") and not array.any()


def constant_as_initializer(model: Model, graph: Graph, node: Node) -> bool:
    """An initializer for a Constant of a form or type that another version lacks."""
    value = node.outputs[0]
    tensor = model.constant(value)
    if value is None or tensor is None or tensor.is_sparse:
        return False
    graph.make_initializer(value, tensor)
    node.graph = None
    return True


def sliced_shape(model: Model, graph: Graph, node: Node) -> list[Node]:
    """Shape with a range of axes, which came in version 15, as a slice of the whole shape."""
    result = node.outputs[0]
    whole = Value(model.fresh_name(f"{node.label}_whole"))
    if result is not None:
        whole.set_tensor_type(result.dtype, [node.inputs[0].rank if node.inputs[0] else None])
    bounds = [node.get("start", 0), node.get("end", np.iinfo(np.int64).max), 0]
    inputs: list[Value | None] = [whole]
    for name, bound in zip(("start", "end", "axis"), bounds, strict=True):
        tensor = Tensor.from_array(np.array([bound], np.int64))
        inputs.append(graph.add_initializer(model.fresh_name(f"{node.label}_{name}"), tensor))
    shape = Node("Shape", node.inputs, [whole])
    part = Node("Slice", inputs, [result], name=node.name, extra=node.extra)
    node.detach_inputs()
    node.graph = None
    for made in (shape, part):
        made.graph = graph
    return [shape, part]


def flattening_softmax(model: Model, node: Node) -> list[Node]:
    """Softmax and its kin before version 13, over all axes from `axis` on: so, over the last."""
    source, output = node.inputs[0], node.outputs[0]
    rank = None if source is None else source.rank
    graph = node.graph
    if source is None or output is None or not rank or graph is None:
        raise UnsupportedError(f"node '{node.label}' ({node.op_type}): its rank is not known")
    axis = node.get("axis", -1) % rank
    node.set("axis", rank - 1)
    if axis == rank - 1:
        return [node]
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    moved = Value(model.fresh_name(f"{node.label}_transposed"))
    normal = Value(model.fresh_name(f"{node.label}_normalized"))
    first = Node("Transpose", [source], [moved])
    middle = Node(node.op_type, [moved], [normal], node.attributes, name=node.name)
    last = Node("Transpose", [normal], [output])
    for made in (first, last):
        made.set("perm", order)
    node.detach_inputs()
    node.graph = None
    for made in (first, middle, last):
        made.graph = graph
    return [first, middle, last]


def convert_resize(model: Model, graph: Graph, node: Node, target: int) -> bool:
    """What onnx's converter gets wrong: Upsample and Resize 10 as later Resize, and 13 as 11.

    Until version 10 coordinates were asymmetric and rounded down; version 11 wants a
    region of interest, even if an empty one.
    """
    if node.op_type not in ("Resize", "Upsample"):
        return False
    if model.opset <= 10 and target >= 11:
        scales = node.input(1)
        if scales is None:
            name = model.fresh_name(f"{node.label}_scales")
            numbers = np.array(node.get("scales", []), np.float32)
            scales = graph.add_initializer(name, Tensor.from_array(numbers))
        node.op_type = "Resize"
        node.attributes.pop("scales", None)
        node.set("coordinate_transformation_mode", "asymmetric")
        node.set("nearest_mode", "floor")
        node.set_inputs([node.inputs[0], _empty_roi(model, graph, node), scales])
        return True
    if target in (11, 12) and model.opset in range(13, 18) and node.op_type == "Resize":
        if node.input(1) is None:
            node.set_input(1, _empty_roi(model, graph, node))
        if node.input(2) is None:
            name = model.fresh_name(f"{node.label}_scales")
            node.set_input(2, graph.add_initializer(name, _NOTHING))
        return True
    return False


_NOTHING = Tensor.from_array(np.zeros(0, np.float32))


def _empty_roi(model: Model, graph: Graph, node: Node) -> Value:
    return graph.add_initializer(model.fresh_name(f"{node.label}_roi"), _NOTHING)
