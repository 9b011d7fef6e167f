"""How much operations compute: what is shared among threads, tuned, and said in reports."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.emission.choices import Choices
from secateur.backends.tvm.emission.emit import emit
from secateur.backends.tvm.emission.estimate import CALL, SCALAR, Estimator
from secateur.backends.tvm.emission.work import is_parallel, macs, vector_operations
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.tensors import Operation
from secateur.backends.tvm.targets import parse_target
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto

from .graphs import Net

IMAGE = (1, 16, 12, 12)
TARGET = parse_target("x86-64-v3")


def operations(build: Callable[[Net], str], shape: tuple[int, ...] = IMAGE) -> list[Operation]:
    """The plan of a network on x and z, both of a shape."""
    net = Net(None, 0)
    output = build(net)
    read = {name for node in net.nodes for name in node.input}
    model = from_proto(net.model({n: shape for n in "xz" if n in read}, [output]))
    infer_shapes(model)
    return lower(model, TARGET).operations


def conv(net: Net) -> str:
    return net.node("Conv", "x", net.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])


def pool(net: Net) -> str:
    return net.node("MaxPool", "x", kernel_shape=[3, 2], pads=[1, 0, 1, 1])


PER_VECTOR = {
    "a load, an instruction, a store": (lambda n: n.node("Relu", "x"), 3, 0),
    "two loads": (lambda n: n.node("Add", "x", "z"), 4, 0),
    "two instructions": (lambda n: n.node("Relu", n.node("Add", "x", "z")), 5, 0),
    "a window": (pool, 6, 0),
    "a window and an instruction": (lambda n: n.node("Relu", pool(n)), 7, 0),
    "taps of all channels": (conv, 144, 144),
    "taps and an instruction": (lambda n: n.node("Relu", conv(n)), 145, 144),
    "a row of weights": (lambda n: n.node("MatMul", "x", n.weight(12, 12)), 12, 12),
    "a row of a tensor": (lambda n: n.node("MatMul", "x", "z"), 12, 12),
    "rows in and out": (lambda n: n.node("Softmax", "x"), 2, 0),
    "taps of rows and columns": (
        lambda n: n.node("Resize", "x", "", "", sizes(n), mode="linear"),
        4,
        0,
    ),
}


def sizes(net: Net) -> str:
    net.constants["sizes"] = np.int64([1, 16, 24, 24])
    return "sizes"


@pytest.mark.parametrize("name", PER_VECTOR)
def test_instructions_of_each_vector(name: str) -> None:
    build, instructions, products = PER_VECTOR[name]
    (op,) = operations(build)
    vectors = op.output.elements / TARGET.lanes
    assert vector_operations(op, TARGET) == vectors * instructions
    assert macs(op) == op.output.elements * products


@pytest.mark.parametrize(("rows", "shared"), [(999, False), (1000, True), (1001, True)])
def test_what_takes_long_enough_is_shared(rows: int, shared: bool) -> None:
    """Each row has four vectors, of four instructions each."""
    (op,) = operations(lambda net: net.node("Add", "x", "z"), (rows, 2 * 16))
    assert is_parallel(op, TARGET) == shared


def depthwise(net: Net) -> str:
    return net.node("Conv", "x", net.weight(16, 1, 3, 3), pads=[1, 1, 1, 1], group=16)


def layer(net: Net) -> str:
    return net.node("RNN", "x", net.weight(1, 8, 16), net.weight(1, 8, 8), hidden_size=8)


ESTIMATES = {
    "a tap each, and the store": (depthwise, IMAGE, 288 * 10),
    "the epilogue, too": (lambda n: n.node("Relu", depthwise(n)), IMAGE, 288 * 11),
    "as vectors": (lambda n: n.node("Relu", "x"), IMAGE, 288 * 3),
    "plain loops, element by element, and what they write in between": (
        lambda n: n.node("Det", "x"),
        (5, 3, 3),
        SCALAR * (45 + 9 + 5),
    ),
    "nothing": (lambda n: n.node("Flatten", "x"), IMAGE, -CALL),
    "each unit by each unit, each step": (layer, (6, 2, 16), 12 * 64 / 8 + 2 * 96 + 16),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_cycles_of_kernels_without_tiles(name: str) -> None:
    build, shape, cycles = ESTIMATES[name]
    op = operations(build, shape)[-1]
    estimator = Estimator(op, TARGET, Choices(TARGET), {})
    assert estimator(lambda tensor: tensor.shape).cycles == pytest.approx(CALL + cycles)


def test_half_of_a_layer_s_units_take_a_quarter_of_the_products() -> None:
    op = operations(layer, (6, 2, 16))[-1]
    estimator = Estimator(op, TARGET, Choices(TARGET), {})
    half = estimator(lambda tensor: (*tensor.shape[:-1], tensor.shape[-1] // 2)).cycles
    assert half == pytest.approx(CALL + 12 * 16 / 8 + (2 * 96 + 16) / 2)


def test_products_are_those_of_a_node_s_own_kernel() -> None:
    """Not of what brings its input into the layout that it reads, and the model's output back."""
    net = Net(None, 0)
    model = from_proto(net.model({"x": IMAGE}, [conv(net)]))
    infer_shapes(model)
    calls = emit(lower(model, TARGET), TARGET).describe_calls()
    assert len(calls) == 3
    assert [call["macs"] for call in calls] == [0, 16 * 12 * 12 * 144, 0]
    assert [call["operator"] for call in calls[:2]] == ["Conv", "Conv"]
