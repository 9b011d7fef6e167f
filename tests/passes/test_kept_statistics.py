"""One node's statistics over kept indices: as if it had been given those alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.prune import PruneChannels
from secateur.passes.prune.kept_statistics import KeptStatistics, statistic_axes

SHAPE = (2, 3, 6)
IMAGE = (2, 6, 3, 4)
MICROSOFT = "com.microsoft"


def forms() -> dict[str, tuple[Any, ...]]:
    """Name: operator, opset, domain, shape, further inputs, results, attributes, expected axes."""
    found: dict[str, tuple[Any, ...]] = {}
    for axis, over in ((-1, [2]), (2, [2]), (1, [1, 2]), (-2, [1, 2])):
        vector = SHAPE[axis:]
        more = {"scale": vector, "bias": vector}
        found[f"LayerNormalization {axis}"] = (
            "LayerNormalization", 17, "", SHAPE, more, 1, {"axis": axis}, over
        )  # fmt: skip
    plain = {"scale": (6,)}
    found["LayerNormalization"] = ("LayerNormalization", 17, "", SHAPE, plain, 1, {}, [2])
    found["RMSNormalization"] = ("RMSNormalization", 23, "", SHAPE, plain, 1, {"axis": 1}, [1, 2])
    found["SkipLayerNormalization"] = (
        "SkipLayerNormalization", 17, MICROSOFT, SHAPE,
        {"skip": SHAPE, "gamma": (6,), "beta": (6,), "bias": (6,)}, 4, {}, [2],
    )  # fmt: skip
    found["SkipSimplifiedLayerNormalization"] = (
        "SkipSimplifiedLayerNormalization", 17, MICROSOFT, SHAPE,
        {"skip": SHAPE, "gamma": (6,)}, 1, {}, [2],
    )  # fmt: skip
    per_channel, per_group = {"scale": (6,), "bias": (6,)}, {"scale": (3,), "bias": (3,)}
    groups = {"num_groups": 3}
    found["GroupNormalization"] = ("GroupNormalization", 21, "", IMAGE, per_channel, 1, groups, [1])
    found["GroupNormalization 18"] = (
        "GroupNormalization", 18, "", IMAGE, per_group, 1, groups, [1]
    )  # fmt: skip
    for keep, (axes, over) in itertools.product(
        (0, 1), (([-1], [2]), ([2], [2]), ([1, -1], [1, 2]), (None, [0, 1, 2]))
    ):
        given = {"keepdims": keep} if axes is None else {"keepdims": keep, "axes": axes}
        found[f"ReduceMean {axes} {keep}"] = ("ReduceMean", 13, "", SHAPE, {}, 1, given, over)
        if axes is not None:
            found[f"ReduceMean of an input {axes} {keep}"] = (
                "ReduceMean", 18, "", SHAPE, {"axes": axes}, 1, {"keepdims": keep}, over
            )  # fmt: skip
    return found


FORMS = forms()


def model_of(name: str, random: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """A form of one node, and all that it reads."""
    op_type, opset, domain, shape, more, results, attributes, _ = FORMS[name]
    constants = {
        n: np.int64(s) if n == "axes" else random.uniform(0.5, 2, s).astype(np.float32)
        for n, s in more.items()
        if n != "skip"
    }
    names = ["y"] if results == 1 else ["y", "", "", "sum"][:results]
    node = helper.make_node(op_type, ["x", *more], names, domain=domain, **attributes)
    inputs = {"x": shape, **{n: s for n, s in more.items() if n == "skip"}}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names if n],
        [helper.make_tensor(n, TensorProto.INT64 if n == "axes" else 1, a.shape, a.ravel())
         for n, a in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    infer_shapes(model)
    feeds = {n: random.standard_normal(s).astype(np.float32) for n, s in inputs.items()}
    return model, {**constants, **feeds}


EPSILON = {"SkipLayerNormalization": 1e-12, "SkipSimplifiedLayerNormalization": 1e-12}
"""By default, of others 1e-5."""


def definition(name: str, operands: dict[str, Any]) -> dict[str, Any]:
    """What the operator computes, in NumPy."""
    op_type, _, _, _, _, results, attributes, over = FORMS[name]
    x = operands["x"]
    if op_type == "ReduceMean":
        return {"y": x.mean(tuple(over), keepdims=bool(attributes["keepdims"]))}
    if op_type == "GroupNormalization":
        scale, bias = (operands[n].reshape(-1, 1, 1) for n in ("scale", "bias"))
        groups = x.reshape(x.shape[0], -1, 2, *x.shape[2:])
        y = groups - groups.mean((2, 3, 4), keepdims=True)
        y = y / np.sqrt(groups.var((2, 3, 4), keepdims=True) + 1e-5)
        each = x.shape[1] // len(scale)
        return {"y": y.reshape(x.shape) * scale.repeat(each, 0) + bias.repeat(each, 0)}
    x = x + operands.get("skip", 0) + (operands.get("bias", 0) if "skip" in operands else 0)
    axes, y = tuple(over), x
    if "Simplified" not in op_type and "RMS" not in op_type:
        y = x - x.mean(axes, keepdims=True)
    y = y / np.sqrt((y * y).mean(axes, keepdims=True) + EPSILON.get(op_type, 1e-5))
    y = y * operands.get("scale", operands.get("gamma"))
    y = y + operands.get("beta", 0 if "skip" in operands else operands.get("bias", 0))
    return {"y": y, "sum": x} if results == 4 else {"y": y}


def narrowed(array: Any, kept: dict[int, Any]) -> Any:
    """The kept indices along axes counted from the last one, of arrays that have these."""
    for behind, indices in kept.items():
        axis = array.ndim - behind
        if axis >= 0:
            array = np.take(array, indices, axis)
    return array


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FORMS)
def test_statistics_are_those_of_the_kept_indices_alone(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    op_type, _, _, shape, _, _, _, over = FORMS[name]
    model, operands = model_of(name, random)
    (node,) = model.graph.nodes
    assert statistic_axes(model, node) == over
    masks = {}
    for axis in over:
        mask = random.random(shape[axis]) < 0.6
        mask[random.integers(shape[axis])] = True
        if op_type == "GroupNormalization":  # all of a group, as what ties its channels has it
            mask = np.repeat(random.permutation([True, True, False]), 2)
        masks[len(shape) - axis] = mask
    kept = {behind: np.flatnonzero(mask) for behind, mask in masks.items()}
    small = {n: narrowed(a, kept) for n, a in operands.items() if n != "axes"}
    if op_type == "GroupNormalization":  # which may have one number for each group
        (mask,) = masks.values()
        alive = mask.reshape(len(operands["scale"]), -1).any(1)
        small |= {n: operands[n][alive] for n in ("scale", "bias")}
    expected = definition(name, small)
    model.graph.nodes = KeptStatistics(model, node, masks).build()
    feeds = {v.name: operands[v.name] for v in model.graph.inputs}
    found = Session(model, optimize=False).run(feeds)
    assert found.keys() == expected.keys()
    for result, right in expected.items():
        mine = found[result]
        if op_type != "ReduceMean":
            assert mine.shape == shape
            mine = narrowed(mine, kept)
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-4)


def test_other_nodes_have_no_statistics() -> None:
    """Nor have axes that only a run knows, or that are no axes."""
    for node in (
        helper.make_node("Softmax", ["x"], ["y"]),
        helper.make_node("ReduceSum", ["x"], ["y"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["y"]),
        helper.make_node("LayerNormalization", ["x", "scale"], ["y"], axis="last"),
    ):
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
        if "axes" in node.input:
            inputs.append(helper.make_tensor_value_info("axes", TensorProto.INT64, [1]))
        graph = helper.make_graph(
            [node],
            "g",
            inputs,
            [helper.make_empty_tensor_value_info("y")],
            [helper.make_tensor("scale", TensorProto.FLOAT, [6], [1.0] * 6)],
        )
        model = from_proto(helper.make_model(graph))
        assert statistic_axes(model, model.graph.nodes[0]) == []


def test_only_statistics_over_axes_that_lose_indices_are_recorded() -> None:
    """Not of a normalization of what stays whole, nor over an axis whose size a run knows."""
    random = np.random.default_rng(0)
    w, v = (random.standard_normal(shape).tolist() for shape in ((6, 16), (16, 3)))
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[n, t, 6]) -> (%y: float[n, 3]) {{
  const %w: float[6, 16] = {w}
  const %v: float[16, 3] = {v}
  const %six: float[6] = {[1.0] * 6}
  const %sixteen: float[16] = {[1.0] * 16}
  %whole = LayerNormalization(%x, %six)
  %h = MatMul(%whole, %w)
  %cut = LayerNormalization(%h, %sixteen)
  %mean = ReduceMean(%cut) {{axes = [1], keepdims = 0}}
  %y = MatMul(%mean, %v)
}}""")
    record = PruneChannels(ratio=0.5, normalized=True).run(model).artifacts["selection"]
    assert record.statistics.keys() == {"cut"}
    (mask,) = record.statistics["cut"].values()
    (weights,) = (block for (node, _), (block, _) in record.constants.items() if node == "h")
    assert 0 < mask.sum() < 16
    np.testing.assert_array_equal(np.flatnonzero(mask), weights[0][1])
