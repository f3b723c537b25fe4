"""Attention as a lesson in six steps: each adds one idea to the step before.

1. SimplifiedSelfAttention   every token attends to every token; nothing is learned
2. SelfAttention             queries, keys and values are learned
3. CausalAttention           no token attends to a later one; dropout on the weights
4. MultiHeadList             several heads, each with fewer channels, are concatenated
   MultiHeadAttention        the same with all heads in one batched product; GPT is made of this
5. ... with causal=False     every token attends to every token again, as in BERT;
   ... and a key_mask        but none attends to padding, which fills up the shorter texts of a batch
6. ... with cross=True       queries come from one text, keys and values from another: a translation and its source

Where the added idea has no effect (weights that are identities, the last token of a causal text, a single head, texts
of equal length, a text that is its own context) a step computes the same numbers as the step before it, and the two
forms of step 4 always agree: tests compare them. Every step has `weights(x)`, its attention weights: how much each
token (row) attends to each token (column).

B batch, T time, S time of the context, C channels, H heads, D = C/H
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.tensor import Tensor, array_of
from nanograd_llm.backend.randomness import next_key
from nanograd_llm.errors import ConfigError, GraphError, ShapeError
from nanograd_llm.nn.cache import KeyValueCache
from nanograd_llm.nn.layers import Dropout, Linear
from nanograd_llm.nn.module import Module
from nanograd_llm.ops.composed import heads_of, split_heads
from nanograd_llm.settings import require_int


class SimplifiedSelfAttention(Module):
    """Each token becomes a mean of all tokens, weighted by similarity.  (B, T, C) -> (B, T, C)

    The similarity of two tokens is their dot product; softmax turns each row of them into weights that sum to one.
    """

    def weights(self, x: Any) -> Tensor:
        """The attention weights.  x (B, T, C) -> (B, T, T)"""
        return ops.softmax(ops.matmul(x, ops.swapaxes(x, axis1=-1, axis2=-2)))  # (B, T, C)·(B, C, T) -> (B, T, T)

    def forward(self, x: Any) -> Tensor:
        return ops.matmul(self.weights(x), x)  # (B, T, T)·(B, T, C) -> (B, T, C)


class SelfAttention(Module):
    """Attention with learned queries, keys and values: what a token looks for, what it offers, what it passes on.

    (B, T, n_in) -> (B, T, n_out). Scores are divided by √n_out, because the size of a dot product of n_out random terms
    grows like that, and large scores would saturate the softmax (Vaswani et al. 2017).
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = False, rng: np.random.Generator | None = None):
        self.query = Linear(n_in, n_out, bias=bias, rng=rng)
        self.key = Linear(n_in, n_out, bias=bias, rng=rng)
        self.value = Linear(n_in, n_out, bias=bias, rng=rng)

    def scores(self, x: Any) -> Tensor:
        """What the softmax is applied to.  x (B, T, n_in) -> (B, T, T)"""
        q, k = self.query(x), self.key(x)  # (B, T, n_in) -> 2 × (B, T, n_out)
        return q @ k.mT / math.sqrt(q.shape[-1])  # (B, T, n_out)·(B, n_out, T) -> (B, T, T)

    def weights(self, x: Any) -> Tensor:
        """The attention weights, before dropout.  x (B, T, n_in) -> (B, T, T)"""
        return ops.softmax(self.scores(x))

    def forward(self, x: Any) -> Tensor:
        return self.weights(x) @ self.value(x)  # (B, T, T)·(B, T, n_out) -> (B, T, n_out)


class CausalAttention(SelfAttention):
    """A token attends to itself and to earlier tokens only: scores of later tokens are -inf, so their weights are 0.

    (B, T, n_in) -> (B, T, n_out). In training, dropout on the weights keeps the model from relying on single tokens.
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
    """H heads attend in parallel; their results are concatenated and combined by the linear layer `out`.

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
        """The attention weights of all heads, before dropout.  x (B, T, C) -> (B, H, T, T)"""
        return ops.stack([head.weights(x) for head in self.heads], axis=1)  # H × (B, T, T) -> (B, H, T, T)

    def forward(self, x: Any) -> Tensor:
        return self.out(ops.concatenate([head(x) for head in self.heads], axis=-1))  # H × (B, T, D) -> (B, T, C)


