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
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
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


def check(model):
    """Rows times matrix are the outputs; what is written is what is read and computed."""
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
        np.testing.assert_allclose(shifted, bias + scale, rtol=1e-5, atol=1e-6)
        output = Session(model, optimize=False).run({"x": x})["y"]
        places = np.arange(layer.places(output))[::2]
        rows = layer.rows(x, output.shape, places)
        np.testing.assert_allclose(
            rows @ again + shifted[:, None],
            layer.targets(output, places),
            rtol=1e-4,
            atol=1e-4,
        )
    assert places is not None
