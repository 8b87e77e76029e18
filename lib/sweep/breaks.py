"""Ctrl-C, from the first moment on: the first room that `lib.sweep` opens.

`python -m lib.sweep` loads for a second before it runs. An interruption in that time ends it as one
at any other time does: with exit status 130 and one line, no traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

INTERRUPTED = 130  # the exit status


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Ctrl-C so far: an error on the way out, of a pool say, must not stand in its place."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # none but it hears of Ctrl-C
        yield seen
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; processes started in it do not hear of it either."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interruptions() -> None:
    """In a process that `undisturbed` started: whoever started it hears of Ctrl-C, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def leave(status: int) -> NoReturn:
    """End the process with this status.

    A KeyboardInterrupt that went through `exec` of a string, as making a dataclass does, is noted
    by Python: `python -m` would then end by SIGINT, whatever status it was told.
    """
    exec("")  # another `exec` takes the note back
    sys.exit(status)


def _leave(number: int, frame: Any) -> None:
    os.write(2, b"interrupted; the same command goes on from here\n")
    os._exit(INTERRUPTED)


# Python calls itself "-m" while it looks for the module that it was told to run.
if sys.argv[:1] == ["-m"] and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, _leave)
