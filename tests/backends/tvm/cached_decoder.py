"""A language model that reads and gives caches of keys and values, as the decoder of the zoo with
random weights: grouped-query attention, rotary embedding, RMSNorm, SwiGLU.

`ids` [b, s] are the tokens that are new, `keys0`, `values0`, ... [b, kv_heads, past, size] the
caches of those before. `logits` [b, s, vocabulary] are of the new tokens, `new_keys0`, ... the
caches of all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclasses.dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a decoder; those of the zoo's are 32000, 512, 8, 8, 4 and 1408."""

    vocabulary: int = 100
    width: int = 32
    depth: int = 2
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 48

    @property
    def size(self) -> int:
        return self.width // self.heads


class CachedDecoder:
    """The model in the making."""

    def __init__(self, sizes: DecoderSizes) -> None:
        self.sizes = sizes
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def weights(self, *shape: int, scale: float | None = None) -> Any:
        drawn = self.random.standard_normal(shape) * (scale or shape[0] ** -0.5)
        return drawn.astype(np.float32)

    def node(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def linear(self, x: str, inner: int, outer: int) -> str:
        return self.node("MatMul", x, self.constant(self.weights(inner, outer)))

    def norm(self, x: str) -> str:
        mean = self.node("ReduceMean", self.node("Mul", x, x), axes=[-1])
        root = self.node("Sqrt", self.node("Add", mean, self.constant(np.float32(1e-6))))
        gain = 1 + self.weights(self.sizes.width, scale=0.1)
        return self.node("Mul", self.node("Div", x, root), self.constant(gain))

    def heads(self, x: str, count: int) -> str:
        """[b, s, width] as [b, count, s, size]."""
        parts = self.node("Reshape", x, self.integers(0, 0, count, self.sizes.size))
        return self.node("Transpose", parts, perm=[0, 2, 1, 3])

    def rotated(self, x: str, cos: str, sin: str) -> str:
        half, axis = self.sizes.size // 2, self.integers(3)
        first = self.node("Slice", x, self.integers(0), self.integers(half), axis)
        second = self.node("Slice", x, self.integers(half), self.integers(2**31), axis)
        other = self.node("Concat", self.node("Neg", second), first, axis=3)
        return self.node("Add", self.node("Mul", x, cos), self.node("Mul", other, sin))

    def repeated(self, x: str) -> str:
        """Each head of a cache for all heads of the query that share it."""
        sizes = self.sizes
        apart = self.node("Unsqueeze", x, self.integers(2))
        times = self.integers(1, 1, sizes.heads // sizes.kv_heads, 1, 1)
        every = self.node("Expand", apart, times)
        return self.node("Reshape", every, self.integers(0, sizes.heads, -1, sizes.size))

    def layer(self, x: str, index: int, cos: str, sin: str, mask: str) -> str:
        sizes, y = self.sizes, self.norm(x)
        query = self.heads(self.linear(y, sizes.width, sizes.width), sizes.heads)
        inner = sizes.kv_heads * sizes.size
        key = self.heads(self.linear(y, sizes.width, inner), sizes.kv_heads)
        value = self.heads(self.linear(y, sizes.width, inner), sizes.kv_heads)
        query, key = self.rotated(query, cos, sin), self.rotated(key, cos, sin)
        keys = self.node("Concat", f"keys{index}", key, name=f"new_keys{index}", axis=2)
        values = self.node("Concat", f"values{index}", value, name=f"new_values{index}", axis=2)
        turned = self.node("Transpose", self.repeated(keys), perm=[0, 1, 3, 2])
        scale = self.constant(np.float32(sizes.size**-0.5))
        scores = self.node("MatMul", self.node("Mul", query, scale), turned)
        weights = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        found = self.node("MatMul", weights, self.repeated(values))
        rows = self.node("Transpose", found, perm=[0, 2, 1, 3])
        rows = self.node("Reshape", rows, self.integers(0, 0, sizes.width))
        x = self.node("Add", x, self.linear(rows, sizes.width, sizes.width))
        y = self.norm(x)
        gate, up = (self.linear(y, sizes.width, sizes.hidden) for _ in range(2))
        gated = self.node("Mul", self.node("Mul", gate, self.node("Sigmoid", gate)), up)
        return self.node("Add", x, self.linear(gated, sizes.hidden, sizes.width))

    def model(self) -> onnx.ModelProto:
        sizes = self.sizes
        zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
        new = self.node("Gather", self.node("Shape", "ids"), one)
        past = self.node("Gather", self.node("Shape", "keys0"), self.constant(np.int64(2)))
        total = self.node("Add", past, new)
        own = self.node("Unsqueeze", self.node("Range", past, total, one), self.integers(1))
        every = self.node("Unsqueeze", self.node("Range", zero, total, one), self.integers(0))
        later = self.node("Cast", self.node("Greater", every, own), to=TensorProto.FLOAT)
        mask = self.node("Mul", later, self.constant(np.float32(-10000)))
        powers = 10000.0 ** (-np.arange(0, sizes.size, 2) / sizes.size)
        frequencies = self.constant(np.concatenate([powers, powers]).astype(np.float32))
        angles = self.node("Mul", self.node("Cast", own, to=TensorProto.FLOAT), frequencies)
        cos, sin = self.node("Cos", angles), self.node("Sin", angles)
        table = self.weights(sizes.vocabulary, sizes.width, scale=sizes.width**-0.5)
        x = self.node("Gather", self.constant(table), "ids")
        for index in range(sizes.depth):
            x = self.layer(x, index, cos, sin, mask)
        self.node("MatMul", self.norm(x), self.constant(table.T.copy()), name="logits")
        cache = ["b", sizes.kv_heads, "past", sizes.size]
        kind, named = TensorProto.FLOAT, range(sizes.depth)
        names = [f"{what}{index}" for index in named for what in ("keys", "values")]
        inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])]
        inputs += [helper.make_tensor_value_info(name, kind, cache) for name in names]
        outputs = ["logits", *(f"new_{name}" for name in names)]
        results = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "decoder", inputs, results, self.constants)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


