"""Attention by hand, in blocks of queries: each block uses only the keys that one of its queries can see.

A causal block of queries i:j sees only the keys before j, so half of the score matrix is not computed. Trailing keys
that are padding in every sequence are not read. A block's scores fit in the processor's cache. They are stored as keys
by queries, P = softmax(K Qᵀ/√D) over the keys: NumPy then reduces and broadcasts along whole rows, and BLAS has a fast
kernel for every product. The softmax's rule gives, for each block,

    V̄ += P Ȳ;  P̄ = V Ȳᵀ;  S̄ = P*(P̄ - Σ P̄*P),  Σ P̄*P = Σ Ȳ*Y;  Q̄ = S̄ᵀ K/√D;  K̄ += S̄ Q/√D

B batch, T time, S time of a context, C channels, H heads, D = C/H; n queries, m keys
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import keep, op
from nanograd_llm.backend.arrays import beside, constant, to_host, xp
from nanograd_llm.backend.kernels import on_gpu
from nanograd_llm.backend.threads import share_out
from nanograd_llm.errors import DtypeError, ShapeError
from nanograd_llm.ops import composed
from nanograd_llm.ops.composed import dropout_mask, head_size, heads_of, packed, score_divisor, split_heads, unpacked
from nanograd_llm.ops.layout import causal_mask

BLOCK = 32  # queries of a causal block: smaller blocks compute fewer hidden scores, larger ones use BLAS better
WHOLE_BLOCK = 64  # of one where every query sees every key, and where there are no more keys, or more than MANY
MANY = 512  # up to so many keys BLAS multiplies a block as it lies, without rearranging it first

PADDED = np.array([[True, True, False, False], [False, True, True, True], [False] * 4])  # for samples


def _samples(draw):
    causal, full, dropped = {"causal": True}, {"causal": False}, {"dropout": 0.4, "seed": (3,)}
    yield (draw(2, 3, 4), draw(2, 3, 4), draw(2, 3, 5)), causal
    yield (draw(2, 3, 4), draw(2, 2, 4), draw(2, 2, 5)), full
    yield (draw(2, 1, 4), draw(2, 3, 4), draw(2, 3, 4)), causal  # one new query, as in generation
    yield (draw(2, 3, 4), draw(3, 4), draw(2, 1, 3, 4)), causal  # leading axes broadcast
    yield (draw(3, 2, 3), draw(1, 4, 3), draw(3, 4, 2), PADDED), {**full, "scale": 0.7}
    yield (draw(3, 3), draw(4, 3), draw(2, 4, 2), PADDED[:, None]), causal
    yield (draw(1, 3, 4), draw(1, 3, 4), draw(1, 3, 4)), {**causal, **dropped}
    yield (draw(3, 4), draw(4, 4), draw(3, 4, 4), PADDED[:1]), {**full, **dropped}
    yield (draw(WHOLE_BLOCK + 3, 1), draw(WHOLE_BLOCK + 5, 1), draw(WHOLE_BLOCK + 5, 1)), causal
    yield (draw(2, WHOLE_BLOCK + 1, 1), draw(2, 3, 1), draw(2, 3, 1), PADDED[:2, :3]), full


@op(
    "y = softmax(q kᵀ/√D, hidden keys at -inf) v",
    "q̄ = s̄ k/√D;  k̄ = s̄ᵀ q/√D;  v̄ = pᵀ ȳ,  s̄ = p*(p̄ - Σ p̄*p),  p̄ = ȳ vᵀ",
    equals=composed.attention,
    constants=("key_mask",),
    samples=_samples,
)
def attention(q, k, v, key_mask=None, *, causal, scale=None, dropout=0.0, seed=(0,), needs):
    """For each query a weighted mean of the values; the weights are softmax(q kᵀ/√D) (Vaswani et al. 2017).

    q (..., n, D), k (..., m, D), v (..., m, E), key_mask (..., m) -> y (..., n, E)

    causal: no query sees a later key. With fewer queries than keys the queries are the last positions, as when a cache
        holds the earlier ones.
    key_mask: booleans, True where the key is real, False where it is padding; see `sequence_mask`. No result depends on
        the keys and values in padding, and their gradient is 0. A query that sees no key gives zeros.
    scale: divides the scores; √D by default.
    dropout: the rate at which weights are dropped; `seed` determines the mask.

    Raises ShapeError if there are not as many keys as values, or more queries than keys with causal; DtypeError for a
    key_mask that is not boolean.

    On paper: the first query sees only its own key, so y₀ = v₀ = 4. The second has scores 0 and log 3, so its weights
    are 1/4 and 3/4 and y₁ = 1/4*4 + 3/4*8 = 7. With ȳ = (2, 1): v̄ = (2 + 1/4, 3/4); in the second row p̄ = (4, 8) with
    mean 7, so s̄ = (1/4*(4-7), 3/4*(8-7)) = (-3/4, 3/4) and k̄ is that times the query, q̄₁ = 3/4 log 3.

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
        raise ShapeError(f"attention got {m} keys and {values} values; give as many of each")
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
    "x̄, k̄v̄ = q̄, k̄ and v̄ side by side,  q̄ = s̄ k/√D,  k̄ = s̄ᵀ q/√D,  v̄ = pᵀ ȳ,  s̄ = p*(p̄ - Σ p̄*p),  p̄ = ȳ vᵀ",
    equals=composed.multi_head_attention,
    constants=("key_mask", "query_mask"),
    samples=lambda draw: [
        ((draw(2, 3, 12), None, None), {"n_head": 2, "causal": True}),
        ((draw(1, WHOLE_BLOCK + 2, 3), None, None), {"n_head": 1, "causal": True}),
        ((draw(2, 3, 12), None, None), {"n_head": 4, "causal": True, "dropout": 0.4, "seed": (3,)}),
        ((draw(3, 4, 6), None, PADDED), {"n_head": 2, "causal": False, "scale": 0.7}),
        ((draw(3, 4, 6), None, PADDED), {"n_head": 1, "causal": True}),
        ((draw(2, 3, 4), draw(2, 2, 8), None), {"n_head": 2, "causal": False}),
        ((draw(3, 2, 2), draw(3, 4, 4), PADDED), {"n_head": 2, "causal": False, "dropout": 0.4, "seed": (3,)}),
        ((draw(5, 6), None, PADDED), {"n_head": 2, "causal": True}),
        ((draw(1, 2, 9), None, None), {"n_head": 3, "causal": False}),
        ((draw(5, 2), draw(5, 4), PADDED, PADDED[:, ::-1]), {"n_head": 1, "causal": False}),
        ((draw(3, 2, 2), draw(5, 4), PADDED), {"n_head": 2, "causal": False}),
    ],
)
def multi_head_attention(
    x, kv=None, key_mask=None, query_mask=None, *, n_head, causal, scale=None, dropout=0.0, seed=(0,), needs
):
    """Attention in n_head heads, of a sequence to itself or to another sequence.

    x (?), kv (?), key_mask (B, S), query_mask (B, T) -> y (?)

    x is (B, T, W), kv (B, S, U), and y (B, T, C) with C = n_head * D. Without kv, x holds queries, keys and values,
    each of C channels, in this order along the last axis: W = 3C, S = T. With kv, x holds the queries (W = C), and kv
    the keys and values of another sequence (U = 2C). The heads are views: no copy is made to split or merge them. The
    rest is as in `attention`.

    Where x is (N, W), it has only the rows of the real tokens: those where query_mask, or without kv key_mask, is True.
    Then y is (N, C). Where kv is (M, U), it has only the rows where key_mask is True.
    """
    query_mask, is_packed = key_mask if kv is None else query_mask, (x.ndim == 2, kv is not None and kv.ndim == 2)
    x, kv = unpacked(x, query_mask), unpacked(kv, key_mask)
    C = n_head * head_size(x, kv, key_mask, n_head)
    q, k, v = split_heads(x, kv, n_head)  # (B, T, C) -> (B, H, T, D), (B, S, C) -> 2 × (B, H, S, D)
    y = np.empty_like(q, shape=(*x.shape[:2], C), dtype=np.result_type(q, k, v), order="C")
    key_mask = None if key_mask is None else key_mask[:, None]  # (B, S) -> (B, 1, S), for every head
    (into,) = heads_of(y, 1, n_head)  # (B, T, C) -> (B, H, T, D)
    parts = _attend(q, k, v, key_mask, into, causal, scale, dropout, seed, any(needs))
    return keep(packed(y, query_mask) if is_packed[0] else y, padded=(x, kv, y), is_packed=is_packed, parts=parts)


