"""Artifacts with code for several levels of instructions: what a run takes is chosen once.

    int secateur_level(void)

is the number of the first level whose instructions the CPU has, in the order of the metadata's
`levels`, and -1 where it has none's. `secateur_run` and `secateur_shapes` are those of
`entry.py` and `open_entry.py`, which call that level's own; where there is none they return
`NO_LEVEL` and do nothing. Weights in the same layout lie in the file once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..targets import Target
from .cpu_features import cpu_levels
from .entry import DATA

NO_LEVEL = 69
"""The status where the CPU runs no level's code: `SECATEUR_BAD_CPU` of C libraries."""

_SHARED = ("version", "small", "limits", "inputs", "outputs")
"""What the metadata of all levels say alike."""

_SOURCE = """\
#include "context.h"
{features}

{data}

int secateur_level(void) {{
    enum {{ UNKNOWN = -2 }};
    static int known = UNKNOWN;
    int level = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (level == UNKNOWN) {{
        level = secateur_choose(secateur_levels, {count});
        __atomic_store_n(&known, level, __ATOMIC_RELAXED);
    }}
    return level;
}}

{functions}
"""

_RUN = ("void *const *i", "void *const *o", "void *a", "int t", "int f", "int l")
_OPEN = ("const __INT64_TYPE__ *g",)
_DECIDED = ("__INT64_TYPE__ *d",)
_SHAPES = ("const __INT64_TYPE__ *g", "__INT64_TYPE__ *o", "__INT64_TYPE__ *a")
"""Parameters of the entry's functions."""


def dispatch_source(levels: Sequence[Target], is_open: bool, is_decided: bool = False) -> str:
    """The source that chooses, and holds the files `constants` and `metadata`; of artifacts whose
    sizes a run fixes (`is_open`), or data decide (`is_decided`)."""
    parameters = (*_RUN, *_OPEN * is_open, *_DECIDED * is_decided)
    functions = [_choice("secateur_run", parameters, len(levels))]
    if is_open:
        functions.append(_choice("secateur_shapes", _SHAPES, len(levels)))
    return _SOURCE.format(
        features=cpu_levels(levels), data=DATA, count=len(levels), functions="\n".join(functions)
    )


def _choice(name: str, parameters: Sequence[str], count: int) -> str:
    taken = ", ".join(parameters)
    given = ", ".join(parameter.split(" ")[-1].lstrip("*") for parameter in parameters)
    return "\n".join(
        [
            *(f"HIDDEN int {name}_{level}({taken});" for level in range(count)),
            f"int {name}({taken}) {{",
            "    switch (secateur_level()) {",
            *(f"    case {level}: return {name}_{level}({given});" for level in range(count)),
            f"    default: return {NO_LEVEL};",
            "    }",
            "}",
        ]
    )


def joined_metadata(target: Target, levels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an artifact says of itself whose levels each say something, in their order."""
    shared = {key: levels[0][key] for key in _SHARED}
    own = [{k: v for k, v in level.items() if k not in _SHARED} for level in levels]
    return {**shared, "target": target.name, "levels": own}
