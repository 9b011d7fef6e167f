"""The model's text before the first pass and after each, in a folder."""

from __future__ import annotations

from pathlib import Path

from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.text import print_model


class Dump:
    """Writes `NN-name.txt`, numbered in the order in which passes run, into a new or empty folder.

    Files appear as passes go, so that they show what a failing pass was given. Raises SecateurError
    where the folder holds files, or can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise SecateurError(f"{folder}: has files already; a dump takes an empty folder")
        except OSError as error:
            raise SecateurError(f"{folder}: {error.strerror or error}") from None

    def write(self, model: Model, name: str) -> None:
        """The model after the pass of that name, or before the first one."""
        path = self.folder / f"{self.count:02}-{name}.txt"
        self.count += 1
        try:
            path.write_text(print_model(model), encoding="utf-8")
        except OSError as error:
            raise SecateurError(f"{path}: {error.strerror or error}") from None

    @property
    def plan(self) -> Path:
        """Where a backend writes its plan."""
        return self.folder / "plan.txt"
