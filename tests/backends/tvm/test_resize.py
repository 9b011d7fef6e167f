"""Resize and Upsample of blocked images, against ONNX Runtime and against the plain loops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.library import Library
from secateur.backends.tvm.emission import work
from secateur.backends.tvm.emission.emit import emit
from secateur.backends.tvm.kernels.image.resize import Resize as ResizeKernel
from secateur.backends.tvm.lowering.lower import RULES, lower
from secateur.backends.tvm.plan.operations import LoopsOp, ResizeOp
from secateur.backends.tvm.plan.sampling import NEAREST_MODES, Axis, Sampling
from secateur.backends.tvm.targets import parse_target
from secateur.backends.tvm.tensorir.builder import SHARES
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto

from ...onnx_runtime import session_of
from .graphs import Net, feeds, quantize, reference
from .joined import Part, compile_parts
from .test_networks import SETTINGS, TARGETS, run

TRANSFORMS = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "asymmetric",
    "align_corners",
)


def resized(net: Net, value: str, sizes: tuple[int, ...], **attributes: Any) -> str:
    """A Resize of an image to spatial `sizes`."""
    net.constants["sizes"] = np.asarray([*net.shape[:2], *sizes], np.int64)
    return net.node("Resize", value, "", "", "sizes", **attributes)


@st.composite
def networks(draw: Any, modes: tuple[str, ...] = ("nearest", "linear", "cubic")) -> onnx.ModelProto:
    """A convolution, a Resize, what fuses into it, a convolution with padding."""
    mode = draw(st.sampled_from(modes))
    rank = 4 if mode == "cubic" else draw(st.sampled_from((3, 4, 4)))
    channels = draw(st.sampled_from((1, 3, 4, 5, 16, 20, 33)))
    sizes = [draw(st.integers(1, 9)) for _ in range(rank - 2)]
    if draw(st.booleans()):
        out = [size * draw(st.integers(1, 4)) for size in sizes]
    else:
        out = [draw(st.integers(1, 19)) for _ in sizes]
    assume(out != sizes)  # else there is no Resize left
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": draw(st.sampled_from(TRANSFORMS)),
        "nearest_mode": draw(st.sampled_from(NEAREST_MODES)),
    }
    if mode == "cubic":
        attributes["cubic_coeff_a"] = draw(st.sampled_from((-0.75, -0.5)))
        attributes["exclude_outside"] = draw(st.integers(0, 1))
    batch = draw(st.integers(1, 2))
    net = Net(draw, draw(st.integers(0, 99)), batch)
    net.shape = (batch, channels, *sizes)
    ones, threes = [1] * len(sizes), [3] * len(sizes)
    value = net.node("Conv", "x", net.weight(channels, channels, *ones))
    others = []
    if draw(st.booleans()):  # so that the kernel reads an image with a border
        weights = net.weight(2, channels, *threes)
        others.append(net.node("Conv", value, weights, pads=[1] * 2 * len(out)))
    value = resized(net, value, tuple(out), **attributes)
    if draw(st.booleans()):
        value = net.node("Relu", value)
    if draw(st.booleans()):
        value = net.node("Add", value, net.node("Conv", "z", net.weight(channels, channels, *ones)))
    last = net.node("Conv", value, net.weight(channels, channels, *threes), pads=[1] * 2 * len(out))
    inputs = {"x": net.shape}
    if any("z" in n.input for n in net.nodes):
        inputs["z"] = (batch, channels, *out)
    return net.model(inputs, [last, *others] + [value] * draw(st.integers(0, 1)))


def calls_of(path: Path, kind: str) -> list[str]:
    """The kernels that the nodes of an operator call in an artifact."""
    calls = Library(path, 1).metadata["calls"]
    return [c["kernel"].split("_")[0] for c in calls if c["operation"].startswith(kind)]


def check(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 2e-5) -> None:
    for name, array in expected.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance * scale)


@settings(SETTINGS, max_examples=6)
@given(networks(), st.sampled_from(TARGETS))
def test_networks_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    """With one kernel for Resize and all that follows it, without changes of layout."""
    inputs = feeds(model, 1)
    check(run(model, target, tmp_path, inputs), reference(model, inputs))
    assert calls_of(tmp_path / "model.so", "Resize") == ["resize"]


@settings(SETTINGS, max_examples=6)
@given(
    networks(("nearest", "linear")), st.sampled_from(TARGETS), st.sampled_from(("uint8", "int8"))
)
def test_quantized_networks_match(
    tmp_path: Path, model: onnx.ModelProto, target: str, activation: str
) -> None:
    """To the bit: interpolation rounds as ONNX Runtime's does."""
    model = quantize(model, activation)
    inputs = feeds(model, 1)
    check(run(model, target, tmp_path, inputs), reference(model, inputs), 1e-6)


