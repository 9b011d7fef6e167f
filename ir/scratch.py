"""Folders for files on their way: gone when their block ends, and after a kill with the next one.

Each is locked by the process that made it. A lock ends with its process, however that ends,
so whoever makes a folder first removes those beside it that nobody holds any more. Files that a
killed process was replacing together are brought back then.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

PREFIX = ".secateur-"

_open: set[Path] = set()
"""Folders of this process, for `remove_all`."""

_cleared: set[Path] = set()
"""Where this process has removed abandoned folders: once each, since temporary places are full."""


@contextlib.contextmanager
def scratch_folder(beside: Path | None = None) -> Iterator[Path]:
    """A new folder in the folder `beside`, by default in the system's for temporary files."""
    parent = Path(tempfile.gettempdir()) if beside is None else beside
    _remove_abandoned(parent)
    folder, lock = _make(parent)
    _open.add(folder)
    try:
        yield folder
    finally:
        _open.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def replace_together(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Move new files to their targets, which belong together and lie in one folder.

    A target whose new file doesn't exist is removed. Several old files leave before the first
    new one comes, and the first target, which may refer to the others, comes last: a process
    killed in between leaves files of one generation, never some of both. Some of the old ones may
    be missing then, and lie aside until `restore_interrupted` brings them back. Raises OSError,
    with the old files where they were.
    """
    pairs = [pair for pair in pairs if any(path.exists() for path in pair)]
    if len(pairs) < 2:
        for new, target in pairs:
            if new.exists():
                os.replace(new, target)
            else:
                target.unlink()
        return
    with scratch_folder(pairs[0][1].parent) as aside:
        _write_journal(aside, pairs)
        try:
            for _, target in pairs:
                if target.exists():
                    os.replace(target, aside / _OLD / target.name)
            for new, target in reversed(pairs):
                if new.exists():
                    os.replace(new, target)
            (aside / _JOURNAL).unlink()  # from here on the new files count
        except BaseException:
            _roll_back(aside)
            raise


def restore_interrupted(folder: Path) -> None:
    """Bring back the files of a folder that a killed process was replacing, if there are any."""
    _each_abandoned(folder, _roll_back)


def remove_all() -> None:
    """Remove the folders of every block under way, where the process is about to end."""
    for folder in list(_open):
        shutil.rmtree(folder, ignore_errors=True)


def _make(parent: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = _lock(folder, wait=True)
        if folder.exists():
            return folder, lock
        if lock is not None:  # another process took it for abandoned before it was locked
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder; None where another holds it or the file system knows no locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(parent: Path) -> None:
    if parent not in _cleared:
        _cleared.add(parent)
        _each_abandoned(parent, _roll_back_and_remove)


def _each_abandoned(parent: Path, action: Callable[[Path], None]) -> None:
    """Do something with every scratch folder in `parent` whose process has ended."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue  # whatever another user says there isn't done to files of this one
            lock = _lock(Path(entry.path), wait=False)
            if lock is not None:
                with contextlib.suppress(OSError):
                    action(Path(entry.path))
                os.close(lock)


_OLD, _JOURNAL = "old", "journal"
"""In a folder of replacements: where old files go, and what is there while these count."""


def _write_journal(aside: Path, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Note which files are old and which new, by inode; whole or not at all."""
    (aside / _OLD).mkdir()
    inodes = {target.name: (_inode(target), _inode(new)) for new, target in pairs}
    written = aside / "written"
    written.write_text(json.dumps(inodes), encoding="utf-8")
    os.replace(written, aside / _JOURNAL)


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def _roll_back(aside: Path) -> None:
    """Bring the old files back where new ones had begun to replace them, and not all have.

    As careful as the replacement: all new files leave first, the first target comes last, and
    what is killed in between goes on from there the next time. Nothing is done where any of the
    targets has been written since.
    """
    try:
        inodes: dict[str, list[int | None]] = json.loads((aside / _JOURNAL).read_bytes())
        names = {name: (old, new) for name, (old, new) in inodes.items() if Path(name).name == name}
    except (FileNotFoundError, AttributeError, ValueError, TypeError):
        return
    folder = aside.parent
    found = {name: inode for name in names if (inode := _inode(folder / name)) is not None}
    if any(inode not in names[name] for name, inode in found.items()):
        return
    if any(found.get(name) != new for name, (_, new) in names.items()):
        for name, inode in found.items():
            if inode == names[name][1]:
                (folder / name).unlink()
        for name in reversed(names):
            if (aside / _OLD / name).exists():
                os.replace(aside / _OLD / name, folder / name)
    (aside / _JOURNAL).unlink()


def _roll_back_and_remove(folder: Path) -> None:
    _roll_back(folder)
    shutil.rmtree(folder, ignore_errors=True)
