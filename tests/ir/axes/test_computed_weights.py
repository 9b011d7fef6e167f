"""Weights that the graph computes from constants are pruned as if they were stored.

What can't be folded keeps the constants whole that a sum, a norm or a statistic needs.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from .plain import Plain, check


def norm(net, weight, axes, op_type="ReduceL2"):
    if op_type == "ReduceSum" or net.opset >= 18:
        return net.hidden(op_type, [weight, net.ints(*axes)])
    return net.hidden(op_type, [weight], axes=axes)


def stored(net, *shape):
    return net.initializer(net.random.standard_normal(shape).astype(np.float32))


def weight_norm(net, out, ins):
    """g * v / |v|, by output channel."""
    v = stored(net, out, ins, 3, 3)
    quotient = net.hidden("Div", [v, norm(net, v, [1, 2, 3])])
    return net.hidden("Mul", [quotient, stored(net, out, 1, 1, 1)])


def standardized(net, out, ins):
    """Weight standardization: less its mean, over its deviation."""
    v = stored(net, out, ins, 3, 3)
    centred = net.hidden("Sub", [v, norm(net, v, [1, 2, 3], "ReduceMean")])
    square = net.hidden("Mul", [centred, centred])
    deviation = net.hidden("Sqrt", [norm(net, square, [1, 2, 3], "ReduceMean")])
    return net.hidden("Div", [centred, deviation])


def spectral(net, out, ins):
    """v / (u v w), as spectral normalization leaves it."""
    v = stored(net, out, ins, 3, 3)
    matrix = net.hidden("Reshape", [v, net.ints(out, ins * 9)])
    product = net.hidden("MatMul", [matrix, stored(net, ins * 9)])
    sigma = net.hidden("ReduceSum", [net.hidden("Mul", [stored(net, out), product])], keepdims=0)
    return net.hidden("Div", [v, sigma])


def product(net, out, ins):
    """Of low rank, by an Einsum that no rule follows."""
    factors = [stored(net, out, 2, 3, 3), stored(net, 2, ins)]
    weight = net.hidden("Einsum", factors, equation="or...,ri->o...i")
    return net.hidden("Transpose", [weight], perm=[0, 3, 1, 2])


def branched(net, out, ins):
    """Out of an If with a constant condition."""
    name = net.name("w")
    v = stored(net, out, ins, 3, 3)
    info = helper.make_tensor_value_info(f"{name}_a", TensorProto.FLOAT, (out, ins, 3, 3))
    other = numpy_helper.from_array(np.zeros((out, ins, 3, 3), np.float32), f"{name}_b")
    first = helper.make_graph([helper.make_node("Neg", [v], [f"{name}_a"])], "a", [], [info])
    info = helper.make_tensor_value_info(f"{name}_b", TensorProto.FLOAT, (out, ins, 3, 3))
    constant = helper.make_node("Constant", [], [f"{name}_b"], value=other)
    second = helper.make_graph([constant], "b", [], [info])
    condition = net.initializer(np.array(True))
    net.nodes.append(
        helper.make_node("If", [condition], [name], then_branch=first, else_branch=second)
    )
    return name


def transposed(net, out, ins):
    return net.hidden("Transpose", [stored(net, ins, out, 3, 3)], perm=[1, 0, 2, 3])


def joined(net, out, ins):
    return net.hidden(
        "Concat", [stored(net, 2, ins, 3, 3), stored(net, out - 2, ins, 3, 3)], axis=0
    )


def conv(net, x, weight, out):
    n, _, h, w = net.shapes[x]
    return net.node("Conv", [x, weight, net.weights(out)], (n, out, h, w), pads=[1, 1, 1, 1])


@pytest.mark.parametrize(
    "way", [weight_norm, standardized, spectral, product, branched, transposed]
)
def test_convolutions_by_computed_weights(way):
    net = Plain(opset=17)
    x = conv(net, net.image(), way(net, 8, 3), 8)
    x = conv(net, net.relu(x), way(net, 6, 8), 6)
    check(net, net.conv(x, 4), [8, 6])


def test_a_joined_weight():
    net = Plain(opset=17)
    x = conv(net, net.image(), joined(net, 8, 3), 8)
    check(net, net.conv(x, 4), [2, 6])


def test_a_classifier_of_unit_vectors():
    """Rows and features of length one, whatever is pruned before."""
    net = Plain(opset=17)
    x = net.relu(net.gemm(net.input((2, 5)), 8))
    x = net.node("Div", [x, norm(net, x, [1])], (2, 8))
    v = stored(net, 8, 3)
    weight = net.hidden("Div", [v, norm(net, v, [0])])
    check(net, net.node("MatMul", [x, weight], (2, 3)), [8])


def test_the_norm_of_a_quantized_weight_needs_all_of_its_inputs():
    """Folding would undo the quantization, so the input channels stay."""
    net = Plain(opset=17)
    x = net.conv(net.image(), 8)
    levels = net.random.integers(-90, 90, (6, 8, 3, 3)).astype(np.int8)
    scale = net.initializer(np.float32(0.05))
    v = net.hidden("DequantizeLinear", [net.initializer(levels), scale])
    weight = net.hidden("Div", [v, norm(net, v, [1, 2, 3])])
    groups = check(net, net.conv(conv(net, x, weight, 6), 4), [6])
    reasons = [str(g.lock) for g in groups if g.lock is not None]
    assert any("what is summed along this axis is constant" in reason for reason in reasons)


@pytest.mark.parametrize("op_type", ["Shape", "ConstantOfShape"])
def test_a_count_of_channels_stays_that_of_the_original(op_type):
    """A mean as a sum over a count."""
    net = Plain(opset=17)
    x = net.conv(net.image(), 8)
    shape = net.hidden("Shape", [x])
    one = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    if op_type == "Shape":
        count = net.hidden("Gather", [shape, net.ints(1)])
        count = net.hidden("Cast", [count], to=TensorProto.FLOAT)
    else:
        ones = net.hidden("ConstantOfShape", [shape], value=one)
        count = norm(net, ones, [1], "ReduceSum")
    total = net.node("ReduceSum", [x, net.ints(1)], (2, 1, 4, 4))
    y = net.node("Div", [total, count], (2, 1, 4, 4))
    check(net, net.conv(net.mul(x, y), 4), [8])


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_by_computed_weights(op):
    """Units inside the operator, which a mask of its results alone wouldn't reach."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * 6
    net = Plain()

    def computed(*shape):
        return net.hidden("Mul", [stored(net, *shape), stored(net, *(1 for _ in shape))])

    x = net.linear(net.input((4, 2, 3)), 5)
    parameters = [computed(1, gates, 5), computed(1, gates, 6), computed(1, 2 * gates)]
    states = ["", computed(1, 2, 6), *([computed(1, 2, 6)] if op == "LSTM" else [])]
    (y,) = net.node(op, [x, *parameters, *states], outputs=[(4, 1, 2, 6)], hidden_size=6)
    check(net, net.linear(net.reshape(y, [[0], [2], [1, 3]]), 3), [5, 6])
