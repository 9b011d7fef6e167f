"""Convolutions in groups of any width, beside ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from .graphs import reference

FORMS = [  # channels in and out, groups, kernel, stride, pads, dilation
    (32, 32, 16, (3, 3), 1, 1, 1),
    (40, 40, 10, (3, 3), 2, 1, 1),
    (24, 24, 3, (5, 3), 1, 2, 1),
    (16, 16, 8, (1, 1), 1, 0, 1),
    (4, 4, 2, (3, 3), 1, 1, 1),
    (24, 24, 8, (3, 3), 1, 2, 2),
    (32, 64, 8, (3, 3), 1, 1, 1),
    (64, 64, 4, (3, 3), 1, 1, 1),
    (12, 12, 6, (4,), 2, 1, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["native", "x86-64-v3", "x86-64-v2"])
def test_groups_of_every_width(tmp_path: Path, target: str) -> None:
    random = np.random.default_rng(0)
    nodes, feeds, constants = [], {}, {}
    for number, (inner, outer, groups, kernel, stride, pad, dilation) in enumerate(FORMS):
        size = (9, 11)[: len(kernel)]
        feeds[f"x{number}"] = random.standard_normal((2, inner, *size)).astype(np.float32)
        constants[f"w{number}"] = random.standard_normal((outer, inner // groups, *kernel))
        constants[f"b{number}"] = random.standard_normal(outer)
        nodes += [
            helper.make_node(
                "Conv",
                [f"x{number}", f"w{number}", f"b{number}"],
                [f"c{number}"],
                group=groups,
                strides=[stride] * len(kernel),
                pads=[pad] * 2 * len(kernel),
                dilations=[dilation] * len(kernel),
            ),
            helper.make_node("Relu", [f"c{number}"], [f"y{number}"]),
        ]
    graph = helper.make_graph(
        nodes,
        "groups",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in feeds.items()],
        [helper.make_tensor_value_info(f"y{i}", 1, None) for i in range(len(FORMS))],
        [numpy_helper.from_array(x.astype(np.float32), n) for n, x in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    compile_model(from_proto(proto), parse_target(target), tmp_path / "m.so")
    found = Runtime(tmp_path / "m.so").run(feeds)
    for name, expected in reference(proto, feeds).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)
