"""Models of one recurrent layer, for tests of what becomes of its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.ops.recurrent import GATES

BATCH, WIDTH, HIDDEN, STEPS = 3, 5, 20, 7

Array = Any


def recurrent_model(
    kind: str,
    direction: str = "forward",
    *,
    steps: int | str = "n",
    batch: int | str = BATCH,
    hidden: int = HIDDEN,
    inputs: str = "x w r b _ i",
    tail: tuple[str, ...] = (),
    outputs: str = "y h",
    constants: dict[str, Array] | None = None,
    lead: tuple[str, ...] = (),
    **attributes: Any,
) -> Model:
    """A layer that reads `inputs`, "_" for none, of which `w`, `r`, `b` and `p` are constants, and
    those in `constants`; `lead` are nodes in front of it as "Operator inputs -> output", `tail`
    those behind it."""
    directions, rows = 1 + (direction == "bidirectional"), GATES[kind] * hidden
    random = np.random.default_rng(0)
    shapes = {"w": (directions, rows, WIDTH), "r": (directions, rows, hidden)}
    shapes |= {"b": (directions, 2 * rows), "p": (directions, 3 * hidden)}
    arrays = {n: (random.standard_normal(s) / 3).astype(np.float32) for n, s in shapes.items()}
    arrays |= constants or {}
    layer = helper.make_node(
        kind,
        ["" if name == "_" else name for name in inputs.split()],
        ["y", "h"],
        "layer",
        hidden_size=hidden,
        direction=direction,
        **attributes,
    )
    nodes = [*map(node_of, lead), layer, *map(node_of, tail)]
    read = {name for node in nodes for name in node.input}
    given = {
        "x": (TensorProto.FLOAT, [steps, batch, WIDTH]),
        "i": (TensorProto.FLOAT, [directions, batch, hidden]),
        "l": (TensorProto.INT32, [batch]),
        "o": (TensorProto.FLOAT, [1]),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, *kind) for n, kind in given.items() if n in read],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs.split()],
        [numpy_helper.from_array(array, n) for n, array in arrays.items() if n in read],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = from_proto(proto)
    infer_shapes(model)
    return model


def node_of(line: str) -> NodeProto:
    """A node of "Operator inputs -> output"."""
    op_type, *read, _, result = line.split()
    return helper.make_node(op_type, read, [result], result)


def feed_of(model: Model, seed: int, steps: int = STEPS, batch: int = BATCH) -> dict[str, Array]:
    """Random inputs; lengths of sequences are from 1 to the number of steps."""
    random = np.random.default_rng(seed)
    sizes = {"n": steps, "b": batch}
    feed = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape or ()]
        if value.dtype == TensorProto.INT32:
            feed[value.name] = random.integers(1, steps + 1, shape).astype(np.int32)
        else:
            feed[value.name] = random.standard_normal(shape).astype(np.float32)
    return feed


def samples_of(model: Model, count: int = 6) -> dict[str, Array]:
    """Calibration samples."""
    feeds = [feed_of(model, seed) for seed in range(count)]
    return {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}