@pytest.mark.parametrize("target", TARGETS[::3])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_equal_quantization(tmp_path: Path, target: str, mode: str, activation: str) -> None:
    """Many results lie between two integers, and the nearest is a copy of bytes."""
    net = Net(None, 3)
    net.shape = (1, 20, 5, 7)
    value = net.node("Relu", net.node("Conv", "x", net.weight(20, 20, 1, 1)))
    value = resized(net, value, (10, 14), mode=mode)
    value = net.node("Conv", value, net.weight(20, 20, 3, 3), pads=[1, 1, 1, 1])
    model = quantize(net.model({"x": net.shape}, [value]), activation)
    resize = next(n for n in model.graph.node if n.op_type == "Resize")
    before = next(n for n in model.graph.node if resize.input[0] in n.output)
    for node in model.graph.node:
        if node.op_type.endswith("Linear") and resize.output[0][:-2] in node.input[1]:
            node.input[1:] = before.input[1:]
    inputs = feeds(model, 1)
    check(run(model, target, tmp_path, inputs), reference(model, inputs), 1e-6)
    assert calls_of(tmp_path / "model.so", "Resize") == ["resize"]
    operation = next(o for o in plan_of(model) if isinstance(o, ResizeOp))
    assert operation.output.dtype == activation
    assert operation.program.is_identity == (mode == "nearest")


def plan_of(model: onnx.ModelProto) -> list[Any]:
    graph = from_proto(model)
    infer_shapes(graph)
    return lower(graph, parse_target(TARGETS[-1])).operations


def single(
    op_type: str,
    shape: tuple[int, ...],
    constants: dict[str, Any],
    names: list[str],
    *,
    dtype: int = TensorProto.FLOAT,
    opset: int = 18,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node whose inputs after the first are constants.

    Or 'scales' or 'sizes', which are then computed at run time.
    """
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    if "scales" in names and "scales" not in constants:
        inputs.append(helper.make_tensor_value_info("scales", TensorProto.FLOAT, [len(shape)]))
    if "sizes" in names and "sizes" not in constants:
        inputs.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, [len(shape)]))
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *names], ["y"], name=op_type, **attributes)],
        "single",
        inputs,
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("channels", "out", "mode", "kernels"),
    [
        (20, (40, 36), "linear", ["elementwise", "resize"]),
        (20, (40, 36), "nearest", ["elementwise", "resize"]),
        (3, (40, 36), "cubic", ["elementwise", "resize"]),
        (20, (40, 36), "cubic", ["resize"]),
        (20, (5, 4), "linear", ["resize"]),
    ],
)
def test_the_smaller_side_changes_its_layout(
    tmp_path: Path, channels: int, out: tuple[int, int], mode: str, kernels: list[str]
) -> None:
    """Before a large result of the model, unless pixels one by one would take longer."""
    net = Net(None, 3)
    net.shape = (2, channels, 10, 9)
    value = net.node("Conv", "x", net.weight(channels, channels, 1, 1))
    value = resized(net, value, out, mode=mode)
    model = net.model({"x": net.shape}, [net.node("LeakyRelu", value, alpha=0.5)])
    inputs = feeds(model)
    check(run(model, TARGETS[-1], tmp_path, inputs), reference(model, inputs))
    assert calls_of(tmp_path / "model.so", "Resize") == kernels
    outputs = calls_of(tmp_path / "model.so", "outputs")
    assert outputs == (["elementwise"] if kernels == ["resize"] else [])


@settings(SETTINGS, max_examples=6)
@given(st.data())
def test_kernels_match_loops(tmp_path: Path, data: st.DataObject) -> None:
    """Also where ONNX Runtime isn't ONNX: fractions of pixels and corners, antialiasing."""
    draw = data.draw
    mode = draw(st.sampled_from(("nearest", "linear", "cubic")))
    shape = (draw(st.integers(1, 2)), draw(st.sampled_from((1, 4, 9, 16))), *draw(sizes()))
    scales = [1, 1] + [draw(st.sampled_from((0.3, 0.6, 1, 1.3, 2, 3.5))) for _ in range(2)]
    scales = [s if int(s * n) else 1.0 for s, n in zip(scales, shape, strict=True)]
    model = single(
        "Resize",
        shape,
        {"scales": np.asarray(scales, np.float32)},
        ["", "scales"],
        mode=mode,
        coordinate_transformation_mode=draw(st.sampled_from((*TRANSFORMS, "tf_half_pixel_for_nn"))),
        antialias=draw(st.integers(0, 1)) if mode != "nearest" else 0,
        exclude_outside=draw(st.integers(0, 1)) if mode == "cubic" else 0,
    )
    inputs = feeds(model, 1)
    target = draw(st.sampled_from(TARGETS))
    found = run(model, target, tmp_path, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(RULES, "Resize")
        check(found, run(model, target, tmp_path, inputs))


def sizes() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, 17), st.integers(1, 17))


@pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.INT8])
@pytest.mark.parametrize("channels", [3, 20])
def test_bytes_are_moved(tmp_path: Path, dtype: int, channels: int) -> None:
    for scales in ([1, 1, 2, 3], [1, 1, 1.5, 0.6]):
        constants = {"scales": np.asarray(scales, np.float32)}
        shape = (2, channels, 5, 6)
        model = single("Resize", shape, constants, ["", "scales"], dtype=dtype)
        assert any(isinstance(op, ResizeOp) for op in plan_of(model))
        random = np.random.default_rng(0).integers(0, 127, shape)
        inputs = {"x": random.astype(helper.tensor_dtype_to_np_dtype(dtype))}
        check(run(model, TARGETS[-1], tmp_path, inputs), reference(model, inputs), 0)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(tmp_path: Path, mode: str, opset: int) -> None:
    scales = np.asarray([1, 1, 2, 2.6], np.float32)
    if opset == 9:
        model = single("Upsample", (1, 5, 4, 6), {"s": scales}, ["s"], mode=mode, opset=9)
    else:
        model = single("Upsample", (1, 5, 4, 6), {}, [], mode=mode, scales=scales, opset=7)
    assert any(isinstance(op, ResizeOp) for op in plan_of(model))
    inputs = feeds(model)
    check(run(model, TARGETS[-1], tmp_path, inputs), reference(model, inputs))