@multi_head_attention.backward
def multi_head_attention_backward(dy, key_mask, query_mask, padded, is_packed, parts, n_head, scale):
    x, kv, y = padded
    query_mask = key_mask if kv is None else query_mask
    dy = unpacked(dy, query_mask)
    dx, dkv = (None if z is None else np.empty_like(z, order="C") for z in (x, kv))
    dy, y = (heads_of(z, 1, n_head)[0] for z in (dy, y))
    _attend_backward(dy, y, *split_heads(x, kv, n_head), parts, scale, *split_heads(dx, dkv, n_head))
    dx = packed(dx, query_mask) if is_packed[0] else dx
    return dx, packed(dkv, key_mask) if is_packed[1] else dkv


def sequence_mask(lengths: Any, size: int) -> np.ndarray:
    """The key_mask of sequences that are padded at their ends: True at the first lengths[b] of `size` positions.

    lengths (B) integers -> (B, size) booleans. Raises DtypeError for lengths that are not integers, ShapeError for one
    that is negative or larger than size.

    >>> sequence_mask([3, 1], 3).tolist()
    [[True, True, True], [True, False, False]]
    """
    lengths = to_host(lengths)
    if lengths.dtype.kind not in "iu":
        raise DtypeError(f"lengths must be integers, the number of real tokens of each sequence; got {lengths.dtype}")
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= size:
        raise ShapeError(f"lengths must be between 0 and {size}; got {lengths.min()} to {lengths.max()}")
    return np.arange(size) < lengths[..., None]


