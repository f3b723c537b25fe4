"""The attention family, as a lesson: each class adds one idea to the one above it.

1. SimplifiedSelfAttention   every token looks at every other; nothing is learned
2. SelfAttention             learned queries, keys and values say what is looked for, offered and passed on
3. CausalAttention           no token looks into the future; dropout on the weights
4. MultiHeadList             several such heads, each with a small space of its own, side by side
   MultiHeadAttention        the same, all heads in one batched product; this is what GPT is made of

Where the added idea is idle (weights that are identities, a last token that has no future, a single head) a stage
computes the numbers of the one before it, and both forms of the fourth always agree: tests hold them to it. Every
stage has `weights(x)`, the attention weights it would use: how much each token (row) looks at each other (column).

B batch, T time, C channels, H heads, D = C/H
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Tensor, raw
from nanograd_llm.backend.randomness import next_key
from nanograd_llm.errors import ConfigError, GraphError
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import Dropout, Linear
from nanograd_llm.nn.module import Module
from nanograd_llm.settings import require_int


class SimplifiedSelfAttention(Module):
    """Each token becomes a mean of all tokens, weighted by how much they resemble it.  (B, T, C) -> (B, T, C)

    Resemblance is the dot product; softmax makes each row of resemblances into weights that sum to one.
    """

    def weights(self, x: Any) -> Tensor:
        return ops.softmax(ops.matmul(x, ops.swapaxes(x, axis1=-1, axis2=-2)))  # (B, T, C)·(B, C, T) -> (B, T, T)

    def forward(self, x: Any) -> Tensor:
        return ops.matmul(self.weights(x), x)  # (B, T, T)·(B, T, C) -> (B, T, C)


class SelfAttention(Module):
    """What a token looks for, what it offers and what it passes on are three learned views of it.

    (B, T, n_in) -> (B, T, n_out). Scores are divided by √n_out: a dot product of n_out terms grows like that, and large
    scores would saturate the softmax (Vaswani et al. 2017).
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = False, rng: np.random.Generator | None = None):
        self.query = Linear(n_in, n_out, bias=bias, rng=rng)
        self.key = Linear(n_in, n_out, bias=bias, rng=rng)
        self.value = Linear(n_in, n_out, bias=bias, rng=rng)

    def scores(self, x: Any) -> Tensor:
        q, k = self.query(x), self.key(x)  # (B, T, n_in) -> 2 × (B, T, n_out)
        return q @ k.mT / math.sqrt(q.shape[-1])  # (B, T, n_out)·(B, n_out, T) -> (B, T, T)

    def weights(self, x: Any) -> Tensor:
        return ops.softmax(self.scores(x))

    def forward(self, x: Any) -> Tensor:
        return self.weights(x) @ self.value(x)  # (B, T, T)·(B, T, n_out) -> (B, T, n_out)


class CausalAttention(SelfAttention):
    """A token may look at itself and what came before: scores of later tokens become -inf, their weights 0.

    (B, T, n_in) -> (B, T, n_out). While training, dropout makes the model find more than one place to look at.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        dropout: float = 0.0,
        bias: bool = False,
        rng: np.random.Generator | None = None,
    ):
        super().__init__(n_in, n_out, bias=bias, rng=rng)
        self.dropout = Dropout(dropout)

    def scores(self, x: Any) -> Tensor:
        T = x.shape[-2]
        return ops.where(ops.causal_mask(T, T), super().scores(x), -np.inf)

    def forward(self, x: Any) -> Tensor:
        return self.dropout(self.weights(x)) @ self.value(x)


class MultiHeadList(Module):
    """H heads look at different things at once; their results stand side by side and are mixed by `out`.

    (B, T, C) -> (B, T, C), each head (B, T, C) -> (B, T, D).
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        rng: np.random.Generator | None = None,
    ):
        D = head_size(n_embd, n_head)
        self.heads = [CausalAttention(n_embd, D, dropout=dropout, bias=bias, rng=rng) for _ in range(n_head)]
        self.out = Linear(n_embd, n_embd, bias=bias, rng=rng)

    def weights(self, x: Any) -> Tensor:
        return ops.stack([head.weights(x) for head in self.heads], axis=1)  # H × (B, T, T) -> (B, H, T, T)

    def forward(self, x: Any) -> Tensor:
        return self.out(ops.concatenate([head(x) for head in self.heads], axis=-1))  # H × (B, T, D) -> (B, T, C)


