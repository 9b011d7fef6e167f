"""Small models to change."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from .registry import (
    base,
    floats,
    model,
    weights,
)


@base
def convolutions() -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1] * 4),
        helper.make_node("Add", ["r1", "c2"], ["s"], "add"),
        helper.make_node("MaxPool", ["s"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"], "global"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "classify"),
    ]
    constants = [weights("w1", 8, 3, 3, 3), weights("b1", 8), weights("w2", 8, 8, 3, 3)]
    constants.append(weights("w3", 8, 4))
    inputs, outputs = [floats("x", 1, 3, 8, 8)], [floats("y", 1, 4)]
    infos = [floats("c1", 1, 8, 8, 8), floats("p", 1, 8, 4, 4)]
    return model(helper.make_graph(nodes, "net", inputs, outputs, constants, value_info=infos))


@base
def shapes() -> ModelProto:
    """An open batch, and arithmetic on sizes."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "product"),
        helper.make_node("Shape", ["m"], ["n"], "shape"),
        helper.make_node("Gather", ["n", "zero"], ["first"], "first"),
        helper.make_node("Concat", ["first", "rest"], ["sizes"], "sizes", axis=0),
        helper.make_node("Reshape", ["m", "sizes"], ["h"], "split"),
        helper.make_node("Transpose", ["h"], ["t"], "turn", perm=[0, 2, 1]),
        helper.make_node("Softmax", ["t"], ["y"], "softmax", axis=-1),
    ]
    constants = [
        weights("w", 6, 8),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([2, -1], np.int64), "rest"),
    ]
    return model(
        helper.make_graph(nodes, "net", [floats("x", "n", 6)], [floats("y", "n", 4, 2)], constants)
    )


@base
def branches() -> ModelProto:
    """An If on an input, whose branches capture values."""
    yes = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["a"])], "yes", [], [
        floats("a", 2, 4)
    ])  # fmt: skip
    no = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "no", [], [floats("b", 2, 4)])
    nodes = [
        helper.make_node("Cast", ["flag"], ["condition"], "cast", to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["z"], "choose", then_branch=yes, else_branch=no),
        helper.make_node("Add", ["z", "x"], ["y"], "add"),
    ]
    flag = helper.make_tensor_value_info("flag", TensorProto.INT64, [])
    inputs, outputs = [floats("x", 2, 4), flag], [floats("y", 2, 4)]
    return model(helper.make_graph(nodes, "net", inputs, outputs, [weights("w", 4, 4)]))


@base
def one_node() -> ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    return model(helper.make_graph(nodes, "net", [floats("x", 2, 3)], [floats("y", 2, 3)]))


@base
def state() -> ModelProto:
    """A recurrent step: scalar sample rate, state in and state out."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "front"], ["steps"], "unsqueeze"),
        helper.make_node("GRU", ["steps", "w", "r", "", "", "h"], ["all", "hn"], "gru",
                         hidden_size=3, linear_before_reset=1),
        helper.make_node("Equal", ["sr", "rate"], ["is16"], "equal"),
        helper.make_node("Where", ["is16", "hn", "h"], ["state"], "where"),
        helper.make_node("Squeeze", ["state", "front"], ["y"], "squeeze"),
    ]  # fmt: skip
    rate = helper.make_tensor_value_info("sr", TensorProto.INT64, [])
    constants = [
        weights("w", 1, 9, 4),
        weights("r", 1, 9, 3),
        numpy_helper.from_array(np.array(16000, np.int64), "rate"),
        numpy_helper.from_array(np.array([0], np.int64), "front"),
    ]
    inputs = [floats("x", "n", 4), rate, floats("h", 1, "n", 3)]
    outputs = [floats("y", "n", 3), floats("state", 1, "n", 3)]
    return model(helper.make_graph(nodes, "net", inputs, outputs, constants))
