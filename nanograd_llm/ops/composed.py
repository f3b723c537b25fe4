"""The definitions: each layer function written in primitive ops, as in a textbook.

`fused.py` and `attention.py` have the same functions derived by hand for speed. Tests compare the two. Under
`higher_order()` the functions here replace the fused ones: they are slower, and differentiable to any order.

B batch, T time, C channels, H heads, D = C/H, V vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nanograd_llm.autograd.shapes import axes_of
from nanograd_llm.autograd.tensor import array_of
from nanograd_llm.backend.arrays import beside, to_host
from nanograd_llm.backend.randomness import drop_at_random
from nanograd_llm.errors import ConfigError, ShapeError
from nanograd_llm.ops.layout import causal_mask, check_ids, getitem, scatter
from nanograd_llm.ops.primitive import clip, erf, exp, log1p, matmul, mean, sigmoid, sqrt, sum, tanh, where
from nanograd_llm.settings import IGNORE_INDEX, require_choice, require_number, require_type

GELU_FLAT = 64  # beyond it a GELU is x or 0 to the last bit; limiting |x| to it keeps x³ from overflowing


def softmax(x, *, axis=-1):
    e = exp(x - shift(x, axis))
    total = sum(e, axis=axis, keepdims=True)
    return e / where(total == 0, 1.0, total)  # a row of only -inf gives zeros


def log_softmax(x, *, axis=-1):
    shifted = x - shift(x, axis)
    return shifted - _log_total(shifted, axis)[0]


def logsumexp(x, *, axis=-1):
    s = shift(x, axis)
    log_total, is_masked = _log_total(x - s, axis)
    return sum(where(is_masked, -np.inf, log_total + s), axis=axis)


def _log_total(shifted, axis):
    """log Σ exp(shifted), where the largest of each row is 0; and True for rows of only -inf, whose result is 0.

    Computed as log(1 + the other terms), which is exact also where these are tiny.
    """
    largest = array_of(shifted).real == 0
    count = np.sum(largest, axis=axes_of(axis, largest.ndim), keepdims=True)
    e = exp(shifted)
    rest = sum(where(largest, e - 1, e), axis=axis, keepdims=True) + (count - 1).astype(array_of(e).real.dtype)
    return log1p(where(count == 0, 0.0, rest)), count == 0


def layernorm(x, w, b, *, eps=1e-5):
    centred = x - mean(x, axis=-1, keepdims=True)
    exact = centred - mean(array_of(centred), axis=-1, keepdims=True)  # the rounding of a mean far from 0, a constant
    variance = mean(exact * exact, axis=-1, keepdims=True)
    return exact / sqrt(variance + eps) * w + b


def rmsnorm(x, w, *, eps=1e-5):
    return x / sqrt(mean(x * x, axis=-1, keepdims=True) + eps) * w


def gelu(x):
    near = clip(x, low=-GELU_FLAT, high=GELU_FLAT)
    return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (near + 0.044715 * (near * near * near))))


def gelu_exact(x):
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def silu(x):
    return x * sigmoid(x)


def linear(x, w, b=None):
    y = matmul(x, w)
    return y if b is None else y + b


def dropout(x, *, rate=0.1, seed=(0,)):
    return x * dropout_mask(x.shape, x, rate, seed)


def cross_entropy(logits, targets, *, ignore_index=IGNORE_INDEX, label_smoothing=0.0, reduction="mean", weight=None):
    check_loss_settings(label_smoothing, reduction, weight)
    chosen, weights, divisor = flat_targets(targets, logits.shape, ignore_index, reduction, weight)
    weights = beside(weights, array_of(logits))
    logp = log_softmax(logits).reshape((-1, logits.shape[-1]))  # (N, V)
    y = (1 - label_smoothing) * logp[np.arange(len(chosen)), chosen]  # (N, V) -> (N)
    if label_smoothing:
        y = y + label_smoothing * mean(logp, axis=-1)
    y = where(np.isneginf(array_of(logp).real).all(axis=-1), -np.inf, y)  # a row of only -inf has no gradient
    y = -where(weights != 0, y, 0.0) * weights.astype(array_of(y).real.dtype)
    return (y.reshape(logits.shape[:-1]) if reduction == "none" else sum(y)) / divisor


def linear_cross_entropy(x, w, targets, *, ignore_index=IGNORE_INDEX, label_smoothing=0.0):
    logits = matmul(x, w.T)  # (..., C) · (C, V) -> (..., V)
    return cross_entropy(logits, targets, ignore_index=ignore_index, label_smoothing=label_smoothing)


def attention(q, k, v, key_mask=None, *, causal, scale=None, dropout=0.0, seed=(0,)):
    scores = matmul(q, k.swapaxes(-1, -2)) / score_divisor(q, scale)  # (..., n, D)·(..., D, m) -> (..., n, m)
    if causal:
        scores = where(causal_mask(*scores.shape[-2:]), scores, -np.inf)
    if key_mask is not None:
        scores = where(array_of(key_mask)[..., None, :], scores, -np.inf)
    p = softmax(scores)
    if dropout:
        lead = np.broadcast_shapes(p.shape[:-2], v.shape[:-2])
        p = p * dropout_mask((*lead, *p.shape[-2:]), p, dropout, seed)
    return matmul(p, v)  # (..., n, m)·(..., m, E) -> (..., n, E)


def multi_head_attention(
    x, kv=None, key_mask=None, query_mask=None, *, n_head, causal, scale=None, dropout=0.0, seed=(0,)
):
    query_mask, is_packed = array_of(key_mask if kv is None else query_mask), x.ndim == 2
    x, kv = unpacked(x, query_mask), unpacked(kv, key_mask)  # (N, C) -> (B, T, C)
    C = n_head * head_size(x, kv, key_mask, n_head)
    q, k, v = split_heads(x, kv, n_head)
    key_mask = None if key_mask is None else array_of(key_mask)[:, None]  # (B, S) -> (B, 1, S), for every head
    y = attention(q, k, v, key_mask, causal=causal, scale=scale, dropout=dropout, seed=seed)
    y = y.swapaxes(1, 2).reshape((*x.shape[:2], C))  # (B, H, T, D) -> (B, T, C)
    return y[query_mask] if is_packed else y


# Shared by the definitions and the fused ops: the layout of heads, and quantities without a gradient.


def unpacked(x: Any, mask: Any) -> Any:
    """The rows of real tokens at their places in a padded batch, with zeros elsewhere.  (N, C) -> (B, T, C)

    A model treats each token separately but in attention, so it takes rows (N, C), and computes nothing for padding.
    mask (B, T): N places are True. An x that is no (N, C) is returned unchanged. Raises ShapeError if they do not fit.
    """
    if x is None or x.ndim != 2:
        return x
    mask = array_of(mask)
    if mask is None or np.count_nonzero(mask) != len(x):
        raise ShapeError(f"{len(x)} real tokens (N, C) need a mask (B, T) with as many True; got {mask!r:.100}")
    shape = (*mask.shape, x.shape[1])
    if not (isinstance(x, np.ndarray) and mask.dtype == bool):
        return scatter(x, index=mask, shape=shape)
    y = np.zeros(shape, x.dtype)  # the same in less time
    y[mask] = x
    return y


def packed(x: Any, mask: Any) -> Any:
    """The rows of real tokens of a padded batch.  x (B, T, C), mask (B, T) -> (N, C)"""
    return x[mask] if isinstance(x, np.ndarray) else getitem(x, index=mask)


def split_heads(x: Any, kv: Any, n_head: int) -> Any:
    """q, k, v, each (B, H, T, D), from x (B, T, 3C); or q from x (B, T, C), and k, v from kv (B, S, 2C). Views."""
    return heads_of(x, 3, n_head) if kv is None else (*heads_of(x, 1, n_head), *heads_of(kv, 2, n_head))


def heads_of(x: Any, parts: int, n_head: int) -> Any:
    """x (B, T, parts * C) -> (parts, B, H, T, D)"""
    B, T, width = x.shape
    return x.reshape((B, T, parts, n_head, width // parts // n_head)).transpose((2, 0, 3, 1, 4))


def shift(x: Any, axis: int | tuple[int, ...] | None) -> np.ndarray:
    """What a softmax subtracts to avoid overflow: the largest element of each row, or 0 if that is not finite."""
    values = array_of(x).real
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    axes = axes_of(axis, values.ndim)
    if not values.size:
        return np.zeros_like(np.sum(values, axis=axes, keepdims=True))
    largest = np.max(values, axis=axes, keepdims=True)
    return np.where(np.isfinite(largest), largest, np.zeros_like(largest))


def head_size(x: Any, kv: Any, key_mask: Any, n_head: int) -> int:
    """D of n_head heads: q, k, v are in x (B, T, 3C), or q in x (B, T, C) and k, v in kv (B, S, 2C), with C = n_head*D.

    Raises ShapeError if the shapes are others, or key_mask is not (B, S).
    """
    parts, (B, S, width) = (1 if kv is not None else 3), x.shape
    if n_head < 1 or width < 1 or width % (parts * n_head):
        wanted = "n_head * D" if kv is not None else "3 * n_head * D"
        raise ShapeError(f"the last axis must be {wanted} with D at least 1; it is {width}, and n_head is {n_head}")
    if kv is not None:
        S = kv.shape[1]
        if kv.shape != (B, S, 2 * width):
            raise ShapeError(f"keys and values {kv.shape} do not fit queries {x.shape}; expected {(B, S, 2 * width)}")
    if key_mask is not None and key_mask.shape != (B, S):
        raise ShapeError(f"key_mask {key_mask.shape} does not fit the keys; expected {(B, S)}")
    return width // parts // n_head


def score_divisor(q: Any, scale: float | None) -> float:
    """What the scores of queries (..., n, D) are divided by: `scale`, or √D if that is None.

    Raises ShapeError if D = 0.
    """
    if not q.shape[-1]:
        raise ShapeError(f"queries need at least one channel; got shape {q.shape}")
    return math.sqrt(q.shape[-1]) if scale is None else scale


def dropout_mask(shape: tuple[int, ...], like: Any, rate: float, seed: tuple[int, ...]) -> np.ndarray:
    """An array of 0 with probability `rate`, else 1/(1 - rate), so that its mean is 1 (Srivastava et al. 2014).

    like: an array or Tensor that it will be multiplied by, on the same device. Raises ConfigError unless 0 ≤ rate < 1.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"a dropout rate must be in 0 ≤ rate < 1; got {rate}")
    like = array_of(like)
    mask = np.empty_like(like, shape=shape, dtype=like.dtype if like.dtype.kind in "fc" else np.float64, order="C")
    drop_at_random(mask, seed, rate)
    return mask


