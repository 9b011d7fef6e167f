"""Constants that several nodes share: parameters never grow by pruning."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.cost import count
from secateur.ir.graph import Value
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.prune import PruneChannels, mask
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.sharing import LARGE, tie_costly

OPSETS = [helper.make_opsetid("", 17)]


def shared_layers(count_: int, *, zero_bias: bool) -> Model:
    """Blocks `x + relu(x w_in + b) w_out` of their own, where all read one `w_in`."""
    rng = np.random.default_rng(0)
    weights = {"w_in": rng.standard_normal((8, 64)), "b": np.zeros(64)}
    nodes = []
    value = "x"
    for i in range(count_):
        weights[f"w_out{i}"] = rng.standard_normal((64, 8)) * rng.uniform(0.1, 3, (64, 1))
        if zero_bias:
            weights[f"w_in{i}"] = rng.standard_normal((8, 64))
        nodes += [
            helper.make_node("MatMul", [value, f"w_in{i}" if zero_bias else "w_in"], [f"h{i}"]),
            helper.make_node("Add", [f"h{i}", "b"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"w_out{i}"], [f"o{i}"]),
            helper.make_node("Add", [value, f"o{i}"], [f"x{i}"]),
        ]
        value = f"x{i}"
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items() if n in read],
    )
    return from_proto(helper.make_model(graph, opset_imports=OPSETS, ir_version=8))


def prune(model: Model, **goal: float) -> tuple[Model, dict[str, object]]:
    """The pruned model, which equals the masked original."""
    pruned = model.clone()
    result = PruneChannels(**goal).run(pruned)
    x = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    (expected,) = Session(mask(model, result.artifacts["selection"])).run({"x": x}).values()
    (actual,) = Session(pruned).run({"x": x}).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)
    return pruned, result.statistics


@pytest.mark.parametrize("goal", [{"macs": 0.7}, {"ratio": 0.3}, {"params": 0.8}])
@pytest.mark.parametrize("layers", [2, 6])
def test_layers_that_share_a_weight_lose_the_same_channels(
    layers: int, goal: dict[str, float]
) -> None:
    model = shared_layers(layers, zero_bias=False)
    pruned, statistics = prune(model, **goal)
    assert statistics["parameters_after"] < statistics["parameters_before"]
    infer_shapes(pruned)
    assert count(pruned).parameters == statistics["parameters_after"]
    assert ("w_in" in statistics["tied"]) == ("params" not in goal)


def test_a_shared_vector_ties_nothing() -> None:
    """Copies of a bias cost less than the same widths everywhere would."""
    pruned, statistics = prune(shared_layers(4, zero_bias=True), macs=0.6)
    assert statistics["tied"] == []
    assert statistics["parameters_after"] < statistics["parameters_before"]
    widths = {w.const.shape[1] for n, w in pruned.graph.initializers.items() if "w_in" in n}
    assert len(widths) > 1


def test_a_constant_that_has_to_stay_whole_is_not_cut_besides() -> None:
    """The weight is a result of the model, too."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 64)), "v": rng.standard_normal((64, 2))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["y"]),
            helper.make_node("Identity", ["w"], ["z"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [8, 64]),
        ],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    model = from_proto(helper.make_model(graph, opset_imports=OPSETS, ir_version=8))
    before = count(model).parameters
    PruneChannels(ratio=0.5).run(model)
    assert count(model).parameters <= before


def branches(sizes: tuple[int, ...]) -> Model:
    """Two branches for each of several weights, which they share, through that many channels."""
    constants, nodes, outputs = [], [], []
    for size in sizes:
        constants.append(f"const %w{size}: float[1, {size}] = {[[1.0] * size]}")
        for side in "ab":
            value = f"{size}{side}"
            constants.append(f"const %v{value}: float[{size}, 1] = {[[1.0]] * size}")
            nodes.append(f"%h{value} = MatMul(%x, %w{size})")
            nodes.append(f"%y{value} = MatMul(%h{value}, %v{value})")
            outputs.append(f"%y{value}: float[4, 1]")
    lines = "\n".join([*constants, *nodes])
    model = parse_model(
        f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[4, 1]) -> ({", ".join(outputs)}) {{
{lines}
}}"""
    )
    infer_shapes(model)
    return model


def all_widths() -> Iterator[dict[int, tuple[int, int]]]:
    """By the size of a weight, how many channels each of its branches keeps."""
    for pair in itertools.product((1, 2, 3), repeat=2):
        yield {3: pair}
    random = np.random.default_rng(0)
    for _ in range(12):
        yield {size: tuple(random.integers(size // 3, size + 1, 2)) for size in (3, 30, 400)}


@pytest.mark.parametrize("widths", list(all_widths()), ids=str)
def test_constants_are_tied_that_grow_while_all_together_do(
    widths: dict[int, tuple[int, int]],
) -> None:
    """Those that grow by much are in any case; of the others the largest first."""
    elements = total = 0
    growths = {}
    for size, pair in widths.items():
        copies = sum(n for n in pair if n < size) + (size if size in pair else 0)
        growths[size] = copies - size
        elements += 3 * size
        total += growths[size] - sum(size - n for n in pair)
    expected = set()
    for size, growth in sorted(growths.items(), key=lambda item: -item[1]):
        if growth > 0 and (growth > LARGE * elements or total > 0):
            expected.add(f"w{size}")
            total -= growth
    plan = PruningPlan(branches(tuple(widths)))
    left = {size: list(pair) for size, pair in widths.items()}
    kept = {dim: left[dim.size].pop() for group in plan.free for dim in group.dims if dim.size}
    tied: set[Value] = set()
    assert tie_costly(plan.analysis, kept, tied) == bool(expected)
    assert {value.name for value in tied} == expected
