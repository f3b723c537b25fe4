"""The batch split over threads: each runs forward and backward on its share of the rows, on one core.

Splitting the batch speeds up every op at once and leaves the engine serial. Shares are weighted by the targets that
count in them and added in a fixed order, so the same number of threads gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from nanograd_llm.backend import blas_threads, cpu_count
from nanograd_llm.engine import Tensor, grad
from nanograd_llm.errors import ShapeError
from nanograd_llm.randomness import noise
from nanograd_llm.training.flat import FlatParameters

IGNORE_INDEX = -100  # a target that does not count


class Learner(Protocol):
    """What training asks of a model: a mean loss over the targets that count."""

    def loss(self, tokens: Any, targets: Any) -> Tensor: ...


class Workers:
    """Threads that compute the loss and flat gradient of a batch together.

    threads: how many; 0 for one a core. pieces: each share is worked through in this many pieces, one after the other,
    which bounds the memory (gradient accumulation).
    """

    def __init__(self, flat: FlatParameters, threads: int = 0, pieces: int = 1):
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
        """
        count = int(np.count_nonzero(np.asarray(targets) != IGNORE_INDEX))
        if count == 0:
            raise ShapeError(f"none of the {np.size(targets)} targets of this batch counts; leave the batch out")
        shards = min(self.threads, len(tokens))
        pieces = np.array_split(np.arange(len(tokens)), min(shards * self.pieces, len(tokens)))

        def work(shard: int) -> float:
            views = self.flat.views(self.buffers[shard])
            total = 0.0
            self.buffers[shard][:] = 0
            for number in range(shard, len(pieces), shards):
                rows = slice(pieces[number][0], pieces[number][-1] + 1)
                share = np.count_nonzero(targets[rows] != IGNORE_INDEX) / count
                if share == 0:
                    continue
                with noise(*key, number):
                    y = loss(tokens[rows], targets[rows])
                gradients = grad(y, self.flat.parameters, np.asarray(share, dtype=y.dtype))
                for view, gradient in zip(views, gradients):
                    view += gradient
                total += share * y.item()
            return total

        with blas_threads(1 if shards > 1 else self.threads):
            losses = list(self.pool.map(work, range(shards)))
        gradient = self.buffers[0]
        for other in self.buffers[1:shards]:
            gradient += other
        return sum(losses), gradient

    def each(self, work: Callable[[int], Any], items: range) -> Any:
        """Run work on every item, shared out over the threads."""
        return self.pool.map(work, items)


def pinned_blas() -> str | None:
    """The environment variable that fixes the number of BLAS threads, as NAME=VALUE; None where none does."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), None)