def count_targets(targets: np.ndarray) -> int:
    """The number of targets that are not -100, the default `ignore_index` of the losses."""
    return int(np.count_nonzero(targets != IGNORE_INDEX))


def check_loss_settings(label_smoothing: float, reduction: str, weight: Any) -> None:
    """Raise ConfigError for invalid settings of a cross-entropy."""
    require_number("label_smoothing", label_smoothing, 0, 1, below=True)
    require_choice("reduction", reduction, ("mean", "sum", "none"))
    if label_smoothing and weight is not None:
        raise ConfigError("cross_entropy takes weight= or label_smoothing=, not both")


def flat_targets(
    targets: Any, logits_shape: tuple[int, ...], ignore_index: int, reduction: str = "mean", weight: Any = None
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Targets (N,) with 0 where ignored, the weight of each (N,), and what the sum of the losses is divided by.

    Raises ShapeError if the shapes do not fit or no target counts, IndexRangeError for an id outside 0..V-1.
    """
    require_type("ignore_index", ignore_index, (int, np.integer), "an integer")
    targets = to_host(array_of(targets))
    if targets.shape != logits_shape[:-1]:
        swapped = "; logits come first" if logits_shape == targets.shape[:-1] else ""
        expected = f"expected {logits_shape[:-1]}{swapped}"
        raise ShapeError(f"targets {targets.shape} do not fit logits {logits_shape}; {expected}")
    flat = targets.reshape(-1)
    counted = flat != ignore_index
    chosen = check_ids(np.where(counted, flat, 0), logits_shape[-1], "target id")
    if weight is not None:
        weight = to_host(array_of(weight))
        if weight.shape != logits_shape[-1:]:
            raise ShapeError(f"weight has shape {weight.shape}; expected one for each class, {logits_shape[-1:]}")
        counted = counted * weight[chosen]
    divisor = counted.sum() if reduction == "mean" else 1
    if divisor == 0:
        raise ShapeError(f"none of {flat.size} targets counts (ignore_index={ignore_index}); a mean needs at least one")
    return chosen, counted, divisor
