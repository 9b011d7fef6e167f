"""C libraries as runners, by the module for Python that is written with them."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..ir.errors import SecateurError
from ..ir.tensor import Array

_FIRST_LINE = b'"""Runs a model by the shared library beside this file.'


def module_of(library: Path) -> Path | None:
    """The module for Python beside a C library's shared object; None where it isn't one."""
    module = library.with_name(f"{library.stem.removeprefix('lib')}.py")
    if not library.name.startswith("lib") or not module.is_file():
        return None
    with module.open("rb") as file:
        return module if file.read(len(_FIRST_LINE)) == _FIRST_LINE else None


class LibraryRunner:
    """Runs a C library by the module for Python that was written with it, `NAME.py`."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Load the module and the library beside it. It is code: of one that was made here."""
        spec = importlib.util.spec_from_file_location(f"secateur_library_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with _no_bytecode():
            spec.loader.exec_module(module)
        self._error: type[Exception] = module.ModelError
        try:
            self._model = module.Model(threads)
        except self._error as error:
            raise SecateurError(f"{path}: {error}") from None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        # The module has no bfloat16: bits.
        given = {
            n: a.view(np.uint16) if a.dtype.name == "bfloat16" else a for n, a in feeds.items()
        }
        try:
            results: dict[str, Array] = self._model.run(given)
        except self._error as error:
            raise SecateurError(f"C library: {error}") from None
        return results


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Nothing is written beside modules that are imported meanwhile."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
