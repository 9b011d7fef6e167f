"""Recurrent layers of ARM libraries under emulation, beside ONNX Runtime on this machine.

There one load fills a register with several elements of the state, and weights of bytes become
floats before the first step where there are several, or multiply the states' bytes where the CPU
has dot products. Needs qemu-user and ARM compilers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.kernels.recurrent import converts_ahead
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import RecurrentOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.model import Model
from secateur.ir.onnx_io import to_proto
from secateur.ir.reference import Session
from tests.passes.recurrent_models import feed_of, recurrent_model

from ..tvm.test_recurrent_bytes import FORMS, STATIC, STORED, in_bytes
from . import models
from .test_emulated import tools
from .test_open_library import results, run

pytestmark = pytest.mark.slow

FLOATS = "floats"


def layer_of(form: str, how: str, hidden: int, steps: int | str, batch: int) -> Model:
    kind, direction, attributes = FORMS[form]
    model = recurrent_model(
        kind, direction, steps=steps, batch=batch, hidden=hidden, inputs="x w r b _ i", **attributes
    )
    return model if how == FLOATS else in_bytes(model, how)


def check(model: Model, folder: Path, target: str, lengths: list[int], batch: int) -> None:
    compiler, emulator, _ = tools(target)
    library = models.build(to_proto(model), folder, "net", target=target, threads="none")
    program = models.program(library, "net", compiler, "-static", source=models.OPEN)
    for steps in lengths:
        feed = feed_of(model, steps, steps, batch)
        done = run(program, [*feed.values()], emulator)
        assert done.returncode == 0, (done.returncode, done.stdout)
        right = [*Session(model).run(feed).values()]
        for own, other in zip(results(program, right), right, strict=True):
            np.testing.assert_allclose(own, other, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["aarch64-cortex-a72", "aarch64-cortex-a76"])
@pytest.mark.parametrize("how", [FLOATS, STORED, STATIC])
@pytest.mark.parametrize("form", FORMS)
def test_any_length_on_arm(form: str, how: str, target: str, tmp_path: Path) -> None:
    """A batch of more rows than a tile has; states that are given are between -3 and 3."""
    model = layer_of(form, how, 20, "n", 9)
    check(model, tmp_path, target, [1, 2, 12], 9)


@pytest.mark.parametrize("target", ["aarch64-cortex-a76", "armv7-a-cortex-a7"])
@pytest.mark.parametrize("hidden", [1, 6, 13, 24])
def test_any_number_of_units_on_arm(hidden: int, target: str, tmp_path: Path) -> None:
    for how in (FLOATS, STORED):
        model = layer_of("LSTM", how, hidden, "n", 2)
        check(model, tmp_path / how, target, [1, 7], 2)


def test_weights_are_converted_ahead_where_that_pays() -> None:
    def ahead(target: str, steps: int | str) -> bool:
        plan = lower(layer_of("LSTM", STORED, 20, steps, 2), parse_target(target))
        (op,) = (op for op in plan.operations if isinstance(op, RecurrentOp))
        return converts_ahead(op.layer, parse_target(target))

    assert ahead("aarch64-cortex-a72", 7)
    assert not ahead("aarch64-cortex-a72", 2)
    assert not ahead("x86-64-v3", 7)
