"""Workers that run the same method on different tasks, the caller among them: as threads, or as forked processes.

Threads see everything and work everywhere, but wait for each other at the interpreter's lock, which costs a fifth of a
step where arrays are small. A forked process has an interpreter of its own. It sees what lies in shared memory as it
changes and everything else as it was at the fork; so a fingerprint decides before each use whether to fork anew.
"""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nanograd_llm.autograd.modes import forget_modes
from nanograd_llm.backend.interrupts import born_deaf
from nanograd_llm.backend.pipes import receive, send, told
from nanograd_llm.backend.threads import blas_threads
from nanograd_llm.errors import NanogradError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Method = Callable[..., Any]  # a bound method

ENDED = (
    "a worker process ended without an answer: was it killed, or out of memory? Use a smaller batch, or "
    "work in threads (processes=False, --no-processes)"
)


class Threads:
    """A thread for each of `size` workers but the first, which is the caller."""

    def __init__(self, size: int):
        from concurrent.futures import ThreadPoolExecutor

        self.pool = ThreadPoolExecutor(max(1, size - 1), thread_name_prefix="worker")

    def run(self, method: Method, tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """method(*task) for every task. Whatever fails or interrupts, nothing is still running when this returns."""
        from concurrent.futures import wait

        running = [self.pool.submit(method, *task) for task in tasks[1:]]
        try:
            first = method(*tasks[0])
            wait(running)
        finally:
            wait(running)  # again, where Ctrl-C or an error broke into the first
        return [first, *(running.pop(0).result() for _ in tasks[1:])]  # popped: an error must not hold on to itself


class Processes:
    """A process for each of `size` workers but the first, forked from this one when `prepare` sees need."""

    def __init__(self, size: int):
        self.size = size
        self.workers: list[tuple[int, Connection]] = []  # process ids and pipes
        self.forked_from: bytes | None = None
        weakref.finalize(self, _end, self.workers, os.getpid())

    def prepare(self, owner: object, fingerprint: bytes) -> bool:
        """Have processes with a copy of `owner`, whose methods `run` calls, as it is with this fingerprint.

        True where they had to be forked for it.
        """
        if fingerprint == self.forked_from:
            return False
        from multiprocessing import Pipe

        self.close()
        for _ in range(1, self.size):
            here, there = Pipe()
            with born_deaf(signal.SIGINT, signal.SIGTERM), warnings.catch_warnings():
                # Python 3.12 warns of threads that hold a lock at the fork; a worker never waits for another thread
                warnings.simplefilter("ignore", DeprecationWarning)
                process = _fork()
                if process == 0:
                    _serve(owner, there, [here, *(pipe for _, pipe in self.workers)])
            there.close()
            self.workers.append((process, here))
        self.forked_from = fingerprint
        return True

    def run(self, method: Method, tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As `Threads.run`, for a method of the owner that `prepare` was given. After a failure all are forked anew."""
        pipes = [pipe for _, pipe in self.workers[: len(tasks) - 1]]
        if len(pipes) < len(tasks) - 1:
            raise NanogradError(f"{len(tasks)} tasks for {1 + len(self.workers)} workers; call prepare first")
        try:
            for pipe, task in zip(pipes, tasks[1:]):
                send(pipe, (method.__name__, task))
            return [method(*tasks[0]), *(receive(pipe, ENDED) for pipe in pipes)]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes; nothing in them is worth keeping."""
        _end(self.workers, os.getpid())
        self.forked_from = None


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        raise NanogradError(f"cannot start a worker process: {error}; use fewer workers, or threads") from None


def _serve(owner: object, pipe: Connection, others: list[Connection]) -> None:
    """The life of a worker process: task after task, until whoever forked it hangs up. Does not return."""
    try:
        for other in others:
            other.close()
        forget_modes()  # of whoever forked
        with blas_threads(1):
            while True:
                name, task = pipe.recv()
                try:
                    answer = getattr(owner, name)(*task)
                except Exception as error:
                    answer = told(error)
                send(pipe, answer)
    finally:
        os._exit(0)  # past everything that belongs to the process it was copied from: its buffers, files and tests


def _end(workers: list[tuple[int, Connection]], forked_by: int) -> None:
    while workers:
        process, pipe = workers.pop()
        pipe.close()
        if os.getpid() != forked_by:  # a copy of the process whose workers they are: it has dropped its copy only
            continue
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it may have been killed, and waited for
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
