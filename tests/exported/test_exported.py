"""What stock exporters, optimizers and quantizers write compiles whole and computes the same.

The models are made by the tools themselves (`make.py` beside this file).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import load

from ..onnx_runtime import session_of

FOLDER = Path(__file__).parent / "models"
MODELS = sorted(path.stem for path in FOLDER.glob("*.onnx"))
MOST_BYTES = 50_000

COARSE = {"float16": 3e-2, "dynamic": 2e-2, "static": 5e-2, "ort_basic_quantized": 5e-2,
          "ort_extended_quantized": 5e-2, "ort_layout_quantized": 5e-2}  # fmt: skip
"""Differences, as shares of the largest number, by how names begin: a step of a quantization."""


def feeds(model: onnx.ModelProto, rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    found = {}
    for value in model.graph.input:
        shape = [d.dim_value or rows for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found[value.name] = random.standard_normal(shape).astype(dtype)
    return found


def reference(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """What ONNX Runtime computes; of maps the numbers, in the order of their keys."""
    session = session_of(path.read_bytes())
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(names, inputs), strict=True))
    return {
        name: np.float32([[row[k] for k in sorted(row)] for row in value])
        if isinstance(value, list)
        else value
        for name, value in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_tools_model_compiles_whole_and_agrees(tmp_path: Path, name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    assert path.stat().st_size <= MOST_BYTES
    compile_model(load(path), parse_target("native"), tmp_path / "m.so")
    runtime = Runtime(tmp_path / "m.so")
    tolerance = next((t for start, t in COARSE.items() if name.startswith(start)), 1e-4)
    proto = onnx.load(path)
    open_ = any(not d.dim_value for v in proto.graph.input for d in v.type.tensor_type.shape.dim)
    for rows in (1, 9) if open_ else (1,):
        inputs = feeds(proto, rows)
        found = runtime.run(inputs)
        for output, expected in reference(path, inputs).items():
            own = found[output]
            assert own.shape == expected.shape, output
            if expected.dtype.kind == "f":
                largest = float(np.abs(expected).max())
                np.testing.assert_allclose(own, expected, 0, tolerance * largest, err_msg=output)
            else:
                np.testing.assert_array_equal(own, expected, err_msg=output)


def test_there_is_a_model_of_every_tool() -> None:
    tools = {"dynamic", "float16", "lightgbm", "ort", "paddle", "sklearn", "static", "tf2onnx"}
    tools |= {"transformer", "xgboost"}
    assert {name.split("_")[0] for name in MODELS} == tools
