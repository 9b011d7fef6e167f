"""Attention in the forms that ONNX Runtime's transformer optimizer and model builders write."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from .body import Body, definition
from .quantized import integer_product

LOWEST = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class Heads:
    """Query, key and value as [batch, heads, steps, size]."""

    query: str
    key: str
    value: str


def _heads(b: Body, x: str, heads: int) -> str:
    """[batch, steps, heads * size] to [batch, heads, steps, size]."""
    return b("Transpose", b.reshaped(x, 0, 0, heads, -1), perm=[0, 2, 1, 3])


def _joined(b: Body, x: str, width: int) -> str:
    """[batch, heads, steps, size] to [batch, steps, heads * size]."""
    return b.reshaped(b("Transpose", x, perm=[0, 2, 1, 3]), 0, 0, width)


def _size(b: Body, index: int, axis: int) -> int:
    return b.size(index, axis)


def _softmax(b: Body, x: str) -> str:
    return b("Softmax", x, axis=-1 if b.opset >= 13 else 3)


def _attended(b: Body, heads: Heads, size: int, biases: list[str]) -> str:
    """softmax(query @ key^T * scale + biases) @ value."""
    scale = float(b.attribute("scale", 0.0)) or 1.0 / math.sqrt(size)
    scores = b("MatMul", heads.query, b("Transpose", heads.key, perm=[0, 1, 3, 2]))
    scores = b("Mul", scores, b.value(scale, np.float32))
    for bias in biases:
        scores = b("Add", scores, bias)
    return b("MatMul", _softmax(b, scores), heads.value)


def _masked(b: Body, keep: str) -> str:
    """What is added to scores: nothing where a truth value holds, else the filter's value."""
    filtered = float(b.attribute("mask_filter_value", -10000.0))
    return b("Where", keep, b.value(0.0, np.float32), b.value(filtered, np.float32))


def _causal(b: Body, queries: int, keys: int) -> str:
    """Queries are the last steps; later keys than their own are masked."""
    later = np.triu(np.ones((queries, keys), bool), keys - queries + 1)
    return b.value(np.where(later, np.float32(LOWEST), np.float32(0)))


def _key_mask(b: Body, index: int, batch: int | None, keys: int) -> list[str]:
    """A mask of keys in one of its forms: [batch] ends, [2 * batch] ends and beginnings,
    [batch, keys] or [batch, queries, keys] of which anything but zero counts."""
    mask = b.given(index)
    if mask is None:
        return []
    rank = b.rank(index)
    if rank in (2, 3):
        counts = b("Not", b("Equal", mask, b.number(0, index)))
        return [_masked(b, b.unsqueezed(counts, *((1, 2) if rank == 2 else (1,))))]
    if rank != 1 or batch is None:
        b.fail("a mask of this form isn't supported")
    steps = b.value(np.arange(keys, dtype=np.int32).reshape(1, keys))
    count = _size(b, index, 0)
    ends = mask if count == batch else b.sliced(mask, 0, 0, batch)
    keep = b("Less", steps, b.unsqueezed(ends, 1))
    if count == 2 * batch:
        starts = b.unsqueezed(b.sliced(mask, 0, batch, 2 * batch), 1)
        keep = b("And", keep, b("Not", b("Less", steps, starts)))
    elif count != batch:
        b.fail("a mask of this form isn't supported")
    return [_masked(b, b.unsqueezed(keep, 1, 2))]


def _batch(b: Body) -> int | None:
    size = b.shape(0)[0]
    return size if isinstance(size, int) else None


