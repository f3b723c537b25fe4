"""The engine's gradient beside the function's own slopes, number by number, and how far rounding may part the two.

For a cotangent v and a direction u of one input, the engine's gradient a and the function's Jacobian J must agree on
one number: ⟨a, u⟩ = ⟨v, J u⟩.  A wrong entry moves the left side by itself times uᵢ, and no uᵢ or vᵢ is small. Where
that can be afforded, u also singles out one entry after the other, so that none can hide behind larger ones.

Both sides are sums, and rounding moves a sum by the machine epsilon times the sizes of its terms,
c ε (Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|), with c from the longest chain of ops between an input and the result.  The result y is
rounded too, which is felt where y is large and J small, as in a softmax that saturates: 4 ε Σ|vᵢyᵢ| max(1, |u|).  A
difference adds its own error estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import grad
from nanograd_llm.gradcheck.check.derivatives import Derivative, Line
from nanograd_llm.gradcheck.check.function import Differentiable
from nanograd_llm.gradcheck.check.rounding import nudged, widened

BLUNT = 1e-6  # a tolerance above this part of the numbers compared tells nothing,
FAINT = 1e-10  # unless these are all rounding: a gradient below this part of its cotangent counts as zero

Method = Callable[..., Derivative]  # of a Line


@dataclass(frozen=True)
class Precision:
    """What one check knows about rounding: ε of the narrowest float in the function, and c."""

    epsilon: float
    c: float


@dataclass(frozen=True)
class Sides:
    """Both sides for every pair of a cotangent (rows) and a direction (columns).

    scale: Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|.  error: of the differences.  result: Σ|vᵢyᵢ| over what the direction moves.
    """

    analytic: np.ndarray
    numeric: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    result: np.ndarray

    @property
    def off(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return self.analytic - self.numeric


Compare = Callable[[Sequence[np.ndarray], np.ndarray, np.ndarray], Sides]  # values, v, u


@dataclass(frozen=True)
class Outcome:
    """Whether both sides agree; the largest difference and the largest tolerance, as parts of the numbers compared.

    sharp: does the tolerance leave more than rounding to see?  finite: are the function's slopes?
    wrong_rows: which cotangents show a difference.
    """

    right: bool
    sharp: bool
    finite: bool
    off: float
    tolerance: float
    wrong_rows: np.ndarray


def along_directions(
    function: Differentiable, k: int, method: Method, values: Sequence[np.ndarray], v: np.ndarray, u: np.ndarray
) -> Sides:
    """Every pair of a dense cotangent (a row of v) and a dense direction of input k (a row of u)."""
    a, y = _gradients(function, k, values, v)
    slopes = [method(line(function, values, k, row.reshape(values[k].shape))) for row in u]
    ju, error = rows([s.value for s in slopes]), rows([s.error for s in slopes])
    with np.errstate(invalid="ignore"):
        scale = np.abs(a) @ np.abs(u).T + np.abs(v) @ np.abs(ju).T
        return Sides(a @ u.T, v @ ju.T, scale, np.abs(v) @ error.T, np.abs(v) @ y[:, None])


def by_entries(
    function: Differentiable, k: int, method: Method, values: Sequence[np.ndarray], v: np.ndarray, sizes: np.ndarray
) -> Sides:
    """Every entry of input k by itself, moved by its size: the rows of v are cotangents.

    Where v is one-dimensional, each of its entries is a cotangent by itself: the whole Jacobian.
    """
    whole = v.ndim == 1
    a, y = _gradients(function, k, values, _single(v) if whole else v)
    ju, error = np.zeros((sizes.size, y.size)), np.zeros((sizes.size, y.size))
    for j in np.flatnonzero(sizes):
        found = slope(function, values, k, j, sizes[j], method)
        ju[j], error[j] = found.value.reshape(-1), found.error.reshape(-1)
    analytic, moved = a * sizes, ju != 0
    with np.errstate(invalid="ignore"):
        if whole:
            numeric = (ju * v).T
            scale = np.abs(analytic) + np.abs(numeric)
            error, result = np.abs(error * v).T, (np.abs(v) * y * moved).T
        else:
            numeric = v @ ju.T
            scale = np.abs(analytic) + np.abs(v) @ np.abs(ju).T
            error, result = np.abs(v) @ error.T, (np.abs(v) * y) @ moved.T
    # an entry is made of terms as large as the others of its row
    return Sides(analytic, numeric, scale, error, result + scale.max(axis=1, initial=0, keepdims=True))


def hold(
    compare: Compare,
    values: Sequence[np.ndarray],
    v: np.ndarray,
    u: np.ndarray,
    reach: float,
    precision: Precision,
    rng: np.random.Generator,
) -> Outcome:
    """Compare, and where both sides part, measure how much of that is rounding inside the function.

    reach: the size of a direction.
    """
    sides = compare(values, v, u)
    tolerance = precision.epsilon * (precision.c * sides.scale + 4 * sides.result * max(1.0, reach)) + sides.error
    tolerance = tolerance + precision.epsilon * FAINT * np.abs(v).min(initial=0) * reach

    def again() -> np.ndarray:
        *near, near_v, near_u = nudged([*values, v, u], rng)
        return compare(near, near_v, near_u).off

    tolerance, off = widened(tolerance, sides.off, again), np.abs(sides.off)
    within = off <= tolerance
    cotangents = np.abs(v).reshape(len(off), -1).sum(axis=1, keepdims=True)
    sharp = tolerance <= BLUNT * (sides.scale + sides.result) + FAINT * cotangents
    return Outcome(
        bool(within.all()),
        bool(sharp.all()),
        bool(np.isfinite(sides.numeric).all()),
        _part(off, sides.scale),
        _part(tolerance, sides.scale),
        ~within.all(axis=1),
    )


def _gradients(
    function: Differentiable, k: int, values: Sequence[np.ndarray], v: Iterable[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The engine's gradient of input k for each of these cotangents, and the size of each entry of the result; flat."""
    y, leaves = function.record(values)
    found = [
        grad(y, leaves[k], row.reshape(y.shape), retain_graph=True) if y.requires_grad else np.zeros(values[k].shape)
        for row in v
    ]
    size = np.where(np.isfinite(y.data), np.abs(y.data), 0.0).reshape(-1)
    return rows(found) if found else np.zeros((0, values[k].size)), size


