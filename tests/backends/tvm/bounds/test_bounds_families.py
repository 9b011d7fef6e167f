"""Faults put into kernels of every family: the analysis of bounds has to find them."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.bounds import prove
from secateur.backends.tvm.emission.choices import Choices
from secateur.backends.tvm.emission.emission import Emission
from secateur.backends.tvm.emission.emit import emit
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ConvolutionOp
from secateur.backends.tvm.plan.schedule import Buffer
from secateur.backends.tvm.targets import parse_target
from secateur.backends.tvm.tensorir import builder
from secateur.backends.tvm.tensorir.builder import KernelBuilder
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.passes.simplify import simplify_pipeline

from ..graphs import quantize

Build = Callable[[], Any]


def model(
    nodes: Sequence[tuple[Any, ...]], inputs: dict[str, Any], weights: dict[str, Any] | None = None
) -> onnx.ModelProto:
    """Nodes as (operator, inputs, attributes); each defines v0, v1, ..., the last the output."""
    made = [
        helper.make_node(op, names.split(), [f"v{i}"], **(rest[0] if rest else {}))
        for i, (op, names, *rest) in enumerate(nodes)
    ]
    random = np.random.default_rng(0)
    constants = {
        n: w if isinstance(w, np.ndarray) else random.standard_normal(w).astype(np.float32)
        for n, w in (weights or {}).items()
    }
    graph = helper.make_graph(
        made,
        "family",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
            if not isinstance(s, onnx.ValueInfoProto)
            else s
            for n, s in inputs.items()
        ],
        [helper.make_tensor_value_info(f"v{len(made) - 1}", TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(proto)


IMAGE = {"x": (2, 8, 7, 6)}
SAME = {"pads": [1, 1, 1, 1]}
INDICES = helper.make_tensor_value_info("i", TensorProto.INT64, (3,))


def convolution(channels: int = 8, **attributes: Any) -> onnx.ModelProto:
    weights = {"w": (channels, 8 // attributes.get("group", 1), 3, 3)}
    return model([("Conv", "x w", {**SAME, **attributes})], IMAGE, weights)


FAMILIES: dict[str, Callable[[], onnx.ModelProto]] = {
    "convolution": convolution,
    "short blocks": lambda: model(
        [("Conv", "x w", SAME), ("Add", "v0 y")],
        {"x": (1, 4, 5, 6), "y": (1, 4, 5, 6)},
        {"w": (4, 4, 3, 3)},
    ),
    "depthwise": lambda: convolution(group=8),
    "grouped": lambda: convolution(group=2),
    "winograd": lambda: model(
        [("Conv", "x w", SAME)], {"x": (1, 16, 17, 16)}, {"w": (16, 16, 3, 3)}
    ),
    "winograd of fresh weights": lambda: model(
        [("Conv", "x w", SAME)], {"x": (1, 16, 17, 16)}, {"w": (24, 16, 3, 3)}
    ),
    "winograd of groups": lambda: model(
        [("Conv", "x w", {**SAME, "group": 2})], {"x": (1, 64, 17, 16)}, {"w": (32, 32, 3, 3)}
    ),
    "winograd of bytes": lambda: quantize(
        model([("Conv", "x w", SAME)], {"x": (1, 16, 17, 16)}, {"w": (16, 16, 3, 3)})
    ),
    "transposed": lambda: model(
        [("ConvTranspose", "x w", {"strides": [2, 2]})], IMAGE, {"w": (8, 8, 3, 3)}
    ),
    "dot": lambda: quantize(convolution()),
    "matmul": lambda: model([("MatMul", "x w")], {"x": (3, 20)}, {"w": (20, 33)}),
    "matmul of packed rows": lambda: model([("MatMul", "x w")], {"x": (44, 20)}, {"w": (20, 24)}),
    "product": lambda: model([("MatMul", "x y")], {"x": (2, 5, 20), "y": (2, 20, 19)}),
    "pooling": lambda: model(
        [("MaxPool", "x", {"kernel_shape": [3, 3], "strides": [1, 1]})], IMAGE
    ),
    "elementwise": lambda: model([("Add", "x y"), ("Sigmoid", "v0")], {"x": (3, 37), "y": (37,)}),
    "rows": lambda: model([("LayerNormalization", "x s")], {"x": (3, 37)}, {"s": (37,)}),
    "softmax": lambda: model([("Softmax", "x")], {"x": (3, 37)}),
    "bytes of softmax": lambda: quantize(model([("Softmax", "x")], {"x": (3, 37)})),
    "recurrent": lambda: model(
        [("LSTM", "x w r", {"hidden_size": 9})],
        {"x": (4, 1, 7)},
        {"w": (1, 36, 7), "r": (1, 36, 9)},
    ),
    "resize": lambda: model(
        [("Resize", "x  s", {"mode": "linear"})],
        {"x": (1, 3, 5, 6)},
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "concat": lambda: model([("Concat", "x y", {"axis": 1})], {"x": (3, 5), "y": (3, 6)}),
    "transposition": lambda: model([("Transpose", "x", {"perm": [1, 0]})], {"x": (19, 23)}),
    "loops": lambda: model([("CumSum", "x a")], {"x": (3, 5)}, {"a": np.array(1)}),
    "guarded loops": lambda: model([("Gather", "x i")], {"x": (6, 5), "i": INDICES}),
}


def resize_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`Resize` without a region: an empty name between its inputs."""
    for node in proto.graph.node:
        if node.op_type == "Resize" and len(node.input) == 2:
            node.input.insert(1, "")
    return onnx.shape_inference.infer_shapes(proto)