def _self_attention(b: Body, fused: str, widths: tuple[int, int, int], mask: int, past: int,
                    bias: int | None) -> list[str]:  # fmt: skip
    """Attention of what a product gives: queries, keys and values side by side."""
    heads = int(b.attribute("num_heads", 0))
    if heads < 1 or any(width % heads for width in widths):
        b.fail(f"{widths} channels don't make {heads} heads")
    steps = keys = _size(b, 0, 1)
    query, key, value = (_heads(b, x, heads) for x in b.split(fused, 2, widths))
    if b.given(past) is not None:
        before = b.split(b.required(past), 0, (1, 1))
        key, value = (
            b("Concat", b.squeezed(old, 0), new, axis=2)
            for old, new in zip(before, (key, value), strict=True)
        )
        keys += _size(b, past, 3)
    biases = _key_mask(b, mask, _batch(b), keys)
    if int(b.attribute("unidirectional", 0)):
        biases.append(_causal(b, steps, keys))
    if bias is not None and b.given(bias) is not None:
        biases.append(b.required(bias))
    y = _attended(b, Heads(query, key, value), widths[0] // heads, biases)
    present = b("Concat", b.unsqueezed(key, 0), b.unsqueezed(value, 0), axis=0)
    return [_joined(b, y, widths[2]), present]


def _thirds(b: Body, weights: int) -> tuple[int, int, int]:
    total = _size(b, weights, 1)
    sizes = [int(i) for i in b.attribute("qkv_hidden_sizes", ()) or (total // 3,) * 3]
    if len(sizes) != 3 or sum(sizes) != total:
        b.fail(f"{total} columns aren't queries, keys and values of {sizes}")
    return sizes[0], sizes[1], sizes[2]


@definition("Attention")
def _attention(b: Body) -> list[str]:
    """Inputs: input, weights, bias, mask, past, bias of scores."""
    b.without({6: "shared buffer"}, {"do_rotary": 0, "past_present_share_buffer": 0})
    fused = b("MatMul", b.required(0), b.required(1))
    if b.given(2) is not None:
        fused = b("Add", fused, b.required(2))
    return _self_attention(b, fused, _thirds(b, 1), mask=3, past=4, bias=5)


@definition("QAttention")
def _quantized_attention(b: Body) -> list[str]:
    """Inputs: input, weights, bias, their two scales, mask, their two zero points, past."""
    b.without({}, {"do_rotary": 0, "past_present_share_buffer": 0})
    x, scale, zero = b.required(0), b.required(3), b.given(6)
    fused = integer_product(b, x, zero, scale, (1, 4, 7), 2)
    return _self_attention(b, fused, _thirds(b, 1), mask=5, past=8, bias=None)


@definition("MultiHeadAttention")
def _multi_head_attention(b: Body) -> list[str]:
    """Inputs: query, key, value, their bias, mask of keys, bias of scores, past key and value.

    Key and value may be [batch, heads, steps, size], as they are, or packed beside the query,
    [batch, steps, heads, 3, size], or each other, [batch, steps, heads, 2, size].
    """
    b.without({8: "shared buffer", 9: "indirect cache"}, {})
    heads = int(b.attribute("num_heads", 0))
    query, key, value = b.required(0), b.given(1), b.given(2)
    if heads < 1:
        b.fail("num_heads is missing")
    if key is None:
        if b.rank(0) != 5 or b.given(3) is not None:
            b.fail("a packed form with these operands isn't supported")
        size = width = _size(b, 0, 4)
        parts = [b.squeezed(x, 3) for x in b.split(query, 3, (1, 1, 1))]
        query, key, value = (b("Transpose", x, perm=[0, 2, 1, 3]) for x in parts)
        steps = keys = _size(b, 0, 1)
    else:
        size, steps = _size(b, 0, 2) // heads, _size(b, 0, 1)
        biases = _biases(b, heads, size)
        query = _heads(b, _plus(b, query, biases[0]), heads)
        if value is None:
            if b.rank(1) != 5 or biases[0] is not None:
                b.fail("a packed form with these operands isn't supported")
            width, keys = _size(b, 1, 4), _size(b, 1, 1)
            parts = [b.squeezed(x, 3) for x in b.split(key, 3, (1, 1))]
            key, value = (b("Transpose", x, perm=[0, 2, 1, 3]) for x in parts)
        elif b.rank(1) == 4:
            width, keys = _size(b, 2, 3), _size(b, 1, 2)
        else:
            width, keys = _size(b, 2, 2) // heads, _size(b, 1, 1)
            key = _heads(b, _plus(b, key, biases[1]), heads)
            value = _heads(b, _plus(b, value, biases[2]), heads)
    if b.given(6) is not None:
        key = b("Concat", b.required(6), key, axis=2)
        value = b("Concat", b.required(7), value, axis=2)
        keys += _size(b, 6, 2)
    added = _key_mask(b, 4, _batch(b), keys)
    if int(b.attribute("unidirectional", 0)):
        added.append(_causal(b, steps, keys))
    if b.given(5) is not None:
        added.append(b.required(5))
    y = _attended(b, Heads(query, key, value), size, added)
    return [_joined(b, y, heads * width), key, value]


def _plus(b: Body, x: str, bias: str | None) -> str:
    return x if bias is None else b("Add", x, bias)


def _biases(b: Body, heads: int, size: int) -> list[str | None]:
    """The parts of MultiHeadAttention's bias that are query's, key's and value's."""
    if b.given(3) is None:
        return [None] * 3
    width = heads * size
    total = _size(b, 3, 0)
    if total <= 2 * width:
        b.fail("a bias of this size isn't supported")
    parts: list[str | None] = [*b.split(b.required(3), 0, (width, width, total - 2 * width))]
    return parts


# --- positions as rotations ----------------------------------------------------------------


def _rotated(b: Body, x: str, tables: tuple[str, str], size: int, width: int, pairs: bool) -> str:
    """x [batch, heads, steps, size] turned by tables [batch, 1, steps, width / 2].

    Of each head the first `width` elements are pairs, neighbours or halves apart.
    """
    rest = None
    if width < size:
        x, rest = b.split(x, 3, (width, size - width))
    half = width // 2
    if pairs:
        split = b.reshaped(x, 0, 0, 0, half, 2)
        first, second = (b.squeezed(part, 4) for part in b.split(split, 4, (1, 1)))
    else:
        first, second = b.split(x, 3, (half, half))
    cosine, sine = tables
    turned = [
        b("Sub", b("Mul", first, cosine), b("Mul", second, sine)),
        b("Add", b("Mul", first, sine), b("Mul", second, cosine)),
    ]
    if pairs:
        stacked = b("Concat", *(b.unsqueezed(part, 4) for part in turned), axis=4)
        result = b.reshaped(stacked, 0, 0, 0, width)
    else:
        result = b("Concat", *turned, axis=3)
    return result if rest is None else b("Concat", result, rest, axis=3)


def _tables(b: Body, cosine: int, sine: int, positions: str) -> tuple[str, str]:
    """Rows of both tables for positions [batch, steps], for all heads."""
    first, second = (
        b.unsqueezed(b("Gather", b.required(i), positions, axis=0), 1) for i in (cosine, sine)
    )
    return first, second


@definition("RotaryEmbedding")
def _rotary_embedding(b: Body) -> list[str]:
    """Inputs: [batch, steps, heads * size] or [batch, heads, steps, size], positions, tables."""
    b.without({}, {"is_packed_batching": 0})
    scale = float(b.attribute("scale", 1.0))
    if scale != 1.0:
        b.fail("attribute scale isn't supported")
    flat = b.rank(0) == 3
    heads = int(b.attribute("num_heads", 0))
    width = int(b.attribute("rotary_embedding_dim", 0))
    x, half = b.required(0), _size(b, 2, 1)
    steps = _size(b, 0, 1 if flat else 2)
    if flat:
        total = _size(b, 0, 2)
        size = total // heads if heads else 2 * half
        if total % size:
            b.fail(f"{total} channels don't make heads of {size}")
        x = _heads(b, x, total // size)
    else:
        size = _size(b, 0, 3)
    if b.rank(1) == 1 and b.shape(1)[0] == 1:  # where the first step is
        steps_on = b.value(np.arange(steps, dtype=np.int64).reshape(1, steps))
        positions = b("Add", b.unsqueezed(b.required(1), 0), steps_on)
    else:
        positions = b.required(1)
    pairs = bool(int(b.attribute("interleaved", 0)))
    y = _rotated(b, x, _tables(b, 2, 3, positions), size, width or 2 * half, pairs)
    return [_joined(b, y, _size(b, 0, 2)) if flat else y]


@definition("GroupQueryAttention")
def _group_query_attention(b: Body) -> list[str]:
    """Inputs: query, key, value, their past, the last step of each sample, how many steps there
    are in all, tables of rotations, positions, bias of scores.

    New keys and values follow those that were before in a buffer of fixed size, the present.
    """
    names = {11: "head_sink", 12: "quantized cache", 13: "quantized cache"}
    names |= {14: "normalization", 15: "normalization", 16: "packed batch"}
    zeros = {"smooth_softmax": 0, "qk_output": 0, "sliding_window_cache": 0, "causal": 1}
    b.without(names, {**zeros, "softcap": 0.0, "kv_cache_bit_width": 0})
    heads, groups = int(b.attribute("num_heads", 0)), int(b.attribute("kv_num_heads", 0))
    if heads < 1 or groups < 1 or heads % groups:
        b.fail(f"{heads} heads over {groups}")
    batch, steps, width = (_size(b, 0, axis) for axis in range(3))
    is_half = b.widen()  # computed in float32, as ONNX Runtime does
    if b.given(1) is None:
        size = width // (heads + 2 * groups)
        query, key, value = b.split(b.required(0), 2, (heads * size, groups * size, groups * size))
    else:
        size, query, key, value = width // heads, *(b.required(i) for i in range(3))
    query, key, value = _heads(b, query, heads), _heads(b, key, groups), _heads(b, value, groups)
    before = _size(b, 3, 2) if b.given(3) is not None else 0
    total = b.constant(6)
    known = int(total.reshape(())) if total is not None and total.size == 1 else None
    last = b.cast(b.reshaped(b.required(5), batch, 1), np.int64)
    past = b.integers(0) if before == 0 else b("Sub", last, b.integers(steps - 1))
    if before == 0:
        length = steps
    elif known is None:
        b.fail("how many steps there are in all is computed at run time; --input-value fixes it")
    else:
        length = max(before, known)
    own = b.value(np.arange(steps, dtype=np.int64).reshape(1, steps))
    places = b("Add", past, own)  # [batch or 1, steps]
    if int(b.attribute("do_rotary", 0)):
        pairs = bool(int(b.attribute("rotary_interleaved", 0)))
        positions = b.given(9) or places
        if b.given(9) is None and before == 0:
            positions = places
        tables = _tables(b, 7, 8, positions)
        turned = 2 * _size(b, 7, 1)
        query, key = (_rotated(b, x, tables, size, turned, pairs) for x in (query, key))
    if before:
        key = _appended(b, 3, key, past, (batch, groups, steps, length, size, before))
        value = _appended(b, 4, value, past, (batch, groups, steps, length, size, before))
    slots = b.value(np.arange(length, dtype=np.int64).reshape(1, 1, length))
    reach = b.unsqueezed(places, 2)
    hidden = b("Less", reach, slots)
    window = int(b.attribute("local_window_size", -1))
    if window > 0:
        early = b("Not", b("Less", b("Sub", reach, b.integers(window)), slots))
        hidden = b("Or", hidden, early)
    lowest = b.value(LOWEST, np.float32)
    mask = b.unsqueezed(b("Where", hidden, lowest, b.value(0.0, np.float32)), 1)
    repeated = [_repeated(b, x, heads // groups, length, size) for x in (key, value)]
    biases = [mask] + ([b.required(10)] if b.given(10) is not None else [])
    y = _attended(b, Heads(query, *repeated), size, biases)
    results = [_joined(b, y, heads * size), key, value]
    return [b.cast(x, np.float16) for x in results] if is_half else results


def _repeated(b: Body, x: str, times: int, steps: int, size: int) -> str:
    """[batch, groups, steps, size] with each group for several heads."""
    if times == 1:
        return x
    wide = b("Concat", *[b.unsqueezed(x, 2)] * times, axis=2)
    return b.reshaped(wide, 0, -1, steps, size)


def _appended(b: Body, past: int, new: str, first: str, sizes: tuple[int, ...]) -> str:
    """A buffer with new steps [batch, groups, steps, size] from step `first` [batch, 1] on."""
    batch, groups, steps, length, size, before = sizes
    old = b.required(past)
    if length > before:
        more = np.zeros((batch, groups, length - before, size), np.float32)
        old = b("Concat", old, b.value(more), axis=2)
    slots = b.value(np.arange(length, dtype=np.int64).reshape(1, length))
    source = b("Sub", slots, first)  # [batch, length]: which new step is in a slot
    inside = b("And", b("Not", b("Less", source, b.integers(0))),
               b("Less", source, b.integers(steps)))  # fmt: skip
    limited = b("Min", b("Max", source, b.integers(0)), b.integers(steps - 1))
    shape = b.integers(batch, groups, length, size)
    index = b("Expand", b.unsqueezed(limited, 1, 3), shape)
    moved = b("GatherElements", new, index, axis=2)
    return b("Where", b.unsqueezed(inside, 1, 3), moved, old)
