"""What a pass is: a frozen dataclass whose fields are its options.

Its text form, `prune-channels{macs=0.5, importance=l2}`, is the kebab-case class
name with the fields that differ from their defaults; see `pipeline.py` for parsing.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..ir.graph import Node
from ..ir.model import Model

if TYPE_CHECKING:
    from .dump import Dump
    from .prune.budget import KernelCost
    from .prune.plan import Pruned
    from .samples import SampleArray


@dataclasses.dataclass(frozen=True)
class Note:
    """Why a pass left something alone that a user may have expected it to change."""

    node: str
    op_type: str
    reason: str

    @classmethod
    def at(cls, node: Node, reason: str) -> Note:
        return cls(node.label, node.op_type, reason)

    def __str__(self) -> str:
        return f"{self.node} ({self.op_type}): {self.reason}"


@dataclasses.dataclass
class PassResult:
    """What one run of a pass did.

    `statistics` holds JSON-serializable numbers and tables for the report,
    `artifacts` Python objects for whoever runs the pass (verification, drawing).
    """

    changed: bool
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[Note] = dataclasses.field(default_factory=list)
    artifacts: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Context:
    """What passes may need besides the model.

    `calibration` maps input names to arrays whose first axis counts samples, `seed` starts
    what passes draw at random. `synthetic` tells that the samples are made up. `pruned` is
    what a pass that cut the model before left for one that recovers it. `kernels` say what the
    model costs in time on the machine that it is compiled for, which goals in latency are
    counted by. `judge` makes of a model what tells the share that another one loses against it;
    by default that is agreement on the calibration samples. `dump` takes the model's text after
    each pass.
    """

    calibration: Mapping[str, SampleArray] | None = None
    seed: int = 0
    synthetic: bool = False
    pruned: Pruned | None = None
    kernels: Sequence[KernelCost] | None = None
    judge: Callable[[Model], Callable[[Model], float]] | None = None
    dump: Dump | None = None

    def after(self, result: PassResult) -> Context:
        """The context of the pass that comes next."""
        pruned = result.artifacts.get("pruned")
        return self if pruned is None else dataclasses.replace(self, pruned=pruned)


@dataclasses.dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. `run` changes the model in place and says what it did.

    A pass that fails raises SecateurError; the model is then not to be used any more.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    @abstractmethod
    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Apply the pass to `model`."""
