"""The engine's gradient beside the function's own slopes: both sides of ⟨a, u⟩ = ⟨v, J u⟩.

For a cotangent v and a direction u of one input, the engine's gradient a and the function's Jacobian J must agree on
this number. An entry aᵢ that is off by e moves the left side by e uᵢ, and no uᵢ or vᵢ is small. Where time allows, each
entry is also compared by itself, so that no small one can hide behind larger ones. Both sides are sums, and rounding
moves a sum by the machine epsilon times the sizes of its terms: how large these are is found here, too.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanograd_llm.autograd.modes import higher_order, watched
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import walk
from nanograd_llm.autograd.tensor import Tensor, array_of, origin
from nanograd_llm.backend.arrays import beside, to_host
from nanograd_llm.gradcheck.check.derivatives import ComplexStepError, Derivative, Line, complex_step
from nanograd_llm.gradcheck.check.function import Differentiable, Scaled, grad
from nanograd_llm.gradcheck.check.rounding import EPS, MARGIN, Precision, Precisions

BLUNT = 1e-6  # a number with a larger relative error than this says nothing
NOTHING = 1e-40  # a slope below this part of the result is zero: a complex step leaves 1e-60
_TIMES = 3  # that all numbers are moved, to see how far that moves gradients
_POINTS = 8  # of a line whose values are kept, at least: the six of one step, and two of the next;
_KEPT = 2**20  # more, up to so many numbers
NEARER = 10  # times that the inputs are divided by four, to leave the region where a function saturates
_ASIDE = (2.0**-10, -(2.0**-11), 2.0**-9)  # parts of the inputs by which lines lie beside them
_SHORT = np.arange(8) * 0.7  # of float64's last digits: points of such a line
_LOUD = 16  # roundings that bend a line at least, if it is to be looked at
RETREATS = (*range(1, NEARER + 1), 25, 40, 55)  # and more, while all is lost

Method = Callable[..., Derivative]  # of a Line and the epsilon of its numbers


class Slopes(NamedTuple):
    """The slopes of a function by its input k, and how they are computed."""

    function: Differentiable
    k: int
    method: Method


class Sides(NamedTuple):
    """Both sides for every pair of a cotangent (rows) and a direction (columns).

    scale: Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|.  error: of the differences.
    result: Σ|vᵢyᵢ| over what the direction moves.
    flow: Σ|vᵢyᵢ|; where the two sides differ, with the largest size that each yᵢ has near x: see `reach`.
    """

    analytic: np.ndarray
    numeric: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    result: np.ndarray
    flow: np.ndarray

    @property
    def off(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.abs(self.analytic - self.numeric)

    def agree(self, precision: Precision) -> np.ndarray:
        """Which pairs agree to rounding, as sharply as can be: no further look is needed."""
        close = precision.epsilon * precision.c * self.scale + self.error
        return (self.off <= close) & (close <= BLUNT * self.scale) | (self.off <= NOTHING * self.flow)

    def negligible(self, precision: Precision) -> np.ndarray:
        """What rounding of the result, or of numbers as large as it is nearby, can leave of a gradient that is zero."""
        return precision.epsilon * (4 * self.result + precision.c * self.flow)


def reach(
    function: Differentiable, k: int, v: np.ndarray, precisions: Precisions, rng: np.random.Generator
) -> np.ndarray:
    """For each cotangent Σ|vᵢyᵢ| with the largest size that each yᵢ has at x, a little to both sides of it, nearer to
    zero, and inside the function, as far as rounding shows that. And so much for each op call on the tape."""
    x = function.values[k]
    along = line(function, function.values, k, dense(rng, x.shape) * sizes(x))
    scaled = (Scaled(function, 4.0**-step) for step in RETREATS[:2])
    nearer = [near.evaluate(near.values).reshape(-1) for near in scaled]
    seen = np.abs([along(t).reshape(-1) for t in (0.0, 0.125, -0.125)] + nearer)
    size = np.where(np.isfinite(seen), seen, 0.0).max(axis=0)
    whole = np.abs(v) @ np.maximum(size, np.reshape(noise(function, precisions), -1))
    return np.maximum(whole, interior(function, v, [4.0**-step for step in RETREATS[:2]]))


def interior(function: Differentiable, v: np.ndarray, parts: Sequence[float] = ()) -> np.ndarray:
    """For each cotangent (a row of v) the largest Σ|x̄ x| over the result and the inputs x of all op calls on the tape.

    So much of the result flows through these numbers, and their rounding moves it by ε times as much.
    parts: also the largest Σ|ȳ y| with the y that each op call has at these parts of its inputs.
    """
    calls: dict[Any, tuple[Sequence[Any], Any]] = {}

    def note(node: Any, y: Any, arrays: Sequence[Any], static: Any, place: str) -> None:
        calls[node] = arrays, static

    @functools.cache
    def nearer(node: Any) -> list[np.ndarray]:
        arrays, static = calls.get(node, ((), {}))
        found = []
        for part in parts if node in calls else ():
            with contextlib.suppress(Exception):  # a user's op may raise whatever it likes there
                y = node.op(*(part * x if getattr(x, "dtype", None) == node.dtype else x for x in arrays), **static)
                found.append(np.where(np.isfinite(y), np.abs(y), 0.0))
        return found

    with watched(note):
        y, leaves = function.record(function.values)
    found = np.abs(v) @ _finite_sizes(y.numpy())
    for i, row in enumerate(v if y.requires_grad else ()):
        sums = Sums({origin(leaf) for leaf in leaves})
        seed = beside(row.reshape(y.shape).astype(y.dtype), y.data)
        for node, dy, gradients in walk(origin(y), seed, sums, retain=True):
            pairs = [(g, x) for g, x in zip(gradients, calls.get(node, ((), {}))[0]) if g is not None]
            for a, b in [*pairs, *((dy, near) for near in nearer(node))]:
                size = np.abs(array_of(a) * b)
                found[i] = max(found[i], float(size[np.isfinite(size)].sum()))
    return found


def perturbed(
    function: Differentiable, values: Sequence[np.ndarray], v: np.ndarray, epsilon: float, rng: np.random.Generator
) -> list[list[list[np.ndarray]]]:
    """Some times, for each cotangent (a row of v), the gradients, where every number on the way is moved by about ε.

    So they tell what rounding to ε can do to them, which the size of the result does not where numbers cancel within.
    Fused ops run as the compositions they equal, so numbers inside them are moved too. Where a rule takes no Tensors,
    the inputs alone are moved.
    """

    def about_one(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return 1 + (epsilon * rng.uniform(-2, 2, shape)).astype(dtype)  # which float64 cannot hold for wider numbers

    def move(node: Any, y: Any, arrays: Sequence[Any], static: Any, place: str) -> None:
        is_view = y.base is not None
        if is_view and isinstance(y, np.ndarray):  # of an input, which was moved before, or of an array of the op's own
            is_view = any(np.may_share_memory(y, a) for a in arrays if isinstance(a, np.ndarray))
        if not is_view and all(y is not a for a in arrays):
            given = [to_host(a).reshape(-1) for a in arrays if getattr(a, "dtype", None) == y.dtype]
            limits = [0, *(number for number in static.values() if isinstance(number, (int, float)))]
            if not np.isin(to_host(y), np.concatenate([*given, limits])).all():  # clip, max and others round nothing
                y *= beside(about_one(y.shape, y.dtype), y)

    def gradients_at(point: Sequence[np.ndarray], **how: bool) -> list[list[np.ndarray]]:
        y, leaves = function.record(point)
        cotangents = [Tensor(row.reshape(y.shape).astype(y.dtype), device=y.device, **how) for row in v]
        found = [grad(y, leaves, cotangent, retain_graph=True) for cotangent in cotangents]
        return [[to_host(array_of(g)) for g in row] for row in found]

    seen = []
    for _ in range(_TIMES):
        point = [x * about_one(x.shape, x.dtype) for x in values]
        try:
            with higher_order(), watched(move):
                seen.append(gradients_at(point, requires_grad=True))
        except Exception:  # a user's rule may take no Tensors, and raise whatever it likes
            seen.append(gradients_at(point))
    return seen


def _finite_sizes(y: np.ndarray) -> np.ndarray:
    """The sizes of all numbers in a row, 0 for those that are not finite."""
    return np.where(np.isfinite(y), np.abs(y), 0.0).reshape(-1)


def noise(function: Differentiable, precisions: Precisions) -> np.ndarray | float:
    """How far rounding inside the function moves each number of its result, as a multiple of ε: computed once."""
    if precisions.pair is None:
        return 0.0
    if function not in precisions.noise:
        narrow, wide = precisions.pair
        found: np.ndarray | float = 0.0
        for t in (0.0, 0.00023, -0.0019):  # points with many digits, so that they are rounded
            x = [value.astype(narrow.dtype) * (1 + t) for value in function.values]
            off = np.abs(function.evaluate([value.astype(wide.dtype) for value in x]) - function.evaluate(x))
            found = np.maximum(found, np.where(np.isfinite(off), off, 0.0).astype(float) / narrow.epsilon)
        precisions.noise[function] = found
    return precisions.noise[function]


def is_grainy(function: Differentiable, dtype: Any) -> bool:
    """Do results of this wider dtype move by steps of float64's last digit, as where a number passes a `float()`?

    Along a line of a few such digits any other function is straight, up to rounding inside it: how large that is shows
    in float64. The lines lie a little away from the inputs, where no kink is.
    """
    rng = np.random.default_rng(0)
    u = [dense(rng, x.shape) for x in function.values]

    def at(where: float) -> list[np.ndarray]:
        return [x * (1 + where * np.sign(d)) for x, d in zip(function.values, u)]

    def along(t: complex) -> np.ndarray:
        return function.evaluate([x.astype(dtype) + t * sizes(x) * d for x, d in zip(at(_ASIDE[0]), u)])

    with contextlib.suppress(ComplexStepError):
        complex_step(along)
        return False
    seen = np.stack([along(EPS * t) for t in _SHORT])
    size, bend = np.abs(seen).max(axis=0), np.abs(np.diff(seen, 2, axis=0)).max(axis=0)
    size = np.maximum(size, np.abs(np.diff(seen, axis=0)).max(axis=0) / (EPS * _SHORT[1]))  # its inputs are rounded too
    epsilon = float(np.finfo(dtype).eps)
    if not (loud := bend > _LOUD * epsilon * size).any():
        return False
    points = [at(where) for where in _ASIDE]
    wide, narrow = (
        np.stack([function.evaluate([x.astype(kind) for x in point]) for point in points])
        for kind in (dtype, np.float64)
    )
    inside = np.abs(wide - narrow).max(axis=0) / EPS
    return bool((bend > MARGIN * epsilon * np.maximum(size, inside))[loud].mean() > 0.5)


def compare(slopes: Slopes, values: Sequence[np.ndarray], v: np.ndarray, u: np.ndarray, precision: Precision) -> Sides:
    """Each cotangent (a row of v) with each direction of input k (a row of u, or each of its numbers by itself)."""
    function, k, method = slopes
    values = [x.astype(precision.dtype) for x in values]
    v, u = v.astype(precision.dtype), u.astype(precision.dtype)
    y, leaves = function.record(values)
    a = np.zeros((len(v), values[k].size), precision.dtype)
    if y.requires_grad:
        a = rows([grad(y, leaves[k], row.reshape(y.shape).astype(y.dtype), retain_graph=True) for row in v])
    a = np.where((u if u.ndim == 2 else u[None]).any(axis=0), a, 0)  # also where it is infinite
    size_a, size_v = np.abs(a), np.abs(v)
    size_y = _finite_sizes(y.numpy())
    columns = []
    for row in u if u.ndim == 2 else (np.where(np.arange(u.size) == i, u, 0) for i in np.flatnonzero(u)):
        found = method(line(function, values, k, row.reshape(values[k].shape)), epsilon=precision.epsilon)
        ju, error = (np.where(v.any(axis=0), part.reshape(-1), 0) for part in (found.value, found.error))
        with np.errstate(invalid="ignore"):
            scale = size_a @ np.abs(row) + size_v @ np.abs(ju)
            columns.append((a @ row, v @ ju, scale, size_v @ error, size_v @ (size_y * (ju != 0)), size_v @ size_y))
    sides = Sides(*(np.stack(side, axis=1) for side in zip(*columns)))
    result = sides.result
    if u.ndim == 1:  # an entry is made of terms as large as the others of its row
        result = result + sides.scale.max(axis=1, initial=0, keepdims=True)
    return sides._replace(result=result)


def slope(
    function: Differentiable, values: Sequence[np.ndarray], k: int, places: Any, size: float, method: Method
) -> Derivative:
    """Along the direction that has this size at these flat places of input k and is zero elsewhere."""
    u = np.zeros(values[k].size)
    u[places] = size
    return method(line(function, values, k, u.reshape(values[k].shape)))


def line(function: Differentiable, values: Sequence[np.ndarray], k: int, direction: np.ndarray) -> Line:
    """φ(t), which keeps its last values: ladders of halved steps meet the same points again."""
    kept: dict[complex, np.ndarray] = {}

    def along(t: complex) -> np.ndarray:
        if t not in kept:
            kept[t] = function.evaluate([*values[:k], values[k] + t * direction, *values[k + 1 :]])
            while len(kept) > max(_POINTS, _KEPT // max(1, kept[t].size)):
                del kept[next(iter(kept))]
        return kept[t]

    return along


def dense(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random signs and sizes, none of them small, so that no entry can hide; never all the same."""
    u = rng.uniform(-1, 1, shape)
    return np.asarray(u + np.copysign(0.5, u))


def length(x: np.ndarray) -> float:
    """The root mean square of x, so that a direction is as large as x; 1 where x is zero, empty or infinite."""
    finite = x[np.isfinite(x)]
    largest = float(np.abs(finite).max(initial=0))
    return largest * math.sqrt(((finite / largest) ** 2).sum() / finite.size) if largest else 1.0


def sizes(x: np.ndarray) -> np.ndarray:
    """How far each entry may be moved without leaving its neighbourhood: its own size; where that is 0, that of x."""
    own = np.abs(x)
    return np.where((own > 0) & np.isfinite(own), own, length(x))


def rows(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.stack([a.reshape(-1) for a in arrays])


def along(a: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Each gradient (a row of a) times each direction (a row of u, or each of its numbers by itself)."""
    return a @ u.T if u.ndim == 2 else a[:, np.flatnonzero(u)] * u[np.flatnonzero(u)]
