"""What a result depends on, as a rule that Make and Ninja read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..ir.display import printable
from ..ir.errors import SecateurError


def make_rule(made: Path, read: Sequence[Path]) -> str:
    """Rules of Make without commands: what was made depends on what was read, files that may be
    gone one day, as compilers write it.

    The first has one target, as Ninja wants it, named as it was given. Raises SecateurError for
    names that mean something else to Make.
    """
    names = [_make_name(path) for path in read]
    return "\n".join([f"{_make_name(made)}: {' '.join(names)}", *(f"{n}:" for n in names), ""])


def _make_name(path: Path) -> str:
    name = str(path)
    if not name.isprintable() or any(c in name for c in "\\:;=%|*?[]<>&\"'`()!~"):
        raise SecateurError(f"{printable(name)}: Make can't have such a name in a rule")
    return name.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")
