"""Bounds on what quantization may change: interval arithmetic along the quantized graph.

For every value of a QDQ model, `bounds` computes how far it can be from the value that
the float model has in its place, given that each QuantizeLinear is off by at most half
its scale and each constant by half of its own. Operators without a rule give infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, helper

from secateur.ir.errors import SecateurError
from secateur.ir.graph import Graph, Node, Value
from secateur.ir.model import Model
from secateur.ir.reference import Session
from secateur.ir.tensor import Tensor
from secateur.passes.quantize.calibrate import exposing

Array = Any

LIPSCHITZ = {"Identity", "Neg", "Abs", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Cast"}
LIPSCHITZ |= {"Dropout"}
MOVES = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather"}
MOVES |= {"Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Resize", "MaxPool"}
MOVES |= {"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceMax"}
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
UNMOVED = {"Shape", "Constant", "Greater"}


def bounds(model: Model, feeds: dict[str, Array], slack: float = 0.5) -> dict[str, Array]:
    """Largest possible distance of each value from the float model's.

    `slack` is how many quanta each QuantizeLinear may be off.
    """
    values = all_values(model, feeds)
    error: dict[str, Array] = {name: np.zeros(a.shape) for name, a in values.items()}
    for node in model.graph.nodes:
        for output, bound in zip(
            node.outputs, _node(node, model.opset, values, error, slack), strict=False
        ):
            if output is not None and output.name in values:
                shape = np.shape(values[output.name])
                error[output.name] = np.broadcast_to(np.nan_to_num(bound, nan=np.inf), shape)
    return error


def all_values(model: Model, feeds: dict[str, Array]) -> dict[str, Array]:
    """Every value of the main graph, computed by the operators' definitions."""
    names = [v.name for n in model.graph.nodes for v in n.outputs if v is not None]
    values = dict(feeds)
    values.update(Session(exposing(model, names), optimize=False).run(feeds))
    for name, value in model.graph.initializers.items():
        assert value.const is not None
        values[name] = np.asarray(value.const.numpy())
    return values


def _node(node: Node, opset: int, values: Any, error: Any, slack: float) -> list[Array]:
    ins = [None if v is None else values[v.name] for v in node.inputs]
    off = [None if v is None else error[v.name] for v in node.inputs]
    kind = node.op_type
    if kind == "DequantizeLinear":
        source = node.inputs[0]
        assert source is not None
        scale = np.asarray(ins[1], np.float64)
        if scale.ndim:
            axis = node.get("axis", 1)
            scale = scale.reshape([-1 if i == axis else 1 for i in range(ins[0].ndim)])
        return [off[0] if source.producer is not None else scale * 0.5001]
    if kind == "QuantizeLinear":
        return [off[0] + slack * 1.0001 * float(ins[1])]
    if node.subgraphs():
        return [np.inf] * len(node.outputs)
    if kind in UNMOVED or all(o is None or not np.any(o) for o in off):
        return [0.0] * len(node.outputs)
    if kind in LIPSCHITZ:
        return [off[0]]
    if kind in MOVES:
        return run_alone(node, opset, [off[0], *ins[1:]])
    if kind in PRODUCTS:
        return [_product(node, opset, ins, off)]
    if kind in ("Add", "Sub"):
        return [off[0] + off[1]]
    if kind == "Mul":
        return [abs(ins[0]) * off[1] + abs(ins[1]) * off[0] + off[0] * off[1]]
    if kind == "Div" and not np.any(off[1]):
        return [off[0] / abs(ins[1])]
    if kind == "Max":
        return [np.maximum(off[0], off[1])]
    if kind == "Softmax":
        return [np.max(off[0], axis=node.get("axis", -1), keepdims=True)]
    if kind == "Concat":
        return [np.concatenate(off, axis=node.get("axis"))]
    if kind == "BatchNormalization":
        zero = np.zeros_like(ins[2])
        return run_alone(node, opset, [off[0], abs(ins[1]), zero, zero, ins[4]])
    return [np.inf] * len(node.outputs)


def _product(node: Node, opset: int, ins: list[Array], off: list[Array]) -> Array:
    """|sum (x + dx) * (w + dw) - x * w| <= sum (|x| + |dx|) * (|w| + |dw|) - |x| * |w|"""
    far = run_alone(node, opset, [abs(ins[0]) + off[0], abs(ins[1]) + off[1], *off[2:]])[0]
    near = run_alone(node, opset, [abs(ins[0]), abs(ins[1]), *[np.zeros_like(o) for o in off[2:]]])[
        0
    ]
    return (far - near) + 1e-5 * far


def run_alone(node: Node, opset: int, inputs: list[Array]) -> list[Array]:
    """The node alone, on other inputs."""
    graph = Graph("one")
    values: list[Value | None] = []
    for index, array in enumerate(inputs):
        if array is None:
            values.append(None)
            continue
        array = np.asarray(array, np.float32 if np.asarray(array).dtype.kind == "f" else None)
        values.append(graph.add_initializer(f"i{index}", Tensor.from_array(array)))
    outputs = [Value(f"o{index}") for index in range(len(node.outputs))]
    graph.add_node(Node(node.op_type, values, outputs, node.attributes))
    for output in outputs:
        graph.add_output(output)
    owner = ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", opset)])
    return list(Session(Model(graph, owner), optimize=False).run({}).values())


def _survives_optimizer(model: Model, feeds: dict[str, Array]) -> bool:
    try:
        Session(model).run(feeds)
    except SecateurError:
        return False
    return True


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def check(original: Model, quantized: Model, feeds: dict[str, Array]) -> None:
    """Assert that the quantized outputs lie within the bounds, optimized or as written."""
    expected = Session(original, optimize=False).run(feeds)
    for optimize, slack in ((False, 0.5), (True, 2.0)):
        error = bounds(quantized, feeds, slack)
        try:
            actual = Session(quantized, optimize=optimize).run(feeds)
        except SecateurError as refused:
            # ONNX Runtime's optimizer turns int8 into uint8 and, from opset 21, forgets
            # the output type that it wrote before: the model itself has just run.
            # It also loses what a subgraph captures behind merged Casts, of any model.
            if optimize and "output_dtype INT8 does not match" in str(refused):
                continue
            if optimize and not _survives_optimizer(original, feeds):
                continue
            raise
        assert list(actual) == list(expected)
        for name, reference in expected.items():
            assert actual[name].shape == reference.shape
            assert actual[name].dtype == reference.dtype
            if reference.dtype.kind != "f":
                continue
            assert np.all(np.isfinite(error[name])), f"{name}: no rule bounds its error"
            # Random graphs may cancel; what flows in them is of the order of 1.
            room = error[name] * 1.001 + 1e-4 * (1 + np.abs(reference).max(initial=0))
            distance = np.abs(actual[name] - reference)
            assert np.all(distance <= room), (name, optimize, distance.max(), room.max())
