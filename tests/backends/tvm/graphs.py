"""Random convolutional networks, and their quantization by hand, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...onnx_runtime import session_of

Array = Any


class Net:
    """Builds a float32 model layer by layer from a source of choices."""

    def __init__(self, draw: Any, seed: int, batch: int = 1) -> None:
        self.draw = draw
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.shape: tuple[int, ...] = ()
        self.batch = batch

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.constants)}"
        fan_in = int(np.prod(shape[1:])) or 1
        values = self.random.standard_normal(shape) / np.sqrt(fan_in)
        self.constants[name] = values.astype(np.float32)
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, inputs, [name], name=f"{op_type}_{name}", **attributes)
        )
        return name

    def model(self, inputs: dict[str, tuple[int, ...]], outputs: list[str]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    """Normal random numbers for every input; symbolic dimensions count 2."""
    random = np.random.default_rng(seed)
    result = {}
    for value in model.graph.input:
        shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        result[value.name] = (random.standard_normal(shape) * 2).astype(dtype)
    return result


def reference(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime computes, with its optimizations."""
    session = session_of(model)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


_ACTIVATIONS = ("Relu", "Clip", "Sigmoid", "LeakyRelu", "HardSwish")


def quantize(model: onnx.ModelProto, activation: str = "uint8") -> onnx.ModelProto:
    """Insert QuantizeLinear and DequantizeLinear around every operator (QDQ).

    Ranges come from one random run; weights are int8 per output channel. A Relu or
    Clip after a convolution stays inside its QDQ pair.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    existing = {o.name for o in probe.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name not in existing:
                probe.graph.output.append(
                    helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                )
    inputs = feeds(model)
    values = {**inputs, **reference(probe, inputs)}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    low, high = (0, 255) if activation == "uint8" else (-128, 127)
    nodes: list[onnx.NodeProto] = []
    initializers: dict[str, Array] = {}
    scales: dict[str, float] = {}

    def pair(source: str, target: str, name: str) -> None:
        span = values[name]
        smallest, largest = min(float(span.min()), 0.0), max(float(span.max()), 0.0)
        scale = np.float32(max((largest - smallest) / 255, 1e-6))
        zero = int(np.clip(np.rint(low - smallest / scale), low, high))
        scales[target] = float(scale)
        initializers[target + "_s"] = scale
        initializers[target + "_z"] = np.dtype(activation).type(zero)
        parameters = [target + "_s", target + "_z"]
        nodes.append(helper.make_node("QuantizeLinear", [source, *parameters], [target + "_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [target + "_q", *parameters], [target]))

    renamed: dict[str, str] = {}
    for name in inputs:
        pair(name, name + "_d", name)
        renamed[name] = name + "_d"
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            if not name:
                continue
            if name not in constants:
                copy.input[i] = renamed[name]
            elif node.op_type == "Resize":  # scales, sizes
                initializers[name] = constants[name]
            elif node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                copy.input[i] = _constant(
                    node, i, constants[name], nodes, initializers, scales[renamed[node.input[0]]]
                )
            elif constants[name].dtype == np.int64:
                initializers[name] = constants[name]
            else:
                values[name] = constants[name]
                initializers[name] = constants[name]
                pair(name, name + "_d", name)
                copy.input[i] = name + "_d"
        nodes.append(copy)
        output = node.output[0]
        following = users.get(output, [])
        inside = len(following) == 1 and following[0].op_type in ("Relu", "Clip")
        if inside and node.op_type == "Conv" and output not in existing:
            renamed[output] = output
            scales[output] = scales[renamed[node.input[0]]]
            continue
        raw = output + "_f"
        copy.output[0] = raw
        target = output if output in existing else output + "_d"
        pair(raw, target, output)
        renamed[output] = target
    graph = helper.make_graph(
        nodes,
        "quantized",
        model.graph.input,
        model.graph.output,
        [numpy_helper.from_array(np.asarray(v), n) for n, v in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=9)


def _constant(
    node: onnx.NodeProto,
    index: int,
    array: Array,
    nodes: list[onnx.NodeProto],
    initializers: dict[str, Array],
    input_scale: float,
) -> str:
    """A weight as int8 per channel, or a bias as int32 in units of the accumulator."""
    name = node.input[index]
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    axis = 0 if node.op_type == "Conv" or transposed else 1
    if index == 1:
        other = tuple(a for a in range(array.ndim) if a != axis)
        scale = (np.abs(array).max(other) / 127 + 1e-9).astype(np.float32)
        shape = [1] * array.ndim
        shape[axis] = -1
        integers = np.clip(np.rint(array / scale.reshape(shape)), -127, 127).astype(np.int8)
        initializers[name + "_scale"] = scale
    else:
        scale = initializers[node.input[1] + "_scale"] * np.float32(input_scale)
        integers = np.rint(array / scale).astype(np.int32)
        axis = 0
        initializers[name + "_scale"] = scale
    initializers[name + "_i"] = integers
    initializers[name + "_zero"] = np.zeros(scale.shape, integers.dtype)
    nodes.append(
        helper.make_node(
            "DequantizeLinear",
            [name + "_i", name + "_scale", name + "_zero"],
            [name + "_d"],
            axis=axis,
        )
    )
    return name + "_d"
