"""Recipes: what they may say, how options override them, what is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from click.testing import CliRunner, Result

from secateur.cli import main
from secateur.cli.optimize import command as optimize
from secateur.ir.errors import SecateurError
from secateur.pipeline import recipe as recipes

MODEL = """<ir_version: 9, opset_import: ["": 18]>
agraph (float[n, 4] x, float[1] gain) => (float[n, 3] y) {
a = MatMul(x, v)
b = Relu(a)
c = MatMul(b, w)
y = Mul(c, gain)
}"""

NOT_IN_RECIPES = {
    "model",
    "output",
    "recipe",
    "save_recipe",
    "depfile",
    "dump",
    "resume",
    "dry_run",
    "as_json",
    "cache",
}
"""Parameters of the command that say where files lie, not what is done."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model, rng = onnx.parser.parse_model(MODEL), np.random.default_rng(1)
    for name, sizes in (("v", (4, 8)), ("w", (8, 3))):
        weights = rng.standard_normal(sizes, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    onnx.save(model, tmp_path / "m.onnx")
    data = tmp_path / "data"
    data.mkdir()
    samples = np.random.default_rng(0).random((8, 4), np.float32)
    np.savez(data / "c.npz", x=samples, gain=np.ones((8, 1), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*map(str, words)])
    assert result.exit_code == code, result.output
    return result


def options(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())["options"]
    return found


def test_every_option_has_a_key_and_every_key_an_option() -> None:
    known = {p.name for p in optimize.params if isinstance(p, click.Option)}
    parameters = [parameter for *_, parameter in recipes.entries()]
    assert len(set(parameters)) == len(parameters)
    assert set(parameters) == known - NOT_IN_RECIPES - {"no_cache"}
    assert set(recipes.EXAMPLES) == set(parameters)


RECIPE = """
[input]
shapes = { x = [2, 4] }
values = { gain = [2.0] }
[data]
calibration = "c.npz"
[prune]
params = 0.6
align = 1
ignore = ["b"]
[quantize]
scheme = "int8"
[compile]
target = "native"
[run]
seed = 3
"""


def test_a_recipe_says_what_options_say_and_options_override_it(place: Path) -> None:
    """Data lie beside the recipe. What is saved does the same again."""
    (place / "data" / "r.toml").write_text(RECIPE)
    np.savez(place / "data" / "c.npz", x=np.random.default_rng(0).random((8, 4), np.float32))
    run("optimize", "m.onnx", "-o", "a", "--recipe", "data/r.toml")
    said = options(place / "a")
    assert (said["params"], said["quantize"], said["seed"]) == (0.6, "int8", 3)
    assert (said["input_values"], said["input_shapes"]) == ({"gain": "2.0"}, {"x": [2, 4]})
    words = ("--macs", "0.9", "--seed", "4", "--save-recipe", "saved.toml", "--depfile", "d")
    run("optimize", "m.onnx", "-o", "b", "--recipe", "data/r.toml", *words)
    assert [options(place / "b")[k] for k in ("params", "macs", "seed")] == [None, 0.9, 4]
    made, *others = (place / "d").read_text().splitlines()
    assert made == "b/model.so: m.onnx data/c.npz data/r.toml"
    assert others == ["m.onnx:", "data/c.npz:", "data/r.toml:"]
    run("optimize", "m.onnx", "-o", "c", "--recipe", "saved.toml")
    assert options(place / "c") == options(place / "b")
    for name in ("model.onnx", "model.so"):
        assert (place / "c" / name).read_bytes() == (place / "b" / name).read_bytes()


def test_data_of_folders_and_functions(place: Path) -> None:
    """What lies in a folder is depended on; a function is no file beside the recipe."""
    folder = place / "data" / "arrays"
    folder.mkdir()
    np.save(folder / "x.npy", np.ones((4, 4), np.float32))
    np.save(folder / "gain.npy", np.ones((4, 1), np.float32))
    text = '[data]\ncalibration = "arrays"\nevaluation = "some.module:function"\n'
    (place / "data" / "r.toml").write_text(text)
    read = recipes.read_recipe(Path("data") / "r.toml")
    assert (read.data.calibration, read.data.evaluation) == ("data/arrays", "some.module:function")
    (place / "data" / "r.toml").write_text('[data]\ncalibration = "arrays"\n')
    words = ("--recipe", "data/r.toml", "--target", "native", "--depfile", "d")
    run("optimize", "m.onnx", "-o", "o", *words, "--save-recipe", "saved.toml")
    made = (place / "d").read_text().splitlines()[0]
    files = "data/arrays data/arrays/gain.npy data/arrays/x.npy"
    assert made == f"o/model.so: m.onnx {files} data/r.toml"
    saved = '[data]\ncalibration = "data/arrays"\n\n[compile]\ntarget = "native"\n'
    assert (place / "saved.toml").read_text() == f"version = 1\n\n{saved}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[prun]\nmacs = 1", "unknown key 'prun'; did you mean 'prune'?"),
        ("[prune]\nmac = 0.5", "unknown key 'prune.mac'; did you mean 'macs'?"),
        ("macs = 0.5", "unknown key 'macs'; did you mean 'prune.macs'?"),
        ("[compile]\n'a\\u001b' = 1", "unknown key 'compile.a"),
        ("[prune]\nmacs = 0", "prune.macs: Expected `float` > 0"),
        ("[prune]\nmacs = 'much'", "prune.macs: Expected `float"),
        ("[prune]\nignore = 'a'", "prune.ignore: Expected `array"),
        ("[input]\nshapes = { x = [-1] }", "input.shapes[...][0]: Expected `int` >= 0"),
        ("prune = 3", "prune: Expected `object`"),
        ("version = 2", "version: Invalid enum value 2"),
        ("[prune", "no TOML: "),
        ("\0", "no TOML: "),
        ('[data]\ncalibration = "a\\u0000"', "data.calibration: no name of a file"),
    ],
)
def test_what_a_recipe_cannot_say(place: Path, text: str, message: str) -> None:
    (place / "r.toml").write_text(text)
    with pytest.raises(SecateurError, match=re.escape(message)) as caught:
        recipes.read_recipe(place / "r.toml")
    assert str(caught.value).isprintable()
    result = run("optimize", "m.onnx", "-o", "o", "--recipe", "r.toml", code=1)
    assert result.output.startswith("Error: r.toml: ")
    assert not (place / "o").exists()


