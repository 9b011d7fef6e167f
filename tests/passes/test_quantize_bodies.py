"""Integers in bodies of If, Loop and Scan: measured from outside, and computed as outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.tensor import Tensor
from secateur.ir.verify import verify
from secateur.passes.base import Context
from secateur.passes.quantize import Quantize, QuantizeStatic, StoreFloat16
from secateur.passes.quantize.calibrate import exposing
from tests.passes.test_equalization import sqnr
from tests.passes.test_quantize_integer import random

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
FLOAT16 = TensorProto.FLOAT16
OPSET = [helper.make_opsetid("", 17)]
Info = onnx.ValueInfoProto


def info(name: str, shape: Any, dtype: int = FLOAT) -> Info:
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(
    nodes: list[Any], inputs: list[Info], outputs: list[Info], constants: dict[str, Any]
) -> Model:
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return from_proto(helper.make_model(graph, opset_imports=OPSET, ir_version=8))


def two_layers(prefix: str, result: str, source: str = "h") -> list[Any]:
    """Inner names are the same in every body, as exporters write them."""
    return [
        helper.make_node("MatMul", [source, f"{prefix}1"], ["p"], f"{prefix}_first"),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("MatMul", ["r", f"{prefix}2"], [result], f"{prefix}_second"),
    ]


def branches() -> Model:
    """A product, and two more in each branch of an If that reads its result."""
    bodies = [helper.make_graph(two_layers(k, f"o{k}"), k, [], [info(f"o{k}", None)]) for k in "ab"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h0"], "outside"),
        helper.make_node("Relu", ["h0"], ["h"]),
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["up"]),
        helper.make_node("If", ["up"], ["i"], "if", then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("MatMul", ["i", "v"], ["y"], "last"),
    ]
    constants: dict[str, Any] = {
        name: random(k, 16, 16) / 4 for k, name in enumerate(("w", "v", "a1", "a2", "b1", "b2"))
    }
    constants["zero"] = np.float32(0)
    return model_of(nodes, [info("x", ["N", 16])], [info("y", ["N", 16])], constants)


def loop(size: Any = 16) -> Model:
    """A state through a layer in each of five steps, in every other one through another branch; the
    state's rows are stacked, too."""
    bodies = [
        helper.make_graph(two_layers(k, f"o{k}", "s"), k, [], [info(f"o{k}", None)]) for k in "ab"
    ]
    inner = [
        helper.make_node("Mod", ["i", "two"], ["odd"]),
        helper.make_node("Cast", ["odd"], ["is_odd"], to=BOOL),
        helper.make_node("MatMul", ["s", "w"], ["t"], "in_loop"),
        helper.make_node(
            "If", ["is_odd"], ["f"], "if", then_branch=bodies[0], else_branch=bodies[1]
        ),
        helper.make_node("Add", ["t", "f"], ["u"]),
        helper.make_node("Tanh", ["u"], ["s_out"]),
        helper.make_node("Identity", ["c"], ["c_out"]),
        helper.make_node("Identity", ["t"], ["row"]),
    ]
    body = helper.make_graph(
        inner,
        "body",
        [info("i", [], INT64), info("c", [], BOOL), info("s", [1, size])],
        [info("c_out", [], BOOL), info("s_out", [1, size]), info("row", [1, 16])],
    )
    nodes = [helper.make_node("Loop", ["five", "", "x"], ["y", "rows"], "loop", body=body)]
    constants: dict[str, Any] = {
        name: random(k, 16, 16) / 4 for k, name in enumerate(("w", "a1", "a2", "b1", "b2"))
    }
    constants |= {"two": np.int64(2), "five": np.int64(5)}
    outputs = [info("y", [1, 16]), info("rows", [None, 1, 16])]
    return model_of(nodes, [info("x", [1, 16])], outputs, constants)


def scan() -> Model:
    """A simple recurrence by Scan, its rows given in the other order."""
    inner = [
        helper.make_node("MatMul", ["e", "w"], ["a"], "input"),
        helper.make_node("MatMul", ["s", "a1"], ["b"], "state"),
        helper.make_node("Add", ["a", "b"], ["u"]),
        helper.make_node("Tanh", ["u"], ["s_out"]),
        helper.make_node("MatMul", ["s_out", "a2"], ["row"], "result"),
    ]
    body = helper.make_graph(
        inner,
        "body",
        [info("s", [1, 16]), info("e", [1, 16])],
        [info("s_out", [1, 16]), info("row", [1, 16])],
    )
    nodes = [
        helper.make_node(
            "Scan",
            ["start", "x"],
            ["end", "y"],
            "scan",
            body=body,
            num_scan_inputs=1,
            scan_output_directions=[1],
            scan_output_axes=[1],
        )
    ]
    constants: dict[str, Any] = {
        name: random(k, 16, 16) / 4 for k, name in enumerate(("w", "a1", "a2"))
    }
    constants["start"] = np.zeros((1, 16), np.float32)
    outputs = [info("end", [1, 16]), info("y", [1, None, 16])]
    return model_of(nodes, [info("x", [7, 1, 16])], outputs, constants)


