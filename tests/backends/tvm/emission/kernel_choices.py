"""Kernels by layer and target; `python -m tests.backends.tvm.emission.kernel_choices` writes them.

`tests/golden/kinds/kernel_choices.txt` has a line for each layer and target: the kernels in the
order of their calls, with tiles, bytes of what they are called on and whether threads share them,
then multiply-accumulates, and cycles by estimate at the layer's channels and at half as many; of
layers of open sizes the kernels alone. That kernels stay within their buffers is proven by a slow
test (`proven`): it takes longer than to choose them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from secateur.backends.tvm.bounds import Verdict, Verdicts
from secateur.backends.tvm.compile import one_sample
from secateur.backends.tvm.emission.choices import Choices
from secateur.backends.tvm.emission.emission import Emission
from secateur.backends.tvm.emission.emit import emit
from secateur.backends.tvm.emission.estimate import Estimator
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.layouts import choose_layouts
from secateur.backends.tvm.plan.operations import Plan
from secateur.backends.tvm.plan.tensors import PlanTensor
from secateur.backends.tvm.targets import Target, parse_target
from secateur.ir.onnx_io import from_proto

PATH = Path(__file__).parents[3] / "golden" / "kinds" / "kernel_choices.txt"
TARGETS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "aarch64-cortex-a76", "armv7-a")
"""Without fused multiply-adds, with them, with VNNI; NEON without and with dot products."""

Array = Any
Shape = tuple[Any, ...]


@dataclasses.dataclass
class Layers:
    """Builds one layer, in floats or quantized."""

    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    constants: dict[str, Array] = dataclasses.field(default_factory=dict)

    def constant(self, array: Array) -> str:
        self.constants[f"c{len(self.constants)}"] = array
        return f"c{len(self.constants) - 1}"

    def ones(self, *shape: int) -> str:
        return self.constant(np.ones(shape, np.float32))

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"v{len(self.nodes)}"], **attributes))
        return f"v{len(self.nodes) - 1}"

    def restored(self, integers: str) -> str:
        return self.node("DequantizeLinear", integers, self.constant(np.float32(0.5)))

    def bytes_of(self, *shape: int) -> str:
        numbers = np.arange(math.prod(shape), dtype=np.int64) % 255 - 127
        return self.restored(self.constant(numbers.astype(np.int8).reshape(shape)))

    def model(self, inputs: dict[str, Shape], dtype: int, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "layer",
            [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def packed(rows: int | str, bits: int, level: int) -> onnx.ModelProto:
    """A product by weights of a few bits in blocks."""
    layers, depth, columns, block = Layers(), 96, 40, 32
    bytes_ = np.zeros((columns, depth // block, block * bits // 8), np.uint8)
    scales = np.ones(columns * depth // block, np.float32)
    sizes = {"K": depth, "N": columns, "bits": bits, "block_size": block, "accuracy_level": level}
    constants = [layers.constant(a) for a in (bytes_, scales)]
    y = layers.node("MatMulNBits", "x", *constants, domain="com.microsoft", **sizes)
    return layers.model({"x": (rows, depth)}, TensorProto.FLOAT, y)


def of_bytes(op_type: str, shape: tuple[int, ...], **more: Any) -> onnx.ModelProto:
    """One node between quantized values."""
    layers = Layers()
    y = layers.node(op_type, layers.restored("x"), **more)
    scale, zero = layers.constant(np.float32(0.5)), layers.constant(np.uint8(3))
    y = layers.restored(layers.node("QuantizeLinear", y, scale, zero))
    return layers.model({"x": shape}, TensorProto.UINT8, y)


def convolution(
    shape: Shape, outputs: int, kernel: int = 3, *, quantized: bool = False, **more: Any
) -> onnx.ModelProto:
    layers, groups = Layers(), more.get("group", 1)
    rank = len(shape) - 2
    size = (outputs, shape[1] // groups, *[kernel] * rank)
    x = layers.restored("x") if quantized else "x"
    weights = layers.bytes_of(*size) if quantized else layers.ones(*size)
    y = layers.node("Conv", x, weights, layers.ones(outputs) if not quantized else "", **more)
    y = layers.node("Relu", y)
    return layers.model({"x": shape}, TensorProto.UINT8 if quantized else TensorProto.FLOAT, y)


def product(
    rows: int | str, depth: int, columns: int, *, quantized: bool = False
) -> onnx.ModelProto:
    layers = Layers()
    x = layers.restored("x") if quantized else "x"
    weights = layers.bytes_of(depth, columns) if quantized else layers.ones(depth, columns)
    y = layers.node("MatMul", x, weights)
    if not quantized:
        y = layers.node("Add", y, layers.ones(columns))
    dtype = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    return layers.model({"x": (rows, depth)}, dtype, layers.node("Relu", y))


def of(op_type: str, shapes: list[Shape], *constants: Array, **more: Any) -> Any:
    """One node on inputs and then constants."""
    layers = Layers()
    inputs = {f"x{i}": shape for i, shape in enumerate(shapes)}
    names = [layers.constant(c) if c is not None else "" for c in constants]
    y = layers.node(op_type, *inputs, *names, **more)
    return layers.model(inputs, TensorProto.FLOAT, y)


def layers() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Layers on both sides of what decides: sizes, strides, channels, pixels."""
    same = {"pads": [1, 1, 1, 1]}
    for channels, outputs, size in ((3, 16, 32), (16, 8, 9), (32, 32, 14), (64, 48, 7), (5, 3, 6)):
        shape = (1, channels, size, size)
        yield f"Conv {channels} {outputs} {size}", convolution(shape, outputs, **same)
        yield f"Conv 1x1 {channels} {outputs} {size}", convolution(shape, outputs, 1)
        strided = convolution(shape, outputs, strides=[2, 2], **same)
        yield f"Conv by 2 {channels} {outputs} {size}", strided
        yield f"int8 Conv {channels} {outputs} {size}", convolution(shape, outputs, quantized=True)
    yield "Conv dilated", convolution((1, 16, 20, 20), 16, dilations=[2, 2])
    yield "Conv 5x5", convolution((1, 16, 20, 20), 16, 5)
    yield "Conv of one row", convolution((1, 24, 50), 24)
    for dilation in (4, 256):
        far = convolution((1, 128, 2000), 128, dilations=[dilation])
        yield f"Conv of one row with taps {dilation} apart", far
    for channels, groups in ((32, 32), (32, 16), (32, 8), (32, 2), (12, 3), (6, 6)):
        shape = (1, channels, 12, 13)
        grouped = convolution(shape, channels, group=groups, **same)
        yield f"Conv of {groups} groups of {channels}", grouped
        lowered = convolution(shape, channels, group=groups, quantized=True, **same)
        yield f"int8 Conv of {groups} groups of {channels}", lowered
    for outputs, size in ((64, 20), (24, 32)):
        wide = convolution((1, 64, size, 21), outputs, group=2, **same)
        yield f"Conv of 2 wide groups to {outputs} {size}", wide
    for channels, size in ((8, 7), (20, 12)):
        weights, bias = np.ones((channels, 12, 4, 4), np.float32), np.ones(12, np.float32)
        transposed = of("ConvTranspose", [(1, channels, size, size)], weights, bias, strides=[2, 2])
        yield f"ConvTranspose {channels} {size}", transposed
    for rows, depth, columns in ((1, 64, 100), (7, 30, 9), (64, 64, 64), (200, 16, 3)):
        yield f"MatMul {rows} {depth} {columns}", product(rows, depth, columns)
        yield f"int8 MatMul {rows} {depth} {columns}", product(rows, depth, columns, quantized=True)
    for left, right in (((4, 33, 16), (4, 16, 20)), ((1, 5, 8), (8, 3)), ((64, 64), (64, 64))):
        yield f"MatMul of two {left} {right}", of("MatMul", [left, right])
    for size in (9, 40):
        image = [(1, 20, size, size)]
        yield f"MaxPool {size}", of("MaxPool", image, kernel_shape=[3, 3], strides=[2, 2])
        yield f"AveragePool {size}", of("AveragePool", image, kernel_shape=[2, 2])
        yield f"GlobalAveragePool {size}", of("GlobalAveragePool", image)
        scales = np.float32([1, 1, 2, 2])
        for mode in ("nearest", "linear", "cubic"):
            yield f"Resize {mode} {size}", of("Resize", image, None, scales, mode=mode)
        yield f"Relu {size}", of("Relu", image)
        yield f"Transpose {size}", of("Transpose", image, perm=[0, 2, 3, 1])
        yield f"Concat {size}", of("Concat", [(1, 16, size, size), (1, 5, size, size)], axis=1)
    for rows, width in ((1, 10), (50, 64), (400, 100)):
        yield f"Softmax {rows} {width}", of("Softmax", [(rows, width)])
        scale = np.ones(width, np.float32)
        yield f"LayerNormalization {rows} {width}", of("LayerNormalization", [(rows, width)], scale)
        yield f"ReduceMax {rows} {width}", of("ReduceMax", [(rows, width)], axes=[1])
        yield f"CumSum {rows} {width}", of("CumSum", [(rows, width)], np.int64(1))
    for rows, bits, level in ((1, 4, 0), (30, 4, 4), (3, 8, 4), (3, 2, 0)):
        yield f"MatMulNBits {rows} {bits} {level}", packed(rows, bits, level)
    yield "int8 Softmax", of_bytes("Softmax", (1, 7, 50))
    yield "int8 MaxPool", of_bytes("MaxPool", (1, 20, 9, 9), kernel_shape=[3, 3])
    yield "int8 AveragePool", of_bytes("AveragePool", (1, 20, 9, 9), kernel_shape=[3, 3])
    yield "int8 Sigmoid", of_bytes("Sigmoid", (1, 20, 9, 9))
    for kind, gates in (("LSTM", 4), ("GRU", 3)):
        for hidden in (5, 24):
            w = np.ones((1, gates * hidden, 7), np.float32)
            r = np.ones((1, gates * hidden, hidden), np.float32)
            yield f"{kind} {hidden}", of(kind, [(6, 1, 7)], w, r, hidden_size=hidden)


