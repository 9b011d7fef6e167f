"""`secateur verify --against`: what a build may have lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from click.testing import CliRunner

from secateur.checking.drop import parse_drop
from secateur.cli import main


def model(weights: np.ndarray, outputs: str = "y") -> onnx.ModelProto:
    ending = "y = Identity(a)" if outputs == "y" else "y = ArgMax <axis = 1, keepdims = 0> (a)"
    kind = "float[n, 4] y" if outputs == "y" else "int64[n] y"
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 18]> agraph (float[n, 4] x) => ({kind}) '
        f"{{ a = MatMul(x, w) {ending} }}"
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(weights), "w"))
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An original that names four classes, and one that takes the last for the first."""
    onnx.save(model(np.eye(4)), tmp_path / "original.onnx")
    lacking = np.eye(4)
    lacking[3] = [1, 0, 0, 0.5]
    onnx.save(model(lacking), tmp_path / "lacking.onnx")
    x = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(40) % 4)
    np.savez(tmp_path / "unlabelled.npz", x=x)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["verify", *words])
    assert result.exit_code == code, result.output
    return result.output


AGAINST = ("--against", "original.onnx", "--max-drop")


@pytest.mark.parametrize("data", ["data.npz", "unlabelled.npz"])
def test_a_quarter_of_the_samples_is_lost(place: Path, data: str) -> None:
    words = ("lacking.onnx", *AGAINST)
    assert "25 % lost" in run(*words, "25%", "--data", data)
    said = run(*words, "0.24", "--data", data, code=1)
    assert said.startswith("Error: lacking.onnx: lost more than 24 % against original.onnx: ")
    assert "nothing lost" in run("original.onnx", *AGAINST, "0", "--data", data)


def test_metrics_that_are_no_shares(place: Path) -> None:
    """By the difference's share of the original's value."""
    y = np.zeros((40, 4), np.float32)
    np.savez(place / "data.npz", x=np.eye(4, dtype=np.float32)[np.arange(40) % 4], labels=y)
    words = ("--data", "data.npz", "--metric", "mae")
    assert "50 % lost" not in run("original.onnx", *AGAINST, "0", *words)
    onnx.save(model(1.5 * np.eye(4)), place / "more.onnx")
    assert "50 % lost" in run("more.onnx", *AGAINST, "51%", *words)
    run("more.onnx", *AGAINST, "49%", *words, code=1)
    assert "nothing lost" in run(
        "original.onnx", "--against", "more.onnx", "--max-drop", "0", *words
    )


def test_outputs_that_are_no_scores(place: Path) -> None:
    onnx.save(model(np.eye(4), "class"), place / "original.onnx")
    onnx.save(model(np.eye(4)[:, [0, 1, 2, 2]], "class"), place / "lacking.onnx")
    words = (*AGAINST, "30%", "--data", "unlabelled.npz")
    assert "25 % lost, by elements that differ" in run("lacking.onnx", *words)
    onnx.save(model(np.full((4, 4), np.nan)), place / "nan.onnx")
    onnx.save(model(np.eye(4)), place / "original.onnx")
    run("nan.onnx", *AGAINST, "99%", code=1)


def test_artifacts_and_c_libraries(place: Path) -> None:
    pytest.importorskip("tvm")
    for words in (["-o", "a"], ["-o", "l", "--format", "library", "--name", "net"]):
        made = CliRunner().invoke(main, ["compile", "lacking.onnx", "--target", "native", *words])
        assert made.exit_code == 0, made.output
    for file in ("a/model.so", "l/libnet.so"):
        assert "25 % lost" in run(file, *AGAINST, "25%", "--data", "data.npz")
        run(file, *AGAINST, "24%", "--data", "data.npz", code=1)
        assert "random inputs" in run(file, *AGAINST, "100%")
    text = (place / "l" / "net.py").read_text()
    (place / "l" / "net.py").write_text(text.replace('DIGEST = "', 'DIGEST = "0'))
    said = run("l/libnet.so", *AGAINST, "1", code=1)
    assert "is of another model" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("original.onnx", "--max-drop", "1%"), "go together"),
        (("original.onnx", "--against", "original.onnx"), "go together"),
        (("model.so",), "verified --against"),
        (("original.onnx", "--data", "data.npz"), "are for --against"),
        (("original.onnx", *AGAINST, "two"), "no share"),
        (("original.onnx", *AGAINST, "101%"), "more than all"),
    ],
)
def test_words_that_mean_nothing(place: Path, words: tuple[str, ...], message: str) -> None:
    assert message in run(*words, code=2)


def test_shares() -> None:
    assert [parse_drop(text) for text in ("1%", "0.5 %", ".25", "1", "0")] == [
        *(0.01, 0.005),
        *(0.25, 1, 0),
    ]
    for text in ("", "-1%", "nan", "1%%", "1e9", "inf"):
        with pytest.raises(ValueError, match="share"):
            parse_drop(text)
