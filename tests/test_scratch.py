"""Scratch folders: removed at the end, and by the next process where one was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from secateur.ir import scratch
from secateur.ir.scratch import scratch_folder

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
