"""Opening files that users name: never one that would keep the reader waiting, or endless."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Protocol

from .scratch import restore_interrupted

_BLOCK = 1 << 20
"""Bytes that are read at a time."""


class Digest(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes, /) -> None: ...


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read. Raises OSError, whose `strerror` is fit for users, at once.

    A file that a killed process was about to replace is brought back first.
    """
    # Opening a FIFO would wait for a writer; a device is opened, but never read.
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
    except FileNotFoundError:
        restore_interrupted(Path(path).parent)
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "something else")
            raise OSError(errno.EINVAL, f"not a regular file, but {kind}", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """All of a regular file. Raises OSError, also where it has more than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes are more than the {limit:,} it may have")
        return file.read(limit + 1)


def hash_file(digest: Digest, path: str | os.PathLike[str]) -> None:
    """Update a digest of `hashlib` with a regular file's bytes. Raises OSError."""
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)


def check_replaceable(path: Path) -> None:
    """Raise OSError where a file that is to be written would replace something that is none."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.EINVAL, "a dangling link", str(path)) from None
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