def _single(v: np.ndarray) -> Iterator[np.ndarray]:
    """For each entry a cotangent that is zero elsewhere."""
    for i in range(v.size):
        one = np.zeros(v.size)
        one[i] = v[i]
        yield one


def slope(
    function: Differentiable, values: Sequence[np.ndarray], k: int, places: Any, size: float, method: Method
) -> Derivative:
    """Along the direction that has this size at these flat places of input k and is zero elsewhere."""
    u = np.zeros(values[k].size)
    u[places] = size
    return method(line(function, values, k, u.reshape(values[k].shape)))


def line(function: Differentiable, values: Sequence[np.ndarray], k: int, direction: np.ndarray) -> Line:
    return lambda t: function.evaluate([*values[:k], values[k] + t * direction, *values[k + 1 :]])


def dense(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random signs and sizes, none of them small, so that no entry can hide; never all the same."""
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape))


def length(x: np.ndarray) -> float:
    """The root mean square of x, so that a direction is as large as x; 1 where x is zero, empty or infinite."""
    finite = x[np.isfinite(x)]
    size = float(np.sqrt(np.mean(finite * finite))) if finite.size else 0.0
    return size or 1.0


def rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([a.reshape(-1) for a in arrays])


def _part(a: Any, whole: Any) -> float:
    """The largest a / whole; 0 where there is nothing to be a part of."""
    return float(np.max(np.divide(a, whole, where=whole > 0, out=np.zeros_like(whole)), initial=0))
