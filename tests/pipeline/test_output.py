"""Output folders appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secateur.ir.errors import SecateurError
from secateur.pipeline.output import output_folder

NAMES = ("a", "b")


def write(folder: Path, **files: str) -> None:
    with output_folder(folder, NAMES) as scratch:
        for name, text in files.items():
            (scratch / name).write_text(text)


def interrupted(folder: Path) -> None:
    with output_folder(folder, NAMES) as scratch:
        (scratch / "a").write_text("new")
        raise KeyboardInterrupt


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_new_folder_with_parents(tmp_path: Path) -> None:
    write(tmp_path / "x" / "y", a="1", b="2")
    assert content(tmp_path / "x" / "y") == {"a": "1", "b": "2"}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    write(tmp_path / "x", a="1")
    (tmp_path / "reference").mkdir()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "reference").stat().st_mode


def test_existing_folder_keeps_foreign_files_and_drops_stale_ones(tmp_path: Path) -> None:
    for name in ("a", "b", "notes.txt"):
        (tmp_path / name).write_text("old")
    write(tmp_path, a="new")
    assert content(tmp_path) == {"a": "new", "notes.txt": "old"}


@pytest.mark.parametrize("exists", [False, True])
def test_failure_leaves_everything_as_it_was(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "x"
    if exists:
        folder.mkdir()
        (folder / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(folder)
    assert folder.exists() == exists
    assert not exists or content(folder) == {"a": "old"}
    assert len(list(tmp_path.iterdir())) == int(exists)


def test_unwritable_places_fail_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "a").mkdir(parents=True)
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for place in ("file", "file/x", "out", "link"):
        with pytest.raises(SecateurError, match=place), output_folder(tmp_path / place, NAMES):
            pytest.fail("the work began")
