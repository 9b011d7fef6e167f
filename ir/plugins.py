"""Parts that other installed packages bring along, found by their entry points.

A package names what it brings in its own `pyproject.toml`:

    [project.entry-points."secateur.passes"]
    name-nodes = "my_package.passes:NameNodes"
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from importlib import metadata
from types import MappingProxyType
from typing import Any

from .errors import SecateurError

GROUPS = ("importance", "lowerings", "metrics", "operators", "passes", "targets")
"""What may be brought along; each is a group of entry points, `secateur.passes` and so on."""


@functools.cache
def plugins(group: str, kind: type | tuple[type, ...] = object) -> MappingProxyType[str, Any]:
    """What packages bring for one of `GROUPS`, by the names that they give it.

    Raises SecateurError, which names the package, where something can't be loaded, is no
    instance of `kind`, or has a name that another package has taken.
    """
    assert group in GROUPS
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    points = metadata.entry_points(group=f"secateur.{group}")
    for point in sorted(points, key=lambda p: (p.name, p.value)):
        package = point.dist.name if point.dist is not None else point.module
        what = f"package '{package}': its {group} '{point.name}' ({point.value})"
        if owners.setdefault(point.name, package) != package:
            raise SecateurError(f"{what} has the name of one of package '{owners[point.name]}'")
        try:
            found[point.name] = point.load()
        except Exception as error:  # whatever another package's code raises
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise SecateurError(
                f"{what} can't be loaded ({text}); update or uninstall the package"
            ) from error
        if not isinstance(found[point.name], kind):
            raise SecateurError(f"{what} is no {_names(kind)}, but {found[point.name]!r:.80}")
    return MappingProxyType(found)


def _names(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))


def imported(name: str, what: str) -> Any:
    """The user's `module:function`; `what` says in errors what it is for. Raises SecateurError.

    A module that isn't installed is looked for in the folder that the command runs in, which
    Python itself leaves out for commands that are installed.
    """
    module, _, attributes = name.partition(":")
    folder = os.getcwd()
    try:
        if folder not in sys.path and "" not in sys.path:
            sys.path.append(folder)  # the last: it hides nothing that is installed
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:  # whatever the user's module raises
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise SecateurError(f"{what} '{name}' can't be imported: {text}") from error
    if not callable(found):
        raise SecateurError(f"{what} '{name}' is no function")
    return found
