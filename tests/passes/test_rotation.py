"""Rotated streams: the same outputs, and all that a stream carries in a few channels."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.models import zoo
from secateur.passes.base import Context
from secateur.passes.manager import PassManager
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.recovery import recover
from secateur.passes.prune.rotation import RotateStreams
from secateur.passes.sizes import infer_sizes

WIDTH, RANK = 12, 7


def decoder(written_out, random, scales=WIDTH):
    """Two blocks that add to a stream of rank 7 in 12 channels; RMS normalization in between.

    `written_out` says by what operator squares are computed; nothing, that none are. `scales` is
    the shape of what normalized values are multiplied by, None where that is computed.
    """
    weights, nodes = {}, []

    def constant(array):
        weights[f"c{len(weights)}"] = np.asarray(array, np.float32)
        return f"c{len(weights) - 1}"

    def add(op_type, *inputs, **attributes):
        nodes.append(helper.make_node(op_type, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def normalized(x):
        if scales is None:
            scale = add("Mul", add("ReduceMax", "x", keepdims=0), constant(np.ones(WIDTH)))
        else:
            scale = constant(random.uniform(0.5, 2, scales))
        if not written_out:
            return add("RMSNormalization", x, scale, axis=-1)
        square = add("Pow", x, constant(2.0)) if written_out == "Pow" else add("Mul", x, x)
        mean = add("ReduceMean", square, axes, keepdims=1)
        root = add("Sqrt", add("Add", mean, constant(1e-5)))
        return add("Mul", add("Div", x, root), scale)

    weights["axes"] = np.array([-1], np.int64)
    axes = "axes"
    space = random.standard_normal((RANK, WIDTH))
    stream = add("MatMul", "x", constant(random.standard_normal((5, RANK)) @ space))
    stream = add("Add", stream, constant(random.standard_normal(RANK) @ space))
    for _ in range(2):
        hidden = add("MatMul", normalized(stream), constant(random.standard_normal((WIDTH, 9))))
        new = constant(random.standard_normal((9, RANK)) @ space / 5)
        stream = add("Add", stream, add("MatMul", add("Relu", hidden), new))
    head = constant(random.standard_normal((WIDTH, 4)))
    nodes.append(helper.make_node("MatMul", [normalized(stream), head], ["y"]))
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, 4])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = from_proto(proto)
    infer_shapes(model)
    return model


@pytest.mark.parametrize("written_out", ["", "Pow", "Mul"])
def test_a_stream_of_low_rank_is_cut_to_it_at_no_loss(written_out):
    random = np.random.default_rng(0)
    model = decoder(written_out, random)
    x = random.standard_normal((256, 6, 5)).astype(np.float32)
    want = Session(model).run({"x": x})["y"]
    errors = {}
    for rotates in (False, True):
        rotated = model.clone()
        if rotates:
            result = PassManager([RotateStreams()]).run(rotated, Context({"x": x}))[0].result
            assert len(result.statistics["streams"]) == 1, result.notes
            np.testing.assert_allclose(Session(rotated).run({"x": x})["y"], want, atol=1e-3)
        infer_sizes(rotated)
        plan = PruningPlan(rotated.clone(), normalized=True)
        cut = {g.name: [np.arange(RANK)] for g in plan.free if g.dims[0].size == WIDTH}
        assert len(cut) == 1
        record = plan.apply(plan.selection(cut))
        infer_sizes(plan.model)
        recover(rotated, plan.model, record, [{"x": x[k::8]} for k in range(8)])
        have = Session(plan.model).run({"x": x})["y"]
        errors[rotates] = np.sqrt(np.square(have - want).mean()) / want.std()
    assert errors[True] < 0.03 < errors[False]


@pytest.mark.parametrize(
    ("written_out", "scales"), [("", None), ("Mul", (6, WIDTH)), ("Pow", (6, WIDTH)), ("Mul", 1)]
)
def test_other_scales_than_one_for_each_channel_stay_where_they_are(written_out, scales):
    """Computed ones, one for all, and those that differ by position."""
    random = np.random.default_rng(0)
    model = decoder(written_out, random, scales)
    x = random.standard_normal((64, 6, 5)).astype(np.float32)
    want = Session(model).run({"x": x})["y"]
    result = PassManager([RotateStreams()]).run(model, Context({"x": x}))[0].result
    assert len(result.statistics["streams"]) == (scales == 1), result.notes
    np.testing.assert_allclose(Session(model).run({"x": x})["y"], want, atol=1e-3)


@pytest.mark.parametrize("name", ["gqa_decoder", "mobilenet_v2", "bert", "resnet8"])
def test_architectures_compute_the_same(name):
    model = zoo.load_tiny(name, "folded")
    infer_sizes(model)
    feeds = [zoo.random_inputs(model, seed=seed) for seed in range(6)]
    arrays = {n: np.concatenate([feed[n] for feed in feeds]) for n in feeds[0]}
    rotated = model.clone()
    result = PassManager([RotateStreams()]).run(rotated, Context(arrays))[0].result
    wanted = {"gqa_decoder": 1, "mobilenet_v2": 3, "bert": 0, "resnet8": 0}[name]
    assert len(result.statistics["streams"]) >= wanted, result.notes
    assert wanted or not result.statistics["streams"]
    before, after = (Session(m).run(feeds[0]) for m in (model, rotated))
    for output, array in before.items():
        np.testing.assert_allclose(after[output], array, atol=1e-3 * np.abs(array).max())


def test_without_samples_nothing_is_rotated_and_that_is_said():
    model = decoder("", np.random.default_rng(0))
    result = PassManager([RotateStreams()]).run(model, Context())[0].result
    assert "no calibration samples" in str(result.notes[0])


CARRIED = {
    "nothing": "%c = Identity(%s)",
    "moved": "%r = Transpose(%s) {perm = [0, 2, 1]}\n%c = Transpose(%r) {perm = [0, 2, 1]}",
    "negated": "%c = Neg(%s)",
    "dropped": "%c = Dropout(%s)",
    "flat": "%f = Reshape(%s, %rows)\n%c = Unsqueeze(%f, %first)",
    "parts": "%a, %b = Split(%s, %halves) {axis = 1}\n%c = Concat(%b, %a) {axis = 1}",
    "averaged": "%c = ReduceMean(%s) {axes = [1], keepdims = 1}",
    "summed": "%c = ReduceSum(%s, %along)",
    "a part": "%c = Slice(%s, %first, %five, %along)",
    "picked": "%c = Gather(%s, %halves) {axis = 1}",
    "picked from behind": "%c = Gather(%s, %halves) {axis = -2}",
    "multiplied": "%c = Mul(%s, %number)",
    "multiplied by": "%c = Mul(%number, %s)",
    "divided": "%c = Div(%s, %number)",
    "multiplied by step": "%c = Mul(%s, %steps)",
    "less a vector": "%c = Sub(%s, %vector)",
    "added to itself": "%c = Sum(%s, %s)",
}  # fmt: skip


@pytest.mark.parametrize("carried", CARRIED)
def test_channels_of_a_rotated_stream_are_its_principal_axes(carried):
    """Uncorrelated, and in the order of how much they move, in what the layers read."""
    random = np.random.default_rng(2)
    sizes = {"w": (5, 8), "u": (8, 4), "v": (8, 3)}
    constants = "\n".join(
        f"const %{n}: float[{s[0]}, {s[1]}] = {random.standard_normal(s).round(3).tolist()}"
        for n, s in sizes.items()
    )
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[n, 6, 5]) -> (%y: float[*], %z: float[*]) {{
  {constants}
  const %rows: int64[2] = [-1, 8]
  const %first: int64[1] = [0]
  const %halves: int64[2] = [2, 4]
  const %along: int64[1] = [1]
  const %five: int64[1] = [5]
  const %number: float[] = 1.5
  const %steps: float[6, 1] = [[1], [2], [3], [4], [5], [6]]
  const %vector: float[8] = [1, 2, 3, 4, 5, 6, 7, 8]
  %s = MatMul(%x, %w)
  {CARRIED[carried]}
  %y = MatMul(%c, %u)
  %z = MatMul(%c, %v)
}}""")
    infer_sizes(model)
    x = random.standard_normal((256, 6, 5)).astype(np.float32)
    want = Session(model).run({"x": x})
    (record,) = PassManager([RotateStreams()]).run(model, Context({"x": x}))
    assert len(record.result.statistics["streams"]) == 1, record.result.notes
    found = Session(model).run({"x": x})
    for name, array in want.items():
        np.testing.assert_allclose(found[name], array, atol=1e-3)
    read = next(v for v in model.graph.values() if v.name == "c")
    model.graph.replace_outputs([read])
    rows = Session(model).run({"x": x})["c"].reshape(-1, 8)
    moments = rows.T @ rows / len(rows)
    spread = np.diag(moments)
    assert all(spread[:-1] >= spread[1:] - 1e-6)
    np.testing.assert_allclose(moments, np.diag(spread), atol=1e-3 * spread[0])


