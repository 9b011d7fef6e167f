"""Static quantization by a scheme, as accurate as the time that is given for it allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ...ir.errors import SecateurError
from ...ir.model import Model
from ..base import Context, Pass, PassResult
from ..pipeline import format_pass
from ..prune.recovery import HELD_OUT, calibration_runs
from .observers import calibrator
from .rounding import noise_share
from .static import QuantizeStatic


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How numbers are stored: options of `QuantizeStatic`, and for what."""

    purpose: str
    options: Mapping[str, Any]


SCHEMES = {
    "int8": Scheme("uint8 activations, int8 weights per output channel", {}),
    "int8-7bit": Scheme("weights within [-64, 64], for x86 without VNNI", {"reduce_range": True}),
    "int8-per-tensor": Scheme("one scale for each weight", {"per_channel": False}),
    "int8-signed": Scheme("int8 activations, as ARM multiplies them", {"activation": "int8"}),
    "int8-symmetric": Scheme(
        "int8 activations around zero, without zero points",
        {"activation": "int8", "symmetric": True},
    ),
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

_CALIBRATOR = "mse"

_GOOD: tuple[dict[str, Any], ...] = (
    {"equalize": True, "correct_biases": True},
    {"correct_biases": True},
)

_STACKS: dict[str, tuple[dict[str, Any], ...]] = {
    "fast": ({},),
    "good": _GOOD,
    "best": (
        *_GOOD,
        {"equalize": True, "second_order": True},
        {"second_order": True},
        {"equalize": True, "second_order": True, "calibrator": "min-max"},
        {"second_order": True, "calibrator": "min-max"},
    ),
}

ACCURACIES = tuple(_STACKS)
"""What `--accuracy` takes, the quickest first."""


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


@dataclasses.dataclass(frozen=True)
class Quantize(Pass):
    """Quantize by a scheme, with methods that `accuracy` allows time for.

    "fast" only chooses ranges. "good" also equalizes channels and corrects biases, "best"
    rounds weights by second moments. Where there are several ways, all are gone, and the one
    whose outputs are nearest the original's on samples held back is taken. `calibrator` chooses
    ranges, by default by the least squared error. `activation`, `per_channel`, `reduce_range`,
    `symmetric` and `equalize` are those of `QuantizeStatic` where they differ from the scheme's.

    Statistics: those of `QuantizeStatic`, and `tried`, the ways with the signal to noise ratio
    (dB) that each gave.
    """

    scheme: str = "int8"
    accuracy: str = "good"
    calibrator: str | None = None
    ignore: tuple[str, ...] = ()
    activation: str | None = None
    per_channel: bool = True
    reduce_range: bool = False
    symmetric: bool = False
    equalize: bool = False

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Quantize `model` in place. Raises SecateurError as `QuantizeStatic` does."""
        ways = self._ways()
        if len(ways) == 1:
            return ways[0].run(model, context)
        best: tuple[float, Model, PassResult] | None = None
        tried: list[dict[str, Any]] = []
        seen: set[tuple[str, ...]] = set()
        for way in ways:
            if _without(way) in seen:
                continue
            candidate = model.clone()
            result = way.run(candidate, context)
            if way.equalize and not result.statistics["equalized"]:
                seen.add(_without(way))
            assert context is not None
            noise = _held_noise(model, candidate, context)
            ratio = None if noise <= 0 or not math.isfinite(noise) else -10 * math.log10(noise)
            tried.append({"way": format_pass(way), "sqnr": ratio})
            if best is None or noise < best[0]:
                best = noise, candidate, result
        assert best is not None
        _, chosen, result = best
        model.graph, model.extra, model.functions = chosen.graph, chosen.extra, chosen.functions
        result.statistics["tried"] = tried
        return result

    def check(self) -> None:
        """Raise SecateurError where an option is unknown."""
        for way in self._ways():
            calibrator(way.calibrator)

    def _ways(self) -> list[QuantizeStatic]:
        if self.accuracy not in _STACKS:
            raise SecateurError(
                f"accuracy '{self.accuracy}' is unknown; there are: {', '.join(ACCURACIES)}"
            )
        options = {**SCHEMES[scheme_of(self.scheme)].options, "ignore": self.ignore}
        if self.activation is not None:
            options["activation"] = self.activation
        if not self.per_channel:
            options["per_channel"] = False
        for name in ("reduce_range", "symmetric", "equalize"):
            if getattr(self, name):
                options[name] = True
        found: list[QuantizeStatic] = []
        for stack in _STACKS[self.accuracy]:
            given = {"calibrator": _CALIBRATOR, **stack, **options}
            if self.calibrator is not None:
                given["calibrator"] = self.calibrator
            way = QuantizeStatic(**given)
            if way not in found:
                found.append(way)
        return found


def _without(way: QuantizeStatic) -> tuple[str, ...]:
    """What tells ways apart besides equalization."""
    return way.calibrator, str(way.correct_biases), str(way.second_order)


def _held_noise(model: Model, candidate: Model, context: Context) -> float:
    """Noise on samples held back, that nothing was solved for."""
    assert context.calibration is not None
    original = model.clone()
    with calibration_runs([original, candidate], context.calibration, context.seed) as runs:
        return noise_share(original, candidate, runs[HELD_OUT - 1 :: HELD_OUT] or runs)
