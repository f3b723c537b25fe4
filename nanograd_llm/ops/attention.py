"""Causal attention by hand: query rows in blocks, each block stopping at its last visible key.

A block of queries i:j needs the keys before j only, so half of the score matrix is never computed, and what is computed
stays in the cache. Scores lie keys by queries, P = softmax(K Qᵀ/√D) over the keys: NumPy then reduces and broadcasts
along whole rows, and every product is one that BLAS has a fast kernel for. The softmax's rule gives, for each block,

    V̄ += P Ȳ;  P̄ = V Ȳᵀ;  S̄ = P*(P̄ - Σ P̄*P),  Σ P̄*P = Σ Ȳ*Y;  Q̄ = S̄ᵀ K/√D;  K̄ += S̄ Q/√D

B batch, T time, C channels, H heads, D = C/H
"""

from __future__ import annotations

import functools
import math

import numpy as np

from nanograd_llm.autograd.op import keep, op
from nanograd_llm.backend.threads import share_out
from nanograd_llm.errors import ShapeError
from nanograd_llm.ops import composed
from nanograd_llm.ops.composed import dropout_mask, head_size, require_channels
from nanograd_llm.ops.layout import causal_mask

BLOCK = 32  # query rows at a time; fewer waste less on the masked part, and 32 still keep BLAS busy


def _samples(draw):
    yield (draw(2, 3, 4), draw(2, 3, 4), draw(2, 3, 5)), {}
    yield (draw(2, 1, 4), draw(2, 3, 4), draw(2, 3, 4)), {}  # one new query, as in generation
    yield (draw(2, 3, 4), draw(3, 4), draw(2, 1, 3, 4)), {}  # leading axes broadcast
    yield (draw(1, 3, 4), draw(1, 3, 4), draw(1, 3, 4)), {"dropout": 0.4, "seed": (3,)}
    yield (draw(3, 4), draw(3, 4), draw(2, 3, 4)), {"dropout": 0.4, "seed": (3,)}
    yield (draw(BLOCK + 3, 2), draw(BLOCK + 5, 2), draw(BLOCK + 5, 1)), {}


@op(
    "y = softmax(q kᵀ/√D, later keys masked) v",
    "q̄ = s̄ k/√D;  k̄ = s̄ᵀ q/√D;  v̄ = pᵀ ȳ,  s̄ = p*(p̄ - Σ p̄*p),  p̄ = ȳ vᵀ",
    equals=composed.causal_attention,
    samples=_samples,
)
def causal_attention(q, k, v, *, dropout=0.0, seed=(0,), needs):
    """Each query's mean of the values, weighted by how well their keys fit (Vaswani et al. 2017); none from the future.

    q (..., n, D), k (..., m, D), v (..., m, E) -> y (..., n, E)

    With fewer queries than keys the queries are the last ones, as when a cache holds what came before.
    dropout: rate on the weights, masked by `seed`.

    On paper: the first query sees its own key only, so y₀ = v₀ = 4. The second scores 0 and log 3, so its weights are
    1/4 and 3/4 and y₁ = 1/4*4 + 3/4*8 = 7. With ȳ = (2, 1): v̄ = (2 + 1/4, 3/4); in the second row p̄ = (4, 8) with mean
    7, so s̄ = (1/4*(4-7), 3/4*(8-7)) = (-3/4, 3/4) and k̄ is that times the query, q̄₁ = 3/4 log 3.

    >>> import nanograd_llm as ng
    >>> arrays = np.array([[5.0], [1]]), np.log([[1], [3]]), np.array([[4.0], [8]])
    >>> q, k, v = (ng.Tensor(array, requires_grad=True) for array in arrays)
    >>> y = causal_attention(q, k, v)
    >>> y.data.round(9).tolist()
    [[4.0], [7.0]]
    >>> y.backward([[2.0], [1.0]])
    >>> (4 * v.grad).round(9).tolist(), (4 * k.grad).round(9).tolist()
    ([[9.0], [3.0]], [[-3.0], [3.0]])
    """
    require_channels(q)
    if q.shape[-2] > k.shape[-2]:
        raise ShapeError(
            f"causal_attention has {q.shape[-2]} queries for {k.shape[-2]} keys; give at least as many keys"
        )
    if k.shape[-2] != v.shape[-2]:
        raise ShapeError(f"causal_attention has {k.shape[-2]} keys for {v.shape[-2]} values; give one for each")
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (np.broadcast_to(x, lead + x.shape[-2:]) for x in (q, k, v))
    y = np.empty((*lead, q.shape[-2], v.shape[-1]), dtype=np.result_type(q, k, v))
    return keep(y, parts=_attend(q, k, v, y, dropout, seed, any(needs)))


@causal_attention.backward
def causal_attention_backward(dy, y, q, k, v, parts):
    lead = dy.shape[:-2]
    q, k, v = (np.broadcast_to(x, lead + x.shape[-2:]) for x in (q, k, v))
    dq, dk, dv = (np.empty(x.shape, x.dtype) for x in (q, k, v))
    _attend_backward(dy, y, q, k, v, parts, dq, dk, dv)
    return dq, dk, dv