@functools.cache
def kernels(family: str) -> list[tuple[Build, dict[int, tuple[int, int]]]]:
    """How the kernels of a family's model are built, and the ranges of constant operands."""
    work = from_proto(resize_inputs(FAMILIES[family]()))
    for step in simplify_pipeline():
        step.run(work)
    infer_shapes(work)
    machine = parse_target("aarch64" if "packed" in family else "x86-64-v3")
    found = []
    plain = Emission.call_all

    def call_all(
        self: Emission, key: Any, build: Build, arguments: Sequence[Buffer], *rest: Any
    ) -> Any:
        arrays = {i: b.root()[0].array for i, b in enumerate(arguments)}
        ranges = {
            i: (int(a.min()), int(a.max()))
            for i, a in arrays.items()
            if a is not None and a.size and a.dtype.kind in "iu"
        }
        found.append((build, ranges))
        return plain(self, key, build, arguments, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Emission, "call_all", call_all)
        plan, by_winograd = lower(work, machine), family.startswith("winograd")
        results = (op.output for op in plan.operations if isinstance(op, ConvolutionOp))
        fresh = frozenset(results if "fresh" in family else ())
        emit(plan, machine, Choices(machine, winograd=by_winograd, fresh=fresh))
    return found


@contextlib.contextmanager
def fault(kind: str, number: int) -> Iterator[list[int]]:
    """Put a fault into the parameter or loop of a number; counts how many there are."""
    count = [0]
    parameter, loop = KernelBuilder.parameter, KernelBuilder.loop
    shifted: list[Any] = []

    def short(self: Any, name: str, shape: Sequence[int], dtype: str) -> Any:
        count[0] += 1
        sizes = [int(d) for d in shape]
        if count[0] - 1 == number and kind == "short":
            axis = next((i for i, d in enumerate(sizes) if d > 1), 0)
            sizes[axis] -= 1
        made = parameter(self, name, sizes, dtype)
        if count[0] - 1 == number:
            shifted.append(made)
        return made

    def long(self: Any, extent: Any, name: str, **options: Any) -> Any:
        count[0] += 1
        return loop(self, extent + (count[0] - 1 == number), name, **options)

    with pytest.MonkeyPatch.context() as patch:
        if kind == "long":
            patch.setattr(KernelBuilder, "loop", long)
        else:
            patch.setattr(KernelBuilder, "parameter", short)
        if kind == "shifted":
            plain_load, plain_store = builder.load, KernelBuilder.store

            def moved(buffer: Any, at: Sequence[Any]) -> tuple[Any, ...]:
                if not any(buffer is b for b in shifted):
                    return tuple(at)
                axis = next((i for i, d in enumerate(buffer.shape) if int(d) > 1), 0)
                return tuple(a + (i == axis) for i, a in enumerate(at))

            def load(buffer: Any, *at: Any, lanes: int = 1) -> Any:
                return plain_load(buffer, *moved(buffer, at), lanes=lanes)

            def store(self: Any, buffer: Any, value: Any, *at: Any, lanes: int = 1) -> None:
                plain_store(self, buffer, value, *moved(buffer, at), lanes=lanes)

            patch.setattr(KernelBuilder, "store", store)
            for name, module in list(sys.modules.items()):
                if (
                    name.startswith("secateur.backends.tvm")
                    and vars(module).get("load") is plain_load
                ):
                    patch.setattr(module, "load", load)
        yield count


def faults_of(build: Build, ranges: dict[int, tuple[int, int]], kind: str) -> tuple[int, list[str]]:
    """How many faults of a kind there are in a kernel, and which of them aren't found."""
    with fault(kind, -1) as count:
        whole = prove(build(), ranges)
    assert not whole.unproven, whole.unproven
    used = range(count[0]) if kind == "long" else sorted({*whole.reads, *whole.writes})
    unseen = []
    for number in used:
        with fault(kind, number):
            function = build()
        if not prove(function, ranges).unproven:
            unseen.append(f"{kind} {number}: {function.params}")
    return len(used), unseen


FORMS_OF_WINOGRAD = {
    "winograd of fresh weights",
    "winograd of groups",
    "winograd of bytes",
}
"""Families of the longest kernels, which "winograd" has most of."""


def families(*without: str) -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in FORMS_OF_WINOGRAD else [])
        for name in FAMILIES
        if name not in without
    ]


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("kind", ["short", "shifted"])
def test_faulty_buffers_are_found(family: str, kind: str) -> None:
    """Each operand a row or element shorter, each access to one moved on by one."""
    for build, ranges in kernels(family):
        count, unseen = faults_of(build, ranges, kind)
        assert count > 0
        assert not unseen


@pytest.mark.parametrize("family", families("transposition"))
def test_faulty_loops_are_found(family: str) -> None:
    """Each loop an iteration longer.

    Loops whose accesses are compared with the edge, or whose last tile is moved back from it,
    stay within their buffers, as all of a transposition do; every other kernel has others.
    """
    for build, ranges in kernels(family):
        count, unseen = faults_of(build, ranges, "long")
        assert len(unseen) < max(count, 1), unseen
