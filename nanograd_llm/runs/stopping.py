"""Signals that ask a run to end: it ends the step under way and saves; what is not a step is broken off."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Ctrl-C, a request to end, and the terminal being closed; Windows has no SIGHUP
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class BrokenOff(BaseException):
    """Raised in the `at_once` block of a StopRequest by the signal that asks to end."""


class StopRequest:
    """While this block is open, the signals above ask the run to end instead of breaking into a step.

    `requested` is the signal that came, or None; `notify` is called with the first, within its handler, and with
    whether it breaks off what is under way. A second Ctrl-C raises KeyboardInterrupt. A signal that is ignored, as
    SIGHUP is under nohup, stays so. Outside the main thread, where Python delivers no signals, nothing changes.
    """

    requested: signal.Signals | None = None
    breaks_off = False

    def __init__(self, notify: Callable[[signal.Signals, bool], None] | None = None):
        self.notify = notify

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """The first of the signals ends this block at once: BrokenOff, raised by it, is caught here."""
        with contextlib.suppress(BrokenOff):
            try:
                self.breaks_off = True
                yield
            finally:
                self.breaks_off = False

    def __enter__(self) -> StopRequest:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def _note(self, number: int, _frame: Any) -> None:
        if self.requested is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.requested = self.requested is None, signal.Signals(number)
        if first and self.notify is not None:
            self.notify(self.requested, self.breaks_off)
        if first and self.breaks_off:
            raise BrokenOff

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
