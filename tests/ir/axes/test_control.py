"""Pruning through the bodies of If, Loop and Scan."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.onnx_io import from_proto

from .oracle import assert_equals_masked, prune_at_random

RNG = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def info(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def build(nodes, initializers, inputs=None):
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [info("x", [2, 4])],
        [info("y", [2, 3])],
        [weight("w_in", 4, 6), weight("w_out", 6, 3), *initializers],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def if_model():
    branches = {
        name: helper.make_graph(
            [
                helper.make_node("MatMul", ["h", f"w_{name}"], [f"{name}_m"]),
                helper.make_node("Relu", [f"{name}_m"], [f"{name}_y"]),
            ],
            name,
            [],
            [info(f"{name}_y", [2, 6])],
            [weight(f"w_{name}", 6, 6)],
        )
        for name in ("a", "b")
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w_in"], ["h"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["cond"]),
        helper.make_node(
            "If", ["cond"], ["z"], then_branch=branches["a"], else_branch=branches["b"]
        ),
        helper.make_node("MatMul", ["z", "w_out"], ["y"]),
    ]
    return build(nodes, [numpy_helper.from_array(np.float32(0), "zero")])


def loop_model():
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("MatMul", ["s_in", "w_loop"], ["m"]),
            helper.make_node("Add", ["m", "h"], ["s_out"]),
            helper.make_node("Tanh", ["s_out"], ["seen"]),
        ],
        "body",
        [
            info("i", [], TensorProto.INT64),
            info("go_in", [], TensorProto.BOOL),
            info("s_in", [2, 6]),
        ],
        [info("go_out", [], TensorProto.BOOL), info("s_out", [2, 6]), info("seen", [2, 6])],
        [weight("w_loop", 6, 6)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w_in"], ["h"]),
        helper.make_node("Loop", ["count", "go", "h"], ["last", "all"], body=body),
        helper.make_node("ReduceSum", ["all", "zero_axis"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["last", "sum"], ["z"]),
        helper.make_node("MatMul", ["z", "w_out"], ["y"]),
    ]
    constants = {"count": np.int64(3), "go": np.bool_(True), "zero_axis": np.array([0], np.int64)}
    return build(nodes, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])


def scan_model():
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s_in", "w_scan"], ["m"]),
            helper.make_node("Add", ["m", "slice"], ["s_out"]),
            helper.make_node("Relu", ["s_out"], ["seen"]),
        ],
        "body",
        [info("s_in", [6]), info("slice", [6])],
        [info("s_out", [6]), info("seen", [6])],
        [weight("w_scan", 6, 6)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w_in"], ["h"]),
        helper.make_node("Scan", ["start", "h"], ["last", "all"], body=body, num_scan_inputs=1),
        helper.make_node("Add", ["all", "last"], ["z"]),
        helper.make_node("MatMul", ["z", "w_out"], ["y"]),
    ]
    return build(nodes, [weight("start", 6)])


MODELS = {"If": if_model, "Loop": loop_model, "Scan": scan_model}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_bodies_prune_exactly(name, seed):
    proto = MODELS[name]()
    onnx.checker.check_model(proto, full_check=True)
    rng = np.random.default_rng(seed)
    result = prune_at_random(from_proto(proto), rng, share=0.5 if seed else None)
    free = [g for g in result.groups if g.lock is None]
    assert sum(len(g.parameters()) for g in free) >= 3, [str(g.lock) for g in result.groups]
    feeds = {"x": rng.standard_normal((2, 4)).astype(np.float32)}
    assert_equals_masked(result, feeds)


def test_a_growing_loop_is_locked():
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Concat", ["s_in", "h"], ["s_out"], axis=0),
        ],
        "body",
        [info("i", [], TensorProto.INT64), info("go_in", [], TensorProto.BOOL), info("s_in", None)],
        [info("go_out", [], TensorProto.BOOL), info("s_out", None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w_in"], ["h"]),
        helper.make_node("Loop", ["count", "", "h"], ["last"], body=body),
        helper.make_node("ReduceMean", ["last"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["mean", "h"], ["z"]),
        helper.make_node("MatMul", ["z", "w_out"], ["y"]),
    ]
    proto = build(nodes, [numpy_helper.from_array(np.int64(2), "count")])
    model = from_proto(proto)
    rng = np.random.default_rng(0)
    result = prune_at_random(model, rng)
    assert all(g.lock is not None for g in result.groups)
    assert_equals_masked(result, {"x": rng.standard_normal((2, 4)).astype(np.float32)})
