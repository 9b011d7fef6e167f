"""Sizes of pooled images, which ONNX's inference gets wrong where windows pass the edge.

ONNX Runtime's are right: in `ceil_mode` a last window that begins behind the image is left
out (ONNX's inference says so from opset 22 on), and what `auto_pad` adds is for windows
without their dilation, and may be negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, helper

from .graph import Node, normalize_domain, type_shape
from .symbolic.expressions import symbol
from .symbolic.facts import Misfit
from .symbolic.spatial import POOLING, automatic_padding, pooled_sizes


def automatic_pads(size: int, kernel: int, stride: int, *, lower: bool) -> tuple[int, int]:
    """What `auto_pad` adds before and after an axis; `lower`: the odd one before."""
    total = automatic_padding(size, kernel, stride)
    assert isinstance(total, int)
    before = int((total + lower) / 2)
    return before, total - before


def same_pads(node: Node, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """What an `auto_pad` of SAME_UPPER or SAME_LOWER means for one axis of a node.

    Of convolutions windows have their dilation, and nothing is left out.
    """
    lower = node.get("auto_pad") == "SAME_LOWER"
    if node.op_type in POOLING:
        return automatic_pads(size, kernel, stride, lower=lower)
    before, after = automatic_pads(size, (kernel - 1) * dilation + 1, stride, lower=lower)
    return max(0, before), max(0, after)


def may_differ(node: NodeProto) -> bool:
    """Whether ONNX's inference may be wrong for a node."""
    if node.op_type not in POOLING or normalize_domain(node.domain) != "":
        return False
    given = _attributes(node)
    dilated = any(step != 1 for step in given.get("dilations", []))
    return bool(given.get("ceil_mode", 0)) or (
        dilated and str(given.get("auto_pad", "")).startswith("SAME")
    )


def correct(proto: ModelProto, inferred: ModelProto) -> set[str] | None:
    """Rewrite those pooling nodes of `proto` whose `inferred` sizes are wrong.

    Their windows become others, of which inference finds the right sizes, and what follows
    them loses its declared shape. Returns the names of what follows; None if all was right.
    """
    wrong: set[str] = set()
    _correct_graph(proto.graph, inferred.graph, {}, wrong)
    if not wrong:
        return None
    _forget(proto.graph, wrong)
    return wrong


def _correct_graph(
    graph: GraphProto, inferred: GraphProto, outer: Mapping[str, TypeProto], wrong: set[str]
) -> None:
    types = dict(outer)
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        types[info.name] = info.type
    for node, found in zip(graph.node, inferred.node, strict=True):
        bodies = list(_bodies(node))
        for body, inner in zip(bodies, _bodies(found), strict=True):
            _correct_graph(body, inner, types, wrong)
        if (may_differ(node) and _correct_node(node, types)) or wrong.intersection(_read(node)):
            wrong.update(name for name in node.output if name)


def correct_type(node: NodeProto, before: TypeProto | None, after: TypeProto) -> None:
    """Set the spatial sizes in the type of a pooling node's result."""
    _, right = _sizes(node, before)
    if right and type_shape(after) is not None:
        for size, dim in zip(right, after.tensor_type.shape.dim[2:], strict=True):
            if size is not None:
                dim.dim_value = size


def _correct_node(node: NodeProto, types: Mapping[str, TypeProto]) -> bool:
    sizes, right = _sizes(node, types.get(node.input[0]))
    after = type_shape(types.get(node.output[0]))
    known = [None] * len(right) if after is None else after[2:]
    if len(known) != len(right) or all(
        size is None or size == own for size, own in zip(right, known, strict=True)
    ):
        return False
    kernel, pads = [1] * len(right), [0] * 2 * len(right)
    for axis, (size, wanted) in enumerate(zip(sizes, right, strict=True)):
        if size is not None and wanted is not None:
            kernel[axis] = max(1, size - wanted + 1)
            pads[axis + len(right)] = max(0, wanted - size)
    del node.attribute[:]
    node.attribute.extend(
        [helper.make_attribute("kernel_shape", kernel), helper.make_attribute("pads", pads)]
    )
    return True


def _sizes(node: NodeProto, before: TypeProto | None) -> tuple[list[int | None], list[int | None]]:
    """The spatial sizes before and after a pooling node; none where the rank is unknown, or
    where attributes don't fit it: whoever computes the node refuses it."""
    shape, given = type_shape(before), _attributes(node)
    if shape is None or len(shape) - 2 != len(given.get("kernel_shape", [])):
        return [], []
    sizes = [size if isinstance(size, int) else None for size in shape[2:]]
    symbols = [symbol(f"axis{i}") if size is None else size for i, size in enumerate(sizes)]
    try:
        counts = pooled_sizes(given.get, symbols)
    except Misfit:
        return [], []
    return sizes, [count if isinstance(count, int) else None for count in counts]


def _forget(graph: GraphProto, names: set[str]) -> None:
    """Drop the declared shapes of values by name."""
    kept = [info for info in graph.value_info if info.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for output in graph.output:
        if output.name in names:
            output.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for body in _bodies(node):
            _forget(body, names)


def _read(node: NodeProto) -> Iterable[str]:
    """The names that a node and its bodies read."""
    yield from node.input
    for body in _bodies(node):
        for inner in body.node:
            yield from _read(inner)
        yield from (output.name for output in body.output)


def _bodies(node: NodeProto) -> Iterable[GraphProto]:
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


_KINDS: dict[str, AttributeProto.AttributeType] = {
    **dict.fromkeys(("kernel_shape", "strides", "dilations", "pads"), AttributeProto.INTS),
    "auto_pad": AttributeProto.STRING,
    "ceil_mode": AttributeProto.INT,
}
"""The attributes that sizes depend on; others, and those of other types, are not looked at."""


def _attributes(node: NodeProto) -> dict[str, Any]:
    known = (a for a in node.attribute if a.type == _KINDS.get(a.name))
    found = {a.name: helper.get_attribute_value(a) for a in known}
    return {
        name: value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
        for name, value in found.items()
    }
