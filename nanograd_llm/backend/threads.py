"""The machine's cores and memory: how many threads BLAS uses, work shared out over threads, and a heap that is kept."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def cpu_count() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fork_safe_lock(lock: Any = None) -> Any:
    """A lock (a new threading.Lock if not given) that no thread holds while another one forks.

    The child process could never acquire it.
    """
    lock = lock or threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class _Limit:
    """How many threads a block allows; an object, so that of two equal ones each is itself."""

    def __init__(self, count: int):
        self.count = count


_blas_limits: list[_Limit] = []  # of the blocks that are open, in whatever thread
_blas_lock = fork_safe_lock()


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Let every matrix product use at most `count` threads inside this block.

    The limit holds for the whole process: of several blocks that are open at once, the last one opened counts, and when
    none is left the setting is as it was before the first.
    """
    limit = _Limit(count)
    with _blas_lock:
        pools = _thread_pools()
        if not _blas_limits:
            pools.before = pools.limit(user_api="blas")  # limits nothing, remembers what is set
        _blas_limits.append(limit)
        pools.limit(limits=count, user_api="blas")
    try:
        yield
    finally:
        with _blas_lock:
            _blas_limits.remove(limit)
            if _blas_limits:
                pools.limit(limits=_blas_limits[-1].count, user_api="blas")
            else:
                pools.before.restore_original_limits()


@functools.cache
def _thread_pools() -> Any:
    """The libraries that have thread pools; finding them takes milliseconds, so once. To be called under _blas_lock."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


_SHARED_OUT = 2**18  # numbers from which on a second thread repays waking it
_helpers: Any = None
OWN_THREADS = "nanograd"  # what the names of the threads of our pools begin with


def share_out(work: Callable[[slice], Any], size: int, numbers: int) -> list[Any]:
    """work(part) for parts that together are slice(0, size), one on each thread that BLAS may use here.

    numbers: how many the work touches; where they are few, or in a worker of a team, all is one part. BLAS has one
    thread meanwhile. For work in plain NumPy on rows, heads or elements that do not depend on each other.
    """
    count = min(_blas_thread_limit(), size) if numbers >= _SHARED_OUT else 1
    if count < 2:
        return [work(slice(0, size))]
    bounds = [size * n // count for n in range(count + 1)]
    first, *others = map(slice, bounds, bounds[1:])
    warnings = np.geterr()

    def run(part: slice) -> Any:
        with np.errstate(**warnings):  # which belongs to the thread before NumPy 2
            return work(part)

    with blas_threads(1):
        running = [_threads().submit(contextvars.copy_context().run, run, part) for part in others]
        try:
            results = [work(first)]
        finally:
            for task in running:
                task.exception()  # waits
        return [*results, *(task.result() for task in running)]


def _blas_thread_limit() -> int:
    with _blas_lock:
        if _blas_limits:
            return _blas_limits[-1].count
        pools = _thread_pools().lib_controllers
        return min(cpu_count(), max((pool.num_threads for pool in pools if pool.user_api == "blas"), default=1))


def _forget_threads() -> None:
    """A forked process has none of the threads of the one it was copied from."""
    global _helpers
    _helpers = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def _threads() -> Any:
    global _helpers
    with _blas_lock:  # so that threads that come at once make one pool
        if _helpers is None:
            from concurrent.futures import ThreadPoolExecutor

            _helpers = ThreadPoolExecutor(cpu_count(), thread_name_prefix=OWN_THREADS)
        return _helpers


def keep_heap() -> bool:
    """Tell glibc's malloc to keep freed memory, so that large arrays stop costing fresh page faults.

    A training step allocates the same sizes again and again; returning them to the kernel each time costs a quarter of
    the step. True where it was done (glibc), False elsewhere, where nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library, such as musl
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # from glibc's malloc.h
    return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1))


def pinned_blas() -> str | None:
    """The environment variable that fixes the number of BLAS threads, as NAME=VALUE; None where none does."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), None)
