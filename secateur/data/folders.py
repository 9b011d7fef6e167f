"""Folders of samples: which files there are, and what lies in them.

Folders are untrusted: what is no regular file, links that lead out of the folder, and files
that are too large are errors of one line each.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .npz import DataError

PICTURES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
)
RECORDINGS = frozenset((".wav",))
ARRAYS = frozenset((".npy",))

MOST_FILES = 5_000_000
DEEPEST = 16
"""Folders within each other."""


class SampleFolder:
    """What lies in a folder: `files` by their paths in it, as `cats/1.png`, sorted.

    Names that begin with a dot are left out. Raises DataError.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self.files: list[str] = []
        try:
            for name in self._walk("", 0):
                self.files.append(name)
                if len(self.files) > MOST_FILES:
                    raise DataError(f"has more than {MOST_FILES:,} files")
        except OSError as error:
            raise DataError(error.strerror or str(error)) from None
        self.files.sort()

    def of(self, suffixes: frozenset[str]) -> list[str]:
        """The files with one of these endings, in whatever case."""
        return [name for name in self.files if PurePosixPath(name).suffix.lower() in suffixes]

    def path(self, name: str) -> Path:
        return self.root / name

    def _walk(self, folder: str, depth: int) -> Iterator[str]:
        if depth > DEEPEST:
            raise DataError(f"'{folder}': folders lie more than {DEEPEST} deep")
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    self._check_link(name)
                mode = entry.stat().st_mode
                if stat.S_ISDIR(mode):
                    if not entry.is_symlink():  # a link to a folder in here is seen there
                        yield from self._walk(name, depth + 1)
                elif stat.S_ISREG(mode):
                    yield name
                else:
                    raise DataError(f"'{name}' is no regular file")

    def _check_link(self, name: str) -> None:
        target = os.path.realpath(self.root / name)
        if not os.path.exists(target):
            raise DataError(f"'{name}' is a link to nothing")
        if os.path.commonpath([self._real, target]) != self._real:
            raise DataError(f"'{name}' is a link that leads out of the folder")


class FileError(DataError):
    """One file of a folder that can't be used."""

    def __init__(self, name: str, problem: str | BaseException) -> None:
        text = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        super().__init__(f"'{name}': {text}")


def kind_of(folder: SampleFolder) -> str:
    """`pictures`, `recordings` or `arrays`. Raises DataError where there is none, or several."""
    kinds = {"pictures": PICTURES, "recordings": RECORDINGS, "arrays": ARRAYS}
    found = [kind for kind, suffixes in kinds.items() if folder.of(suffixes)]
    if "arrays" in found and "pictures" not in found and "recordings" not in found:
        return "arrays"
    found = [kind for kind in found if kind != "arrays"]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError("has pictures and recordings; put them in folders of their own")
    raise DataError("has neither pictures (.png, .jpg and others) nor .wav nor .npy files")
