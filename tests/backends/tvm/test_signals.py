"""Fourier transforms of every form against NumPy's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

Array = Any
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def as_complex(x: Array) -> Array:
    return x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]


def as_pairs(x: Array) -> Array:
    return np.stack([x.real, x.imag], axis=-1)


Form = tuple[str, list[Array | None], dict[str, int], Array]
"""Operator, input and constants, attributes, and the result."""


def transforms() -> Iterator[Form]:
    for size, length, axis in ((6, None, 1), (5, None, -2), (5, 8, 1), (7, 4, 2), (4, 3, 1)):
        for parts in (1, 2):
            shape = (2, size, 3, parts) if axis == 1 else (2, 3, size, parts)
            x = numbers(*shape)
            operands = [x, np.int64(length) if length else None, np.int64(axis)]
            at = axis if axis > 0 else 2
            z = as_complex(x)
            yield "DFT", operands, {}, as_pairs(np.fft.fft(z, length, at))
            yield "DFT", operands, {"inverse": 1}, as_pairs(np.fft.ifft(z, length, at))
            if parts == 1:
                half = as_pairs(np.fft.rfft(z, length, at))
                yield "DFT", operands, {"onesided": 1}, half


def framed() -> Iterator[Form]:
    window = np.hanning(8).astype(np.float32)
    for parts in (1, 2):
        for given, step in ((window, 3), (None, 5)):
            for onesided in (0, 1):
                if onesided and parts == 2:
                    continue
                x = numbers(2, 20, parts)
                z, length = as_complex(x), 8
                starts = range(0, 20 - length + 1, step)
                frames = np.stack([z[:, s : s + length] for s in starts], axis=1)
                if given is not None:
                    frames = frames * given
                spectrum = np.fft.rfft(frames) if onesided else np.fft.fft(frames)
                operands = [x, np.int64(step), given, np.int64(length)]
                yield "STFT", operands, {"onesided": onesided}, as_pairs(spectrum)


def test_transforms_are_numpys(tmp_path: Path) -> None:
    nodes, constants, feeds, wanted = [], [], {}, {}
    for number, (op_type, operands, attributes, expected) in enumerate((*transforms(), *framed())):
        names = []
        for place, operand in enumerate(operands):
            name = "" if operand is None else f"x{number}_{place}"
            names.append(name)
            if place == 0:
                feeds[name] = operand
            elif operand is not None:
                constants.append(numpy_helper.from_array(operand, name))
        nodes.append(helper.make_node(op_type, names, [f"y{number}"], **attributes))
        wanted[f"y{number}"] = expected
    graph = helper.make_graph(
        nodes,
        "signals",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in feeds.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, y.shape) for n, y in wanted.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    compile_model(from_proto(model), parse_target("native"), tmp_path / "model.so")
    found = Runtime(tmp_path / "model.so").run(feeds)
    for node in nodes:
        (name,) = node.output
        what = f"{node.op_type} {feeds[node.input[0]].shape}"
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4, rtol=1e-4, err_msg=what)


def test_an_axis_that_a_run_gives_leads_to_the_declared_size_or_fails(tmp_path: Path) -> None:
    """Half a spectrum is that of two lengths."""
    lengths = (6, 7)
    x = numbers(1, 8, 3, 1)
    graph = helper.make_graph(
        [helper.make_node("DFT", ["x", f"n{n}", "axis"], [f"y{n}"], onesided=1) for n in lengths],
        "signals",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("axis", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, (1, 4, 3, 2)) for n in lengths],
        [numpy_helper.from_array(np.int64(n), f"n{n}") for n in lengths],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    target, path = parse_target("native"), tmp_path / "model.so"
    compile_model(from_proto(model), target, path, declared_sizes=True)
    runtime = Runtime(path)
    for axis in (1, -3):
        found = runtime.run({"x": x, "axis": np.int64(axis)})
        for n in lengths:
            wanted = as_pairs(np.fft.rfft(as_complex(x), n, 1))
            np.testing.assert_allclose(found[f"y{n}"], wanted, atol=1e-4)
    with pytest.raises(SecateurError, match=r"\(DFT\)"):
        runtime.run({"x": x, "axis": np.int64(2)})