@op(
    "y = merge(causal_attention(q, k, v)),  q, k, v = heads of x",
    "x̄ = the adjoints of q, k, v, side by side",
    equals=composed.causal_self_attention,
    samples=lambda draw: [
        ((draw(2, 3, 12),), {"n_head": 2}),
        ((draw(1, BLOCK + 2, 6),), {"n_head": 1}),
        ((draw(2, 3, 12),), {"n_head": 4, "dropout": 0.4, "seed": (3,)}),
    ],
)
def causal_self_attention(x, *, n_head, dropout=0.0, seed=(0,), needs):
    """Causal attention on queries, keys and values that lie side by side, as one product made them.

    x (B, T, C3) -> y (?)

    x holds q, k and v in thirds of its last axis, each of them n_head heads side by side; y is (B, T, C), C = C3/3.
    Heads are read and written where they lie: no copy is made to split or merge them.
    """
    B, T, C3 = x.shape
    head_size(C3, n_head)
    y = np.empty((B, T, C3 // 3), dtype=x.dtype)
    return keep(y, parts=_attend(*_heads(x, 3, n_head), _heads(y, 1, n_head)[0], dropout, seed, any(needs)))


@causal_self_attention.backward
def causal_self_attention_backward(dy, y, x, parts, n_head):
    dx = np.empty(x.shape, dtype=x.dtype)
    _attend_backward(*(_heads(z, 1, n_head)[0] for z in (dy, y)), *_heads(x, 3, n_head), parts, *_heads(dx, 3, n_head))
    return dx


def _heads(x, parts, n_head):
    """Views of the parts of (B, T, parts * C), each as (B, H, T, D)."""
    B, T, C = x.shape
    return x.reshape(B, T, parts, n_head, C // parts // n_head).transpose(2, 0, 3, 1, 4)


def _attend(q, k, v, y, dropout, seed, recorded):
    """Write the attention into y, its heads shared out over threads where they repay it.

    Returns what `_attend_backward` wants: (heads, their blocks) of each part; no blocks unless `recorded`.
    """
    mask = None
    if dropout:
        mask = dropout_mask((*q.shape[:-1], k.shape[-2]), y.dtype, dropout, seed).swapaxes(-1, -2)

    def work(heads):
        hidden = None if mask is None else _of(mask, heads)
        return heads, _attend_blocks(*(_of(x, heads) for x in (q, k, v, y)), hidden, recorded)

    return share_out(work, *_heads_and_scores(q, k))


def _attend_backward(dy, y, q, k, v, parts, dq, dk, dv):
    """Write the gradients of q, k and v into dq, dk and dv, shared out as the attention was."""

    def work(numbers):
        for heads, blocks in parts[numbers]:
            _backward_blocks(*(_of(x, heads) for x in (dy, y, q, k, v)), blocks, *(_of(x, heads) for x in (dq, dk, dv)))

    share_out(work, len(parts), _heads_and_scores(q, k)[1])


def _heads_and_scores(q, k):
    """How many heads there are to share out, and how many scores."""
    return (q.shape[-3] if q.ndim > 2 else 1), q.size // max(1, q.shape[-1]) * k.shape[-2]


def _of(x, heads):
    """The part of x (..., H, T, D) that belongs to these heads."""
    return x[..., heads, :, :] if x.ndim > 2 else x


def _attend_blocks(q, k, v, y, mask, recorded):
    n, m = q.shape[-2], k.shape[-2]
    scale = 1 / math.sqrt(q.shape[-1])
    blocks = []
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        first, visible = m - n + start, m - n + rows.stop
        qt = np.multiply(q[..., rows, :].swapaxes(-1, -2), scale, order="C")
        p = k[..., :visible, :] @ qt  # (..., keys, D)·(..., D, queries) -> (..., keys, queries)
        _hide_future(p[..., first:, :])
        p -= _largest_key(p.real)
        np.exp(p, out=p)
        p *= 1 / (np.ones(visible, p.dtype) @ p)[..., None, :]  # a product with ones is the fastest sum there is
        kept = None if mask is None else mask[..., :visible, rows]
        np.matmul(_dropped(p, kept).swapaxes(-1, -2), v[..., :visible, :], out=y[..., rows, :])
        if recorded:
            blocks.append((rows, visible, p, kept))
    return blocks


def _backward_blocks(dy, y, q, k, v, blocks, dq, dk, dv):
    scale = 1 / math.sqrt(q.shape[-1])
    if not blocks:
        dk[...] = dv[...] = 0
    for rows, visible, p, kept in reversed(blocks):
        dyb, qb = dy[..., rows, :], q[..., rows, :]
        ds = v[..., :visible, :] @ np.multiply(dyb.swapaxes(-1, -2), scale, order="C")
        if kept is not None:
            ds *= kept
        ds -= (np.einsum("...td,...td->...t", dyb, y[..., rows, :]) * scale)[..., None, :]
        ds *= p
        np.matmul(ds.swapaxes(-1, -2), k[..., :visible, :], out=dq[..., rows, :])
        if visible == k.shape[-2]:  # the last queries, which come first here, see every key
            np.matmul(_dropped(p, kept), dyb, out=dv)
            np.matmul(ds, qb, out=dk)
        else:
            dv[..., :visible, :] += _dropped(p, kept) @ dyb
            dk[..., :visible, :] += ds @ qb


@functools.lru_cache(maxsize=16)
def _bounds(n, dtype):
    """(keys, queries), what a score may be at most: -inf where the key comes after the query."""
    bounds = np.where(causal_mask(n, n).T, np.inf, -np.inf).astype(dtype)
    bounds.flags.writeable = False
    return bounds


def _hide_future(scores):
    """Make the scores of later keys -inf, in place, also where they are NaN; a minimum is faster than a masked copy."""
    np.fmin(scores, _bounds(scores.shape[-1], scores.real.dtype), out=scores)


def _largest_key(scores):
    """The maximum over the keys, by halves that overlap where they are odd: NumPy's own takes thrice as long."""
    while scores.shape[-2] > 1:
        half = (scores.shape[-2] + 1) // 2
        scores = np.maximum(scores[..., :half, :], scores[..., -half:, :])
    return scores


def _dropped(p, kept):
    return p if kept is None else p * kept
