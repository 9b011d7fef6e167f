"""Folders for files on their way: gone when their block ends, and after a kill with the next one.

Each is locked by the process that made it. A lock ends with its process, however that ends,
so whoever makes a folder first removes those beside it that nobody holds any more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
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
    killed in between leaves files of one generation, never some of both. Raises OSError, with
    the old files where they were.
    """
    pairs = [pair for pair in pairs if any(path.exists() for path in pair)]
    if len(pairs) < 2:
        for new, target in pairs:
            if new.exists():
                os.replace(new, target)
            else:
                target.unlink()
        return
    folder = pairs[0][1].parent
    with scratch_folder(folder) as aside:
        try:
            for _, target in pairs:
                if target.exists():
                    os.replace(target, aside / target.name)
            for new, target in reversed(pairs):
                if new.exists():
                    os.replace(new, target)
        except BaseException:
            for old in list(aside.iterdir()):
                os.replace(old, folder / old.name)
            raise


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
    if parent in _cleared:
        return
    _cleared.add(parent)
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            lock = _lock(Path(entry.path), wait=False)
            if lock is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(lock)