class MultiHeadAttention(Module):
    """All heads at once: one product computes all queries, keys and values, and one op attends in all heads.

    (B, T, C) -> (B, T, C). `qkv.weight` is (C, 3C): the columns of all heads' queries, then keys, then values.

    causal: no token attends to a later one of its own text.
    cross: queries come from x, keys and values from the whole of a context (B, S, C); in place of `qkv` there are the
        layers `q` (C, C) and `kv` (C, 2C).
    scale: divides the scores; √D by default.
    dropout: rate on the attention weights and on the result, in training.
    out_std: initial standard deviation of `out.weight`, whose result is added to the residual stream.

    Raises ConfigError unless n_head divides n_embd.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        *,
        causal: bool = True,
        cross: bool = False,
        dropout: float = 0.0,
        scale: float | None = None,
        out_std: float = 0.02,
        rng: np.random.Generator | None = None,
    ):
        D = head_size(n_embd, n_head)
        self.n_head = n_head
        self.causal, self.cross = causal and not cross, cross
        self.scale = math.sqrt(D) if scale is None else scale
        if cross:
            self.q = Linear(n_embd, n_embd, std=0.02, rng=rng)
            self.kv = Linear(n_embd, 2 * n_embd, std=0.02, rng=rng)
        else:
            self.qkv = Linear(n_embd, 3 * n_embd, std=0.02, rng=rng)
        self.out = Linear(n_embd, n_embd, std=out_std, rng=rng)
        self.dropout = Dropout(dropout)

    def weights(self, x: Any, context: Any = None, key_mask: Any = None) -> Tensor:
        """The attention weights, before dropout; arguments as for `forward`.  x (B, T, C) -> (B, H, T, S)"""
        q, k, _ = split_heads(*self._project(x, context), self.n_head)
        scores = q @ k.mT / self.scale  # (B, H, T, D)·(B, H, D, S) -> (B, H, T, S)
        if self.causal:
            scores = ops.where(ops.causal_mask(*scores.shape[-2:]), scores, -np.inf)
        if key_mask is not None:
            scores = ops.where(array_of(key_mask)[:, None, None], scores, -np.inf)  # (B, S) -> (B, 1, 1, S)
        return ops.softmax(scores)

    def forward(
        self,
        x: Any,
        context: Any = None,
        key_mask: Any = None,
        query_mask: Any = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C), or (N, C) -> (N, C) of the real tokens only, so that no padding is computed.

        context (B, S, C): required with cross=True, and refused without it; (M, C) has its real tokens only.
        key_mask (B, S): True where a key, of the context or of x itself, is real; a token that sees none gets zeros.
        query_mask (B, T): with cross=True, which places the tokens of an x (N, C) have. Else key_mask says so.
        cache: stores the keys and values; the new tokens attend to all that are stored. With cross=True the first call
            stores those of the context, and later calls need no context. Only inside `no_grad()`.

        Raises ShapeError for a context that is missing or not expected, GraphError for a cache while recording.
        """
        if cache is not None:
            return self.out(self._attend_cached(x, context, key_mask, cache))
        dropout = {"dropout": self.dropout.rate, "seed": next_key()} if self.training and self.dropout.rate else {}
        kind = {"n_head": self.n_head, "causal": self.causal, "scale": self.scale, **dropout}
        y = ops.multi_head_attention(*self._project(x, context), key_mask, query_mask, **kind)
        return self.dropout(self.out(y))

    def _project(self, x: Any, context: Any) -> tuple[Tensor, Tensor | None]:
        """(qkv, None): queries, keys and values in one Tensor; with cross=True (q, kv), where kv is of the context."""
        if not self.cross and context is None:
            return self.qkv(x), None  # (B, T, C) -> (B, T, 3C)
        if self.cross and context is not None:
            return self.q(x), self.kv(context)  # (B, T, C), (B, S, C) -> (B, T, C), (B, S, 2C)
        if self.cross:
            raise ShapeError("this attention was made with cross=True and needs a context (B, S, C)")
        raise ShapeError("this attention was made without cross=True and takes no context")

    def _attend_cached(self, x: Any, context: Any, key_mask: Any, cache: KeyValueCache) -> np.ndarray:
        """The new tokens' attention to all stored keys, for generation: a cache has arrays and no tape."""
        context_is_stored = self.cross and cache.length > 0
        q, kv = (self.q(x), None) if context_is_stored else self._project(x, context)
        if q.requires_grad or (kv is not None and kv.requires_grad):
            raise GraphError("a key-value cache has no gradient; call the model with a cache inside no_grad()")
        if context_is_stored:
            (q,), stored = heads_of(array_of(q), 1, self.n_head), cache.stored()
        else:
            q, *new = split_heads(array_of(q), array_of(kv), self.n_head)
            stored = cache.extend(*new)
        key_mask = None if key_mask is None else array_of(key_mask)[:, None]  # (B, S) -> (B, 1, S), for every head
        y = ops.attention(q, *stored, key_mask, causal=self.causal, scale=self.scale)  # (B, H, t, D), (B, H, S, D)
        return y.swapaxes(1, 2).reshape(x.shape)  # (B, H, t, D) -> (B, t, C)


