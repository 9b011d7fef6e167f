"""Bad input gives one clear line and exit code 1, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from secateur.cli import main

RNG = np.random.default_rng(0)


def constant(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape, np.float32), name)


def convnet(middle: str = "Relu", **attributes: object) -> onnx.ModelProto:
    """Two convolutions with one other operator between them, then a classifier."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node(middle, ["a"], ["b"], "middle", **attributes),
        helper.make_node("Conv", ["b", "w2"], ["c"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("Gemm", ["e", "w3"], ["y"], "classify"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [constant("w1", 16, 3, 3, 3), constant("w2", 16, 16, 3, 3), constant("w3", 16, 4)],
    )
    opsets = [helper.make_opsetid("", 17)]
    if "domain" in attributes:
        opsets.append(helper.make_opsetid(str(attributes["domain"]), 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with model.onnx and data.npz, which is the current one."""
    onnx.save(convnet(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((4, 3, 8, 8), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def optimize(*extra: str, target: str = "x86-64-v3", out: str = "out") -> Result:
    return run("optimize", "model.onnx", "-o", out, "--target", target, *extra)


QUANTIZE = ("--quantize", "int8", "--calibration", "data.npz")


def assert_fails(place: Path, attempt: Callable[[], Result], *said: str) -> None:
    """`attempt` must fail with one line that contains `said`, and write no file."""
    before = sorted(place.rglob("*"))
    result = attempt()
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert "internal error" not in lines[0]
    for text in said:
        assert text in lines[0]
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08", b"\x00" * 100, b"\xff" * 9])
def test_not_an_onnx_file(place: Path, content: bytes) -> None:
    (place / "model.onnx").write_bytes(content)
    assert_fails(place, optimize, "model.onnx", "not an ONNX model")


def test_missing_file(place: Path) -> None:
    (place / "model.onnx").unlink()
    assert_fails(place, optimize, "model.onnx", "No such file")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file(place: Path, share: float) -> None:
    whole = (place / "model.onnx").read_bytes()
    (place / "model.onnx").write_bytes(whole[: int(len(whole) * share)])
    assert_fails(place, optimize, "model.onnx")


def save_external(place: Path, location: str | None = None) -> None:
    """Keep the model's weights in weights.bin, or say that they are at `location`."""
    model = onnx.load(place / "model.onnx")
    onnx.save_model(
        model,
        place / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    if location is not None:
        model = onnx.load(place / "model.onnx", load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        (place / "model.onnx").write_bytes(model.SerializeToString())


def test_missing_external_data(place: Path) -> None:
    save_external(place)
    (place / "weights.bin").unlink()
    assert_fails(place, optimize, "w1", "weights.bin", "missing")


def test_short_external_data(place: Path) -> None:
    save_external(place)
    (place / "weights.bin").write_bytes(b"\0" * 100)
    assert_fails(place, optimize, "weights.bin", "too short")


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/../../weights.bin"])
def test_external_data_outside_the_folder(place: Path, location: str) -> None:
    save_external(place, location)
    assert_fails(place, optimize, "w1", location, "leaves the model's folder")


def test_external_data_through_a_link_outside(place: Path, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    outside = tmp_path_factory.mktemp("outside") / "weights.bin"
    save_external(place, "link.bin")
    (place / "weights.bin").rename(outside)
    (place / "link.bin").symlink_to(outside)
    assert_fails(place, optimize, "w1", "leaves the model's folder")


@pytest.mark.parametrize("option", ["--calibration", "--evaluation"])
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": np.zeros((4, 3, 8, 8), np.float32)}, ("'x'", "'image'")),
        ({"x": np.zeros((4, 1, 8, 8), np.float32)}, ("'x'", "[4, 1, 8, 8]")),
        ({"x": np.zeros((4, 3, 8, 8))}, ("'x'", "float64", "float32")),
        ({"x": np.full((4, 3, 8, 8), np.nan, np.float32)}, ("'x'", "NaN")),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, ("'x'", "no samples")),
    ],
)
def test_ill_fitting_data(
    place: Path, option: str, arrays: dict[str, np.ndarray], said: tuple[str, ...]
) -> None:
    np.savez(place / "bad.npz", **arrays)
    assert_fails(place, lambda: optimize(*QUANTIZE, option, "bad.npz"), "bad.npz", *said)


def test_unreadable_data(place: Path) -> None:
    (place / "bad.npz").write_bytes(b"junk")
    assert_fails(place, lambda: optimize("--evaluation", "bad.npz"), "bad.npz", "not an .npz")
    assert_fails(place, lambda: optimize("--evaluation", "gone.npz"), "gone.npz", "No such file")


def test_unknown_target(place: Path) -> None:
    assert_fails(place, lambda: optimize(target="z80"), "z80", "x86-64-v3")
    attempt = lambda: run("compile", "model.onnx", "-o", "out", "--target", "z80")  # noqa: E731
    assert_fails(place, attempt, "z80", "x86-64-v3")


@pytest.mark.parametrize("out", ["data.npz", "data.npz/out", "/proc/secateur-out"])
def test_unwritable_output(place: Path, out: str) -> None:
    assert_fails(place, lambda: optimize(out=out), out, "can't write here")


@pytest.mark.parametrize("out", ["gone/out.onnx", "data.npz/out.onnx"])
def test_unwritable_output_file(place: Path, out: str) -> None:
    assert_fails(place, lambda: run("simplify", "model.onnx", "-o", out), "can't write here")


def test_output_would_replace_the_input(place: Path) -> None:
    assert_fails(place, lambda: optimize(out="."), "model.onnx", "is the input model")


def test_goal_out_of_reach(place: Path) -> None:
    assert_fails(place, lambda: optimize("--macs", "0.0001"), "reached", "leaves 1.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--latency", "0.0001"), ("latency can't be reached", "leaves")),
        (("--latency", "soon"), ("latency: 'soon' is neither", "us, ms, s")),
        (("--bytes", "2.5"), ("bytes: '2.5' is neither", "kB")),
        (("--bytes", "10B"), ("bytes 10B", "besides its weights")),
        (("--macs", "0.5", "--limit", "first"), ("limit 'first'", "pattern=least..most")),
        (("--macs", "0.5", "--limit", "stem*=0.5.."), ("matches the limit 'stem*'",)),
    ],
)
def test_budgets_that_make_no_sense(place: Path, options: list[str], said: list[str]) -> None:
    assert_fails(place, lambda: optimize(*options, target="aarch64"), *said)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (("out.json", "--sweep", "0.9,high"), ("'high' is neither a share",)),
        (("out.json", "--sweep", "0.9,,0.5"), ("'' is neither a share",)),
        (("out.json", "--sweep", "1.5"), ("'1.5' is neither a share",)),
        (("out.svg", "--sweep", "0.9"), ("the drawing goes there",)),
        (("out.json", "--sweep", "0.0001"), ("can't be reached",)),
    ],
)
def test_sweeps_that_make_no_sense(place: Path, sweep: list[str], said: list[str]) -> None:
    assert_fails(place, lambda: run("prune", "model.onnx", "-o", *sweep), *said)


