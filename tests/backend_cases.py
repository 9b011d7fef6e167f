"""The backend test cases of the onnx package, as models with inputs and expected outputs."""

from __future__ import annotations

import functools
import glob
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx.backend.test


class Case(NamedTuple):
    """`data`: pairs of input and output lists, empty where the package ships none."""

    name: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]


@functools.cache
def generated_cases() -> list[Case]:
    """The node cases and the model cases that are made in memory."""
    from onnx.backend.test.case import model as model_cases
    from onnx.backend.test.case import node as node_cases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators overflow and divide by zero on purpose
        found = [*node_cases.collect_testcases(None), *model_cases.collect_testcases()]
    return [Case(t.name, t.model, t.data_sets or []) for t in found if t.model is not None]


def model_files() -> list[Path]:
    """Every model file in the package: simple, light, PyTorch-converted and -operator cases."""
    root = Path(onnx.backend.test.__file__).parent / "data"
    return [Path(p) for p in sorted(glob.glob(f"{root}/**/*.onnx", recursive=True))]