def head_size(n_embd: int, n_head: int) -> int:
    """D = n_embd / n_head. Raises ConfigError unless n_head divides n_embd."""
    require_int("n_head", n_head, 1)
    if n_embd % n_head:
        raise ConfigError(f"n_embd must be a multiple of n_head; got n_embd={n_embd}, n_head={n_head}")
    return n_embd // n_head


# Modules and inputs for the gradient check of each class.
SimplifiedSelfAttention.specimens = lambda draw: [(SimplifiedSelfAttention(), (draw(2, T, 3),)) for T in (2, 3)]
# Without biases: softmax does not depend on the bias of the keys, so its gradient would be rounding only.
SelfAttention.specimens = lambda draw: [(SelfAttention(n, 3), (draw(2, 3, n),)) for n in (1, 2)]
CausalAttention.specimens = lambda draw: [(CausalAttention(n, 2, dropout=0.2), (draw(2, 3, n),)) for n in (1, 3)]
MultiHeadList.specimens = lambda draw: [
    (MultiHeadList(C, H, dropout=0.2, bias=False), (draw(2, T, C),)) for C, H, T in [(3, 1, 3), (2, 2, 2), (6, 3, 2)]
]
MultiHeadAttention.specimens = lambda draw: [
    (MultiHeadAttention(3, 1, dropout=0.2), (draw(2, 3, 3),)),
    (MultiHeadAttention(4, 2, dropout=0.2, scale=2.5), (draw(2, 2, 4),)),
    (MultiHeadAttention(3, 3), (draw(2, 3, 3),)),
    (MultiHeadAttention(4, 2, causal=False), (draw(2, 3, 4), None, ops.sequence_mask([3, 1], 3))),
    (MultiHeadAttention(4, 2, dropout=0.2), (draw(2, 3, 4), None, np.array([[False, True, True], [True] * 3]))),
    (MultiHeadAttention(4, 2, cross=True), (draw(2, 2, 4), draw(2, 3, 4))),
    (MultiHeadAttention(2, 1, cross=True, dropout=0.2), (draw(2, 3, 2), draw(2, 2, 2), ops.sequence_mask([2, 1], 2))),
    (MultiHeadAttention(4, 2, dropout=0.2), (draw(4, 4), None, ops.sequence_mask([3, 1], 3))),
    (
        MultiHeadAttention(2, 2, cross=True),
        (draw(3, 2), draw(3, 2), ops.sequence_mask([2, 1], 2), ops.sequence_mask([1, 2], 2)),
    ),
]
