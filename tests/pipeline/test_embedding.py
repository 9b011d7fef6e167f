"""Preprocessing that is compiled into a model: equal to what reaches the network without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import secateur
from secateur.cli import main
from secateur.data.datasets import FileSource, load_dataset
from secateur.data.embedding import as_pixels, embed
from secateur.data.npz import DataError
from secateur.data.preprocessing import PRESETS, Preprocessing
from secateur.ir.errors import SecateurError
from secateur.ir.reference import Session
from secateur.ir.verify import verify
from tests.data.folder_cases import noise, picture, reading

pytest.importorskip("PIL")

ODD = {"scale": 1 / 255, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "channels": "bgr"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network of convolutions, and pictures of its size in a folder for each class."""
    rng = np.random.default_rng(3)
    arrays = {
        "w": rng.standard_normal((16, 3, 3, 3), np.float32) / 5,
        "b": rng.standard_normal(16, np.float32) / 9,
        "v": rng.standard_normal((4, 16), np.float32) / 4,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    for index in range(12):
        picture(tmp_path / "images" / f"{index % 4}" / f"{index}.png", noise(8, 8, index))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == code, result.output
    return result


def pixels(place: Path) -> Any:
    """Of the pictures, in the order of samples."""
    from PIL import Image

    files = sorted((place / "images").rglob("*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


# --- what reaches the network --------------------------------------------------------------


@pytest.mark.parametrize("how", [*PRESETS, ODD], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize(
    "shape", [["n", 3, 8, 8], [1, 8, 8, 3], [3, 8, 8], ["n", 3, "h", "w"], ["n", 1, 8, 8]], ids=str
)
def test_the_network_gets_the_same_bits(
    tmp_path: Path, shape: list[Any], dtype: Any, how: Any
) -> None:
    named = {"preset": how} if isinstance(how, str) else how
    settings = Preprocessing.of({**named, "size": (8, 8), "fit": "stretch"})
    colours = 1 if 1 in shape[1:] else 3
    if colours == 1 and (settings.channels == "bgr" or len(settings.mean) > 1):
        pytest.skip("for pictures in colour")
    for index in range(3):
        array = noise(8, 8, index)
        array[0, 0], array[0, 1] = 0, 255
        picture(tmp_path / f"{index}.png", array if colours == 3 else array[..., 0])
    source = FileSource(tmp_path, settings)
    model = reading(dtype, x=shape)
    wanted = load_dataset(source, model).samples.arrays["x"][:]
    resolved = embed(model, settings)
    verify(model)
    data = load_dataset(as_pixels(source, resolved), model).samples.arrays["x"]
    assert (data.dtype, data.shape[-1]) == (np.uint8, colours)
    session = Session(model, optimize=False)
    for index, sample in enumerate(wanted):
        batched = len(shape) == 4
        (found,) = session.run({"x": data[index][None] if batched else data[index]}).values()
        np.testing.assert_array_equal(found[0] if batched else found, sample, strict=True)


def test_labels_that_are_pictures_stay_in_the_networks_values(tmp_path: Path) -> None:
    """A model that gives pictures is compared with what its first input would be."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, noise(8, 8, ord(name[0])))
    (tmp_path / "labels.csv").write_text("a.png,b.png\n")
    how = Preprocessing.of("tf")
    plain = load_dataset(FileSource(tmp_path, how), reading(x=[1, 3, 8, 8]), "image")
    model = reading(x=[1, 3, 8, 8])
    source = as_pixels(FileSource(tmp_path, how), embed(model, how))
    assert source is not None
    assert plain.labels is not None
    found = load_dataset(source, model, "image")
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels[0], plain.labels[0], strict=True)


# --- the whole way -------------------------------------------------------------------------

OPTIMIZE = ("optimize", "m.onnx", "--target", "x86-64-v3", "--preprocess", "imagenet")
CALIBRATED = ("--calibration", "images", "--evaluation", "images", "--quantize", "int8")


@pytest.mark.parametrize("more", [(), CALIBRATED], ids=["float", "int8"])
def test_an_artifact_takes_pixels(place: Path, more: tuple[str, ...]) -> None:
    run(*OPTIMIZE, *more, "--embed-preprocessing", "-o", "out", "--preprocess", "fit=stretch")
    runtime = secateur.Runtime(place / "out" / "model.so")
    array = pixels(place)
    assert runtime.inputs == {"x": ("uint8", (None, 8, 8, 3))}
    found = runtime.run({"x": array})["y"]
    how = Preprocessing.of({"preset": "imagenet", "fit": "stretch"})
    ready = how.normalized(array, np.dtype(np.float32)).transpose(0, 3, 1, 2)
    (wanted,) = Session(secateur.load(place / "m.onnx")).run({"x": ready}).values()
    if more:
        assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.8
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    report = json.loads((place / "out" / "report.json").read_text())
    assert "takes bytes" in " ".join(report["notes"])
    assert report["options"]["embed"]["std"] == [0.229, 0.224, 0.225]
    assert all(check["passed"] for check in report["checks"])
    for wrong in (array.astype(np.float32), array.transpose(0, 3, 1, 2)):
        with pytest.raises(SecateurError):
            runtime.run({"x": wrong})


def test_a_recipe_embeds(place: Path) -> None:
    words = (*OPTIMIZE[:2], "-o", "out", "--recipe", "r.toml")
    (place / "r.toml").write_text(
        '[data]\nevaluation = "images"\npreprocess = ["tf", "channels=bgr"]\n'
        'embed-preprocessing = true\n[compile]\ntarget = "x86-64-v3"\n'
    )
    run(*words, "--save-recipe", "s.toml")
    assert "embed-preprocessing = true" in (place / "s.toml").read_text()
    assert secateur.Runtime(place / "out" / "model.so").inputs["x"][0] == "uint8"
    text = run(*words, "--dry-run").output
    assert "evaluation: 12 samples, with labels." in text


def test_a_c_library_takes_pixels(place: Path) -> None:
    words = ("compile", "m.onnx", "-o", "lib", "--target", "x86-64-v3", "--format", "library")
    run(*words, "--preprocess", "imagenet", "--embed-preprocessing", "--name", "net")
    header = (place / "lib" / "net.h").read_text()
    assert "NET_INPUT_0_TYPE SECATEUR_UINT8" in header
    assert "NET_INPUT_0_DIMENSIONS {1, 8, 8, 3}" in header
    np.save("pixels.npy", pixels(place))
    script = (
        "import sys; sys.path.insert(0, 'lib')\nimport numpy as np, net\n"
        "model = net.Model()\n"
        "ys = [model.run({'x': p[None]})['y'] for p in np.load('pixels.npy')]\n"
        "np.save('y.npy', np.concatenate(ys))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    ready = Preprocessing.of("imagenet").normalized(pixels(place), np.dtype(np.float32))
    (wanted,) = (
        Session(secateur.load(place / "m.onnx")).run({"x": ready.transpose(0, 3, 1, 2)}).values()
    )
    np.testing.assert_allclose(np.load("y.npy"), wanted, rtol=1e-4, atol=1e-5)


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.usefixtures("place")
def test_what_cannot_be_embedded_is_refused() -> None:
    words = ("compile", "m.onnx", "-o", "out", "--target", "x86-64-v3")
    assert "needs --preprocess" in run(*words, "--embed-preprocessing", code=2).output
    text = run(*words, "--preprocess", "imagenet", code=2).output
    assert "--embed-preprocessing" in text
    text = run(*words, "--preprocess", "mean=1:2", "--embed-preprocessing", code=2).output
    assert "mean takes one number" in text
    with pytest.raises(SecateurError, match="needs preprocess"):
        secateur.optimize("m.onnx", "out", target="x86-64-v3", embed_preprocessing=True)
    assert not Path("out").exists()


def test_models_without_pictures_are_refused() -> None:
    how = Preprocessing.of("imagenet")
    for model, text in (
        (reading(x=[1, 3]), "takes no pictures"),
        (reading(x=[1, 5, 8, 8]), "no axis of 1 or 3 channels"),
        (reading(x=[1, 3, 8, 8], z=[1]), "models with one input"),
        (reading(x=[1, 1, 8, 8]), "1 channel"),
    ):
        with pytest.raises(DataError, match=text):
            embed(model, how)
    model = reading(x=[1, 3, 8, 8])
    model.extra.opset_import[0].version = 6
    with pytest.raises(SecateurError, match="opset 7"):
        embed(model, how)
