"""Who hears about the stages of a run."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears about the stages of a run as they happen."""

    def begin(self, stage: str) -> None:
        """A stage starts."""

    def end(self) -> None:
        """The stage that began last is done."""


class Silent:
    """Tells nobody."""

    def begin(self, stage: str) -> None:
        pass

    def end(self) -> None:
        pass
