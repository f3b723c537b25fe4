"""Cores and memory: the number of BLAS threads, work divided over threads, and a heap that keeps freed memory."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nanograd_llm.backend.arrays import xp


def cpu_count() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fork_safe_lock(lock: Any = None) -> Any:
    """A lock (a new threading.Lock by default) that is never held by another thread at a fork.

    Otherwise the child process could never acquire it.
    """
    lock = lock or threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class _Limit:
    """The number of threads that a block allows; an object, so that equal limits can be told apart."""

    def __init__(self, count: int):
        self.count = count


_blas_limits: list[_Limit] = []  # of all open blocks, in any thread
_blas_lock = fork_safe_lock()


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Inside this block a matrix product uses at most `count` threads.

    The limit is for the whole process. If several blocks are open, the limit of the last one opened applies; when all
    are closed, the setting from before the first is restored.
    """
    limit = _Limit(count)
    with _blas_lock:
        pools = _thread_pools()
        if not _blas_limits:
            pools.before = pools.limit(user_api="blas")  # without limits=, it only stores the current setting
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
    """The loaded libraries with thread pools; cached, since finding them takes milliseconds. Call with _blas_lock."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


_WORTH_THREADS = 2**18  # from this many numbers on, several threads are faster than one
_pool: Any = None
OWN_THREADS = "nanograd"  # the names of our threads begin with this


def share_out(work: Callable[[slice], Any], size: int, numbers: int, like: Any = None) -> list[Any]:
    """Divide slice(0, size) into one part for each thread that BLAS may use, and return work(part) of each.

    numbers: how many array elements the work uses; if these are few there is only one part.
    like: one of its arrays; work on a GPU is one part.

    For work in plain NumPy on rows, heads or elements that are independent. BLAS uses one thread meanwhile.
    """
    count = min(_blas_thread_limit(), size) if numbers >= _WORTH_THREADS and xp(like) is np else 1
    if count < 2:
        return [work(slice(0, size))]
    bounds = [size * n // count for n in range(count + 1)]
    first, *others = map(slice, bounds, bounds[1:])
    warnings = np.geterr()

    def run(part: slice) -> Any:
        with np.errstate(**warnings):  # in NumPy 1 each thread has its own setting
            return work(part)

    with blas_threads(1):
        running = [_threads().submit(contextvars.copy_context().run, run, part) for part in others]
        try:
            results = [work(first)]
        finally:
            for task in running:
                task.exception()  # waits for it
        return [*results, *(task.result() for task in running)]


def _blas_thread_limit() -> int:
    with _blas_lock:
        if _blas_limits:
            return _blas_limits[-1].count
        pools = _thread_pools().lib_controllers
        return min(cpu_count(), max((pool.num_threads for pool in pools if pool.user_api == "blas"), default=1))


def _forget_threads() -> None:
    """In a forked process: forget the pool, since the parent's threads do not exist here."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def _threads() -> Any:
    global _pool
    with _blas_lock:  # so that concurrent calls make only one pool
        if _pool is None:
            from concurrent.futures import ThreadPoolExecutor

            _pool = ThreadPoolExecutor(cpu_count(), thread_name_prefix=OWN_THREADS)
        return _pool


_HEAP = 2**30  # bytes


@functools.cache
def keep_heap() -> bool:
    """Make glibc's malloc keep freed memory, so that large arrays do not cause page faults each time.

    A training step allocates the same sizes again and again; returning them to the kernel each time takes a quarter of
    the step. The next gigabyte of the heap gets large pages, which saves some 3 % of a toy step; what is not used takes
    no memory. Returns True if malloc is glibc's, else False, and then nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    import mmap

    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library, such as musl
        return False
    m_trim_threshold, m_mmap_max, madv_hugepage = -1, -4, 14  # from malloc.h and mman.h
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1)):
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if heap := libc.malloc(_HEAP):  # None where so much may not be reserved
        page = -(-heap // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(page, _HEAP - mmap.PAGESIZE, madv_hugepage)  # a kernel without large pages refuses
        libc.free(heap)
    return True


def pinned_blas() -> str | None:
    """The environment variable that sets the number of BLAS threads, as NAME=VALUE, or None."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), None)


@functools.cache
def operations_per_second() -> float:
    """Floating-point operations of this machine in a second, as a large product of float32 takes them, on all cores."""
    size, best = 1024, math.inf
    a = np.ones((size, size), np.float32)
    for _ in range(3):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
