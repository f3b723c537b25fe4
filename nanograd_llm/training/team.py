"""A team runs one method on several tasks in parallel, in threads or in processes; the caller runs the first task.

Threads share all memory and work on every system, but wait for each other at the interpreter's lock, which costs a
fifth of a step where arrays are small. A forked process has its own interpreter and a copy of all memory as it was at
the fork; later changes are seen only in shared memory.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from nanograd_llm.autograd.modes import forget_modes
from nanograd_llm.backend.processes import CAN_FORK, Child, fork
from nanograd_llm.backend.threads import OWN_THREADS, cpu_count
from nanograd_llm.errors import ConfigError
from nanograd_llm.settings import counted

Method = Callable[..., Any]  # a bound method


class Threads:
    """`size` members: the caller and `size - 1` threads. why: the reason for threads, where processes are preferred."""

    def __init__(self, size: int, why: str = ""):
        from concurrent.futures import ThreadPoolExecutor

        self.size, self.why = size, why
        self.pool = ThreadPoolExecutor(max(1, size - 1), thread_name_prefix=OWN_THREADS)

    def start(self, owner: object) -> None:
        """Nothing to do: threads use the owner itself."""

    def run(self, method: Method, tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Returns method(*task) for every task, in order. No task is still running when this returns or raises.

        Ctrl-C ends the tasks of all threads at their next line of Python.
        """
        from concurrent.futures import wait

        at_work, lock = set[int](), threading.Lock()  # so that no thread is interrupted once its task has ended

        def work(*task: Any) -> Any:
            with lock:
                at_work.add(threading.get_ident())
            try:
                return method(*task)
            finally:
                with lock:
                    at_work.discard(threading.get_ident())

        running = [self.pool.submit(work, *task) for task in tasks[1:]]
        try:
            first = method(*tasks[0])
            wait(running)
        except KeyboardInterrupt:
            for future in running:
                future.cancel()  # if it has not begun
            with lock:
                _interrupt([*at_work])
            raise
        finally:
            wait(running)  # again, in case Ctrl-C or an error interrupted the lines above
        return [first, *(running.pop(0).result() for _ in tasks[1:])]  # popped: an exception must not refer to itself

    def __str__(self) -> str:
        return counted(self.size, "thread") + (f": {self.why}" if self.why else "")


class Processes:
    """`size` members: the caller and `size - 1` forked processes, each with a copy of the owner."""

    def __init__(self, size: int):
        self.size = size
        self.children: list[Child] = []
        weakref.finalize(self, _close, self.children)

    def start(self, owner: object) -> None:
        """Fork the processes. owner: the object whose methods `run` is given; each process has a copy of it."""
        _close(self.children)
        for _ in range(1, self.size):
            self.children.append(fork(lambda: _copy_of(owner)))

    def run(self, method: Method, tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As `Threads.run`. After an error all processes are ended, and the next call starts new ones."""
        if not self.children:
            self.start(method.__self__)  # type: ignore[attr-defined]
        helpers = self.children[: len(tasks) - 1]
        try:
            for child, task in zip(helpers, tasks[1:]):
                child.send(method.__func__, *task)  # type: ignore[attr-defined]
            return [method(*tasks[0]), *(child.receive() for child in helpers)]
        except BaseException:
            _close(self.children)
            raise

    def __str__(self) -> str:
        return f"{self.size} processes"


def _interrupt(threads: Sequence[int]) -> None:
    """Raise KeyboardInterrupt in these threads, which CPython alone can; elsewhere they end by themselves."""
    import ctypes

    if sys.implementation.name == "cpython":
        for thread in threads:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))


def _copy_of(owner: object) -> object:
    """The owner in the child process, where no mode of the caller, such as `no_grad`, is on.

    Its warnings are not shown, since those of the caller, which runs the same code on other rows, would come again.
    """
    forget_modes()
    warnings.simplefilter("ignore")
    return owner


def _close(children: list[Child]) -> None:
    while children:
        children.pop().close()


_loaded_in = os.getpid()


def make_team(size: int = 0, processes: bool | None = None) -> Threads | Processes:
    """A team of `size` members; 0 for one per core. processes: None for processes where they are safe, else threads.

    Raises ConfigError if processes are asked for on a system without a safe fork.
    """
    size = size or cpu_count()
    if processes and not CAN_FORK:
        raise ConfigError("processes=True needs Linux, where a fork is safe; leave it out, to use threads")
    if size == 1 or processes is False:
        return Threads(size)
    why = "" if processes else _why_threads()
    return Threads(size, why) if why else Processes(size)


def _why_threads() -> str:
    """Why a fork is not safe here; "" if it is. A fork copies locks, but not the threads that would release them."""
    import multiprocessing

    if not CAN_FORK:
        return "this system has no safe fork"
    if "ipykernel" in sys.modules:
        return "a notebook is running"
    if os.getpid() != _loaded_in or multiprocessing.current_process().daemon:
        return "this process is itself a worker"
    if threading.current_thread() is not threading.main_thread():
        return "this is not the main thread"
    others = [thread.name for thread in threading.enumerate()[1:] if not _is_harmless(thread)]
    return f"another thread is running, {others[0]!r:.60}" if others else ""


def _is_harmless(thread: threading.Thread) -> bool:
    """Does it hold no lock that a worker needs, as a thread of our pools, or one that updates a progress bar?"""
    updates = type(thread).__name__ in {"TMonitor", "_RefreshThread", "HistorySavingThread"}  # of tqdm, rich, IPython
    return updates or thread.name.startswith(OWN_THREADS)
