"""Graphs of a node or two, on values and in forms that random graphs were wrong at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from .joined import NATIVE, Part, compile_parts

Array = Any

INF, NAN = np.inf, np.nan
ROWS = np.float32(
    [
        [3e38, 3e38, 1, 2], [INF, 1, 2, 3], [-INF, -INF, -INF, -INF], [NAN, 1, 2, 3],
        [1, NAN, 3, 2], [0, 0, 0, 0], [-3e38, -3e38, -3e38, 3e38], [INF, INF, 1, 1],
        [1e30, 2e30, 1, 0], [88, 89, 100, 1], [NAN, NAN, NAN, NAN], [3, 1, 2, NAN],
    ]
)  # fmt: skip
INTEGERS = np.int32([[50000, 60000], [3, 4], [-5, 2], [2**20, 5], [46341, 0], [30001, 30000]])
TIES = np.int32([[3, 3, 2, 2], [-3, -3, -3, -4], [2, 2, -3, -3], [-1, -5, -5, -5], [2, 3, 2, 0]])
LARGE = np.float32([[3e38, 3e38, 1, 2], [3e38] * 4, [-3e38] * 4, [1e20, 2e20, 3, 4]])
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 4, 8, 6)).astype(np.uint8)
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Mean", "Prod", "SumSquare")


SUBNORMAL = 1.18e-38
"""Results below may be zero."""


def case(text: str, opset: int = 17, **feeds: Array) -> Part:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}')
    return Part(text, model, feeds)


def cases() -> list[Part]:
    return [
        *(
            case(f"(float[{n},{m}] x) => (float[{n},{m}] y) {{ y = {op}<axis={axis}>(x) }}", x=x)
            for op in ("LogSoftmax", "Softmax", "Hardmax")
            for axis, x in ((1, ROWS), (0, np.ascontiguousarray(ROWS.T)))
            for n, m in [x.shape]
        ),
        *(
            case(f"(int32[6,2] x) => (int32[6] y) {{ y = Reduce{op}<axes=[1], keepdims=0>(x) }}",
                 13, x=INTEGERS)
            for op in REDUCTIONS
        ),
        *(
            case(f"(int64[6,2] x) => (int64[6] y) {{ y = Reduce{op}<axes=[1], keepdims=0>(x) }}",
                 13, x=INTEGERS.astype(np.int64) * 7)
            for op in REDUCTIONS
        ),
        *(
            case(f"({t}[5,4] x) => ({t}[{size}] y) "
                 f"{{ y = ReduceLogSumExp<axes=[{axis}], keepdims=0>(x) }}", 13,
                 x=TIES.astype(kind))
            for t, kind in (("int32", "int32"), ("int64", "int64"))
            for axis, size in ((0, 4), (1, 5))
        ),
        *(
            case(f"(float[4,{n}] x, float[{n}] s) => (float[4,{n}] y{more}) "
                 f"{{ y{more.replace('float[4,1]', '')} = LayerNormalization(x, s) }}",
                 x=np.tile(LARGE, (1, n // 4)), s=np.ones(n, np.float32))
            for n in (4, 12, 36)
            for more in ("", ", float[4,1] m")
        ),
        *(
            case(f"(float[12,4] x, float s) => ({t}[12,4] y) <{t} z = {{7}}> "
                 "{ y = QuantizeLinear(x, s, z) }", x=ROWS, s=np.asarray(scale, np.float32))
            for t in ("uint8", "int8")
            for scale in (0.1, 0, INF, NAN)
        ),
        *(
            case("(uint8[2,2] a, float s, float t) => (uint8[2,2] y) <uint8 z = {3}, float u = {1}>"
                 "{ y = QLinearMatMul(a, s, z, a, u, z, t, z) }", a=IMAGE[0, 0, :2, :2],
                 s=np.asarray(scale, np.float32), t=np.asarray(to, np.float32))
            for scale in (0, 1, INF, NAN)
            for to in (0.1, 0, INF, NAN)
        ),
        *(
            case(f"(uint8[1,4,8,6] x) => (uint8[1,4,{int(8 * rows)},{int(6 * columns)}] y) "
                 f"<float[4] s = {{1, 1, {rows}, {columns}}}> {{ y = Resize<mode = \"linear\", "
                 f"coordinate_transformation_mode = \"{mode}\">(x, , s) }}", x=IMAGE)
            for mode in ("half_pixel", "asymmetric")
            for rows, columns in ((3, 2), (3, 0.5), (1.5, 1.5), (1, 3), (5, 1))
        ),
        *(
            case(f"(float[{n},3] x) => (uint8[{n},3] y, float s, uint8 z) "
                 "{ y, s, z = DynamicQuantizeLinear(x) }", x=np.zeros((n, 3), np.float32))
            for n in (0, 2)
        ),
        *(
            case(f"({t}[2,0] x) => ({t}[2] y) {{ y = Reduce{op}<axes=[1], keepdims=0>(x) }}", 13,
                 x=np.zeros((2, 0), kind))
            for t, kind in (("int64", "int64"), ("int32", "int32"), ("float", "float32"))
            for op in ("Mean", "Prod", "SumSquare", "L2", "L1")
        ),
        *(
            case(f"(float[3,0] x, float[0,33] w) => (float[3,33] y) {{ y = {op}(x, w) }}",
                 x=np.zeros((3, 0), np.float32), w=np.zeros((0, 33), np.float32))
            for op in ("MatMul", "Gemm")
        ),
        case("(bool[3,2] x) => (bool[1,2] y, bool[2,2] z) <int64[2] s = {1, 2}> "
             "{ y, z = Split<axis = 0>(x, s) }", x=np.asarray([[1, 0], [0, 1], [1, 1]], bool)),
        case("(uint8[1,4,8,6] x) => (float[1,4,8,6] a, float[1,4,8,6] b) "
             "<float s = {0.5}, float t = {0.25}, uint8 u = {7}, uint8 v = {120}> "
             "{ a = DequantizeLinear(x, s, u) b = DequantizeLinear(x, t, v) }", x=IMAGE),
        *(
            case("(float[2,3] x, float[2,1] y) => (bool[2,3] z) "
                 f"{{ a = MeanVarianceNormalization<axes = [1]>(x) z = {op}(y, a) }}", 15,
                 x=np.float32([[1, 2, 5], [7, 1, 3]]), y=np.float32([[0.2], [0.5]]))
            for op in ("LessOrEqual", "GreaterOrEqual", "Less")
        ),
        *(
            case(f"(float[3,4] x, int64[3] t, float[4] w) => (float{shape} y) "
                 f"{{ y = {op}<reduction = \"{reduction}\">(x, t, w) }}", opset,
                 x=IMAGE[0, 0, :3, :4].astype(np.float32) / 100, t=np.int64([0, 3, 1]),
                 w=np.float32([0.5, 1, 2, 0.25]))
            for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
            for opset in (13, 18, 21)
            for reduction, shape in (("none", "[3]"), ("mean", ""), ("sum", ""))
        ),
    ]  # fmt: skip


def test_small_graphs(tmp_path: Path) -> None:
    refused: dict[str, str] = {}
    seen = 0
    for joined in compile_parts(cases(), tmp_path, 64, refused):
        found = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
        for prefix, part in joined.parts.items():
            expected = part.reference(part.feeds)
            assert expected is not None, part.name
            for name, array in expected.items():
                np.testing.assert_allclose(
                    found[prefix][name], array,
                    rtol=1e-5 if array.dtype.kind == "f" else 0,
                    atol=SUBNORMAL if array.dtype.kind == "f" else 0,
                    err_msg=f"{part.name} {name}",
                )  # fmt: skip
            seen += 1
    assert not refused
    assert seen == len(cases())


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("(float[N,2,3,4] x, int64[N,3] i) => (float[N,2,3,4] y) "
         "<float[4,2] c = {1, 2, 3, 4, 5, 6, 7, 8}> { y = RotaryEmbedding(x, c, c, i) }", 23),
        ("(float[N,2,3,4] x, int64[N,3] i) => (float[N,2,3,4] y) "
         "{ y = Attention(x, x, x) }", 24),
        ("(float[N,4,3] x, int64[N,3] i) => (float[N,3] y) "
         "{ y = NegativeLogLikelihoodLoss<reduction = \"none\">(x, i) }", 17),
        ("(float[N,4,3] x, int64[N,3] i) => (float[N,3] y, float[N,4,3] z) "
         "{ y, z = SoftmaxCrossEntropyLoss<reduction = \"none\">(x, i) }", 17),
    ],
)  # fmt: skip
def test_operators_replaced_by_definitions_keep_samples(
    tmp_path: Path, text: str, opset: int
) -> None:
    """What has samples is known of the model's outputs, whatever replaces them."""
    part = case(text, opset)
    path = tmp_path / "model.so"
    compile_model(from_proto(part.model), NATIVE, path)
    runtime = Runtime(path)
    random = np.random.default_rng(0)
    for count in (1, 3, 5):
        feeds = {
            name: random.random((count, *shape[1:]), np.float32)
            if dtype == "float32"
            else random.integers(0, 4, (count, *shape[1:]))
            for name, (dtype, shape) in runtime.inputs.items()
        }
        expected, found = part.reference(feeds), runtime.run(feeds)
        assert expected is not None
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("axes", ["", ", e"])
def test_squeeze_of_what_may_be_one_sample_is_refused(tmp_path: Path, axes: str) -> None:
    """Without axes it removes that axis, too, whatever the model declares of its result."""
    part = case("(float[N,16] x) => (float[N,16] y) <int64[1] a = {2}, int64[0] e = {}> "
                f"{{ u = Unsqueeze(x, a) y = Squeeze(u{axes}) }}")  # fmt: skip
    with pytest.raises(SecateurError, match="Squeeze"):
        compile_model(from_proto(part.model), NATIVE, tmp_path / "model.so")


def test_squeeze_of_no_axes_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime removes all axes of size 1 then, and ONNX's inference none."""
    part = case("(float[3,1] x) => (float[3,1] y) <int64[0] e = {}> { y = Squeeze(x, e) }")
    with pytest.raises(SecateurError, match="list the axes"):
        compile_model(from_proto(part.model), NATIVE, tmp_path / "model.so")
