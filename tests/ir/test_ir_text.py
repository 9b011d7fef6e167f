"""The text form: printed models parse back to equal ones, and mistakes are explained."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    helper,
    numpy_helper,
)

from secateur.ir.errors import ModelError
from secateur.ir.graph import Value
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load, to_proto
from secateur.ir.text import parse_model, print_model, print_neighbourhood, print_node
from secateur.ir.verify import verify
from secateur.models.zoo import list_models, load_tiny
from secateur.passes.base import Context
from secateur.passes.pipeline import parse_pipeline
from tests.backend_cases import generated_cases, model_files
from tests.ir.test_ir_roundtrip import everything
from tests.strategies import models

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.txt"))


def check_round_trip(model: Model) -> Model:
    text = print_model(model, max_elements=None)
    parsed = parse_model(text)
    verify(parsed)
    assert print_model(parsed, max_elements=None) == text
    return parsed


NOT_IN_TEXT = ("doc_string", "metadata_props", "denotation", "quantization_annotation")


def plain(message: Message) -> Message:
    """A proto without what the text form doesn't hold, with all numbers as raw data."""
    for name in NOT_IN_TEXT:
        if name in message.DESCRIPTOR.fields_by_name and not isinstance(message, ModelProto):
            message.ClearField(name)
    for field, content in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in content if field.is_repeated else [content]:
                plain(item)
    if isinstance(message, TensorProto) and message.data_type != TensorProto.STRING:
        message.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(message), message.name))
    if isinstance(message, NodeProto | OperatorSetIdProto) and not message.domain:
        message.ClearField("domain")
    if isinstance(message, AttributeProto):
        for tensor in ([message.t] if message.HasField("t") else []) + list(message.tensors):
            tensor.ClearField("name")
        if message.HasField("sparse_tensor"):
            message.sparse_tensor.values.ClearField("name")
    return message


@pytest.mark.parametrize("part", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 3))])
def test_backend_cases_come_back(part: int) -> None:
    """To the same proto, but for names of attributes' tensors and how numbers are stored."""
    models = [from_proto(case.model) for case in generated_cases()[part::4]]
    files = [path for path in model_files() if path.stat().st_size < 10**6]
    models += [load(path) for path in files[part::4]]
    assert len(models) > 500
    for model in models:
        parsed = parse_model(print_model(model, max_elements=None))
        assert plain(to_proto(parsed)) == plain(to_proto(model))


