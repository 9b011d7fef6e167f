"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..ir.errors import SecateurError
from ..ir.files import check_replaceable
from ..ir.scratch import replace_together, scratch_folder


@contextlib.contextmanager
def output_folder(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """A scratch folder whose files become `folder` when the block ends without error.

    A new `folder` (and its missing parents) appears by one rename. In an existing
    one the files called `names` are replaced, those that the block did not write
    are removed, and everything else stays. On an error nothing is left behind.
    Raises SecateurError, before the block runs where it can, if the folder can't
    be written.
    """
    check_writable(folder, names)
    with contextlib.ExitStack() as stack:
        with _writing(folder):
            scratch = stack.enter_context(scratch_folder(_existing(folder)))
            built = scratch / "out"
            built.mkdir()  # the scratch folder itself is private to this user
        yield built
        with _writing(folder):
            _publish(built, folder, names)


def _existing(folder: Path) -> Path:
    """`folder` or its nearest parent that exists: on the same file system, for renames."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_writable(folder: Path, names: tuple[str, ...]) -> None:
    """Raise SecateurError where the folder can't get files of these names."""
    if folder.is_symlink() and not folder.exists():
        raise SecateurError(f"{folder}: can't write here (dangling link)")
    if folder.exists() and not folder.is_dir():
        raise SecateurError(f"{folder}: can't write here (it is a file, not a folder)")
    for name in names:
        try:
            check_replaceable(folder / name)
        except NotADirectoryError as error:
            raise SecateurError(f"{folder}: can't write here ({error.strerror})") from None
        except OSError as error:
            problem = error.strerror or error
            raise SecateurError(f"{folder / name}: can't be replaced ({problem})") from None


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SecateurError(f"{folder}: can't write here ({error.strerror or error})") from None


def _publish(built: Path, folder: Path, names: tuple[str, ...]) -> None:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(built, folder)
        return
    replace_together([(built / name, folder / name) for name in names])
