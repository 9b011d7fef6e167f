"""How numbers are stored, by name, and which way suits what will run the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...ir.errors import SecateurError


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How numbers are stored, for what, and by which `kind` of pass: its options.

    `needs_samples` where it can't do without.
    """

    purpose: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = "static"

    @property
    def needs_samples(self) -> bool:
        return self.kind == "static"


SCHEMES = {
    "int8": Scheme("uint8 activations, int8 weights per output channel"),
    "int8-7bit": Scheme("weights within [-64, 64], for x86 without VNNI", {"reduce_range": True}),
    "int8-per-tensor": Scheme("one scale for each weight", {"per_channel": False}),
    "int8-signed": Scheme("int8 activations, as ARM multiplies them", {"activation": "int8"}),
    "int8-symmetric": Scheme(
        "int8 activations around zero, without zero points",
        {"activation": "int8", "symmetric": True},
    ),
    "int16": Scheme(
        "uint16 activations, int8 weights per output channel",
        {"activation": "uint16", "calibrator": "min-max"},
    ),
    "dynamic": Scheme("int8 weights; a run finds activations' scales", kind="dynamic"),
    "dynamic-per-token": Scheme(
        "as dynamic, with a scale for each row that a product reads",
        {"per_token": True},
        kind="dynamic",
    ),
    "float16": Scheme("weights and activations in float16", kind="float16"),
}
"""By the names that `--scheme` and `--quantize` take."""

PROFILES = {
    "x86-vnni": "int8",
    "x86-avx2": "int8-7bit",
    "arm-dotprod": "int8-signed",
    "arm-neon": "int8-signed",
    "onnxruntime": "int8",
    "openvino": "int8",
    "tensorrt": "int8-symmetric",
}
"""Schemes by what runs the model: what `--profile` takes."""


def scheme_of(name: str | None, profile: str | None = None) -> str:
    """The scheme of a name or of a profile; int8 without either. Raises SecateurError."""
    if profile is not None:
        if profile not in PROFILES:
            raise SecateurError(f"profile '{profile}' is unknown; there are: {', '.join(PROFILES)}")
        name = name or PROFILES[profile]
    name = name or "int8"
    if name not in SCHEMES:
        raise SecateurError(f"scheme '{name}' is unknown; there are: {', '.join(SCHEMES)}")
    return name
