"""Attention by hand: query rows in blocks, each block stopping at the last key that one of its queries sees.

Causal attention lets a block of queries i:j see the keys before j only, so half of the score matrix is never computed;
keys at the end that are padding in every sequence are never read. What is computed stays in the processor's cache.
Scores lie keys by queries, P = softmax(K Qᵀ/√D) over the keys: NumPy then reduces and broadcasts along whole rows, and
every product is one that BLAS has a fast kernel for. The softmax's rule gives, for each block,

    V̄ += P Ȳ;  P̄ = V Ȳᵀ;  S̄ = P*(P̄ - Σ P̄*P),  Σ P̄*P = Σ Ȳ*Y;  Q̄ = S̄ᵀ K/√D;  K̄ += S̄ Q/√D

B batch, T time, S time of the keys, C channels, H heads, D = C/H; n queries, m keys
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import keep, op
from nanograd_llm.backend.arrays import xp
from nanograd_llm.backend.threads import share_out
from nanograd_llm.errors import DtypeError, ShapeError
from nanograd_llm.ops import composed
from nanograd_llm.ops.composed import dropout_mask, head_size, require_channels
from nanograd_llm.ops.layout import causal_mask

# Query rows at a time in causal attention; fewer waste less on the masked part, and 32 still keep BLAS busy. Where no
# block stops early, twice as many are faster.
BLOCK = 32


def _samples(draw):
    yield (draw(2, 3, 4), draw(2, 3, 4), draw(2, 3, 5)), {"causal": True}
    yield (draw(2, 3, 4), draw(2, 2, 4), draw(2, 2, 5)), {"causal": False}
    yield (draw(2, 1, 4), draw(2, 3, 4), draw(2, 3, 4)), {"causal": True}  # one new query, as in generation
    yield (draw(2, 3, 4), draw(3, 4), draw(2, 1, 3, 4)), {"causal": True}  # leading axes broadcast
    yield (draw(3, 2, 3), draw(1, 4, 3), draw(3, 4, 2), PADDED), {"causal": False, "scale": 0.7}
    yield (draw(3, 3), draw(4, 3), draw(2, 4, 2), PADDED[:, None]), {"causal": True}
    yield (draw(1, 3, 4), draw(1, 3, 4), draw(1, 3, 4)), {"causal": True, "dropout": 0.4, "seed": (3,)}
    yield (draw(3, 4), draw(4, 4), draw(3, 4, 4), PADDED[:1]), {"causal": False, "dropout": 0.4, "seed": (3,)}
    yield (draw(BLOCK + 3, 2), draw(BLOCK + 5, 2), draw(BLOCK + 5, 1)), {"causal": True}
    yield (draw(2, 2 * BLOCK + 1, 1), draw(2, 3, 1), draw(2, 3, 1), PADDED[:2, :3]), {"causal": False}


PADDED = np.array([[True, True, False, False], [False, True, True, True], [False] * 4])


@op(
    "y = softmax(q kᵀ/√D, hidden keys at -inf) v",
    "q̄ = s̄ k/√D;  k̄ = s̄ᵀ q/√D;  v̄ = pᵀ ȳ,  s̄ = p*(p̄ - Σ p̄*p),  p̄ = ȳ vᵀ",
    equals=composed.attention,
    constants=("key_mask",),
    samples=_samples,
)
def attention(q, k, v, key_mask=None, *, causal, scale=None, dropout=0.0, seed=(0,), needs):
    """Each query's mean of the values, weighted by how well their keys fit (Vaswani et al. 2017).

    q (..., n, D), k (..., m, D), v (..., m, E), key_mask (..., m) -> y (..., n, E)

    causal: no query sees a later key. With fewer queries than keys the queries are the last ones, as when a cache holds
        what came before; more are refused.
    key_mask: booleans, True where the key is real, False where it is padding; see `sequence_mask`. Whatever finite
        numbers stand in padding, no result and no other gradient depends on them, and their own gradient is 0. A query
        that sees no key at all gives zeros.
    scale: divides the scores; √D if not given.
    dropout: rate on the weights, masked by `seed`.

    On paper: the first query sees its own key only, so y₀ = v₀ = 4. The second scores 0 and log 3, so its weights are
    1/4 and 3/4 and y₁ = 1/4*4 + 3/4*8 = 7. With ȳ = (2, 1): v̄ = (2 + 1/4, 3/4); in the second row p̄ = (4, 8) with mean
    7, so s̄ = (1/4*(4-7), 3/4*(8-7)) = (-3/4, 3/4) and k̄ is that times the query, q̄₁ = 3/4 log 3.

    >>> import nanograd_llm as ng
    >>> arrays = np.array([[5.0], [1]]), np.log([[1], [3]]), np.array([[4.0], [8]])
    >>> q, k, v = (ng.Tensor(array, requires_grad=True) for array in arrays)
    >>> y = attention(q, k, v, causal=True)
    >>> y.data.round(9).tolist()
    [[4.0], [7.0]]
    >>> y.backward([[2.0], [1.0]])
    >>> (4 * v.grad).round(9).tolist(), (4 * k.grad).round(9).tolist()
    ([[9.0], [3.0]], [[-3.0], [3.0]])
    """
    _, m, values = (x.shape[-2] for x in (q, k, v))
    if m != values:
        raise ShapeError(f"attention has {m} keys for {values} values; give one for each")
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)), () if key_mask is None else key_mask.shape[:-1])
    q, k, v = (np.broadcast_to(x, lead + x.shape[-2:]) for x in (q, k, v))
    y = np.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]), dtype=np.result_type(q, k, v), order="C")
    return keep(y, parts=_attend(q, k, v, key_mask, y, causal, scale, dropout, seed, any(needs)))


@attention.backward
def attention_backward(dy, y, q, k, v, parts, scale):
    q, k, v = (np.broadcast_to(x, dy.shape[:-2] + x.shape[-2:]) for x in (q, k, v))
    dq, dk, dv = (np.empty_like(x, order="C") for x in (q, k, v))
    _attend_backward(dy, y, q, k, v, parts, scale, dq, dk, dv)
    return dq, dk, dv


@op(
    "y = merge(attention(q, k, v)),  q, k, v = heads of x; or q = heads of x and k, v = heads of kv",
    "x̄, k̄v̄ = the adjoints of q, k, v, side by side",
    equals=composed.multi_head_attention,
    constants=("key_mask",),
    samples=lambda draw: [
        ((draw(2, 3, 12), None, None), {"n_head": 2, "causal": True}),
        ((draw(1, BLOCK + 2, 6), None, None), {"n_head": 1, "causal": True}),
        ((draw(2, 3, 12), None, None), {"n_head": 4, "causal": True, "dropout": 0.4, "seed": (3,)}),
        ((draw(3, 4, 6), None, PADDED), {"n_head": 2, "causal": False, "scale": 0.7}),
        ((draw(3, 4, 6), None, PADDED), {"n_head": 1, "causal": True}),
        ((draw(2, 3, 4), draw(2, 2, 8), None), {"n_head": 2, "causal": False}),
        ((draw(3, 2, 2), draw(3, 4, 4), PADDED), {"n_head": 2, "causal": False, "dropout": 0.4, "seed": (3,)}),
    ],
)
def multi_head_attention(x, kv=None, key_mask=None, *, n_head, causal, scale=None, dropout=0.0, seed=(0,), needs):
    """Attention in n_head heads that lie side by side: of a sequence to itself, or to another one.

    x (B, T, W), kv (B, S, U), key_mask (B, S) -> y (?)

    Without kv, x holds queries, keys and values, each C wide, side by side as one product made them: W = 3C, S = T.
    With it, x holds the queries (W = C), and kv keys and values of another sequence (U = 2C). y is (B, T, C).
    Heads are read and written where they lie: no copy is made to split or merge them. The rest is as in `attention`.
    """
    width = n_head * head_size(x, kv, key_mask, n_head)
    dtype = np.result_type(x) if kv is None else np.result_type(x, kv)
    y = np.empty_like(x, shape=(*x.shape[:2], width), dtype=dtype, order="C")
    key_mask = None if key_mask is None else key_mask[:, None]  # (B, S) -> (B, 1, S), for all heads
    heads = (*_heads(x, kv, n_head), key_mask, _views(y, 1, n_head)[0])
    return keep(y, parts=_attend(*heads, causal, scale, dropout, seed, any(needs)))


@multi_head_attention.backward
def multi_head_attention_backward(dy, y, x, kv, parts, n_head, scale):
    dx, dkv = (None if z is None else np.empty_like(z, order="C") for z in (x, kv))
    dy, y = (_views(z, 1, n_head)[0] for z in (dy, y))
    _attend_backward(dy, y, *_heads(x, kv, n_head), parts, scale, *_heads(dx, dkv, n_head))
    return dx, dkv


def sequence_mask(lengths: Any, size: int) -> np.ndarray:
    """True at the first lengths[b] of `size` places: the key_mask of sequences padded at their ends.  (B) -> (B, size)

    Raises DtypeError for lengths that are not integers, ShapeError for one that is negative or larger than size.

    >>> sequence_mask([3, 1], 3).tolist()
    [[True, True, True], [True, False, False]]
    """
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu":
        raise DtypeError(f"lengths are integers, how many places of each sequence are real; got {lengths.dtype}")
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= size:
        raise ShapeError(f"lengths lie between 0 and {size}; got {lengths.min()} to {lengths.max()}")
    return np.arange(size) < lengths[..., None]


def _heads(x, kv, n_head):
    """Views of queries, keys and values, each (B, H, T, D)."""
    return _views(x, 3, n_head) if kv is None else (*_views(x, 1, n_head), *_views(kv, 2, n_head))


def _views(x, parts, n_head):
    """Views of the parts of (B, T, parts * C), each as (B, H, T, D)."""
    B, T, C = x.shape
    return x.reshape(B, T, parts, n_head, C // parts // n_head).transpose(2, 0, 3, 1, 4)


def _attend(q, k, v, key_mask, y, causal, scale, dropout, seed, recorded):
    """Write the attention into y, its heads shared out over threads where they repay it.

    Returns what `_attend_backward` wants: (heads, their blocks) of each part; no blocks unless `recorded`.
    """
    n, m = q.shape[-2], k.shape[-2]
    require_channels(q)
    if causal and n > m:
        raise ShapeError(f"causal attention has {n} queries for {m} keys; give at least as many keys")
    read, hidden = _keys_to_read(key_mask, m, y)
    kept = dropout_mask((*q.shape[:-1], m), y.dtype, dropout, seed).swapaxes(-1, -2) if dropout else None
    scale = 1 / (scale or math.sqrt(q.shape[-1]))

    def work(heads):
        parts = (None if x is None else _of(x, heads) for x in (q, k[..., :read, :], v[..., :read, :], y, hidden, kept))
        return heads, _attend_blocks(*parts, m - n if causal else None, scale, recorded)

    return share_out(work, *_heads_and_scores(q, k))


def _attend_backward(dy, y, q, k, v, parts, scale, dq, dk, dv):
    """Write the gradients of q, k and v into dq, dk and dv, shared out as the attention was."""
    scale = 1 / (scale or math.sqrt(q.shape[-1]))

    def work(numbers):
        for heads, blocks in parts[numbers]:
            arrays = (_of(x, heads) for x in (dy, y, q, k, v, dq, dk, dv))
            _backward_blocks(*arrays, blocks, scale)

    share_out(work, len(parts), _heads_and_scores(q, k)[1])


def _heads_and_scores(q, k):
    """How many heads there are to share out, and how many scores."""
    return (q.shape[-3] if q.ndim > 2 else 1), q.size // max(1, q.shape[-1]) * k.shape[-2]


def _of(x, heads):
    """The part of x (..., H, T, D) that belongs to these heads."""
    return x[..., heads, :, :] if x.ndim > 2 else x


def _attend_blocks(q, k, v, y, hidden, kept, ahead, scale, recorded):
    """ahead: how many keys come before the first query's own; None where each query sees every key."""
    n, m = q.shape[-2], k.shape[-2]
    if not m:
        y[...] = 0
        return []
    arrays = xp(q)
    padded_from = m if hidden is None else m - hidden.shape[-2]
    size = BLOCK if ahead is not None else 2 * BLOCK
    blocks = []
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        visible = m if ahead is None else min(m, ahead + rows.stop)
        qt = np.multiply(q[..., rows, :].swapaxes(-1, -2), scale, order="C")
        p = k[..., :visible, :] @ qt  # (..., keys, D)·(..., D, queries) -> (..., keys, queries)
        if ahead is not None:
            _bound(p[..., ahead + start :, :], _future(rows.stop - start, p.real.dtype, arrays))
        padded = visible > padded_from
        if padded:
            _bound(p[..., padded_from:, :], hidden)
        largest = _largest_key(p.real)
        p -= np.maximum(largest, np.finfo(largest.dtype).min) if padded else largest  # -inf - -inf is NaN
        np.exp(p, out=p)
        total = arrays.ones(visible, p.dtype) @ p  # a product with ones is the fastest sum there is
        if padded:
            total[total == 0] = 1  # of a query that sees no key: its weights stay 0
        p *= 1 / total[..., None, :]
        mask = None if kept is None else kept[..., :visible, rows]
        np.matmul(_dropped(p, mask).swapaxes(-1, -2), v[..., :visible, :], out=y[..., rows, :])
        if recorded:
            blocks.append((rows, visible, p, mask))
    return blocks


