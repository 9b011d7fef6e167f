"""Folders of recordings and arrays, and functions, as samples; all of it hostile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.data.datasets import DataError, load_dataset
from secateur.data.preprocessing import Preprocessing
from tests.data.folder_cases import (
    fails,
    load,
    reading,
    recording,
)

# --- recordings --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [[1, 100], ["N", 1, 100], [100]])
def test_recordings(tmp_path: Path, width: int, shape: list[Any]) -> None:
    wave = np.sin(np.arange(70) / 3)
    recording(tmp_path / "a.wav", np.stack([wave, wave], 1), width=width)
    recording(tmp_path / "b.wav", np.concatenate([wave, wave]), width=width)
    feeds = list(load(tmp_path, None, reading(x=shape)).feeds())
    first, second = (feed["x"].reshape(100) for feed in feeds)
    np.testing.assert_allclose(first[:70], wave, atol=2.0 ** (2 - 8 * min(width, 2)))
    assert not first[70:].any()
    np.testing.assert_allclose(second, np.concatenate([wave, wave])[:100], atol=0.02)


def test_recordings_are_of_one_rate_and_lengths_are_told(tmp_path: Path) -> None:
    """Without a rate that is asked for all have to have the first one's; what is cut is said."""
    model = reading(x=[1, 100])
    for name, count in (("a", 70), ("b", 100), ("c", 130), ("d", 140)):
        recording(tmp_path / f"{name}.wav", np.zeros(count), rate=8000)
    notes = load(tmp_path, None, model).notes
    assert notes == (
        f"{tmp_path}: 2 of 4 recordings are longer than 100 samples, and lose their end",
        f"{tmp_path}: 1 of 4 recordings are shorter than 100 samples, and end in zeros",
    )
    recording(tmp_path / "e.wav", np.zeros(100), rate=16000)
    message = "'e.wav': has 16,000 samples a second, 'a.wav' has 8,000"
    fails(tmp_path, message, how=Preprocessing(length=100), model=model)


def test_hostile_recordings(tmp_path: Path) -> None:
    model = reading(x=[1, 100])
    path = recording(tmp_path / "a.wav", np.zeros(50))
    fails(
        tmp_path,
        "'a.wav': has 16,000 samples a second, not 8,000",
        how=Preprocessing(rate=8000),
        model=model,
    )
    fails(tmp_path, "leaves its length open", model=reading(x=[1, "T"]))
    fails(tmp_path, "length 5 is not the input's", how=Preprocessing(length=5), model=model)
    fails(tmp_path, "takes no single waveform", model=reading(x=[1, 2, 100]))
    content = path.read_bytes()
    for bad in (b"", b"RIFF", content[:30], content[:20] + b"\x03\x00" + content[22:]):
        path.write_bytes(bad)
        fails(tmp_path, "'a.wav': is no .wav file of linear PCM", model=model)
    path.write_bytes(content[:22] + b"\xff\xff" + content[24:])
    fails(tmp_path, "'a.wav': has 65,535 channels", model=model)
    recording(path, np.zeros(0))
    fails(tmp_path, "'a.wav': is empty", model=model)


# --- arrays ------------------------------------------------------------------------------


def test_an_array_file_for_each_input(tmp_path: Path) -> None:
    x, y = np.float32(np.arange(12)).reshape(4, 3), np.float32(np.arange(4)).reshape(4, 1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "in_y.npy", y)
    np.save(tmp_path / "labels.npy", np.arange(4))
    data = load(tmp_path, None, reading(**{"x": ["N", 3], "in/y": ["N", 1]}))
    assert list(data.labels) == [0, 1, 2, 3]
    np.testing.assert_array_equal(data.samples.arrays["in/y"][:], y)


