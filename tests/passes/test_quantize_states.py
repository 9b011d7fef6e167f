"""Models with states, settings and bodies: what is quantized, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from secateur.cli import main
from secateur.ir.onnx_io import from_proto, load, save, to_proto
from secateur.ir.reference import Session
from secateur.ir.verify import verify
from secateur.passes.base import Context
from secateur.passes.quantize import Quantize, QuantizeDynamic, QuantizeStatic
from tests.passes.test_equalization import sqnr
from tests.passes.test_quantize_integer import random

FLOAT = TensorProto.FLOAT


def info(name: str, shape: Any, dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def choice(condition: str, result: str, branches: list[onnx.GraphProto]) -> onnx.NodeProto:
    first, second = branches
    return helper.make_node(
        "If", [condition], [result], "if", then_branch=first, else_branch=second
    )


def speech() -> onnx.ModelProto:
    """A detector of speech: a chunk, the state of two layers [2, 1, 8] and the rate as a number.

    At each rate another convolution, in the branches of an If.
    """
    branches = []
    for name in ("w8", "w16"):
        nodes = [
            helper.make_node("Conv", ["x3", name], [f"c{name}"], f"conv_{name}", strides=[4]),
            helper.make_node("Relu", [f"c{name}"], [f"r{name}"], f"relu_{name}"),
        ]
        branches.append(helper.make_graph(nodes, name, [], [info(f"r{name}", None)]))
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["x3"]),
        helper.make_node("Equal", ["sr", "rate"], ["slow"]),
        helper.make_node(
            "If", ["slow"], ["f"], "if", then_branch=branches[0], else_branch=branches[1]
        ),
        helper.make_node("ReduceMean", ["f"], ["m"], axes=[2], keepdims=0),
        helper.make_node("Split", ["state"], ["h", "c"], axis=0),
        helper.make_node("Squeeze", ["h", "zero"], ["h2"]),
        helper.make_node("Concat", ["m", "h2"], ["in"], axis=1),
        helper.make_node("MatMul", ["in", "u"], ["g"], "gate"),
        helper.make_node("Tanh", ["g"], ["new"]),
        helper.make_node("Unsqueeze", ["new", "zero"], ["h3"]),
        helper.make_node("Concat", ["h3", "c"], ["state_out"], axis=0),
        helper.make_node("Gemm", ["new", "v", "b"], ["s"], "score"),
        helper.make_node("Sigmoid", ["s"], ["y"]),
    ]
    constants = {
        "w8": random(1, 8, 1, 8),
        "w16": random(2, 8, 1, 8),
        "u": random(3, 16, 8) / 4,
        "v": random(4, 8, 1),
        "b": random(5, 1),
        "one": np.int64([1]),
        "zero": np.int64([0]),
        "rate": np.asarray(8000, np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "speech",
        [info("x", [1, 64]), info("state", [2, 1, 8]), info("sr", [], TensorProto.INT64)],
        [info("y", None), info("state_out", None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


SAMPLES = {
    "x": random(6, 32, 64),
    "state": np.tanh(random(7, 32, 2, 1, 8)),
    "sr": np.asarray(8000, np.int64),
}


def feed(index: int, rate: int = 8000) -> dict[str, Any]:
    return {
        "x": SAMPLES["x"][index : index + 1],
        "state": SAMPLES["state"][index],
        "sr": np.asarray(rate, np.int64),
    }


def noise(model: Any, rate: int = 8000) -> float:
    """The worst SQNR over outputs, of a chunk with the state that the one before left."""
    first, second = Session(from_proto(speech())), Session(model)
    state = feed(0)["state"]
    states = [state, state]
    worst = np.inf
    for index in range(8):
        found = []
        for k, session in enumerate((first, second)):
            found.append(session.run({**feed(index, rate), "state": states[k]}))
            states[k] = found[k]["state_out"]
        for name, want in found[0].items():
            if (want != found[1][name]).any():
                worst = min(worst, sqnr(want, found[1][name]))
    return float(worst)


def test_static_integers_in_bodies_that_samples_reach() -> None:
    model = from_proto(speech())
    result = Quantize().run(model, Context(SAMPLES))
    verify(model)
    assert result.statistics["quantized"] == {"Conv": 1, "Gemm": 1, "MatMul": 1}
    (reason,) = (n.reason for n in result.notes if n.op_type == "Conv")
    assert "no calibration sample shows values of" in reason
    for rate in (8000, 16000):
        assert noise(model, rate) > 20


def test_dynamic_integers_in_bodies_too() -> None:
    model = from_proto(speech())
    result = QuantizeDynamic().run(model)
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    assert result.statistics["quantized"] == {"Conv": 2, "Gemm": 1, "MatMul": 1}
    kinds = [n.op_type for n in model.all_nodes()]
    assert kinds.count("ConvInteger") == 2
    assert "Conv" not in kinds
    for rate in (8000, 16000):
        assert noise(model, rate) > 20
    model = from_proto(speech())
    result = QuantizeDynamic(ignore=("conv_w8",)).run(model)
    assert result.statistics["quantized"]["Conv"] == 1


@pytest.mark.parametrize("scheme", ["float16", "dynamic"])
def test_other_schemes_within_a_limit(scheme: str) -> None:
    model = from_proto(speech())
    result = Quantize(scheme=scheme, max_drop=1e-7).run(model, Context(SAMPLES))
    assert result.statistics["max_drop"]["lost"] <= 1e-7
    assert noise(model) > 60


def test_samples_that_lack_a_state_are_refused(tmp_path: Path) -> None:
    save(from_proto(speech()), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=SAMPLES["x"], sr=SAMPLES["sr"])
    np.savez(tmp_path / "whole.npz", **SAMPLES)
    words = ["quantize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "q.onnx"), "--calibration"]
    result = CliRunner().invoke(main, [*words, str(tmp_path / "c.npz")])
    assert result.exit_code == 1
    assert "no array for input 'state'" in result.output
    result = CliRunner().invoke(main, [*words, str(tmp_path / "whole.npz"), "--json"])
    assert result.exit_code == 0, result.output
    outputs = json.loads(result.output)["stages"][-1]["fidelity"]["outputs"]
    assert {o["name"] for o in outputs} == {"y", "state_out"}
    assert any(n.op_type == "QuantizeLinear" for n in load(tmp_path / "q.onnx").graph.nodes)


def test_a_model_that_is_all_body_is_quantized(tmp_path: Path) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], [f"o{k}"], f"conv{k}")],
            f"b{k}",
            [],
            [info(f"o{k}", None)],
        )
        for k in range(2)
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["t"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["t"], ["y"], "if", then_branch=branches[0], else_branch=branches[1]
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", [1, 3, 8, 8])],
        [info("y", None)],
        [numpy_helper.from_array(random(1, 4, 3, 3, 3), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(from_proto(proto), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=random(2, 8, 3, 8, 8))
    words = ["quantize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "q.onnx")]
    result = CliRunner().invoke(main, [*words, "--calibration", str(tmp_path / "c.npz")])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "no calibration sample shows values of" in text
    quantized = QuantizeStatic().run(
        load(tmp_path / "m.onnx"), Context({"x": random(2, 8, 3, 8, 8)})
    )
    assert quantized.statistics["quantized"] == {"Conv": 1}


def test_what_functions_hold_is_quantized() -> None:
    """Calls are replaced by what they stand for, those within bodies and others' calls, too."""
    own = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Relu", ["product"], ["y"]),
    ]
    inner = helper.make_function("own", "Inner", ["x", "w"], ["y"], nodes, own)
    call = [helper.make_node("Inner", ["x", "w"], ["y"], domain="own")]
    outer = helper.make_function("own", "Outer", ["x", "w"], ["y"], call, own)
    weights = [numpy_helper.from_array(random(i, 8, 8), f"w{i}") for i in (0, 1)]
    calls = [
        helper.make_node("Outer", ["x", "w0"], ["a"], domain="own"),
        helper.make_node("Inner", ["a", "w1"], ["y"], domain="own"),
    ]
    graph = helper.make_graph(calls, "g", [info("x", [4, 8])], [info("y", [4, 8])], weights)
    proto = helper.make_model(graph, functions=[inner, outer], opset_imports=own, ir_version=9)
    samples = {"x": random(2, 64, 8)}
    for scheme in ("int8", "dynamic"):
        model = from_proto(proto)
        result = Quantize(scheme).run(model, Context(samples))
        verify(model)
        onnx.checker.check_model(to_proto(model), full_check=True)
        assert result.statistics["quantized"]["MatMul"] == 2
        assert not model.functions
        assert Quantize(scheme).expected(from_proto(proto))[0]["MatMul"] == 2