def _backward_blocks(dy, y, q, k, v, dq, dk, dv, blocks, scale):
    if not blocks:
        dq[...] = dk[...] = dv[...] = 0
        return
    read = blocks[-1][1]  # the last queries, which come first here, see most keys
    dk[..., read:, :] = dv[..., read:, :] = 0
    for number, (rows, visible, p, mask) in enumerate(reversed(blocks)):
        dyb, qb = dy[..., rows, :], q[..., rows, :]
        ds = v[..., :visible, :] @ np.multiply(dyb.swapaxes(-1, -2), scale, order="C")
        if mask is not None:
            ds *= mask
        ds -= (np.einsum("...td,...td->...t", dyb, y[..., rows, :]) * scale)[..., None, :]
        ds *= p
        np.matmul(ds.swapaxes(-1, -2), k[..., :visible, :], out=dq[..., rows, :])
        if number == 0:
            np.matmul(_dropped(p, mask), dyb, out=dv[..., :visible, :])
            np.matmul(ds, qb, out=dk[..., :visible, :])
        else:
            dv[..., :visible, :] += _dropped(p, mask) @ dyb
            dk[..., :visible, :] += ds @ qb


def _keys_to_read(key_mask, m, y):
    """(read, hidden): the keys from `read` on are padding everywhere, and what bounds the last ones before.

    hidden (..., keys, 1) is -inf where a key is padding and inf where it is not, from the first key that is padding
    anywhere; None where none is.
    """
    if key_mask is None:
        return m, None
    if key_mask.dtype != bool:
        raise DtypeError(f"key_mask is boolean, True where a key is real; got {key_mask.dtype}; write key_mask != 0")
    if key_mask.shape[-1] != m:
        raise ShapeError(f"key_mask {key_mask.shape} has {key_mask.shape[-1]} places for {m} keys; give one for each")
    sequences = tuple(range(key_mask.ndim - 1))
    real, padding = np.flatnonzero(key_mask.any(sequences)), np.flatnonzero(~key_mask.all(sequences))
    read = int(real[-1]) + 1 if real.size else 0
    first = int(padding[0]) if padding.size else read
    if first >= read:
        return read, None
    hidden = np.where(key_mask[..., first:read, None], np.inf, -np.inf).astype(y.real.dtype)
    return read, np.broadcast_to(hidden, (*y.shape[:-2], *hidden.shape[-2:]))


@functools.lru_cache(maxsize=16)
def _future(n, dtype, arrays):
    """(keys, queries), what a score may be at most: -inf where the key comes after the query."""
    return arrays.asarray(np.where(causal_mask(n, n).T, np.inf, -np.inf), dtype=dtype)


def _bound(scores, bounds):
    """Make scores of hidden keys -inf, in place, also where they are NaN; a minimum is faster than a masked copy."""
    np.fmin(scores, bounds[..., : scores.shape[-2], :], out=scores)


def _largest_key(scores):
    """The maximum over the keys, by halves that overlap where they are odd: NumPy's own takes three times as long."""
    while scores.shape[-2] > 1:
        half = (scores.shape[-2] + 1) // 2
        scores = np.maximum(scores[..., :half, :], scores[..., -half:, :])
    return scores


def _dropped(p, mask):
    return p if mask is None else p * mask