ODD = [
    'a "quoted" \\ one',
    "lines\nand\ttabs",
    "ünï✓ \U0001f600",
    "\x1b[31m\x9b\u202e",
    "1e5",
    "nan",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_names_come_back(text: str) -> None:
    """Quoted, on one line, and with nothing that steers a terminal."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [text]) for n in ("x", text)]
    node = helper.make_node(
        "Custom", ["x"], [text], text, domain=f"d{text}", text=text, raw=b"\xff\xed\xa0\x80"
    )
    proto = helper.make_model(helper.make_graph([node], text, infos[:1], infos[1:]))
    printed = print_model(from_proto(proto))
    assert all(c.isprintable() for line in printed.split("\n") for c in line)
    printed.encode()
    assert plain(to_proto(parse_model(printed))) == plain(proto)


def test_zoo_and_an_overfull_model_come_back() -> None:
    check_round_trip(from_proto(everything()))
    for which in list_models()[::12]:
        check_round_trip(load_tiny(*which))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(models())
def test_random_models_come_back(case: tuple) -> None:
    check_round_trip(from_proto(case[0]))


EXAMPLE = """\
model <ir_version = 8, opset = ["" = 17]>
graph example (%x: float[N, 2, ?], %flag: bool[]) -> (%y: float[*]) {
  const %w: float[2, 1] = [[1.5], [-inf]]
  const %"odd name": int64[1] = [-1]
  %a, _ = Dropout @drop(%x, _, _)
  %b = "com.example"::Custom(%a, %w) {text = "a \\"b\\"", list = [1, 2], none = empty ints}
  %y = If @choose(%flag) {else_branch = graph no () -> (%c) {
      %c = Reshape(%b, %"odd name") {allowzero = 0}
    }, then_branch = graph yes () -> (%d) {
      %d = Constant() {value = tensor float[] = 2.0}
    }} : float[*]
}
"""


def test_form() -> None:
    model = parse_model(EXAMPLE)
    assert print_model(model) == EXAMPLE
    assert [n.op_type for n in model.graph.all_nodes()] == [
        "Dropout", "Custom", "If", "Reshape", "Constant",
    ]  # fmt: skip


def test_parts() -> None:
    model = parse_model(EXAMPLE)
    drop, custom, choose = model.graph.nodes
    assert print_node(drop) == "%a, _ = Dropout @drop(%x, _, _)"
    assert "graph no ..." in print_node(choose)
    near = print_neighbourhood(drop, 1).splitlines()
    assert [line[:4] for line in near] == ["  co", "> %a", "  %b"]
    assert print_neighbourhood(custom, 1).count("const %w") == 1


def test_large_constants_are_left_out() -> None:
    model = load_tiny("resnet8", "kept")
    text = print_model(model)
    assert "= ..." in text
    with pytest.raises(ModelError, match=r"line \d+: the constant's elements are left out"):
        parse_model(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("%x, _, _", "%z, _, _", "line 5: '%z' is used before anything defines it"),
        ("-> (%y: float[*])", "-> (%q)", "line 2: nothing defines output '%q'"),
        ("%b = ", "%a = ", "'%a' is defined twice"),
        ("float[N, 2, ?]", "flaot[N]", "line 2: there is no element type 'flaot'"),
        ("[[1.5], [-inf]]", "[1.5]", "line 3: 1 elements do not fill the shape"),
        ("[[1.5], [-inf]]", '["a", "b"]', "line 3: malformed elements"),
        (" : float[*]\n", " : (float[], float[])\n", "2 types for 1 results"),
        ("ir_version = 8", "version = 8", "line 1: a model has no 'version'"),
        ("empty ints", "empty things", "there is no attribute type 'things'"),
        ("@choose", "@", "expected a name"),
        ("graph example", "grap example", "line 2: expected 'graph', found 'grap'"),
        ("  const %w", "  ^", "line 3: unexpected '\\^'"),
        ("[1, 2]", "[]", "line 6: an empty list has no type"),
        ("[1, 2]", '[1, "a"]', "line 6: 'list' has values of different types"),
        ("[1, 2]", "[99999999999999999999]", "line 6: 'list' has values .* out of range"),
        ("[N, 2, ?]", "[1e9]", "line 2: "),
        ("[N, 2, ?]", "[99999999999999999999]", "line 2: "),
        ("ir_version = 8", "ir_version = 99999999999999999999", "line 1: "),
        ("[[1.5], [-inf]]", 'base64 "AAAA"', "line 3: tensor '': 3 bytes stored"),
        ("[[1.5], [-inf]]", '"\\ud800"', "line 3: "),
        ("text = ", 'text = proto "zzzz", more = ', "line 6: Error parsing"),
        ("[N, 2, ?]", "[] , %z: " + "seq(" * 10**5, "line 2: nested too deeply"),
    ],
)
def test_mistakes_are_explained(old: str, new: str, message: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(ModelError, match=message):
        parse_model(EXAMPLE.replace(old, new))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_text_never_crashes(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(EXAMPLE) - 1))
    piece = data.draw(st.text(alphabet='%"@{}[]()<>=,:.?*x1 -', max_size=3))
    try:
        verify(parse_model(EXAMPLE[:at] + piece + EXAMPLE[at + data.draw(st.integers(0, 5)) :]))
    except ModelError as error:
        message = str(error)
        assert message.isprintable()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden(path: Path) -> None:
    """A file holds `// PASSES: pipeline`, a model, `// BECOMES:`, and the model after them.

    Passes that want samples get eight, whose elements rise from -1 to 1.
    """
    header, _, rest = path.read_text().partition("\n")
    before, _, after = rest.partition("// BECOMES:\n")
    model = parse_model(before)
    sizes = {v.name: [s if isinstance(s, int) else 2 for s in v.shape or ()] for v in inputs(model)}
    samples = {
        name: np.linspace(-1, 1, 8 * math.prod(shape[1:]), dtype=np.float32).reshape(8, *shape[1:])
        for name, shape in sizes.items()
    }
    for pass_ in parse_pipeline(header.removeprefix("// PASSES:").strip()):
        pass_.run(model, Context(calibration=samples))
        verify(model)
    assert print_model(model) == after


def inputs(model: Model) -> list[Value]:
    return [value for value in model.graph.inputs if value.shape]
