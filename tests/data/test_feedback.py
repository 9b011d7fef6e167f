"""Samples of models whose states are fed back: what each step reads, and whole runs with it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import secateur
from secateur.data.npz import DataError

ROOT = Path(__file__).parent.parent.parent
TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 512] input, float[2, N, 16] state) => (float[N, 1] score, float[2, N, 16] next) {
    a = MatMul (input, w)
    zero, one = Split <axis = 0> (state)
    axes = Constant <value_ints = [0]> ()
    s = Squeeze (zero, axes)
    b = MatMul (s, u)
    c = Add (a, b)
    h = Tanh (c)
    first = Unsqueeze (h, axes)
    next = Concat <axis = 0> (first, zero)
    score = MatMul (h, v)
}"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recurrent network that hears 512 samples a step, in the current folder."""
    random = np.random.default_rng(1)
    model = onnx.parser.parse_model(TEXT)
    for name, shape in {"w": (512, 16), "u": (16, 16), "v": (16, 1)}.items():
        array = random.standard_normal(shape).astype(np.float32) / shape[0] ** 0.5
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def weights() -> dict[str, Any]:
    model = onnx.load("model.onnx")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_states_are_what_the_step_before_left(place: Path) -> None:
    random = np.random.default_rng(0)
    sounds = random.standard_normal((2, 3, 5, 512)).astype(np.float32)
    start = random.standard_normal((2, 5, 16)).astype(np.float32)
    first: list[dict[str, Any]] = [{"input": sound} for sound in sounds[0]]
    second = [{"input": sounds[1, 0], "state": start, "labels": np.arange(5)}, *first[1:]]
    found = list(secateur.with_states("model.onnx", [first, second, []], {"state": "next"}))
    assert len(found) == 6
    assert found[3]["labels"].tolist() == [*range(5)]
    w = weights()
    for steps, state in ((found[:3], np.zeros((2, 5, 16))), (found[3:], start)):
        for step in steps:
            np.testing.assert_allclose(step["state"], state, atol=1e-5)
            new = np.tanh(step["input"] @ w["w"] + state[0] @ w["u"])
            state = np.stack([new, state[0]])


def test_names_that_the_model_lacks_are_errors(place: Path) -> None:
    for states, step, text in (
        ({"h": "next"}, {}, "'h' is no input"),
        ({"state": "h"}, {}, "'h' is no output"),
        ({"state": "next"}, {}, "a step has no 'input'"),
    ):
        with pytest.raises(DataError, match=text):
            list(secateur.with_states("model.onnx", [[step]], states))


def test_a_shape_that_is_not_known_has_to_be_given(place: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [value], [output])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), "open.onnx")
    with pytest.raises(DataError, match="'x' has a shape that isn't known"):
        list(secateur.with_states("open.onnx", [[{}]], {"x": "y"}))
    start = {"x": np.float32([1, 2])}
    assert len(list(secateur.with_states("open.onnx", [[start, {}]], {"x": "y"}))) == 2


def test_the_example_of_the_page_is_calibrated_and_evaluated(place: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (place / "stream_of_the_page.py").write_text(example)
    secateur.optimize(
        "model.onnx",
        "out",
        target="native",
        quantize="int8",
        calibration="stream_of_the_page:samples",
        evaluation="stream_of_the_page:samples",
    )
    stages = json.loads((place / "out" / "report.json").read_text())["stages"]
    assert stages[-1]["fidelity"]["outputs"][0]["sqnr_db"] > 15
