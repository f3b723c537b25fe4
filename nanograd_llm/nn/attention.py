"""The attention family, as a lesson: each class adds one idea to the one above it.

1. SimplifiedSelfAttention   every token looks at every other; nothing is learned
2. SelfAttention             learned queries, keys and values say what is looked for, offered and passed on
3. CausalAttention           no token looks into the future; dropout on the weights
4. MultiHeadList             several such heads, each with a small space of its own, side by side
   MultiHeadAttention        the same, all heads in one batched product; this is what GPT is made of
5. ... with causal=False     every token looks at every other again, as BERT reads;
   ... and a key_mask        but none looks at padding, which fills up the shorter texts of a batch
6. ... with cross=True       queries come from one text, keys and values from another: a translation and its source

Where the added idea is idle (weights that are identities, a last token that has no future, a single head, texts of one
length, a text that looks at itself) a stage computes the numbers of the one before it, and both forms of the fourth
always agree: tests hold them to it. Every stage has `weights(x)`, the attention weights it would use: how much each
token (row) looks at each other (column).

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

    causal: no token sees a later one of its own text.
    cross: queries come from x, keys and values from a context (B, S, C), all of which is seen; instead of `qkv` there
        are `q`, (C, C), and `kv`, (C, 2C).
    scale: divides the scores; √D if not given.
    out_std: initial standard deviation of the mixing weights, which feed the residual stream.
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
        q, k, _ = split_heads(*self._project(x, context), self.n_head)
        scores = q @ k.mT / self.scale  # (B, H, T, D)·(B, H, D, S) -> (B, H, T, S)
        if self.causal:
            scores = ops.where(ops.causal_mask(*scores.shape[-2:]), scores, -np.inf)
        if key_mask is not None:
            scores = ops.where(array_of(key_mask)[:, None, None], scores, -np.inf)  # (B, S) -> (B, 1, 1, S)
        return ops.softmax(scores)

    def forward(self, x: Any, context: Any = None, key_mask: Any = None, cache: KeyValueCache | None = None) -> Tensor:
        """key_mask (B, S): True where a key, of the context or of x itself, is real; a token that sees none gets zeros.

        cache: new tokens look at all that is stored there as well. With cross it stores keys and values of the context
            at the first call; from then on the context is not read, and need not be given.
        """
        if cache is not None:
            return self.out(self._attend_cached(x, context, key_mask, cache))
        noise = {"dropout": self.dropout.rate, "seed": next_key()} if self.training and self.dropout.rate else {}
        y = ops.multi_head_attention(
            *self._project(x, context), key_mask, n_head=self.n_head, causal=self.causal, scale=self.scale, **noise
        )
        return self.dropout(self.out(y))

    def _project(self, x: Any, context: Any) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values side by side; or queries, and keys and values of the context."""
        if not self.cross and context is None:
            return self.qkv(x), None  # (B, T, C) -> (B, T, 3C)
        if self.cross and context is not None:
            return self.q(x), self.kv(context)  # (B, T, C), (B, S, C) -> (B, T, C), (B, S, 2C)
        made, given = ("with", "no") if self.cross else ("without", "a")
        raise ShapeError(f"this attention is made {made} cross=True, and got {given} context (B, S, C)")

    def _attend_cached(self, x: Any, context: Any, key_mask: Any, cache: KeyValueCache) -> np.ndarray:
        """The new tokens' attention to all that is stored; for generation, since a cache holds arrays and no tape."""
        is_known = self.cross and cache.length > 0
        q, kv = (self.q(x), None) if is_known else self._project(x, context)
        if q.requires_grad or (kv is not None and kv.requires_grad):
            raise GraphError("a key-value cache lets no gradient through; call the model with one inside no_grad()")
        if is_known:
            (q,), stored = heads_of(array_of(q), 1, self.n_head), cache.stored()
        else:
            q, *new = split_heads(array_of(q), array_of(kv), self.n_head)
            stored = cache.extend(*new)
        key_mask = None if key_mask is None else array_of(key_mask)[:, None]  # (B, S) -> (B, 1, S), for every head
        y = ops.attention(q, *stored, key_mask, causal=self.causal, scale=self.scale)  # (B, H, t, D), (B, H, S, D)
        return y.swapaxes(1, 2).reshape(x.shape)  # (B, H, t, D) -> (B, t, C)


def head_size(n_embd: int, n_head: int) -> int:
    """D = n_embd / n_head; ConfigError where the heads do not divide the channels."""
    require_int("n_head", n_head, 1)
    if n_embd % n_head:
        raise ConfigError(f"n_embd must be a multiple of n_head; got n_embd={n_embd}, n_head={n_head}")
    return n_embd // n_head


# Inputs to check the gradients of each class with.
SimplifiedSelfAttention.specimens = lambda draw: [(SimplifiedSelfAttention(), (draw(2, T, 3),)) for T in (2, 3)]
# Without biases: softmax cancels a key's, and nothing but rounding is left of its gradient.
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
]
