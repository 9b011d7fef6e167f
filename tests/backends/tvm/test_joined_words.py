"""Products of bytes that are added in 16 bits: weights that fit, and what is multiplied apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.kernels.matrix import paired
from secateur.backends.tvm.targets import can_run_here, parse_target
from secateur.ir.onnx_io import from_proto

V3 = parse_target("x86-64-v3")
needs_target = pytest.mark.skipif(not can_run_here(V3), reason="the CPU lacks AVX2")


def weights_of(kind: str, shape: tuple[int, ...], seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    if kind == "extremes":
        return random.choice(np.array([-128, 127], np.int8), shape)
    spread = {"small": 6, "few": 28, "some": 36, "large": 60}[kind]
    return np.clip(np.round(random.standard_normal(shape) * spread), -128, 127).astype(np.int8)


@pytest.mark.parametrize("kind", ["small", "some", "large", "extremes"])
@pytest.mark.parametrize("words", [1, 2])
def test_what_is_split_fits_and_is_whole(kind: str, words: int) -> None:
    dense = weights_of(kind, (3, 5, 2, 8, 4 * words))
    before = dense.copy()
    found = paired.split(dense)
    np.testing.assert_array_equal(dense, before)
    if found is None:
        assert words == 2
        assert kind != "small"
        return
    whole = found.weights.astype(int)
    pairs = whole.reshape(3, 5, 2, 8, words, 2, 2)
    for sign in (1, -1):
        assert np.maximum(sign * pairs, 0).sum((-3, -1)).max() <= 128
        assert (
            np.maximum(sign * found.rest.reshape(-1, 2).astype(int), 0).sum(1).max(initial=0) <= 128
        )
    assert found.weights.dtype == found.rest.dtype == np.int8
    assert found.rest.shape[1] == found.counts.max()
    for vector, count in enumerate(found.counts):
        group, v = divmod(vector, 2)
        assert not found.rest[vector, count:].any()
        for number in range(count):
            step, word = divmod(int(found.words[vector, number]), words)
            whole[group, step, v, :, 4 * word : 4 * word + 4] += found.rest[vector, number].reshape(
                8, 4
            )
    np.testing.assert_array_equal(whole, before)


@pytest.mark.parametrize(("words", "kind"), [(1, "some"), (2, "few")])
def test_no_more_is_taken_off_than_has_to_be(words: int, kind: str) -> None:
    """Of the largest weights, so that few words have a rest."""
    dense = weights_of(kind, (3, 5, 2, 8, 4 * words))
    found = paired.split(dense)
    assert found is not None
    assert found.counts.any()
    pairs = dense.astype(int).reshape(3, 5, 2, 8, words, 2, 2)
    left = found.weights.astype(int).reshape(pairs.shape)
    for sign in (1, -1):
        sums = np.maximum(sign * pairs, 0).sum((-3, -1))
        np.testing.assert_array_equal(
            np.maximum(sign * left, 0).sum((-3, -1)), np.minimum(sums, 128)
        )
        sized = np.sort(np.maximum(sign * np.moveaxis(pairs, -2, -3), 0).reshape(-1, 2 * words))
        fewest = (np.cumsum(sized[:, ::-1], 1) < (sums.reshape(-1, 1) - 128)).sum(1)
        fewest = np.where(sums.ravel() > 128, fewest + 1, 0)
        changed = ((left != pairs) & (sign * pairs > 0)).sum((-3, -1)).ravel()
        np.testing.assert_array_equal(changed, fewest)
    with_rest = (left != pairs).any((3, 5, 6))  # [group, step, vector, word]
    np.testing.assert_array_equal(with_rest.sum((1, 3)).ravel(), found.counts)


def test_what_would_cost_more_is_not_joined() -> None:
    def joined(weights: Any, target: str = "x86-64-v3", dtype: str = "uint8", step: int = 8) -> int:
        return paired.joined(parse_target(target), dtype, weights, step)

    small, some = weights_of("small", (32, 9, 64)), weights_of("some", (32, 9, 64))
    assert joined(small) == 2
    assert joined(some) == 1
    assert joined(small, step=4) == 1
    assert joined(weights_of("extremes", (32, 9, 64))) == 0
    assert joined(small.astype(np.int16) * 20) == 0
    assert joined(small[:, :, :0]) == 0
    assert (
        joined(small, "znver4") == joined(small, "aarch64") == joined(small, dtype="float32") == 0
    )


def integers(
    operator: str, x: Any, weights: Any, result: tuple[int, ...], **attributes: Any
) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w", "z"], ["y"], **attributes)],
        "integers",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, result)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(x.dtype.type(7), "z")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def bytes_of(dtype: type[np.generic], shape: tuple[int, ...]) -> Any:
    """Random ones, and many extremes."""
    random, ends = np.random.default_rng(1), np.iinfo(dtype)
    drawn = random.integers(ends.min, ends.max + 1, shape)
    extremes = random.choice([ends.min, ends.max], shape)
    return np.where(random.random(shape) < 0.5, extremes, drawn).astype(dtype)


@needs_target
@pytest.mark.parametrize(
    ("kind", "dtype", "channels"),
    [
        ("small", np.uint8, 20),
        ("some", np.uint8, 24),
        ("some", np.int8, 20),
        ("small", np.int8, 3),
        pytest.param("large", np.uint8, 24, marks=pytest.mark.slow),
        pytest.param("extremes", np.int8, 24, marks=pytest.mark.slow),
    ],
)
def test_convolutions_are_exact(
    tmp_path: Path, kind: str, dtype: type[np.generic], channels: int
) -> None:
    """Of stride 2, in the order of blocks, taps and words."""
    weights, x = weights_of(kind, (40, channels, 3, 3)), bytes_of(dtype, (2, channels, 11, 14))
    model = integers("ConvInteger", x, weights, (2, 40, 6, 7), strides=[2, 2], pads=[1, 1, 1, 1])
    compile_model(from_proto(model), V3, tmp_path / "m.so")
    wide = np.pad(x.astype(int) - 7, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((2, 40, 6, 7), int)
    for i, j in np.ndindex(3, 3):
        own = wide[:, :, i : i + 11 : 2, j : j + 13 : 2]
        expected += np.einsum("oc,nchw->nohw", weights[:, :, i, j].astype(int), own)
    np.testing.assert_array_equal(Runtime(tmp_path / "m.so").run({"x": x})["y"], expected)


@needs_target
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("depth", [20, 21, 64])
@pytest.mark.parametrize("kind", ["small", "some", "extremes"])
def test_products_are_exact(tmp_path: Path, kind: str, depth: int, dtype: type[np.generic]) -> None:
    weights, x = weights_of(kind, (depth, 19)), bytes_of(dtype, (7, depth))
    model = integers("MatMulInteger", x, weights, (7, 19))
    compile_model(from_proto(model), V3, tmp_path / "m.so")
    expected = (x.astype(int) - 7) @ weights.astype(int)
    np.testing.assert_array_equal(Runtime(tmp_path / "m.so").run({"x": x})["y"], expected)
