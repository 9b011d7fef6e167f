"""Storage in float16, and what stays float32 beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session, load_problem
from secateur.ir.verify import verify
from secateur.passes.base import Context, Pass
from secateur.passes.quantize import Quantize, QuantizeDynamic, StoreFloat16
from tests import oddities
from tests.passes.test_equalization import node, sqnr
from tests.passes.test_quantize_accurate import IMAGES, network
from tests.passes.test_quantize_integer import build, random

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def stored(model: Model, samples: Any = IMAGES, **options: Any) -> Any:
    context = None if samples is None else Context({"x": samples})
    result = StoreFloat16(**options).run(model, context)
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    return result


def types(model: Model) -> dict[str, int]:
    """Of the first result of each node, by the node's label."""
    return {n.label: n.outputs[0].dtype for n in model.graph.nodes if n.outputs[0] is not None}


def reason(result: Any, label: str) -> str:
    return next(n.reason for n in result.notes if n.node == label)


def test_everything_is_half_as_large_and_nearly_the_same() -> None:
    model = network()
    result = stored(model)
    assert not result.notes
    assert result.statistics["casts"] == 2
    assert sum(result.statistics["quantized"].values()) == 13
    weights = model.graph.initializers.values()
    assert {v.dtype for v in weights} == {HALF}
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [FLOAT, FLOAT]
    want, have = (Session(m).run({"x": IMAGES})["y"] for m in (network(), model))
    assert 50 < sqnr(want, have) < 120
    size = len(to_proto(model).SerializeToString())
    assert size < 0.7 * len(to_proto(network()).SerializeToString())


def test_inputs_and_outputs_may_be_half_too() -> None:
    model = network()
    result = stored(model, keep_io=False)
    assert result.statistics["casts"] == 0
    have = Session(model).run({"x": IMAGES.astype(np.float16)})["y"]
    assert have.dtype == np.float16
    assert sqnr(Session(network()).run({"x": IMAGES})["y"], have) > 45


def large(opset: int = 17) -> Model:
    nodes = [
        node("Conv", "x a", "f"),
        node("Mul", "f m", "g"),
        node("Exp", "s", "h"),
        node("Conv", "x b", "s"),
        node("Mul", "g n", "i"),
        node("Add", "h i", "y"),
    ]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    constants = {
        "a": random(1, 4, 3, 1, 1),
        "m": np.float32([3e4]),
        "n": np.float32([1e-3]),
        "b": random(2, 4, 3, 1, 1),
    }
    return from_proto(build(nodes, constants, ["N", 3, 8, 8], opset=opset))


def test_what_overflows_stays_float32() -> None:
    model = large()
    result = stored(model)
    found = types(model)
    assert found["g"] == FLOAT
    assert found["f"] == found["s"] == HALF
    assert "beyond float16's 65,504" in reason(result, "g")
    assert "beyond float16's" in reason(result, "i")
    sessions = [Session(m, optimize=False) for m in (large(), model)]
    want, have = (session.run({"x": IMAGES})["y"] for session in sessions)
    assert np.isfinite(have).all()
    assert sqnr(want, have) > 45


def test_without_samples_only_constants_tell() -> None:
    model = large()
    result = stored(model, samples=None)
    assert types(model)["g"] == HALF
    assert not result.notes
    result = Quantize(scheme="float16").run(large())
    assert "without calibration samples" in result.statistics["warnings"][0]
    result = Quantize(scheme="float16").run(large(), Context({"x": IMAGES}))
    assert "warnings" not in result.statistics


@pytest.mark.parametrize(("number", "text"), [(1e-9, "few digits"), (1e5, "holds 1e\\+05")])
def test_constants_that_float16_does_not_hold(number: float, text: str) -> None:
    nodes = [node("Conv", "x a", "f"), node("Add", "f c", "g"), node("Relu", "g", "y")]
    constants = {"a": random(1, 4, 3, 1, 1), "c": np.float32([number])}
    model = from_proto(build(nodes, constants, ["N", 3, 8, 8]))
    result = stored(model, samples=None)
    assert types(model)["g"] == FLOAT
    assert types(model)["f"] == HALF
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(reason(result, "g"))


