"""Sample data: what is read, and that hostile or ill-fitting files give one clear line."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from secateur.data import DataError, Dataset, load_dataset, read_npz
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.random_inputs import random_feed


def model_with_inputs(**shapes: list[int | str | None]) -> Model:
    """A model that reads float inputs of these shapes and gives each back."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name + "_out", TensorProto.FLOAT, None) for name in shapes
    ]
    nodes = [helper.make_node("Identity", [name], [name + "_out"]) for name in shapes]
    return from_proto(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs)))


IMAGES = np.arange(5 * 3 * 4, dtype=np.float32).reshape(5, 3, 4)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_reads_inputs_and_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", x=IMAGES, labels=np.arange(5, dtype=np.uint8))
    data = load_dataset(path, model_with_inputs(x=[1, 3, 4]))
    np.testing.assert_array_equal(data.samples.arrays["x"], IMAGES)
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, range(5))


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path: Path, writer) -> None:  # type: ignore[no-untyped-def]
    arrays = {
        "c": IMAGES,
        "fortran": np.asfortranarray(IMAGES),
        "big": IMAGES.astype(">f4"),
        "scalar": np.float64(3.0),
        "empty": np.zeros((0, 3)),
        "flag": np.array([True, False]),
    }
    writer(tmp_path / "x.npz", **arrays)
    read = read_npz(tmp_path / "x.npz")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype.isnative


def feeds(data: Dataset, limit: int | None = None) -> list[int]:
    return [len(feed["x"]) for feed in data.feeds(limit)]


@pytest.mark.parametrize(("batch", "runs"), [(1, 5), (2, 3), ("N", 5)])
def test_feeds_follow_the_batch_size(batch: int | str, runs: int) -> None:
    data = load_dataset({"x": IMAGES}, model_with_inputs(x=[batch, 3, 4]))
    size = batch if isinstance(batch, int) else 1
    assert feeds(data) == [size] * runs
    assert sum(feeds(data, limit=2)) == 2


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": IMAGES}, "'x'"),
        ({"x": IMAGES, "z": IMAGES}, "'z'"),
        ({"x": IMAGES.astype(np.float64)}, "float64"),
        ({"x": IMAGES[:, :2]}, "[5, 2, 4]"),
        ({"x": IMAGES[0]}, "[3, 4]"),
        ({"x": IMAGES[:0]}, "no samples"),
        ({"x": np.full_like(IMAGES, np.nan)}, "sample 0"),
        ({"x": IMAGES, "labels": np.arange(4)}, "5 integers"),
        ({"x": IMAGES, "labels": np.zeros(5)}, "float64"),
    ],
)
def test_ill_fitting_arrays_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    path = save(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError) as caught:
        load_dataset(path, model_with_inputs(x=[1, 3, 4]))
    assert said in str(caught.value)
    assert "x.npz" in str(caught.value)


def test_first_bad_sample_is_named() -> None:
    images = IMAGES.copy()
    images[3, 1, 2] = np.inf
    with pytest.raises(DataError, match="sample 3"):
        load_dataset({"x": images}, model_with_inputs(x=[1, 3, 4]))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        read_npz(path)


def hostile(path: Path, header: bytes, body: bytes = b"") -> Path:
    """An .npz with one member that has this .npy header."""
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)
    return path


def test_header_allocates_no_more_than_the_file_holds(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    with pytest.raises(DataError, match="4000000000000 bytes"):
        read_npz(hostile(tmp_path / "x.npz", header, b"\0" * 16))


@pytest.mark.parametrize("header", [b"", b"{}", b"__import__('os')", b"{'descr': 3"])
def test_malformed_headers(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(DataError, match="malformed"):
        read_npz(hostile(tmp_path / "x.npz", header))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip file", IMAGES.tobytes()])
def test_other_files_are_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not an \.npz file"):
        read_npz(tmp_path / "x.npz")


def test_any_damage_gives_a_data_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=IMAGES)
    whole = buffer.getvalue()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "x.npz").write_bytes(bytes(damaged[: rng.integers(1, len(whole) + 1)]))
        with contextlib.suppress(DataError):
            read_npz(tmp_path / "x.npz")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_npz(tmp_path / "x.npz")


def test_random_inputs_fit_what_is_declared() -> None:
    feed = random_feed(model_with_inputs(x=["N", 3], y=[2, 5]), seed=1)
    assert {name: array.shape for name, array in feed.items()} == {"x": (1, 3), "y": (2, 5)}
    again = random_feed(model_with_inputs(x=["N", 3], y=[2, 5]), seed=1)
    np.testing.assert_array_equal(feed["x"], again["x"])


def test_open_axes_get_a_size_that_the_model_runs_with() -> None:
    assert random_feed(model_with_inputs(x=["N", "H"]), seed=1)["x"].shape == (1, 8)
    pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[20])
    shapes = {"x": ["N", 2, "W"], "y": None}
    infos = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in shapes.items()}
    graph = helper.make_graph([pool], "g", [infos["x"]], [infos["y"]])
    opsets = [helper.make_opsetid("", 17)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert random_feed(model, seed=1)["x"].shape == (1, 2, 32)


def test_a_model_that_no_random_inputs_fit() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [7, 2], [0.0] * 14)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [product],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "H"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    with pytest.raises(DataError, match="no random inputs"):
        random_feed(model, seed=1)
