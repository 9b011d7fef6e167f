"""Names of nodes and weights that users' patterns match, shell style."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection

from ..ir.errors import SecateurError


def matches(name: str, pattern: str) -> bool:
    """Whether a name is a pattern's, or is the pattern: names may have brackets and stars."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def refuse_unmatched(pattern: str, names: Collection[str], option: str = "ignore") -> None:
    """Raise SecateurError, with the nearest name, where an option's pattern matches none."""
    if any(matches(name, pattern) for name in names):
        return
    near = difflib.get_close_matches(pattern, sorted(names), 1)
    hint = f"; the nearest is '{near[0]}'" if near else ""
    raise SecateurError(f"{option}: '{pattern}' matches no node and no weight{hint}")
