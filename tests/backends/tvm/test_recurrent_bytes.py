"""Recurrent layers whose weights are bytes: as ONNX Runtime computes the same file, and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import BlockProductOp, LoopsOp, MatMulOp, RecurrentOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.graph import Node, Value
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.ops.recurrent import GATES
from secateur.ir.reference import Session
from secateur.ir.tensor import Tensor
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeDynamic, QuantizeStatic
from secateur.passes.quantize.weights import quantize_weight
from tests.passes.recurrent_models import (
    HIDDEN,
    STEPS,
    feed_of,
    node_of,
    recurrent_model,
    samples_of,
)

FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LSTM": ("LSTM", "bidirectional", {}),
    "LSTM that clips": ("LSTM", "reverse", {"clip": 0.4}),
    "GRU": ("GRU", "bidirectional", {}),
    "GRU that resets later": ("GRU", "forward", {"linear_before_reset": 1}),
    "RNN": ("RNN", "reverse", {}),
}


STORED, STATIC, DYNAMIC = "stored", "static", "dynamic"
"""Bytes as weights alone, of inputs, too, and of states, too."""


def in_bytes(model: Model, how: str) -> Model:
    copy = model.clone()
    if how == STATIC:
        QuantizeStatic().run(copy, Context(samples_of(model)))
    elif how == DYNAMIC:  # of 7 bits: ONNX Runtime saturates products of 8 on a CPU without VNNI
        QuantizeDynamic(scan_from=0, reduce_range=True).run(copy, Context())
    else:
        store_weights(copy)
    return copy


def store_weights(model: Model) -> None:
    """As other tools do: a scale for each row of the weights, in front of the layer."""
    (layer,) = (node for node in model.graph.nodes if node.op_type in GATES)
    for position in (1, 2):
        source = layer.input(position)
        assert source is not None
        assert source.const is not None
        quantized = quantize_weight(source.const.numpy(), 1, 127, 0.0)
        inputs = [
            model.graph.add_initializer(model.fresh_name(hint), Tensor.from_array(array))
            for hint, array in (("q", quantized.integers), ("s", quantized.scale))
        ]
        floats = Value(model.fresh_name("floats"), source.type)
        restore = Node("DequantizeLinear", inputs, [floats])
        restore.set("axis", 1)
        restore.graph = model.graph
        model.graph.nodes.insert(0, restore)
        layer.set_input(position, floats)
        del model.graph.initializers[source.name]


def check(model: Model, runtime: Runtime, sizes: list[tuple[int, int]]) -> None:
    for seed, (steps, batch) in enumerate(sizes):
        feed = feed_of(model, seed, steps, batch)
        want, have = Session(model).run(feed), runtime.run(feed)
        for name, array in want.items():
            np.testing.assert_allclose(have[name], array, rtol=2e-5, atol=1e-5, err_msg=name)


def compiled(model: Model, folder: Path, target: str = "native") -> Runtime:
    compile_model(model.clone(), parse_target(target), folder / "m.so")
    return Runtime(folder / "m.so")


@pytest.mark.parametrize("how", [STORED, STATIC, DYNAMIC])
@pytest.mark.parametrize("form", FORMS)
def test_one_artifact_for_all_lengths_and_batches(form: str, how: str, tmp_path: Path) -> None:
    kind, direction, attributes = FORMS[form]
    later = form == "GRU that resets later" and how != DYNAMIC  # whose samples share a scale
    batch: int | str = "b" if later else 3  # takes LLVM seconds
    model = recurrent_model(kind, direction, inputs="x w r b _ i", batch=batch, **attributes)
    rounded = in_bytes(model, how)
    runtime = compiled(rounded, tmp_path)
    sizes = [(STEPS, 3), (1, 1), (2, 9), (17, 4)]
    check(rounded, runtime, [(n, b if batch == "b" else 3) for n, b in sizes])


@pytest.mark.parametrize("form", FORMS)
def test_states_that_are_no_small_numbers(form: str, tmp_path: Path) -> None:
    """Where states are multiplied as bytes, those past 1, infinite ones and NaN aren't."""
    kind, direction, attributes = FORMS[form]
    model = recurrent_model(kind, direction, inputs="x w r b _ i", steps=4, **attributes)
    store_weights(model)
    (tmp_path / "floats").mkdir()
    runtime, floats = compiled(model, tmp_path), compiled(model, tmp_path / "floats", "x86-64-v3")
    feed = feed_of(model, 0, 4)
    for value in (1, -1, 0, 1e-30, 1.001, -40, 3e38, np.inf, -np.inf, np.nan):
        feed["i"] = np.clip(feed["i"], -1, 1)
        feed["i"][0, 1, 3] = value
        want = floats.run(feed)  # ONNX Runtime takes NaN for a number here and there
        for name, array in runtime.run(feed).items():
            np.testing.assert_allclose(array, want[name], rtol=2e-5, atol=1e-5)
    feed["x"][2, 0, 1] = np.nan
    want = floats.run(feed)
    for name, array in runtime.run(feed).items():
        np.testing.assert_array_equal(np.isnan(array), np.isnan(want[name]))
        assert np.isnan(array).any()


