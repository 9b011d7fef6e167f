"""What holds for single nodes, given as text: `stem*=calibrator:min-max,per-tensor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ...ir.errors import SecateurError
from ...ir.graph import Node
from ..matching import matches
from .observers import calibrator

FORM = "PATTERN=SETTING,..., with settings float, per-tensor, per-channel and calibrator:NAME"


@dataclasses.dataclass(frozen=True)
class Override:
    """What holds for nodes that a pattern names; None for what all have."""

    pattern: str
    is_float: bool = False
    per_channel: bool | None = None
    calibrator: str | None = None


def parse_override(text: str) -> Override:
    """Raises SecateurError where a text isn't one."""
    pattern, equals, settings = text.rpartition("=")
    if not equals or not pattern or not settings:
        raise SecateurError(f"node '{text}': give {FORM}")
    found = Override(pattern)
    for setting in settings.split(","):
        name, colon, value = setting.strip().partition(":")
        if name == "calibrator" and colon:
            calibrator(value)
            found = dataclasses.replace(found, calibrator=value)
        elif name in ("per-tensor", "per-channel") and not colon:
            found = dataclasses.replace(found, per_channel=name == "per-channel")
        elif name == "float" and not colon:
            found = dataclasses.replace(found, is_float=True)
        else:
            raise SecateurError(f"node '{text}': '{setting.strip()}' is no setting; give {FORM}")
    return found


def overrides_of(names: Mapping[Node, Sequence[str]], texts: Sequence[str]) -> dict[Node, Override]:
    """By node, the last one that matches a name of it counts."""
    parsed = [parse_override(text) for text in texts]
    found: dict[Node, Override] = {}
    for node, own in names.items():
        for override in parsed:
            if any(matches(name, override.pattern) for name in own):
                found[node] = override
    return found


def channels_of(overrides: Mapping[Node, Override]) -> dict[Node, bool]:
    """Of nodes for which that is said, whether weights have a scale per channel."""
    return {n: o.per_channel for n, o in overrides.items() if o.per_channel is not None}