def _attend(q, k, v, key_mask, y, causal, scale, dropout, seed, recorded):
    """Write the attention into y; large inputs are divided over threads by heads.

    Returns what `_attend_backward` needs: a pair (heads, their blocks) for each thread; no blocks unless `recorded`.
    """
    n, m = q.shape[-2], k.shape[-2]
    divisor = score_divisor(q, scale)
    if causal and n > m:
        raise ShapeError(f"causal attention got {n} queries and {m} keys; give at least as many keys as queries")
    read, shown = _keys_to_read(key_mask, m, y)
    dropped = dropout_mask((*q.shape[:-1], m), y, dropout, seed).swapaxes(-1, -2) if dropout else None

    def work(heads):
        arrays = (q, k[..., :read, :], v[..., :read, :], y, shown, dropped)
        arrays = (None if x is None else _select_heads(x, heads) for x in arrays)
        return heads, _attend_blocks(*arrays, m - n if causal else None, divisor, recorded)

    return share_out(work, *_heads_and_scores(q, k), q)


def _attend_backward(dy, y, q, k, v, parts, scale, dq, dk, dv):
    """Write the gradients of q, k and v into dq, dk and dv, divided over threads as the forward was."""

    def work(numbers):
        for heads, blocks in parts[numbers]:
            arrays = (_select_heads(x, heads) for x in (dy, y, q, k, v, dq, dk, dv))
            _backward_blocks(*arrays, blocks, score_divisor(q, scale))

    share_out(work, len(parts), _heads_and_scores(q, k)[1], q)


def _heads_and_scores(q, k):
    """The number of heads that can be divided over threads, and the number of scores."""
    return (q.shape[-3] if q.ndim > 2 else 1), q.size // max(1, q.shape[-1]) * k.shape[-2]


def _select_heads(x, heads):
    """The part of x (..., H, T, D) that belongs to these heads."""
    return x[..., heads, :, :] if x.ndim > 2 else x


@on_gpu
def _attend_blocks(q, k, v, y, shown, dropped, ahead, divisor, recorded):
    """Write the attention of these heads into y; return (rows, number of keys seen, p, dropout mask) of each block.

    ahead: the number of keys before the first query's own; None if queries see later keys as well.
    """
    n, m = q.shape[-2], k.shape[-2]
    if not m:
        y[...] = 0
        return []
    arrays = xp(q)
    padded_from = m if shown is None else m - shown.shape[-2]
    size = BLOCK if ahead is not None and WHOLE_BLOCK < m <= MANY else WHOLE_BLOCK
    if n > 2 * size:  # then it pays to put the rows of each head side by side, since each block reads them
        k, v = k.copy(), v.copy()
    blocks = []
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        seen = m if ahead is None else min(m, ahead + rows.stop)
        qt = _scaled_transpose(q[..., rows, :], 1 / divisor)
        p = k[..., :seen, :] @ qt  # (..., keys, D)·(..., D, queries) -> (..., keys, queries)
        visible = []
        if ahead is not None:
            last = p[..., ahead + start :, :]
            visible.append((last, _not_later(rows.stop - start, p.real.dtype, arrays)[: last.shape[-2]]))
        if seen > padded_from:  # a query may see no key
            padded = p[..., padded_from:, :]
            visible.append((padded, shown[..., : padded.shape[-2], :]))
        _exponentials(p, visible)
        total = constant(seen, 1, p.dtype, arrays) @ p  # a product with ones is the fastest way to sum
        if seen > padded_from:
            total[total == 0] = 1  # the weights of a query that sees no key stay 0
        p *= 1 / total[..., None, :]
        mask = None if dropped is None else dropped[..., :seen, rows]
        np.matmul(_masked(p, mask).swapaxes(-1, -2), v[..., :seen, :], out=y[..., rows, :])
        if recorded:
            blocks.append((rows, seen, p, mask))
    return blocks


