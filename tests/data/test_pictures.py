"""Folders of pictures as samples, all of it hostile."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.data.datasets import DataError
from secateur.data.preprocessing import MOST_PIXELS, Preprocessing, place
from secateur.passes.quantize.calibrate import calibrate
from tests.data.folder_cases import (
    MODEL,
    RAW,
    fails,
    load,
    noise,
    picture,
    reading,
)

pytest.importorskip("PIL")


# --- pictures --------------------------------------------------------------------------


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    pixels = {
        name: noise(8, 8, seed) for seed, name in enumerate(("b/2.png", "a/1.png", "b/0.bmp"))
    }
    for name, array in pixels.items():
        picture(tmp_path / name, array)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_bytes(b"no picture")
    (tmp_path / "a" / "notes.txt").write_text("one")
    data = load(tmp_path)
    assert list(data.labels) == [0, 1, 1]
    found = data.samples.arrays["x"]
    assert (found.shape, found.dtype) == ((3, 3, 8, 8), np.float32)
    wanted = np.stack(
        [pixels[name].transpose(2, 0, 1) for name in ("a/1.png", "b/0.bmp", "b/2.png")]
    )
    np.testing.assert_array_equal(found[:], wanted)
    np.testing.assert_array_equal(found[-1], wanted[-1])
    np.testing.assert_array_equal(found[np.array([2, 0])], wanted[[2, 0]])
    assert "notes.txt" in data.notes[0]
    assert "classes 0 (a) to 1 (b)" in data.notes[1]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ([1, 3, 8, 8], np.float32),
        (["N", 8, 8, 3], np.float32),
        ([3, 8, 8], np.float32),
        ([1, 1, 8, 8], np.float32),
        ([1, 3, 8, 8], np.uint8),
        ([1, 8, 8, 3], np.float16),
        (["N", 3, "H", "W"], np.float32),
    ],
)
def test_inputs_of_pictures(tmp_path: Path, shape: list[Any], dtype: Any) -> None:
    picture(tmp_path / "x.png", noise(8, 8))
    how = Preprocessing(size=(8, 8), scale=1 / 255) if dtype is not np.uint8 else RAW
    data = load(tmp_path, how, reading(dtype, x=shape))
    (feed,) = data.feeds()
    sizes = [8 if side in ("H", "W") else 1 if side == "N" else side for side in shape]
    assert (list(feed["x"].shape), feed["x"].dtype) == (sizes, dtype)


def test_channels_mean_and_std(tmp_path: Path) -> None:
    pixels = noise(8, 8)
    picture(tmp_path / "x.png", pixels)
    rgb = load(tmp_path, Preprocessing.parse(["imagenet", "crop-share=1"])).samples.take(0, 1)["x"]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(
        rgb[0], ((pixels / 255 - mean) / std).transpose(2, 0, 1), rtol=1e-5, atol=1e-5
    )
    bgr = load(tmp_path, Preprocessing.parse(["caffe", "crop-share=1"])).samples.take(0, 1)["x"]
    wanted = pixels[..., ::-1] - np.array([103.939, 116.779, 123.68])
    np.testing.assert_allclose(bgr[0], wanted.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)
    tf = load(tmp_path, Preprocessing.parse(["tf", "crop-share=1"])).samples.take(0, 1)["x"]
    np.testing.assert_allclose(tf[0], (pixels / 127.5 - 1).transpose(2, 0, 1), atol=1e-6)


def test_the_middle_is_cropped_as_torchvision_does(tmp_path: Path) -> None:
    from PIL import Image

    path = picture(tmp_path / "x.png", noise(37, 61))
    how = Preprocessing.parse(["imagenet", "size=28x28", "mean=0", "std=1", "scale=1"])
    found = load(tmp_path, how, reading(x=[1, 3, 28, 28])).samples.take(0, 1)["x"]
    with Image.open(path) as image:  # Resize(32), CenterCrop(28)
        small = image.resize((int(32 * 61 / 37), 32), Image.Resampling.BILINEAR)
    left = round((small.width - 28) / 2)
    wanted = np.asarray(small.crop((left, 2, left + 28, 30)))
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), wanted)


def test_letterbox_keeps_the_whole_picture(tmp_path: Path) -> None:
    picture(tmp_path / "x.png", np.full((20, 40, 3), 200))
    how = Preprocessing.parse(["yolo", "scale=1"])
    found = load(tmp_path, how, reading(x=[1, 3, 32, 32])).samples.take(0, 1)["x"][0]
    assert (found[:, 8:24] == 200).all()
    assert (found[:, :8] == 114).all()
    assert (found[:, 24:] == 114).all()
    placing = place(20, 40, (32, 32), how)
    np.testing.assert_allclose(
        placing.to_picture([[0, 8, 32, 24], [8, 12, 16, 16]])[1], [10, 5, 20, 10]
    )
    np.testing.assert_allclose(placing.to_picture([[-5, 0, 40, 30]]), [[0, 0, 40, 20]])


def test_linear_is_what_opencv_does() -> None:
    from PIL import Image

    from secateur.data.preprocessing import resized

    cv2 = pytest.importorskip("cv2")
    pixels = noise(31, 45)
    for size in ((17, 20), (60, 90), (31, 10)):
        wanted = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
        found = resized(Image.fromarray(pixels), size, "linear")
        assert np.abs(found.astype(int) - wanted).max() <= 1


def test_linear_of_known_pixels() -> None:
    from PIL import Image

    from secateur.data.preprocessing import resized

    row = np.array([[0, 100, 200, 40]], np.uint8)
    np.testing.assert_array_equal(resized(Image.fromarray(row), (1, 2), "linear"), [[50, 120]])
    np.testing.assert_array_equal(
        resized(Image.fromarray(row[:, :2]), (1, 4), "linear"), [[0, 25, 75, 100]]
    )


def test_pictures_are_read_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.data.pictures import Pictures

    for number in range(6):
        picture(tmp_path / f"{number}.png", noise(8, 8, number))
    read: list[int] = []
    original = Pictures.read

    def counting(self: Pictures, index: int) -> Any:
        read.append(index)
        return original(self, index)

    monkeypatch.setattr(Pictures, "read", counting)
    data = load(tmp_path)
    assert read == []
    feeds = data.feeds()
    next(feeds)
    assert read == [0]
    assert len(list(feeds)) == 5


def test_ranges_of_inputs_are_measured_in_blocks(tmp_path: Path) -> None:
    for number in range(20):
        picture(tmp_path / f"{number:02}.png", np.full((8, 8, 3), 10 + number))
    data = load(tmp_path)
    ranges = calibrate(MODEL, [MODEL.graph.inputs[0]], data.samples)
    (found,) = ranges.values()
    assert (found.low, found.high) == (10, 29)


def png(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_hostile_pictures(tmp_path: Path) -> None:
    from PIL import Image

    outside = picture(tmp_path / "elsewhere.png", noise(8, 8))
    root = tmp_path / "data"
    root.mkdir()
    bad = root / "a.png"
    fails(root, "neither pictures")
    for content in (b"", b"GIF89a", b"<svg/>", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        bad.write_bytes(content)
        fails(root, r"'a.png': is no picture, or a damaged one|'a.png': ")
    bad.write_bytes(png(60000, 60000))
    fails(root, "'a.png': has 60000x60000 pixels|'a.png': has more pixels")
    assert MOST_PIXELS < 60000**2
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "PNG")
    bad.write_bytes(whole.getvalue()[:2000])
    fails(root, "'a.png': can't be decoded|'a.png': ")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(bad)
    fails(root, "'a.png': is a picture of mode I;16")
    bad.unlink()
    bad.symlink_to(outside)
    fails(root, "'a.png' is a link that leads out of the folder")
    bad.unlink()
    bad.symlink_to(root / "gone.png")
    fails(root, "'a.png' is a link to nothing")
    bad.unlink()
    os.mkfifo(bad)
    fails(root, "'a.png' is no regular file")
    bad.unlink()
    picture(root / "b.png", noise(8, 8))
    bad.symlink_to(root / "b.png")
    assert len(load(root).samples) == 2
    (root / "up").symlink_to(root)
    assert len(load(root).samples) == 2
    fails(root, "--preprocess and one of imagenet", how=None)
    picture(root / "narrow.png", noise(1, 4000))
    fails(
        root,
        "'narrow.png': .*too narrow",
        how=Preprocessing(fit="crop", size=(8, 8), crop_share=0.001),
    )


@pytest.mark.parametrize(
    ("shapes", "how", "message"),
    [
        (
            {"x": [1, 3, 8, 8], "y": [1, 4]},
            RAW,
            "with one input, and this one has 2 .*--input-value",
        ),
        ({"x": [1, 10]}, RAW, "takes no pictures"),
        ({"x": [1, 5, 8, 8]}, RAW, "no axis of 1 or 3 channels"),
        ({"x": [1, 3, "H", "W"]}, RAW, "leaves its height or width open"),
        ({"x": [1, 3, 8, 8]}, Preprocessing(size=(9, 9)), "size 9x9 is not the input's, 8x8"),
        ({"x": [1, 1, 8, 8]}, Preprocessing(mean=(1, 2, 3)), "mean has 3 numbers"),
        ({"x": [1, 1, 8, 8]}, Preprocessing(channels="bgr"), "has one channel"),
        ({"x": [1, 3, 8, 8]}, Preprocessing(dtype="uint8"), "dtype uint8 is not the input's"),
    ],
)
def test_models_that_take_no_pictures(
    tmp_path: Path, shapes: dict[str, Any], how: Preprocessing, message: str
) -> None:
    picture(tmp_path / "x.png", noise(8, 8))
    fails(tmp_path, message, how=how, model=reading(**shapes))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["imagnet"], "preset 'imagnet' is unknown; did you mean imagenet"),
        (["kernal=box"], "setting 'kernal' is unknown; did you mean kernel"),
        (["kernel=cubic"], "did you mean bicubic"),
        (["size=0x5"], "sides lie between"),
        (["size=1x2x3"], "can't be read"),
        (["mean=a"], "can't be read"),
        (["scale=1/0"], "can't be read"),
        (["scale=nan"], "finite"),
        (["std=0"], "not zero"),
        (["pad=300"], "between 0 and 255"),
        (["crop-share=2"], "crop-share"),
        (["mean=1:2"], "one number, or one for each"),
    ],
)
def test_settings_that_make_no_sense(texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing.parse(texts)


def test_settings_in_python() -> None:
    wanted = Preprocessing.parse(["size=64", "imagenet", "mean=0.5", "scale=1/255"])
    given = {"preset": "imagenet", "size": [64, 64], "mean": 0.5, "scale": "1/255"}
    assert Preprocessing.of(given) == wanted
    assert Preprocessing.of(["imagenet", "size=64x64", "mean=0.5"]) == wanted
    assert Preprocessing.of("tf") == Preprocessing.parse(["tf"])
    assert wanted.settings()["size"] == (64, 64)
