"""Labels of folders, all of it hostile."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.data.datasets import DataError
from secateur.data.labels import Boxes
from tests.data.folder_cases import (
    coco,
    fails,
    load,
    noise,
    picture,
)

pytest.importorskip("PIL")


# --- labels ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "labels"),
    [
        ("labels.csv", "a.png,3\nb.png,1\n", [3, 1]),
        ("labels.csv", "file,image\na.png,3\nb.png,1\n", [3, 1]),
        ("labels.csv", "score,name\n3,a.png\n1,b.png\n", [3, 1]),
        ("labels.csv", "id,label,file\n9,dog,b.png\n8,cat,a.png\n", [1, 0]),
        ("labels.json", '{"a.png": 2, "b.png": 0}', [2, 0]),
        ("labels.json", '[{"file": "b.png", "label": "x"}]', [0]),
    ],
)
def test_tables_of_labels(tmp_path: Path, file: str, text: str, labels: list[int]) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, noise(8, 8))
    (tmp_path / file).write_text(text)
    data = load(tmp_path)
    assert list(data.labels) == labels
    assert len(data.samples) == len(labels)


def test_classes_in_the_models_order(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png"):
        picture(tmp_path / name, noise(8, 8))
    (tmp_path / "classes.txt").write_text("dog\nbird\ncat\n")
    assert list(load(tmp_path).labels) == [2, 0]
    (tmp_path / "classes.txt").write_text("dog\nbird\n")
    fails(tmp_path, "folder 'cat' is no class of classes.txt")
    (tmp_path / "classes.txt").write_text("dog\ncat\ndog\n")
    fails(tmp_path, "'dog' is there twice")


def test_folders_that_are_numbers_are_indices(tmp_path: Path) -> None:
    for name in ("7/1.png", "10/1.png"):
        picture(tmp_path / name, noise(8, 8))
    assert list(load(tmp_path).labels) == [10, 7]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labels.csv", "../secret.png,1\n", "'../secret.png' is no sample of the folder"),
        ("labels.csv", "/etc/passwd,1\n", "is no sample of the folder"),
        ("labels.csv", "a.png\n", "row 1 has 1 cells"),
        ("labels.csv", "", "has no labels"),
        ("labels.csv", "a.png,-1\n", "class indices from 0 on"),
        ("labels.csv", "a.png,1\na.png,2\n", "'a.png' is there twice"),
        ("labels.csv", '"a.png,1\n', "labels.csv: "),
        ("labels.json", "[" * 100000, "no JSON"),
        ("labels.json", "3", "neither labels by file"),
        ("labels.json", '[{"x": 1}]', "entry 1 has no file and label"),
        ("labels.json", b"\xff\xfe", "no text of UTF-8"),
    ],
)
def test_hostile_tables(tmp_path: Path, file: str, text: str | bytes, message: str) -> None:
    picture(tmp_path / "a.png", noise(8, 8))
    (tmp_path / file).write_bytes(text.encode() if isinstance(text, str) else text)
    fails(tmp_path, message)


def test_annotations_as_coco_writes_them(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", noise(16, 32))
    picture(tmp_path / "b.png", noise(16, 16))
    coco(
        tmp_path / "annotations.json",
        {"b.png": [], "a.png": [(7, [1, 2, 3, 4]), (3, [0, 0, 9, 9])]},
    )
    data = load(tmp_path)
    assert data.kind == "boxes"
    empty, found = data.labels
    assert isinstance(found, Boxes)
    assert empty.boxes.shape == (0, 4)
    np.testing.assert_array_equal(found.boxes, [[1, 2, 4, 6], [0, 0, 9, 9]])
    assert list(found.classes) == [2, 1]  # of categories 1, 3 and 7
    assert found.placing is not None
    assert (found.placing.height, found.placing.width) == (16, 32)
    fails(tmp_path, "labels are boxes, not of the kind class", kind="class")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(bbox=[0, 0, -1, 2]), "annotation 1: .*no box"),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, 1]), "no box"),
        (lambda c: c["annotations"][0].update(bbox="x"), "not as COCO's"),
        (lambda c: c["annotations"][0].update(image_id=9), "there is no image 9"),
        (lambda c: c["annotations"][0].update(category_id=9), "there is no category 9"),
        (lambda c: c["images"][0].update(file_name="../a.png"), "is no sample"),
        (lambda c: c["images"][0].pop("id"), "not as COCO's"),
    ],
)
def test_hostile_annotations(tmp_path: Path, change: Any, message: str) -> None:
    picture(tmp_path / "a.png", noise(8, 8))
    path = coco(tmp_path / "annotations.json", {"a.png": [(1, [0, 0, 2, 2])]})
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    fails(tmp_path, message)


def test_masks_and_pictures_as_labels(tmp_path: Path) -> None:
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    picture(tmp_path / "a.png", noise(8, 8))
    picture(tmp_path / "masks" / "a.png", mask)
    (tmp_path / "labels.csv").write_text("a.png,masks/a.png\n")
    np.testing.assert_array_equal(load(tmp_path, kind="mask").labels[0], mask)
    picture(tmp_path / "masks" / "a.png", noise(16, 16, 5))
    (found,) = load(tmp_path, kind="image").labels
    np.testing.assert_array_equal(found, noise(16, 16, 5).transpose(2, 0, 1))
    fails(tmp_path, "a mask has one channel|a mask has the size", kind="mask")
    (tmp_path / "labels.csv").write_text("a.png,../a.png\n")
    fails(tmp_path, "is no picture of the folder", kind="mask")


def test_numbers_as_labels(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, noise(8, 8))
    (tmp_path / "labels.csv").write_text("a.png,1.5 2\nb.png,-3 4\n")
    np.testing.assert_array_equal(load(tmp_path, kind="number").labels, [[1.5, 2], [-3, 4]])
    (tmp_path / "labels.csv").write_text("a.png,1.5 2\nb.png,nan\n")
    fails(tmp_path, "label 'nan'", kind="number")


@pytest.mark.parametrize(
    ("table", "text", "says"),
    [
        ("labels.csv", "a.png,1.5\nb.png,0\n", "'a.png': label '1.5' is a number and no class; --"),
        ("labels.json", '{"a.png": {"x": 1}, "b.png": 0}', "'a.png': label '{'x': 1}' is no class"),
        ("labels.json", '{"a.png": 0, "b.png": null}', "'b.png': label 'None' is no class"),
        ("labels.json", '{"a.png": true, "b.png": 0}', "'a.png': label 'True' is no class"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, table: str, text: str, says: str) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", noise(4, 4))
    (tmp_path / table).write_text(text)
    fails(tmp_path, re.escape(says))


def test_how_names_in_a_table_are_numbered_is_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", noise(4, 4))
    (tmp_path / "labels.csv").write_text("a.png,zebra\nb.png,cat\n")
    data = load(tmp_path)
    assert list(data.labels) == [1, 0]
    assert data.classes == ("cat", "zebra")
    assert data.notes == (
        f"{tmp_path}: its 2 labels are classes 0 (cat) to 1 (zebra) by their names; classes.txt in "
        "it can say otherwise",
    )
    (tmp_path / "classes.txt").write_text("zebra\ncat\n")
    data = load(tmp_path)
    assert list(data.labels) == [0, 1]
    assert data.notes == ()


def test_a_file_that_is_read_late_is_named_with_its_folder(tmp_path: Path) -> None:
    content = picture(tmp_path / "a.png", noise(40, 40)).read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    data = load(tmp_path)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}: 'b.png': can't be decoded"):
        list(data.feeds())
