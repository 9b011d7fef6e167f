"""What the user asked for: the options of one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..backends.tvm.artifact.options import LibraryOptions
from ..backends.tvm.graph.open_sizes import read_admitted
from ..backends.tvm.targets import can_run_here, parse_target
from ..checking.metrics.catalogue import kind_of_labels
from ..data.fixed_inputs import FixedInputs
from ..data.preprocessing import Preprocessing
from ..ir.errors import SecateurError
from ..passes.prune.groups import Limit
from ..passes.prune.importance import find_criterion
from ..passes.quantize import SCHEMES, Quantize
from ..passes.simplify.input_elements import InputShape
from .choices import PrecisionName
from .pruning import check_amounts

ARTIFACT = "model.so"

FILES = ("model.onnx", "model.onnx.data", ARTIFACT, "report.json", "report.md", "report.html")
"""What an output folder may hold besides a C library; `model.onnx.data` only where a model
needs it, and `report.html` only with Jinja2."""

UNEVALUATED = "metrics are measured on labelled samples: give --evaluation"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user asked for. At most one of the goals, `macs` to `ratio`, prunes.

    `macs` and `params` are shares of the original to keep; so are `bytes`, of the file, and
    `latency`, of the artifact, or they are amounts with a unit, as `200kB` and `2ms`. `ratio`
    is a share of the channels to remove. `quantize` is a scheme, `quantization` holds other
    options of `Quantize`. `align` is what channel counts stay multiples of
    where the goal allows; by default the target's vector width. `tune` is for how many minutes
    to measure kernels, `fallback` whether to leave to ONNX Runtime what can't be compiled,
    `declared_sizes` whether inputs that give results their sizes have the declared ones, `sizes`
    what is admitted of open sizes, as in `seq=1..512`, `copies` how many times
    the weights' bytes copies of them may take, `small` whether few bytes count more than speed,
    `precision` the 16 bits that artifacts multiply floats in. `ignore` are patterns of nodes
    that no step changes, `ignore_prune` of those that aren't pruned.
    `metrics` are what is measured by labels, by default what the labels are for. `embed` is
    preprocessing that becomes part of the model. The rest is as in `PruneChannels`.
    """

    target: str
    input_shapes: Mapping[str, InputShape] = dataclasses.field(default_factory=dict)
    freeze_defaults: bool = False
    input_values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    macs: float | None = None
    params: float | None = None
    bytes: float | str | None = None
    latency: float | str | None = None
    ratio: float | None = None
    quantize: str | None = None
    quantization: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scope: str = "global"
    importance: str | None = None
    align: int | None = None
    ignore: tuple[str, ...] = ()
    ignore_prune: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    normalized: bool = False
    recovery: bool = True
    rematch: bool = False
    rotate: bool = False
    search: float = 0.0
    iterations: int | None = None
    depth: int | None = None
    tune: float = 0.0
    fallback: bool = False
    declared_sizes: bool = False
    copies: float | None = None
    small: bool = False
    precision: PrecisionName | None = None
    sizes: tuple[str, ...] = ()
    threads: int = 1
    seed: int = 0
    metrics: tuple[str, ...] = ()
    embed: Preprocessing | None = None
    library: LibraryOptions | None = None
    """What is compiled is a C library, made so."""

    def __post_init__(self) -> None:
        if self.library is not None and self.fallback:
            raise SecateurError("a C library needs every node compiled: leave out fallback")
        if self.library is not None and f"{self.library.name}.json" in FILES:
            raise SecateurError(
                f"name '{self.library.name}': its description would be a file of the report's"
            )
        if self.ignore and self.quantize is None and not self.goals():
            raise SecateurError("ignore: nothing is pruned or quantized")
        if self.ignore_prune and not self.goals():
            raise SecateurError("ignore-prune: nothing is pruned")
        self.quantizer().check()
        check_amounts(self.goals())
        if self.threads < 1:
            raise SecateurError(f"threads: {self.threads} is not a positive number")
        if self.tune > 0 and not can_run_here(parse_target(self.target)):
            raise SecateurError(f"can't tune for {self.target}: this machine can't run its code")

    def check_names(self) -> None:
        """Raise SecateurError where the target, a metric or what ranks channels is unknown, or
        limits or sizes can't be read: what a run looks at when it needs it."""
        parse_target(self.target)
        kind_of_labels(self.metrics)
        read_admitted(self.sizes)
        for limit in self.limits:
            Limit.parse(limit)
        if self.importance is not None:
            find_criterion(self.importance)

    def fixed_inputs(self) -> FixedInputs:
        """What the user fixes of the model's inputs."""
        return FixedInputs(self.input_shapes, self.freeze_defaults, self.input_values, self.outputs)

    def quantizer(self, *, fast: bool = False) -> Quantize:
        """The pass that quantizes; the quick one gives as large a model."""
        scheme = "int8" if self.quantize is None else self.quantize
        ignore = (*self.ignore, *self.quantization.get("ignore", ()))
        pass_ = Quantize(scheme, **{**self.quantization, "ignore": ignore})
        if fast:
            pass_ = dataclasses.replace(pass_, max_drop=None, table=False)
            if SCHEMES[scheme].kind == "static":
                pass_ = dataclasses.replace(pass_, accuracy="fast")
        return pass_

    def goals(self) -> dict[str, Any]:
        """The options of `PruneChannels` that say how much is to be pruned."""
        names = ("macs", "params", "bytes", "latency", "ratio")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def pruning(self) -> dict[str, Any]:
        """The options of `PruneChannels`; empty where nothing is to be pruned."""
        if not self.goals():
            return {}
        names = "scope importance limits normalized recovery rematch rotate search iterations depth"
        return {
            **self.goals(),
            **{name: getattr(self, name) for name in names.split()},
            "ignore": (*self.ignore, *self.ignore_prune),
            "align": self.align or parse_target(self.target).lanes,
        }