@pytest.mark.parametrize("row", [(3,), (1, 3)])
@pytest.mark.parametrize("folder", ["x", "class-of-its-own", "."])
def test_an_array_file_for_each_sample(tmp_path: Path, row: Any, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    for number in range(3):
        np.save(tmp_path / folder / f"{number}.npy", np.full(row, number, np.float32))
    data = load(tmp_path, None, reading(x=[1, 3]))
    np.testing.assert_array_equal(data.samples.arrays["x"][1:], [[1] * 3, [2] * 3])
    assert (data.labels is not None) == (folder == "class-of-its-own")


def test_hostile_arrays(tmp_path: Path) -> None:
    model = reading(x=[1, 3])
    path = tmp_path / "x.npy"
    np.save(path, np.array([{}], dtype=object))
    fails(tmp_path, "Python objects", how=None, model=model)
    np.save(path, np.zeros((4, 3), np.float32))
    path.write_bytes(path.read_bytes()[:-4])
    fails(tmp_path, "'x.npy': needs 48 bytes of data, and has 44", how=None, model=model)
    np.save(path, np.zeros((4, 2), np.float32))
    fails(tmp_path, r"has shape \[4, 2\]", how=None, model=model)
    path.unlink()
    (tmp_path / "x").mkdir()
    np.save(tmp_path / "x" / "0.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "x" / "1.npy", np.zeros(2, np.float32))
    fails(tmp_path, "'x/1.npy': float32 of shape", how=None, model=model)
    np.save(tmp_path / "x" / "1.npy", np.full(3, np.nan, np.float32))
    fails(tmp_path, "'x/1.npy': has NaN", how=None, model=model)
    np.save(tmp_path / "z.npy", np.zeros(3, np.float32))
    fails(tmp_path, "array 'z' matches no input", how=None, model=model)


# --- functions ---------------------------------------------------------------------------

FUNCTIONS = """
import numpy as np

def samples():
    for k in range(5):
        yield {"x": np.full((1, 3), k, np.float32), "labels": k % 2}

def rows():
    yield {"x": [1.0, 2.0, 3.0]}

def batches():
    for k in range(3):
        yield {"x": np.full((2, 3), k, np.float32), "labels": [0, 1]}

def numbers():
    for k in range(3):
        yield {"x": np.full((2, 3), k, np.float32), "r": 0.1 * k, "labels": [k, k + 1]}

def wrong_name():
    yield {"y": np.zeros((1, 3), np.float32)}

def uneven():
    yield {"x": np.zeros((1, 3), np.float32)}
    yield {"x": np.zeros((1, 4), np.float32)}

def failing():
    yield {"x": np.zeros((1, 3), np.float32)}
    raise KeyError("a\\nb")

def nothing():
    return []

def not_finite():
    yield {"x": np.full((1, 3), np.inf, np.float32)}

number = 3

def states():
    for k in range(4):
        yield {"x": np.full((1, 3), k, np.float32), "s": np.full((2, 1, 5), k, np.float32),
               "r": 16000.0}
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "feeding.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "feeding", raising=False)


@pytest.mark.usefixtures("functions")
def test_functions_yield_samples() -> None:
    model = reading(x=["N", 3])
    data = load_dataset("feeding:samples", model)
    assert list(data.labels) == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(data.samples.arrays["x"][:, 0], range(5))
    assert isinstance(data.samples.arrays["x"], np.memmap)
    np.testing.assert_array_equal(
        load_dataset("feeding:rows", model).samples.arrays["x"], [[1, 2, 3]]
    )
    batches = load_dataset("feeding:batches", model)
    assert len(batches.samples) == 6
    assert list(batches.labels) == [0, 1] * 3


@pytest.mark.usefixtures("functions")
def test_functions_yield_states_and_numbers() -> None:
    model = reading(x=[1, 3], s=[2, 1, 5], r=[])
    feeds = list(load_dataset("feeding:states", model).feeds())
    assert len(feeds) == 4
    assert [feed["s"].shape for feed in feeds] == [(2, 1, 5)] * 4
    assert feeds[3]["s"][0, 0, 0] == 3
    assert feeds[0]["r"].shape == ()


@pytest.mark.usefixtures("functions")
def test_a_number_holds_for_all_samples_of_a_batch() -> None:
    data = load_dataset("feeding:numbers", reading(x=["N", 3], r=[]))
    assert list(data.labels) == [0, 1, 1, 2, 2, 3]
    np.testing.assert_allclose(data.samples.arrays["r"][:], [0, 0, 0.1, 0.1, 0.2, 0.2])
    np.testing.assert_array_equal(data.samples.arrays["x"][:, 0], [0, 0, 1, 1, 2, 2])


@pytest.mark.usefixtures("functions")
def test_labels_of_another_kind_name_the_option() -> None:
    masks = {"x": np.zeros((2, 3), np.float32), "labels": np.zeros((2, 4, 4), int)}
    with pytest.raises(DataError, match="--metric says what other labels are"):
        load_dataset(masks, reading(x=["N", 3]))


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_name", "dict 1: no array for input 'x'"),
        ("uneven", "dict 2: 'x' is float32 of shape"),
        ("failing", "failed: KeyError: 'a"),
        ("nothing", "yields nothing"),
        ("not_finite", "NaN or infinite"),
        ("number", "is no function"),
        ("gone", "can't be imported: AttributeError"),
    ],
)
def test_functions_that_fail(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"feeding:{name}", reading(x=["N", 3]))
    assert "\n" not in str(caught.value)
