"""Signals that ask a run to end: it finishes the current step, or interrupts a score or a sample, and saves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Ctrl-C, a request to end, and a closed terminal; Windows has no SIGHUP
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(BaseException):
    """Raised by a signal in the `interruptible` block of a StopRequest."""


class StopRequest:
    """A block in which the signals above ask the run to end, instead of interrupting it.

    requested: the signal that came, or None. notify: called within the handler of the first signal, with the signal and
    whether it interrupts what is running. A second Ctrl-C raises KeyboardInterrupt. A signal that is ignored, as SIGHUP
    is under nohup, stays ignored. Outside the main thread, where Python delivers no signals, nothing changes.
    """

    requested: signal.Signals | None = None
    interrupts = False

    def __init__(self, notify: Callable[[signal.Signals, bool], None] | None = None):
        self.notify = notify

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first signal ends this block at once."""
        with contextlib.suppress(Interrupted):
            try:
                self.interrupts = True
                yield
            finally:
                self.interrupts = False

    def __enter__(self) -> StopRequest:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def _handle(self, number: int, _frame: Any) -> None:
        if self.requested is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = self.requested is None, signal.Signals(number)
        if first and self.notify is not None:
            self.notify(self.requested, self.interrupts)
        if first and self.interrupts:
            raise Interrupted

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
