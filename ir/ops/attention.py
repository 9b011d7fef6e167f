"""Fused attention operators: heads and head sizes are axes of their own."""

from __future__ import annotations

import math

from ..axes import dims
from ..axes.dims import Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..axes.rewriting import Rewriting
from ..graph import Node
from .elementwise import broadcast
from .records import MICROSOFT, ShapeOf, Trait, macs, rule

SOFTMAX = "softmax over this axis"


def _keep_scale(r: NodeAxes, size: int, head: Axis) -> None:
    """The default scale is 1/sqrt(head size); keep that of the original head size."""

    def rewrite(rewriter: Rewriting) -> None:
        if rewriter.changes(head) and not r.node.get("scale"):
            r.node.set("scale", 1.0 / math.sqrt(size))

    r.rewrite(rewrite)


def _split_heads(r: NodeAxes, axis: Axis, heads: int, label: str) -> tuple[Axis, Axis]:
    """heads * head size; returns both."""
    total = dims.axis_size(axis)
    if total is None or heads < 1 or total % heads:
        raise Opaque(f"{total} channels don't make {heads} heads")
    head_count, head_size = r.fresh(heads, f"{label}_heads"), r.fresh(total // heads, "head_size")
    r.unify(axis, dims.product([head_count, head_size]))
    return head_count, head_size


@rule("Attention", traits=Trait.WEIGHTED | Trait.INNER_AXES)
def attention(r: NodeAxes) -> None:
    """Opset 23: q, k, v as [B, heads, S, D] or [B, S, heads*D]; grouped-query included."""
    q, k, v = r.axes(0), r.axes(1), r.axes(2)
    flat = len(q) == 3
    if flat:
        kv = int(r.get("kv_num_heads", 0))
        q_heads, q_size = _split_heads(r, q[2], int(r.get("q_num_heads", 0)), "q")
        k_heads, k_size = _split_heads(r, k[2], kv, "kv")
        v_heads, v_size = _split_heads(r, v[2], kv, "kv")
        q_steps, k_steps, v_steps = q[1], k[1], v[1]
    else:
        (_, q_heads, q_steps, q_size), (_, k_heads, k_steps, k_size) = q, k
        _, v_heads, v_steps, v_size = v
    _tie_attention(r, (q_heads, q_size), (k_heads, k_size), (v_heads, v_size))
    for axis in (k[0], v[0]):
        r.unify(q[0], axis)
    r.lock_all((q_steps, k_steps, v_steps), SOFTMAX)
    k_steps = _cached(r, 4, (k[0], k_heads, k_steps, k_size))
    _cached(r, 5, (v[0], v_heads, v_steps, v_size))
    if r.has(6):
        r.unify(r.axes(6)[0], q[0])
    if r.has(3):
        mask = r.axes(3)
        r.lock_all(mask[-1:], SOFTMAX)  # it may be shorter than the keys
        broadcast(r, [(q[0], q_heads, q_steps), mask[:-1]])
    r.set((q[0], q_heads, q_steps, k_steps), 3)
    if flat:
        r.set((q[0], q_steps, dims.product([q_heads, v_size])))
        r.rewrite(lambda w: _set_heads(r, w, q_heads, k_heads))
    else:
        r.set((q[0], q_heads, q_steps, v_size))


def _cached(r: NodeAxes, index: int, axes: Axes) -> Axis:
    """Tie keys or values [B, heads, steps, size] to what is cached; returns all of their steps."""
    batch, heads, steps, size = axes
    if r.has(index):
        past = r.axes(index)
        for whole, part in zip(past, axes, strict=True):
            if part is not steps:
                r.unify(whole, part)
        r.lock(past[2], SOFTMAX)
        total = dims.axis_size(past[2]), dims.axis_size(steps)
        steps = r.literal(None if None in total else sum(filter(None, total)), SOFTMAX)
    r.set((batch, heads, steps, size), index - 3)
    return steps


def _tie_attention(
    r: NodeAxes, q: tuple[Axis, Axis], k: tuple[Axis, Axis], v: tuple[Axis, Axis]
) -> None:
    """Query heads are kv heads times repeats; head sizes of q and k are contracted."""
    r.unify(k[0], v[0])
    q_count, kv_count = dims.axis_size(q[0]), dims.axis_size(k[0])
    size = dims.axis_size(q[1])
    if q_count is None or not kv_count or q_count % kv_count or size is None:
        raise Opaque(f"{q_count} query heads over {kv_count} key heads")
    r.unify(q[0], dims.product([k[0], r.fresh(q_count // kv_count, "repeats")]))
    r.unify(q[1], k[1])
    r.contract(q[1], 0, 1)
    _keep_scale(r, size, q[1])


def _set_heads(r: NodeAxes, rewriter: Rewriting, q_heads: Axis, kv_heads: Axis) -> None:
    r.node.set("q_num_heads", rewriter.size(q_heads))
    r.node.set("kv_num_heads", rewriter.size(kv_heads))


@rule("Attention", domain=MICROSOFT, traits=Trait.INNER_AXES)
def contrib_attention(r: NodeAxes) -> None:
    """input [B, S, I], weights [I, 3 * heads * D], bias [3 * heads * D] -> [B, S, heads * D]"""
    if any(r.has(i) for i in range(4, 7)) or any(v is not None for v in r.node.outputs[1:]):
        raise Opaque("a key-value cache or extra outputs")
    if r.get("qkv_hidden_sizes") or r.get("do_rotary", 0):
        raise Opaque("unequal sizes of query, key and value, or rotary embedding inside")
    x, weight, bias = r.axes(0), r.axes(1), r.axes(2)
    heads = int(r.get("num_heads", 0))
    total = dims.axis_size(weight[1])
    if total is None or heads < 1 or total % (3 * heads):
        raise Opaque(f"{total} columns don't make 3 x {heads} heads")
    size = total // (3 * heads)
    count, head = r.fresh(heads, "heads"), r.fresh(size, "head_size")
    fused = dims.product([r.factor(3, "query, key and value"), count, head])
    r.unify(weight[1], fused)
    r.unify(bias[0], fused)
    r.unify(x[2], weight[0])
    r.contract(x[2], 0)
    r.lock(x[1], SOFTMAX)
    if r.has(3):
        mask = r.axes(3)
        if len(mask) > 1:  # of rank 1 it may hold two or three numbers a sample
            r.unify(mask[0], x[0])
        r.lock_all(mask if len(mask) < 2 else mask[1:], "an attention mask")
    _keep_scale(r, size, head)
    r.rewrite(lambda w: r.node.set("num_heads", w.size(count)))
    r.set((x[0], x[1], dims.product([count, head])))


@rule("MultiHeadAttention", domain=MICROSOFT, traits=Trait.INNER_AXES)
def multi_head_attention(r: NodeAxes) -> None:
    """query, key, value [B, S, heads * D] with an optional bias over all three."""
    if any(r.has(i) for i in range(4, len(r.node.inputs))):
        raise Opaque("masks, biases of scores or a key-value cache")
    if not (r.has(1) and r.has(2)) or any(v is not None for v in r.node.outputs[1:]):
        raise Opaque("packed inputs or extra outputs")
    operands = [r.axes(i) for i in range(3)]
    if any(len(axes) != 3 for axes in operands):
        raise Opaque("inputs have to be of rank 3")
    heads = int(r.get("num_heads", 0))
    split = [
        _split_heads(r, axes[2], heads, name)
        for axes, name in zip(operands, ("q", "k", "v"), strict=True)
    ]
    _tie_attention(r, *split)
    for axes in operands:
        r.unify(operands[0][0], axes[0])
        r.lock(axes[1], SOFTMAX)
    if r.has(3):
        r.unify(r.axes(3)[0], dims.concat([axes[2] for axes in operands]))
    head_size = dims.axis_size(split[0][1])
    assert head_size is not None
    r.rewrite(lambda w: r.node.set("num_heads", w.size(split[0][0])))
    q = operands[0]
    r.set((q[0], q[1], dims.product([split[0][0], split[2][1]])))


@rule("RotaryEmbedding", traits=Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO | Trait.INDEXES)
def rotary_embedding(r: NodeAxes) -> None:
    """Rotation pairs elements of a head; heads stay free, everything else doesn't."""
    x = r.axes(0)
    heads = int(r.get("num_heads", 0))
    if len(x) == 3 and heads:
        count, size = _split_heads(r, x[2], heads, "rotary")
        r.rewrite(lambda w: r.node.set("num_heads", w.size(count)))
        batch, steps = x[0], x[1]
    elif len(x) == 4:
        batch, _, steps, size = x
    else:
        raise Opaque("the number of heads is not given")
    r.lock(size, "elements of a head are rotated in pairs")
    r.lock(steps, "every position has a rotation of its own")
    for index in range(1, len(r.node.inputs)):
        if not r.has(index):
            continue
        axes, positions = r.axes(index), "positions and rotations"
        if len(axes) == 3 or (index == 3 and len(axes) == 2):  # a sequence's own
            r.unify(axes[0], batch)
            axes = axes[1:]
        r.lock_all(axes, positions)
    r.set(x)


def scores_and_values(query: tuple[int, ...], key: tuple[int, ...], value_size: int) -> int:
    """Multiply-accumulates of q k^T and of the product with v, for [..., S, D] operands."""
    batch, steps, size = math.prod(query[:-2]), query[-2], query[-1]
    return batch * steps * key[-2] * (size + value_size)


@macs("Attention")
@macs("MultiHeadAttention", domain=MICROSOFT)
def attention_macs(node: Node, shape: ShapeOf) -> int:
    query, key, value = (shape(node.input(i)) for i in range(3))
    if len(query) == 3:
        heads = node.get("kv_num_heads", 1)
        ratio = node.get("q_num_heads", 1) // max(1, heads)
        return scores_and_values(query, key, value[-1] * ratio)
    return scores_and_values(query, key, value[-1])


@macs("Attention", domain=MICROSOFT)
def contrib_attention_macs(node: Node, shape: ShapeOf) -> int:
    batch, steps, size = shape(node.input(0))
    columns = shape(node.input(1))[1]
    return batch * steps * (size * columns + 2 * steps * columns // 3)
