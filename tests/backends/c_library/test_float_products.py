"""Products and convolutions of floats by ARM's kernels, under emulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ..tvm.graphs import Net, feeds
from . import models
from .test_emulated import tools

pytestmark = pytest.mark.slow

PRODUCTS = (
    (8, 8, 12),
    (197, 64, 96),  # packed: panels of eight rows, the last of which overlaps
    (100, 64, 192),  # packed: and four rows more
    (128, 64, 64),  # packed: panels of twelve rows, and one of eight
    (197, 260, 120),  # packed, some panels at a time
    (49, 100, 40),
    (31, 36, 30),  # columns that fill no vector
    (9, 7, 24),  # a depth that isn't packed
)
"""Rows, depth, columns."""


CONVOLUTIONS: tuple[dict[str, Any], ...] = (
    {"weights": (24, 3, 3, 3), "strides": [2, 2]},
    {"weights": (16, 3, 7, 7), "strides": [2, 2], "pads": [3, 3, 3, 3]},
    {"weights": (12, 1, 5, 5), "pads": [2, 2, 2, 2]},
    {"weights": (8, 4, 3, 3), "pads": [1, 1, 1, 1]},
    {"weights": (8, 2, 2, 3), "strides": [1, 2]},
    {"weights": (8, 3, 3, 3), "dilations": [1, 2]},
    {"weights": (20, 24, 1, 1)},
    {"weights": (12, 13, 3, 3), "strides": [2, 2]},
)
"""Few channels, whose taps lie side by side, and more."""


def images() -> onnx.ModelProto:
    """Each convolution of an image."""
    net = Net(None, 4)
    inputs, outputs = {}, []
    for number, given in enumerate(CONVOLUTIONS):
        options = dict(given)
        weights = options.pop("weights")
        inputs[f"x{number}"] = (2, weights[1], 19, 17)
        outputs.append(net.node("Conv", f"x{number}", net.weight(*weights), **options))
    return net.model(inputs, outputs)


def model(activation: str) -> onnx.ModelProto:
    """Products with a bias, a function and a residual."""
    net = Net(None, 2)
    inputs, outputs = {}, []
    for number, (rows, depth, columns) in enumerate(PRODUCTS):
        inputs[f"x{number}"], inputs[f"r{number}"] = (1, rows, depth), (1, rows, columns)
        value = net.node("MatMul", f"x{number}", net.weight(depth, columns))
        value = net.node("Add", value, net.weight(columns))
        value = net.node(activation, value) if activation else value
        outputs.append(net.node("Add", value, f"r{number}"))
    return net.model(inputs, outputs)


@pytest.mark.parametrize("activation", ["", "Erf", "Relu"])
@pytest.mark.parametrize("target", ["aarch64", "aarch64-cortex-a76"])
def test_products(tmp_path: Path, target: str, activation: str) -> None:
    check(model(activation), tmp_path, target)


def test_threads_share_panels(tmp_path: Path) -> None:
    """Several pack and read the same ones, to the bit as one does."""
    check(model("Relu"), tmp_path, "aarch64-cortex-a76", threads=3)


@pytest.mark.parametrize("target", ["aarch64", "armv7-a"])
def test_convolutions(tmp_path: Path, target: str) -> None:
    check(images(), tmp_path, target)


def check(proto: onnx.ModelProto, folder: Path, target: str, threads: int = 1) -> None:
    """As this machine's artifact computes them, but for how sums round."""
    compiler, emulator, _ = tools(target)
    inputs = feeds(proto)
    for array in inputs.values():
        array.reshape(-1)[:3] = [np.inf, np.nan, 1e-40]
    compile_model(from_proto(proto), parse_target("native"), folder / "m.so")
    right = Runtime(folder / "m.so").run(inputs)
    pool = "own" if threads > 1 else "none"
    library = models.build(proto, folder / "out", "net", target=target, threads=pool)
    program = models.program(library, "net", compiler, "-static", "-pthread")
    found = {}
    for number in {1, threads}:
        done = models.run(program, [*inputs.values()], emulator=emulator, threads=number)
        assert done.returncode == 0, (done.stdout, done.stderr)
        found[number] = program.with_name("out").read_bytes()
    assert found[1] == found[threads]
    content = found[threads]
    for name, wanted in right.items():
        own = np.frombuffer(content, wanted.dtype, wanted.size).reshape(wanted.shape)
        np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=2e-5, err_msg=name)
        content = content[wanted.nbytes :]
    assert not content
