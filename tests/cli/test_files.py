"""Files as they are in the world: they work with every command, or one line says why not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, helper, numpy_helper

from secateur.cli import main
from secateur.ir.errors import MISFITS, ModelError, SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session, load_problem
from secateur.passes.simplify import Simplify
from tests import oddities
from tests.oddities.registry import loads
from tests.passes.test_simplify_structure import parse


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write(folder: Path, proto: ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


# --- every oddity with every command ---------------------------------------------


def samples(proto: ModelProto, path: Path) -> None:
    """Two samples for each input that has known or open sizes."""
    given = {tensor.name for tensor in proto.graph.initializer}
    arrays = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        if value.name not in given and tensor.elem_type in (1, 6, 7, 9):
            sizes = [min(max(d.dim_value, 1), 64) for d in tensor.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            arrays[value.name] = np.ones([2, *sizes[1:]] if sizes else [], dtype)
    np.savez(path, **arrays)


def commands(model: Path, folder: Path) -> Iterator[list[str | Path]]:
    yield ["inspect", model]
    yield ["print", model]
    yield ["verify", model]
    yield ["simplify", model, "-o", folder / "simple.onnx"]
    yield ["prune", model, "-o", folder / "pruned.onnx", "--ratio", "0.3"]
    data = folder / "data.npz"
    yield ["quantize", model, "-o", folder / "int8.onnx", "--calibration", data]
    yield ["compare", model, model]


def compiling(model: Path, folder: Path) -> Iterator[list[str | Path]]:
    yield ["compile", model, "-o", folder / "so", "--target", "native", "--no-cache"]
    yield ["optimize", model, "-o", folder / "all", "--target", "native", "--ratio", "0.3"]
    yield ["compare", model, folder / "so" / "model.so"]
    yield ["benchmark", model, folder / "so" / "model.so"]


def check(base: str, oddity: str, folder: Path, *, compile: bool) -> None:
    """Every command either works or fails with one line; what ONNX Runtime loads is inspected
    and simplified into what it loads."""
    proto = oddities.make(base, oddity)
    if proto is None:
        return
    model = write(folder, proto)
    samples(proto, folder / "data.npz")
    accepted = loads(proto)
    for arguments in (*commands(model, folder), *(compiling(model, folder) if compile else ())):
        result = run(*arguments)
        where = f"{base}, {oddity}: {arguments[0]}: {result.output[-400:]}"
        assert result.exit_code in (0, 1), f"{where} {result.exception!r}"
        assert "internal error" not in result.output, where
        assert "Traceback" not in result.output, where
        if result.exit_code == 1:
            assert len(result.stderr.strip().splitlines()) == 1, where
            contradiction = "would not load" in result.stderr
            assert (
                not accepted
                or arguments[0] not in ("inspect", "print", "simplify")
                or (contradiction)
            ), where
        for written in ("simple", "pruned", "int8"):
            path = folder / f"{written}.onnx"
            assert not accepted or not path.exists() or loads(onnx.load(path)), where


ALL = list(oddities.all_oddities())


@pytest.mark.parametrize("part", range(4))
def test_some_oddities(tmp_path: Path, part: int) -> None:
    for number, (base, oddity) in enumerate(ALL[part * 11 :: 97]):
        (tmp_path / str(number)).mkdir()
        check(base, oddity, tmp_path / str(number), compile=False)


@pytest.mark.slow
@pytest.mark.parametrize("oddity", list(oddities.ODDITIES)[3::28])
def test_oddities_of_every_base(tmp_path: Path, oddity: str) -> None:
    for number, base in enumerate(oddities.BASES):
        (tmp_path / base).mkdir()
        compile = (list(oddities.ODDITIES).index(oddity) + number) % 5 == 0
        check(base, oddity, tmp_path / base, compile=compile)


# --- what exporters write --------------------------------------------------------


@pytest.mark.parametrize("size", [-1, -(2**62), 0])
def test_sizes_that_are_none_are_found_by_inference(size: int) -> None:
    proto = oddities.make("convolutions", "no_value_info")
    assert proto is not None
    for info in (*proto.graph.output, *(proto.graph.input if size else [])):
        info.type.tensor_type.shape.dim[0].dim_value = size
    model = from_proto(proto)
    infer_shapes(model)
    if size:
        assert model.graph.inputs[0].shape == (None, 3, 8, 8)
    batch, classes = model.graph.outputs[0].shape or ()
    assert classes == 4
    assert isinstance(batch, int) == (size == 0)
    assert all(d.dim_value >= 0 for d in to_proto(model).graph.input[0].type.tensor_type.shape.dim)


@pytest.mark.parametrize("symbol", ["?", "-1", "None"])
def test_symbols_that_name_nothing_are_not_equal(symbol: str) -> None:
    model = parse(f'graph g (%x: float["{symbol}", "{symbol}"]) -> (%y: float[*]) {{\n'
                  "  %y = Relu(%x)\n}")  # fmt: skip
    assert from_proto(to_proto(model)).graph.inputs[0].shape == (None, None)


@pytest.mark.parametrize(
    ("imports", "kept"),
    [
        ([("", 17), ("", 17)], {"": 17}),
        ([("", 17), ("ai.onnx", 13)], {"": 13}),
        ([("", 13), ("x", 1), ("ai.onnx", 17), ("x", 2)], {"": 17, "x": 2}),
    ],
)
def test_the_last_import_of_an_operator_set_counts(
    imports: list[tuple[str, int]], kept: dict[str, int]
) -> None:
    proto = oddities.BASES["one_node"]()
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(*entry) for entry in imports)
    model = from_proto(proto)
    assert model.opsets == kept
    assert len(to_proto(model).opset_import) == len(kept)


def test_versions_and_types_that_do_not_exist() -> None:
    proto = oddities.BASES["one_node"]()
    proto.opset_import[0].version = 2**40
    with pytest.raises(ModelError, match="no version 1099511627776"):
        from_proto(proto)
    proto = oddities.BASES["one_node"]()
    proto.graph.output[0].type.tensor_type.elem_type = 99
    with pytest.raises(ModelError, match="'y' has the unknown element type 99"):
        from_proto(proto)


def test_a_node_that_breaks_its_operator_is_blamed() -> None:
    """With the reason that ONNX's inference gives, whatever a rule stumbles over."""
    model = parse("""
graph g (%x: float[2, 3]) -> (%y: float[*]) {
  const %zero: int64[1] = [0]
  const %end: int64[1] = [9]
  const %axis: int64[1] = [186]
  %y = Slice(%x, %zero, %end, %axis)
}""")
    with pytest.raises(SecateurError, match=r"node 'y' \(Slice\): .*axis value: 186"):
        Simplify().run(model)
    assert IndexError in [kind for kind in (IndexError, KeyError) if issubclass(kind, MISFITS)]


