"""Operators of ONNX Runtime's own domain, each between prunable layers."""

import numpy as np
import pytest

from secateur.ir.dependencies.batch import find_batch
from secateur.ir.infer import infer_shapes
from secateur.ir.text import parse_model

from .plain import Plain, check


class Contrib(Plain):
    def __init__(self, **options):
        super().__init__(**options)
        self.domains["com.microsoft"] = 1

    def contrib(self, op_type, inputs, shape, **attributes):
        return self.node(op_type, inputs, shape, domain="com.microsoft", **attributes)


@pytest.mark.parametrize("op_type", ["Gelu", "FastGelu", "QuickGelu"])
def test_activations(op_type):
    net = Contrib()
    x = net.linear(net.sequence(), 8)
    check(net, net.linear(net.contrib(op_type, [x], net.shapes[x]), 3), [8])


@pytest.mark.parametrize("op_type", ["BiasGelu", "FastGelu"])
def test_activations_with_a_bias(op_type):
    net = Contrib()
    x = net.linear(net.sequence(), 8)
    y = net.contrib(op_type, [x, net.weights(8)], net.shapes[x])
    check(net, net.linear(y, 3), [8])


def test_fused_convolution_with_a_residual():
    net = Contrib()
    x = net.conv(net.image(), 8)
    weight, bias = net.weights(8, 8, 3, 3), net.weights(8)
    y = net.contrib(
        "FusedConv", [x, weight, bias, x], net.shapes[x], pads=[1] * 4, activation="Relu"
    )
    check(net, net.conv(y, 4), [8])


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_fused_matmul(trans_a, trans_b):
    net = Contrib()
    x = net.linear(net.sequence(), 8)
    y = net.linear(net.sequence(), 5)
    if not trans_a:
        x = net.transpose(x, 0, 2, 1)
    if trans_b:
        y = net.transpose(y, 0, 2, 1)
    z = net.contrib("FusedMatMul", [x, y], (2, 8, 5), transA=trans_a, transB=trans_b, alpha=0.5)
    check(net, net.linear(net.transpose(net.linear(z, 3), 0, 2, 1), 2), [5, 8])


def test_fused_gemm():
    net = Contrib()
    x = net.reduce("ReduceMean", net.linear(net.sequence(), 8), [1], keep=False)
    y = net.contrib(
        "FusedGemm", [x, net.weights(5, 8), net.weights(5)], (2, 5), transB=1, activation="Relu"
    )
    check(net, net.gemm(y, 3), [5, 8])


def test_skip_layer_normalization():
    net = Contrib()
    x = net.sequence(8)
    y = net.linear(net.relu(net.linear(x, 5)), 8, bias=False)
    z = net.contrib(
        "SkipLayerNormalization",
        [x, y, net.weights(8), net.weights(8), net.weights(8)],
        net.shapes[x],
    )
    check(net, net.linear(net.relu(net.linear(z, 7)), 3), [5, 7])


def test_attention():
    net = Contrib()
    x = net.linear(net.sequence(), 8)
    inputs = [x, net.weights(8, 3 * 12), net.weights(3 * 12)]
    y = net.contrib("Attention", inputs, (2, 4, 12), num_heads=3)
    check(net, net.linear(y, 6), [8, 3, 4])


@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(bias):
    net = Contrib()
    x = net.sequence()
    inputs = [net.linear(x, 12, bias=False) for _ in range(3)]
    if bias:
        inputs.append(net.weights(36))
    y = net.contrib("MultiHeadAttention", inputs, (2, 4, 12), num_heads=3)
    check(net, net.linear(y, 6), [3, 4, 4])


class TestIntegers:
    """Between QuantizeLinear and DequantizeLinear."""

    def quantize(self, net, x):
        self.point = [net.small(np.float32(0.05)), net.small(np.uint8(100))]
        return net.node("QuantizeLinear", [x, *self.point], net.shapes[x])

    def finish(self, net, x, sizes):
        y = net.node("DequantizeLinear", [x, *self.point], net.shapes[x])
        check(net, net.conv(y, 4), sizes)

    @pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
    def test_binary(self, op_type):
        net = Contrib()
        x = net.image()
        a, b = (self.quantize(net, net.conv(x, 6)) for _ in range(2))
        y = net.contrib(op_type, [a, *self.point, b, *self.point, *self.point], net.shapes[a])
        self.finish(net, y, [6])

    def test_convolution_with_a_bias(self):
        net = Contrib()
        a = self.quantize(net, net.conv(net.image(), 6))
        weights = net.small(np.random.default_rng(0).integers(0, 255, (5, 6, 1, 1), np.uint8))
        bias = net.small(np.arange(5, dtype=np.int32))
        inputs = [a, *self.point, weights, *self.point, *self.point, bias]
        self.finish(net, net.node("QLinearConv", inputs, (2, 5, 4, 4)), [6, 5])

    @pytest.mark.parametrize(("last", "shape"), [(0, "6, 4, 4"), (1, "4, 4, 6")])
    def test_global_pools_keep_samples_apart(self, last, shape):
        model = parse_model(f"""
model <ir_version = 9, opset = ["" = 17, "com.microsoft" = 1]>
graph g (%x: uint8[N, {shape}]) -> (%y: uint8[N, ?, ?, ?]) {{
  const %s: float[] = 0.05
  const %z: uint8[] = 100
  %y = "com.microsoft"::QLinearGlobalAveragePool(%x, %s, %z, %s, %z) {{channels_last = {last}}}
}}
""")
        infer_shapes(model)
        assert find_batch(model).is_proven

    @pytest.mark.parametrize("op_type", ["QLinearSigmoid", "QLinearLeakyRelu"])
    def test_unary(self, op_type):
        net = Contrib()
        a = self.quantize(net, net.conv(net.image(), 6))
        y = net.contrib(op_type, [a, *self.point, *self.point], net.shapes[a])
        self.finish(net, y, [6])

    def test_concat(self):
        net = Contrib()
        x = net.image()
        a, b = (self.quantize(net, net.conv(x, n)) for n in (3, 5))
        inputs = [*self.point, a, *self.point, b, *self.point]
        self.finish(net, net.contrib("QLinearConcat", inputs, (2, 8, 4, 4), axis=1), [3, 5])

    def test_average_pools(self):
        net = Contrib()
        a = self.quantize(net, net.conv(net.image(), 6))
        inputs = [a, *self.point, *self.point]
        b = net.contrib(
            "QLinearAveragePool", inputs, (2, 6, 2, 2), kernel_shape=[2, 2], strides=[2, 2]
        )
        inputs[0] = b
        c = net.contrib("QLinearGlobalAveragePool", inputs, (2, 6, 1, 1), channels_last=0)
        self.finish(net, c, [6])

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("rounded", [False, True])
    def test_products_with_and_without_a_bias(self, bias, rounded):
        """Whose results are integers again, or floats."""
        net = Contrib()
        x = net.reduce("ReduceMean", net.linear(net.sequence(), 8), [1], keep=False)
        a = self.quantize(net, x)
        weights = net.small(np.random.default_rng(0).integers(0, 255, (8, 5), np.uint8))
        offsets = net.small(np.arange(5, dtype=np.int32) * 100) if bias else ""
        inputs = [a, *self.point, weights, *self.point, offsets, *(self.point if rounded else [])]
        y = net.contrib("QGemm", inputs, (2, 5))
        if rounded:
            y = net.node("DequantizeLinear", [y, *self.point], (2, 5))
        check(net, net.gemm(y, 3), [8, 5])
