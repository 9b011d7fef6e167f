"""Models with open sizes that aren't in the zoo, for `open_latency.py`: random weights, no names.

`crnn` reads lines of text, 32 pixels high and of any width: convolutions that leave a row, two
bidirectional LSTMs over it, scores of characters for each step. `detector` has three levels of a
pyramid, joined from above, and at each place of each level scores and boxes; height and width are
multiples of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

CHARACTERS = 97
CLASSES = 20


class _Network:
    """A graph in the making, whose weights keep the scale of what they read."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.random = np.random.default_rng(0)

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int, inputs: int) -> str:
        drawn = self.random.standard_normal(shape) * np.sqrt(2 / inputs)
        return self.constant(drawn.astype(np.float32))

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def convolution(
        self, x: str, inner: int, outer: int, kernel: int = 3, stride: int = 1, *, relu: bool = True
    ) -> str:
        w = self.weights(outer, inner, kernel, kernel, inputs=inner * kernel**2)
        bias = self.constant(np.zeros(outer, np.float32))
        pads = [kernel // 2] * 4
        y = self.node("Conv", x, w, bias, pads=pads, strides=[stride] * 2)
        return self.node("Relu", y) if relu else y

    def model(self, shape: Sequence[int | str], outputs: Sequence[str]) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in outputs],
            self.constants,
        )
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=9)


def crnn() -> ModelProto:
    net = _Network()
    x, inner = "x", 1
    # channels, and by how much rows and columns shrink after
    for outer, shrink in ((64, (2, 2)), (128, (2, 2)), (256, None), (256, (2, 1)), (512, (4, 1))):
        x = net.convolution(x, inner, outer)
        if shrink is not None:
            x = net.node("MaxPool", x, kernel_shape=list(shrink), strides=list(shrink))
        inner = outer
    row = net.node("Squeeze", x, net.constant(np.asarray([2])))
    steps, width, hidden = net.node("Transpose", row, perm=[2, 0, 1]), inner, 256
    for _ in range(2):
        w = net.weights(2, 4 * hidden, width, inputs=2 * width)
        r = net.weights(2, 4 * hidden, hidden, inputs=2 * hidden)
        both = net.node("LSTM", steps, w, r, hidden_size=hidden, direction="bidirectional")
        together = net.node("Transpose", both, perm=[0, 2, 1, 3])
        steps = net.node("Reshape", together, net.constant(np.asarray([0, 0, -1])))
        width = 2 * hidden
    scores = net.node("MatMul", steps, net.weights(width, CHARACTERS, inputs=width))
    return net.model([1, 1, 32, "width"], [net.node("Softmax", scores, axis=-1)])


def detector() -> ModelProto:
    net = _Network()
    x = net.convolution("x", 3, 32, stride=2)
    levels, inner = [], 32
    for outer in (64, 128, 256, 512):
        x = net.convolution(x, inner, outer, stride=2)
        y = net.convolution(net.convolution(x, outer, outer // 2, 1), outer // 2, outer)
        x, inner = net.node("Add", x, y), outer
        levels.append((x, outer))
    above, results = "", []
    for x, width in levels[:0:-1]:
        joined = net.convolution(x, width, 128, 1)
        if above:
            twice = net.constant(np.asarray([1, 1, 2, 2], np.float32))
            larger = net.node("Resize", above, "", twice, mode="nearest")
            joined = net.node("Add", joined, larger)
        above = joined
        found = net.convolution(net.convolution(joined, 128, 128), 128, 4 + CLASSES, 1, relu=False)
        last = net.node("Transpose", found, perm=[0, 2, 3, 1])
        results.append(net.node("Reshape", last, net.constant(np.asarray([0, -1, 4 + CLASSES]))))
    every = net.node("Concat", *results, axis=1)
    return net.model([1, 3, "rows", "columns"], [net.node("Sigmoid", every)])


MADE: dict[str, Callable[[], ModelProto]] = {"crnn": crnn, "detector": detector}