def test_a_recipe_that_is_not_there(place: Path) -> None:
    result = run("optimize", "m.onnx", "-o", "o", "--recipe", "raspbery-pi-5", code=1)
    assert "did you mean 'raspberry-pi-5'?" in result.output
    assert "No such file" in run("recipe", "check", "no.toml", code=1).output
    (place / "big.toml").write_text("#" * (recipes.MOST_BYTES + 1))
    run("recipe", "check", "big.toml", code=1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[data]\npreprocess = ["sise=3x3"]', "did you mean size?"),
        ('[data]\nmetrics = ["topp"]', "did you mean top5?"),
        ('[compile]\ntarget = "x86-64-v9"', "unknown target 'x86-64-v9'"),
        ('[quantize]\ncalibrator = "entropyy"', "calibrator 'entropyy' is unknown"),
        ('[prune]\nimportance = "l9"', "unknown importance 'l9'"),
        ("[prune]\nmacs = 0.5\nratio = 0.5", "Give one of --macs"),
        ('[prune]\nmacs = 0.5\nlimits = ["a=2..1"]', "limit 'a=2..1'"),
        ('[prune]\nlatency = "2mss"', "latency: '2mss'"),
        ('[compile]\nsizes = ["a=one"]', "--size a=one: no sizes"),
        ("[data]\nembed-preprocessing = true", "needs --preprocess"),
    ],
)
def test_a_check_finds_what_a_run_would_refuse(place: Path, text: str, says: str) -> None:
    """Without a target or samples, which options may give."""
    (place / "r.toml").write_text(f"version = 1\n{text}\n")
    output = run("recipe", "check", "r.toml", code=1).output
    assert output.startswith("Error: r.toml: ")
    assert says in output
    assert len(output.splitlines()) == 1


