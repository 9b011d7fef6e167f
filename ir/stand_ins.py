"""Shape inference through ONNX Runtime's own operators.

ONNX knows no shapes of `com.microsoft` operators, and what follows one has none either.
For inference each is replaced by a call of a function, made for the node, of standard
operators with outputs of the same types and shapes (not the same values).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from .graph import normalize_domain

_DOMAIN = "secateur.stand_in"
_MICROSOFT = "com.microsoft"

INTERNAL = "secateur.internal"
"""The domain of operators inside the compiler, which no model has."""

REQUIRE = (INTERNAL, "Require")
"""Domain and name of an operator of our own inside the compiler: its first input, where all
others, truth values, hold."""

TREE_SUMS = (INTERNAL, "TreeSums")
"""Domain and name of an operator inside the compiler: what decision trees, tables of which are
inputs, contribute to `targets` for each row of features."""

BLOCK_PRODUCT = (INTERNAL, "BlockProduct")
"""Domain and name of an operator inside the compiler: rows by a constant matrix of a few bits, of
which numbers [columns, blocks, block], scales and zero points are inputs."""

Body = Callable[[NodeProto], list[NodeProto]]
"""Nodes that compute o0, o1, ... from i0, i1, ... in place of a node; none: no stand-in."""


def add_stand_ins(proto: ModelProto) -> bool:
    """Replace what ONNX has no schema for, where a stand-in is known. Whether any was."""
    functions: dict[bytes, str] = {}
    opsets = [o for o in proto.opset_import if normalize_domain(o.domain) == ""]
    for node in all_nodes(proto.graph):
        body = _BODIES.get((normalize_domain(node.domain), node.op_type))
        if body is None:
            continue
        key = _signature(node)
        name = functions.get(key)
        if name is None:
            nodes = body(node)
            if not nodes:
                continue
            name = functions[key] = f"{node.op_type}_{len(functions)}"
            inputs = [f"i{i}" for i in range(len(node.input))]
            outputs = [f"o{i}" for i in range(len(node.output))]
            proto.functions.append(
                helper.make_function(_DOMAIN, name, inputs, outputs, nodes, opsets)
            )
        node.op_type, node.domain = name, _DOMAIN
        del node.attribute[:]
    if functions:
        proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return bool(functions)


def all_nodes(graph: GraphProto) -> Iterable[NodeProto]:
    """The nodes of a graph and of those nested in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from all_nodes(body)


def _signature(node: NodeProto) -> bytes:
    """Equal for nodes that one function can stand in for."""
    plain = NodeProto(op_type=node.op_type, domain=node.domain)
    plain.attribute.extend(sorted(node.attribute, key=lambda a: a.name))
    plain.input.extend("x" if name else "" for name in node.input)
    plain.output.extend("x" if name else "" for name in node.output)
    return bytes(plain.SerializeToString(deterministic=True))


