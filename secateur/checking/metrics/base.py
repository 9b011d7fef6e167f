"""What a metric is: it hears of outputs, run by run, and tells a number in the end.

`METRICS` is filled by the modules of this folder; `catalogue.py` imports them and finds one by
its text, as `top5` or `map{decoder=yolov8}`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...data.datasets import Dataset
from ...ir.errors import SecateurError
from ...ir.tensor import Array


@dataclasses.dataclass
class Metric(ABC):
    """Base of metrics, whose fields are their options; one object measures one model.

    `kind` is what labels have to be (`data.labels.KINDS`), empty for whatever there is. `better`
    is `higher` or `lower`, `unit` is `share` (shown in percent), `dB` or empty.
    """

    output: str = ""
    """The name of the output that counts, by default the first that will do."""

    name: ClassVar[str]
    kind: ClassVar[str]
    better: ClassVar[str] = "higher"
    unit: ClassVar[str] = "share"

    def begin(self, data: Dataset) -> None:  # noqa: B027  most have nothing to check
        """Hear of the samples before the first run. Raises SecateurError for unfit labels."""

    @abstractmethod
    def update(self, outputs: Mapping[str, Array], labels: Sequence[Any], rows: int) -> None:
        """Hear of one run of `rows` samples, whose first ones have these labels."""

    @abstractmethod
    def result(self) -> float:
        """What all runs come to; NaN where that is not defined."""

    def fail(self, problem: str) -> SecateurError:
        return SecateurError(f"metric {self.name}: {problem}")

    def chosen(self, outputs: Mapping[str, Array]) -> tuple[str, Array]:
        """The output that is asked for, or the first. Raises SecateurError."""
        name = self.output or next(iter(outputs))
        if name not in outputs:
            raise SecateurError(f"evaluation: the model has no output '{name}'")
        return name, np.asarray(outputs[name])


METRICS: dict[str, type[Metric]] = {}
"""Every metric by its name."""


def metric(name: str, kind: str, better: str = "higher", unit: str = "share") -> Callable[..., Any]:
    """Enter a class in `METRICS`. Raises SecateurError where the name is taken."""

    def enter(cls: type[Metric]) -> type[Metric]:
        if name in METRICS:
            raise SecateurError(f"metric {name} is there already")
        cls.name, cls.kind, cls.better, cls.unit = name, kind, better, unit
        METRICS[name] = dataclasses.dataclass(cls)
        return METRICS[name]

    return enter