def test_infinity_in_a_mask_is_no_overflow_of_constants() -> None:
    nodes = [node("Add", "x c", "g"), node("Softmax", "g", "y", axis=-1)]
    mask = np.where(np.arange(8) > 5, -np.inf, 0).astype(np.float32)
    model = from_proto(build(nodes, {"c": mask}, ["N", 3, 8, 8]))
    stored(model, samples=None)
    found = Session(model).run({"x": IMAGES})["y"]
    assert (found[..., 6:] == 0).all()
    assert np.isfinite(found).all()


def test_operators_and_nodes_that_are_asked_for() -> None:
    model = network()
    result = stored(model, float32=("LeakyRelu",), ignore=("c",))
    assert types(model)["k"] == types(model)["c"] == FLOAT
    assert "stays float32 as asked" in reason(result, "k")
    assert reason(result, "c") == "kept float as asked"
    want, have = (Session(m).run({"x": IMAGES})["y"] for m in (network(), model))
    assert sqnr(want, have) > 50
    model = network()
    assert stored(model, only=("[aci]",)).statistics["quantized"] == {"Conv": 3}
    with pytest.raises(SecateurError, match="the model has no operator Softplus"):
        stored(network(), float32=("Softplus", "Relu"))


def test_constants_that_both_kinds_read_are_there_twice() -> None:
    nodes = [node("Conv", "x a", "f"), node("Add", "f c", "g"), node("Mul", "g c", "y")]
    constants = {"a": random(1, 4, 3, 1, 1), "c": random(2, 4, 1, 1)}
    model = from_proto(build(nodes, constants, ["N", 3, 8, 8]))
    stored(model, ignore=("g",))
    kinds = sorted(v.dtype for n, v in model.graph.initializers.items() if n.startswith("c"))
    assert kinds == [FLOAT, HALF]


def test_outputs_that_nodes_read_keep_names_and_types() -> None:
    nodes = [node("Conv", "x a", "f"), node("Relu", "f", "y")]
    proto = build(nodes, {"a": random(1, 4, 3, 1, 1)}, ["N", 3, 8, 8])
    proto.graph.output.append(helper.make_tensor_value_info("f", FLOAT, ["N", 4, 8, 8]))
    model = from_proto(proto)
    stored(model)
    found = Session(model).run({"x": IMAGES})
    assert list(found) == ["y", "f"]
    assert {a.dtype for a in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["y"], np.maximum(found["f"], 0))


