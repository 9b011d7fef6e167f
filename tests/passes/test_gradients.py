"""Gradients against central differences, for every operator that has a rule."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.tensor import Tensor
from secateur.passes.linear.gradient_rules import RULES
from secateur.passes.linear.gradients import Gradients
from secateur.passes.sizes import infer_sizes

IMAGE = ["n", 4, 7, 6]
WIDE = ["n", 8, 5, 4]


def weights(*shape, low=-1.0):
    return ("weights", shape, low)


def numbers(*values):
    return np.array(values, np.int64)


CASES = {
    "add": ("Add", ["n", 4, 5], [weights(4, 1)], {}),
    "sub": ("Sub", ["n", 4, 5], [weights(5)], {}),
    "mul": ("Mul", ["n", 4, 5], [weights(1, 4, 5)], {}),
    "div": ("Div", ["n", 4, 5], [weights(4, 1, low=1.0)], {}),
    "gemm": ("Gemm", ["n", 5], [weights(5, 3), weights(3)], {"alpha": 0.5, "beta": 2.0}),
    "gemm transposed": ("Gemm", ["n", 5], [weights(3, 5), weights(1, 3)], {"transB": 1}),
    "matmul": ("MatMul", ["n", 4, 5], [weights(5, 3)], {}),
    "matmul batched": ("MatMul", ["n", 2, 4, 5], [weights(2, 5, 3)], {}),
    "conv": ("Conv", IMAGE, [weights(5, 4, 3, 3), weights(5)], {"pads": [1, 1, 1, 1]}),
    "conv strided": (
        "Conv",
        IMAGE,
        [weights(6, 2, 3, 2)],
        {"group": 2, "strides": [2, 2], "pads": [0, 1, 1, 0]},
    ),
    "conv dilated": ("Conv", IMAGE, [weights(3, 4, 2, 2)], {"dilations": [2, 3]}),
    "conv of many": ("Conv", WIDE, [weights(5, 8, 3, 2), weights(5)], {"pads": [1, 0, 2, 1]}),
    "conv of many strided": (
        "Conv",
        WIDE,
        [weights(3, 8, 3, 2)],
        {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 1, 0]},
    ),
    "conv of many at a point": ("Conv", WIDE, [weights(3, 8, 1, 1)], {"strides": [2, 3]}),
    "conv of many in 1d": (
        "Conv",
        ["n", 9, 7],
        [weights(3, 9, 3)],
        {"strides": [2], "pads": [1, 1]},
    ),
    "conv depthwise": ("Conv", IMAGE, [weights(4, 1, 3, 3)], {"group": 4, "strides": [1, 2]}),
    "conv 1d": ("Conv", ["n", 4, 9], [weights(3, 4, 3)], {"strides": [2], "pads": [1, 1]}),
    "average pool": ("AveragePool", IMAGE, [], {"kernel_shape": [3, 2], "strides": [2, 2]}),
    "average pool of all": ("AveragePool", IMAGE, [], {"kernel_shape": [7, 6]}),
    "global pool": ("GlobalAveragePool", IMAGE, [], {}),
    "max pool": ("MaxPool", ["n", 4, 6, 6], [], {"kernel_shape": [2, 3], "strides": [2, 3]}),
    "relu": ("Relu", IMAGE, [], {}),
    "leaky relu": ("LeakyRelu", IMAGE, [], {"alpha": 0.2}),
    "clip": ("Clip", IMAGE, [np.float32(-0.5), np.float32(0.7)], {}),
    "sigmoid": ("Sigmoid", IMAGE, [], {}),
    "hard sigmoid": ("HardSigmoid", IMAGE, [], {"alpha": 0.4}),
    "hard swish": ("HardSwish", IMAGE, [], {}),
    "tanh": ("Tanh", IMAGE, [], {}),
    "erf": ("Erf", IMAGE, [], {}),
    "gelu": ("Gelu", IMAGE, [], {}),
    "exp": ("Exp", IMAGE, [], {}),
    "neg": ("Neg", IMAGE, [], {}),
    "identity": ("Identity", IMAGE, [], {}),
    "softmax": ("Softmax", ["n", 4, 5], [], {"axis": 1}),
    "layer normalization": ("LayerNormalization", ["n", 4, 5], [weights(5), weights(5)], {}),
    "batch normalization": (
        "BatchNormalization",
        IMAGE,
        [weights(4), weights(4), np.arange(4, dtype=np.float32), np.ones(4, np.float32)],
        {},
    ),
    "reshape": ("Reshape", ["n", 4, 6], [numbers(-1, 2, 12)], {}),
    "flatten": ("Flatten", ["n", 4, 6], [], {}),
    "squeeze": ("Squeeze", ["n", 1, 6], [numbers(1)], {}),
    "unsqueeze": ("Unsqueeze", ["n", 6], [numbers(1)], {}),
    "transpose": ("Transpose", ["n", 4, 6], [], {"perm": [2, 0, 1]}),
    "concat": ("Concat", ["n", 4, 6], [weights(1, 4, 6)], {"axis": 0}),
    "gather": ("Gather", ["n", 4, 6], [np.array(-1)], {"axis": 1}),
    "gather of one": ("Gather", ["n", 4, 6], [numbers(2)], {"axis": 2}),
    "slice": ("Slice", ["n", 4, 6], [numbers(1, -4), numbers(9, -1), numbers(1, 2)], {}),
    "split": ("Split", ["n", 6, 5], [numbers(1, 3, 2)], {"axis": 1}),
    "sqrt": ("Sqrt", ["n", 4, 5], [], {}),
}


KINKED = ("relu", "leaky relu", "clip", "hard sigmoid", "hard swish", "max pool")


def build(kind, opset=21):
    """`scale * x` and, behind an operator, a product with fixed numbers."""
    op_type, shape, operands, attributes = CASES[kind]
    random = np.random.default_rng(0)
    size = [3 if n == "n" else n for n in shape]
    if op_type == "Concat":
        shape = size = [1 if n == "n" else n for n in shape]
    low = 0.5 if op_type == "Sqrt" else -2.0
    x = random.uniform(low, 2.0, size).astype(np.float32)
    made = {"scale": random.uniform(0.7, 1.3, size[1:]).astype(np.float32)}
    names = ["scaled"]
    for operand in operands:
        if isinstance(operand, tuple):
            _, form, least = operand
            operand = random.uniform(least, least + 2.0, form).astype(np.float32)
        names.append(f"c{len(names)}")
        made[names[-1]] = np.asarray(operand)
    results = [f"y{k}" for k in range(3)] if op_type == "Split" else ["y"]
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node(op_type, names, results, **attributes),
    ]
    used = results[::2] if op_type == "Split" else results
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in used],
        [numpy_helper.from_array(array, name) for name, array in made.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    infer_sizes(model)
    return model, x


def weighed(b, output, target):
    return b.op("Mul", target, b.number(1.0))


def gradients_of(model, x):
    names = [n for n, v in model.graph.initializers.items() if v.dtype == TensorProto.FLOAT]
    found = Gradients(model, {v.name: weighed for v in model.graph.outputs}, names)
    outputs = Session(model).run({"x": x})
    random = np.random.default_rng(1)
    targets = {n: random.standard_normal(a.shape).astype(np.float32) for n, a in outputs.items()}
    values = {n: model.graph.initializers[n].const.numpy() for n in found.parameters}
    return found, targets, values


@pytest.mark.parametrize("kind", CASES)
def test_gradients_are_central_differences(kind):
    model, x = build(kind)
    found, targets, values = gradients_of(model, x)
    given = found.run({"x": x}, targets, values)
    assert "scale" in given
    floats = {n for n, v in model.graph.initializers.items() if v.dtype == TensorProto.FLOAT}
    fixed = {"c3", "c4"} if kind == "batch normalization" else set()
    fixed |= {"c1", "c2"} if kind == "clip" else set()
    assert set(given) == floats - fixed
    random = np.random.default_rng(2)
    for name, gradient in given.items():
        direction = random.standard_normal(gradient.shape).astype(np.float32)

        def loss(step, name=name, direction=direction):
            moved = model.clone()
            value = moved.graph.initializers[name]
            value.const = Tensor.from_array(values[name] + np.float32(step) * direction)
            outputs = Session(moved, optimize=False).run({"x": x})
            return sum(float((outputs[n].astype(float) * targets[n]).sum()) for n in outputs)

        step = 1e-4 if kind in KINKED else 2e-3
        want = (loss(step) - loss(-step)) / (2 * step)
        have = float((gradient.astype(float) * direction).sum())
        scale = np.linalg.norm(gradient.astype(float)) * np.linalg.norm(direction)
        assert abs(have - want) < 0.02 * scale / np.sqrt(gradient.size) + 1e-3, name


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES.values()} == set(RULES)


@pytest.mark.parametrize("kind", ["relu", "softmax", "split", "unsqueeze"])
def test_older_operator_sets_give_the_same(kind):
    if kind in ("split", "unsqueeze"):
        CASES[f"{kind} 11"] = (
            *CASES[kind][:2],
            [],
            {"axis": 1, "split": [1, 3, 2]} if kind == "split" else {"axes": [1]},
        )
    elif kind == "softmax":
        CASES["softmax 11"] = ("Softmax", ["n", 5], [], {"axis": 1})
    try:
        old, x = build(kind if kind == "relu" else f"{kind} 11", opset=11)
        found, targets, values = gradients_of(old, x)
        assert np.isfinite(found.run({"x": x}, targets, values)["scale"]).all()
    finally:
        CASES.pop(f"{kind} 11", None)


def test_what_lies_in_front_of_an_operator_without_a_rule_has_no_gradient():
    def weight(name, *shape):
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"]),
        helper.make_node("CumSum", ["h", "axis"], ["k"]),
        helper.make_node("Gemm", ["k", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight("a", 3, 4), weight("b", 4, 2), numpy_helper.from_array(np.array(1), "axis")],
    )
    model = from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=9)
    )
    infer_sizes(model)
    before = len(model.graph.nodes)
    found = Gradients(model, {"y": weighed}, ["a", "b", "missing"])
    assert found.parameters == ["b"]
    assert found.stopped == {"CumSum"}
    assert len(model.graph.nodes) == before