APART = {
    "%c = Relu(%s)": 8,
    "%c = Slice(%s, %first, %five, %two)": 5,
    "%c = Slice(%s, %first, %five, %last)": 5,
    "%c = Gather(%s, %picked) {axis = 2}": 2,
    "%c = Gather(%s, %picked) {axis = -1}": 2,
    "%a, %b = Split(%s) {axis = 2}\n%c = Add(%a, %b)": 4,
    "%c = Concat(%s, %s) {axis = 2}": 16,
    "%c = ReduceMean(%s) {axes = [2], keepdims = 1}": 1,
    "%c = ReduceMean(%s) {axes = [1, 2], keepdims = 1}": 1,
    "%c = ReduceMax(%s) {axes = [1], keepdims = 1}": 8,
    "%c = ReduceL1(%s) {axes = [2], keepdims = 1}": 1,
    "%c = ReduceSumSquare(%s) {axes = [1, 2], keepdims = 1}": 1,
    "%q = Mul(%s, %s)\n%c = ReduceMean(%q) {axes = [1], keepdims = 1}": 8,
    "%q = Pow(%s, %number)\n%c = ReduceMean(%q) {axes = [2], keepdims = 1}": 1,
    "%c = Softmax(%s) {axis = -1}": 8,
    "%c = Mul(%s, %s)": 8,
    "%r = Neg(%s)\n%c = Mul(%s, %r)": 8,
    "%c = Div(%number, %s)": 8,
    "%c = Add(%s, %number)": 8,
    "%m = Greater(%s, %number)\n%c = Where(%m, %s, %number)": 8,
    "%c, %m = Dropout(%s)\n%o = Not(%m)": 8,
    "%c = Reshape(%s, %flat)": 48,
    "%t = Transpose(%s) {perm = [0, 2, 1]}\n%c = MatMul(%t, %s)": 8,
}
"""Nodes behind a stream, and how many channels a layer reads then."""


@pytest.mark.parametrize("node", APART)
def test_streams_whose_channels_are_told_apart_stay(node):
    random = np.random.default_rng(2)
    read = APART[node]
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[n, 6, 5]) -> (%y: float[*]{", %o: bool[*]" if "%o" in node else ""}) {{
  const %w: float[5, 8] = {random.standard_normal((5, 8)).tolist()}
  const %u: float[{read}, 4] = {random.standard_normal((read, 4)).tolist()}
  const %first: int64[1] = [0]
  const %five: int64[1] = [5]
  const %two: int64[1] = [2]
  const %last: int64[1] = [-1]
  const %picked: int64[2] = [3, 5]
  const %number: float[] = 3
  const %flat: int64[2] = [0, 48]
  %s = MatMul(%x, %w)
  {node}
  %y = MatMul(%c, %u)
}}""")
    infer_sizes(model)
    x = random.standard_normal((64, 6, 5)).astype(np.float32)
    (record,) = PassManager([RotateStreams()]).run(model, Context({"x": x}))
    assert not record.result.statistics["streams"]
