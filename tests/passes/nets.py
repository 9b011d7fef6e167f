"""Small networks with random weights, some of whose channels are combinations of others."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto


class Net:
    """Writes a small network with random weights."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def constant(self, array):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def axes(self, array):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, np.int64), name))
        return name

    def add(self, op_type, *inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def model(self, shape, output, opset=21):
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", opset)]
        model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))
        infer_shapes(model)
        return model


def redundant(random, kept, extra, *shape):
    """Rows of weights of which the last `extra` are combinations of the others."""
    base = random.standard_normal((kept, *shape))
    mixed = np.tensordot(random.standard_normal((extra, kept)), base, 1) / np.sqrt(kept)
    return np.concatenate([base, mixed])
