"""How a check spends its time: what is left of its budget, and on a terminal how far it has come."""

from __future__ import annotations

import math
import sys
import time

_QUIET, _EVERY = 2.0, 0.1  # seconds before anything is shown, and until it is renewed


class Progress:
    """The clock of a check of `total` inputs, or of so many checks, within `seconds` if that can be."""

    def __init__(self, total: int, seconds: float):
        self.total, self.seconds, self.done = total, seconds, 0
        self._begin = time.monotonic()
        self._next = 0.0
        self._is_shown, self._shown_next = False, _QUIET

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._begin

    @property
    def left(self) -> float:
        """Seconds left, of at least one in all, so that a small check is whole."""
        return max(0.0, max(1.0, self.seconds) - self.elapsed)

    @property
    def share(self) -> float:
        """Seconds that the rest of this input's check may take, when later inputs take what this one took so far."""
        later = self.total - self.done
        spare = self.seconds - self.elapsed - later * (self.elapsed - self._next)
        return max(0.0, spare) / (later + 1)

    def needed(self, takes: float) -> int:
        """Seconds for the whole check with which this input's share is so many."""
        later = self.total - self.done
        return math.ceil(1.25 * (self.elapsed + later * (self.elapsed - self._next) + takes * (later + 1)))

    def next(self, name: str) -> None:
        """The check of this input begins."""
        if self.elapsed > self._shown_next and sys.stderr.isatty():
            self._shown_next = self.elapsed + _EVERY
            left = self.elapsed / max(1, self.done) * (self.total - self.done)
            self._show(f"gradcheck: {name}, {self.done + 1} of {self.total}, about {left:.0f} s left")
        self.done += 1
        self._next = self.elapsed

    def end(self) -> None:
        if self._is_shown:
            self._show("")

    def _show(self, line: str) -> None:
        self._is_shown = True
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
