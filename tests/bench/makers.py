"""Makers of steps for the contenders of a race, and functions to call there; their processes import this module."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import time

import numpy as np

from nanograd_llm.errors import ConfigError
from nanograd_llm.training.flat import FlatParameters
from nanograd_llm.training.team import Processes


def counter(start=0):
    """A step that counts its calls."""
    calls = [start]

    def step():
        calls[0] += 1
        return calls[0]

    return step


def refused():
    raise ConfigError("no such thing")


def slow():
    return lambda: time.sleep(60)


def signalled_late():
    """A step of a process that gets the signal of `close` when it is already on its way to its end."""
    atexit.register(os.kill, os.getpid(), signal.SIGUSR1)
    return lambda: None


def with_semaphore():
    lock = multiprocessing.Lock()
    return lambda: time.sleep(60) if lock else None


def broken():
    raise ZeroDivisionError("by nothing")


def where_and_what(step, *arguments):
    return os.getpid(), step(), arguments


def blocked_signals(_step):
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def end_process(_step):
    os._exit(7)


def holding(kept=0, passing=0):
    """A step of a process that keeps `kept` bytes; while it was made, it used `passing` bytes for a moment."""
    np.ones(passing, np.uint8)
    array = np.ones(kept, np.uint8)
    return lambda: array.sum()


class Sharing:
    """Two workers that write into the same `size` bytes, and each into as many bytes of its own."""

    def __init__(self, size):
        import nanograd_llm as ng

        self.flat = FlatParameters([ng.Parameter(np.zeros(size // 4, np.float32))], shared=True)
        self.own = None
        self.team = Processes(2)

    def fill(self):
        self.flat.data[:] += 1
        self.own = None  # frees the old array first
        self.own = np.ones(self.flat.size, np.float32)

    def __call__(self):
        self.team.run(self.fill, [(), ()])
