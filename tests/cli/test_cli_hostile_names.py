"""Names that would steer a terminal, in every place of a model, through every command."""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from secateur.cli import main
from secateur.ir.display import printable

HOSTILE = {
    "escape": "\x1b[31mred",
    "link": "\x1b]8;;http://x\x07here\x1b]8;;\x1b\\",
    "c1": "\x9b31mred\x90",
    "return": "good\rbad",
    "backspace": "ab\b\bcd\x7f",
    "lines": "one\ntwo\x0bthree\x0cfour\x85five\u2028six",
    "override": "abc\u202egnp.exe",
    "isolate": "\u2066abc\u2069\u200f",
    "zero-width": "a\u200bb\u200cc\u200dd\u2060e\ufeff",
    "tags": "a\U000e0041b\U000e007f",
    "markup": "[bold red]x[/] :smile: [link=http://x]y[/link]",
    "html": "<script>`x`</script>|*a*",
}


def model(text: str, unknown: bool = False) -> onnx.ModelProto:
    """A convolutional network all of whose names hold `text`."""
    name = lambda part: f"{part} {text} {part}"  # noqa: E731
    rng = np.random.default_rng(0)
    weights = {
        name("w1"): rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        name("w2"): rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
        name("w3"): rng.standard_normal((5, 8)).astype(np.float32),
    }
    first, second, third = weights
    nodes = [
        helper.make_node("Conv", [name("x"), first], [name("a")], name("one"), pads=[1] * 4),
        helper.make_node("Relu", [name("a")], [name("b")], name("two")),
        helper.make_node("Conv", [name("b"), second], [name("c")], name("three"), pads=[1] * 4),
        helper.make_node("GlobalAveragePool", [name("c")], [name("d")], name("four")),
        helper.make_node("Flatten", [name("d")], [name("e")], name("five")),
        helper.make_node("Gemm", [name("e"), third], [name("y")], name("six"), transB=1),
    ]
    if unknown:
        node = helper.make_node(name("Odd"), [name("y")], [name("z")], name("o"), domain=text)
        nodes.append(node)
    result = name("z" if unknown else "y")
    graph = helper.make_graph(
        nodes,
        name("graph"),
        [helper.make_tensor_value_info(name("x"), TensorProto.FLOAT, [name("N"), 3, 8, 8])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, [name("N"), 5])],
        [onnx.numpy_helper.from_array(array, key) for key, array in weights.items()],
        doc_string=text,
    )
    opsets = [helper.make_opsetid("", 17)] + [helper.make_opsetid(text, 1)] * unknown
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name=text)
    helper.set_model_props(proto, {text: text})
    return proto


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def assert_harmless(text: str, where: str) -> None:
    for character in text:
        kind = unicodedata.category(character)
        assert character == "\n" or kind not in ("Cc", "Cf", "Cs", "Zl", "Zp"), (
            f"{where}: {character!r} in {text!r}"
        )


EACH = [pytest.param(name, marks=pytest.mark.slow) for name in HOSTILE]


@pytest.fixture(params=["all", *EACH])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    text = HOSTILE.get(request.param) or "".join(HOSTILE.values())
    onnx.save(model(text), "m.onnx")
    onnx.save(model(text, unknown=True), "odd.onnx")
    x = f"x {text} x"
    samples = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.savez("good.npz", **{x: samples})
    np.savez("bad.npz", **{text.replace("/", "-"): samples})
    return text


COMMANDS = [
    ["inspect", "{}"],
    ["inspect", "{}", "--details"],
    ["inspect", "{}", "--json"],
    ["print", "{}"],
    ["print", "{}", "--json"],
    ["print", "{}", "--passes", "fold-constants, remove-no-ops"],
    ["print", "{}", "--node", "absent"],
    ["verify", "{}"],
    ["simplify", "{}", "-o", "s.onnx", "--check"],
    ["simplify", "{}", "-o", "s.onnx", "--input-shape", "absent=1x2"],
    ["prune", "{}", "-o", "p.onnx", "--ratio", "0.3"],
    ["prune", "{}", "-o", "p.onnx", "--ratio", "0.3", "--ignore", "*two*", "--json"],
    ["quantize", "{}", "-o", "q.onnx", "--calibration", "good.npz"],
    ["quantize", "{}", "-o", "q.onnx", "--calibration", "bad.npz"],
    ["compare", "{}", "{}"],
    ["benchmark", "{}", "--data", "bad.npz"],
]


@pytest.mark.parametrize("file", ["m.onnx", "odd.onnx"])
@pytest.mark.usefixtures("place")
def test_nothing_steers_the_terminal(file: str) -> None:
    succeeded = 0
    for command in COMMANDS:
        arguments = [word.format(file) for word in command]
        result = run(*arguments)
        assert_harmless(result.output, " ".join(arguments))
        assert result.exit_code in (0, 1), result.output
        assert "internal error" not in result.output
        if result.exit_code == 1:
            assert result.stderr.startswith("Error: ")
            assert result.stderr.count("\n") == 1
        succeeded += result.exit_code == 0
    assert succeeded >= (12 if file == "m.onnx" else 6)


@pytest.mark.usefixtures("place")
def test_the_report_shows_names_as_they_are() -> None:
    pytest.importorskip("tvm")
    options = ["--target", "x86-64-v3", "--ratio", "0.3", "--no-cache"]
    result = run("optimize", "m.onnx", "-o", "out", *options)
    assert result.exit_code == 0, result.output
    assert_harmless(result.output, "optimize")
    for name in ("report.md", "report.json"):
        text = Path("out", name).read_text()
        assert_harmless(text, name)
        assert "<script>" not in text.replace("\\<", "") or name == "report.json"
    result = run("optimize", "odd.onnx", "-o", "odd", *options)
    assert_harmless(result.output, "optimize")
    assert result.exit_code == 1


def test_printable_keeps_text_and_escapes_the_rest() -> None:
    assert printable("Schicht-1/größe 漢字") == "Schicht-1/größe 漢字"
    for text in HOSTILE.values():
        assert printable(text).isprintable()
    assert printable("\ud800\u202e\x1b") == "\\ud800\\u202e\\x1b"


def test_warnings_are_harmless_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: object) -> None:
        warnings.warn(HOSTILE["escape"], stacklevel=1)

    monkeypatch.setattr(click.Group, "invoke", warn)
    result = run("targets")
    assert result.stderr == "Warning: \\x1b[31mred\n"
