"""Convolutions of bytes with one input channel, whose taps become channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds, quantize, reference
from .test_networks import TARGETS, built_convolutions, run

WINDOWS = {
    "a spectrum": ((1, 1, 49, 10), (10, 4), {"pads": [4, 1, 5, 1], "strides": [2, 2]}),
    "an image": ((2, 1, 28, 28), (3, 3), {"pads": [1, 1, 1, 1]}),
    "a tall window": ((1, 1, 30, 9), (7, 2), {"pads": [0, 1, 2, 0], "strides": [3, 1]}),
    "dilated": ((2, 1, 21, 20), (5, 4), {"dilations": [2, 3], "pads": [3, 9, 5, 0]}),
    "the last rows unread": ((1, 1, 16, 18), (4, 5), {"strides": [3, 4]}),
    "a sound": ((2, 1, 95), (9,), {"pads": [4, 4], "strides": [2]}),
    "one window": ((1, 1, 6, 5), (6, 5), {}),
}
LONG: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "a long sound": ((1, 1, 400), (80,), {"strides": [4]}),
    "a point": ((1, 1, 9, 8), (1, 1), {}),
}


def convolution(
    shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]
) -> onnx.ModelProto:
    net = Net(None, 7, len(kernel))
    first = net.node("Conv", "x", net.weight(20, 1, *kernel), net.weight(20), **attributes)
    last = net.node("Conv", net.node("Relu", first), net.weight(6, 20, *(1 for _ in kernel)))
    return net.model({"x": shape}, [last])


CASES = [
    (window, dtype, TARGETS[(2 * number + signed) % len(TARGETS)])
    for number, window in enumerate([*WINDOWS, *LONG])
    for signed, dtype in enumerate(("uint8", "int8"))
]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("window", ["a spectrum", "an image", "the last rows unread", "a sound"])
def test_batches_that_a_run_fixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: str, dtype: str
) -> None:
    """Of padded windows, too."""
    built = built_convolutions(monkeypatch)
    model = quantize(convolution(*WINDOWS[window]), dtype)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    path, sizes = tmp_path / "m.so", read_admitted(("n=1..5",))
    compile_model(from_proto(model), parse_target("native"), path, sizes=sizes)
    assert [conv.input.channels == 1 for conv in built] == [False, False]
    runtime, random = Runtime(path), np.random.default_rng(1)
    for batch in (1, 2, 5):
        x = random.standard_normal((batch, *WINDOWS[window][0][1:])).astype(np.float32)
        found = runtime.run({"x": x})
        for name, wanted in reference(model, {"x": x}).items():
            np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "dtype", "target"), CASES)
def test_taps_become_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: str, dtype: str, target: str
) -> None:
    """Where there are a few of them; the results are ONNX Runtime's."""
    built = built_convolutions(monkeypatch)
    model = quantize(convolution(*{**WINDOWS, **LONG}[window]), dtype)
    inputs = feeds(model)
    found = run(model, target, tmp_path, inputs)
    for name, wanted in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6)
    assert [conv.input.channels == 1 for conv in built] == [window in LONG, False]
