"""Quantized random graphs stay within what rounding to 8 bits can do, and are valid."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from secateur.ir.declarations import check_declarations
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.verify import verify
from secateur.passes.base import Context, Pass
from secateur.passes.quantize import QuantizeDynamic, QuantizeStatic, StoreFloat16
from tests.passes.quantization_error import check
from tests.strategies import Builder, Draw, models

RELAXED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

options = st.builds(
    QuantizeStatic,
    per_channel=st.booleans(),
    activation=st.sampled_from(["uint8", "uint8", "int8", "uint16"]),
    symmetric=st.booleans(),
    reduce_range=st.booleans(),
)


class ConvolutionalBuilder(Builder):
    """Mostly operators that become integer, in the ways in which they meet in networks."""

    dynamic = False

    def clip(self, x: str) -> str:
        shape = self.shapes[x]
        low, high = self.draw(st.sampled_from([(0.0, 6.0), (-1.0, 1.0), (-0.5, 0.25), (0.5, 1.0)]))
        if self.opset < 11:
            return self.node("Clip", [x], shape, min=low, max=high)
        limits = [self.constant(np.float32(low)), self.constant(np.float32(high))]
        return self.node("Clip", [x, *limits], shape)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x], self.shapes[x])

    def activation(self, x: str) -> str:
        kind = self.draw(st.sampled_from(["LeakyRelu", "Sigmoid", "Softmax"]))
        attributes = {"Softmax": {"axis": 1}, "LeakyRelu": {"alpha": 0.1}}.get(kind, {})
        return self.node(kind, [x], self.shapes[x], **attributes)

    def split(self, x: str) -> str:
        shape = self.shapes[x]
        if shape[1] < 2 or not 13 <= self.opset < 18:
            return self.relu(x)
        sizes = (1, shape[1] - 1)
        names = [self.name(), self.name()]
        inputs = [x, self.ints(*sizes)]
        self.nodes.append(helper.make_node("Split", inputs, names, axis=1, name=f"n{self.count}"))
        self.read.update(inputs)
        for name, size in zip(names, sizes, strict=True):
            self.shapes[name] = (shape[0], size, *shape[2:])
        return names[1]

    def gemm(self, x: str) -> str:
        shape = self.shapes[x]
        if len(shape) != 2:
            x = self.node("Flatten", [x], (shape[0], int(np.prod(shape[1:]))))
            shape = self.shapes[x]
        out = self.draw(st.integers(1, 5))
        transposed = self.draw(st.booleans())
        attributes: dict[str, Any] = {"transB": int(transposed)}
        attributes |= self.draw(st.sampled_from([{}, {"alpha": 0.5}, {"alpha": 2.0, "beta": 0.25}]))
        weight = self.weights(out, shape[1]) if transposed else self.weights(shape[1], out)
        forms = [[1], [out], [1, out], *([] if self.dynamic else [[shape[0], out], [shape[0], 1]])]
        bias = [self.weights(*self.draw(st.sampled_from(forms)))]
        if self.opset >= 11 and self.draw(st.booleans()):
            bias = []
        return self.node("Gemm", [x, weight, *bias], (shape[0], out), **attributes)

    def step(self) -> None:
        x = self.pick()
        anywhere = [self.relu, self.clip, self.activation, self.join, self.gemm, self.product]
        spatial = [self.convolution] * 6 + [self.pooling, self.normalization, self.split]
        spatial += [self.relu, self.clip, self.join, self.nothing]
        choices = [*anywhere, *spatial] if len(self.shapes[x]) == 4 else anywhere
        self.draw(st.sampled_from(choices))(x)


@st.composite
def networks(draw: Draw) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    opset = draw(st.sampled_from([7, 9, 11, 13, 15, 17, 19, 21]))
    builder = ConvolutionalBuilder(draw, opset, ir_version=draw(st.sampled_from([4, 8])))
    batch, dynamic = draw(st.integers(1, 3)), draw(st.booleans())
    builder.dynamic = dynamic
    size = draw(st.integers(2, 6))
    shape = (batch, draw(st.integers(1, 5)), size, size)
    builder.shapes["x"] = shape
    for _ in range(draw(st.integers(2, 9))):
        builder.step()
    made = [n for n in builder.shapes if n != "x"]
    ends = [n for n in made if n not in builder.read]
    outputs = list(dict.fromkeys([*ends, *draw(st.lists(st.sampled_from(made), max_size=1))]))
    declared = ["N" if dynamic else batch, *shape[1:]]
    graph = helper.make_graph(
        builder.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, declared)],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(builder.shapes[n]))
            for n in outputs
        ],
        builder.initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=builder.ir_version
    )
    return model, {"x": builder.random.standard_normal(shape).astype(np.float32)}


def changed(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], options: Pass) -> Model:
    """The model behind a pass: valid, and the same whenever it is made."""
    try:
        Session(from_proto(proto), optimize=False).run(feeds)
    except SecateurError:
        reject()  # not one that ONNX Runtime takes to begin with
    files = []
    for _ in range(2):
        model = from_proto(proto)
        options.run(model, Context(feeds))
        files.append(to_proto(model).SerializeToString(deterministic=True))
    assert files[0] == files[1]
    verify(model)
    check_declarations(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    return model


def quantize_and_check(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray], options: QuantizeStatic
) -> None:
    check(from_proto(proto), changed(proto, feeds, options), feeds)


def assert_near(
    proto: onnx.ModelProto, model: Model, feeds: dict[str, np.ndarray], share: float
) -> None:
    """Outputs are no further apart than a share of their largest magnitude."""
    wanted = Session(from_proto(proto), optimize=False).run(feeds)
    for name, found in Session(model, optimize=False).run(feeds).items():
        want = wanted[name]
        assert (found.dtype, found.shape) == (want.dtype, want.shape)
        if want.size and np.isfinite(want).all():
            assert np.abs(found - want).max() <= share * max(np.abs(want).max(), 1.0)


@settings(max_examples=50, deadline=None, suppress_health_check=RELAXED)
@given(networks(), options)
def test_networks(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]], options: QuantizeStatic
) -> None:
    quantize_and_check(*case, options)


@settings(max_examples=35, deadline=None, suppress_health_check=RELAXED)
@given(models(), options)
def test_any_graph(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]], options: QuantizeStatic
) -> None:
    quantize_and_check(*case, options)


others = st.one_of(
    st.builds(
        QuantizeDynamic,
        per_channel=st.booleans(),
        per_token=st.booleans(),
        reduce_range=st.booleans(),
    ),
    st.builds(StoreFloat16),
)


@settings(max_examples=25, deadline=None, suppress_health_check=RELAXED)
@given(networks(), others)
def test_other_schemes_on_networks(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]], options: Pass
) -> None:
    model = changed(*case, options)
    assert_near(case[0], model, case[1], 0.03 if isinstance(options, StoreFloat16) else 0.6)


@settings(max_examples=25, deadline=None, suppress_health_check=RELAXED)
@given(models(), others)
def test_other_schemes_on_any_graph(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]], options: Pass
) -> None:
    model = changed(*case, options)
    wanted = Session(from_proto(case[0]), optimize=False).run(case[1])
    found = Session(model, optimize=False).run(case[1])
    assert {n: a.dtype for n, a in wanted.items()} == {n: a.dtype for n, a in found.items()}