# --- what is written loads -------------------------------------------------------

SPEECH = """
graph g (%x: float[1, n], %c: bool[]) -> (%y: float[*]) {
  %y = If(%c) {then_branch = graph short () -> (%a) {
      %axis = Constant() {value_ints = [0]}
      %last = Constant() {value_ints = [2]}
      %u = Unsqueeze(%x, %axis)
      %p = MaxPool(%u) {kernel_shape = [8], strides = [8]}
      %s = Squeeze(%p, %last)
      %a = Flatten(%s)
    }, else_branch = graph long () -> (%b) {
      %axis2 = Constant() {value_ints = [0]}
      %last2 = Constant() {value_ints = [2]}
      %u2 = Unsqueeze(%x, %axis2)
      %p2 = MaxPool(%u2) {kernel_shape = [4], strides = [4]}
      %s2 = Squeeze(%p2, %last2)
      %b = Neg(%s2)
    }}
}"""


def test_a_branch_that_cannot_run_fails_and_loads(tmp_path: Path) -> None:
    size, runs = 8, True
    path = write(tmp_path, to_proto(parse(SPEECH)))
    out = tmp_path / "out.onnx"
    result = run("simplify", path, "-o", out, "--input-shape", f"x=1x{size}", "--check")
    assert result.exit_code == 0, result.output
    assert "one of its branches can't run with these sizes" in result.output
    before, after = Session(from_proto(onnx.load(path))), Session(from_proto(onnx.load(out)))
    x = np.arange(size, dtype=np.float32).reshape(1, size)
    feeds = {"x": x, "c": np.array(runs)}
    np.testing.assert_array_equal(before.run(feeds)["y"], after.run(feeds)["y"])
    for session in (before, after):
        with pytest.raises(SecateurError):
            session.run({"x": x, "c": np.array(not runs)})


