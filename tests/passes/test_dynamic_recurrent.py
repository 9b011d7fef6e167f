"""Dynamic quantization of recurrent layers that no operator stands for: a Scan of products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.verify import verify
from secateur.passes.quantize import QuantizeDynamic, RestoreFloat
from secateur.passes.quantize.recurrence import spell_out
from secateur.passes.quantize.rules import Constants

from .recurrent_models import HIDDEN, feed_of, recurrent_model
from .test_equalization import sqnr

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRU": ("GRU", {}),
    "GRU that resets later": ("GRU", {"linear_before_reset": 1}),
    "GRU that clips": ("GRU", {"clip": 0.4}),
    "RNN": ("RNN", {}),
    "RNN of Relu": ("RNN", {"activations": ["Relu", "Relu"], "clip": 0.8}),
    "LSTM": ("LSTM", {}),
    "LSTM that clips": ("LSTM", {"clip": 0.4}),
}
DIRECTIONS = ("forward", "reverse", "bidirectional")
SIZES = ((7, 3), (1, 1), (30, 2))


def layer(form: str, direction: str, inputs: str, outputs: str) -> Model:
    kind, attributes = FORMS[form]
    if "activations" in attributes and direction != "bidirectional":
        attributes = attributes | {"activations": attributes["activations"][:1]}
    return recurrent_model(kind, direction, inputs=inputs, outputs=outputs, batch="b", **attributes)


def check(model: Model, written: Model, least: float) -> None:
    """Outputs have at least so many decibels."""
    verify(written)
    onnx.checker.check_model(to_proto(written), full_check=True)
    for seed, sizes in enumerate(SIZES):
        feed = feed_of(model, seed, *sizes)
        want, have = (Session(each, optimize=False).run(feed) for each in (model, written))
        for name, array in want.items():
            assert have[name].shape == array.shape
            assert sqnr(array, have[name]) > least, (name, sizes)


@pytest.mark.parametrize("inputs", ["x w r", "x w r b", "x w r b _ i"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_steps_compute_what_the_layer_does(form: str, direction: str, inputs: str) -> None:
    for outputs in ("y h", "y", "h"):
        model = layer(form, direction, inputs, outputs)
        written = model.clone()
        products = spell_out(written, written.graph.nodes[0], Constants(written))
        assert {node.op_type for node in products} == {"MatMul"}
        check(model, written, 100)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_products_are_of_integers(form: str, direction: str, per_token: bool) -> None:
    model = layer(form, direction, "x w r b _ i", "y h")
    for per_channel in (True, False):
        written = model.clone()
        pass_ = QuantizeDynamic(per_channel, per_token, reduce_range=True, scan_from=0)
        result = pass_.run(written)
        assert result.statistics["quantized"] == {FORMS[form][0]: 1}
        kinds = {node.op_type for node in written.all_nodes()}
        assert "MatMulInteger" in kinds
        assert not kinds & {"MatMul", "GRU", "RNN", "LSTM"}
        large = [v.dtype for g in written.graph.all_graphs() for v in g.initializers.values()
                 if v.rank == 2 and (v.shape or (0,))[0] == HIDDEN]  # fmt: skip
        assert set(large) == {onnx.TensorProto.INT8}
        check(model, written, 24)


@pytest.mark.parametrize(
    ("inputs", "attributes", "reason"),
    [
        ("x w r b l", {}, "its sequences have lengths of their own"),
        ("x w r b _ i _ p", {}, "it has peepholes"),
        ("x w r b", {"input_forget": 1}, "its gates are tied"),
        ("x w r b", {"activations": ["Sigmoid", "Softsign", "Tanh"]}, "its activation 'Softsign'"),
    ],
)
def test_what_stays_float_says_why(inputs: str, attributes: Any, reason: str) -> None:
    model = recurrent_model("LSTM", inputs=inputs, **attributes)
    before = to_proto(model).SerializeToString(deterministic=True)
    result = QuantizeDynamic(scan_from=0).run(model)
    (note,) = result.notes
    assert (note.node, note.op_type) == ("layer", "LSTM")
    assert note.reason.startswith(reason)
    assert result.statistics["quantized"] == {}
    assert to_proto(model).SerializeToString(deterministic=True) == before


def test_small_layers_stay_float() -> None:
    """Steps of a Scan take time of their own."""
    model = recurrent_model("GRU")
    result = QuantizeDynamic().run(model)
    assert not result.changed
    (note,) = result.notes
    assert note.reason == (
        "each step multiplies 1,200 weights: below 131,072 steps with integers are slower than "
        "those of the float operator"
    )
    random = np.random.default_rng(0)
    for wide, changed in ((208, False), (210, True)):
        arrays = {"w": (1, 3 * wide, 5), "r": (1, 3 * wide, wide), "b": (1, 6 * wide)}
        large = {n: random.standard_normal(s).astype(np.float32) for n, s in arrays.items()}
        model = recurrent_model("GRU", inputs="x w r b", constants=large)
        model.graph.nodes[0].set("hidden_size", wide)
        assert QuantizeDynamic().run(model).changed == changed


def test_a_layer_in_a_body_becomes_a_body_in_it() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[6, 2, 3] x, bool c) => (float[6, 1, 2, 4] y)
        <float[1, 12, 3] w, float[1, 12, 4] r> {
            y = If (c) <
                then_branch = t () => (o) { o = GRU <hidden_size = 4> (x, w, r) },
                else_branch = e () => (p) { n = Neg (x) p = GRU <hidden_size = 4> (n, w, r) }
            >
        }
    """
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in (("w", (1, 12, 3)), ("r", (1, 12, 4))):
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = from_proto(proto)
    written = model.clone()
    result = QuantizeDynamic(scan_from=0, reduce_range=True).run(written)
    assert result.statistics["quantized"] == {"GRU": 2}
    verify(written)
    for chosen in (True, False):
        feed = {"x": random.standard_normal((6, 2, 3)).astype(np.float32), "c": np.asarray(chosen)}
        want, have = (Session(each, optimize=False).run(feed)["y"] for each in (model, written))
        assert sqnr(want, have) > 24


@pytest.mark.parametrize("per_token", [False, True])
def test_steps_become_float_again(per_token: bool) -> None:
    """In bodies, too: of what was rounded the weights alone are left."""
    model = layer("GRU that resets later", "bidirectional", "x w r b _ i", "y h")
    written = model.clone()
    QuantizeDynamic(per_token=per_token, scan_from=0).run(written)
    result = RestoreFloat().run(written)
    assert (result.statistics["restored"], result.notes) == ({"products": 4}, [])
    kinds = [node.op_type for node in written.all_nodes()]
    assert kinds.count("MatMul") == 4
    assert not {"MatMulInteger", "DynamicQuantizeLinear", "QuantizeLinear"} & set(kinds)
    check(model, written, 40)


@pytest.mark.parametrize(
    ("batch", "per_token", "written"), [(3, True, 1), ("b", True, 0), ("b", False, 1)]
)
def test_an_lstm_of_an_open_batch_has_no_scales_that_samples_share(
    batch: int | str, per_token: bool, written: int
) -> None:
    """Where rows have scales of their own; DynamicQuantizeLSTM has one for all."""
    model = recurrent_model("LSTM", inputs="x w r b", steps=5, batch=batch)
    QuantizeDynamic(per_token=per_token, scan_from=0).run(model)
    kinds = [node.op_type for node in model.graph.nodes]
    assert kinds.count("DynamicQuantizeLSTM") == written
    assert kinds.count("Scan") == 1 - written