@on_gpu
def _backward_blocks(dy, y, q, k, v, dq, dk, dv, blocks, divisor):
    if not blocks:
        dq[...] = dk[...] = dv[...] = 0
        return
    read = blocks[-1][1]
    dk[..., read:, :] = dv[..., read:, :] = 0
    sums_k, sums_v = dk[..., :read, :], dv[..., :read, :]
    if len(blocks) > 2:  # sums in arrays of their own, in C order, to which NumPy adds faster
        k, v = k.copy(), v.copy()
        sums_k, sums_v = (np.empty_like(x, order="C") for x in (sums_k, sums_v))
    mean = np.einsum("...td,...td->...t", dy, y) * (1 / divisor)
    for rows, seen, p, mask in reversed(blocks):  # the last block sees all keys: it writes, the others add
        dyb, qb = dy[..., rows, :], q[..., rows, :]
        ds = v[..., :seen, :] @ _scaled_transpose(dyb, 1 / divisor)
        if mask is not None:
            ds *= mask
        ds -= mean[..., None, rows]
        ds *= p
        np.matmul(ds.swapaxes(-1, -2), k[..., :seen, :], out=dq[..., rows, :])
        if rows is blocks[-1][0]:
            np.matmul(_masked(p, mask), dyb, out=sums_v)
            np.matmul(ds, qb, out=sums_k)
        else:
            sums_v[..., :seen, :] += _masked(p, mask) @ dyb
            sums_k[..., :seen, :] += ds @ qb
    if len(blocks) > 2:
        dk[..., :read, :], dv[..., :read, :] = sums_k, sums_v


def _keys_to_read(key_mask, m, y):
    """(read, shown): all keys from `read` on are padding; `shown` tells which keys before it are not.

    shown (..., keys, 1) starts at the first key that is padding in any sequence: 0 where a key is padding, else 1.
    None if no key before `read` is padding. Raises DtypeError or ShapeError if the key_mask does not fit.
    """
    if key_mask is None:
        return m, None
    key_mask = to_host(key_mask)
    if key_mask.dtype != bool:
        raise DtypeError(f"key_mask must be boolean, True where a key is real; got {key_mask.dtype}; use key_mask != 0")
    if key_mask.shape[-1] != m:
        raise ShapeError(f"key_mask {key_mask.shape} does not fit {m} keys; its last axis must have size {m}")
    sequences = tuple(range(key_mask.ndim - 1))
    real, padding = np.flatnonzero(key_mask.any(sequences)), np.flatnonzero(~key_mask.all(sequences))
    read = int(real[-1]) + 1 if real.size else 0
    first = int(padding[0]) if padding.size else m
    if first >= read:
        return read, None
    shown = key_mask[..., first:read, None].astype(y.real.dtype)
    return read, np.broadcast_to(beside(shown, y), (*y.shape[:-2], *shown.shape[-2:]))


@functools.lru_cache(maxsize=16)
def _not_later(n, dtype, arrays):
    """1 where a key comes no later than the query, else 0.  (keys, queries)"""
    return arrays.asarray(causal_mask(n, n).T, dtype=dtype)


def _exponentials(p, visible):
    """Replace the scores p by exponentials that are proportional to the softmax: 0 for hidden keys, without overflow.

    visible: pairs (scores, shown): a part of p, and an array that is 0 where a key of this part is hidden, else 1.
    """
    # Only for a query whose largest score is far from 0 is that score subtracted. So no bit depends on hidden keys.
    limit = _safe_score(p.real.dtype)
    if xp(p) is np and -limit <= p.real.min(initial=0) and p.real.max(initial=0) <= limit:  # on a GPU this would wait
        np.exp(p, out=p)
        for scores, shown in visible:
            scores *= shown
        return
    for scores, shown in visible:  # -inf also where a hidden score is NaN; a minimum is faster than a masked copy
        np.fmin(scores, np.where(shown, np.inf, -np.inf), out=scores)
    largest = _largest_key(p.real)
    finite = np.maximum(largest, np.finfo(largest.dtype).min)  # a query may see no key, and -inf - -inf would be NaN
    p -= np.where(np.absolute(largest) <= limit, np.zeros_like(largest), finite)
    np.exp(p, out=p)


@functools.lru_cache(maxsize=8)
def _safe_score(dtype):
    """A score whose exponential is neither too large nor too small for this dtype, nor is that of minus the score."""
    return float(np.log(np.finfo(dtype).max)) / 3  # math.log knows no longdouble


def _largest_key(scores):
    """The maximum over the keys, by comparing halves (which overlap if odd): np.max takes three times as long."""
    if xp(scores) is not np:
        return scores.max(axis=-2, keepdims=True)
    while scores.shape[-2] > 1:
        half = (scores.shape[-2] + 1) // 2
        scores = np.maximum(scores[..., :half, :], scores[..., -half:, :])
    return scores


def _scaled_transpose(x, factor):
    """The transposes of the matrices x (..., T, D), times a factor; for BLAS in rows of their own."""
    x = x.swapaxes(-1, -2)
    return np.multiply(x, factor, order="C") if xp(x) is np else x * factor


def _masked(p, mask):
    return p if mask is None else p * mask