def operations(model: Model) -> list[Any]:
    return list(lower(model.clone(), parse_target("x86-64-v3")).operations)


@pytest.mark.parametrize("how", [STORED, STATIC])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_no_weight_is_kept_as_a_float(kind: str, how: str) -> None:
    """Inputs as bytes are multiplied by bytes, floats by bytes, too, and states by bytes."""
    static = how == STATIC
    found = operations(in_bytes(recurrent_model(kind, steps=STEPS), how))
    (recurrence,) = (op for op in found if isinstance(op, RecurrentOp))
    assert recurrence.weights.dtype == np.int8
    (product,) = (op for op in found if isinstance(op, MatMulOp | BlockProductOp))
    assert isinstance(product, MatMulOp) == static
    assert not any(isinstance(op, LoopsOp) for op in found)
    if static:
        assert product.input.dtype == "uint8"


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_states_that_a_run_rounds_are_multiplied_as_bytes(direction: str) -> None:
    """DynamicQuantizeLSTM: for each direction a product of all inputs, and one of each step."""
    model = recurrent_model("LSTM", direction, inputs="x w r b _ i", steps=STEPS)
    rounded = in_bytes(model, DYNAMIC)
    assert [node.op_type for node in rounded.graph.nodes] == ["DynamicQuantizeLSTM"]
    check_products(rounded, (STEPS + 1) * (2 if direction == "bidirectional" else 1))


def check_products(model: Model, count: int) -> None:
    """As many products, all of bytes."""
    found = operations(model)
    products = [op for op in found if isinstance(op, MatMulOp)]
    assert len(products) == count
    assert {op.input.dtype for op in products} == {"uint8"}
    assert not any(isinstance(op, BlockProductOp | RecurrentOp) for op in found)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize("form", ["GRU", "GRU that resets later", "RNN", "LSTM that clips"])
def test_states_of_a_scan_are_multiplied_as_bytes(form: str, direction: str) -> None:
    """One product of each step, of the GRU that resets first two."""
    kind, _, attributes = FORMS[form]
    rounded = in_bytes(recurrent_model(kind, direction, steps=STEPS, **attributes), DYNAMIC)
    each = STEPS * (2 if form == "GRU" else 1) + 1
    check_products(rounded, each * (2 if direction == "bidirectional" else 1))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_rows_of_states_have_scales_of_their_own(kind: str, tmp_path: Path) -> None:
    """Then a batch may be open, and no sample changes another one."""
    attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
    model = recurrent_model(kind, inputs="x w r b", batch="b", **attributes)
    QuantizeDynamic(scan_from=0, per_token=True, reduce_range=True).run(model, Context())
    runtime = compiled(model, tmp_path)
    check(model, runtime, [(STEPS, 3), (1, 1), (33, 4)])
    feed = feed_of(model, 0, STEPS, 4)
    feed["x"][:, 2] *= 100
    alone = runtime.run({"x": feed["x"][:, 1:2].copy()})
    for name, array in runtime.run(feed).items():
        np.testing.assert_array_equal(array[..., 1:2, :], alone[name])


PARAMETERS = {
    "of all rows": ((), 0, np.int8),
    "with a zero point": ((), 3, np.int8),
    "of the whole range": ((4 * HIDDEN,), 0, np.int8),
    "unsigned": ((), 128, np.uint8),
    "unsigned, too wide": ((), 7, np.uint8),
    "of columns": ((-1,), 0, np.int8),
}


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_weights_as_other_tools_write_them(parameters: str, tmp_path: Path) -> None:
    """One scale or several, zero points, -128: integers where these fit, else floats."""
    shape, zero, dtype = PARAMETERS[parameters]
    random = np.random.default_rng(4)
    bounds = np.iinfo(dtype)
    arrays: dict[str, Any] = {}
    for name, width in (("w", 5), ("r", HIDDEN)):
        numbers = random.integers(bounds.min, bounds.max + 1, (1, 4 * HIDDEN, width))
        numbers[0, 0, 0] = bounds.min
        size = tuple(width if d < 0 else d for d in shape)
        arrays[f"{name}q"] = numbers.astype(dtype)
        arrays[f"{name}s"] = random.uniform(0.002, 0.004, size).astype(np.float32)
        arrays[f"{name}z"] = np.full(size, zero, dtype)
    model = recurrent_model(
        "LSTM", inputs="x wf rf b _ i", steps=STEPS, constants=arrays,
        lead=("DequantizeLinear wq ws wz -> wf", "DequantizeLinear rq rs rz -> rf"),
    )  # fmt: skip
    for node in model.graph.nodes[:2]:
        node.set("axis", 2 if shape == (-1,) else 1)
    check(model, compiled(model, tmp_path), [(STEPS, 3)])


