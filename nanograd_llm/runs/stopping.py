"""Signals that ask a run to end: it ends the step under way and saves, instead of being broken off."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

# Ctrl-C, a request to end, and the terminal being closed; Windows has no SIGHUP
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopRequest:
    """While this block is open, the signals above ask the run to end instead of breaking into a step.

    `requested` is the signal that came, or None; `notify` is called with the first, within its handler. A second
    Ctrl-C raises KeyboardInterrupt. A signal that is ignored, as SIGHUP is under nohup, stays so. Outside the main
    thread, where Python delivers no signals, nothing changes.
    """

    requested: signal.Signals | None = None

    def __init__(self, notify: Callable[[signal.Signals], None] | None = None):
        self.notify = notify

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
            self.notify(self.requested)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