class MultiHeadAttention(Module):
    """All heads at once: one product makes every query, key and value; one op attends in every head.

    (B, T, C) -> (B, T, C). `qkv.weight` is (C, 3C): the columns of the queries of all heads, then keys, then values.
    scale: divides the scores; √D if not given.
    out_std: initial standard deviation of the mixing weights, which feed the residual stream.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        *,
        dropout: float = 0.0,
        scale: float | None = None,
        out_std: float = 0.02,
        rng: np.random.Generator | None = None,
    ):
        D = head_size(n_embd, n_head)
        self.n_head = n_head
        self.sharpness = 1.0 if scale is None else math.sqrt(D) / scale  # of the scores, against those over √D
        self.qkv = Linear(n_embd, 3 * n_embd, std=0.02, rng=rng)
        self.out = Linear(n_embd, n_embd, std=out_std, rng=rng)
        self.dropout = Dropout(dropout)

    def weights(self, x: Any) -> Tensor:
        q, k, _ = self._heads(self._project(x))
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, T, D)·(B, H, D, T) -> (B, H, T, T)
        return ops.softmax(ops.where(ops.causal_mask(*scores.shape[-2:]), scores, -np.inf))

    def forward(self, x: Any, cache: KeyValueCache | None = None) -> Tensor:
        qkv = self._project(x)
        if cache is not None:
            return self.out(self._attend_cached(qkv, cache))
        if self.training and self.dropout.rate:
            y = ops.causal_self_attention(qkv, n_head=self.n_head, dropout=self.dropout.rate, seed=next_key())
        else:
            y = ops.causal_self_attention(qkv, n_head=self.n_head)  # (B, T, 3C) -> (B, T, C)
        return self.dropout(self.out(y))

    def _project(self, x: Any) -> Tensor:
        """Queries, keys and values side by side; the op divides scores by √D, so the queries bring any other scale."""
        qkv = self.qkv(x)  # (B, T, C) -> (B, T, 3C)
        if self.sharpness == 1:
            return qkv
        return qkv * np.repeat([self.sharpness, 1, 1], x.shape[-1]).astype(qkv.dtype)

    def _attend_cached(self, qkv: Any, cache: KeyValueCache) -> np.ndarray:
        """The new tokens' attention to all stored ones; for generation, since a cache holds arrays and no tape."""
        if qkv.requires_grad:
            raise GraphError("a key-value cache lets no gradient through; call the model with one inside no_grad()")
        q, k, v = self._heads(raw(qkv))
        y = ops.causal_attention(q, *cache.extend(k, v))  # (B, H, t, D), (B, H, T, D) -> (B, H, t, D)
        return y.swapaxes(1, 2).reshape(*qkv.shape[:-1], -1)  # (B, H, t, D) -> (B, t, C)

    def _heads(self, qkv: Any) -> Any:
        """(B, T, 3C) -> queries, keys, values, each (B, H, T, D)."""
        B, T, C3 = qkv.shape
        parts = qkv.reshape(B, T, 3, self.n_head, C3 // 3 // self.n_head)
        return [parts[:, :, i].swapaxes(1, 2) for i in range(3)]


def head_size(n_embd: int, n_head: int) -> int:
    """D = n_embd / n_head; ConfigError where the heads do not divide the channels."""
    require_int("n_head", n_head, 1)
    if n_embd % n_head:
        raise ConfigError(f"n_embd must be a multiple of n_head; got n_embd={n_embd}, n_head={n_head}")
    return n_embd // n_head
