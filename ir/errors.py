"""The one exception type that users see: what failed, where in the model, what to do."""

from __future__ import annotations

from .display import printable


class SecateurError(Exception):
    """A failure with a one-line message fit for an end user.

    The command line prints the message and exits with code 1; the Python API
    raises it. Anything else that escapes is a bug in secateur.
    """

    def __str__(self) -> str:
        # Names come from untrusted files: they must not break the line or the terminal.
        return printable(super().__str__())


class ModelError(SecateurError):
    """The model itself is malformed or unreadable."""


class UnsupportedError(SecateurError):
    """The model is valid, but a node can't be handled by the asked transformation."""
