"""The text form: printed models parse back to equal ones, and mistakes are explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.ir.errors import ModelError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load
from secateur.ir.text import parse_model, print_model, print_neighbourhood, print_node
from secateur.ir.verify import verify
from secateur.models.zoo import list_models, load_tiny
from secateur.passes.pipeline import parse_pipeline
from tests.backend_cases import generated_cases, model_files
from tests.strategies import models
from tests.test_ir_roundtrip import everything

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))


def check_round_trip(model: Model) -> Model:
    text = print_model(model, max_elements=None)
    parsed = parse_model(text)
    verify(parsed)
    assert print_model(parsed, max_elements=None) == text
    return parsed


def test_backend_cases_come_back() -> None:
    for case in generated_cases()[::8]:
        check_round_trip(from_proto(case.model))
    for path in model_files()[::8]:
        check_round_trip(load(path))


def test_zoo_and_an_overfull_model_come_back() -> None:
    check_round_trip(from_proto(everything()))
    for which in list_models()[::4]:
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
    """A file holds `// PASSES: pipeline`, a model, `// BECOMES:`, and the model after them."""
    header, _, rest = path.read_text().partition("\n")
    before, _, after = rest.partition("// BECOMES:\n")
    model = parse_model(before)
    for pass_ in parse_pipeline(header.removeprefix("// PASSES:").strip()):
        pass_.run(model)
        verify(model)
    assert print_model(model) == after
