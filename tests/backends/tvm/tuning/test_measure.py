"""Times of kernels, and the machine's peak."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.backends.tvm.tuning.measure import measure_peak, profile
from secateur.ir.onnx_io import from_proto

from ..graphs import Net, feeds

NATIVE = parse_target("native")


def test_the_profile_counts_calls_and_work(tmp_path: Path) -> None:
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(8, 16, 1, 1))
    model = net.model({"x": (1, 16, 10, 10)}, [value])
    compile_model(from_proto(model), NATIVE, tmp_path / "m.so", copies=0)
    kernels = profile(tmp_path / "m.so", feeds(model), runs=3)
    convolutions = {k.macs: k for k in kernels if k.macs}
    equal = convolutions.pop(2 * 100 * 16 * 16 * 9)
    assert equal.calls == 2
    assert len(equal.operations) == 2
    assert equal.input_dtype == "float32"
    assert sorted(convolutions) == [100 * 8 * 16, 100 * 16 * 16 * 9]
    assert all(k.microseconds > 0 for k in kernels)
    assert [k.microseconds for k in kernels] == sorted(k.microseconds for k in kernels)[::-1]


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_kernels_stay_below_the_peak(tmp_path: Path, dtype: str) -> None:
    """A convolution that nothing else limits comes near what the registers allow."""
    peak = measure_peak(NATIVE, dtype)
    assert peak > 1e8  # what no machine with vectors misses
    if dtype != "float32":
        # No more instructions than of floats, each with four products to a lane.
        assert peak < 4 * 1.5 * measure_peak(NATIVE, "float32")
        return
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(64, 64, 3, 3), pads=[1, 1, 1, 1])
    model = net.model({"x": (1, 64, 28, 28)}, [value])
    compile_model(from_proto(model), NATIVE, tmp_path / "m.so", copies=0)
    kernel = max(profile(tmp_path / "m.so", feeds(model)), key=lambda k: k.macs)
    share = kernel.macs / (kernel.microseconds * 1e-6) / peak
    assert 0.1 < share < 1.3  # clocks change between the two
