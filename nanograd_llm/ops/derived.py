"""Functions that are a few lines of other ops, and so differentiable to any order without a rule.

Like the ops they take Tensors, arrays and lists, and follow NumPy's names and defaults.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nanograd_llm.autograd.shapes import axes_of
from nanograd_llm.autograd.tensor import array_of
from nanograd_llm.backend.arrays import xp
from nanograd_llm.errors import ShapeError
from nanograd_llm.ops.layout import array_like, concatenate, expand_dims, getitem, reshape, scatter, transpose
from nanograd_llm.ops.primitive import contract, logaddexp, mean, multiply, sqrt, subtract, sum, var, where
from nanograd_llm.settings import require_choice, require_int


def einsum(subscripts: str, *xs: Any) -> Any:
    """Einstein summation, as `np.einsum`: einsum("ij,jk->ik", a, b) is a @ b.

    Raises ShapeError for an ellipsis, for a letter twice in one input, and for subscripts that do not fit the shapes.
    """
    xs = (array_like(xs[0]),) if len(xs) == 1 else xs  # a single list is one input, not a list of inputs
    return contract(*xs, subscripts=subscripts)


def softplus(x: Any) -> Any:
    """log(1 + exp x), elementwise, without overflow."""
    return logaddexp(x, 0.0)


def std(x: Any, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Any:
    """Standard deviation over one axis, several, or all (None); ddof=1 divides by n - 1."""
    return sqrt(var(x, axis=axis, keepdims=keepdims, ddof=ddof))


def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Product over one axis, several, or all (None). The gradient is also right where factors are zero."""
    x = array_like(x)
    axes = axes_of(axis, x.ndim)
    kept = [a for a in range(x.ndim) if a not in axes]
    sizes = [x.shape[a] for a in kept]
    y = reshape(transpose(x, axes=(*axes, *kept)), shape=(math.prod(x.shape[a] for a in axes), *sizes))
    while len(y) > 1:  # multiply halves until one element is left, so that the gradient needs no division
        half = len(y) // 2
        y = concatenate(multiply(y[:half], y[half : 2 * half]), y[2 * half :])
    y = y[0] if len(y) else xp(array_of(x)).ones(sizes, x.dtype)
    return expand_dims(y, axis=axes) if keepdims else y


def masked_fill(x: Any, mask: Any, value: float) -> Any:
    """x with `value` where the mask is True.  x (*), mask (*) booleans -> (*)"""
    return where(mask, value, x)


def take_along_axis(x: Any, indices: Any, axis: int = -1) -> Any:
    """The elements of x at these indices along an axis, as `np.take_along_axis`; PyTorch calls it gather.

    Raises ShapeError unless indices have as many axes as x.
    """
    x, indices = array_like(x), array_of(array_like(indices))
    (axis,) = axes_of((axis,), x.ndim)
    if indices.ndim != x.ndim:
        raise ShapeError(f"take_along_axis needs indices with {x.ndim} axes, like x; got shape {indices.shape}")
    index: list[Any] = list(np.ix_(*map(np.arange, x.shape)))
    index[axis] = indices
    return getitem(x, index=tuple(index))


def sort(x: Any, axis: int = -1) -> Any:
    """The elements in ascending order along an axis."""
    return take_along_axis(x, np.argsort(array_of(array_like(x)), axis=axis, kind="stable"), axis)


def topk(x: Any, k: int, axis: int = -1) -> tuple[Any, np.ndarray]:
    """The k largest elements along an axis, largest first, and their indices (a plain array of integers)."""
    x = array_like(x)
    (axis,) = axes_of((axis,), x.ndim)
    require_int("k", k, 1, x.shape[axis])
    order = np.flip(np.argsort(array_of(x), axis=axis, kind="stable"), axis)
    indices = order[(slice(None),) * axis + (slice(k),)]
    return take_along_axis(x, indices, axis), indices


def pad(x: Any, widths: Any, value: float = 0.0) -> Any:
    """x with `value` added at the ends of each axis, as `np.pad`.

    widths: how many elements to add: a number, a pair (before, after), or such a pair for each axis.
    """
    x = array_like(x)
    pairs = np.broadcast_to(widths, (x.ndim, 2)).tolist()
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, pairs))
    inside = tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, pairs))
    y = scatter(x, index=inside, shape=shape)
    return y + np.pad(np.zeros_like(array_of(x)), pairs, constant_values=value) if value else y


def roll(x: Any, shift: int, axis: int = -1) -> Any:
    """Shift the elements along an axis; those shifted beyond the end reappear at the start."""
    x = array_like(x)
    (axis,) = axes_of((axis,), x.ndim)
    return take(x, (np.arange(x.shape[axis]) - shift) % max(1, x.shape[axis]), axis)


def take(x: Any, indices: Any, axis: int = 0) -> Any:
    """The slices of x at these indices along an axis."""
    x = array_like(x)
    (axis,) = axes_of((axis,), x.ndim)
    return getitem(x, index=(*(slice(None),) * axis, array_of(array_like(indices))))


def repeat(x: Any, repeats: int, axis: int = -1) -> Any:
    """Repeat each slice along an axis this many times."""
    x = array_like(x)
    (axis,) = axes_of((axis,), x.ndim)
    require_int("repeats", repeats, 0)
    return take(x, np.repeat(np.arange(x.shape[axis]), repeats), axis)


def mse(x: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Squared error: the mean over all elements, the sum, or that of each element ("none").

    x (*), target (*) of the same shape, or ShapeError.
    """
    _require_same_shape("mse", x, target)
    difference = subtract(x, target)
    return _reduced(difference * difference, reduction)


def binary_cross_entropy(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Negative log-likelihood in nats of targets from 0 to 1, with probabilities sigmoid(logits).

    logits (*), target (*) of the same shape, or ShapeError. reduction: "mean", "sum" or "none".
    """
    _require_same_shape("binary_cross_entropy", logits, target)
    return _reduced(softplus(logits) - multiply(logits, target), reduction)


def _require_same_shape(name: str, x: Any, target: Any) -> None:
    if np.shape(x) != np.shape(target):
        raise ShapeError(f"{name} needs a target of the same shape; got {np.shape(x)} and {np.shape(target)}")


def _reduced(losses: Any, reduction: str) -> Any:
    require_choice("reduction", reduction, ("mean", "sum", "none"))
    return losses if reduction == "none" else sum(losses) if reduction == "sum" else mean(losses)
