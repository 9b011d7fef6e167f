"""Sample data: what is read, and that hostile or ill-fitting files give one clear line."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from secateur.data import npz
from secateur.data.datasets import DataError, Dataset, load_dataset
from secateur.data.npz import NpzFile
from secateur.data.random_inputs import random_feed
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto


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


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with NpzFile(path) as file:
        return {name: file.read(name) for name in file.names}


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
        ({"x": IMAGES, "labels": np.zeros((5, 2), int)}, "5 integers"),
        ({"x": IMAGES, "labels": np.array([0, 1, -2, 1, 0])}, "-2 as for sample 2"),
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


def npy(
    shape: object = (5, 3, 4),
    descr: object = "<f4",
    fortran: object = False,
    version: tuple[int, int] = (1, 0),
    body: bytes | None = None,
    header: bytes | None = None,
) -> bytes:
    """The content of a .npy file, right by default."""
    if header is None:
        header = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode()
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return (
        b"\x93NUMPY"
        + bytes(version)
        + length
        + header
        + (IMAGES.tobytes() if body is None else body)
    )


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


BAD_MEMBERS = {
    "negative": npy((-5, 3, 4)),
    "minus one": npy((-1, -1, 4)),
    "huge": npy((1 << 62, 3, 4)),
    "product past 64 bits": npy((1 << 40, 1 << 40, 4)),
    "huge and empty": npy((0, 1 << 62, 1 << 62), body=b""),
    "empty and huge": npy((1 << 62, 0), body=b""),
    "longer than the file": npy((10**9, 3, 4)),
    "shorter than the file": npy((1, 3, 4)),
    "number": npy(5),
    "list": npy([5, 3, 4]),
    "floats": npy((5.0, 3, 4)),
    "booleans": npy((True, 3, 4)),
    "strings": npy(("5", 3)),
    "many axes": npy((1,) * 100),
    "sub-array": npy(descr="(2,)<f4"),
    "sub-array tuple": npy(descr=("<f4", (2,))),
    "structured": npy(descr=[("a", "<f4"), ("b", "<i4")]),
    "structured text": npy(descr="<f4,<i4"),
    "object": npy(descr="|O"),
    "empty void": npy(descr="|V0", body=b""),
    "empty string": npy(descr="<U0", body=b""),
    "void": npy(descr="|V4"),
    "time": npy(descr="<M8[s]"),
    "no type": npy(descr="hello"),
    "long type": npy(descr="<f4" * 1000),
    "huge type": npy(descr="<U999999999999"),
    "none": npy(descr=None),
    "nonsense order": npy(fortran="yes"),
    "version 0": npy(version=(0, 0)),
    "version 2 without text": npy(version=(2, 0), header=b""),
    "version 9": npy(version=(9, 0)),
    "version 1.7": npy(version=(1, 7)),
    "no header": b"",
    "half a magic": b"\x93NUM",
    "magic only": b"\x93NUMPY\x01\x00",
    "text": b"hello",
    "pickle": b"\x80\x04K\x01.",
    "header that ends early": npy()[:40],
    "truncated": npy()[:-1],
    "header beyond the file": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}",
    "deep header": npy(header=b"(" * 9000),
    "deeper header": npy(header=b"-" * 9000 + b"1"),
    "code": npy(header=b"__import__('os').system('false')"),
    "other keys": npy(header=b"{'descr': '<f4', 'shape': (5, 3, 4)}"),
    "extra keys": npy(header=b"{'descr': '<f4', 'fortran_order': 0, 'shape': (5,), 'x': 1}"),
    "not UTF-8": npy(version=(3, 0), header=b"\xff\xfe"),
    "NUL": npy(header=b"{'descr': '<f4\x00', 'fortran_order': False, 'shape': (5, 3, 4)}"),
    "long number": npy(header=b"{'shape': (" + b"9" * 6000 + b",)}"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", BAD_MEMBERS)
def test_bad_members_give_one_line(tmp_path: Path, name: str, compression: int) -> None:
    for member in ("x.npy", "labels.npy"):
        members = {"x.npy": npy(), member: BAD_MEMBERS[name]}
        path = archive(tmp_path / f"{member}.npz", members, compression)
        with pytest.raises(DataError, match=r"\.npz: ") as caught:
            load_dataset(path, model_with_inputs(x=[1, 3, 4]))
        assert len(str(caught.value)) < 500


def test_versions_orders_and_bytes_that_are_read(tmp_path: Path) -> None:
    big = IMAGES.astype(">f4").tobytes()
    fortran = IMAGES.tobytes(order="F")
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        for content in (
            npy(),
            npy(version=(2, 0)),
            npy(version=(3, 0)),
            npy(descr=">f4", body=big),
            npy(fortran=True, body=fortran),
        ):
            path = archive(tmp_path / "x.npz", {"x.npy": content}, compression)
            data = load_dataset(path, model_with_inputs(x=[2, 3, 4]))
            rows = [feed["x"] for feed in data.feeds()]
            np.testing.assert_array_equal(np.concatenate(rows)[:5], IMAGES)
            assert all(row.flags.c_contiguous and row.dtype.isnative for row in rows)


def test_archives_that_are_no_sets_of_arrays(tmp_path: Path) -> None:
    model = model_with_inputs(x=[1, 3, 4])
    for members in (
        {"x.npy": npy(), "notes.txt": b"hello"},
        {"x.npy": npy(), "x": npy()},
        {"x.npy": npy(), "../../x.npy": npy()},
        {"x.npy": npy(), "/x.npy": npy()},
        {"x.npy": npy(), "folder/": b""},
        {},
    ):
        with pytest.raises(DataError, match=r"x\.npz"):
            load_dataset(archive(tmp_path / "x.npz", members), model)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("x.npy", npy())
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("x.npy", npy())
    with pytest.raises(DataError, match="not an array of its own"):
        load_dataset(tmp_path / "x.npz", model)


@pytest.mark.parametrize(("offset", "value"), [(6, 1), (8, 99), (8, 12)])
def test_encryption_and_unknown_compression(tmp_path: Path, offset: int, value: int) -> None:
    content = bytearray(archive(tmp_path / "x.npz", {"x.npy": npy()}).read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[offset] = content[directory + offset + 2] = value
    (tmp_path / "x.npz").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"encrypted|compressed|damaged"):
        load_dataset(tmp_path / "x.npz", model_with_inputs(x=[1, 3, 4]))


def test_arrays_that_nothing_takes_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    original = zipfile.ZipFile.open

    def spy(self: zipfile.ZipFile, info: object, *rest: object, **named: object) -> object:
        opened.append(info)
        return original(self, info, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(zipfile.ZipFile, "open", spy)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=IMAGES, bomb=np.zeros(10**7))
    opened.clear()
    with pytest.raises(DataError, match="'bomb' matches no input"):
        load_dataset(path, model_with_inputs(x=[1, 3, 4]))
    assert not opened
    np.savez_compressed(path, x=np.zeros((10**6, 3, 5), np.float32))
    with pytest.raises(DataError, match=r"has shape \[1000000, 3, 5\]"):
        load_dataset(path, model_with_inputs(x=[1, 3, 4]))
    monkeypatch.setattr(npz, "MOST_UNPACKED", IMAGES.nbytes - 1)
    with pytest.raises(DataError, match="the most for all arrays"):
        load_dataset(archive(path, {"x.npy": npy()}, 8), model_with_inputs(x=[1, 3, 4]))


def test_stored_arrays_are_mapped(tmp_path: Path) -> None:
    data = load_dataset(save(tmp_path / "x.npz", x=IMAGES), model_with_inputs(x=[2, 3, 4]))
    assert isinstance(data.samples.arrays["x"], np.memmap)
    damaged = bytearray((tmp_path / "x.npz").read_bytes())
    damaged[damaged.index(IMAGES.tobytes()) + 3] ^= 1
    (tmp_path / "x.npz").write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="damaged"):
        load_dataset(tmp_path / "x.npz", model_with_inputs(x=[2, 3, 4]))