Arrays = Mapping[str, Any]


def steps(sizes: DecoderSizes, prompt: Any, run: Callable[[Arrays], Arrays]) -> Iterator[Any]:
    """The scores that each token after a prompt [1, n] is chosen by, which are the highest."""
    shape = (1, sizes.kv_heads, 0, sizes.size)
    names = [f"{what}{index}" for index in range(sizes.depth) for what in ("keys", "values")]
    caches: dict[str, Any] = {name: np.zeros(shape, np.float32) for name in names}
    ids = prompt
    while True:
        found = run({"ids": ids, **caches})
        scores = found["logits"][0, -1]
        yield scores
        ids = np.array([[scores.argmax()]])
        caches = {name: found[f"new_{name}"] for name in names}


def generate(
    sizes: DecoderSizes, prompt: Any, count: int, run: Callable[[Arrays], Arrays]
) -> tuple[list[int], list[Any]]:
    """The most likely tokens after a prompt, and the scores that each was chosen by."""
    scores = list(itertools.islice(steps(sizes, prompt, run), count))
    return [int(each.argmax()) for each in scores], scores


class InPlace:
    """Runs of a decoder whose caches stay in one memory, with room for `capacity` tokens."""

    def __init__(self, runtime: Any, capacity: int) -> None:
        self.runtime = runtime
        self.caches = runtime.caches(capacity)

    def __call__(self, feeds: Arrays) -> dict[str, Any]:
        """Scores; the caches among what is given are those that are here."""
        found: dict[str, Any] = self.runtime.run({"ids": feeds["ids"]}, self.caches)
        return {**found, **{f"new_{name}": held for name, held in self.caches.items()}}
