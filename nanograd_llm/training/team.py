"""Workers that run the same method on different tasks, the caller among them: as threads, or as forked processes.

Threads see everything and work everywhere, but wait for each other at the interpreter's lock, which costs a fifth of a
step where arrays are small. A forked process has an interpreter of its own. It sees what lies in shared memory as it
changes and everything else as it was at the fork; so a fingerprint decides before each use whether to fork anew.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from nanograd_llm.backend import blas_threads
from nanograd_llm.errors import NanogradError

Method = Callable[..., Any]  # a bound method


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
        self.pipes: list[Connection] = []
        self.forked_from: bytes | None = None
        weakref.finalize(self, _hang_up, self.pipes)

    def prepare(self, owner: object, fingerprint: bytes) -> None:
        """Have processes with a copy of `owner`, whose methods `run` calls, as it is with this fingerprint."""
        if fingerprint == self.forked_from:
            return
        _hang_up(self.pipes)
        context = multiprocessing.get_context("fork")
        for _ in range(1, self.size):
            here, there = context.Pipe()
            arguments = (owner, there, [*self.pipes, here])
            context.Process(target=_serve, args=arguments, daemon=True).start()
            there.close()
            self.pipes.append(here)
        self.forked_from = fingerprint

    def run(self, method: Method, tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As `Threads.run`, for a method of the owner that `prepare` was given."""
        pipes = self.pipes[: len(tasks) - 1]
        for pipe, task in zip(pipes, tasks[1:]):
            pipe.send((method.__name__, task))
        others: list[Any] = []
        try:
            first = method(*tasks[0])
        finally:  # every answer is taken, whatever happens here, so that the next question gets its own
            others = [self._answer(pipe) for pipe in pipes]
        for answer in others:
            if isinstance(answer, BaseException):
                raise answer
        return [first, *others]

    def _answer(self, pipe: Connection) -> Any:
        try:
            return pipe.recv()
        except (EOFError, ConnectionError):
            self.forked_from = None  # whoever goes on starts anew
            return NanogradError(
                "a worker process ended without an answer: was it killed, or out of memory? Use a smaller batch, or "
                "processes=False"
            )


def _serve(owner: object, pipe: Connection, others: list[Connection]) -> None:
    """The life of a worker process: task after task, until whoever forked it hangs up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first worker decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    with blas_threads(1):
        while True:
            try:
                name, task = pipe.recv()
            except EOFError:
                return
            try:
                answer = getattr(owner, name)(*task)
            except Exception as error:
                answer = error if isinstance(error, NanogradError) else NanogradError(f"a worker failed: {error!r}")
            pipe.send(answer)


def _hang_up(pipes: list[Connection]) -> None:
    """Closing its pipe ends a worker process."""
    while pipes:
        pipes.pop().close()