def _integer(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _given(node: NodeProto, index: int) -> bool:
    return index < len(node.input) and bool(node.input[index])


def _call(
    op_type: str,
    inputs: list[str],
    output: str,
    attributes: Iterable[AttributeProto] = (),
) -> NodeProto:
    node = NodeProto(op_type=op_type, input=inputs, output=[output])
    node.attribute.extend(attributes)
    return node


def _attributes(node: NodeProto, names: str) -> list[AttributeProto]:
    return [a for a in node.attribute if a.name in names.split()]


def like_first(node: NodeProto) -> list[NodeProto]:
    """A result that has the type and shape of the first operand."""
    return [_call("Identity", ["i0"], "o0")]


def _tree_sums(node: NodeProto) -> list[NodeProto]:
    """A number for each row and target, of the features' type."""
    repeats = helper.make_tensor("repeats", TensorProto.INT64, [2], [1, _integer(node, "targets")])
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    constants = [
        _call("Constant", [], name, [helper.make_attribute("value", tensor)])
        for name, tensor in (("repeats", repeats), ("zero", zero))
    ]
    first = _call("Gather", ["i0", "zero"], "first", [helper.make_attribute("axis", 1)])
    return [*constants, first, _call("Tile", ["first", "repeats"], "o0")]


def _block_product(node: NodeProto) -> list[NodeProto]:
    """[..., depth] by [columns, blocks, block]: a zero for each row, times ones."""
    columns = _integer(node, "columns")
    ones = helper.make_tensor("ones", TensorProto.FLOAT, [1, columns], [1.0] * columns)
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    constants = [
        _call("Constant", [], name, [helper.make_attribute("value", tensor)])
        for name, tensor in (("ones", ones), ("zero", zero))
    ]
    first = _call("Gather", ["i0", "zero"], "first", [helper.make_attribute("axis", -1)])
    return [*constants, first, _call("MatMul", ["first", "ones"], "o0")]


def _sum(node: NodeProto) -> list[NodeProto]:
    return [_call("Add", ["i0", "i1"], "o0")]


def _skip_normalization(node: NodeProto) -> list[NodeProto]:
    """Outputs: normalized, mean, inverse deviation, the sum itself."""
    full = [i for i in (0, 3) if i < len(node.output) and node.output[i]]
    return [_call("Add", ["i0", "i1"], f"o{i}") for i in full]


_WINDOW = "auto_pad ceil_mode count_include_pad dilations group kernel_shape pads strides"


def _fused_conv(node: NodeProto) -> list[NodeProto]:
    return [_call("Conv", ["i0", "i1"], "o0", _attributes(node, _WINDOW))]


def _fused_gemm(node: NodeProto) -> list[NodeProto]:
    return [_call("Gemm", ["i0", "i1", "i2"], "o0", _attributes(node, "transA transB"))]


def _fused_matmul(node: NodeProto) -> list[NodeProto]:
    if _integer(node, "transBatchA") or _integer(node, "transBatchB"):
        return []
    a, b = _integer(node, "transA"), _integer(node, "transB")
    if not a and not b:
        return [_call("MatMul", ["i0", "i1"], "o0")]
    equation = f"...{'ji' if a else 'ij'},...{'kj' if b else 'jk'}->...ik"
    return [_call("Einsum", ["i0", "i1"], "o0", [helper.make_attribute("equation", equation)])]


def _float_product(node: NodeProto) -> list[NodeProto]:
    """A product of quantized matrices whose result is float."""
    return [_float("i0", "a"), _float("i1", "b"), _call("MatMul", ["a", "b"], "o0")]


def _float(x: str, y: str) -> NodeProto:
    return _call("Cast", [x], y, [helper.make_attribute("to", TensorProto.FLOAT)])


def _attention(node: NodeProto) -> list[NodeProto]:
    """[B, S, I] by [I, 3 * H]: a third of the product's columns."""
    if any(a.name in ("qkv_hidden_sizes",) for a in node.attribute):
        return []
    fused = _call("MatMul", ["i0", "i1"], "fused")
    thirds = NodeProto(op_type="Split", input=["fused"], output=["o0", "k", "v"])
    thirds.attribute.append(helper.make_attribute("axis", 2))
    return [fused, thirds]


def _multi_head_attention(node: NodeProto) -> list[NodeProto]:
    """[B, S, H * D] and values [B, T, H * E] -> [B, S, H * E]"""
    if not _given(node, 1) or not _given(node, 2):
        return []
    equation = helper.make_attribute("equation", "bsh,btv->bsv")
    return [_call("Einsum", ["i0", "i2"], "o0", [equation])]


def _quantized(op_type: str, operands: list[int], scale: int, names: str = "") -> Body:
    """A quantized operator as dequantize, compute, quantize; `scale` is the output's."""

    def body(node: NodeProto) -> list[NodeProto]:
        if _integer(node, "channels_last"):
            return []
        nodes = [_float(f"i{i}", f"x{i}") for i in operands]
        inputs = [f"x{i}" for i in operands]
        nodes.append(_call(op_type, inputs, "y", _attributes(node, names)))
        point = [f"i{scale + 1}"] if _given(node, scale + 1) else []
        return [*nodes, _call("QuantizeLinear", ["y", f"i{scale}", *point], "o0")]

    return body


def _quantized_gemm(node: NodeProto) -> list[NodeProto]:
    """A 0, its scale and zero point, B 3, its, C 6, and, for a quantized result, its 7, 8."""
    attributes = _attributes(node, "transA transB")
    nodes = [_float("i0", "a"), _float("i3", "b")]
    if not _given(node, 7):
        return [*nodes, _call("Gemm", ["a", "b"], "o0", attributes)]
    point = ["i8"] if _given(node, 8) else []
    return [
        *nodes,
        _call("Gemm", ["a", "b"], "y", attributes),
        _call("QuantizeLinear", ["y", "i7", *point], "o0"),
    ]


def _quantized_where(node: NodeProto) -> list[NodeProto]:
    return [_call("Where", ["i0", "i1", "i4"], "o0")]


def _quantized_concat(node: NodeProto) -> list[NodeProto]:
    operands = [f"i{i}" for i in range(2, len(node.input), 3)]
    return [_call("Concat", operands, "o0", _attributes(node, "axis"))]


_BODIES: dict[tuple[str, str], Body] = {
    ("", "SimplifiedLayerNormalization"): like_first,
    REQUIRE: like_first,
    BLOCK_PRODUCT: _block_product,
    TREE_SUMS: _tree_sums,
    **{
        (_MICROSOFT, op_type): body
        for op_type, body in {
            "Attention": _attention,
            "BiasAdd": like_first,
            "BiasGelu": _sum,
            "BiasSoftmax": _sum,
            "FastGelu": like_first,
            "FusedConv": _fused_conv,
            "FusedGemm": _fused_gemm,
            "FusedMatMul": _fused_matmul,
            "Gelu": like_first,
            "GemmFastGelu": _fused_matmul,
            "GroupNorm": like_first,
            "Inverse": like_first,
            "MatMulIntegerToFloat": _float_product,
            "DynamicQuantizeMatMul": _float_product,
            "MultiHeadAttention": _multi_head_attention,
            "QGemm": _quantized_gemm,
            "QLinearAdd": _quantized("Add", [0, 3], 6),
            "QLinearAveragePool": _quantized("AveragePool", [0], 3, _WINDOW),
            "QLinearConcat": _quantized_concat,
            "QLinearGlobalAveragePool": _quantized("GlobalAveragePool", [0], 3),
            "QLinearLeakyRelu": like_first,
            "QLinearMul": _quantized("Mul", [0, 3], 6),
            "QLinearSigmoid": like_first,
            "QLinearSoftmax": like_first,
            "QLinearWhere": _quantized_where,
            "QuickGelu": like_first,
            "RotaryEmbedding": like_first,
            "SimplifiedLayerNormalization": like_first,
            "SkipLayerNormalization": _skip_normalization,
            "SkipSimplifiedLayerNormalization": _skip_normalization,
        }.items()
    },
}


def replaced() -> set[str]:
    """Names of the operators that there are stand-ins for, whatever their domain."""
    return {op_type for _, op_type in _BODIES}


def stand_in(*op_types: str, domain: str) -> Callable[[Body], Body]:
    """Register what stands in for some operators of a domain."""

    def register(body: Body) -> Body:
        for op_type in op_types:
            if (domain, op_type) in _BODIES:
                raise ValueError(f"{domain}::{op_type} has two stand-ins")
            _BODIES[domain, op_type] = body
        return body

    return register
