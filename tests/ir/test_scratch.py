"""Scratch folders: removed at the end, and by the next process where one was killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.ir import scratch
from secateur.ir.files import open_regular
from secateur.ir.scratch import replace_together, restore_interrupted, scratch_folder

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


OLD, NEW = dict.fromkeys("abc", "old"), dict.fromkeys("abd", "new")


def killed(action: Callable[[], object], step: int) -> bool:
    """Whether a process that is killed before its step `step` didn't get to the end."""
    child = os.fork()
    if child == 0:
        steps = itertools.count()

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in ("mkdir", "replace", "unlink", "rmdir", "open"):
            setattr(os, name, counted(getattr(os, name)))
        for name in ("mkdir", "unlink"):
            setattr(Path, name, counted(getattr(Path, name)))
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def replacing(folder: Path, step: int) -> bool:
    """Replace a, b and c by a, b and d, killed before a step; whether that was before the end."""
    folder.mkdir()
    for file in "abc":
        (folder / file).write_text("old")
    (folder / "new").mkdir()
    for file in "abd":
        (folder / "new" / file).write_text("new")
    return killed(
        lambda: replace_together([(folder / "new" / f, folder / f) for f in "abcd"]), step
    )


def test_a_kill_at_any_step_leaves_one_generation_whole(tmp_path: Path) -> None:
    """The new one where the command had got that far, else the old one as soon as it is read."""
    for step in itertools.count():
        folder = tmp_path / str(step)
        stopped = replacing(folder, step)
        assert len(set(found(folder).values())) <= 1
        with open_regular(folder / "a") as file:
            whole = {b"old": OLD, b"new": NEW}[file.read()]
        assert found(folder) == whole
        with scratch_folder(folder):
            assert found(folder) == whole
        assert [p.name for p in folder.iterdir() if p.is_dir()] == ["new"]
        if not stopped:
            break
    assert step > 12
    assert whole == NEW


@pytest.fixture(scope="module")
def half() -> int:
    """The step before which one new file is there, and the first is not."""
    for step in itertools.count():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "x"
            assert replacing(folder, step)
            if found(folder) == {"b": "new", "d": "new"}:
                return step
    raise AssertionError


def test_a_restoration_may_be_killed_at_any_step(tmp_path: Path, half: int) -> None:
    for step in itertools.count():
        folder = tmp_path / str(step)
        replacing(folder, half)
        stopped = killed(lambda folder=folder: restore_interrupted(folder), step)
        assert len(set(found(folder).values())) <= 1
        assert "a" not in found(folder) or found(folder) == OLD
        restore_interrupted(folder)
        assert found(folder) == OLD
        if not stopped:
            break
    assert step > 6


def test_a_restoration_leaves_what_was_written_since(tmp_path: Path, half: int) -> None:
    folder = tmp_path / "x"
    replacing(folder, half)
    (folder / "d").unlink()
    (folder / "other").write_text("user's")
    os.replace(folder / "other", folder / "a")
    with scratch_folder(folder):
        assert found(folder) == {"a": "user's", "b": "new"}


def test_a_journal_reaches_no_other_folder(tmp_path: Path) -> None:
    folder, aside = tmp_path / "x", tmp_path / "x" / ".secateur-planted"
    aside.mkdir(parents=True)
    (tmp_path / "kept").write_text("kept")
    inode = (tmp_path / "kept").stat().st_ino
    for text in (f'{{"../kept": [null, {inode}]}}', "[]", "{", '{"a": 1}', '{"a": [1]}', '"x"'):
        (aside / "journal").write_text(text)
        restore_interrupted(folder)
    assert (tmp_path / "kept").exists()


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
    assert len(seen) == 7  # one of them is of the journal
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
