"""What schemes of quantization write, compiled: as ONNX Runtime computes the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.passes.base import Context, Pass
from secateur.passes.quantize import QuantizeDynamic, QuantizeStatic, StoreFloat16
from tests.passes.test_dynamic_scheme import lstm
from tests.passes.test_equalization import node
from tests.passes.test_quantize_accurate import CONSTANTS, IMAGES, NETWORK, network
from tests.passes.test_quantize_integer import build, random

STEP = 2.0**-10
"""Of float16, as a share of the largest number."""


def compiled(model: Model, folder: Path) -> tuple[Runtime, str]:
    plan = folder / "plan.txt"
    compile_model(model, parse_target("native"), folder / "m.so", dump_plan=plan)
    return Runtime(folder / "m.so"), plan.read_text()


def fixed() -> Model:
    """Samples of a run share a scale, so that their number has to be known."""
    return from_proto(build(NETWORK, CONSTANTS, [3, 3, 8, 8]))


def in_half(model: Model, **options: Any) -> Model:
    StoreFloat16(**options).run(model, Context({"x": IMAGES}))
    return model


@pytest.mark.parametrize("keep_io", [True, False])
def test_float16_is_as_near_as_its_step(tmp_path: Path, keep_io: bool) -> None:
    model = in_half(network(), keep_io=keep_io)
    runtime, plan = compiled(model, tmp_path)
    assert "loops" not in "".join(line for line in plan.splitlines() if "(Conv)" in line)
    for count in (0, 1, 3, 17):
        feed = IMAGES[:count].astype(np.float32 if keep_io else np.float16)
        want, have = Session(model).run({"x": feed})["y"], runtime.run({"x": feed})["y"]
        assert have.dtype == want.dtype
        assert have.shape == want.shape
        gap = np.abs(have.astype(np.float64) - want).max(initial=0.0)
        assert gap <= 2 * STEP * np.abs(want).max(initial=0.0)


def test_float16_of_special_numbers(tmp_path: Path) -> None:
    model = in_half(network(), keep_io=True)
    runtime, _ = compiled(model, tmp_path)
    for special in (np.nan, np.inf, -np.inf, 65504.0, 1e-7):
        feed = IMAGES[:1].copy()
        feed[0, 0, 0, 0] = special
        want, have = Session(model).run({"x": feed})["y"], runtime.run({"x": feed})["y"]
        np.testing.assert_array_equal(np.isnan(have), np.isnan(want))
        finite = np.isfinite(want)
        largest = np.abs(want[finite]).max(initial=1.0)
        np.testing.assert_allclose(have[finite], want[finite], atol=2 * STEP * largest)


def test_casts_of_the_models_own_round(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Cast", "h", "f", to=TensorProto.FLOAT),
        node("Cast", "f", "g", to=TensorProto.FLOAT16),
        node("MatMul", "g w", "m"),
        node("Cast", "m", "y", to=TensorProto.FLOAT),
    ]
    proto = build(nodes, {"w": np.eye(8, dtype=np.float16)}, ["N", 8])
    model = from_proto(proto)
    runtime, _ = compiled(model, tmp_path)
    x = random(0, 5, 8)
    expected = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(runtime.run({"x": x})["y"], expected)


def test_elementwise_float16_rounds_everywhere(tmp_path: Path) -> None:
    """Where nothing heavy is in float16, each operator rounds as it is defined to."""
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Mul", "h w", "a"),
        node("Sub", "a w", "b"),
        node("Cast", "b", "y", to=TensorProto.FLOAT),
    ]
    w = random(1, 8).astype(np.float16)
    runtime, _ = compiled(from_proto(build(nodes, {"w": w}, ["N", 8])), tmp_path)
    x = random(0, 5, 8)
    expected = (x.astype(np.float16) * w - w).astype(np.float32)
    np.testing.assert_array_equal(runtime.run({"x": x})["y"], expected)


def test_float16_beside_a_body(tmp_path: Path) -> None:
    """An If that isn't known before a run is left to ONNX Runtime; the rest is compiled."""
    body = [
        helper.make_graph(
            [helper.make_node(kind, ["f"], [f"o{kind}"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"o{kind}", TensorProto.FLOAT, None)],
        )
        for kind in ("Relu", "Neg")
    ]
    proto = build([node("Conv", "x a", "y")], {"a": random(1, 4, 3, 1, 1)}, [1, 3, 8, 8])
    del proto.graph.node[:]
    del proto.graph.value_info[:]
    proto.graph.node.extend(
        [
            helper.make_node("Conv", ["x", "a"], ["f"]),
            helper.make_node("ReduceSum", ["f"], ["s"], keepdims=0),
            helper.make_node("Cast", ["s"], ["t"], to=TensorProto.BOOL),
            helper.make_node("If", ["t"], ["u"], then_branch=body[0], else_branch=body[1]),
            helper.make_node("Sigmoid", ["u"], ["y"]),
        ]
    )
    model = in_half(from_proto(proto))
    compile_model(model, parse_target("native"), tmp_path / "m.so", fallback=True)
    want = Session(model).run({"x": IMAGES[:1]})["y"]
    have = Runtime(tmp_path / "m.so").run({"x": IMAGES[:1]})["y"]
    np.testing.assert_allclose(have, want, atol=4 * STEP)


@pytest.mark.parametrize("activation", ["uint16", "int16"])
def test_activations_of_16_bits_are_as_near_as_their_step(tmp_path: Path, activation: str) -> None:
    model = network()
    QuantizeStatic(activation=activation).run(model, Context({"x": IMAGES}))
    assert model.opset >= 21
    runtime, _ = compiled(model, tmp_path)
    session = Session(model, optimize=False)
    for feed in (IMAGES[:1], 1e3 * IMAGES[:5]):
        want, have = session.run({"x": feed})["y"], runtime.run({"x": feed})["y"]
        np.testing.assert_allclose(have, want, atol=2.0**-12 * np.abs(want).max())


@pytest.mark.parametrize(
    ("pass_", "make"),
    [
        (QuantizeDynamic(), fixed),
        (QuantizeDynamic(per_channel=False, reduce_range=True), fixed),
        # of 7 bits: ONNX Runtime saturates products of 8 on a CPU without VNNI
        (
            QuantizeDynamic(reduce_range=True),
            lambda: from_proto(lstm(5, direction="bidirectional")),
        ),
    ],
    ids=["network", "per tensor", "lstm"],
)
def test_dynamic_integers_are_those_of_onnx_runtime(tmp_path: Path, pass_: Pass, make: Any) -> None:
    model = make()
    pass_.run(model)
    runtime, _ = compiled(model, tmp_path)
    feed = {"x": random(7, *model.graph.inputs[0].shape)}
    session = Session(model, optimize=False)
    want, have = session.run(feed), runtime.run(feed)
    for name, array in want.items():
        np.testing.assert_allclose(have[name], array, rtol=1e-5, atol=1e-6)
