"""Queries make up for what keys lose, in every form in which attention is written."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.recovery import recover
from secateur.passes.prune.scores import find_score_products
from secateur.passes.sizes import infer_sizes

TOKENS, WIDTH, HEADS, SIZE, LOST = 6, 16, 3, 6, 2

FORMS = ["decomposed", "scaled", "fused", "operator", "operator of rank 3", "multi"]


class Writer:
    def __init__(self):
        self.random = np.random.default_rng(0)
        self.nodes, self.weights = [], []

    def constant(self, array, dtype=np.float32):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def add(self, op_type, *inputs, outputs=1, **attributes):
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
        return names[0] if outputs == 1 else names


def attention(form):
    """A layer of it, whose keys' last dimensions in each head tell nothing new."""
    w = Writer()
    queries = w.random.standard_normal((WIDTH, HEADS, SIZE))
    keys = w.random.standard_normal((WIDTH, HEADS, SIZE)) / 2
    mixed = w.random.standard_normal((HEADS, SIZE - LOST, LOST)) / 2
    keys[:, :, -LOST:] = np.einsum("whs,hsl->whl", keys[:, :, :-LOST], mixed)
    values = w.random.standard_normal((WIDTH, HEADS, 4))
    biases = [w.random.standard_normal(HEADS * n) for n in (SIZE, SIZE, 4)]
    matrices = [m.reshape(WIDTH, -1) for m in (queries, keys, values)]
    if form == "fused":
        joined = w.add("MatMul", "x", w.constant(np.concatenate(matrices, axis=1)))
        joined = w.add("Add", joined, w.constant(np.concatenate(biases)))
        sizes = w.constant([m.shape[1] for m in matrices], np.int64)
        q, k, v = w.add("Split", joined, sizes, outputs=3, axis=2)
    else:
        q, k, v = (
            w.add("Add", w.add("MatMul", "x", w.constant(m)), w.constant(b))
            for m, b in zip(matrices, biases, strict=True)
        )
    if form == "operator of rank 3":
        seen = w.add("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=HEADS)
    elif form == "multi":
        seen = w.add("MultiHeadAttention", q, k, v, num_heads=HEADS, domain="com.microsoft")
    else:
        q, k, v = (
            w.add(
                "Transpose",
                w.add("Reshape", a, w.constant([0, 0, HEADS, -1], np.int64)),
                perm=perm,
            )
            for a, perm in (
                (q, [0, 2, 1, 3]),
                (k, [0, 2, 1, 3] if form in ("operator", "keys first") else [0, 2, 3, 1]),
                (v, [0, 2, 1, 3]),
            )
        )
        if form == "operator":
            seen = w.add("Attention", q, k, v)
        else:
            if form == "scaled":
                q = w.add("Mul", w.constant(0.4), q)
            if form == "keys first":
                scores = w.add("MatMul", k, w.add("Transpose", q, perm=[0, 1, 3, 2]))
                scores = w.add("Transpose", scores, perm=[0, 1, 3, 2])
            else:
                scores = w.add("MatMul", q, k)
            scores = w.add("Div", scores, w.constant(2.0)) if form != "scaled" else scores
            seen = w.add("MatMul", w.add("Softmax", scores, axis=-1), v)
        seen = w.add("Transpose", seen, perm=[0, 2, 1, 3])
        seen = w.add("Reshape", seen, w.constant([0, 0, -1], np.int64))
    out = w.constant(w.random.standard_normal((HEADS * 4, WIDTH)))
    w.nodes.append(helper.make_node("MatMul", [seen, out], ["y"]))
    graph = helper.make_graph(
        w.nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", TOKENS, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", TOKENS, WIDTH])],
        w.weights,
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    infer_shapes(model)
    infer_sizes(model)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_queries_make_up_for_keys(form):
    model = attention(form)
    random = np.random.default_rng(1)
    runs = [{"x": random.standard_normal((32, TOKENS, WIDTH)).astype(np.float32)} for _ in range(8)]
    plan = PruningPlan(model.clone())
    cut = {g.name: [np.arange(SIZE - LOST)] for g in plan.free if g.dims[0].size == SIZE}
    assert len(cut) == 1, [(g.name, g.size) for g in plan.free]
    record = plan.apply(plan.selection(cut))
    infer_sizes(plan.model)
    fresh = {"x": random.standard_normal((32, TOKENS, WIDTH)).astype(np.float32)}
    want, lost = Session(model).run(fresh)["y"], Session(plan.model).run(fresh)["y"]
    recover(model, plan.model, record, runs)
    have = Session(plan.model).run(fresh)["y"]
    assert np.abs(lost - want).max() > want.std() / 2
    assert np.sqrt(np.square(have - want).mean()) < 0.05 * want.std()


@pytest.mark.parametrize(("axes", "products"), [("[1]", 1), ("[0, 1]", 0)])
def test_a_vector_is_no_keys(axes, products):
    """Scores are products of two matrices that a run computes."""
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 13]>
graph g (%x: float[5, 6, 3]) -> (%y: float[*]) {{
  const %a: float[3, 3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
  const %b: float[3, 3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
  %q = MatMul(%x, %a)
  %k = MatMul(%x, %b)
  %m = ReduceMean(%k) {{axes = {axes}, keepdims = 0}}
  %t = Transpose(%m)
  %y = MatMul(%q, %t)
}}""")
    infer_shapes(model)
    kept = {name: (None, None, np.arange(2)) for name in "qkmt"}
    assert len(find_score_products(model, kept)) == products
