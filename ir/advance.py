"""How far long work has come, for whoever listens: a bar on a terminal, or nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[int, int], None]
"""Hears how many parts of the work are done, and of how many."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let a listener hear of the work that this thread does within the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def advanced(items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, one after the other; the listener hears of each that is done."""
    listener = _listener.get()
    for done, item in enumerate(items):
        if listener is not None:
            listener(done, total)
        yield item
    if listener is not None:
        listener(total, total)
