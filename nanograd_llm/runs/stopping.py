"""Signals that ask a run to end: it finishes the current step, or interrupts a score or a sample, and saves.

Signals that follow each other within BURST seconds count as one: a key that is held down, or a program that passes on
what the terminal has sent to the run as well.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

# Ctrl-C, a request to end, and a closed terminal; Windows has no SIGHUP
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
BURST = 0.5  # seconds

Computed = TypeVar("Computed")
_arrived = [-math.inf]  # when this process got its last signal, whichever handler saw it
_timing = threading.Lock()  # held while a handler reads and sets that: a signal may come within the handler of another


class Interrupted(BaseException):
    """Raised by a signal in what `StopRequest.interruptible` computes."""


@contextlib.contextmanager
def handling(numbers: Iterable[signal.Signals], handle: Callable[[int, Any], object]) -> Iterator[None]:
    """In this block these signals call `handle(number, frame)`, those of a burst once.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Outside the main thread, where Python delivers no
    signals, nothing changes.
    """

    def handle_first(number: int, frame: Any) -> None:
        if not _timing.acquire(blocking=False):
            return
        try:
            before, now = _arrived[0], time.monotonic()
            _arrived[0] = now
        finally:
            _timing.release()
        if now - before >= BURST:
            handle(number, frame)

    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, handle_first)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Whether a signal asks the run to end: `with handling(SIGNALS, stop.handle)`.

    requested: the signal that came, or None. notify: called within the handler of the first signal, with the signal and
    whether it interrupts what is running. A second Ctrl-C raises KeyboardInterrupt.
    """

    requested: signal.Signals | None = None
    interrupts = False

    def __init__(self, notify: Callable[[signal.Signals, bool], None] | None = None):
        self.notify = notify

    def interruptible(self, compute: Callable[[], Computed]) -> Computed | None:
        """compute(), or None where the first signal came before or during that, which it ends at once."""
        try:
            try:
                self.interrupts = True
                return None if self.requested else compute()
            finally:
                self.interrupts = False
        except Interrupted:  # raised anywhere between the two lines that set `interrupts`, also in the second
            return None

    def handle(self, number: int, _frame: Any) -> None:
        if self.requested is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = self.requested is None, signal.Signals(number)
        if first and self.notify is not None:
            self.notify(self.requested, self.interrupts)
        if first and self.interrupts:
            raise Interrupted