SAMPLES = {
    "branches": random(8, 64, 16),
    "loop": random(8, 64, 16),
    "scan": random(8, 24, 7, 1, 16),
}
MAKERS = {"branches": branches, "loop": loop, "scan": scan}


def feed(name: str, index: int) -> dict[str, Any]:
    sample = SAMPLES[name][index]
    return {"x": sample if name == "scan" else sample[None]}


def in_integers(model: Model) -> set[str]:
    """Products of which both operands are restored from integers right in front of them."""
    found = set()
    for node in model.graph.all_nodes():
        if node.op_type == "MatMul" and all(
            v is not None
            and v.producer is not None
            and v.producer.op_type == "DequantizeLinear"
            and v.producer.graph is node.graph
            for v in node.inputs
        ):
            found.add(node.label)
    return found


PRODUCTS = {
    "branches": {"outside", "last", "a_first", "a_second", "b_first", "b_second"},
    "loop": {"in_loop", "a_first", "a_second", "b_first", "b_second"},
    "scan": {"input", "state", "result"},
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("accuracy", ["fast", "good"])
def test_products_in_bodies_become_integer(name: str, accuracy: str) -> None:
    model, samples = MAKERS[name](), SAMPLES[name]
    result = Quantize(accuracy=accuracy).run(model, Context({"x": samples}))
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    assert in_integers(model) == PRODUCTS[name]
    assert result.statistics["quantized"]["MatMul"] == len(PRODUCTS[name])
    assert {e["node"] for e in result.statistics["operators"]} >= PRODUCTS[name]
    first, second = Session(MAKERS[name]()), Session(model)
    for index in range(6):
        found, wanted = second.run(feed(name, index)), first.run(feed(name, index))
        for output, array in wanted.items():
            assert sqnr(array, found[output]) > 25


def test_what_loops_compute_is_seen_from_outside() -> None:
    run = feed("loop", 3)
    (found,) = Session(exposing(loop(), ["t"])).run(run).values()
    rows = Session(loop()).run(run)["rows"]
    np.testing.assert_array_equal(found.reshape(-1), rows.reshape(-1))
    run = feed("scan", 3)
    (found,) = Session(exposing(scan(), ["a"])).run(run).values()
    weights = scan().graph.initializers["w"].const
    assert weights is not None
    product = run["x"].reshape(7, 16) @ weights.numpy()
    np.testing.assert_allclose(found.reshape(7, 16), product, rtol=1e-5, atol=1e-6)


def test_a_branch_that_no_sample_takes_stays_float() -> None:
    model, samples = branches(), SAMPLES["branches"]
    up = samples.mean(axis=1) > 0
    samples, others = samples[up], samples[~up]
    result = Quantize().run(model, Context({"x": samples}))
    assert in_integers(model) == {"outside", "last", "a_first", "a_second"}
    reasons = {note.node: note.reason for note in result.notes}
    assert "no calibration sample shows values of" in reasons["b_first"]
    wanted, found = (Session(m).run({"x": others[:1]})["y"] for m in (branches(), model))
    assert sqnr(wanted, found) > 25


def test_a_branch_that_no_step_takes_stays_float() -> None:
    model = loop()
    model.graph.initializers["two"].const = Tensor.from_array(np.asarray(1, np.int64))
    QuantizeStatic().run(model, Context({"x": SAMPLES["loop"]}))
    assert in_integers(model) == {"in_loop", "b_first", "b_second"}


def test_sizes_that_steps_may_change_stay_float() -> None:
    model = loop(None)
    result = Quantize().run(model, Context({"x": SAMPLES["loop"]}))
    verify(model)
    reasons = {note.node: note.reason for note in result.notes}
    assert "one size in all steps of a loop" in reasons["in_loop"]
    assert in_integers(model) <= PRODUCTS["loop"] - {"in_loop"}


def test_patterns_and_limits_reach_bodies() -> None:
    samples = {"x": SAMPLES["branches"]}
    model = branches()
    QuantizeStatic(ignore=("a_*",)).run(model, Context(samples))
    assert in_integers(model) == PRODUCTS["branches"] - {"a_first", "a_second"}
    model = branches()
    samples = {"x": random(9, 512, 16)}
    result = Quantize(max_drop=1e-9, accuracy="fast", per_channel=False).run(
        model, Context(samples)
    )
    assert result.statistics["max_drop"]["without"] > 0
    assert result.statistics["max_drop"]["lost"] <= 1e-9
    assert result.statistics["max_drop"]["of"] == 6
    assert len(in_integers(model)) == 6 - result.statistics["max_drop"]["left"]
    assert {e["node"] for e in result.statistics["max_drop"]["sensitivity"]} == PRODUCTS["branches"]


def test_infinity_in_a_body_names_the_sample() -> None:
    samples = SAMPLES["branches"].copy()
    samples[5] = 3e38
    with pytest.raises(Exception, match="with sample 5; check the samples"):
        QuantizeStatic().run(branches(), Context({"x": samples}))


def in_float16(model: Model) -> set[str]:
    """Products of which all operands and the result are in float16."""
    return {
        node.label
        for node in model.graph.all_nodes()
        if node.op_type == "MatMul"
        and {v.dtype for v in (*node.inputs, *node.outputs) if v is not None} == {FLOAT16}
    }


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_products_in_bodies_become_float16(name: str, calibrated: bool) -> None:
    model = MAKERS[name]()
    context = Context({"x": SAMPLES[name]}) if calibrated else None
    result = StoreFloat16().run(model, context)
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    assert in_float16(model) == PRODUCTS[name]
    assert result.statistics["quantized"]["MatMul"] == len(PRODUCTS[name])
    for graph in model.graph.all_graphs():
        assert {v.dtype for v in (*graph.inputs, *graph.outputs)} <= {FLOAT, INT64, BOOL}
    weights = [v for g in model.graph.all_graphs() for v in g.initializers.values()]
    assert not [
        v for v in weights if v.dtype == FLOAT and len(v.shape or ()) == 2 and v.shape[0] > 1
    ]
    first, second = Session(MAKERS[name]()), Session(model)
    for index in range(6):
        found, wanted = second.run(feed(name, index)), first.run(feed(name, index))
        for output, array in wanted.items():
            assert 45 < sqnr(array, found[output]) < 100


@pytest.mark.parametrize("name", MAKERS)
def test_bodies_in_float16_become_integer(name: str) -> None:
    model = MAKERS[name]()
    StoreFloat16().run(model, None)
    Quantize(accuracy="fast").run(model, Context({"x": SAMPLES[name]}))
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    assert in_integers(model) == PRODUCTS[name]
    assert not in_float16(model)
    first, second = Session(MAKERS[name]()), Session(model)
    for index in range(4):
        found, wanted = second.run(feed(name, index)), first.run(feed(name, index))
        for output, array in wanted.items():
            assert sqnr(array, found[output]) > 25


def test_what_leaves_float16_in_a_body_stays_float32() -> None:
    """By its values in any step, or since no sample shows any."""
    model = loop()
    big = model.graph.initializers["a1"]
    assert big.const is not None
    big.const = Tensor.from_array(big.const.numpy() * np.float32(1e5))
    result = StoreFloat16().run(model, Context({"x": SAMPLES["loop"]}))
    assert in_float16(model) == PRODUCTS["loop"] - {"a_first", "a_second"}
    reasons = {note.node: note.reason for note in result.notes}
    assert "beyond float16" in reasons["a_first"]
    model, samples = branches(), SAMPLES["branches"]
    result = StoreFloat16().run(model, Context({"x": samples[samples.mean(axis=1) > 0]}))
    assert in_float16(model) == {"outside", "last", "a_first", "a_second"}
    reasons = {note.node: note.reason for note in result.notes}
    assert "no calibration sample tells" in reasons["b_first"]


COMPILED = {"int8": 1e-5, "dynamic": 1e-5, "dynamic-per-token": 1e-5, "float16": 4e-3}
"""Schemes, and how far apart results may be."""


@pytest.mark.parametrize("scheme", COMPILED)
@pytest.mark.parametrize("name", MAKERS)
def test_compiled_bodies_equal_onnx_runtime(name: str, scheme: str, tmp_path: Path) -> None:
    """Which has to find weights beside their readers, to multiply without saturating."""
    pytest.importorskip("tvm")
    from secateur.backends.tvm.artifact.runtime import Runtime
    from secateur.backends.tvm.compile import compile_model
    from secateur.backends.tvm.targets import parse_target

    model = MAKERS[name]()
    if scheme == "dynamic":  # samples of a run share a scale, so that their number is known
        model.graph.inputs[0].set_tensor_type(FLOAT, feed(name, 0)["x"].shape)
    Quantize(scheme, table=False).run(model, Context({"x": SAMPLES[name]}))
    compile_model(model, parse_target("native"), tmp_path / "m.so", fallback=name != "scan")
    runtime, session = Runtime(tmp_path / "m.so"), Session(model)
    for index in range(4):
        wanted, found = session.run(feed(name, index)), runtime.run(feed(name, index))
        for output, array in wanted.items():
            np.testing.assert_allclose(found[output], array, atol=COMPILED[scheme])
