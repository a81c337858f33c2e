"""Stop on SIGTERM or Ctrl-C: training ends after the step, from where it resumes bit for bit.

Everywhere else stopping at once is safe: files are written whole. The same holds for the signal
that submitit takes for a job whose time is up; its own handler, which queues the job again, is
called when the run is saved.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

_Answer = Callable[[int, FrameType | None], Any]


class StopAskedError(KeyboardInterrupt):
    """The run was asked to stop by a signal; what it had is saved or on disk already."""

    def __init__(self, signal_number: int) -> None:
        """Keep which signal it was."""
        self.signal_number = signal_number
        self.name = signal.Signals(signal_number).name
        by = "Ctrl-C" if signal_number == signal.SIGINT else self.name
        super().__init__(f"asked to stop by {by}")


@dataclass(slots=True)
class _Asked:
    """What this process was asked; signals reach its main thread only."""

    is_deferred: bool = False  # in training: wait for the step's end
    signal_number: int | None = None
    requeue: _Answer | None = None  # submitit's


_ASKED = _Asked()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Turn SIGTERM, Ctrl-C, and submitit's signal where submitit runs this, into StopAskedError."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        current = signal.getsignal(number)
        # Who ignores Ctrl-C has a reason; and without submitit nobody sends the last two.
        is_plain = number == signal.SIGTERM or current is signal.default_int_handler
        if is_plain or _is_submitits(current):
            before[number] = current
            signal.signal(number, _hear)
        if number != signal.SIGTERM and _is_submitits(current):
            _ASKED.requeue = cast(_Answer, current)
    try:
        yield
    finally:
        for heard, answer in before.items():
            signal.signal(heard, answer)
        if signal.getsignal(signal.SIGTERM) is not _hear:
            _ASKED.signal_number = None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a request wait for the end of a training step; a second one does not wait."""
    before, _ASKED.is_deferred = _ASKED.is_deferred, True
    try:
        yield
    finally:
        _ASKED.is_deferred = before


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Stop here if a request waits, and let none wait inside: all that is needed is on disk."""
    raise_if_asked()
    before, _ASKED.is_deferred = _ASKED.is_deferred, False
    try:
        yield
    finally:
        _ASKED.is_deferred = before


def is_asked() -> bool:
    """Return whether a request waits."""
    return _ASKED.signal_number is not None


def raise_if_asked() -> None:
    """Stop here if that was asked."""
    if _ASKED.signal_number is not None:
        raise StopAskedError(_ASKED.signal_number)


def hand_on(stop: StopAskedError) -> bool:
    """Return whether submitit runs this; if its signal it was, it queues the job again and exits.

    Raises:
        SystemExit: By submitit, when the job is queued again.
    """
    if _ASKED.requeue is None:
        return False
    if stop.signal_number != signal.SIGTERM:
        _ASKED.requeue(stop.signal_number, None)
    return True


def _hear(number: int, frame: FrameType | None) -> None:
    is_second = _ASKED.signal_number is not None
    _ASKED.signal_number = number
    if is_second or not _ASKED.is_deferred:
        raise StopAskedError(number)


def _is_submitits(answer: object) -> bool:
    return callable(answer) and str(getattr(answer, "__module__", "")).startswith("submitit")
