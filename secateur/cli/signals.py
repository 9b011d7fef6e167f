"""What ends a command from outside: Ctrl-C, SIGTERM and SIGHUP leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from ..ir.scratch import remove_all

GRACE = 3.0
"""Seconds that native code has to return in before the process ends without it."""

_REASONS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal hung up"}


class Interruption:
    """The first signal that came, 0 for none."""

    number = 0

    @property
    def message(self) -> str:
        return _REASONS[signal.Signals(self.number).name]

    @property
    def exit_code(self) -> int:
        return 128 + self.number


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turns the first signal into a KeyboardInterrupt, so that blocks end and clean up.

    A second one ends the process at once, and so does the first where native code does not
    come back; scratch folders are removed then, too. Signals that are ignored stay so.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def handle(number: int, _: FrameType | None) -> None:
        if interruption.number:
            _end(interruption)
        interruption.number = number
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _REASONS if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers}
    taken = [n for n in numbers if before[n] is not signal.SIG_IGN and before[n] is not None]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reader, taken, done), daemon=True)
    watcher.start()
    for number in taken:
        signal.signal(number, handle)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield interruption
    finally:
        done.set()
        signal.set_wakeup_fd(wakeup)
        for number in taken:
            signal.signal(number, before[number])
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, numbers: list[int], done: threading.Event) -> None:
    """End the process where a signal has come and the main thread does not get to it."""
    while content := os.read(reader, 1):
        if content[0] in numbers and not done.wait(GRACE):
            interruption = Interruption()
            interruption.number = content[0]
            _end(interruption)


def _end(interruption: Interruption) -> None:
    remove_all()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        restored = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides the cursor
        sys.stderr.write(f"{restored}Error: {interruption.message}\n")
        sys.stderr.flush()
    os._exit(interruption.exit_code)
