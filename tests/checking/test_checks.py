"""The gates: a wrong result is refused, and nothing of it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.checking.checks import check_equivalent, check_file
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load
from secateur.ir.tensor import Array, Tensor
from secateur.passes.base import Context, Pass, PassResult
from secateur.pipeline.steps import Step, StepResult, run_step
from secateur.pipeline.transform import transform_file

FEED = {"x": np.ones((1, 4), np.float32)}


def proto(scale: float = 1.0, declared: int = 3) -> onnx.ModelProto:
    """y [1, 3] = x [1, 4] @ w; `declared` is the width that the output claims to have."""
    weight = np.arange(1, 13, dtype=np.float32).reshape(4, 3) * np.float32(scale)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, declared])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def model(scale: float = 1.0) -> Model:
    return from_proto(proto(scale))


@pytest.mark.parametrize("scale", [1.0, 1 + 5e-5])
def test_rounding_passes(scale: float) -> None:
    assert check_equivalent("check", model(), model(scale), [FEED]).passed


@pytest.mark.parametrize("scale", [1 + 2e-4, 1.5, -1.0, float("nan")])
def test_more_than_rounding_is_refused(scale: float) -> None:
    with pytest.raises(SecateurError, match="more than rounding"):
        check_equivalent("check", model(), model(scale), [FEED])


def sharp(shift: float = 0.0, scale: float = 1.0) -> Model:
    """y = exp(x w - 40) and z = (x w + 1e4) - 1e4, both of which magnify rounding."""
    weight = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    constants = {"w": weight * np.float32(scale), "far": np.float32(40 - shift), "big": 1e4}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Sub", ["h", "far"], ["s"]),
            helper.make_node("Exp", ["s"], ["y"]),
            helper.make_node("Add", ["h", "big"], ["b"]),
            helper.make_node("Sub", ["b", "big"], ["z"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 5]) for name in "yz"],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    return from_proto(helper.make_model(graph, opset_imports=[opset], ir_version=8))


@pytest.mark.parametrize(("change", "right"), [
    ({}, True),
    ({"scale": 1 + 2e-7}, True),
    ({"scale": 1 + 1e-3}, False),
    ({"shift": 1e-2}, False),
    ({"shift": -3.0}, False),
])  # fmt: skip
def test_rounding_is_judged_by_the_values_behind_an_output(
    change: dict[str, float], right: bool
) -> None:
    """Outputs near zero differ by much for their size where what they come from doesn't."""
    feeds = [{"x": np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)}]
    if right:
        assert check_equivalent("check", sharp(), sharp(**change), feeds).passed
    else:
        with pytest.raises(SecateurError, match="more than rounding"):
            check_equivalent("check", sharp(), sharp(**change), feeds)


def classes(weight: np.ndarray) -> Model:
    """y = argmax over the last axis of x [N, 64] @ w, and z = x @ w in quantized steps."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("ArgMax", ["h"], ["y"], axis=-1, keepdims=0),
            helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["z"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [
            helper.make_tensor_value_info("y", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("z", TensorProto.UINT8, ["N", weight.shape[1]]),
        ],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.float32(0.25), "scale"),
            numpy_helper.from_array(np.uint8(128), "zero"),
        ],
    )
    opset = helper.make_opsetid("", 17)
    return from_proto(helper.make_model(graph, opset_imports=[opset], ir_version=8))


def test_ties_and_steps_may_flip_by_rounding_and_nothing_else() -> None:
    """One wrong class of two thousand is too much, unless two classes are as good as equal."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 7)).astype(np.float32)
    feed = {"x": rng.standard_normal((2000, 64)).astype(np.float32)}
    step = np.float32(1 + 2**-23)
    assert check_equivalent("check", classes(weight), classes(weight * step), [feed]).passed
    tied = weight.copy()
    tied[:, 6] = weight[:, 5] * step
    other = tied.copy()
    other[:, 5] = tied[:, 6] * step
    assert check_equivalent("check", classes(tied), classes(other), [feed]).passed
    wrong = weight.copy()
    wrong[:, 5] += np.float32(2e-3)
    for model, result in ((weight, wrong), (tied, wrong)):
        with pytest.raises(SecateurError, match="discrete outputs differ"):
            check_equivalent("check", classes(model), classes(result), [feed])


def test_nothing_to_run_on_is_no_agreement() -> None:
    check = check_equivalent("check", model(), model(2.0), [])
    assert not check.passed
    assert "not compared" in check.detail


def test_file_that_the_checker_rejects_is_refused(tmp_path: Path) -> None:
    onnx.save(proto(), tmp_path / "source.onnx")
    onnx.save(proto(declared=5), tmp_path / "result.onnx")
    with pytest.raises(SecateurError, match=r"result\.onnx: onnx\.checker rejects"):
        check_file(tmp_path / "result.onnx", [FEED], load(tmp_path / "source.onnx"))


def test_what_the_input_fails_too_is_reported(tmp_path: Path) -> None:
    onnx.save(proto(declared=5), tmp_path / "source.onnx")
    check = check_file(tmp_path / "source.onnx", [FEED], load(tmp_path / "source.onnx"))
    assert not check.passed
    assert "like the input" in check.detail


@dataclasses.dataclass(frozen=True)
class BreakWeights(Pass):
    """Doubles every initializer: well formed, and wrong."""

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        for value in model.graph.initializers.values():
            assert value.const is not None
            value.const = Tensor.from_array(value.const.numpy() * 2)
        return PassResult(True)


@pytest.mark.parametrize("existed", [False, True])
def test_wrong_result_is_not_written(tmp_path: Path, existed: bool) -> None:
    onnx.save(proto(), tmp_path / "source.onnx")
    out = tmp_path / "out.onnx"
    if existed:
        out.write_bytes(b"before")
    step = Step("break", "broken", [BreakWeights()], oracle="original")

    def change(
        model: Model, context: Context, feeds: list[dict[str, Array]]
    ) -> Iterator[tuple[Model, StepResult]]:
        yield model, run_step(step, model, context)

    with pytest.raises(SecateurError, match="broken model against original"):
        transform_file(tmp_path / "source.onnx", out, step.name, change)
    assert out.exists() == existed
    assert not existed or out.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1 + existed
