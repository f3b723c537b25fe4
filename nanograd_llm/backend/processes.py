"""Child processes that compute function calls for the parent, and how they handle signals such as Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nanograd_llm.backend.threads import blas_threads, fork_safe_lock
from nanograd_llm.errors import NanogradError, WorkerError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# On Windows there is no fork, and on macOS it is unsafe once system libraries are in use.
CAN_FORK = sys.platform.startswith("linux")
ENDING = 5.0  # seconds that a spawned process has to end by itself


@contextlib.contextmanager
def deferred_ctrl_c() -> Iterator[None]:
    """A Ctrl-C inside this block takes effect at its end. Only the main thread is interrupted by Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """A process started inside this block has SIGINT, SIGTERM and SIGHUP blocked.

    A terminal sends these to the whole process group, and only the parent should act on them. They are blocked in this
    thread too, so that the child starts with them blocked. Another thread of the parent may still receive Ctrl-C, so
    use `deferred_ctrl_c` as well.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A process that holds an object, the subject, and computes function(subject, *arguments), one call at a time.

    Functions, arguments and answers are pickled. Made by `fork` or `spawn`; close it, or use it in a `with` block.
    """

    def __init__(self, process: Any, pipe: Connection):
        """process: an object with `pid`, `kill` and `join`, such as a multiprocessing.Process."""
        self.process, self.pipe = process, pipe
        _children.add(self)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Compute function(subject, *arguments) in the process. Raises as `send` and `receive` do."""
        self.send(function, *arguments)
        return self.receive()

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Request function(subject, *arguments) without waiting for the answer.

        Raises WorkerError if the message is large and the process is stopped.
        """
        message = pickle.dumps((function, arguments), protocol=pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(EOFError, OSError):  # `receive` reports a process that has ended
            if len(message) > 2**15:  # larger than a pipe's buffer may be: sending waits until the child reads
                self._require_running()
            self.pipe.send_bytes(message)

    def receive(self) -> Any:
        """The answer to the oldest call that is not answered yet.

        An exception in the child process is raised here: NanogradErrors and MemoryErrors unchanged, others as a
        NanogradError with their name. Raises WorkerError within seconds if the process has ended or is stopped
        (SIGSTOP).
        """
        try:
            _await_soon(self.pipe)
            while not self.pipe.poll(1):
                self._require_running()
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise WorkerError(
                f"child process {self.process.pid} ended without an answer: it was killed, perhaps for lack of memory; "
                "a smaller batch needs less"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _require_running(self) -> None:
        """Raise EOFError if the process is dead, WorkerError if it is stopped and still is a second later.

        After Ctrl-Z and `fg` the parent may continue before the child, hence the second.
        """
        if _state(self.process.pid) in _DEAD:
            raise EOFError
        if _state(self.process.pid) in _STOPPED and not self.pipe.poll(1) and _state(self.process.pid) in _STOPPED:
            raise WorkerError(
                f"child process {self.process.pid} is stopped (by SIGSTOP or a debugger) and does not answer; it is "
                "killed, and its unfinished work is lost: find out what stopped it, then try again"
            )

    def close(self) -> None:
        """End the process. A call in progress is lost."""
        self.pipe.close()
        if not isinstance(self.process, _Forked):  # killed at once, it would leak the semaphores that libraries made
            if hasattr(signal, "SIGUSR1") and self.process.is_alive():
                os.kill(self.process.pid, signal.SIGUSR1)
            self.process.join(ENDING)
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


_children: weakref.WeakSet[Child] = weakref.WeakSet()
# One start at a time, so that no process inherits another one's end of a pipe. Reentrant: the start itself forks.
_starting = fork_safe_lock(threading.RLock())


def fork(make: Callable[[], Any]) -> Child:
    """A child process that is a copy of this one; its subject is the result of `make()`, called in the child.

    BLAS uses one thread there. Raises WorkerError if the system cannot start another process.
    """
    from multiprocessing import Pipe

    with _starting, deferred_ctrl_c(), signals_blocked(), warnings.catch_warnings():
        # Python 3.12 warns that other threads may hold locks at the fork; the child does not use those locks
        warnings.simplefilter("ignore", DeprecationWarning)
        here, there = Pipe()
        try:
            pid = os.fork()
        except OSError as error:
            raise WorkerError(f"cannot start a worker process: {error}; use fewer workers, or threads") from None
        if pid == 0:
            try:
                for pipe in (here, *(child.pipe for child in _children)):  # open ends would keep other children alive
                    pipe.close()
                with blas_threads(1):
                    _serve(there, make)
            finally:
                os._exit(0)  # without running the parent's exit handlers or flushing its buffers
        there.close()
        return Child(_Forked(pid), here)


def spawn(make: Callable[[], Any]) -> Child:
    """A child process with a new interpreter; its subject is the result of `make()`, imported and called there."""
    import multiprocessing

    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # otherwise the first spawn starts it, and that unblocks the signals
    context = multiprocessing.get_context("spawn")
    with _starting, deferred_ctrl_c(), signals_blocked():
        here, there = context.Pipe()
        process = context.Process(target=_serve_until_signalled, args=(there, make))
        process.start()
        there.close()
        return Child(process, here)


def _serve(pipe: Connection, make: Callable[[], Any]) -> None:
    """The loop of a child process: answer calls until the parent closes its end of the pipe."""
    try:
        subject = make()
    except Exception as error:
        return pipe.send(as_sent(error))  # as the answer to the first call
    while True:
        try:
            _await_soon(pipe)
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(function(subject, *arguments))
        except Exception as error:
            with contextlib.suppress(OSError):
                pipe.send(as_sent(error))


_SOON = 2e-3  # seconds


def _await_soon(pipe: Connection) -> None:
    """Wait for a message for two milliseconds without sleeping, since a process that sleeps is slow to wake up.

    The workers of a training step meet every few milliseconds, and reach each meeting at almost the same time.
    """
    if not CAN_FORK or not hasattr(select, "poll"):  # then there are no such workers; gevent takes poll away
        return
    arrived = select.poll()
    arrived.register(pipe.fileno(), select.POLLIN)
    until = time.perf_counter() + _SOON
    while not arrived.poll(0) and time.perf_counter() < until:
        os.sched_yield()  # to another process, if one needs this core


def _serve_until_signalled(pipe: Connection, make: Callable[[], Any]) -> None:
    """As `_serve`; SIGUSR1 ends a call in progress as sys.exit does, so that libraries can clean up."""
    if not hasattr(signal, "SIGUSR1"):
        return _serve(pipe, make)
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit())
    try:
        _serve(pipe, make)
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # sys.exit inside an exit handler would print a traceback


def as_sent(error: Exception) -> Exception:
    """An exception that can be pickled: NanogradErrors and MemoryErrors unchanged, others as a NanogradError."""
    with contextlib.suppress(Exception):
        if isinstance(error, (NanogradError, MemoryError)):
            return pickle.loads(pickle.dumps(error))
    return NanogradError(f"{type(error).__name__}: {error}")


class _Forked:
    """A forked process, with those methods of a multiprocessing.Process that `Child` uses."""

    def __init__(self, pid: int):
        self.pid, self.parent = pid, os.getpid()

    def kill(self) -> None:
        if os.getpid() == self.parent:  # a forked copy of the parent must not kill its siblings
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def join(self) -> None:
        with contextlib.suppress(ChildProcessError):  # other code may have waited for it already
            os.waitpid(self.pid, 0)


_DEAD, _STOPPED = ("Z", "X"), ("T", "t")


def _state(pid: int | None) -> str:
    """The letter for the state of a process in Linux's /proc/PID/stat; "" if there is no such file."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""
