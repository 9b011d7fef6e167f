"""Scratch folders: removed at the end, and by the next process where one was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.ir import scratch
from secateur.ir.scratch import replace_together, scratch_folder

pytest.importorskip("fcntl")

_HOLD = """
import sys
from pathlib import Path
from secateur.ir.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("written")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had just started."""
    monkeypatch.setattr(scratch, "_cleared", set())


def holder(place: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", _HOLD, str(place)]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_removed_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    process, left = holder(tmp_path)
    process.kill()
    process.communicate()
    assert (left / "half").exists()
    (tmp_path / "secateur-notes").mkdir()
    with scratch_folder(tmp_path):
        assert not left.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["secateur-notes"]


def test_what_others_use_stays(tmp_path: Path) -> None:
    process, used = holder(tmp_path)
    with scratch_folder(tmp_path) as own, scratch_folder(tmp_path):
        scratch._cleared.clear()
        with scratch_folder(tmp_path):
            assert own.exists()
            assert (used / "half").exists()
    process.communicate("")
    assert process.returncode == 0
    assert not list(tmp_path.iterdir())


def test_all_may_be_removed_at_once(tmp_path: Path) -> None:
    with scratch_folder(tmp_path), scratch_folder(tmp_path):
        scratch.remove_all()
        assert not list(tmp_path.iterdir())


def generation(folder: Path, name: str) -> list[tuple[Path, Path]]:
    """New files a, b and c, all of whose text is `name`, and their targets."""
    (folder / name).mkdir()
    for file in "abc":
        (folder / name / file).write_text(name)
    return [(folder / name / file, folder / file) for file in "abc"]


def found(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("stops", [True, False])
def test_files_that_belong_together_never_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """Wherever a process ends: before each of its steps is one generation there at most."""
    replace_together(generation(tmp_path, "old"))
    pairs = generation(tmp_path, "new")
    move, seen = os.replace, []

    def step(source: Path, target: Path) -> None:
        seen.append(found(tmp_path))
        if stops and len(seen) == 5:
            raise OSError("disk error")
        move(source, target)

    monkeypatch.setattr(os, "replace", step)
    if stops:
        with pytest.raises(OSError, match="disk error"):
            replace_together(pairs)
        assert found(tmp_path) == dict.fromkeys("abc", "old")
        return
    replace_together(pairs)
    assert found(tmp_path) == dict.fromkeys("abc", "new")
    assert len(seen) == 6
    for state in seen:
        assert len(set(state.values())) <= 1, state
        assert "a" not in state or state["a"] == "old" or len(state) == 3, state


def test_files_that_are_not_written_again_are_removed(tmp_path: Path) -> None:
    replace_together(generation(tmp_path, "old"))
    pairs = generation(tmp_path, "new")
    pairs[1][0].unlink()
    replace_together(pairs)
    assert found(tmp_path) == {"a": "new", "c": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "new", "old"]
