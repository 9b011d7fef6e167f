"""Every channel of every weight can go, or is shown with what keeps it."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.axes.dims import SINGLE_ELEMENTS, axis_size, dims_of
from secateur.ir.dependencies.analysis import analyze
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.models import zoo
from secateur.passes.prune import find_groups, inspect_groups

from .test_zoo import by_default

RNG = np.random.default_rng(0)
WIDTH = 16


def hidden_axes(model):
    """Channel axes of weights that no group has, but for those that operators fix."""
    infer_shapes(model)
    analysis = analyze(model)
    groups = find_groups(analysis)
    shown = {dim for group in groups for dim in group.move}
    names = {group.name for group in groups if not group.ties}
    hidden = []
    for parameter in analysis.parameters.values():
        if len(parameter.tensor.shape) < 2:
            continue
        for block in parameter.blocks:
            for position, axis in enumerate(block[:2]):
                dims = list(dims_of(axis))
                fixed = any(
                    d.lock and d.lock.structural and d.lock is not SINGLE_ELEMENTS for d in dims
                )
                listed = fixed or any(d in shown for d in dims)
                if (axis_size(axis) or 0) > 1 and not listed and parameter.value.name not in names:
                    hidden.append((parameter.node.label, parameter.value.name, position))
    return hidden


def chain(*nodes, **constants):
    """x -> 1x1 convolution to WIDTH channels `h` -> the nodes, to `t` -> global average."""
    constants["w"] = RNG.standard_normal((WIDTH, 3, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["h"], name="stem"),
            *nodes,
            helper.make_node("GlobalAveragePool", ["t"], ["p"]),
            helper.make_node("ReduceMax", ["p"], ["y"], name="largest", keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    )


CHAINS = {
    "attention over channels (ECA)": lambda: chain(
        helper.make_node("GlobalAveragePool", ["h"], ["a"]),
        helper.make_node("Squeeze", ["a", "last"], ["s"]),
        helper.make_node("Transpose", ["s"], ["u"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["u", "k"], ["c"], pads=[1, 1], name="eca"),
        helper.make_node("Transpose", ["c"], ["v"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["v", "last"], ["e"]),
        helper.make_node("Mul", ["h", "e"], ["t"]),
        last=np.array([3]),
        k=RNG.standard_normal((1, 1, 3)).astype(np.float32),
    ),
    "interleaving Gather": lambda: chain(
        helper.make_node("Gather", ["h", "order"], ["t"], axis=1, name="shuffle"),
        order=np.arange(WIDTH).reshape(2, -1).T.ravel(),
    ),
    "reversing Gather": lambda: chain(
        helper.make_node("Gather", ["h", "order"], ["t"], axis=1, name="flip"),
        order=np.arange(WIDTH)[::-1].copy(),
    ),
    "shifted slices": lambda: chain(
        helper.make_node("Slice", ["h", "zero", "less", "one"], ["a"]),
        helper.make_node("Slice", ["h", "one", "all", "one"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["t"], name="difference"),
        zero=np.array([0]),
        one=np.array([1]),
        less=np.array([WIDTH - 1]),
        all=np.array([WIDTH]),
    ),
    "every second channel": lambda: chain(
        helper.make_node("Slice", ["h", "zero", "all", "one", "two"], ["t"], name="half"),
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        all=np.array([WIDTH]),
    ),
    "the largest": lambda: chain(
        helper.make_node("TopK", ["h", "four"], ["t", ""], axis=1, name="top"),
        four=np.array([4]),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_lock_tells_node_and_reason(name):
    model = CHAINS[name]()
    assert hidden_axes(model.clone()) == []
    shown = [r for r in inspect_groups(model) if r.name.startswith("w")]
    assert any(r.size >= WIDTH / 2 or r.lock is None for r in shown)
    assert all(r.lock is None or (r.lock.node and r.lock.reason) for r in shown)


@pytest.mark.parametrize(("name", "variant"), by_default("dynamo"))
def test_no_channel_of_the_zoo_is_hidden(name, variant):
    assert hidden_axes(zoo.load_tiny(name, variant)) == []
