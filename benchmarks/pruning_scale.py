"""Seconds to prune against the number of nodes.

    python benchmarks/pruning_scale.py [NODES ...]

Residual networks of 1,000 to 100,000 nodes with reshapes and transposes in between; each
is analyzed, ranked globally, and cut to 70 % of its MACs.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from secateur.ir.onnx_io import from_proto
from secateur.passes.prune import PruneChannels

WIDTH = 16
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
    graph = helper.make_graph(
        made,
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2, 2])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    print("| nodes | seconds | microseconds per node |\n| ---: | ---: | ---: |")
    for nodes in [int(a) for a in sys.argv[1:]] or [1_000, 3_000, 10_000, 30_000, 100_000]:
        model = from_proto(network(nodes))
        start = time.perf_counter()
        PruneChannels(macs=0.7).run(model)
        seconds = time.perf_counter() - start
        print(f"| {nodes:,} | {seconds:.2f} | {1e6 * seconds / nodes:.0f} |", flush=True)


if __name__ == "__main__":
    main()
