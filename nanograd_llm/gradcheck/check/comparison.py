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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nanograd_llm.autograd.tensor import grad
from nanograd_llm.gradcheck.check.derivatives import Derivative, Line
from nanograd_llm.gradcheck.check.function import Differentiable
from nanograd_llm.gradcheck.check.rounding import nudged, widened

BLUNT = 1e-6  # a tolerance above this part of the numbers compared tells nothing,
FAINT = 1e-10  # unless these are all rounding: a gradient below this part of its cotangent counts as zero

Method = Callable[..., Derivative]  # of a Line


class Precision(NamedTuple):
    """What one check knows about rounding: ε of the narrowest float in the function, and c."""

    epsilon: float
    c: float


class Sides(NamedTuple):
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


def hold(
    function: Differentiable,
    k: int,
    method: Method,
    v: np.ndarray,
    u: np.ndarray,
    precision: Precision,
    rng: np.random.Generator,
) -> Outcome:
    """Compare, and where both sides part, measure how much of that is rounding inside the function: see `compare`."""
    values, reach = function.values, max(1.0, length(function.values[k]))
    sides = compare(function, k, method, values, v, u)
    tolerance = precision.epsilon * (precision.c * sides.scale + 4 * sides.result * reach) + sides.error
    tolerance = tolerance + precision.epsilon * FAINT * np.abs(v).min(initial=0) * length(function.values[k])

    def again() -> np.ndarray:
        *near, near_v, near_u = nudged([*values, v, u], rng)
        return compare(function, k, method, near, near_v, near_u).off

    tolerance, off = widened(tolerance, sides.off, again), np.abs(sides.off)
    within = off <= tolerance
    cotangents = np.abs(v).reshape(len(v), -1).sum(axis=1, keepdims=True)
    sharp = tolerance <= BLUNT * (sides.scale + sides.result) + FAINT * cotangents
    return Outcome(
        right=bool(within.all()),
        sharp=bool(sharp.all()),
        finite=bool(np.isfinite(sides.numeric).all()),
        off=_part(off, sides.scale),
        tolerance=_part(tolerance, sides.scale),
        wrong_rows=~within.all(axis=1),
    )


def compare(
    function: Differentiable, k: int, method: Method, values: Sequence[np.ndarray], v: np.ndarray, u: np.ndarray
) -> Sides:
    """Each cotangent (a row of v) with each direction of input k (a row of u).

    A one-dimensional v or u stands for its numbers one by one: each with zeros in all other places.
    """
    y, leaves = function.record(values)
    v = np.diag(v) if v.ndim == 1 else v
    a = np.zeros((len(v), values[k].size))
    if y.requires_grad:
        a = rows([grad(y, leaves[k], row.reshape(y.shape), retain_graph=True) for row in v])
    size_a, size_v = np.abs(a), np.abs(v)
    size_y = np.where(np.isfinite(y.data), np.abs(y.data), 0.0).reshape(-1)
    columns = []
    for row in u if u.ndim == 2 else (np.where(np.arange(u.size) == i, u, 0.0) for i in np.flatnonzero(u)):
        found = method(line(function, values, k, row.reshape(values[k].shape)))
        ju, error = found.value.reshape(-1), found.error.reshape(-1)
        with np.errstate(invalid="ignore"):
            scale = size_a @ np.abs(row) + size_v @ np.abs(ju)
            columns.append((a @ row, v @ ju, scale, size_v @ error, size_v @ (size_y * (ju != 0))))
    sides = Sides(*(np.stack(side, axis=1) for side in zip(*columns)))
    if u.ndim == 2:
        return sides
    # an entry is made of terms as large as the others of its row
    return sides._replace(result=sides.result + sides.scale.max(axis=1, keepdims=True))


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


def _part(a: np.ndarray, whole: np.ndarray) -> float:
    """The largest a / whole; 0 where there is nothing to be a part of."""
    return float(np.max(np.divide(a, whole, where=whole > 0, out=np.zeros_like(whole)), initial=0))
