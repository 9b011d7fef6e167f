"""Integer operators whose quantization parameters a run computes: to the bit as ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

pytest.importorskip("tvm")


from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.lowering.lower import RULES
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.passes.quantize import QuantizeDynamic

from ...onnx_runtime import session_of

Array = Any
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, 1e-42]


class Parts:
    """A model of independent nodes, each with inputs and constants of its own."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.feeds: dict[str, Array] = {}
        self.constants: dict[str, Array] = {}
        self.outputs: list[tuple[str, int]] = []

    def bytes(self, dtype: str, shape: tuple[int, ...]) -> Array:
        info = np.iinfo(dtype)
        return self.random.integers(info.min, info.max, shape, dtype, endpoint=True)

    def feed(self, array: Array) -> str:
        self.feeds[f"x{len(self.feeds)}"] = array
        return f"x{len(self.feeds) - 1}"

    def constant(self, array: Array) -> str:
        self.constants[f"c{len(self.constants)}"] = np.asarray(array)
        return f"c{len(self.constants) - 1}"

    def node(self, op_type: str, inputs: list[str], count: int = 1, **attributes: Any) -> list[str]:
        number = len(self.nodes)
        names = [f"{op_type}_{number}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op_type, inputs, names, names[0], **attributes))
        return names

    def output(self, *names: str, dtype: int = TensorProto.INT32) -> None:
        self.outputs += [(name, dtype) for name in names]

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "parts",
            [
                helper.make_tensor_value_info(
                    n, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.shape(x)
                )
                for n, x in self.feeds.items()
            ],
            [helper.make_tensor_value_info(n, t, None) for n, t in self.outputs],
            [numpy_helper.from_array(x, n) for n, x in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def compiled(proto: onnx.ModelProto, folder: Path, target: str = "native") -> tuple[Runtime, str]:
    plan = folder / "plan.txt"
    compile_model(from_proto(proto), parse_target(target), folder / "m.so", dump_plan=plan)
    return Runtime(folder / "m.so"), plan.read_text()


def expected(proto: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    session = session_of(proto, optimize=False)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def defined(proto: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """By the operators' definitions; without VNNI ONNX Runtime's products of bytes saturate."""
    names = [o.name for o in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(names, feeds), strict=True))


def assert_equal(
    parts: Parts,
    folder: Path,
    target: str = "native",
    right: Callable[[onnx.ModelProto, dict[str, Array]], dict[str, Array]] = expected,
) -> str:
    proto = parts.model()
    runtime, plan = compiled(proto, folder, target)
    found = runtime.run(parts.feeds)
    for name, value in right(proto, parts.feeds).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    return plan


TARGETS = ["native", "x86-64-v3", "x86-64-v2"]


def test_integers_without_a_zero_point(tmp_path: Path) -> None:
    parts = Parts(2)
    for dtype in ("uint8", "int8"):
        scale = parts.constant(np.float32(0.25))
        (value,) = parts.node("DequantizeLinear", [parts.feed(parts.bytes(dtype, (67,))), scale])
        (value,) = parts.node("Neg", [value])
        parts.output(value, dtype=TensorProto.FLOAT)
    assert "= loops" not in assert_equal(parts, tmp_path)


def test_zero_points_of_weights_that_signed_bytes_do_not_hold(tmp_path: Path) -> None:
    """Rows of several vectors, whose sums each column's zero point multiplies."""
    parts = Parts(1)
    for dtype, depth in (("uint8", 64), ("uint8", 130), ("int8", 199)):
        inputs = [parts.feed(parts.bytes(dtype, (5, depth))), parts.feed(parts.bytes(dtype, ()))]
        inputs.insert(1, parts.constant(parts.bytes(dtype, (depth, 19))))
        inputs.append(parts.constant(parts.bytes(dtype, (19,))))
        parts.output(*parts.node("MatMulInteger", inputs))
    assert "= matmul" in assert_equal(parts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_products_of_every_kind_of_zero_point(tmp_path: Path, target: str) -> None:
    parts = Parts()
    for left, right in (("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")):
        for rows, depth, columns in ((1, 4, 16), (5, 67, 19), (17, 130, 33)):
            x = parts.feed(parts.bytes(left, (rows, depth)))
            zero = parts.feed(parts.bytes(left, ()))
            weights = parts.bytes(right, (depth, columns))
            w = parts.constant(weights)
            for point in (None, parts.bytes(right, ()), parts.bytes(right, (columns,))):
                inputs = [x, w, zero] + ([parts.constant(point)] if point is not None else [])
                parts.output(*parts.node("MatMulInteger", inputs))
            parts.output(
                *parts.node("MatMulInteger", [x, w, parts.constant(parts.bytes(left, ()))])
            )
            y = parts.feed(parts.bytes(right, (depth, columns)))
            parts.output(
                *parts.node("MatMulInteger", [x, y, zero, parts.feed(parts.bytes(right, ()))])
            )
    batch = parts.feed(parts.bytes("uint8", (2, 3, 5, 20)))
    fixed = parts.constant(parts.bytes("int8", (3, 20, 7)))
    parts.output(*parts.node("MatMulInteger", [batch, fixed, parts.feed(parts.bytes("uint8", ()))]))
    plan = assert_equal(parts, tmp_path, target, defined)
    assert "= loops" not in plan


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_convolutions_pad_with_a_zero_point_that_a_run_computes(
    tmp_path: Path, target: str
) -> None:
    parts = Parts()
    for channels, weights, attributes in (
        (3, (16, 3, 3, 3), {"pads": [1] * 4}),
        (16, (24, 16, 3, 3), {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
        (20, (20, 1, 3, 3), {"group": 20, "pads": [1] * 4}),
        (16, (8, 4, 5, 5), {"group": 4, "auto_pad": "SAME_UPPER"}),
        (16, (32, 16, 1, 1), {}),
        (6, (5, 6, 3), {"pads": [2, 1], "dilations": [2]}),
    ):
        size = (9, 11)[: len(weights) - 2]
        values = parts.random.standard_normal((2, channels, *size)).astype(np.float32)
        x, _, zero = parts.node("DynamicQuantizeLinear", [parts.feed(values + 1)], 3)
        w = parts.constant(parts.bytes("int8", weights))
        parts.output(*parts.node("ConvInteger", [x, w, zero], **attributes))
        point = parts.constant(parts.bytes("int8", ()))
        parts.output(*parts.node("ConvInteger", [x, w, zero, point], **attributes))
        own = parts.feed(parts.bytes("uint8", ()))  # of bytes that nothing here has quantized
        raw = parts.feed(parts.bytes("uint8", (1, channels, *size)))
        parts.output(*parts.node("ConvInteger", [raw, w, own], **attributes))
    plan = assert_equal(parts, tmp_path, target)
    assert "= loops" not in plan


def test_ranges_of_every_kind(tmp_path: Path) -> None:
    parts = Parts()
    normal = parts.random.standard_normal(1000).astype(np.float32)
    for values in (
        normal,
        normal[:1],
        np.abs(normal[:17]),
        -np.abs(normal[:129]).reshape(3, 43),
        np.zeros(5, np.float32),
        normal.reshape(1, 10, 10, 10),
    ):
        y, scale, zero = parts.node("DynamicQuantizeLinear", [parts.feed(values)], 3)
        parts.output(y, zero, dtype=TensorProto.UINT8)
        parts.output(scale, dtype=TensorProto.FLOAT)
    plan = assert_equal(parts, tmp_path)
    assert "= loops" not in plan


def test_extremes_are_quantized_as_by_plain_loops(tmp_path: Path) -> None:
    parts = Parts()
    for value in SPECIAL:
        values = np.float32([1.5, -2.25, value] * 9)
        y, scale, zero = parts.node("DynamicQuantizeLinear", [parts.feed(values)], 3)
        parts.output(y, zero, dtype=TensorProto.UINT8)
        parts.output(scale, dtype=TensorProto.FLOAT)
    proto = parts.model()
    runtime, _ = compiled(proto, tmp_path)
    found, reference = runtime.run(parts.feeds), expected(proto, parts.feeds)
    for index, value in enumerate(SPECIAL):
        names = [f"DynamicQuantizeLinear_{index}_{i}" for i in range(3)]
        for name in names[1:] if np.isinf(value) else names:
            if not np.isnan(value):  # ONNX Runtime's range then depends on where NaN stands
                np.testing.assert_array_equal(found[name], reference[name], err_msg=f"{value}")


@pytest.mark.parametrize("plain", [False, True])
def test_any_nan_shows_in_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """What ONNX Runtime gives where it sees NaN, wherever one stands: else the result hides it."""
    if plain:
        monkeypatch.delitem(RULES, "DynamicQuantizeLinear")
    parts = Parts()
    for count in (1, 5, 16, 100, 259):
        y, scale, zero = parts.node("DynamicQuantizeLinear", [parts.feed(np.zeros(count, "f"))], 3)
        parts.output(y, zero, dtype=TensorProto.UINT8)
        parts.output(scale, dtype=TensorProto.FLOAT)
    proto = parts.model()
    everywhere = expected(proto, {n: np.full_like(x, np.nan) for n, x in parts.feeds.items()})
    runtime, plan = compiled(proto, tmp_path)
    assert ("= loops" in plan) == plain
    for place in range(20):
        feeds = {}
        for name, x in parts.feeds.items():
            feeds[name] = parts.random.standard_normal(x.size).astype(np.float32)
            feeds[name][place * x.size // 20] = np.nan
        for name, found in runtime.run(feeds).items():
            wanted = everywhere[f"DynamicQuantizeLinear_4_{name[-1]}"].reshape(-1)[0]
            np.testing.assert_array_equal(found, wanted, err_msg=f"{name} {place}")


def test_one_quantization_serves_readers_with_other_padding(tmp_path: Path) -> None:
    parts = Parts()
    values = parts.random.standard_normal((1, 8, 7, 7)).astype(np.float32) + 0.5
    x, scale, zero = parts.node("DynamicQuantizeLinear", [parts.feed(values)], 3)
    for kernel, pad in ((3, 1), (5, 2), (1, 0)):
        w = parts.constant(parts.bytes("int8", (16, 8, kernel, kernel)))
        sums = parts.node("ConvInteger", [x, w, zero], pads=[pad] * 4)
        parts.output(*sums)
        (floats,) = parts.node("Cast", sums, to=TensorProto.FLOAT)
        (scaled,) = parts.node("Mul", [floats, scale])
        bias = parts.constant(parts.random.standard_normal((1, 16, 1, 1)).astype(np.float32))
        parts.output(*parts.node("Add", [scaled, bias]), dtype=TensorProto.FLOAT)
    parts.output(x, dtype=TensorProto.UINT8)
    assert_equal(parts, tmp_path)


def test_scaled_sums_round_before_the_bias(tmp_path: Path) -> None:
    """As quantize_dynamic writes a product: no fused multiply-add, which would round once."""
    parts = Parts(3)
    values = parts.random.standard_normal((40, 96)).astype(np.float32)
    x, scale, zero = parts.node("DynamicQuantizeLinear", [parts.feed(values)], 3)
    # of 7 bits: ONNX Runtime saturates products of 8 on a CPU without VNNI
    w = parts.constant(parts.bytes("int8", (96, 70)) // 2)
    (scales,) = parts.node("Mul", [scale, parts.constant(np.linspace(1e-3, 0.1, 70, dtype="f"))])
    (sums,) = parts.node("MatMulInteger", [x, w, zero])
    (floats,) = parts.node("Cast", [sums], to=TensorProto.FLOAT)
    (scaled,) = parts.node("Mul", [floats, scales])
    bias = parts.constant(parts.random.standard_normal(70).astype(np.float32))
    parts.output(*parts.node("Add", [scaled, bias]), dtype=TensorProto.FLOAT)
    plan = assert_equal(parts, tmp_path)
    assert "scale_integer" in plan


def test_the_largest_element_counts_wherever_it_is(tmp_path: Path) -> None:
    """In numbers of vectors that chains divide and don't divide, with and without a rest."""
    parts = Parts()
    counts = [16 * vectors + rest for vectors in (1, 7, 8, 9, 11, 14) for rest in (0, 5)]
    for count in counts:
        _, scale, _ = parts.node("DynamicQuantizeLinear", [parts.feed(np.zeros(count, "f"))], 3)
        parts.output(scale, dtype=TensorProto.FLOAT)
    proto = parts.model()
    runtime, plan = compiled(proto, tmp_path)
    assert "= loops" not in plan
    for vector in range(15):
        feeds = {}
        for name, zeros in parts.feeds.items():
            feeds[name] = zeros.copy()
            feeds[name][min(16 * vector + 3, zeros.size - 1)] = vector + 1
        found = list(runtime.run(feeds).values())
        np.testing.assert_allclose(np.ravel(found), (vector + 1) / 255, rtol=1e-6)


def test_ranges_of_blocks_are_those_of_elements(tmp_path: Path) -> None:
    """Not of the lanes behind the last channel, where exp makes ones of zeros, nor of a pooling's
    padding, which is less than any element."""
    parts = Parts()
    image = parts.feed(parts.random.standard_normal((1, 3, 6, 6)).astype(np.float32))
    for channels, pooled in ((5, False), (16, True)):
        weights = 0.1 * parts.random.standard_normal((channels, 3, 3, 3)).astype(np.float32)
        biases = [parts.constant(array) for array in (weights, np.full(channels, -5, np.float32))]
        (value,) = parts.node("Exp", parts.node("Conv", [image, *biases], pads=[1] * 4))
        if pooled:
            window = {"kernel_shape": [3, 3], "pads": [1] * 4}
            parts.output(*parts.node("MaxPool", [value], **window), dtype=TensorProto.FLOAT)
        _, scale, _ = parts.node("DynamicQuantizeLinear", [value], 3)
        parts.output(scale, dtype=TensorProto.FLOAT)
    proto = parts.model()
    runtime, plan = compiled(proto, tmp_path)
    assert "= loops" not in plan
    found = runtime.run(parts.feeds)
    for name, right in expected(proto, parts.feeds).items():
        np.testing.assert_allclose(found[name], right, rtol=1e-4, err_msg=name)


TOKENS = ([5, 24], [2, 7, 24], [1, 24], [3, 1, 24], [4, 24, 24])


@pytest.mark.parametrize("target", TARGETS)
def test_rows_with_scales_of_their_own(target: str, tmp_path: Path) -> None:
    """As the scheme writes them: what multiplies bytes also scales rows and columns back."""
    parts = Parts(3)
    weights = parts.random.standard_normal((24, 37)).astype(np.float32)
    bias = parts.random.standard_normal(37).astype(np.float32)
    for shape in TOKENS:
        x = parts.random.standard_normal(shape) * 10 ** parts.random.normal(0, 2, [*shape[:-1], 1])
        if len(shape) > 1:
            x[-1] = 0
        inputs = [parts.feed(x.astype(np.float32)), parts.constant(weights)]
        (product,) = parts.node("MatMul", inputs)
        parts.output(*parts.node("Add", [product, parts.constant(bias)]), dtype=TensorProto.FLOAT)
    model = from_proto(parts.model())
    QuantizeDynamic(per_token=True).run(model)
    runtime, plan = compiled(to_proto(model), tmp_path, target)
    assert "= loops" not in plan
    products = [line.split("=")[0] for line in plan.splitlines() if "= matmul" in line]
    assert len(products) == len(TOKENS)
    assert all("Add_" in result and "float32" in result for result in products)
    found = runtime.run(parts.feeds)
    right = expected if "vnni" in parse_target(target).features else defined
    for name, value in right(to_proto(model), parts.feeds).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
