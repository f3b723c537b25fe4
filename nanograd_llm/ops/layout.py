"""The primitive ops that only move numbers: reshaping, axes, joining, indexing, masking, and the dtype.

All are linear, so their rules do not need the input's values. They move the cotangent back to where the numbers came
from: what was repeated is summed, what was selected is put back, what was left out gets zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import op
from nanograd_llm.autograd.shapes import axes_of
from nanograd_llm.autograd.tensor import Tensor, array_of
from nanograd_llm.backend.arrays import beside, gpu_in_use, is_array, to_host, xp
from nanograd_llm.errors import DtypeError, IndexRangeError, ShapeError


@op(
    "y = x in another shape",
    "x̄ = ȳ in x's shape",
    samples=lambda draw: [((draw(2, 3, 4),), {"shape": s}) for s in [(6, 4), (-1,), (4, -1, 2), (1, 24)]],
)
def reshape(x, *, shape):
    """The same numbers, in row-major order, with another shape; one size may be -1.  x (*) -> y (shape)"""
    return np.reshape(x, shape)


@reshape.backward
def reshape_backward(dy, x_shape):
    return reshape(dy, shape=x_shape)


@op(
    "y = x with its axes permuted",
    "x̄ = ȳ with its axes permuted back",
    samples=lambda draw: [((draw(2, 3, 4),), {"axes": axes}) for axes in [None, (0, 2, 1), (2, 0, 1), (-1, 0, 1)]],
)
def transpose(x, *, axes=None):
    """Permute the axes; None reverses them. To swap two, use swapaxes.  x (*) -> y (?)"""
    if axes is not None and len(axes_of(axes, np.ndim(x))) != np.ndim(x):
        raise ShapeError(
            f"transpose got {np.shape(x)} and axes={axes}; give all axes in their new order; swapaxes swaps two"
        )
    return np.transpose(x, None if axes is None else axes_of(axes, np.ndim(x)))


@transpose.backward
def transpose_backward(dy, x_shape, axes):
    back = None if axes is None else tuple(int(i) for i in np.argsort(axes_of(axes, len(x_shape))))
    return transpose(dy, axes=back)


@op(
    "y = x with two axes swapped",
    "x̄ = ȳ with them swapped back",
    samples=lambda draw: [((draw(2, 3, 4),), {"axis1": a, "axis2": b}) for a, b in [(0, 1), (-1, -2), (2, 0), (1, 1)]],
)
def swapaxes(x, *, axis1, axis2):
    """Swap two axes.  x (*) -> y (?)"""
    return np.swapaxes(x, *axes_of((axis1,), np.ndim(x)), *axes_of((axis2,), np.ndim(x)))


@swapaxes.backward
def swapaxes_backward(dy, axis1, axis2):
    return swapaxes(dy, axis1=axis1, axis2=axis2)


@op(
    "y = x, repeated up to a shape",
    "x̄ = Σ ȳ over what was repeated",
    samples=lambda draw: [
        ((draw(3, 1),), {"shape": (2, 3, 4)}),
        ((draw(),), {"shape": (2,)}),
        ((draw(2),), {"shape": (2,)}),
    ],
)
def broadcast_to(x, *, shape):
    """Repeat axes of size one, and add leading axes, up to `shape`, without copying.  x (?) -> y (shape)"""
    return np.broadcast_to(x, shape)


@broadcast_to.backward
def broadcast_to_backward(dy):
    return dy  # the engine sums it to x's shape


@op(
    "y = x with axes of size one put in",
    "x̄ = ȳ without them",
    samples=lambda draw: [((draw(2, 3),), {"axis": axis}) for axis in [0, 1, -1, (0, 3), ()]],
)
def expand_dims(x, *, axis):
    """Insert axes of size one at these positions of the result.  x (*) -> y (?)"""
    added = len(axis) if isinstance(axis, (tuple, list)) else 1
    return np.expand_dims(x, axes_of(axis, np.ndim(x) + added))


@expand_dims.backward
def expand_dims_backward(dy, x_shape):
    return reshape(dy, shape=x_shape)


@op(
    "y = x without axes of size one",
    "x̄ = ȳ with them put back",
    samples=lambda draw: [((draw(1, 3, 1),), {"axis": axis}) for axis in [None, 0, -1, (0, 2)]],
)
def squeeze(x, *, axis=None):
    """Remove these axes, which have size one, or all such axes (None).  x (*) -> y (?)"""
    return np.squeeze(x, None if axis is None else axes_of(axis, np.ndim(x)))


@squeeze.backward
def squeeze_backward(dy, x_shape):
    return reshape(dy, shape=x_shape)


@op(
    "y = x₁, x₂, … joined along axis",
    "x̄ᵢ = the part of ȳ where xᵢ went",
    samples=lambda draw: [
        ((draw(2, 3), draw(1, 3), draw(0, 3), draw(2, 3)), {"axis": 0}),
        ((draw(2, 3), draw(2, 1)), {"axis": -1}),
        ((draw(2),), {}),
    ],
)
def concatenate(*xs, axis=0):
    """Join along an existing axis; takes several inputs, or one list of them.  xs (?) -> y (?)"""
    return np.concatenate(xs, *axes_of((axis,), max(map(np.ndim, xs), default=1)))


@concatenate.backward
def concatenate_backward(dy, xs_shape, axis):
    ends = list(itertools.accumulate(shape[axis] for shape in xs_shape))
    return tuple(dy[_along(axis, dy.ndim, start, end)] for start, end in zip([0, *ends], ends))


@op(
    "y = x₁, x₂, … stacked along a new axis",
    "x̄ᵢ = ȳ at place i of it",
    samples=lambda draw: [((draw(2, 3), draw(2, 3)), {"axis": axis}) for axis in (0, 1, -1)] + [((draw(3),), {})],
)
def stack(*xs, axis=0):
    """Join along a new axis; takes several inputs, or one list of them.  xs (*) -> y (?)"""
    return np.stack(xs, *axes_of((axis,), max(map(np.ndim, xs), default=0) + 1))


@stack.backward
def stack_backward(dy, xs_shape, axis):
    axis = axis % (len(xs_shape[0]) + 1)
    return tuple(dy[(slice(None),) * axis + (i,)] for i in range(len(xs_shape)))


def split(x: Any, sections: int | Sequence[int], axis: int = 0) -> list[Any]:
    """Cut x along an axis into a number of equal parts, or at the given indices; returns a list of slices of x.

    Raises ShapeError if x cannot be cut into that many equal parts.
    """
    x = array_like(x)
    (axis,) = axes_of((axis,), x.ndim)
    size = x.shape[axis]
    if isinstance(sections, (int, np.integer)):
        sections = int(sections)  # a narrow NumPy integer, such as int8, could overflow below
        if sections < 1 or size % sections:
            raise ShapeError(f"split cannot cut axis {axis} of size {size} into {sections} equal parts")
        sections = [size // sections * i for i in range(1, sections)]
    return [x[_along(axis, x.ndim, a, b)] for a, b in zip([0, *sections], [*sections, size])]


def flip(x: Any, axis: int | Sequence[int] | None = None) -> Any:
    """Reverse the order along one axis, several, or all (None)."""
    x = array_like(x)
    axes = axes_of(axis, x.ndim)
    return x[tuple(slice(None, None, -1) if a in axes else slice(None) for a in range(x.ndim))]


def array_like(x: Any) -> Any:
    """A Tensor or array unchanged, a list or number as an array."""
    return x if isinstance(x, Tensor) or is_array(x) else np.asarray(x)


def _along(axis: int, ndim: int, start: int, end: int) -> tuple[slice, ...]:
    return (slice(None),) * (axis % ndim) + (slice(start, end),)


def _indices(draw: Any) -> Any:
    rows, columns = np.array([-1, 0, -1]), np.array([[1], [3]])
    masks = draw(4, 5) > 0
    for index in [1, -1, slice(1, 3), slice(None, None, -2), (..., 2), (None, 0), (slice(1, 3), -1), rows, (rows, 1)]:
        yield (draw(4, 5),), {"index": index}
    for index in [(columns, rows), (slice(None), rows), masks, [3, 3, 3, 0], slice(None, None, 2), ..., ()]:
        yield (draw(4, 5),), {"index": index}


@op("y = x[index]", "x̄ = 0 with ȳ added at [index]", samples=_indices)
def getitem(x, *, index):
    """NumPy indexing: integers, slices, None, ..., integer arrays (also with repeats), boolean masks.

    x (*) -> y (?)

    Raises IndexRangeError for an index out of range, DtypeError for floats and for True or False alone.
    """
    return x[_index(index, x.shape, x)]


@getitem.backward
def getitem_backward(dy, x_shape, index):
    return scatter(dy, index=index, shape=x_shape)


@op(
    "y = 0 with x added at [index]",
    "x̄ = ȳ[index]",
    samples=lambda draw: [((x[index["index"]],), {**index, "shape": x.shape}) for (x,), index in _indices(draw)],
)
def scatter(x, *, index, shape):
    """Zeros of `shape` with x added at [index]; repeated indices add up.  x (?) -> y (shape)"""
    y = xp(x).zeros(shape, dtype=x.dtype)
    is_single, index = _has_no_repeats(index), _index(index, shape, x)
    if is_single:
        y[index] = x
    elif xp(x) is np:
        np.add.at(y, index, x)
    else:  # add.at adds in any order there
        places = xp(x).arange(y.size).reshape(shape)[index]
        _add_runs(y.reshape((-1, 1)), np.broadcast_to(x, places.shape).reshape((-1, 1)), places)
    return y


@scatter.backward
def scatter_backward(dy, index):
    return getitem(dy, index=index)


def _index(index: Any, shape: tuple[int, ...], like: Any) -> Any:
    """The index of an array of this shape, on the device of `like`, with its Tensors and lists as arrays.

    CuPy would wrap integers that are out of range, so NumPy checks the arrays of an index first, on the host. Raises
    IndexRangeError for them, DtypeError for floats and for True or False alone.
    """
    index = _plain_index(index)
    if not gpu_in_use or xp(like) is np:
        return index
    parts = index if isinstance(index, tuple) else (index,)
    if not any(is_array(part) for part in parts):
        return index
    parts = tuple(to_host(part) if is_array(part) else part for part in parts)
    np.broadcast_to(np.int8(0), shape)[parts]  # raises if it does not fit
    on_device: list[Any] = []
    for part in parts:
        if not isinstance(part, np.ndarray):
            on_device.append(part)
        elif part.dtype.kind == "b" and part.ndim:
            on_device += [beside(places, like) for places in np.nonzero(part)]
        else:
            on_device.append(beside(part, like) if part.ndim or part.dtype.kind == "b" else int(part))
    return tuple(on_device)


def _plain_index(index: Any) -> Any:
    """The index with its Tensors and lists as arrays."""
    if isinstance(index, tuple):
        return tuple(_plain_index(part) for part in index)
    if isinstance(index, (bool, float)):
        raise DtypeError(f"an index is an integer, slice, None, ... or array of integers or booleans; got {index!r}")
    index = array_of(index)
    return np.asarray(index, dtype=None if len(index) else np.int64) if isinstance(index, list) else index


def _has_no_repeats(index: Any) -> bool:
    """Does the index select each element at most once? With arrays of integers the answer is False."""

    def is_single(part: Any) -> bool:
        is_mask = is_array(part) and part.dtype.kind == "b"
        return part is None or part is ... or is_mask or isinstance(part, (int, np.integer, slice))

    return all(map(is_single, index if isinstance(index, tuple) else (index,)))


def _ids(draw: Any) -> Any:
    yield (draw(5, 3), np.array([[4, 0, 4], [2, 4, 1]])), {}
    yield (draw(2, 1), np.array(1)), {}
    yield (draw(2, 3), np.zeros((0,), dtype=np.int64)), {}
    yield (draw(2, 0), np.array([1, 0])), {}


@op("y = w[ids]", "w̄ = 0 with each row of ȳ added to row ids", constants=("ids",), samples=_ids)
def embedding(w, ids):
    """Look up rows of a table by id.  w (V, C), ids (...) -> y (..., C)

    ids: integers from 0 to V-1. Raises IndexRangeError for others, also for negative ones; DtypeError for ids that are
    not integers; ShapeError if w has not two axes.

    On paper: row 1 is used twice, so its gradient is (1, 0) + (10, 20); row 2 is not used.

    >>> import nanograd_llm as ng
    >>> w = ng.Tensor([[1.0, 2], [3, 4], [5, 6]], requires_grad=True)
    >>> embedding(w, [1, 0, 1]).backward([[1.0, 0], [0, 1], [10, 20]])
    >>> w.grad.tolist()
    [[0.0, 1.0], [11.0, 20.0], [0.0, 0.0]]
    """
    if np.ndim(w) != 2:
        raise ShapeError(f"an embedding table must have two axes, (V, C); got shape {np.shape(w)}")
    return w[beside(check_ids(ids, len(w), "token id"), w)]


@embedding.backward
def embedding_backward(dy, w_shape, ids, onto):
    if onto[0] is not None:  # a table that is also the head: large, and only a few rows change here
        return _add_runs(onto[0], dy, ids)
    return add_rows(dy, ids, vocab_size=w_shape[0])


@op(
    "y = 0 with each row of x added to row ids",
    "x̄ = ȳ[ids]",
    constants=("ids",),
    samples=lambda draw: [((draw(*ids.shape, w.shape[1]), ids), {"vocab_size": 5}) for (w, ids), _ in _ids(draw)],
)
def add_rows(x, ids, *, vocab_size):
    """Add each row of x to the row `id` of a table of zeros: the adjoint of embedding.  x (..., C), ids (...) -> y (?)

    y is (vocab_size, C). Sorting puts equal ids together, so each table row is the sum of one run of rows, always in
    the same order: repeated calls give exactly the same numbers.
    """
    return _add_runs(xp(x).zeros((vocab_size, x.shape[-1]), dtype=x.dtype), x, ids)


def _add_runs(y, x, ids):
    """Add each row of x to row ids of y, in place."""
    ids = to_host(ids).reshape(-1)
    if ids.size:
        order = np.argsort(ids, kind="stable")
        in_order = ids[order]
        starts = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]]))
        rows = np.reshape(x, (ids.size, x.shape[-1]))[beside(order, y)]
        y[beside(in_order[starts], y)] += _run_sums(rows, starts)
    return y


def _run_sums(rows, starts):
    """The sum of each run of rows (N, C), which is overwritten; starts: where the runs begin, a NumPy array."""
    if xp(rows) is np:
        return np.add.reduceat(rows, starts, axis=0)
    # CuPy's reduceat subtracts cumulative sums, which is inaccurate: add pairs instead, then pairs of pairs, …
    sizes, places = np.diff(starts, append=len(rows)), np.arange(len(rows))
    place, left = places - np.repeat(starts, sizes), np.repeat(starts + sizes, sizes) - places
    step = 1
    while step < sizes.max():
        firsts = beside(np.flatnonzero((place % (2 * step) == 0) & (left > step)), rows)
        rows[firsts] += rows[firsts + step]
        step *= 2
    return rows[beside(starts, rows)]


@add_rows.backward
def add_rows_backward(dy, ids):
    return embedding(dy, ids)


def check_ids(ids: Any, size: int, what: str) -> Any:
    """The ids as an array. Raises DtypeError unless they are integers, IndexRangeError unless all are in 0..size-1."""
    ids = np.asarray(ids) if isinstance(ids, (int, list, tuple)) else ids
    ids = ids if ids.size else ids.astype(np.int64)  # an empty list becomes a float array
    if ids.dtype.kind not in "iu":
        raise DtypeError(f"{what}s must be integers; got {ids.dtype}; use astype('int64')")
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise IndexRangeError(f"{what}s must be from 0 to {size - 1}; got {ids.min()} to {ids.max()}")
    return ids


@op("y = x in another dtype", "x̄ = ȳ in x's dtype", samples=lambda draw: [((draw(2, 3),), {"dtype": np.float64})])
def cast(x, *, dtype):
    """Convert to another dtype; only a conversion between float dtypes has a gradient.  x (*) -> y (*)"""
    return array_like(x).astype(dtype)


@cast.backward
def cast_backward(dy, x_dtype):
    return dy.astype(x_dtype)


@op(
    "y = x on and below diagonal k, 0 above",
    "x̄ = ȳ on and below it, 0 above",
    samples=lambda draw: [((draw(2, 3, 4),), {"k": k}) for k in (-1, 0, 1)],
)
def tril(x, *, k=0):
    """The lower triangle of the last two axes, up to diagonal k, and 0 elsewhere.  x (..., n, m) -> y (..., n, m)

    The part above diagonal k is x - tril(x, k=k). Raises ShapeError for fewer than two axes.
    """
    if np.ndim(x) < 2:  # NumPy would turn a vector into a matrix
        raise ShapeError(f"tril needs at least two axes; got shape {np.shape(x)}")
    return np.tril(x, k)


@tril.backward
def tril_backward(dy, k):
    return tril(dy, k=k)


def causal_mask(queries: int, keys: int) -> np.ndarray:
    """(queries, keys): True where the key is not later than the query. The last query is at the last key."""
    return np.tri(queries, keys, keys - queries, dtype=bool)
