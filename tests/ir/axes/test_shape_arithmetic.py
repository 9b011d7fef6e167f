"""Sizes that are computed from others at run time, in exporters' many styles.

Around attention, folded batches, shuffles, halves and fills: the pruned model runs at every
batch size and length, and computes what the masked original does; without channels that are
zero anyway, what the original itself does.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper

from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.prune import PruneChannels

from .network import Network
from .oracle import assert_equals_masked, check_seeds, prune_at_random
from .plain import Plain
from .plain import check as check_plain
from .test_planted import check as check_planted

CHUNK = 15
"""Networks of one test."""

SIZES = [(5, 7), (1, 1), (2, 3)]
"""Batch sizes and lengths: those the network is written for, then others."""


class Arithmetic(Network):
    """Scalars of shapes, each computed in one of several ways."""

    def scalar(self, number):
        return self.small(np.array(number, np.int64))

    def size(self, x, axis):
        """The size of an axis at run time."""
        kind = self.choose(["gather", "gather", "vector", "slice", "part"])
        if kind == "part" and self.opset >= 15:
            shape = self.hidden("Shape", [x], start=axis, end=axis + 1)
            return self.squeezed(shape)
        shape = self.hidden("Shape", [x])
        if self.maybe(4):
            shape = self.hidden("Cast", [shape], to=TensorProto.INT64)
        if kind == "slice":
            return self.squeezed(self.hidden("Slice", [shape, *map(self.ints, (axis, axis + 1))]))
        if kind == "vector":
            return self.squeezed(self.hidden("Gather", [shape, self.ints(axis)]))
        return self.hidden("Gather", [shape, self.scalar(axis)])

    def squeezed(self, vector):
        return self.hidden("Squeeze", [vector, self.ints(0)] if self.maybe() else [vector])

    def vector(self, scalar):
        if self.maybe(3):
            return self.hidden("Reshape", [scalar, self.ints(1)])
        return self.hidden("Unsqueeze", [scalar, self.ints(0)])

    def either(self, x, axis, number):
        """A size that is known: as a constant or from the value."""
        return self.size(x, axis) if self.maybe() else self.scalar(number)

    def times(self, a, number):
        """A size times a number."""
        kind = self.choose(["mul", "mul", "swapped", "prod", "halved", "difference", "cast"])
        if kind == "swapped":
            return self.hidden("Mul", [self.scalar(number), a])
        if kind == "prod":
            both = self.hidden("Concat", [self.vector(a), self.ints(number)], axis=0)
            return self.hidden("ReduceProd", [both], keepdims=0)
        if kind == "halved":
            return self.hidden(
                "Div", [self.hidden("Mul", [a, self.scalar(2 * number)]), self.scalar(2)]
            )
        if kind == "difference":
            return self.hidden("Sub", [self.hidden("Mul", [a, self.scalar(number + 1)]), a])
        if kind == "cast":
            a = self.hidden("Cast", [a], to=TensorProto.INT32)
            product = self.hidden("Mul", [a, self.small(np.array(number, np.int32))])
            return self.hidden("Cast", [product], to=TensorProto.INT64)
        return self.hidden("Mul", [a, self.scalar(number)])

    def target(self, scalars, free=None):
        """A shape of scalars; the one at `free` may be -1."""
        parts = [
            self.ints(-1) if i == free and self.maybe() else self.vector(s)
            for i, s in enumerate(scalars)
        ]
        shape = self.hidden("Concat", parts, axis=0)
        if self.maybe(4):  # as expand does: -1 keeps a size
            one = helper.make_tensor("value", TensorProto.INT64, [1], [1])
            ones = self.hidden("ConstantOfShape", [self.ints(len(parts))], value=one)
            minus = self.hidden("Mul", [ones, self.scalar(-2)])
            shape = self.hidden("Where", [self.hidden("Equal", [shape, minus]), ones, shape])
        return shape

    def view(self, x, scalars, shape, free=None):
        return self.node("Reshape", [x, self.target(scalars, free)], shape)

    def swap(self, x, *perm):
        return self.node("Transpose", [x], [self.shapes[x][i] for i in perm], perm=perm)

    def linear(self, x, width):
        *outer, inner = self.shapes[x]
        y = self.node("MatMul", [x, self.weights(inner, width)], (*outer, width))
        return self.node("Add", [y, self.weights(width)], (*outer, width))


def attention(net, x):
    """[N, S, C] with batch and heads folded into one axis: view(batch * heads, -1, size)."""
    n, s, _ = net.shapes[x]
    heads, size = net.choose([2, 3, 4]), net.choose([2, 3, 4])
    batch, length = net.size(x, 0), net.size(x, 1)
    folded = net.times(batch, heads)

    def project():
        y = net.linear(x, heads * size)
        target = [batch, length, net.scalar(heads), net.scalar(size)]
        y = net.view(y, target, (n, s, heads, size), free=net.choose([2, 3]))
        y = net.swap(y, 0, 2, 1, 3)
        return net.view(
            y, [folded, length, net.scalar(size)], (n * heads, s, size), free=net.choose([1, 2])
        )

    q, k, v = project(), project(), project()
    scores = (n * heads, s, s)
    z = net.node("MatMul", [q, net.swap(k, 0, 2, 1)], scores)
    if net.maybe():  # masks are added by batch and head
        z = net.view(z, [batch, net.scalar(heads), length, length], (n, heads, s, s), free=1)
        z = net.node("Add", [z, net.small(np.float32(0.5))], (n, heads, s, s))
        z = net.view(z, [folded, length, length], scores, free=0)
    z = net.node("Softmax", [z], scores, axis=-1)
    y = net.node("MatMul", [z, v], (n * heads, s, size))
    y = net.view(
        y, [batch, net.scalar(heads), length, net.scalar(size)], (n, heads, s, size), free=1
    )
    y = net.swap(y, 0, 2, 1, 3)
    return net.view(y, [batch, length, net.scalar(heads * size)], (n, s, heads * size), free=2)


def folded(net, x):
    """Every channel as a sample of its own."""
    n, s, c = net.shapes[x]
    y = net.swap(x, 0, 2, 1)
    batch, length = net.size(x, 0), net.size(x, 1)
    y = net.view(y, [net.times(batch, c), length], (n * c, s), free=net.choose([0, 1]))
    y = net.node("Relu", [y], (n * c, s))
    y = net.view(y, [batch, net.either(x, 2, c), length], (n, c, s), free=net.choose([0, 1]))
    return net.swap(y, 0, 2, 1)


def shuffled(net, x):
    n, s, c = net.shapes[x]
    groups = net.choose([2, c // 2])
    batch, length, width = net.size(x, 0), net.size(x, 1), net.size(x, 2)
    part = net.hidden("Div", [width, net.scalar(groups)])
    y = net.view(x, [batch, length, net.scalar(groups), part], (n, s, groups, c // groups), free=3)
    y = net.swap(y, 0, 1, 3, 2)
    return net.view(y, [batch, length, net.either(x, 2, c)], (n, s, c), free=2)


def halves(net, x):
    """A gate: sizes of the halves, or bounds between them, are computed."""
    n, s, c = net.shapes[x]
    half = net.hidden("Div", [net.either(x, 2, c), net.scalar(2)])
    if net.maybe():
        rest = net.hidden("Sub", [net.either(x, 2, c), half])
        sizes = net.hidden("Concat", [net.vector(half), net.vector(rest)], axis=0)
        a, b = net.node("Split", [x, sizes], outputs=[(n, s, c // 2)] * 2, axis=2)
    else:
        end = net.times(half, 2)
        middle = net.vector(half)
        a = net.node("Slice", [x, net.ints(0), middle, net.ints(2)], (n, s, c // 2))
        b = net.node("Slice", [x, middle, net.vector(end), net.ints(2)], (n, s, c // 2))
    return net.node("Mul", [a, net.node("Sigmoid", [b], (n, s, c // 2))], (n, s, c // 2))


def filled(net, x):
    """A constant as large as a value."""
    n, s, c = net.shapes[x]
    shape = net.target([net.size(x, 0), net.size(x, 1), net.either(x, 2, c)])
    if net.maybe():
        fill = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.25])
        y = net.node("ConstantOfShape", [shape], (n, s, c), value=fill)
    else:
        y = net.node("Expand", [net.weights(1, 1, net.choose([1, c])), shape], (n, s, c))
    return net.node("Mul", [x, y], (n, s, c))


def doubled(net, x):
    """Resized to a computed length."""
    n, s, c = net.shapes[x]
    y = net.swap(x, 0, 2, 1)
    sizes = net.target([net.size(x, 0), net.either(x, 2, c), net.times(net.size(x, 1), 2)])
    y = net.node("Resize", [y, "", "", sizes], (n, c, 2 * s), mode="nearest")
    return net.swap(y, 0, 2, 1)


def scaled(net, x):
    """By a square root of the width, which stays that of the original."""
    width = net.hidden("Cast", [net.size(x, 2)], to=TensorProto.FLOAT)
    return net.node("Div", [x, net.hidden("Sqrt", [width])], net.shapes[x])


BLOCKS = [attention, attention, folded, folded, shuffled, halves, filled, doubled, scaled]


def arithmetic(seed, planted=False):
    """A network, and inputs of several sizes."""
    random = np.random.default_rng(seed)

    def choose(options):
        options = list(options)
        return options[random.integers(len(options))]

    net = Arithmetic(choose, opset=choose([13, 17, 21]), seed=seed, planted=planted)
    x = net.input((*SIZES[0], 6))
    net.inputs[0] = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", "S", 6])
    y = net.linear(x, 8)
    for _ in range(choose([1, 1, 2, 3])):
        if net.shapes[y][1] > 7 or net.shapes[y][2] % 4:
            y = net.linear(y, 8)
        y = choose(BLOCKS)(net, y)
    out = net.linear(y, 3)
    net.dynamic = True
    feeds = [{x: net.random.standard_normal((*s, 6)).astype(np.float32)} for s in SIZES]
    return net.model([out]), feeds


def check(seed):
    proto, feeds = arithmetic(seed)
    share = (None, 0.5, 1.0)[seed % 3]
    result = prune_at_random(from_proto(proto), np.random.default_rng(seed), share)
    for sample in feeds:
        assert_equals_masked(result, sample)
    proto, feeds = arithmetic(seed, planted=True)
    zero = [check_planted(from_proto(proto), sample, seed) for sample in feeds]
    return bool(result.selection), max(zero) > 0


def check_chunk(chunk):
    seeds = range(chunk * CHUNK, (chunk + 1) * CHUNK)
    pruned = check_seeds("arithmetic", check, seeds)
    assert (pruned > (CHUNK / 2, CHUNK / 8)).all(), pruned


@pytest.mark.parametrize("chunk", range(1))
def test_computed_sizes_keep_in_step(chunk):
    check_chunk(chunk)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(1, 4))
def test_many_computed_sizes_keep_in_step(chunk):
    check_chunk(chunk)


class TestWidthsOfOne:
    """What pruning to a single index must not be taken for."""

    @pytest.mark.parametrize("opset", [11, 17])
    def test_squeeze_without_axes(self, opset):
        net = Plain(opset=opset)
        x = net.node("GlobalAveragePool", [net.relu(net.conv(net.image(), 2))], (2, 2, 1, 1))
        check_plain(net, net.gemm(net.node("Squeeze", [x], (2, 2)), 3), [2])

    def test_broadcast_against_a_column(self):
        net = Plain()
        x = net.input((3, 4))
        y = net.add(net.gemm(x, 5), net.gemm(x, 1))
        check_plain(net, net.gemm(y, 3), [5])

    def test_a_head_and_a_half(self):
        """Two heads, multiplied with a value that all heads share."""
        net = Plain()
        x = net.sequence()
        q = net.heads(net.linear(x, 6), 2)
        shared = net.heads(net.linear(x, 3), 1)
        y = net.transpose(net.mul(q, shared), 0, 2, 1, 3)
        check_plain(net, net.linear(net.reshape(y, [[0], [1], [2, 3]]), 4), [2, 3])

    def test_expanded_rows(self):
        net = Plain()
        x = net.unsqueeze(net.gemm(net.input((2, 4)), 3), [1])
        y = net.node("Expand", [x, net.ints(2, 5, 3)], (2, 5, 3))
        check_plain(net, net.linear(y, 4), [3])


@pytest.mark.parametrize("order", ["channels first", "channels last"])
def test_channels_flattened_with_a_size_that_only_a_run_knows(order):
    """One axis of channels and pixels, of which there is any number."""
    last = order == "channels last"
    move = "%m = Transpose(%r) {perm = [0, 2, 3, 1]}" if last else "%m = Identity(%r)"
    back = "[0, -1, 6]" if last else "[0, 6, -1]"
    weights = np.random.default_rng(0).standard_normal((6, 2, 1, 1)).round(2).tolist()
    text = f"""model <ir_version = 8, opset = ["" = 13]>