def test_branches_return_float32() -> None:
    """What an If captures they read in float16, and cast what they return."""
    body = helper.make_graph(
        [helper.make_node("Relu", ["f"], ["r"], "inner")],
        "body",
        [],
        [helper.make_tensor_value_info("r", FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["f"], ["n"])],
        "other",
        [],
        [helper.make_tensor_value_info("n", FLOAT, None)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["f"]),
        helper.make_node("ReduceSum", ["f"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["t"]),
        helper.make_node("If", ["t"], ["u"], "if", then_branch=body, else_branch=other),
        helper.make_node("Sigmoid", ["u"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [
            numpy_helper.from_array(random(1, 4, 3, 1, 1), "a"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = from_proto(proto)
    result = stored(model, None)
    assert result.statistics["quantized"]["Relu"] == result.statistics["quantized"]["Neg"] == 1
    assert model.graph.nodes[-2].op_type == "Sigmoid"
    inner = [n for n in model.graph.all_nodes() if n.op_type in ("Relu", "Neg")]
    assert {v.dtype for n in inner for v in (*n.inputs, *n.outputs)} == {HALF}
    branches = [g for g in model.graph.all_graphs() if g is not model.graph]
    assert [g.outputs[0].dtype for g in branches] == [FLOAT, FLOAT]
    want, have = (Session(m).run({"x": IMAGES[:4]})["y"] for m in (from_proto(proto), model))
    assert sqnr(want, have) > 45


def test_defaults_that_callers_may_override_stay() -> None:
    proto = build([node("Conv", "x a", "y")], {"a": random(1, 4, 3, 1, 1)}, ["N", 3, 8, 8])
    proto.graph.input.append(helper.make_tensor_value_info("a", FLOAT, [4, 3, 1, 1]))
    model = from_proto(proto)
    stored(model)
    assert model.graph.initializers["a"].dtype == FLOAT
    found = Session(model).run({"x": IMAGES, "a": np.zeros((4, 3, 1, 1), np.float32)})["y"]
    assert not found.any()


def test_other_domains_and_types_are_left() -> None:
    nodes = [
        node("Cast", "x", "d", to=TensorProto.DOUBLE),
        node("Sqrt", "d", "e"),
        node("Cast", "e", "f", to=FLOAT),
        node("Gelu", "f", "g"),
        node("Relu", "g", "y"),
    ]
    proto = build(nodes, {}, ["N", 3, 8, 8], opset=20)
    del proto.graph.value_info[:]
    proto.graph.node[3].domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = from_proto(proto)
    result = StoreFloat16().run(model, Context({"x": IMAGES}))
    assert reason(result, "g") == "it is no standard operator"
    assert types(model)["e"] == TensorProto.DOUBLE
    assert Session(model).run({"x": IMAGES})["y"].dtype == np.float32


def test_a_limit_of_what_may_be_lost() -> None:
    def judge_of(original: Model) -> Any:
        want = Session(original).run({"x": IMAGES})["y"]

        def judge(model: Model) -> float:
            found = Session(model).run({"x": IMAGES})["y"]
            return float(np.square(want - found).sum() / np.square(want).sum())

        return judge

    def limited(share: float) -> Any:
        model = network()
        context = Context({"x": IMAGES}, judge=judge_of)
        found = Quantize(scheme="float16", max_drop=share).run(model, context)
        return judge_of(network())(model), found.statistics["max_drop"]

    _, plain = limited(1.0)
    assert plain["left"] == 0
    lost, some = limited(plain["lost"] / 2)
    assert lost <= plain["lost"] / 2
    assert 0 < some["left"] <= some["of"]
    lost, none = limited(0.0)
    assert lost == 0
    assert none["left"] == none["of"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"calibrator": "mse"}, "calibrator"),
        ({"per_channel": False}, "per-tensor"),
        ({"accuracy": "best"}, "accuracy"),
    ],
)
def test_options_without_a_meaning_are_refused(options: Any, name: str) -> None:
    with pytest.raises(SecateurError, match=f"{name} means nothing for scheme 'float16'"):
        Quantize(scheme="float16", **options).check()
    with pytest.raises(SecateurError, match="float32 means nothing for scheme 'int8'"):
        Quantize(float32=("Relu",)).check()


@pytest.mark.parametrize("scheme", ["int8", "dynamic"])
@pytest.mark.parametrize("half_io", [False, True])
def test_models_in_float16_are_quantized_too(scheme: str, half_io: bool) -> None:
    model = network()
    StoreFloat16(keep_io=not half_io).run(model, None)
    samples = {"x": IMAGES.astype(np.float16) if half_io else IMAGES}
    types_before = [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)]
    result = Quantize(scheme=scheme).run(model, Context(samples))
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    assert result.statistics["quantized"]["Conv"] == 3
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == types_before
    casts = [n for n in model.graph.nodes if n.op_type == "Cast"]
    assert not any(n.inputs[0].dtype == n.outputs[0].dtype for n in casts)
    want = Session(network()).run({"x": IMAGES})["y"]
    assert sqnr(want, Session(model).run(samples)["y"].astype(np.float32)) > 18


@pytest.mark.parametrize("pass_", [StoreFloat16(), QuantizeDynamic()], ids=lambda p: p.name)
@pytest.mark.parametrize("base", ["branches", "convolutions", "one_node"])
def test_odd_models_still_load(base: str, pass_: Pass) -> None:
    names = ["sequence_output", "sequence_values", "optional_output", "value_info_twice"]
    for name in [*names, "ir_version_3", "initializers_as_outputs", "shadowed_names"]:
        proto = oddities.make(base, name)
        if proto is None or load_problem(from_proto(proto)) is not None:
            continue
        model = from_proto(proto)
        pass_.run(model)
        verify(model)
        assert load_problem(model) is None, name
