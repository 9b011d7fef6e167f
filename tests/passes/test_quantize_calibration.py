"""Calibration: which samples are taken, what they give, how much memory they need."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from secateur.ir.errors import SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.quantize.calibrate import calibrate
from secateur.passes.samples import Samples
from tests.passes.quantization_error import check
from tests.passes.test_quantize import IMAGES, W, conv, reasons, run
from tests.passes.test_quantize_integer import build, quantize, random

PLAIN = build([conv("x", "w")], {"w": W}, ["N", 3, 6, 6])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no array for input 'x'"),
        ({"z": IMAGES}, "no array for input 'x'"),
        ({"x": IMAGES, "z": IMAGES}, "'z' matches no input"),
        ({"x": IMAGES[:0]}, "holds no samples"),
        ({"x": IMAGES.astype(np.float64)}, "is float64, the input takes float32"),
        ({"x": IMAGES.astype(np.uint8)}, "is uint8, the input takes float32"),
        ({"x": IMAGES[0]}, r"has shape \[3, 6, 6\], the input takes \[samples, 3, 6, 6\]"),
        ({"x": IMAGES.transpose(0, 2, 3, 1)}, "has shape"),
        ({"x": np.float32(1)}, "no axis that counts samples"),
        ({"x": np.where(IMAGES > 2, np.nan, IMAGES)}, "input 'x' becomes NaN"),
        ({"x": np.where(IMAGES > 2, np.inf, IMAGES)}, "input 'x' becomes infinite"),
    ],
)
def test_bad_samples(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message) as info:
        QuantizeStatic().run(from_proto(PLAIN), Context(arrays))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("context", [None, Context()])
def test_missing_samples(context: Context | None) -> None:
    with pytest.raises(SecateurError, match="needs calibration samples"):
        QuantizeStatic().run(from_proto(PLAIN), context)


def test_an_unknown_activation_type() -> None:
    with pytest.raises(SecateurError, match="choose one of uint8, int8, uint16, int16"):
        run(PLAIN, activation="int4")


def test_a_value_that_becomes_nan_is_named() -> None:
    nodes = [helper.make_node("Log", ["x"], ["l"], name="log"), conv("l", "w")]
    with pytest.raises(SecateurError, match=r"value 'l' of node 'log' \(Log\) becomes NaN"):
        run(build(nodes, {"w": W}, ["N", 3, 6, 6]))


def test_infinite_masks_stay_float() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["m"], name="mask"),
        helper.make_node("Sigmoid", ["m"], ["p"]),
        helper.make_node("MatMul", ["p", "w"], ["y"]),
    ]
    mask = np.where(np.eye(4, dtype=bool), 0, -np.inf).astype(np.float32)
    proto = build(nodes, {"w": random(1, 4, 4), "mask": mask}, ["N", 4, 4])
    model, result = run(proto, {"x": random(0, 5, 4, 4)})
    assert result.statistics["quantized"] == {"MatMul": 2}
    assert "infinite" in reasons(result)["Add"]
    check(from_proto(proto), model, {"x": random(0, 5, 4, 4)})


@pytest.mark.parametrize("batch", [1, 4, "N"])
def test_ranges_are_those_of_all_samples(batch: Any) -> None:
    nodes = [conv("x", "w", output="a"), helper.make_node("Relu", ["a"], ["r"]), conv("r", "v")]
    constants = {"w": W, "v": random(4, 2, 4, 1, 1)}
    proto = build(nodes, constants, [batch, 3, 6, 6])
    samples = random(5, 10, 3, 6, 6) * np.arange(1, 11, dtype=np.float32)[:, None, None, None]
    expected = build(nodes, constants, ["N", 3, 6, 6])
    expected.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    exact = Session(from_proto(expected)).run({"x": samples})
    for budget in (1, 2**30):
        model = from_proto(proto)
        infer_shapes(model)
        values = {v.name: v for v in model.graph.values()}
        ranges = calibrate(
            model, [values[n] for n in "xry"], Samples(model, {"x": samples}), budget=budget
        )
        for name in "xry":
            array = {"x": samples, **exact}[name]
            found = ranges[values[name]]
            assert (found.low, found.high) == pytest.approx((array.min(), array.max()), rel=1e-5)


def test_runs_hand_out_no_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[int] = []
    original = Session.run

    def counting(self: Session, *arguments: Any) -> Any:
        result = original(self, *arguments)
        handed.append(sum(a.nbytes for a in result.values()))
        return result

    monkeypatch.setattr(Session, "run", counting)
    nodes, names = [], ["x", *(f"v{i}" for i in range(20))]
    for a, b in itertools.pairwise(names):
        nodes.append(helper.make_node("Neg", [a], [b]))
    nodes[-1].output[0] = "y"
    model = from_proto(build(nodes, {}, ["N", "any"]))
    infer_shapes(model)
    values = [v for n in model.graph.nodes for v in n.outputs if v is not None]
    samples = Samples(model, {"x": random(0, 3, 1000)})
    calibrate(model, values, samples, budget=9000)
    assert 8000 <= max(handed[1:]) <= 9000
    assert len(handed) - 1 == 3 * 10


def test_the_same_bytes_again() -> None:
    files = {to_proto(run(PLAIN)[0]).SerializeToString(deterministic=True) for _ in range(3)}
    assert len(files) == 1


def test_quantize_helper_is_not_lenient() -> None:
    """The oracle used here notices a scale that is off by half."""
    model = quantize(PLAIN, {"x": IMAGES})
    scale = model.graph.initializers["w1.s"]
    scale.const = type(scale.const).from_array(scale.const.numpy() * 1.5)
    with pytest.raises(AssertionError):
        check(from_proto(PLAIN), model, {"x": IMAGES})


def test_a_model_without_inputs_has_one_sample() -> None:
    nodes = [helper.make_node("RandomNormal", [], ["r"], shape=[1, 3, 6, 6]), conv("r", "w")]
    proto = build(nodes, {"w": W}, ["N", 3, 6, 6])
    del proto.graph.input[:]
    _, result = run(proto, {})
    assert result.statistics["quantized"] == {"Conv": 1}
    assert result.statistics["samples"] == 1


def test_samples_for_what_is_no_tensor() -> None:
    proto = build([conv("x", "w")], {"w": W}, ["N", 3, 6, 6])
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    proto.graph.input.append(helper.make_value_info("s", helper.make_sequence_type_proto(element)))
    with pytest.raises(SecateurError, match="input 's' is not a tensor"):
        QuantizeStatic().run(from_proto(proto), Context({"x": IMAGES, "s": IMAGES}))
