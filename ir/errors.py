"""The one exception type that users see: what failed, where in the model, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .display import printable


class SecateurError(Exception):
    """A failure with a one-line message fit for an end user.

    The command line prints the message and exits with code 1; the Python API
    raises it. Anything else that escapes is a bug in secateur.
    """

    def __str__(self) -> str:
        # Names come from untrusted files: they must not break the line or the terminal.
        return printable(super().__str__())


MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What code that reads a node by its operator's definition raises where the node breaks it.

Files are untrusted and a definition leaves much open, so whoever applies a rule to a node
catches these and blames the node: analyses then know nothing of it, rewrites stop.
"""


class ModelError(SecateurError):
    """The model itself is malformed or unreadable."""


class RuleError(SecateurError):
    """A rule failed on a node by a mistake of its own, which is no reason to do without it."""

    @classmethod
    def of(cls, label: str, op_type: str, rule: Callable[..., Any], error: Exception) -> RuleError:
        """The error for what a rule raised on a node."""
        return cls(
            f"node '{label}' ({op_type}): the rule {rule.__module__}.{rule.__qualname__} failed: "
            f"{type(error).__name__}: {error}; please report this"
        )


class RunError(SecateurError):
    """ONNX Runtime took a model, but failed on inputs."""


class UnsupportedError(SecateurError):
    """The model is valid, but a node can't be handled by the asked transformation."""
