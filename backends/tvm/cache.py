"""The disk cache: object files by the content of what they came from, and tuning results.

The folder is `SECATEUR_CACHE`, else `secateur` in `XDG_CACHE_HOME` or `~/.cache`. An
empty SECATEUR_CACHE turns the cache off. Any number of processes may share a folder:
files appear whole, and a damaged one counts as absent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path

from ...ir.errors import SecateurError
from ...ir.files import read_regular
from ...ir.scratch import scratch_folder

LIMIT_BYTES = 512 * 1024 * 1024
"""Size above which the objects that were not used for longest are deleted."""

_ENVIRONMENT = "SECATEUR_CACHE"
_OBJECTS = "objects"
_DIGEST_BYTES = hashlib.sha256().digest_size


def _digest(key: str, payload: bytes) -> bytes:
    """Of both, so that an object under another's name counts as damaged."""
    return hashlib.sha256(key.encode() + b"\n" + payload).digest()


@dataclasses.dataclass(frozen=True)
class Cache:
    """A cache in `folder`; one whose folder is None remembers nothing.

    Storing fails silently unless the cache is `required`: a compilation does not need
    it. `limit` bounds the size in bytes.
    """

    folder: Path | None
    required: bool = False
    limit: int = LIMIT_BYTES

    @classmethod
    def of_user(cls) -> Cache:
        """The cache that the environment names."""
        given = os.environ.get(_ENVIRONMENT)
        if given is not None:
            return cls(Path(given) if given else None)
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(home).expanduser()
        # A home that can't be found, or a relative path, is no place to write to.
        return cls(folder / "secateur" if folder.is_absolute() else None)

    @classmethod
    def at(cls, folder: str | os.PathLike[str]) -> Cache:
        """The cache in a folder that the user named. Raises SecateurError on first use."""
        return cls(Path(folder), required=True)

    @classmethod
    def open(cls, where: str | os.PathLike[str] | bool) -> Cache:
        """The cache in a folder; the user's for True, none for False."""
        if isinstance(where, bool):
            return cls.of_user() if where else cls.none()
        return cls.at(where)

    @classmethod
    def none(cls) -> Cache:
        """No cache."""
        return cls(None)

    @property
    def table(self) -> Path | None:
        """The file of tuning results (see `choices`)."""
        return None if self.folder is None else self.folder / "tuning.json"

    def get(self, key: str) -> bytes | None:
        """What was stored under a key (hexadecimal); None where nothing intact was."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            content = read_regular(path, LIMIT_BYTES)
        except OSError:
            return None
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if _digest(key, payload) != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of last use, which `trim` goes by
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Store under a key. Raises SecateurError where a required cache can't be written."""
        if self.folder is None:
            return
        path = self._path(self.folder, key)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with scratch_folder(self.folder / _OBJECTS) as scratch:
                (scratch / "object").write_bytes(_digest(key, payload) + payload)
                os.replace(scratch / "object", path)
        except OSError as error:
            if self.required:
                raise SecateurError(f"{self.folder}: can't be written ({error})") from None

    def trim(self) -> None:
        """Delete what was not used for longest until four fifths of the limit are left."""
        if self.folder is None:
            return
        files = []
        for path in (self.folder / _OBJECTS).glob("[0-9a-f]*/*"):
            with contextlib.suppress(OSError):  # another process deletes, too
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in files) - self.limit
        if excess <= 0:
            return
        excess += self.limit // 5
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            excess -= size

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / _OBJECTS / key[:2] / key[2:]
