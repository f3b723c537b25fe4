"""The batch split over threads: each runs forward and backward on its share of the rows, on one core.

Splitting the batch speeds up every op at once and leaves the engine serial. Shares are weighted by the targets that
count in them and added in a fixed order, so the same number of threads gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nanograd_llm.backend import blas_threads, cpu_count
from nanograd_llm.engine import Tensor, grad
from nanograd_llm.errors import ShapeError
from nanograd_llm.modes import checked, state
from nanograd_llm.ops.composed import count_targets
from nanograd_llm.randomness import noise
from nanograd_llm.training.flat import BLOCK, FlatParameters


class Workers:
    """Threads that compute the loss and flat gradient of a batch together.

    threads: how many; 0 for one a core. pieces: each share is worked through in this many pieces, one after the other,
    which bounds the memory (gradient accumulation).
    """

    def __init__(self, flat: FlatParameters, threads: int = 0, pieces: int = 1):
        from concurrent.futures import ThreadPoolExecutor

        self.flat = flat
        self.threads = threads or cpu_count()
        self.pieces = pieces
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="shard")
        self.buffers = [np.empty_like(flat.data) for _ in range(self.threads)]

    def loss_and_gradient(
        self, loss: Callable[[Any, Any], Tensor], tokens: np.ndarray, targets: np.ndarray, key: Sequence[int]
    ) -> tuple[float, np.ndarray]:
        """The mean loss over all targets that count, and its gradient: a flat array, valid until the next call.

        key: what the noise of dropout follows from, such as (seed, step); the number of the piece is added to it.
        A thread that fails ends the call with its error once all threads have ended. `checked()` reaches the threads.
        """
        tokens, targets = np.asarray(tokens), np.asarray(targets)
        if len(tokens) != len(targets):
            raise ShapeError(f"tokens {tokens.shape} and targets {targets.shape} must have the same number of rows")
        count = count_targets(targets)
        if count == 0:
            raise ShapeError(f"none of the {targets.size} targets of this batch counts; leave the batch out")
        shards = min(self.threads, len(tokens))
        pieces = np.array_split(np.arange(len(tokens)), min(shards * self.pieces, len(tokens)))
        is_checked = state.checked

        def work(shard: int) -> float:
            buffer, total, is_empty = self.buffers[shard], 0.0, True
            views = self.flat.views(buffer)
            for number in range(shard, len(pieces), shards):
                rows = slice(pieces[number][0], pieces[number][-1] + 1)
                share = count_targets(targets[rows]) / count
                if share == 0:
                    continue
                # a number that is not finite shows in the result, so NumPy need not warn of it
                with noise(*key, number), checked(is_checked), np.errstate(all="ignore"):
                    y = loss(tokens[rows], targets[rows])
                    if not isinstance(y, Tensor) or y.shape != ():
                        raise ShapeError(f"a loss is a Tensor of one number, such as a mean; this one is {y!r}")
                    gradients = grad(y, self.flat.parameters, np.asarray(share, dtype=y.dtype))
                for view, gradient in zip(views, gradients):
                    if is_empty:
                        view[...] = gradient
                    else:
                        view += gradient
                is_empty = False
                total += share * y.item()
            if is_empty:
                buffer[:] = 0
            return total

        with blas_threads(1 if shards > 1 else self.threads):
            losses = self._all(work, shards)
        gradient = self.buffers[0]

        def add(start: int) -> None:
            block = slice(start, start + BLOCK)
            for other in self.buffers[1:shards]:
                gradient[block] += other[block]

        self.each(add, range(0, len(gradient), BLOCK))
        return sum(losses), gradient

    def each(self, work: Callable[[int], Any], items: range) -> Any:
        """Run work on every item, shared out over the threads; returns when all is done."""

        def share(n: int) -> None:
            for item in items[n :: self.threads]:
                work(item)

        return self._all(share, self.threads)

    def _all(self, work: Callable[[int], Any], count: int) -> list[Any]:
        """Results of work(0), work(1), ...; whatever fails or interrupts, none is still running afterwards."""
        from concurrent.futures import wait

        running = [self.pool.submit(work, n) for n in range(count)]
        try:
            wait(running)
        finally:
            wait(running)  # again, where Ctrl-C broke into the first
        return [running.pop(0).result() for _ in range(count)]  # popped: an error must not hold on to itself


def pinned_blas() -> str | None:
    """The environment variable that fixes the number of BLAS threads, as NAME=VALUE; None where none does."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), None)