def test_a_new_recipe_replaces_none(place: Path) -> None:
    (place / "r.toml").write_text("# mine\n")
    assert "is there already" in run("recipe", "init", "m.onnx", "-o", "r.toml", code=1).output
    assert (place / "r.toml").read_text() == "# mine\n"


@pytest.mark.parametrize("name", recipes.preset_names())
def test_recipes_that_come_along_are_well_formed(place: Path, name: str) -> None:
    run("recipe", "check", name)
    run("recipe", "init", "m.onnx", "--preset", name, "-o", "r.toml")
    assert recipes.read_recipe(place / "r.toml") == recipes.read_recipe(recipes.find_recipe(name))


def test_a_new_recipe_explains_every_key_with_a_value_that_it_may_have(place: Path) -> None:
    run("recipe", "init", "m.onnx", "-o", "r.toml")
    text = (place / "r.toml").read_text()
    assert recipes.read_recipe(place / "r.toml") == recipes.Recipe()
    for _, _, key, _ in recipes.entries():
        assert re.search(rf"^# .+\n#{key} = ", text, re.MULTILINE), key
    assert '#shapes = { "x" = [1, 4], "gain" = [1] }' in text
    (place / "r.toml").write_text(re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE))
    filled = recipes.read_recipe(place / "r.toml")
    assert len(recipes.parameters(filled)) == len(recipes.EXAMPLES)


def test_the_schema_is_the_published_one_and_says_what_the_parser_does() -> None:
    schema = json.loads(run("recipe", "schema").output)
    published = Path(__file__).parents[2] / "docs" / "recipe.schema.json"
    assert json.loads(published.read_text()) == schema
    check = jsonschema.Draft202012Validator(schema)
    for content in ({}, {"prune": {"macs": 0.5}}, {"prune": {"bytes": "2kB"}}, {"version": 1}):
        recipes.parse_recipe(content)
        assert check.is_valid(content)
    for wrong in ({"prun": {}}, {"prune": {"mac": 1}}, {"prune": {"macs": 2}}, {"version": 2}):
        with pytest.raises(SecateurError):
            recipes.parse_recipe(wrong)
        assert not check.is_valid(wrong)


def test_a_library_in_place_of_an_artifact_is_run_and_measured(place: Path) -> None:
    (place / "labels").write_text("one\ntwo\nthree\n")
    words = ("--target", "native", "--format", "library", "--name", "net", "--labels", "labels")
    run("optimize", "m.onnx", "-o", "o", *words, "--depfile", "d", "--calibration", "data/c.npz")
    names = {p.name for p in (place / "o").iterdir()}
    library = {"net.h", "net.hpp", "net.py", "net.json", "net.pc", "libnet.a", "libnet.so"}
    assert names - {"report.html"} == {"model.onnx", "report.json", "report.md", *library}
    artifact = json.loads((place / "o" / "report.json").read_text())["artifact"]
    assert artifact["ran"]
    assert artifact["agreement"]["runs"] == 8
    assert artifact["agreement"]["relative_difference"] < 1e-6
    assert artifact["file_bytes"] == (place / "o" / "libnet.a").stat().st_size
    assert (place / "d").read_text().startswith("o/libnet.a: m.onnx data/c.npz labels\n")
    run("optimize", "m.onnx", "-o", "o", "--target", "native")
    assert "model.so" in {p.name for p in (place / "o").iterdir()}


def test_what_a_library_is_not_made_with(place: Path) -> None:
    words = ("optimize", "m.onnx", "-o", "o", "--target", "native", "--format", "library")
    assert "leave out fallback" in run(*words, "--fallback", code=1).output
    assert "name 'report'" in run(*words, "--name", "report", code=1).output
    assert "--format library" in run(*words[:-2], "--name", "net", code=2).output
