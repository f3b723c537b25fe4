"""The batch split over threads: each runs forward and backward on its share of the rows, on one core.

Splitting the batch speeds up every op at once and leaves the engine serial. Shares are weighted by the targets that
count in them and added in a fixed order, so the same number of threads gives the same bits.
"""

from __future__ import annotations

import math
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
from nanograd_llm.training.flat import Block, FlatParameters


class Workers:
    """Threads that compute the loss and gradient of a batch together; the one that calls works as well.

    threads: how many; 0 for one a core. pieces: each share is worked through in this many pieces, one after the other,
    which bounds the memory (gradient accumulation).
    """

    def __init__(self, flat: FlatParameters, threads: int = 0, pieces: int = 1):
        from concurrent.futures import ThreadPoolExecutor

        self.flat = flat
        self.threads = threads or cpu_count()
        self.pieces = pieces
        self.pool = ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="shard")

    def loss_and_gradient(
        self, loss: Callable[[Any, Any], Tensor], tokens: np.ndarray, targets: np.ndarray, key: Sequence[int]
    ) -> tuple[float, float, list[np.ndarray]]:
        """The mean loss over all targets that count, its gradient's length, and its gradient in segments of `flat`.

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

        def work(shard: int) -> tuple[float, list[np.ndarray]]:
            total = 0.0
            gradients: list[np.ndarray] = []
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
                    found = grad(y, self.flat.parameters, np.asarray(share, dtype=y.dtype))
                for sum_so_far, gradient in zip(gradients, found):
                    sum_so_far += gradient
                gradients = gradients or found
                total += share * y.item()
            return total, self.flat.segments(gradients) if gradients else []

        with blas_threads(1 if shards > 1 else self.threads):
            losses, shares = zip(*self.each(work, range(shards)))
        gradient, *others = [segments for segments in shares if segments]

        def add(block: Block) -> float:
            """Sum the shards in this block; returns its sum of squares."""
            here = gradient[block.segment][block.part]
            for other in others:
                here += other[block.segment][block.part]
            return float(np.vdot(here, here))

        with np.errstate(over="ignore"):  # a sum of squares beyond the dtype is infinite, as the caller will see
            norm = math.sqrt(sum(self.each(add, self.flat.blocks)))
        return sum(losses), norm, gradient

    def each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """work(item) for every item, in order, shared out over the threads.

        Whatever fails or interrupts, nothing is still running when this returns.
        """
        from concurrent.futures import wait

        shares = min(self.threads, len(items))

        def share(n: int) -> list[Any]:
            return [work(item) for item in items[n::shares]]

        running = [self.pool.submit(share, n) for n in range(1, shares)]
        results: list[Any] = [None] * len(items)
        try:
            results[::shares] = share(0)
            wait(running)
        finally:
            wait(running)  # again, where Ctrl-C or an error broke into the first
        for n in range(1, shares):
            results[n::shares] = running.pop(0).result()  # popped: an error must not hold on to itself
        return results


def pinned_blas() -> str | None:
    """The environment variable that fixes the number of BLAS threads, as NAME=VALUE; None where none does."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), None)