def open_layers() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Layers of sizes that only a run tells, of much work and of little."""
    for channels in (3, 64):
        yield f"Conv {channels}", convolution((1, channels, "h", "w"), 24, pads=[1, 1, 1, 1])
        image = [(1, channels, "h", "w")]
        yield f"MaxPool {channels}", of("MaxPool", image, kernel_shape=[3, 3], strides=[2, 2])
        yield f"Relu {channels}", of("Relu", image)
        yield f"Concat {channels}", of("Concat", [*image, (1, 8, "h", "w")], axis=1)
    for depth, columns in ((16, 3), (64, 100)):
        yield f"MatMul {depth} {columns}", product("n", depth, columns)
        yield f"MatMul of two {depth}", of("MatMul", [("n", depth, 8), ("n", 8, "m")])
        yield f"Softmax {columns}", of("Softmax", [("n", columns)])
        yield f"ReduceMax {columns}", of("ReduceMax", [("n", columns)], axes=[1])
    yield "MatMulNBits", packed("n", 4, 0)


CASES = dict(layers())
OPEN = {f"open {name}": model for name, model in open_layers()}


class Unasked(Verdicts):
    """Verdicts that nothing is proven for."""

    def of(self, *_: Any) -> Verdict:
        return Verdict(0, 0, (), (), ())


def planned(name: str, target: Target) -> Plan:
    """The plan of a layer, whose sizes may be open."""
    if name in CASES:
        return lower(one_sample(from_proto(CASES[name]))[0], target)
    model = from_proto(OPEN[name])
    names = {d for v in model.graph.inputs for d in v.shape or () if isinstance(d, str)}
    sizes = read_admitted([f"{d}=1.." for d in sorted(names)])
    return lower(one_sample(model, sizes)[0], target, sizes)


def proven(name: str, target_name: str) -> int:
    """How many accesses of a layer's kernels are proven to lie within their buffers."""
    target = parse_target(target_name)
    emission = emit(planned(name, target), target)
    return sum(verdict.accesses for verdict in emission.proofs.values())


