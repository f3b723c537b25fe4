"""The floor: only the matrix products of a step, divided over the cores as training divides them.

B batch, T time, C channels, H heads, D = C/H, V vocabulary
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import numpy as np

from nanograd_llm.backend.threads import blas_threads, cpu_count, share_out
from nanograd_llm.bench.workloads import Workload
from nanograd_llm.models.gpt import GPTConfig
from nanograd_llm.training.team import make_team


class Product(NamedTuple):
    """`batch` products (m, k)·(k, n). layout: for each operand, t if it is transposed in memory, n if it is not."""

    batch: int
    m: int
    k: int
    n: int
    layout: Literal["nn", "nt", "tn"] = "nn"

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


def products(c: GPTConfig, B: int, T: int, *, backward: bool = True) -> list[Product]:
    """Every product of a pass over B sequences of T tokens: forward only, or forward and backward."""
    N, C, H, D, inner = B * T, c.n_embd, c.n_head, c.n_embd // c.n_head, c.n_inner or 4 * c.n_embd
    half = (T + 1) // 2  # of the scores; the mask hides the other half
    # q kᵀ or p̄ = ȳ vᵀ as keys by queries; p v or q̄ = s̄ k; v̄ = pᵀ ȳ or k̄ = s̄ᵀ q: each in the layout fastest for BLAS
    scores, mixed, spread = Product(B * H, T, D, half), Product(B * H, half, T, D), Product(B * H, T, half, D)
    block = [part for n, m in ((C, 3 * C), (C, C), (C, inner), (inner, C)) for part in _affine(N, n, m, backward)]
    block += [scores, mixed]
    head = [Product(1, N, C, c.vocab_size, "nt")]
    if backward:
        block += [spread, scores, mixed, spread]
        head += [Product(1, N, c.vocab_size, C), Product(1, c.vocab_size, N, C, "tn")]
    return block * c.n_layer + head


def _affine(N: int, n: int, m: int, backward: bool) -> list[Product]:
    """y = x w, x̄ = ȳ wᵀ, w̄ = xᵀ ȳ for x (N, n) and w (n, m)."""
    forward = [Product(1, N, n, m)]
    return forward + [Product(1, N, m, n, "nt"), Product(1, n, N, m, "tn")] if backward else forward


def flops(workload: Workload, *, backward: bool = True) -> int:
    """The number of floating-point operations of the products of one step, or of one forward pass."""
    return sum(p.flops for p in products(workload.config, workload.batch_size, workload.length, backward=backward))


class Floor:
    """A step of only the products, with one worker for each core; a single sequence uses all BLAS threads instead."""

    def __init__(self, workload: Workload, backward: bool = True):
        count = min(cpu_count(), workload.batch_size)
        shares = [len(rows) for rows in np.array_split(np.arange(workload.batch_size), count)]
        todo = [products(workload.config, share, workload.length, backward=backward) for share in shares]
        self.flops = sum(product.flops for share in todo for product in share)
        self.work = [_operands(share) for share in todo]
        self.team = make_team(count)

    def __call__(self) -> None:
        with blas_threads(1 if len(self.work) > 1 else cpu_count()):
            self.team.run(self.do_share, [(n,) for n in range(len(self.work))])

    def do_share(self, n: int) -> None:
        for a, b, out in self.work[n]:
            if out.ndim == 2:
                np.matmul(a, b, out=out)
            else:  # small products, one for each head: divided over threads if there are free cores
                share_out(functools.partial(_multiply, a, b, out), len(out), a.size + b.size + out.size)


def _multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray, part: slice) -> None:
    np.matmul(a[part], b[part], out=out[part])


def _operands(todo: list[Product]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The operands and the output array of each product; equal products share them."""
    made = {}
    for product in set(todo):
        batch, m, k, n, layout = product
        lead = (batch,) if batch > 1 else ()
        a, b = np.ones((*lead, m, k), np.float32), np.ones((*lead, k, n), np.float32)
        if layout == "tn":
            a = np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)
        if layout == "nt":
            b = np.ascontiguousarray(b.swapaxes(-1, -2)).swapaxes(-1, -2)
        made[product] = a, b, np.zeros((*lead, m, n), np.float32)
    return [made[product] for product in todo]