@pytest.mark.parametrize("inputs", ["x w r b l", "x w r b _ i _ p"])
def test_layers_of_plain_loops(inputs: str, tmp_path: Path) -> None:
    """Lengths of sequences, and peepholes."""
    model = recurrent_model("LSTM", inputs=inputs, steps=STEPS)
    for how in (STORED, STATIC):
        rounded = in_bytes(model, how)
        check(rounded, compiled(rounded, tmp_path), [(STEPS, 3)])


def test_what_is_no_number_stays_with_its_sample(tmp_path: Path) -> None:
    """From its step on; ONNX Runtime's Sigmoid makes a number of it."""
    model = recurrent_model("GRU", inputs="x w r b", steps=STEPS, outputs="y")
    rounded = in_bytes(model, STORED)
    runtime = compiled(rounded, tmp_path)
    feed = feed_of(rounded, 0)
    want = Session(rounded).run(feed)["y"]
    feed["x"][2, 1, 3] = np.nan
    have = runtime.run(feed)["y"]
    odd = np.zeros(want.shape, bool)
    odd[2:, :, 1] = True
    np.testing.assert_array_equal(np.isnan(have), odd)
    np.testing.assert_allclose(have[~odd], want[~odd], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("steps", ["n", 1, 6])
def test_infinities_meet_nothing_but_weights(steps: int | str, tmp_path: Path) -> None:
    """Of an open number of rows, of few and of many: gates that they open or close are numbers."""
    model = recurrent_model("GRU", inputs="x w r b", steps=steps, outputs="y")
    rounded = in_bytes(model, STORED)
    runtime = compiled(rounded, tmp_path)
    stored = [v.const for v in rounded.graph.initializers.values() if v.shape == (1, 60, 5)]
    assert stored[0] is not None
    column = int(np.argmax((stored[0].numpy() != 0).all(axis=(0, 1))))  # times 0 it is NaN
    feed = feed_of(rounded, 0, 4)
    for value in (np.inf, -np.inf):
        feed["x"][-1, -1, column] = value
        want, have = Session(rounded).run(feed)["y"], runtime.run(feed)["y"]
        assert np.isfinite(want).all()
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["Gather", "GatherElements", "GatherND"])
def test_tables_stay_bytes(operator: str, tmp_path: Path) -> None:
    """What is gathered of integers is restored behind it, of a constant or of what a run has."""
    shape = {"Gather": [4], "GatherElements": [4, 6], "GatherND": [4, 1]}[operator]
    random = np.random.default_rng(0)
    text = ["DequantizeLinear tq s z -> t", f"{operator} t i -> y"]
    text += ["QuantizeLinear x s z -> xq", "DequantizeLinear xq s z -> xf", "Abs xf -> xa"]
    text += [
        "QuantizeLinear xa s z -> aq",
        "DequantizeLinear aq s z -> af",
        f"{operator} af i -> w",
    ]
    constants = {"tq": random.integers(0, 256, (500, 6)).astype(np.uint8),
                 "s": np.float32(0.02), "z": np.uint8(131)}  # fmt: skip
    graph = helper.make_graph(
        [node_of(line) for line in text],
        "g",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, shape),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [500, 6]),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "w")],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = from_proto(proto)
    infer_shapes(model)
    plan = lower(model.clone(), parse_target("x86-64-v3"))
    assert not any(t.dtype == "float32" and t.elements == 3000 and t.const is not None
                   for op in plan.operations for t in op.reads())  # fmt: skip
    compile_model(model.clone(), parse_target("native"), tmp_path / "m.so")
    runtime = Runtime(tmp_path / "m.so")
    for seed in range(3):
        random = np.random.default_rng(seed)
        feed = {"i": random.integers(-500, 500, shape),
                "x": random.standard_normal((500, 6)).astype(np.float32)}  # fmt: skip
        want, have = Session(model, optimize=False).run(feed), runtime.run(feed)
        for name, array in want.items():
            np.testing.assert_allclose(have[name], array, rtol=1e-6)
    feed["i"].reshape(-1)[0] = 500
    with pytest.raises(SecateurError, match="index"):
        runtime.run(feed)