def line_of(name: str, target_name: str) -> str:
    """The file's line of a layer on a target."""
    target = parse_target(target_name)
    plan = planned(name, target)
    emission = emit(plan, target, verdicts=Unasked())
    keys = {kernel: key for key, kernel in emission.kernels.items()}
    calls = emission.describe_calls()
    shown = [_shown(keys[call["kernel"]], emission, call["kernel"]) for call in calls]
    macs = sum(call["macs"] for call in calls)
    choices = Choices(target)
    layouts, _ = choose_layouts(plan, target.block, choices.needed_pads)
    cycles = []
    for op in plan.operations:
        estimator = Estimator(op, target, choices, layouts)
        for shape_of in (lambda t: t.shape, _halved):
            found = estimator(shape_of)
            cycles.append(f"{found.form} {found.cycles:.6g}")
    words = ["; ".join(shown), f"{macs} macs", ", ".join(cycles)]
    return f"{name} on {target_name}: " + " | ".join(words)


def open_line_of(name: str, target_name: str) -> str:
    """The file's line of a layer of open sizes: its kernels alone."""
    target = parse_target(target_name)
    emission = emit(planned(name, target), target, verdicts=Unasked())
    keys = {kernel: key for key, kernel in emission.kernels.items()}
    kernels = [call["kernel"] for call in emission.describe_calls()]
    shown = [" ".join(_words(keys[kernel])) for kernel in kernels if kernel in keys]
    return f"{name} on {target_name}: " + "; ".join(shown)


def _halved(tensor: PlanTensor) -> tuple[int, ...]:
    """As if every axis of channels had lost half of them, or as many as that needs."""
    axis = 1 if len(tensor.shape) > 2 else len(tensor.shape) - 1
    return tuple(max(s // 2, 1) if i == axis else s for i, s in enumerate(tensor.shape))


def _shown(key: tuple[Any, ...], emission: Emission, kernel: str) -> str:
    call = next(c for c in emission.schedule.calls if c.kernel == kernel)
    return " ".join([*_words(key), "bytes", *(str(b.nbytes) for b in call.arguments)])


def _words(key: tuple[Any, ...]) -> list[str]:
    words = [str(key[0]) if isinstance(key[0], str) else type(key[0]).__name__.lower()]
    for part in key[1:]:
        if type(part).__name__ in ("Tile", "MatrixTile"):
            words += [f"{n} {v}" for n, v in dataclasses.asdict(part).items()]
    return [*words, "shared"] if key[-1] is True else words


def golden() -> dict[str, str]:
    """The file's lines by layer and target."""
    lines = PATH.read_text(encoding="utf-8").splitlines()
    return {line.partition(":")[0]: line for line in lines}


if __name__ == "__main__":
    lines = [line_of(name, target) for name in CASES for target in TARGETS]
    lines += [open_line_of(name, target) for name in OPEN for target in TARGETS]
    PATH.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
