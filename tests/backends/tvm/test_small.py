"""Few bytes rather than speed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_library, compile_model
from secateur.backends.tvm.emission.choices import (
    COPIES,
    Choice,
    Choices,
    describe,
    limit_copies,
)
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ConvolutionOp
from secateur.backends.tvm.targets import parse_target
from secateur.cli import main
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds, reference


def network() -> onnx.ModelProto:
    """A convolution that Winograd's form pays for, and one with an activation."""
    net = Net(None, 0)
    x = net.node("Conv", "x", net.weight(32, 32, 3, 3), pads=[1, 1, 1, 1])
    y = net.node("Conv", net.node("Sigmoid", x), net.weight(7, 32, 1, 1))
    return net.model({"x": (1, 32, 16, 16)}, [y])


def test_small_artifacts_have_fewer_bytes_and_the_same_results(tmp_path: Path) -> None:
    proto = network()
    target, x = parse_target("native"), feeds(proto)
    sizes = {}
    for small in (False, True):
        path = tmp_path / f"{small}.so"
        report = compile_model(from_proto(proto), target, path, small=small, copies=math.inf)
        sizes[small] = report.bytes
        runtime = Runtime(path)
        assert f'"small": {str(small).lower()}'.encode() in path.read_bytes()
        for name, expected in reference(proto, x).items():
            np.testing.assert_allclose(runtime.run(x)[name], expected, 1e-4, 1e-4)
    direct = compile_model(from_proto(proto), target, tmp_path / "d.so", copies=0).bytes
    assert sizes[True] < direct < sizes[False] - 2 * 32 * 32 * 9 * 4


def test_copies_of_weights_take_a_share_of_their_bytes(tmp_path: Path) -> None:
    """By default at most half, where it gains most: in the convolution of most pixels. Weights of
    the others are transformed in each run."""
    net = Net(None, 0)
    x = net.node("Conv", "x", net.weight(96, 96, 3, 3), pads=[1, 1, 1, 1])
    x = net.node("Conv", x, net.weight(96, 96, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    x = net.node("Conv", x, net.weight(96, 96, 3, 3), pads=[1, 1, 1, 1])
    for _ in range(4):
        x = net.node("Conv", x, net.weight(96, 96, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    proto = net.model({"x": (1, 96, 40, 40)}, [x])
    weights = 7 * 96 * 96 * 9 * 4
    target = parse_target("native")
    plan = lower(from_proto(proto), target)
    for copies, wanted in ((math.inf, [0, 2]), (COPIES, [0]), (0.2, [])):
        choices = limit_copies(plan, Choices(target), copies)
        chosen = [op for op in plan.operations if choices.by_winograd(op)]
        assert [plan.operations.index(op) for op in chosen] == [0, 2]
        copied = [op for op in chosen if op.output not in choices.fresh]
        assert [plan.operations.index(op) for op in copied] == wanted
    report = compile_model(from_proto(proto), target, tmp_path / "m.so")
    assert 1.4 * weights < report.bytes < 1.6 * weights + 100_000


@pytest.mark.parametrize("first", [(10, 40), (20, 20)])
def test_the_convolution_of_most_pixels_has_copies_first(first: tuple[int, int]) -> None:
    """Of as wide images the highest, of as high ones the widest, wherever it stands."""
    net = Net(None, 0)
    inputs = {"x": (1, 64, *first), "z": (1, 64, 20, 40)}
    ends = [net.node("Conv", name, net.weight(64, 64, 3, 3), pads=[1] * 4) for name in inputs]
    plan = lower(from_proto(net.model(inputs, ends)), parse_target("native"))
    choices = limit_copies(plan, Choices(parse_target("native")), 1.6)
    fresh = [op.output in choices.fresh for op in plan.operations if isinstance(op, ConvolutionOp)]
    assert fresh == [True, False]


@pytest.mark.parametrize(
    ("channels", "size", "forms"),
    [
        (512, 7, ["direct", "fresh"]),  # so many bytes that reading them takes longer
        (16, 8, ["copied", "direct"]),  # so few channels that transforming takes longer
        (32, 8, ["copied", "fresh"]),
        (16, 16, ["copied", "fresh"]),
        (32, 3, ["direct", "direct"]),  # one tile
    ],
)
def test_weights_are_transformed_where_that_pays(
    channels: int, size: int, forms: list[str]
) -> None:
    net = Net(None, 0)
    x = net.node("Conv", "x", net.weight(channels, channels, 3, 3), pads=[1, 1, 1, 1])
    target = parse_target("native")
    plan = lower(from_proto(net.model({"x": (1, channels, size, size)}, [x])), target)
    op, copied = plan.operations[0], Choices(target)
    fresh = Choices(target, fresh=frozenset({op.output}))
    found = [
        name if choices.by_winograd(op) else "direct"
        for name, choices in (("copied", copied), ("fresh", fresh))
    ]
    assert found == forms
    for form in ("direct", "winograd"):  # measured with copies: what is faster even so is
        measured = {describe(op): Choice(form)}
        by_copies = dataclasses.replace(copied, measured=measured).by_winograd(op)
        by_run = dataclasses.replace(fresh, measured=measured).by_winograd(op)
        assert by_copies == (form == "winograd")
        assert by_run == (form == "winograd" and forms[1] == "fresh")


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_weights_of_few_channels_are_not_padded(tmp_path: Path, target: str) -> None:
    """Where a vector holds many more channels than there are."""
    net = Net(None, 0)
    ends = [
        net.node("Conv", "x", net.weight(c, 64, 3, 3), net.weight(c), pads=[1, 1, 1, 1])
        for c in (1, 3, 20)
    ]
    proto = net.model({"x": (2, 64, 9, 11)}, ends)
    path, x = tmp_path / "m.so", feeds(proto)
    report = compile_model(from_proto(proto), parse_target(target), path, copies=0)
    assert report.bytes < 24 * 64 * 9 * 4 + 45_000
    found = Runtime(path).run(x)
    for name, expected in reference(proto, x).items():
        np.testing.assert_allclose(found[name], expected, 1e-4, 1e-4)


def test_small_libraries(tmp_path: Path) -> None:
    target = parse_target("aarch64")
    sizes = []
    for small in (False, True):
        folder = tmp_path / str(small)
        folder.mkdir()
        options = LibraryOptions("net", threads="none")
        compile_library(from_proto(network()), target, folder, options, small=small)
        sizes.append((folder / "libnet.so").stat().st_size)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("command", ["compile", "optimize"])
def test_commands_make_small_artifacts(command: str, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    for flag, said in (([], b'"small": false'), (["--small"], b'"small": true')):
        arguments = [command, str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out")]
        result = CliRunner().invoke(main, [*arguments, "--target", "native", *flag])
        assert result.exit_code == 0, result.output
        assert said in (tmp_path / "out" / "model.so").read_bytes()
