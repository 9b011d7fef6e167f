"""Networks written out by hand, and the check that exactly the expected groups are free."""

import numpy as np
import onnx

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.passes.prune.computed_weights import analyze_folded
from secateur.passes.prune.groups import find_groups

from .network import BATCH, Network
from .oracle import assert_equals_masked, prune_at_random


class Plain(Network):
    """Constants are initializers, reshape targets say -1 only where they must."""

    def __init__(self, **options):
        super().__init__(lambda options: list(options)[-1], **options)

    def maybe(self, one_in=2):
        return False

    def small(self, array):
        return self.initializer(np.asarray(array))

    def constant(self, array):
        return self.initializer(array)

    # Shorthands ----------------------------------------------------------------------

    def conv(self, x, out, kernel=1, group=1, bias=True):
        n, c, *spatial = self.shapes[x]
        rank = len(spatial)
        inputs = [x, self.weights(out, c // group, *[kernel] * rank)]
        inputs += [self.weights(out)] * bias
        pads = [kernel // 2] * (2 * rank)
        return self.node("Conv", inputs, (n, out, *spatial), group=group, pads=pads)

    def linear(self, x, out, bias=True):
        shape = (*self.shapes[x][:-1], out)
        y = self.node("MatMul", [x, self.weights(self.shapes[x][-1], out)], shape)
        return self.node("Add", [y, self.weights(out)], shape) if bias else y

    def gemm(self, x, out):
        n, c = self.shapes[x]
        return self.node("Gemm", [x, self.weights(out, c), self.weights(out)], (n, out), transB=1)

    def relu(self, x):
        return self.node("Relu", [x], self.shapes[x])

    def add(self, x, y):
        return self.node("Add", [x, y], np.broadcast_shapes(self.shapes[x], self.shapes[y]))

    def mul(self, x, y):
        return self.node("Mul", [x, y], np.broadcast_shapes(self.shapes[x], self.shapes[y]))

    def cat(self, *values, axis=1):
        shape = list(self.shapes[values[0]])
        shape[axis] = sum(self.shapes[v][axis] for v in values)
        return self.node("Concat", list(values), shape, axis=axis)

    def transpose(self, x, *perm):
        return self.node("Transpose", [x], [self.shapes[x][i] for i in perm], perm=perm)

    def softmax(self, x):
        return self.node("Softmax", [x], self.shapes[x], axis=-1)

    def matmul(self, x, y):
        shape = (*self.shapes[x][:-1], self.shapes[y][-1])
        return self.node("MatMul", [x, y], shape)

    def shuffle(self, x, groups):
        c = self.shapes[x][1]
        y = self.reshape(x, [[0], groups, c // groups, [2], [3]])
        return self.reshape(self.transpose(y, 0, 2, 1, 3, 4), [[0], [1, 2], [3], [4]])

    def image(self, channels=3, size=4, batch=2):
        return self.input((BATCH if self.dynamic else batch, channels, size, size))

    def sequence(self, width=6, batch=2):
        return self.input((BATCH if self.dynamic else batch, 4, width))

    def attention(self, q, k, v, merge=None):
        """Softmax of products of [N, heads, S, D]."""
        z = self.softmax(self.matmul(q, self.transpose(k, 0, 1, 3, 2)))
        y = self.transpose(self.matmul(z, v), 0, 2, 1, 3)
        return self.reshape(y, [[0], [1], [2, 3]])

    def heads(self, x, count):
        size = self.shapes[x][-1] // count
        return self.transpose(self.reshape(x, [[0], [1], count, size]), 0, 2, 1, 3)


def check(net, outputs, sizes):
    """Free groups have these sizes, and taking as much as may go is exact."""
    if isinstance(outputs, str):
        outputs = [outputs]
    proto = net.model(outputs)
    onnx.checker.check_model(proto, full_check=True)
    model = from_proto(proto)
    infer_shapes(model)
    groups = find_groups(analyze_folded(model))
    free = sorted(g.size for g in groups if g.lock is None)
    locks = [f"{g.size}: {g.lock}" for g in groups if g.lock is not None]
    assert free == sorted(sizes), "\n".join([str(free), *locks])
    for seed, share in enumerate((None, 0.5, 1.0)):
        result = prune_at_random(from_proto(proto), np.random.default_rng(seed), share)
        assert_equals_masked(result, net.feeds)
        onnx.checker.check_model(to_proto(result.pruned), full_check=True)
    return groups
