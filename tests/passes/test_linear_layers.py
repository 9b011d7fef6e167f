"""What multiplies a layer's weights is what the operator multiplies them with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.passes.linear.find import find_layer, give_biases
from secateur.passes.linear.layers import Layer


def build(nodes, shape, weights, opset=22):
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    model = from_proto(proto)
    infer_shapes(model)
    return model


def convolutions():
    for rank, group, transposed in itertools.product((1, 2, 3), (1, 2, 4), (False, True)):
        kernel = (3, 2, 1)[:rank]
        for attributes in (
            {},
            {"strides": [2] * rank, "pads": [1] * rank + [0] * rank},
            {"dilations": [2] * rank, "pads": [2] * (2 * rank)},
            {"auto_pad": "SAME_LOWER", "strides": [2] * rank},
            {"auto_pad": "SAME_UPPER"},
            {"auto_pad": "VALID"},
        ):
            yield pytest.param(
                rank,
                group,
                transposed,
                kernel,
                attributes,
                id=f"{rank}d-{group}-{transposed}-"
                + "-".join(f"{k}={v}" for k, v in attributes.items()).replace(" ", ""),
            )


@pytest.mark.parametrize(
    ("rank", "group", "transposed", "kernel", "attributes"), list(convolutions())
)
def test_convolution(rank, group, transposed, kernel, attributes):
    random = np.random.default_rng(rank)
    first, second = (4, 8 // group) if transposed else (8, 4 // group)
    weights = {"w": random.standard_normal((first, second, *kernel)), "b": np.arange(8)}
    op_type = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(op_type, ["x", "w", "b"], ["y"], group=group, **attributes)
    check(build([node], [2, 4, *(9, 8, 7)[:rank]], weights))


@pytest.mark.parametrize("bias", [None, (), (1,), (6,), (1, 6)])
@pytest.mark.parametrize(
    "attributes", [{}, {"transB": 1}, {"transA": 1}, {"alpha": 2.0, "beta": 0.5}]
)
def test_gemm(attributes, bias):
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((6, 5) if attributes.get("transB") else (5, 6))}
    if bias is not None:
        weights["b"] = random.standard_normal(bias)
    node = helper.make_node("Gemm", ["x", *weights], ["y"], **attributes)
    check(build([node], [5, 7] if attributes.get("transA") else [7, 5], weights))


@pytest.mark.parametrize("shape", [[7, 5], [2, 7, 5], [2, 3, 7, 5]])
@pytest.mark.parametrize("add", ["first", "second", "none", "wide"])
def test_matmul(shape, add):
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((5, 6))}
    if add == "wide" and len(shape) < 3:
        pytest.skip("the sum has more axes than the product")
    product = helper.make_node("MatMul", ["x", "w"], ["y" if add == "none" else "m"])
    nodes = [product]
    if add != "none":
        weights["b"] = random.standard_normal(6 if add != "wide" else (1, 1, 6))
        operands = ["b", "m"] if add == "first" else ["m", "b"]
        nodes.append(helper.make_node("Add", operands, ["y"]))
    check(build(nodes, shape, weights))


def products():
    """Constant operands and what they are multiplied by, over all ways to have a batch."""
    for shape, weights in [
        ([5], [5, 6]),
        ([7, 5], [5]),
        ([5], [5]),
        ([2, 3, 7, 5], [3, 5, 6]),
        ([2, 3, 7, 5], [2, 3, 5, 6]),
        ([2, 3, 7, 5], [2, 1, 5, 6]),
        ([2, 1, 7, 5], [4, 5, 6]),
        ([7, 5], [3, 5, 6]),
        ([7, 5], [1, 1, 5, 6]),
    ]:
        yield pytest.param(shape, weights, False, id=f"{shape}{weights}".replace(" ", ""))
    for weights, shape in [
        ([6, 5], [5, 7]),
        ([6, 5], [2, 5, 7]),
        ([6, 5], [5]),
        ([5], [2, 5, 7]),
        ([3, 6, 5], [2, 3, 5, 7]),
        ([3, 6, 5], [5, 7]),
        ([3, 6, 5], [2, 1, 5, 7]),
    ]:
        yield pytest.param(shape, weights, True, id=f"left{weights}{shape}".replace(" ", ""))


@pytest.mark.parametrize(("shape", "weights", "left"), list(products()))
def test_matmul_of_any_ranks(shape, weights, left):
    random = np.random.default_rng(0)
    operands = ["w", "x"] if left else ["x", "w"]
    node = helper.make_node("MatMul", operands, ["y"])
    check(build([node], shape, {"w": random.standard_normal(weights)}))


@pytest.mark.parametrize(
    ("equation", "shape", "weights"),
    [
        ("ij,jk->ik", [7, 5], [5, 6]),
        ("ij,jk", [7, 5], [5, 6]),
        ("bsd,dhk->bhsk", [2, 7, 5], [5, 3, 4]),
        ("bsd,dhk->bshk", [2, 7, 5], [5, 3, 4]),
        ("bhsk,hkd->bsd", [2, 3, 7, 4], [3, 4, 5]),
        ("bhsk, hkd -> bhsd", [2, 3, 7, 4], [3, 4, 5]),
        ("bhsk,khd->dhsb", [2, 3, 7, 4], [4, 3, 5]),
        ("bs,hd->bshd", [2, 7], [3, 5]),
    ],
)
@pytest.mark.parametrize("left", [False, True])
def test_einsum(equation, shape, weights, left):
    random = np.random.default_rng(0)
    if left:
        operands, arrow, output = equation.partition("->")
        equation = ",".join(reversed(operands.split(","))) + arrow + output
    node = helper.make_node("Einsum", ["w", "x"] if left else ["x", "w"], ["y"], equation=equation)
    check(build([node], shape, {"w": random.standard_normal(weights)}))


@pytest.mark.parametrize(
    ("equation", "shape", "weights", "reason"),
    [
        ("...d,dk->...k", [2, 7, 5], [5, 6], "ellipsis"),
        ("ii,ij->ij", [5, 5], [5, 6], "repeated"),
        ("bsd,dk->bk", [2, 7, 5], [5, 6], "summed"),
    ],
)
def test_einsums_that_are_no_products_say_so(equation, shape, weights, reason):
    random = np.random.default_rng(0)
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation=equation)
    model = build([node], shape, {"w": random.standard_normal(weights)})
    assert reason in find_layer(model, model.graph.nodes[0])


@pytest.mark.parametrize("scale", [(6, 1, 1), (1, 6, 1, 1), (3,), (5, 1)])
@pytest.mark.parametrize("add", ["first", "second", "none"])
def test_multiplication_by_a_vector(scale, add):
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal(scale)}
    nodes = [helper.make_node("Mul", ["w", "x"], ["y" if add == "none" else "m"])]
    if add != "none":
        weights["b"] = random.standard_normal(scale)
        operands = ["b", "m"] if add == "first" else ["m", "b"]
        nodes.append(helper.make_node("Add", operands, ["y"]))
    check(build(nodes, [2, 6, 5, 3], weights))


@pytest.mark.parametrize("op_type", ["RMSNormalization", "SimplifiedLayerNormalization"])
def test_root_mean_square_normalization(op_type):
    scale = np.random.default_rng(0).standard_normal(6)
    node = helper.make_node(op_type, ["x", "s"], ["y"], epsilon=0.1)
    check(build([node], [2, 5, 6], {"s": scale}, opset=23))


@pytest.mark.parametrize("op_type", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_normalization_of_a_sum(op_type):
    random = np.random.default_rng(0)
    inputs = ["x", "x", "s", "b"] if op_type == "SkipLayerNormalization" else ["x", "x", "s"]
    node = helper.make_node(
        op_type, inputs, ["y", "", "", "sum"], domain="com.microsoft", epsilon=0.1
    )
    weights = {name: random.standard_normal(6) for name in inputs[2:]}
    check(build([node], [2, 5, 6], weights), lambda x: 2 * x)


@pytest.mark.parametrize(
    ("op_type", "attributes", "extra"),
    [
        ("BatchNormalization", {"epsilon": 1e-2}, True),
        ("InstanceNormalization", {}, False),
        ("GroupNormalization", {"num_groups": 2}, False),
        ("LayerNormalization", {"axis": -1}, False),
    ],
)
def test_normalization(op_type, attributes, extra):
    random = np.random.default_rng(0)
    weights = {"s": random.standard_normal(6), "b": random.standard_normal(6)}
    if extra:
        weights |= {"m": random.standard_normal(6), "v": random.random(6) + 0.5}
    node = helper.make_node(op_type, ["x", *weights], ["y"], **attributes)
    shape = [2, 5, 6] if op_type == "LayerNormalization" else [2, 6, 5, 3]
    check(build([node], shape, weights))


def check(model, source=lambda x: x):
    """Rows times matrix are the outputs; what is written is what is read and computed.

    `source` computes what the layer reads from the model's input.
    """
    random = np.random.default_rng(1)
    x = random.standard_normal([int(s) for s in model.graph.inputs[0].shape]).astype(np.float32)
    give_biases(model)
    found = [find_layer(model, node) for node in model.graph.nodes]
    layers = [layer for layer in found if isinstance(layer, Layer)]
    assert len(layers) == 1, found
    layer = layers[0]
    places = None
    for scale in (1.0, 3.0):
        matrix, bias = layer.read()
        layer.write(scale * matrix, bias + scale)
        layer = next(
            a for a in (find_layer(model, n) for n in model.graph.nodes) if isinstance(a, Layer)
        )
        again, shifted = layer.read()
        np.testing.assert_allclose(again, scale * matrix, rtol=1e-6)
        wanted = bias + scale if layer.has_bias else 0 * bias
        np.testing.assert_allclose(shifted, wanted, rtol=1e-5, atol=1e-6)
        output = Session(model, optimize=False).run({"x": x})["y"]
        places = np.arange(layer.places(output))[::2]
        rows = layer.rows(source(x), output.shape, places)
        np.testing.assert_allclose(
            rows @ again + shifted[:, None],
            layer.targets(output, places),
            rtol=1e-4,
            atol=1e-4,
        )
    assert places is not None