def test_a_time_is_for_machines_that_can_be_asked(place: Path) -> None:
    said = ("latency 2ms", "can't run code for riscv64", "share")
    assert_fails(place, lambda: optimize("--latency", "2ms", target="riscv64"), *said)


def test_latency_of_what_does_not_compile(place: Path) -> None:
    onnx.save(convnet("RandomNormalLike"), place / "model.onnx")
    said = ("compile whole", "middle", "RandomNormalLike")
    assert_fails(place, lambda: optimize("--latency", "0.5", target="aarch64"), *said)


def test_operator_that_nothing_knows(place: Path) -> None:
    onnx.save(convnet("Mystery", domain="com.example"), place / "model.onnx")
    assert_fails(place, optimize, "middle", "Mystery")


def test_operator_that_cannot_be_lowered(place: Path) -> None:
    onnx.save(convnet("RandomNormalLike"), place / "model.onnx")
    assert_fails(place, optimize, "middle", "RandomNormalLike")


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimize", "model.onnx"],
        ["optimize", "model.onnx", "-o", "out"],
        ["optimize", "model.onnx", "-o", "out", "--target", "x86-64-v3", "--macs", "1.5"],
        ["optimize", "model.onnx", "-o", "o", "--target", "t", "--macs", "0.5", "--ratio", "0.5"],
        ["optimize", "model.onnx", "-o", "out", "--target", "x86-64-v3", "--quantize", "int8"],
        ["optimize", "model.onnx", "-o", "out", "--target", "x86-64-v3", "--quantize", "int3"],
        ["prune", "model.onnx", "-o", "out.onnx"],
        ["prune", "model.onnx", "-o", "out.onnx", "--latency", "0.5"],
        ["prune", "model.onnx", "-o", "o.json", "--sweep", "0.5", "--sweep-of", "latency"],
        ["prune", "model.onnx", "-o", "o.json", "--sweep", "0.5", "--macs", "0.5"],
        ["prune", "model.onnx", "-o", "out.onnx", "--bytes", "0.5", "--latency", "0.5"],
        ["quantize", "model.onnx", "-o", "out.onnx"],
        ["frobnicate"],
        ["inspect"],
    ],
)
def test_wrong_usage(place: Path, arguments: list[str]) -> None:
    before = sorted(place.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert sorted(place.rglob("*")) == before
