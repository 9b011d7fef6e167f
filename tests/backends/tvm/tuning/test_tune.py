"""Tuning: what is measured is used, kept and reported; every choice computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import CompileReport, compile_model
from secateur.backends.tvm.emission.choices import Choice, Measured, read_table, write_table
from secateur.backends.tvm.kernels.convolution.tiles import Tile
from secateur.backends.tvm.kernels.matrix.matmul import MatrixTile
from secateur.backends.tvm.targets import parse_target, targets
from secateur.backends.tvm.tuning import tune as tuning
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from ..graphs import Net, feeds, quantize, reference

NATIVE = parse_target("native")


def network() -> onnx.ModelProto:
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(32, 32, 3, 3), net.weight(32), pads=[1, 1, 1, 1])
    value = net.node("Relu", value)
    value = net.node("Conv", value, net.weight(16, 32, 1, 1))
    value = net.node("Flatten", value)
    value = net.node("Gemm", value, net.weight(12, 3136), transB=1)
    return net.model({"x": (1, 32, 14, 14)}, [value])


def compiled(model: onnx.ModelProto, folder: Path, **options: Any) -> CompileReport:
    cache = Cache.at(folder / "cache")
    return compile_model(from_proto(model), NATIVE, folder / "m.so", cache=cache, **options)


def check(model: onnx.ModelProto, path: Path, exact: bool) -> None:
    inputs = feeds(model, 1)
    found = Runtime(path).run(inputs)
    for name, array in reference(model, inputs).items():
        atol = 0 if exact else 1e-4 * float(np.abs(array).max())
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, so that tests take seconds."""
    monkeypatch.setattr(tuning, "TILES", 2)
    monkeypatch.setattr(tuning, "UNROLLS", (2,))
    monkeypatch.setattr(tuning, "ROUNDS", 1)


@pytest.mark.usefixtures("few")
def test_what_was_measured_is_kept_and_used(tmp_path: Path) -> None:
    first = compiled(network(), tmp_path, tune_minutes=1)
    assert first.tuning is not None
    assert (first.tuning.measured, first.tuning.known, first.tuning.left) == (3, 0, 0)
    table = read_table(tmp_path / "cache" / "tuning.json", NATIVE)
    assert len(table) == 3
    assert all(m.microseconds <= m.default_microseconds for m in table.values())
    tuned = (tmp_path / "m.so").read_bytes()
    check(network(), tmp_path / "m.so", exact=False)
    again = compiled(network(), tmp_path, tune_minutes=1)
    assert again.tuning is not None
    assert (again.tuning.measured, again.tuning.known) == (0, 3)
    untimed = compiled(network(), tmp_path)
    assert untimed.tuning is None
    assert (tmp_path / "m.so").read_bytes() == tuned


def test_no_time_measures_nothing(tmp_path: Path) -> None:
    report = compiled(network(), tmp_path, tune_minutes=1e-9)
    assert report.tuning is not None
    assert (report.tuning.measured, report.tuning.left) == (0, 3)


@pytest.mark.usefixtures("few")
def test_the_heaviest_kernel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    measure = tuning._measure_task

    def watch(op: Any, *rest: Any) -> Any:
        order.append(tuple(op.weights.shape))
        return measure(op, *rest)

    monkeypatch.setattr(tuning, "_measure_task", watch)
    compiled(network(), tmp_path, tune_minutes=1)
    assert order[0] == (32, 32, 3, 3)


