"""Convolutions in groups of any width, beside ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import CompileReport, compile_model
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
    (96, 192, 3, (3, 3), 1, 1, 1),
]

WHOLE_BLOCKS = [(64, 64, 2, (3, 3), 1, 1, 1), (96, 48, 3, (3, 3), 1, 1, 1)]
"""Groups that Winograd's form takes."""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["native", "x86-64-v3", "x86-64-v2"])
def test_groups_of_every_width(tmp_path: Path, target: str) -> None:
    check(FORMS, target, tmp_path)


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_groups_by_winograds_scheme(tmp_path: Path, target: str) -> None:
    report = check(WHOLE_BLOCKS, target, tmp_path)
    weights = sum(4 * 9 * o * i // g for i, o, g, *_ in WHOLE_BLOCKS)
    assert report.bytes > 4 * weights  # 36 numbers for each 9


def check(forms: Sequence[Any], target: str, tmp_path: Path) -> CompileReport:
    """Compile and run convolutions of these forms."""
    random = np.random.default_rng(0)
    nodes, feeds, constants = [], {}, {}
    for number, (inner, outer, groups, kernel, stride, pad, dilation) in enumerate(forms):
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
        [helper.make_tensor_value_info(f"y{i}", 1, None) for i in range(len(forms))],
        [numpy_helper.from_array(x.astype(np.float32), n) for n, x in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "m.so"
    report = compile_model(from_proto(proto), parse_target(target), path, copies=math.inf)
    found = Runtime(tmp_path / "m.so").run(feeds)
    for name, expected in reference(proto, feeds).items():
        atol = max(1e-4, 3e-5 * float(np.abs(expected).max()))  # Winograd's form rounds more
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=atol, err_msg=name)
    return report
