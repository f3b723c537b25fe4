"""Child processes that answer calls: how they are started, asked, watched and ended, and what Ctrl-C does meanwhile."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nanograd_llm.backend.threads import blas_threads, fork_safe_lock
from nanograd_llm.errors import NanogradError, WorkerError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# Elsewhere a fork is missing (Windows), or unsafe once the system's own libraries are in use (macOS).
CAN_FORK = sys.platform.startswith("linux")


@contextlib.contextmanager
def deferred_ctrl_c() -> Iterator[None]:
    """Ctrl-C within this block acts at its end. Only the main thread is ever interrupted by it."""
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
    """A process that is started within this block has the signals blocked that a terminal sends to a whole group.

    The parent alone decides what they end. They are blocked in this thread as well, so that none arrives in the child
    before it could ignore it. Another thread of the parent may still take Ctrl-C, hence `deferred_ctrl_c` beside this.
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
    """A process that holds a subject and computes function(subject, *arguments) when asked; one call after the other.

    Functions, arguments and answers travel pickled. Made by `fork` or `spawn`; close it, or use it in a `with` block.
    """

    def __init__(self, process: Any, pipe: Connection):
        """process: has `pid`, `kill` and `join`, as a multiprocessing.Process does."""
        self.process, self.pipe = process, pipe
        _children.add(self)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(subject, *arguments), computed there. Raises as `send` and `receive` do."""
        self.send(function, *arguments)
        return self.receive()

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Ask for function(subject, *arguments) without waiting for the answer.

        Raises WorkerError where much is sent and the process is stopped.
        """
        message = pickle.dumps((function, arguments), protocol=pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(EOFError, OSError):  # that nobody reads any more shows in `receive`
            if len(message) > 2**15:  # more than a pipe surely holds: this would wait until it is read
                self._require_running()
            self.pipe.send_bytes(message)

    def receive(self) -> Any:
        """The answer to the first call that has none yet.

        An exception in the child process is raised here: a NanogradError or MemoryError as it is, any other as a
        NanogradError with its name. Raises WorkerError where the process has ended, or is stopped (SIGSTOP), at the
        latest some seconds after that.
        """
        try:
            while not self.pipe.poll(1):
                self._require_running()
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise WorkerError(
                f"child process {self.process.pid} ended without an answer: was it killed, or out of memory? It "
                "needs less with a smaller batch"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _require_running(self) -> None:
        """Raise EOFError where the process is dead, WorkerError where it is stopped and still is a second later.

        A second, since of a group that Ctrl-Z stopped and `fg` continues, the parent may be the first to go on.
        """
        if _state(self.process.pid) in _DEAD:
            raise EOFError
        if _state(self.process.pid) in _STOPPED and not self.pipe.poll(1) and _state(self.process.pid) in _STOPPED:
            raise WorkerError(
                f"child process {self.process.pid} is stopped (by SIGSTOP or a debugger) and does not answer; it is "
                "ended, and what it worked on is lost: find out what stopped it, then do this again"
            )

    def close(self) -> None:
        """End the process, even during a call, which is then lost."""
        self.pipe.close()
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


_children: weakref.WeakSet[Child] = weakref.WeakSet()
# One start at a time: no process may inherit the far end of another one's pipe. Reentrant, since the start is a fork.
_starting = fork_safe_lock(threading.RLock())


def fork(make: Callable[[], Any]) -> Child:
    """A child process that is a copy of this one, where BLAS has one thread; its subject is what `make()` gives there.

    Raises WorkerError where the system has no room for another process.
    """
    from multiprocessing import Pipe

    with _starting, deferred_ctrl_c(), signals_blocked(), warnings.catch_warnings():
        # Python 3.12 warns of threads that hold a lock at the fork; a child never waits for another thread
        warnings.simplefilter("ignore", DeprecationWarning)
        here, there = Pipe()
        try:
            pid = os.fork()
        except OSError as error:
            raise WorkerError(f"cannot start a worker process: {error}; use fewer workers, or threads") from None
        if pid == 0:
            try:
                for pipe in (here, *(child.pipe for child in _children)):  # an end held here would keep others alive
                    pipe.close()
                with blas_threads(1):
                    _serve(there, make)
            finally:
                os._exit(0)  # past everything that belongs to the parent: its buffers, files and tests
        there.close()
        return Child(_Forked(pid), here)


def spawn(make: Callable[[], Any]) -> Child:
    """A child process with an interpreter of its own, where the subject is what `make()`, imported there, returns."""
    import multiprocessing

    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # the first process that is spawned would start it, which unblocks signals
    context = multiprocessing.get_context("spawn")
    with _starting, deferred_ctrl_c(), signals_blocked():
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, make))
        process.start()
        there.close()
        return Child(process, here)


def _serve(pipe: Connection, make: Callable[[], Any]) -> None:
    """What a child process does: call after call, until the parent closes its end of the pipe."""
    try:
        subject = make()
    except Exception as error:
        return pipe.send(as_sent(error))  # the answer to the first call
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(function(subject, *arguments))
        except Exception as error:
            with contextlib.suppress(OSError):
                pipe.send(as_sent(error))


def as_sent(error: Exception) -> Exception:
    """An exception as it can be sent: ours and MemoryError as they are, where pickle can make them again."""
    with contextlib.suppress(Exception):
        if isinstance(error, (NanogradError, MemoryError)):
            return pickle.loads(pickle.dumps(error))
    return NanogradError(f"{type(error).__name__}: {error}")


class _Forked:
    """A forked process, with the methods of a multiprocessing.Process that `Child` uses."""

    def __init__(self, pid: int):
        self.pid, self.parent = pid, os.getpid()

    def kill(self) -> None:
        if os.getpid() == self.parent:  # not in a copy of the parent, whose child it is not
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def join(self) -> None:
        with contextlib.suppress(ChildProcessError):  # somebody else may have waited for it
            os.waitpid(self.pid, 0)


_DEAD, _STOPPED = ("Z", "X"), ("T", "t")


def _state(pid: int | None) -> str:
    """A letter for what a process does, as in Linux's /proc/PID/stat; "" where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""