CHOICES = {
    "weights 32x32x3x3": [
        Choice("winograd"),
        Choice("direct", Tile(1, 1, 5, 2, False)),
        Choice("direct", Tile(2, 2, 14, 1, True)),
    ],
    "weights 16x32x1x1": [
        Choice("direct", Tile(1, 1, 7, 8, False)),
        Choice("direct", Tile(1, 1, 1, 16, True)),
    ],
    "matmul": [Choice("product", MatrixTile(1, 1, 2)), Choice("product", MatrixTile(1, 1, 8))],
}


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("number", range(3))
def test_every_choice_computes_the_same(tmp_path: Path, precision: str, number: int) -> None:
    model = network() if precision == "float32" else quantize(network())
    compiled(model, tmp_path, tune_minutes=1e-9)
    keys = _keys(model)
    measured = {}
    for key in keys:
        for words, choices in CHOICES.items():
            if words in key:
                choice = choices[number % len(choices)]
                measured[key] = Measured(choice, 1, 2)
    assert len(measured) == 3
    compiled(model, tmp_path)
    default = (tmp_path / "m.so").read_bytes()
    write_table(tmp_path / "cache" / "tuning.json", NATIVE, measured)
    compiled(model, tmp_path)
    assert (tmp_path / "m.so").read_bytes() != default
    check(model, tmp_path / "m.so", exact=precision == "int8")


def _keys(model: onnx.ModelProto) -> list[str]:
    from secateur.backends.tvm.emission.choices import describe
    from secateur.backends.tvm.lowering.lower import lower
    from secateur.backends.tvm.plan.operations import ConvolutionOp, MatMulOp

    plan = lower(from_proto(model), NATIVE)
    return [describe(op) for op in plan.operations if isinstance(op, (ConvolutionOp, MatMulOp))]


def test_a_choice_that_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    compiled(network(), tmp_path)
    default = (tmp_path / "m.so").read_bytes()
    bad = Choice("direct", Tile(3, 99, 99))
    path = tmp_path / "cache" / "tuning.json"
    conv = next(k for k in _keys(network()) if "1x1 stride" in k)
    write_table(path, NATIVE, {conv: Measured(bad, 1, 2)})
    compiled(network(), tmp_path)
    assert (tmp_path / "m.so").read_bytes() == default


def test_tables_of_targets_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    entry = {"a": Measured(Choice("winograd"), 1.5, 2.5)}
    write_table(path, targets()["x86-64-v3"], entry)
    write_table(path, targets()["znver4"], {"b": Measured(Choice("direct", Tile(1, 1, 6)), 1, 1)})
    assert read_table(path, targets()["x86-64-v3"]) == entry
    assert list(read_table(path, targets()["znver4"])) == ["b"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 9, "targets": {}}', '{"version": 1, "targets": {"%s": [1]}}',
     '{"version": 1, "targets": {"%s": {"k": {"choice": {"form": "direct", "vectors": "x"},'
     ' "microseconds": 1, "default_microseconds": 1}}}}'],
)  # fmt: skip
def test_a_broken_table_is_ignored_with_a_warning(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cache" / "tuning.json"
    path.parent.mkdir()
    path.write_text(text.replace("%s", NATIVE.name))
    with pytest.warns(UserWarning, match=r"tuning\.json: ignored"):
        compiled(network(), tmp_path)
    assert (tmp_path / "m.so").exists()


def test_tuning_for_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="this machine can't run its code"):
        compile_model(
            from_proto(network()),
            targets()["riscv64" if NATIVE.machine != "riscv64" else "x86-64-v2"],
            tmp_path / "m.so",
            tune_minutes=1,
        )


_INTERRUPTED = """
import _thread, signal, sys
from secateur.backends.tvm.tuning import tune
from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import load
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
write = tune.write_table
def interrupt(*arguments):
    write(*arguments)
    _thread.interrupt_main()
tune.write_table, tune.TILES, tune.ROUNDS = interrupt, 2, 1
compile_model(load(sys.argv[1]), parse_target("native"), sys.argv[2],
              cache=Cache.at(sys.argv[3]), tune_minutes=1)
"""


def test_an_interrupt_leaves_what_was_measured(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    arguments = [tmp_path / "model.onnx", tmp_path / "m.so", tmp_path / "cache"]
    run = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, *map(str, arguments)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"KeyboardInterrupt" in run.stderr
    assert not (tmp_path / "m.so").exists()
    text = (tmp_path / "cache" / "tuning.json").read_text()
    assert len(json.loads(text)["targets"][NATIVE.name]) == 1
    assert len(read_table(tmp_path / "cache" / "tuning.json", NATIVE)) == 1
