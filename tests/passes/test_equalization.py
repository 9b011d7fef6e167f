"""Equalization: factors of channels leave a model what it was, and bring lost accuracy back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from secateur.ir.dependencies.analysis import analyze
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.tensor import Tensor
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.quantize.equalize import MIXTURES, _RoundingNoise, apply_factors, equalize
from secateur.passes.quantize.regions import Region, find_regions
from secateur.passes.samples import Samples
from tests.passes.test_quantize_integer import build, random

X = random(0, 8, 3, 6, 6)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    names = [[] if not text else text.split(" ") for text in (inputs, outputs)]
    return helper.make_node(op, *names, **attributes)


def conv(inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return node("Conv", inputs, outputs, **attributes)


W = {
    "w": random(1, 4, 3, 3, 3),
    "b": random(2, 4),
    "v": random(3, 5, 4, 3, 3),
    "d": random(4, 4, 1, 3, 3),
    "e": random(5, 4),
    "u": random(6, 4, 4, 1, 1),
    "s": random(7, 4, 1, 1),
    "m": random(8, 64, 7),
    "n": random(9, 7, 2),
    "q": random(10, 8, 4, 1, 1),
    "t": random(11, 4, 5, 2, 2),
    "g": random(12, 8, 4, 1, 1),
    "one": np.float32([1]),
    "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
    "shape": np.int64([0, -1]),
    "six": np.float32(6),
    "zero": np.float32(0),
    "o": random(13, 3, 5, 1, 1),
    "k": random(14, 3, 8, 1, 1),
}
"""Constants by name; each case takes those that it reads."""

PAD = {"pads": [1, 1, 1, 1]}

CASES: dict[str, tuple[list[onnx.NodeProto], list[int]]] = {
    "relu": ([conv("x w b", "a"), node("Relu", "a", "r"), conv("r v", "y")], [4]),
    "leaky and padding": (
        [
            conv("x w b", "a"),
            node("LeakyRelu", "a", "r"),
            node("Pad", "r pads", "p"),
            conv("p v", "y"),
        ],
        [4],
    ),
    "own slopes": ([conv("x w", "a"), node("PRelu", "a s", "r"), conv("r v", "y")], [4]),
    "depthwise": (
        [
            conv("x w b", "a"),
            node("Relu", "a", "r"),
            conv("r d e", "c", group=4),
            node("Relu", "c", "f"),
            conv("f u", "y"),
        ],
        [4, 4],
    ),
    "residual": (
        [
            conv("x w b", "a"),
            conv("a u", "c"),
            node("Relu", "c", "f"),
            node("Add", "f a", "h"),
            node("Add", "h s", "i"),
            conv("i v", "y"),
        ],
        [4],
    ),
    "a gate": (
        [
            conv("x w b", "a"),
            node("GlobalAveragePool", "a", "p"),
            conv("p u e", "c"),
            node("Sigmoid", "c", "s1"),
            node("Mul", "s1 a", "h"),
            conv("h v", "y"),
        ],
        [4],
    ),
    "concatenated and flattened": (
        [
            conv("x w b", "a"),
            conv("x w1 e", "c"),
            node("Concat", "a c", "h", axis=1),
            node("MaxPool", "h", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Slice", "p starts ends axes", "l"),
            node("Flatten", "l", "f"),
            node("MatMul", "f m", "i"),
            node("Relu", "i", "j"),
            node("Gemm", "j n", "y"),
        ],
        [8, 7],
    ),
    "split": (
        [
            conv("x q1", "a"),
            node("Split", "a", "c d2", axis=1),
            node("Relu", "c", "f"),
            node("Max", "f d2", "h"),
            conv("h v", "y"),
        ],
        [4],
    ),
    "transposed convolution": (
        [conv("x w", "a"), node("ConvTranspose", "a t", "c"), conv("c o", "y")],
        [4, 5],
    ),
    "a normalization": (
        [
            conv("x w", "a"),
            node("BatchNormalization", "a e e1 e2 e3", "c"),
            node("Relu", "c", "f"),
            conv("f v", "y"),
        ],
        [4],
    ),
    "a bound for all channels": (
        [conv("x w", "a"), node("Clip", "a zero six", "r"), conv("r v", "y")],
        [],
    ),
    "a sigmoid": ([conv("x w", "a"), node("Sigmoid", "a", "r"), conv("r v", "y")], []),
    "a constant for all channels": (
        [conv("x w", "a"), node("Add", "a one", "r"), conv("r v", "y")],
        [],
    ),
    "an output in between": ([conv("x w", "y"), conv("y v", "other")], []),
    "a reduction over channels": (
        [
            conv("x w", "a"),
            node("ReduceSum", "a ones", "c", keepdims=1),
            node("Add", "c a", "r"),
            conv("r v", "y"),
        ],
        [],
    ),
    "two layers with the same weights": (
        [conv("x w", "a"), conv("a u", "c"), conv("c u", "d3"), conv("d3 v", "y")],
        [],
    ),
    "groups": ([conv("x q1", "a"), conv("a g", "c", group=2), conv("c k", "y")], []),
}

MORE = {
    "w1": random(15, 4, 3, 3, 3),
    "q1": random(16, 8, 3, 1, 1),
    "starts": np.int64([0]),
    "ends": np.int64([8]),
    "axes": np.int64([1]),
    "e1": random(17, 4),
    "e2": random(18, 4),
    "e3": np.abs(random(19, 4)) + 1,
    "ones": np.int64([1]),
}


def model_of(nodes: list[onnx.NodeProto], more: Mapping[str, Any] = MappingProxyType({})) -> Model:
    read = {name for n in nodes for name in n.input}
    constants = {name: array for name, array in {**W, **MORE, **more}.items() if name in read}
    if "m" in read:
        constants["m"] = random(8, 32, 7)
    model = from_proto(build(nodes, constants, ["N", 3, 6, 6]))
    infer_shapes(model)
    return model


def run(model: Model) -> Any:
    return Session(model, optimize=False).run({"x": X})["y"]


def regions_of(model: Model) -> list[Region]:
    return find_regions(analyze(model, prune_normalized=True))


def scaled(model: Model, seed: int, power: float = 2) -> Model:
    generator = np.random.default_rng(seed)
    for region in regions_of(model):
        apply_factors(model, region, 10 ** generator.uniform(-power, power, region.size))
    return model


def sqnr(expected: Any, found: Any) -> float:
    noise = np.square(found - expected, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(expected, dtype=np.float64).sum() / noise))


@pytest.mark.parametrize("case", CASES)
def test_factors_of_a_region_change_nothing(case: str) -> None:
    nodes, sizes = CASES[case]
    model = model_of(nodes)
    expected = run(model)
    assert sorted(r.size for r in regions_of(model)) == sorted(sizes)
    before = {name: v.const.numpy() for name, v in model.graph.initializers.items()}
    scaled(model, 0)
    onnx.checker.check_model(to_proto(model), full_check=True)
    np.testing.assert_allclose(run(model), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())
    assert (before.keys() != model.graph.initializers.keys()) == bool(sizes)


@pytest.mark.parametrize(("start", "end"), [(0, 4), (0, 2), (1, 3), (3, 4)])
@pytest.mark.parametrize("op_type", ["Slice", "Split", "Gather"])
def test_channels_that_are_cut_off_keep_none_from_being_scaled(
    op_type: str, start: int, end: int
) -> None:
    constants = {"k": random(30, 5, end - start, 1, 1), "last": random(31, 3, 5, 1, 1)}
    constants |= {"starts": np.int64([start]), "ends": np.int64([end]), "axes": np.int64([1])}
    constants |= {"places": np.arange(start, end), "sizes": np.int64([start, end - start, 4 - end])}
    cut = {
        "Slice": node("Slice", "a starts ends axes", "c"),
        "Split": node("Split", "a sizes", "c0 c c2", axis=1),
        "Gather": node("Gather", "a places", "c", axis=1),
    }[op_type]
    model = model_of([conv("x w", "a"), cut, conv("c k", "y")], constants)
    expected = run(model)
    kept = end - start
    assert [r.size for r in regions_of(model)] == ([kept] if kept > 1 else [])
    scaled(model, 0)
    np.testing.assert_allclose(run(model), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", [c for c, (_, sizes) in CASES.items() if sizes])
def test_equalization_undoes_bad_scales(case: str, per_channel: bool) -> None:
    """Judged by other samples than ranges were chosen by: those that show less count less."""
    model = model_of(CASES[case][0])
    shown, others = {"x": random(9, 64, 3, 6, 6)}, {"x": random(99, 64, 3, 6, 6)}
    expected = Session(model, optimize=False).run(others)["y"]

    def quality(model: Model, *, equalized: bool) -> float:
        QuantizeStatic(per_channel=per_channel, equalize=equalized).run(model, Context(shown))
        return sqnr(expected, Session(model).run(others)["y"])

    plain = quality(model.clone(), equalized=False)
    assert quality(model.clone(), equalized=True) > plain - 2.5
    assert quality(scaled(model.clone(), 1), equalized=False) < plain - 3
    assert quality(scaled(model.clone(), 1), equalized=True) > plain - 3


def test_where_nothing_gains_nothing_changes() -> None:
    model = model_of(CASES["relu"][0])
    text = to_proto(model).SerializeToString(deterministic=True)
    samples = Samples(model, {"x": np.zeros_like(X)})
    model.graph.initializers["b"].const = type(model.graph.initializers["b"].const).from_array(
        np.zeros(4, np.float32)
    )
    before = to_proto(model).SerializeToString(deterministic=True)
    assert equalize(model, samples, per_channel=True) == []
    assert to_proto(model).SerializeToString(deterministic=True) == before != text


@pytest.mark.parametrize("dead", [(), (0,), (1, 3)])
def test_channels_that_nothing_is_put_out_by_hide_no_gain(dead: tuple[int, ...]) -> None:
    """Of a reader's results some are always zero: the others are still to be equalized."""
    model = model_of(CASES["relu"][0])
    for name in ("v", "w"):
        value = model.graph.initializers[name]
        assert value.const is not None
        array = value.const.numpy().copy()
        if name == "v":
            array[list(dead)] = 0
        else:
            array[0] *= 1000
        value.const = Tensor.from_array(array)
    found = equalize(model, Samples(model, {"x": X}), per_channel=True)
    assert len(found) == 1


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("unread", [False, True])
def test_factors_make_activations_finer_in_any_unit(unread: bool, per_channel: bool) -> None:
    """A channel of larger values than others, which decides how finely those are rounded, gets a
    factor, even where it isn't read; in another unit of activations the gain is the same."""
    gains = []
    for unit in (1.0, 2.0**-10, 2.0**10, 1e-3, 1e3):
        model = model_of(CASES["relu"][0])
        for name, factor in (("w", unit), ("b", unit), ("v", 1 / unit)):
            value = model.graph.initializers[name]
            assert value.const is not None
            array = value.const.numpy() * factor
            if name == "v":
                array[:, 0] *= 0 if unread else 1e-2
            else:
                array[0] *= 100
            value.const = Tensor.from_array(array.astype(np.float32))
        (found,) = equalize(model, Samples(model, {"x": X}), per_channel=per_channel)
        gains.append(found.before / found.after)
    np.testing.assert_allclose(gains[:3], gains[0], rtol=1e-3)
    np.testing.assert_allclose(gains, gains[0], rtol=2e-3)  # counted by quarters of an octave
    assert gains[0] > (500 if unread else 50)


@pytest.mark.parametrize("per_channel", [True, False])
def test_channels_that_are_not_read_have_factors_in_every_mixture(
    per_channel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the least read one: without, what they hold would decide how finely others are rounded."""
    tried: list[Any] = []
    normal = _RoundingNoise._normal

    def record(noise: _RoundingNoise, factors: Any) -> Any:
        tried.append(factors)
        return normal(noise, factors)

    monkeypatch.setattr(_RoundingNoise, "_normal", record)
    model = model_of(CASES["relu"][0])
    value = model.graph.initializers["v"]
    assert value.const is not None
    array = value.const.numpy().copy()
    array[:, [0, 2]] = 0
    value.const = Tensor.from_array(array)
    equalize(model, Samples(model, {"x": X}), per_channel=per_channel)
    assert len(tried) >= len(MIXTURES)
    assert all(np.isfinite(factors).all() and (factors > 0).all() for factors in tried)