def test_what_would_not_load_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, oddities.BASES["convolutions"]())

    def spoil(self: Simplify, model: object, context: object = None) -> object:
        result = original(self, model, context)  # type: ignore[arg-type]
        node = next(n for n in model.graph.nodes if n.op_type == "Gemm")  # type: ignore[attr-defined]
        node.set("transB", 1)
        return result

    original = Simplify.run
    monkeypatch.setattr(Simplify, "run", spoil)
    result = run("simplify", path, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 1
    assert "out.onnx: the result would not load, nothing was written" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def test_large_models_are_loaded_without_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.ir.reference._WEIGHTS", 0)
    monkeypatch.setattr("secateur.ir.reference.Session", None)
    model = from_proto(oddities.BASES["convolutions"]())
    assert load_problem(model) is None


# --- fixed values, and comparisons -----------------------------------------------


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    return write(tmp_path, oddities.BASES["state"]())


def test_fixed_values_fold_what_depends_on_them(speech: Path, tmp_path: Path) -> None:
    for rate, left in ((16000, "GRU"), (8000, "Squeeze")):
        out = tmp_path / f"{rate}.onnx"
        result = run("simplify", speech, "-o", out, "--input-value", f"sr={rate}", "--check")
        assert result.exit_code == 0, result.output
        written = onnx.load(out)
        assert "sr" not in {value.name for value in written.graph.input}
        operators = {node.op_type for node in written.graph.node}
        assert left in operators
        assert "Equal" not in operators
        assert ("GRU" in operators) == (rate == 16000)
    result = run("inspect", speech, "--input-value", "sr=16000", "--json")
    assert [i["name"] for i in json.loads(result.stdout)["inputs"]] == ["x", "h"]


TYPED = """
graph g (%f: float[], %i: uint8[3], %b: bool[], %s: string[], %m: float[2, 2], %n: int64[k])
    -> (%f2: float[], %i2: uint8[3], %b2: bool[], %s2: string[], %m2: float[2, 2], %n2: int64[k]) {
  %f2 = Identity(%f)
  %i2 = Identity(%i)
  %b2 = Identity(%b)
  %s2 = Identity(%s)
  %m2 = Identity(%m)
  %n2 = Identity(%n)
}"""


def test_values_have_the_type_of_their_input(tmp_path: Path) -> None:
    path, out = write(tmp_path, to_proto(parse(TYPED))), tmp_path / "out.onnx"
    given = ["f=1e-3", "i=1,2,255", "b=true", "s=a b", "m=1,2,3,4", "n=-5,6"]
    options = [word for value in given for word in ("--input-value", value)]
    result = run("simplify", path, "-o", out, *options, "--check")
    assert result.exit_code == 0, result.output
    found = Session(from_proto(onnx.load(out))).run({})
    assert found["f2"] == np.float32(1e-3)
    assert found["i2"].tolist() == [1, 2, 255]
    assert found["b2"].tolist() is True
    assert found["m2"].tolist() == [[1, 2], [3, 4]]
    assert found["n2"].tolist() == [-5, 6]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("zz=1", "no input 'zz'; its inputs are b, f, i, m, n, s"),
        ("f=x", "'f' is of type float, which has no value 'x'"),
        ("f=1,2", r"'f' has the shape \[\], 2 values are given"),
        ("i=1,2", r"'i' has the shape \[3\], 2 values are given"),
        ("i=1,2,256", "'i' is of type uint8, which has no value '1,2,256'"),
        ("b=maybe", "'b' is of type bool"),
        ("n=1.5", "'n' is of type int64"),
        ("m=1,2,3", r"'m' has the shape \[2, 2\], 3 values are given"),
    ],
)
def test_values_that_an_input_cannot_have(tmp_path: Path, value: str, said: str) -> None:
    path = write(tmp_path, to_proto(parse(TYPED)))
    result = run("simplify", path, "-o", tmp_path / "out.onnx", "--input-value", value)
    assert result.exit_code == 1
    assert re.search(said, result.stderr), result.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert run("inspect", path, "--input-value", "novalue").exit_code == 2


def test_a_comparison_on_samples(tmp_path: Path, speech: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.ones((3, 4), np.float32), h=np.zeros((3, 1, 1, 3), np.float32),
             sr=np.array(16000))  # fmt: skip
    out = tmp_path / "out.onnx"
    result = run("simplify", speech, "-o", out, "--check", "--data", data)
    assert result.exit_code == 0, result.output
    assert "on samples: x 1x4, sr scalar, h 1x1x3" in result.output
    assert run("simplify", speech, "-o", out, "--data", data).exit_code == 2
    result = run("quantize", speech, "-o", out, "--calibration", data)
    assert result.exit_code == 0, result.output


def test_a_comparison_that_no_inputs_fit_is_not_a_failure(tmp_path: Path) -> None:
    model = parse("""
graph g (%x: float[n, k]) -> (%y: float[*]) {
  const %v: float[7, 1] = [[1.0], [1.0], [1.0], [1.0], [1.0], [1.0], [1.0]]
  const %w: float[5, 1] = [[1.0], [1.0], [1.0], [1.0], [1.0]]
  %a = MatMul(%x, %v)
  %b = MatMul(%x, %w)
  %y = Add(%a, %b)
}""")
    path = write(tmp_path, to_proto(model))
    result = run("simplify", path, "-o", tmp_path / "out.onnx", "--check")
    assert result.exit_code == 0, result.output
    assert "Not checked: simplified model against original: not compared: no random" in (
        result.output
    )


def test_outputs_that_a_split_leaves_out(tmp_path: Path) -> None:
    """ONNX Runtime's kernel would end the process."""
    model = parse(
        """
graph g (%x: float[4, 3]) -> (%y: float[2, 3]) {
  _, %y = Split(%x) {axis = 0, num_outputs = 2}
}""".strip(),
        opset=18,
    )
    path = write(tmp_path, to_proto(model))
    result = run("compare", path, path)
    assert result.exit_code == 0, result.output
    assert run("simplify", path, "-o", tmp_path / "out.onnx", "--check").exit_code == 0


def test_external_weights_by_reference(tmp_path: Path) -> None:
    """The check that a result loads reads it from memory, weights from their file."""
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    floats = oddities.registry.floats
    graph = helper.make_graph([node], "g", [floats("x", "n", 64)], [floats("y", "n", 64)], [weight])
    proto = oddities.registry.model(graph)
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    result = run("simplify", path, "-o", tmp_path / "out.onnx", "--check")
    assert result.exit_code == 0, result.output