graph g (%x: float[n, 2, h, w]) -> (%y: float[n, 6]) {{
  const %k: float[6, 2, 1, 1] = {weights}
  const %flat: int64[2] = [0, -1]
  const %parts: int64[3] = {back}
  const %d: float[6, 6] = {np.random.default_rng(1).standard_normal((6, 6)).round(2).tolist()}
  %c = Conv(%x, %k)
  %r = Relu(%c)
  {move}
  %f = Reshape(%m, %flat)
  %s = Sigmoid(%f)
  %p = Reshape(%s, %parts)
  %a = ReduceMean(%p) {{axes = [{1 if last else 2}], keepdims = 0}}
  %y = MatMul(%a, %d)
}}"""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        result = prune_at_random(parse_model(text), rng, 0.5)
        assert any(len(kept) < 6 for kept in result.selection.kept.values())
        for shape in ((1, 2, 4, 4), (3, 2, 1, 5)):
            x = rng.standard_normal(shape).astype(np.float32)
            assert_equals_masked(result, {"x": x})


@pytest.mark.parametrize("node", ["BitwiseXor(%c, %one)", "Mod(%one, %c)", "CumSum(%c, %zero)"])
def test_sizes_that_are_computed_with_as_data_are_written_down(node: str) -> None:
    """Their axes may still lose channels."""
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 18]>
graph g (%x: float[n, 6]) -> (%y: float[n, 3], %z: int64[1]) {{
  const %w: float[6, 16] = {np.ones((6, 16)).tolist()}
  const %v: float[16, 3] = {np.ones((16, 3)).tolist()}
  const %zero: int64[] = 0
  const %one: int64[1] = [1]
  %h = MatMul(%x, %w)
  %y = MatMul(%h, %v)
  %s = Shape(%h)
  %c = Gather(%s, %one)
  %z = {node}
}}""")
    feeds = {"x": np.ones((2, 6), np.float32)}
    expected = Session(model).run(feeds)["z"]
    statistics = PruneChannels(ratio=0.5).run(model).statistics
    assert statistics["parameters_after"] < statistics["parameters_before"]
    np.testing.assert_array_equal(Session(model).run(feeds)["z"], expected)
