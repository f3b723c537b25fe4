"""How long a training step takes, beside the matrix products it cannot do without, and beside PyTorch.

A step is forward, backward, clip and AdamW in float32. The floor is the step's own matrix products and nothing else,
shared over the same threads in the same way. All are timed in turn within one run, since machines drift.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nanograd_llm.backend import blas_threads, cpu_count
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.training.trainer import TrainConfig, Trainer


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and a batch of it."""

    config: GPTConfig
    batch_size: int

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Random (tokens, targets), each (B, T)."""
        shape = (2, self.batch_size, self.config.context_length)
        tokens, targets = np.random.default_rng(0).integers(self.config.vocab_size, size=shape)
        return tokens, targets


WORKLOADS = {
    "toy": Workload(GPTConfig(vocab_size=65, context_length=64, n_layer=4, n_head=4, n_embd=128), 12),
    "mid": Workload(GPTConfig(vocab_size=65, context_length=256, n_layer=6, n_head=6, n_embd=384), 8),
}


def our_step(workload: Workload, threads: int = 0) -> Callable[[], float]:
    """A training step of nanograd_llm on the workload; returns the loss."""
    trainer = Trainer(GPT(workload.config), TrainConfig(batch_size=workload.batch_size, threads=threads))
    batch = workload.batch()
    return lambda: trainer.step(*batch)


def floor(workload: Workload, threads: int = 0) -> Callable[[], None]:
    """The matrix products of a step, batch split over threads as training splits it."""
    threads = threads or cpu_count()
    shares = [len(rows) for rows in np.array_split(np.arange(workload.batch_size), threads) if len(rows)]
    pool = ThreadPoolExecutor(len(shares))
    work = [_products(workload.config, share) for share in shares]

    def run() -> None:
        with blas_threads(1):
            list(pool.map(lambda products: products(), work))

    return run


def _products(c: GPTConfig, B: int) -> Callable[[], None]:
    """Every product of one forward and backward pass over B sequences, on arrays made beforehand."""
    T, C, H = c.context_length, c.n_embd, c.n_head

    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, dtype=np.float32)

    linears = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)] * c.n_layer + [(C, c.vocab_size)]
    rows = {n: ones(B * T, n) for n in {n for pair in linears for n in pair}}
    weights = {pair: ones(*pair) for pair in linears}
    head, scores = ones(B, H, T, C // H), ones(B, H, T, T)

    def run() -> None:
        for n, m in linears:
            x, dy, w = rows[n], rows[m], weights[n, m]
            _ = x @ w, dy @ w.T, x.T @ dy
        for _ in range(c.n_layer):
            for _ in range(2):  # scores and their product with the values, then the adjoints of each: half is masked
                half = scores[..., : max(1, T // 2), :]
                q = head[..., : max(1, T // 2), :]
                _ = q @ head.swapaxes(-1, -2), half @ head, half.swapaxes(-1, -2) @ q

    return run


def interleaved(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each step, all timed in turn `rounds` times after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for n in range(rounds + 2):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if n >= 2:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}
