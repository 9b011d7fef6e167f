"""Curves over budgets: what each budget is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import save
from secateur.pipeline import sweep

from ..passes.test_rotation import decoder


@pytest.mark.parametrize("rotate", [False, True])
def test_budgets_of_latency_are_for_the_rotated_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotate: bool
) -> None:
    random = np.random.default_rng(0)
    model = decoder(False, random)
    save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=random.standard_normal((256, 6, 5)).astype(np.float32))
    seen: list[Model] = []

    def stand_in(model: Model, *_: object) -> None:
        seen.append(model)
        raise SecateurError("seen")

    monkeypatch.setattr(sweep, "LatencyBudget", stand_in)
    with pytest.raises(SecateurError, match="seen"):
        sweep.sweep_file(
            tmp_path / "m.onnx",
            tmp_path / "c.json",
            "latency",
            [0.5],
            {"rotate": rotate},
            target="x86-64-v3",
            data=tmp_path / "x.npz",
        )
    weights = model.graph.initializers
    kept = all(
        value.const is not None
        and name in weights
        and np.array_equal(value.const.numpy(), weights[name].const.numpy())
        for name, value in seen[0].graph.initializers.items()
    )
    assert kept != rotate