OTHERS = {
    "channels": single("Resize", (1, 2, 3, 4), {"s": np.float32([1, 2, 1, 2])}, ["", "s"]),
    "five axes": single("Resize", (1, 2, 3, 3, 2), {"s": np.float32([1, 1, 2, 2, 2])}, ["", "s"]),
    "integers": single(
        "Resize", (1, 2, 3, 3), {"s": np.float32([1, 1, 2, 2])}, ["", "s"], dtype=TensorProto.INT32
    ),
    "interpolated bytes": single(
        "Resize",
        (1, 5, 3, 3),
        {"s": np.float32([1, 1, 2, 2])},
        ["", "s"],
        dtype=TensorProto.UINT8,
        mode="linear",
    ),
    "region": single(
        "Resize",
        (1, 5, 4, 4),
        {"roi": np.float32([0, 0, 0.1, 0.2, 1, 1, 0.8, 1.4]), "n": np.int64([1, 5, 6, 7])},
        ["roi", "", "n"],
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=3.0,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_loops(tmp_path: Path, name: str) -> None:
    model = OTHERS[name]
    assert any(isinstance(op, LoopsOp) for op in plan_of(model))
    inputs = feeds(model)
    inputs["x"] = np.abs(inputs["x"] * 8).astype(inputs["x"].dtype)
    check(run(model, TARGETS[-1], tmp_path, inputs), reference(model, inputs))


@pytest.mark.parametrize("target", TARGETS[::3])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_joined_with_what_was_skipped(tmp_path: Path, target: str, mode: str) -> None:
    """As in U-Net: resized and concatenated in blocks, with the next convolution's border."""
    net = Net(None, 5)
    net.shape = (1, 32, 6, 7)
    early = net.node("Relu", net.node("Conv", "x", net.weight(16, 3, 3, 3), pads=[1, 1, 1, 1]))
    small = net.node("MaxPool", early, kernel_shape=[2, 2], strides=[2, 2])
    small = net.node("Relu", net.node("Conv", small, net.weight(32, 16, 1, 1)))
    joined = net.node("Concat", early, resized(net, small, (12, 14), mode=mode), axis=1)
    last = net.node("Conv", joined, net.weight(8, 48, 3, 3), pads=[1, 1, 1, 1])
    model = net.model({"x": (1, 3, 12, 14)}, [last])
    for source, limit in ((model, 2e-5), (quantize(model), 1e-6)):
        inputs = feeds(source)
        check(run(source, target, tmp_path, inputs), reference(source, inputs), limit)
        assert calls_of(tmp_path / "model.so", "Resize") == ["resize"]


@pytest.mark.parametrize("height", [7, 30, 64, 96, 130])
def test_rows_are_shared_in_whole_parts(height: int) -> None:
    """As long ones as leave enough for all threads; one row each where no part divides them."""
    model = single("Resize", (1, 3, 5, 6), {"sizes": [1, 3, height, 9]}, ["", "", "sizes"])
    graph, target = from_proto(model), parse_target(TARGETS[-1])
    infer_shapes(graph)
    emission = emit(lower(graph, target), target)
    (kernel,) = (key[0] for key in emission.kernels if isinstance(key[0], ResizeKernel))
    assert kernel.run(parallel=False) == height
    rows = kernel.run(parallel=True)
    assert height % rows == 0
    longer = [n for n in range(rows + 1, height + 1) if height % n == 0]
    assert all(height // n < SHARES for n in longer)
    assert height // rows >= SHARES or rows == 1


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("channels", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_threads_share_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, channels: int
) -> None:
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)
    net = Net(None, 1, 2)
    net.shape = (2, channels, 12, 9)
    value = resized(net, net.node("Relu", "x"), (32, 20), mode=mode)
    value = net.node("Conv", value, net.weight(3, channels, 3, 3), pads=[1, 1, 1, 1])
    model = net.model({"x": net.shape}, [value])
    for source, limit in ((model, 2e-5), (quantize(model), 1e-6)):
        if mode == "cubic" and source is not model:
            continue
        inputs = feeds(source)
        check(run(source, TARGETS[-1], tmp_path, inputs, 2), reference(source, inputs), limit)


MODES: tuple[dict[str, Any], ...] = (
    *({"mode": "nearest", "nearest_mode": m} for m in NEAREST_MODES),
    {"mode": "linear"},
    {"mode": "cubic"},
)


def pairs(step: int) -> Iterator[tuple[int, int]]:
    """Different sizes before and after, every one of `step`."""
    chosen = itertools.islice(itertools.product(range(1, 41), repeat=2), 0, None, step)
    return ((size, out) for size, out in chosen if size != out)


@pytest.mark.parametrize("operand", ["sizes", "scales"])
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_tables_match_in_every_size(step: int, operand: str) -> None:
    """The nearest element depends on the last bit of a coordinate, and on what counts as halfway.

    But where a scale leaves a fraction of an element, which `align_corners` counts here.
    """
    for transform, mode in itertools.product((*TRANSFORMS, "tf_half_pixel_for_nn"), MODES):
        attributes = {**mode, "coordinate_transformation_mode": transform}
        names = ["", "scales"] if operand == "scales" else ["", "", "sizes"]
        model = single("Resize", (2, 1), {}, names, opset=19, **attributes)
        x, other = model.graph.input
        x.type.tensor_type.shape.dim[1].dim_param = "size"
        assert other.name == operand
        session = session_of(model)
        sampling = Sampling.of(from_proto(model).graph.nodes[0], 19)
        for size, out in pairs(step):
            scale = np.float32(out) / np.float32(size)
            values = np.float32([1, scale]) if operand == "scales" else np.int64([2, out])
            row = np.arange(size, dtype=np.float32) if mode["mode"] == "nearest" else \
                np.random.default_rng(size).standard_normal(size, np.float32)  # fmt: skip
            (expected,) = session.run(None, {"x": np.stack([row, -row]), operand: values})
            length = expected.shape[1]
            if length == size or (transform == "align_corners" and length != out):
                continue
            taps = sampling.table(Axis(size, length), float(scale))
            found = row[taps.places[:, 0]]
            if taps.weights is not None:
                found = (row[taps.places] * taps.weights).sum(1)
            limit = 0 if mode["mode"] == "nearest" else 2e-5
            different = np.abs(found - expected[0]) > limit
            assert not different.any(), f"{attributes}: {size} to {out}, {operand}"


def test_kernels_match_where_the_last_bit_counts(tmp_path: Path) -> None:
    """Coordinates in kernels: rounded as in the tables, and products not fused with sums."""
    parts = []
    for transform in (*TRANSFORMS, "tf_half_pixel_for_nn", "tf_crop_and_resize"):
        for mode, shape, out in (
            ({"mode": "nearest", "nearest_mode": "round_prefer_floor"}, (11, 14), (13, 19)),
            ({"mode": "nearest", "nearest_mode": "round_prefer_ceil"}, (7, 14), (8, 39)),
            ({"mode": "nearest", "nearest_mode": "floor"}, (13, 3), (7, 11)),
            ({"mode": "linear"}, (10, 14), (12, 39)),
        ):
            constants: dict[str, Any] = {"sizes": np.int64(out)}
            names = ["", "", "sizes"]
            if transform == "tf_crop_and_resize":
                constants["roi"] = np.float32([0.1, 0, 0.7, 1.1])
                names[0] = "roi"
            attributes = {**mode, "coordinate_transformation_mode": transform}
            model = single("Resize", shape, constants, names, opset=19, **attributes)
            x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            parts.append(Part(f"{transform} {mode}", model, {"x": x}))
    for joined in compile_parts(parts, tmp_path, len(parts)):
        results = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
        for prefix, part in joined.parts.items():
            expected = part.reference(part.feeds)
            assert expected is not None
            np.testing.assert_allclose(results[prefix]["y"], expected["y"], rtol=0, atol=1e-4,
                                       err_msg=part.name)  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scales", [(1, 1), (1, 2), (1.1, 2), (2, 1.1), (1.1, 1.1)])
def test_axes_that_are_not_scaled_are_not_cropped(
    tmp_path: Path, mode: str, scales: tuple[float, float]
) -> None:
    """As in ONNX Runtime, where none is, either, if no size changes."""
    constants = {"roi": np.float32([0.2, 0.3, 0.7, 1.1]), "s": np.float32(scales)}
    cropped = {"mode": mode, "axes": [2, 3], "extrapolation_value": 3.0}
    cropped["coordinate_transformation_mode"] = "tf_crop_and_resize"
    model = single("Resize", (1, 2, 4, 5), constants, ["roi", "s"], opset=19, **cropped)
    inputs = feeds(model)
    check(run(model, TARGETS[-1], tmp_path, inputs), reference(model, inputs))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("shape", [(29, 29), (1, 3, 29, 29)])
def test_copies_where_no_size_changes(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    """As ONNX Runtime does, whatever the scales."""
    scales = np.float32([1] * (len(shape) - 2) + [1.0344827, 1.02])
    model = single("Resize", shape, {"s": scales}, ["", "s"], mode=mode)
    inputs = feeds(model)
    check(run(model, TARGETS[-1], tmp_path, inputs), reference(model, inputs), 0)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scales", [(2, 1.02), (1.02, 2), (2, 1)])
def test_an_axis_may_be_sampled_and_keep_its_size(
    tmp_path: Path, mode: str, scales: tuple[float, float]
) -> None:
    """Where another one changes its size; the fast rule takes it."""
    model = single(
        "Resize", (1, 3, 29, 29), {"s": np.float32([1, 1, *scales])}, ["", "s"], mode=mode
    )
    assert any(isinstance(op, ResizeOp) for op in plan_of(model))
    inputs = feeds(model)
    check(run(model, TARGETS[-1], tmp_path, inputs), reference(model, inputs), 1e-5)


@pytest.mark.parametrize("scale", [0.3, 0.6, 0.7, 1.3, 2])
def test_nearest_before_it_had_a_mode(tmp_path: Path, scale: float) -> None:
    """In opset 10: the element above where the image gets smaller, below where it grows."""
    scales = np.float32([1, 1, scale, 1])
    for shape in ((1, 3, 17, 5), (3, 1, 17, 5)):
        model = single("Resize", shape, {"s": scales}, ["s"], mode="nearest", opset=10)
        inputs = feeds(model)
        check(run(model, TARGETS[-1], tmp_path, inputs), reference(model, inputs), 0)
