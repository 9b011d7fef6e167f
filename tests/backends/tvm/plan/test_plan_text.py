"""The text form of plans: golden plans, names, what is the same, and where it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("tvm")

from secateur.backends.tvm.plan.operations import ElementwiseOp, Plan
from secateur.backends.tvm.plan.programs import Program
from secateur.backends.tvm.plan.tensors import PlanTensor, View
from secateur.backends.tvm.plan.text import print_plan
from secateur.cli import main
from secateur.ir.onnx_io import save
from secateur.ir.text import parse_model

from .golden_plans import FOLDER, parts, plan_of

GOLDEN = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_plans(path: Path) -> None:
    target, model, plan = parts(path)
    assert plan_of(target, model) == plan


def test_there_are_golden_plans() -> None:
    assert len(GOLDEN) >= 5


def test_tensors_of_one_name_are_told_apart() -> None:
    x, a, b = (PlanTensor("t", "float32", (2,)) for _ in range(3))
    half = PlanTensor("half", "float32", (1,), np.array([0.5], np.float32))
    program = Program(("float32", "float32")).then("neg")
    plan = Plan(
        [x],
        [("y", b)],
        [
            ElementwiseOp("n", [a], [View.of(x), View.of(half)], program),
            ElementwiseOp("m", [b], [View(a, (2,), (1,), 0)], Program(("float32",))),
        ],
        {"n": "Mul"},
    )
    assert print_plan(plan) == (
        "plan\n"
        "input %t: float32[2]\n"
        "%t#2: float32[2] = elementwise(%t, float32 0.5)  ; n (Mul)\n"
        "    | neg($0): float32\n"
        "%t#3: float32[2] = elementwise(%t#2[2 by 1 from 0])\n"
        "output y = %t#3\n"
    )


def test_the_command_writes_the_plan(tmp_path: Path) -> None:
    target, model, plan = parts(FOLDER / "residual.txt")
    save(parse_model(model), tmp_path / "m.onnx")
    arguments = ["compile", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out")]
    options = ["--target", target, "--no-cache", "--dump", str(tmp_path / "dump")]
    found = CliRunner().invoke(main, ["-vv", *arguments, *options])
    assert found.exit_code == 0, found.output
    assert (tmp_path / "dump" / "plan.txt").read_text() == plan
    assert (tmp_path / "dump" / "00-input.txt").exists()
    assert "secateur.backends.tvm.lowering.lower: y (Relu): by " in found.stderr
    assert "fused into ConvolutionOp" in found.stderr
    assert "secateur.backends.tvm.plan.memory: arena: " in found.stderr
    again = CliRunner().invoke(main, [*arguments, "--target", target, "--no-cache"])
    assert again.exit_code == 0, again.output
    assert "secateur.backends" not in again.stderr
