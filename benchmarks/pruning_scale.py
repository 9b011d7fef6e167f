"""Seconds to prune against the size of a network.

    python benchmarks/pruning_scale.py [KIND [SIZE ...]]

Each network is analyzed, ranked globally, and cut to 70 % of its MACs: residual ones of 1,000 to
100,000 nodes with reshapes and transposes in between; `flat`, one Concat of that many
convolutions; `nested`, where each convolution reads the concatenation of all before it, so that
the weights grow with the square of their number.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from secateur.ir.onnx_io import from_proto
from secateur.passes.prune import PruneChannels

WIDTH = 16
BRANCH = 4
NODES_PER_BLOCK = 8


def network(nodes: int) -> ModelProto:
    """Residual blocks: two 1x1 convolutions, an addition, a reshape and a transpose."""
    rng = np.random.default_rng(0)

    def weight(name: str, rows: int, columns: int) -> TensorProto:
        array = rng.standard_normal((rows, columns, 1, 1)).astype(np.float32)
        return numpy_helper.from_array(array, name)

    made = [helper.make_node("Conv", ["x", "stem"], ["s"])]
    weights = [
        weight("stem", WIDTH, 3),
        numpy_helper.from_array(np.array([0, WIDTH, 2, 2]), "shape"),
    ]
    current = "s"
    for i in range((nodes - 2) // NODES_PER_BLOCK):
        weights += [weight(f"a{i}", WIDTH, WIDTH), weight(f"b{i}", WIDTH, WIDTH)]
        chain = [
            ("Conv", [current, f"a{i}"], {}),
            ("Relu", [f"c{i}_0"], {}),
            ("Conv", [f"c{i}_1", f"b{i}"], {}),
            ("Add", [f"c{i}_2", current], {}),
            ("Relu", [f"c{i}_3"], {}),
            ("Reshape", [f"c{i}_4", "shape"], {}),
            ("Transpose", [f"c{i}_5"], {"perm": [0, 1, 3, 2]}),
            ("Sigmoid", [f"c{i}_6"], {}),
        ]
        for number, (op_type, inputs, attributes) in enumerate(chain):
            made.append(helper.make_node(op_type, inputs, [f"c{i}_{number}"], **attributes))
        current = f"c{i}_{len(chain) - 1}"
    made.append(helper.make_node("Conv", [current, "head"], ["y"]))
    weights.append(weight("head", 4, WIDTH))
    return _model(made, weights)


def concatenations(branches: int, *, nested: bool) -> ModelProto:
    """Convolutions of `BRANCH` channels each that a Concat joins: all, or one after the other."""
    rng = np.random.default_rng(0)
    made: list[NodeProto] = []
    weights: list[TensorProto] = []

    def convolve(source: str, columns: int, result: str, rows: int = BRANCH) -> str:
        array = rng.standard_normal((rows, columns, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"{result}_weight"))
        made.append(helper.make_node("Conv", [source, f"{result}_weight"], [result]))
        return result

    current, width = convolve("x", 3, "stem"), BRANCH
    found = []
    for i in range(branches):
        found.append(convolve(current, width, f"c{i}"))
        if nested:
            made.append(helper.make_node("Concat", [current, f"c{i}"], [f"d{i}"], axis=1))
            current, width = f"d{i}", width + BRANCH
    if not nested:
        made.append(helper.make_node("Concat", found, ["joined"], axis=1))
        current, width = "joined", BRANCH * branches
    convolve(current, width, "y", 4)
    return _model(made, weights)


def _model(nodes: list[NodeProto], weights: list[TensorProto]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2, 2])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


NETWORKS: dict[str, Callable[[int], ModelProto]] = {
    "residual": network,
    "flat": lambda size: concatenations(size, nested=False),
    "nested": lambda size: concatenations(size, nested=True),
}

SIZES = {
    "residual": (1_000, 3_000, 10_000, 30_000, 100_000),
    "flat": (250, 500, 1_000, 2_000),
    "nested": (62, 125, 250, 500),
}


def main() -> None:
    print("| network | size | seconds | microseconds each |\n| --- | ---: | ---: | ---: |")
    kinds, sizes = sys.argv[1:2] or list(NETWORKS), [int(a) for a in sys.argv[2:]]
    for kind in kinds:
        for size in sizes or SIZES[kind]:
            model = from_proto(NETWORKS[kind](size))
            start = time.perf_counter()
            PruneChannels(macs=0.7).run(model)
            seconds = time.perf_counter() - start
            each = 1e6 * seconds / size
            print(f"| {kind} | {size:,} | {seconds:.2f} | {each:.0f} |", flush=True)


if __name__ == "__main__":
    main()
