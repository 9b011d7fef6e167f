"""Hypothesis strategies: random models over the operators that simplification rewrites."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Builder:
    """Grows a graph value by value; every value has a known shape and moderate magnitude."""

    def __init__(self, draw: Draw, opset: int, ir_version: int) -> None:
        self.draw = draw
        self.opset = opset
        self.ir_version = ir_version
        self.random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.read: set[str] = set()
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def node(
        self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any
    ) -> str:
        output = self.name()
        self.nodes.append(
            helper.make_node(op_type, inputs, [output], name=f"n{self.count}", **attributes)
        )
        self.read.update(inputs)
        self.shapes[output] = shape
        return output

    def constant(self, array: Any) -> str:
        """A constant in one of the ways in which exporters write them."""
        array = np.asarray(array)
        way = self.draw(st.sampled_from(["initializer", "initializer", "node", "identity", "sum"]))
        name = self.name()
        if way == "node":
            tensor = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.initializers.append(numpy_helper.from_array(array, name))
        if way == "identity":
            self.nodes.append(helper.make_node("Identity", [name], [f"{name}_same"]))
            return f"{name}_same"
        if way == "sum" and array.dtype == np.float32:
            half = f"{name}_half"
            self.initializers[-1] = numpy_helper.from_array(array / 2, name)
            self.nodes.append(helper.make_node("Add", [name, name], [half]))
            return half
        return name

    def weights(self, *shape: int) -> str:
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def between(self, low: float, high: float, *shape: int) -> str:
        return self.constant(self.random.uniform(low, high, shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def pick(self) -> str:
        """A value with a preference for late ones, so that graphs get deep."""
        names = list(self.shapes)
        return names[-1 - min(self.draw(st.integers(0, 3)), len(names) - 1)]

    # --- steps ---------------------------------------------------------------------

    def unary(self, x: str) -> str:
        op = self.draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Identity"]))
        return self.node(op, [x], self.shapes[x])

    def nothing(self, x: str) -> str:
        shape = self.shapes[x]
        kind = self.draw(
            st.sampled_from(["cast", "dropout", "transpose", "slice", "pad", "concat"])
        )
        if kind == "cast":
            return self.node("Cast", [x], shape, to=TensorProto.FLOAT)
        if kind == "dropout":
            return self.node("Dropout", [x], shape)
        if kind == "transpose":
            return self.node("Transpose", [x], shape, perm=list(range(len(shape))))
        if kind == "concat":
            return self.node("Concat", [x], shape, axis=len(shape) - 1)
        if kind == "slice" and self.opset >= 10:
            return self.node("Slice", [x, self.ints(0), self.ints(2**31 - 1), self.ints(1)], shape)
        if kind == "pad" and self.opset >= 11:
            return self.node("Pad", [x, self.ints(*[0] * (2 * len(shape)))], shape)
        return self.node("Identity", [x], shape)

    def arithmetic(self, x: str) -> str:
        """With a constant that is a scalar, varies along one axis, or is neutral."""
        shape = self.shapes[x]
        op = self.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
        axis = self.draw(st.integers(1, len(shape) - 1))
        aligned = [1] * len(shape)
        aligned[axis] = shape[axis]
        form = self.draw(st.sampled_from(["scalar", "one", "channel", "short", "neutral"]))
        if form == "neutral":
            other = self.constant(np.float32(1 if op in ("Mul", "Div") else 0))
        else:
            sizes = {"scalar": (), "one": (1,), "channel": aligned, "short": aligned[axis:]}[form]
            other = self.between(0.5, 1.5, *sizes)
        swap = op != "Div" and self.draw(st.booleans())
        return self.node(op, [other, x] if swap else [x, other], shape)

    def join(self, x: str) -> str:
        shape = self.shapes[x]
        others = [n for n, s in self.shapes.items() if s == shape]
        y = self.draw(st.sampled_from(others))
        op = self.draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Concat"]))
        if op == "Concat":
            return self.node(op, [x, y], (shape[0], shape[1] * 2, *shape[2:]), axis=1)
        if op == "Mul":
            y = self.node("Sigmoid", [y], shape)
        return self.node(op, [x, y], shape)

    def convolution(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        kernel, pad = self.draw(st.sampled_from([(1, 0), (3, 1), (3, 0)]))
        if h < kernel or w < kernel:
            kernel, pad = 1, 0
        groups = self.draw(st.sampled_from([1, c]))
        out = groups * self.draw(st.integers(1, 3))
        grow = 2 * pad + 1 - kernel
        transposed = self.draw(st.booleans()) and pad == 0
        bias = [self.weights(out)] if self.draw(st.booleans()) else []
        if transposed:
            inputs = [x, self.weights(c, out // groups, kernel, kernel), *bias]
            shape = (n, out, h + kernel - 1, w + kernel - 1)
            return self.node("ConvTranspose", inputs, shape, group=groups)
        if self.draw(st.booleans()) and pad and self.opset >= 11:
            padded = (n, c, h + 2 * pad, w + 2 * pad)
            x = self.node("Pad", [x, self.ints(0, 0, pad, pad, 0, 0, pad, pad)], padded)
            pad = 0
        inputs = [x, self.weights(out, c // groups, kernel, kernel), *bias]
        shape = (n, out, h + grow, w + grow)
        return self.node("Conv", inputs, shape, group=groups, pads=[pad] * 4)

    def normalization(self, x: str) -> str:
        c = self.shapes[x][1]
        parameters = [self.between(0.5, 1.5, c), self.weights(c), self.weights(c)]
        variance = self.between(0.5, 2.0, c)
        return self.node("BatchNormalization", [x, *parameters, variance], self.shapes[x])

    def product(self, x: str) -> str:
        shape = self.shapes[x]
        out = self.draw(st.integers(1, 4))
        result = (*shape[:-1], out)
        if len(shape) == 2 and self.draw(st.booleans()):
            transposed = self.draw(st.booleans())
            weight = self.weights(out, shape[1]) if transposed else self.weights(shape[1], out)
            bias = [self.weights(out)] if self.draw(st.booleans()) or self.opset < 11 else []
            return self.node("Gemm", [x, weight, *bias], result, transB=int(transposed))
        y = self.node("MatMul", [x, self.weights(shape[-1], out)], result)
        if self.draw(st.booleans()):
            y = self.node("Add", [y, self.weights(out)], result)
        return y

    def reshape(self, x: str) -> str:
        shape = self.shapes[x]
        kind = self.draw(st.sampled_from(["flatten", "same", "chain", "transpose", "unsqueeze"]))
        rest = math.prod(shape[1:])
        if kind == "flatten":
            return self.node("Flatten", [x], (shape[0], rest))
        if kind == "same":
            return self.node("Reshape", [x, self.ints(0, -1, *shape[2:])], shape)
        if kind == "transpose":
            order = [0, *self.draw(st.permutations(range(1, len(shape))))]
            y = self.node("Transpose", [x], tuple(shape[i] for i in order), perm=order)
            return self.unary(y) if self.draw(st.booleans()) else y
        if kind == "unsqueeze" and len(shape) < 4:
            target = (shape[0], *[1] * (4 - len(shape)), *shape[1:])
            return self.node("Reshape", [x, self.ints(0, *target[1:])], target)
        # As exporters write x.reshape(x.shape[0], -1): a chain from the shape.
        sizes = self.node("Shape", [x], (len(shape),))
        first = self.node("Gather", [sizes, self.ints(0)], (1,), axis=0)
        target = self.node("Concat", [first, self.ints(-1)], (2,), axis=0)
        for name in (sizes, first, target):
            del self.shapes[name]
        return self.node("Reshape", [x, target], (shape[0], rest))

    def pooling(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        op = self.draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool"]))
        if op == "GlobalAveragePool":
            return self.node(op, [x], (n, c, 1, 1))
        kernel = self.draw(st.sampled_from([1, 2]))
        if min(h, w) < kernel:
            kernel = 1
        shape = (n, c, h - kernel + 1, w - kernel + 1)
        return self.node(op, [x], shape, kernel_shape=[kernel, kernel])

    def reduction(self, x: str) -> str:
        shape = self.shapes[x]
        op = self.draw(st.sampled_from(["ReduceMean", "ReduceMax"]))
        axes = self.draw(st.sampled_from([[-1], [2, 3]] if len(shape) == 4 else [[-1]]))
        reduced = [*shape[:2], 1, 1] if len(axes) == 2 else [*shape[:-1], 1]
        if self.opset >= 18:
            return self.node(op, [x, self.ints(*axes)], tuple(reduced))
        return self.node(op, [x], tuple(reduced), axes=axes)

    def split(self, x: str) -> str:
        """Two halves, joined again in either order, or used apart."""
        shape = self.shapes[x]
        axis = self.draw(st.integers(1, len(shape) - 1))
        if shape[axis] % 2:
            return x
        half = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
        outputs = [self.name(), self.name()]
        attributes = {"num_outputs": 2} if self.opset >= 18 else {}
        self.nodes.append(helper.make_node("Split", [x], outputs, axis=axis, **attributes))
        self.read.add(x)
        self.shapes |= dict.fromkeys(outputs, half)
        order = outputs if self.draw(st.booleans()) else outputs[::-1]
        if self.draw(st.booleans()):
            return self.node("Concat", order, shape, axis=axis)
        return self.node("Mul", outputs, half)

    def heads(self, x: str) -> str:
        """Linear layers of one value, each cut into heads, as attention begins."""
        shape = self.shapes[x]
        if len(shape) != 3:
            return x
        made = []
        for _ in range(self.draw(st.integers(1, 3))):
            y = self.node("MatMul", [x, self.weights(shape[-1], 4)], (*shape[:-1], 4))
            y = self.node("Add", [y, self.weights(4)], (*shape[:-1], 4))
            cut = (*shape[:-1], 2, 2)
            made.append(self.node("Reshape", [y, self.ints(-1, shape[1], 2, 2)], cut))
        return made[-1]

    def rows(self, x: str) -> str:
        """A linear layer by Gemm of the rows of a value with more axes."""
        *outer, last = self.shapes[x]
        flat = self.node("Reshape", [x, self.ints(-1, last)], (math.prod(outer), last))
        y = self.node("Gemm", [flat, self.weights(last, 3), self.weights(3)], (math.prod(outer), 3))
        return self.node("Reshape", [y, self.ints(-1, *outer[1:], 3)], (*outer, 3))

    def bounds(self, x: str) -> str:
        shape, y = self.shapes[x], x
        for _ in range(self.draw(st.integers(1, 3))):
            op = self.draw(st.sampled_from(["Max", "Min", "Relu", "Clip"]))
            low, high = (
                self.constant(np.float32(self.draw(st.sampled_from([-1, 0, 0.5, 1])))) for _ in "ab"
            )
            if op == "Relu":
                y = self.node(op, [y], shape)
            elif op == "Clip" and self.opset >= 11:
                y = self.node(op, [y, low, high], shape)
            else:
                y = self.node("Min" if op == "Clip" else op, [y, low], shape)
        return y

    def wide(self, x: str) -> str:
        """In double precision for a while."""
        shape = self.shapes[x]
        y = self.node("Cast", [x], shape, to=TensorProto.DOUBLE)
        z = self.node(
            "Mul", [y, self.constant(np.float64(self.draw(st.sampled_from([0.5, 1.0]))))], shape
        )
        del self.shapes[y], self.shapes[z]
        return self.node("Cast", [z], shape, to=TensorProto.FLOAT)

    def expand(self, x: str) -> str:
        """By the shape of the graph's input or its own, where it fits."""
        shape = self.shapes[x]
        like = self.draw(st.sampled_from([x, "x"]))
        target = self.shapes[like]
        if len(shape) != len(target) or any(
            a not in (1, b) for a, b in zip(shape, target, strict=True)
        ):
            return x
        sizes = self.node("Shape", [like], (len(target),))
        del self.shapes[sizes]
        return self.node("Expand", [x, sizes], target)

    def loop(self, x: str) -> str:
        """A few iterations that capture a value of the graph around and a constant."""
        shape = self.shapes[x]
        factor = self.constant(np.float32(0.5))
        names = [self.name() for _ in range(6)]
        count, kept, state, going, scaled, result = names
        nodes = [
            helper.make_node("Identity", [kept], [going]),
            helper.make_node("Mul", [state, factor], [scaled]),
            helper.make_node("Add", [scaled, x], [result]),
        ]
        self.read.add(x)
        body = helper.make_graph(
            nodes,
            "body",
            [
                helper.make_tensor_value_info(count, TensorProto.INT64, []),
                helper.make_tensor_value_info(kept, TensorProto.BOOL, []),
                helper.make_tensor_value_info(state, TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info(going, TensorProto.BOOL, []),
                helper.make_tensor_value_info(result, TensorProto.FLOAT, None),
            ],
        )
        trips = self.constant(np.array(self.draw(st.integers(0, 3)), np.int64))
        return self.node("Loop", [trips, "", x], shape, body=body)

    def composed(self, x: str) -> str:
        """Activations and normalisations as exporters write them out."""
        shape = self.shapes[x]
        kind = self.draw(st.sampled_from(["hardswish", "gelu", "swish", "layernorm", "rmsnorm"]))
        if kind == "swish":
            return self.node("Mul", [x, self.node("Sigmoid", [x], shape)], shape)
        if kind == "hardswish":
            shifted = self.node("Add", [x, self.constant(np.float32(3))], shape)
            bounds = [self.constant(np.float32(0)), self.constant(np.float32(6))]
            if self.opset >= 11:
                clipped = self.node("Clip", [shifted, *bounds], shape)
            else:
                clipped = self.node("Clip", [shifted], shape, min=0.0, max=6.0)
            product = self.node("Mul", [x, clipped], shape)
            return self.node("Div", [product, self.constant(np.float32(6))], shape)
        if kind == "gelu":
            scaled = self.node("Div", [x, self.constant(np.float32(math.sqrt(2)))], shape)
            one = self.node(
                "Add", [self.node("Erf", [scaled], shape), self.constant(np.float32(1))], shape
            )
            product = self.node("Mul", [x, one], shape)
            return self.node("Mul", [product, self.constant(np.float32(0.5))], shape)
        return self._norm(x, centred=kind == "layernorm")

    def _norm(self, x: str, *, centred: bool) -> str:
        shape = self.shapes[x]
        if centred:
            x = self.node("Sub", [x, self._mean(x)], shape)
        square = self.node("Pow", [x, self.constant(np.float32(2))], shape)
        reduced = (*shape[:-1], 1)
        raised = self.node("Add", [self._mean(square), self.constant(np.float32(1e-3))], reduced)
        y = self.node("Div", [x, self.node("Sqrt", [raised], reduced)], shape)
        y = self.node("Mul", [y, self.between(0.5, 1.5, shape[-1])], shape)
        if self.draw(st.booleans()):
            y = self.node("Add", [y, self.weights(shape[-1])], shape)
        return y

    def _mean(self, x: str) -> str:
        reduced = (*self.shapes[x][:-1], 1)
        if self.opset >= 18:
            return self.node("ReduceMean", [x, self.ints(-1)], reduced)
        return self.node("ReduceMean", [x], reduced, axes=[-1])

    def repeat(self, x: str) -> str:
        """The last node once more: a common subexpression."""
        last = next((n for n in reversed(self.nodes) if x in n.output), None)
        if last is None or last.op_type == "Constant" or len(last.output) > 1:
            return x
        output = self.name()
        copy = onnx.NodeProto()
        copy.CopyFrom(last)
        copy.name, copy.output[0] = f"n{self.count}", output
        self.nodes.append(copy)
        self.shapes[output] = self.shapes[x]
        return output

    def branch(self, x: str) -> str:
        """An If whose branches capture `x`; its condition depends on the data or is constant."""
        shape = self.shapes[x]
        if self.draw(st.booleans()):
            condition = self.constant(np.array(self.draw(st.booleans())))
        else:
            total = self.node("ReduceMax", [x], (), keepdims=0)
            condition = self.node("Greater", [total, self.constant(np.float32(0.3))], ())
            del self.shapes[total], self.shapes[condition]
        bodies = []
        for op in ("Neg", "Tanh"):
            inner, output = self.name(), self.name()
            nodes = [
                helper.make_node("Identity", [x], [inner]),
                helper.make_node(op, [inner], [output]),
            ]
            info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
            bodies.append(helper.make_graph(nodes, op.lower(), [], [info]))
        return self.node("If", [condition], shape, then_branch=bodies[0], else_branch=bodies[1])

    def step(self) -> None:
        x = self.pick()
        shape = self.shapes[x]
        anywhere = [
            self.unary, self.nothing, self.arithmetic, self.join, self.product, self.reshape,
            self.reduction, self.composed, self.repeat, self.branch, self.split, self.heads,
            self.rows, self.bounds, self.wide, self.expand, self.loop,
        ]  # fmt: skip
        if len(shape) == 4:
            choices = [*anywhere, self.convolution, self.normalization, self.pooling]
        elif len(shape) >= 2:
            choices = [*anywhere, self.normalization] if len(shape) > 2 else anywhere
        else:
            choices = [self.unary]
        self.draw(st.sampled_from(choices))(x)


@st.composite
def models(draw: Draw, max_steps: int = 10) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A valid float32 model and inputs for it: any opset, static or dynamic batch."""
    opset = draw(st.sampled_from([8, 9, 11, 13, 17, 20, 23]))
    builder = Builder(draw, opset, ir_version=draw(st.sampled_from([4, 8])))
    batch = draw(st.integers(1, 3))
    dynamic = draw(st.booleans())
    shape = (batch, draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    builder.shapes["x"] = shape
    for _ in range(draw(st.integers(1, max_steps))):
        builder.step()
    made = [n for n in builder.shapes if n != "x"]
    ends = [n for n in made if n not in builder.read]
    also = draw(st.lists(st.sampled_from(made), max_size=2)) if made else []
    declared = ["N" if dynamic else batch, *shape[1:]]
    graph = helper.make_graph(
        builder.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, declared)],
        [
            helper.make_tensor_value_info(
                n,
                TensorProto.FLOAT,
                [None] * len(builder.shapes[n]) if dynamic else builder.shapes[n],
            )
            for n in dict.fromkeys(ends + also)
        ],
        builder.initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=builder.ir_version
    )
    return model, {"x": builder.random.standard_normal(shape).astype(np.float32)}
