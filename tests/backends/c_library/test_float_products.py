"""Products of floats by AArch64's kernels, under emulation.

Needs Debian's packages qemu-user and gcc-aarch64-linux-gnu.
"""

from __future__ import annotations

from pathlib import Path

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
from .test_byte_products import COMPILER, EMULATOR

pytestmark = pytest.mark.slow

PRODUCTS = (
    (8, 8, 12),
    (13, 20, 96),  # five rows more than a panel
    (28, 64, 64),  # panels of twelve rows, and one of four
    (128, 16, 8),
    (49, 100, 40),
    (70, 2100, 12),  # too deep to be packed at once
    (31, 36, 30),  # columns that fill no vector
    (9, 7, 24),  # a depth that isn't packed
)
"""Rows, depth, columns."""


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
    """As this machine's artifact computes them, but for how sums round."""
    if not models.has(COMPILER, EMULATOR[0]):
        pytest.skip(f"needs {COMPILER} and {EMULATOR[0]}")
    proto = model(activation)
    inputs = feeds(proto)
    for name in inputs:
        inputs[name][0, 0, :3] = [np.inf, np.nan, 1e-40]
    compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    right = Runtime(tmp_path / "m.so").run(inputs)
    library = models.build(proto, tmp_path / "out", "net", target=target, threads="none")
    program = models.program(library, "net", COMPILER, "-static")
    done = models.run(program, [*inputs.values()], emulator=EMULATOR)
    assert done.returncode == 0, (done.stdout, done.stderr)
    content = program.with_name("out").read_bytes()
    for name, wanted in right.items():
        own = np.frombuffer(content, wanted.dtype, wanted.size).reshape(wanted.shape)
        np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=2e-5, err_msg=name)
        content = content[wanted.nbytes :]
    assert not content
