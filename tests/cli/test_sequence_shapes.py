"""How the command line and recipes say what sequences and optionals hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from secateur.cli.options import fixed_inputs_options
from secateur.data.fixed_inputs import FixedInputs
from secateur.pipeline import recipe as recipes

GIVEN: dict[str, Any] = {
    "x=1x3": (1, 3),
    "x=": (),
    "x=[2x3,4x3]": ((2, 3), (4, 3)),
    "x=[]": (),
    "x=[scalar,4]": ((), (4,)),
    "x=none": None,
}


def parsed(*arguments: str) -> FixedInputs:
    found: list[FixedInputs] = []

    @click.command()
    @fixed_inputs_options
    def command(fixed: FixedInputs) -> None:
        found.append(fixed)

    command.main([*arguments], standalone_mode=False)
    return found[0]


def plain(given: Any) -> Any:
    return [plain(each) for each in given] if isinstance(given, (tuple, list)) else given


@pytest.mark.parametrize("text", GIVEN)
def test_what_a_shape_says(text: str) -> None:
    """Also as what a recipe says, which is written as it is read."""
    fixed = parsed("--input-shape", text)
    assert fixed.shapes == {"x": GIVEN[text]}
    recipe = recipes.of_parameters({"input_shapes": tuple(fixed.shapes.items())}, Path())
    read: Any = msgspec.convert(msgspec.to_builtins(recipe), recipes.Recipe)
    shape = plain(read.input.shapes["x"])
    assert shape == ("none" if GIVEN[text] is None else plain(GIVEN[text]))
    again = parsed("--input-shape", f"x={recipes.shape_text(shape)}")
    assert again.shapes == fixed.shapes


@pytest.mark.parametrize("text", ["x=[2x3", "x=2x3]", "x=[[2]]", "x=nothing", "x=[-1]", "=[2]"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not of the form"):
        parsed("--input-shape", text)


MODEL = """<ir_version: 8, opset_import: ["" : 18]>
g (seq(float[N,3]) x, float[2,3] t) => (seq(float[N,3]) y, float[M,3] joined) {
  y = SequenceInsert (x, t)
  joined = ConcatFromSequence <axis: int = 0> (y)
}"""


def test_simplification_compares_with_the_original(tmp_path: Path) -> None:
    """In which the tensors are one input."""
    import onnx

    from secateur.cli import main

    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "m.onnx")
    files = [str(tmp_path / "m.onnx"), "-o", str(tmp_path / "s.onnx")]
    main.main(
        ["simplify", *files, "--input-shape", "x=[4x3,1x3]", "--check"], standalone_mode=False
    )
    saved = onnx.load(tmp_path / "s.onnx")
    assert [i.name for i in saved.graph.input] == ["x[0]", "x[1]", "t"]
