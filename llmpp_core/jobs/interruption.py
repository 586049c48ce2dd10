"""Signals that end a run in order, as Ctrl-C does: what is under way is finished and kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end; `code` is the exit code that says so, 128 and its number."""

    def __init__(self, number: int):
        super().__init__()
        self.code = 128 + number


@contextmanager
def interruptible(notice: str) -> Iterator[None]:
    """Raise Interrupted on Ctrl-C, on SIGTERM and when the terminal is closed (SIGHUP), having written a notice to stderr.

    Signals that are ignored, as by nohup, stay ignored. Does nothing outside the main thread, which alone receives signals.
    """
    # Asked now: a terminal that is gone is none any more.
    terminals = [number for number in (1, 2) if os.isatty(number)]
    hung_up = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal hung_up
        if number == getattr(signal, "SIGHUP", None):
            # Both the kernel and the shell may say it.
            if hung_up:
                return
            hung_up = True
            # Whatever writes to the terminal from here on must not fail for want of it.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
        # Past sys.stderr, which the signal may have interrupted in the middle of a line.
        os.write(2, f"\n{notice}\n".encode())
        raise Interrupted(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
