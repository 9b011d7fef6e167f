"""Samples that are made up: what they look like, and what recovery makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.data.datasets import load_dataset
from secateur.data.npz import DataError
from secateur.data.synthetic import LOOKED_AT, Synthetic, _Image, synthetic_arrays
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.models import zoo
from secateur.passes.base import Context
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels, Recover


def model_of(nodes, weights, inputs):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=9)
    model = from_proto(proto)
    infer_shapes(model)
    return model


def starts_with(nodes, weights, shape=(1, 3, 16, 16), dtype=TensorProto.FLOAT):
    """A model that does something with an image before it gets to a convolution."""
    weights = {k: np.asarray(v, np.float32) for k, v in weights.items()}
    weights["kernel"] = np.ones((4, 3, 3, 3), np.float32)
    last = nodes[-1].output[0] if nodes else "x"
    nodes = [*nodes, helper.make_node("Conv", [last, "kernel"], ["y"])]
    return model_of(nodes, weights, [("x", dtype, shape)])


def node(op_type, *inputs, **attributes):
    return helper.make_node(op_type, inputs, [f"{op_type}_result"], **attributes)


STARTS = [
    ([node("Sub", "x", "m")], {"m": np.full((3, 1, 1), 120)}, (0, 255)),
    (
        [node("Sub", "x", "m"), node("Div", "Sub_result", "s")],
        {"m": np.full((3, 1, 1), 0.45), "s": np.full((3, 1, 1), 0.22)},
        (0, 1),
    ),
    ([node("Mul", "x", "s"), node("Add", "Mul_result", "m")], {"s": 1 / 127.5, "m": -1}, (0, 255)),
    (
        [node("BatchNormalization", "x", "a", "b", "m", "v")],
        {"a": np.ones(3), "b": np.zeros(3), "m": np.full(3, 0.5), "v": np.full(3, 0.1)},
        (0, 1),
    ),
    ([node("Sub", "x", "m")], {"m": np.full((3, 1, 1), 0.0)}, (-1, 1)),
]


@pytest.mark.parametrize(("nodes", "weights", "wanted"), STARTS)
def test_the_range_is_read_from_what_the_model_does_first(nodes, weights, wanted):
    array = synthetic_arrays(Synthetic(count=48), starts_with(nodes, weights))["x"]
    assert array.shape == (48, 3, 16, 16)
    low, high = wanted
    width = high - low
    assert low <= array.min() < low + 0.2 * width
    assert high - 0.2 * width < array.max() <= high


def test_a_range_that_the_model_does_not_tell_is_asked_for():
    model = starts_with([], {})
    with pytest.raises(DataError, match=r"synthetic:LOW:HIGH"):
        synthetic_arrays(Synthetic(), model)
    array = synthetic_arrays(Synthetic(0, 255, count=8), model)["x"]
    assert 100 < array.max() <= 255


def test_bytes_have_the_range_of_bytes():
    nodes = [node("Cast", "x", to=TensorProto.FLOAT)]
    model = starts_with(nodes, {}, dtype=TensorProto.UINT8)
    array = synthetic_arrays(Synthetic(count=8), model)["x"]
    assert array.dtype == np.uint8
    assert array.std() > 10


@pytest.mark.parametrize("text", ["synthetic:1", "synthetic:2:1", "synthetic:0:nan", "made-up"])
def test_ranges_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=text.split(":")[0]):
        Synthetic.parse(text)


def test_images_have_falling_spectra_and_colours_that_go_together():
    model = starts_with([], {}, shape=(1, 3, 32, 32))
    array = synthetic_arrays(Synthetic(0, 1, count=64), model)["x"]
    power = np.square(np.abs(np.fft.fft2(array - array.mean((2, 3), keepdims=True)))).mean((0, 1))
    assert power[0, 1] > 4 * power[0, 4] > 16 * power[0, 12]
    centred = array - array.mean((2, 3), keepdims=True)
    red, green = centred[:, 0].reshape(64, -1), centred[:, 1].reshape(64, -1)
    assert np.mean([np.corrcoef(r, g)[0, 1] for r, g in zip(red, green, strict=True)]) > 0.7
    assert array.mean((1, 2, 3)).std() > 0.05
    assert (synthetic_arrays(Synthetic(0, 1, count=64), model)["x"] == array).all()


@pytest.mark.parametrize("contrast", [0.12, 0.3])
def test_images_are_like_those_that_statistics_were_kept_of(contrast):
    """The contrast that a normalization saw in training is the one that is chosen."""
    random = np.random.default_rng(0)
    kernel = random.standard_normal((4, 3, 3, 3)).astype(np.float32)
    plain = model_of(
        [helper.make_node("Conv", ["x", "kernel"], ["y"])],
        {"kernel": kernel},
        [("x", TensorProto.FLOAT, (1, 3, 16, 16))],
    )
    image = _Image(plain, plain.graph.inputs[0], (1, 3, 16, 16))
    seen = image.draw((0.09, contrast, 0.3), LOOKED_AT, 7)
    y = np.concatenate([Session(plain).run({"x": seen[k : k + 1]})["y"] for k in range(LOOKED_AT)])
    weights = {
        "kernel": kernel,
        "a": np.ones(4, np.float32),
        "b": np.zeros(4, np.float32),
        "m": y.mean((0, 2, 3)),
        "v": y.var((0, 2, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "a", "b", "m", "v"], ["y"]),
    ]
    model = model_of(nodes, weights, [("x", TensorProto.FLOAT, (1, 3, 16, 16))])
    array = synthetic_arrays(Synthetic(0, 1, count=64), model)["x"]
    deviation = (array - array.mean((2, 3), keepdims=True)).std()
    wanted = (seen - seen.mean((2, 3), keepdims=True)).std()
    assert abs(np.log(deviation / wanted)) < 0.35


@pytest.mark.parametrize("name", ["bert", "bidirectional_lstm", "tcn"])
def test_other_inputs_are_noise_that_the_model_runs_with(name):
    model = zoo.load_tiny(name, "folded")
    found = load_dataset(Synthetic(count=6), model)
    assert found.synthetic
    assert len(found.samples) == 6


def test_pruning_with_synthetic_samples_orders_by_weights_and_recovers():
    model = zoo.load_tiny("resnet8", "kept")
    arrays = load_dataset(Synthetic(0, 1, count=64), model).samples.arrays
    context = Context(arrays, synthetic=True)
    records = PassManager([PruneChannels(macs=0.7), Recover()]).run(model, context)
    best = records[0].result.statistics["candidates"][0]
    assert best["divergence"] < best["divergence_unrecovered"]
    assert records[1].result.changed
