"""Weights that a graph computes from constants, as exporters and libraries leave them.

Each way takes a network and an array and returns the name of a value that holds the array,
or for some a multiple of its parts; `ways` lists those that fit.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def _sum(net, op_type, x, axes):
    """A reduction with keepdims, axes as the opset has them."""
    if net.opset >= (13 if op_type == "ReduceSum" else 18):
        return net.hidden(op_type, [x, net.initializer(np.array(axes, np.int64))])
    return net.hidden(op_type, [x], axes=axes)


def _others(net, array):
    """All axes but one, or one: what a norm runs over."""
    axes = list(range(array.ndim))
    kept = net.choose(axes)
    return [kept] if net.maybe(3) else [a for a in axes if a != kept] or axes


def normalized(net, array):
    """Weight normalization: g * v / norm(v)."""
    axes = _others(net, array)
    v = net.initializer(array)
    if net.maybe(3) and 13 <= net.opset < 28:  # kept quantized, so that nothing is folded
        scale = np.float32(np.abs(array).max() / 100 + 1e-3)
        levels = np.clip(np.round(array / scale), -127, 127).astype(np.int8)
        levels += (levels == 0) & (array > 0)
        parameters = [net.initializer(levels), net.initializer(scale)]
        v = net.hidden("DequantizeLinear", parameters)
    norm = _sum(net, net.choose(["ReduceL2", "ReduceL1"]), v, axes)
    norm = net.hidden("Add", [norm, net.initializer(np.float32(1e-3))])
    shape = [1 if a in axes else s for a, s in enumerate(array.shape)]
    gain = net.initializer(net.random.uniform(0.5, 1.5, shape).astype(np.float32))
    return net.hidden("Mul", [net.hidden("Div", [v, norm]), gain])


def standardized(net, array):
    """Weight standardization without the mean."""
    axes = _others(net, array)
    v = net.initializer(array)
    square = net.hidden("Mul", [v, v])
    mean = _sum(net, "ReduceMean", square, axes)
    mean = net.hidden("Sqrt", [net.hidden("Add", [mean, net.initializer(np.float32(0.1))])])
    return net.hidden("Div", [v, mean])


def low_rank(net, array):
    """A product of two factors."""
    u, s, v = np.linalg.svd(array.astype(np.float64), full_matrices=False)
    factors = [net.initializer((u * s).astype(np.float32)), net.initializer(v.astype(np.float32))]
    if net.opset >= 12 and net.maybe():
        return net.hidden("Einsum", factors, equation="or,ri->oi")
    return net.hidden("MatMul", factors)


def adapted(net, array):
    """A weight and a product of rank one."""
    column = net.random.standard_normal((array.shape[0], 1)).astype(np.float32) * (
        array[:, :1] != 0
    )
    row = net.random.standard_normal((1, array.shape[1])).astype(np.float32) * (array[:1] != 0)
    update = net.hidden("MatMul", [net.initializer(column), net.initializer(row)])
    return net.hidden("Add", [net.initializer(array), update])


def scaled(net, array):
    kept = net.choose(range(array.ndim))
    shape = [s if a == kept else 1 for a, s in enumerate(array.shape)]
    scale = net.random.uniform(0.5, 2.0, shape).astype(np.float32)
    return net.hidden("Mul", [net.initializer(array / scale), net.initializer(scale)])


def cast(net, array):
    return net.hidden("Cast", [net.initializer(array.astype(np.float64))], to=TensorProto.FLOAT)


def reshaped(net, array):
    stored = net.choose([array.ravel(), array.reshape(array.shape[0], -1), array[None]])
    shape = net.initializer(np.array(array.shape, np.int64))
    return net.hidden("Reshape", [net.initializer(stored), shape])


def concatenated(net, array):
    axis = net.choose(range(array.ndim))
    parts = np.split(array, [array.shape[axis] // 2], axis)
    return net.hidden("Concat", [net.initializer(p) for p in parts], axis=axis)


def gathered(net, array):
    axis = net.choose(range(array.ndim))
    order = net.random.permutation(array.shape[axis])
    stored = np.take(array, np.argsort(order), axis)
    return net.hidden("Gather", [net.initializer(stored), net.initializer(order)], axis=axis)


def softmaxed(net, array):
    """A mixture of two weights."""
    logits = net.hidden("Softmax", [net.initializer(np.zeros((1, 2), np.float32))], axis=1)
    both = net.initializer(np.stack([array.ravel(), array.ravel()]))
    mixed = net.hidden("MatMul", [logits, both])
    return net.hidden("Reshape", [mixed, net.initializer(np.array(array.shape, np.int64))])


def branched(net, array):
    """An If whose condition is constant."""

    def branch(name, factor):
        constant = numpy_helper.from_array(array * np.float32(factor), f"{out}_{name}")
        result = f"{out}_{name}_result"
        nodes = [
            helper.make_node("Constant", [], [constant.name], value=constant),
            helper.make_node("Identity", [constant.name], [result]),
        ]
        info = helper.make_tensor_value_info(result, TensorProto.FLOAT, array.shape)
        return helper.make_graph(nodes, name, [], [info])

    out = net.name("w")
    condition = net.initializer(np.array(True))
    net.nodes.append(
        helper.make_node(
            "If", [condition], [out], then_branch=branch("a", 1), else_branch=branch("b", 2)
        )
    )
    return out


def ways(net, array):
    """The ways that fit an array (and keep what is positive positive)."""
    if array.ndim == 0 or array.size < 2 or net.opset < 9:
        return []
    found = [scaled, cast, reshaped, concatenated, gathered, normalized, standardized]
    found += [branched] * (net.opset >= 11) + [softmaxed] * (net.opset >= 13)
    if array.ndim == 2 and not (array > 0).all():
        found += [low_rank, adapted]
    return found


def planted_indices(net, size):
    """Indices of axes of a size at which a planted network's weights are zero."""
    if size not in net.planted:
        count = max(1, size // 3) if size > 1 else 0
        net.planted[size] = net.random.permutation(size)[:count]
    return net.planted[size]


def plant(net, array):
    """Make channels zero that a weight produces: by its first axis, or a matrix by its last."""
    axes = [array.ndim - 1] if array.ndim == 2 and net.maybe() else [0]
    if array.ndim == 3 and array.shape[0] <= 2:  # directions of recurrent weights, states
        axes = [1, 2]
    for axis in axes if array.size > 1 else ():
        index = [slice(None)] * array.ndim
        index[axis] = planted_indices(net, array.shape[axis])
        array[tuple(index)] = 0
    return array
