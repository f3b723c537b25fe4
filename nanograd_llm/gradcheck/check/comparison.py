"""The engine's gradient beside the function's own slopes, number by number: a mistake, or rounding?

For a cotangent v and a direction u of one input, the engine's gradient a and the function's Jacobian J must agree on
one number: ⟨a, u⟩ = ⟨v, J u⟩.  An entry aᵢ that is off by e moves the left side by e uᵢ, and no uᵢ or vᵢ is small.
Where time allows, each entry is also compared by itself, so that no small one can hide behind larger ones.

Both sides are sums, and rounding moves a sum by the machine epsilon times the sizes of its terms,
c ε (Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|), with c from the longest chain of ops between an input and the result. A difference of that
size decides nearly every case. Where the function itself cancels or saturates, rounding is larger, and no formula says
by how much. Then both sides are computed again with wider numbers: **rounding shrinks with ε, a mistake does not**.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nanograd_llm.autograd.modes import watched
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import walk
from nanograd_llm.autograd.tensor import array_of, grad, origin
from nanograd_llm.gradcheck.check.derivatives import Derivative, Line, differences
from nanograd_llm.gradcheck.check.function import Differentiable, Scaled
from nanograd_llm.gradcheck.check.rounding import MARGIN, Precision, Precisions, nudged

DIGITS = 6  # a gradient with fewer correct decimal digits gets a note; float64 has 16
BLUNT = 1e-6  # a number with a larger relative error than this says nothing
_REPEATS = 4  # points nearby at which a difference is measured again
_FAINT = 1e-10  # a slope below this part of the result need not be known to a millionth
_NOTHING = 1e-40  # a slope below this part of the result is zero: a complex step leaves 1e-60
_GROSS = 1e3  # times as large as what rounding explains
_POINTS = 8  # of a line whose values are kept, at least: the six of one step, and two of the next;
_KEPT = 2**20  # more, up to so many numbers
_NEARER = 10  # times that the inputs are divided by four, to leave the region where a function saturates
_RETREATS = (*range(1, _NEARER + 1), 25, 40, 55)  # and more, while all is lost

Method = Callable[..., Derivative]  # of a Line and the epsilon of its numbers


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

    def pick(self, pairs: Any) -> Sides:
        return Sides(*(side[pairs] for side in self))

    def agree(self, precision: Precision) -> np.ndarray:
        """Which pairs agree to rounding, as sharply as can be: no further look is needed."""
        close = precision.epsilon * precision.c * self.scale + self.error
        return (self.off <= close) & (close <= BLUNT * self.scale) | (self.off <= _NOTHING * self.flow)

    def negligible(self, precision: Precision) -> np.ndarray:
        """What rounding of the result, or of numbers as large as it is nearby, can leave of a gradient that is zero."""
        return precision.epsilon * (4 * self.result + precision.c * self.flow)


@dataclass(frozen=True)
class Outcome:
    """Which pairs of a cotangent and a direction are wrong, and which cannot be told.

    wrong, blunt, faint: for each pair. blunt: rounding hides more than a millionth, also in wider numbers.
    faint: both sides are beyond what rounding leaves of larger numbers, so that neither can be trusted.
    finite: are the function's slopes?  off, tolerance: the largest, as parts of the numbers compared.
    lost: is all that was compared smaller than the rounding of the result?  zero: is it zero?
    digits: how many decimal digits of the engine's own numbers hold, where that was measured.
    """

    wrong: np.ndarray
    blunt: np.ndarray
    faint: np.ndarray
    finite: bool
    off: float
    tolerance: float
    lost: bool
    zero: bool
    digits: float = 16.0

    @property
    def clear(self) -> bool:
        """Is nothing of it wrong or in doubt?"""
        return self.finite and not (self.wrong | self.blunt | self.faint).any()


def hold(
    function: Differentiable,
    k: int,
    method: Method,
    v: np.ndarray,
    u: np.ndarray,
    precisions: Precisions,
    rng: np.random.Generator,
    is_exact: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Compare the gradient of input k for each cotangent (a row of v) along each direction (a row of u).

    A one-dimensional v or u stands for its numbers one by one: each with zeros in all other places.
    is_exact: does the rule agree with the function to all digits of wider numbers? If so, a difference as large as the
    rounding of float64 is a mistake. If not, it may come from constants in the function that are no wider.
    """
    v, given = np.diag(v) if v.ndim == 1 else v, precisions.given
    if method is differences:
        method = functools.partial(differences, noise=noise(function, precisions))
    sides = compare(function, k, method, function.values, v, u, given)
    lost = bool((sides.scale <= given.epsilon * sides.flow).all())
    if not sides.agree(given).all():
        through = reach(function, k, v, precisions, rng)[:, None]
        flow = np.maximum(through, sides.scale.max(initial=0))
        sides = sides._replace(flow=np.broadcast_to(flow, sides.flow.shape))
    close = given.epsilon * given.c * sides.scale + sides.error
    off = np.where(sides.off <= _NOTHING * sides.flow, 0.0, sides.off)
    loose = close + 4 * given.epsilon * sides.result
    open_pairs = ~(sides.agree(given) | (off <= loose) & (loose <= BLUNT * sides.scale))
    finite = np.isfinite(sides.numeric)
    wrong = finite & ~np.isfinite(sides.analytic)
    blunt, faint, digits = np.zeros_like(wrong), np.zeros_like(wrong), 16.0
    open_pairs &= finite & ~wrong
    if open_pairs.any():
        some_v, some_u = open_pairs.any(axis=1), open_pairs.any(axis=0)
        chosen = np.ix_(some_v, some_u)
        some = sides.pick(chosen)
        found = _resolve(function, k, method, v[some_v], _columns(u, some_u), some, precisions, rng, is_exact)
        mask = open_pairs[chosen]
        for part, whole in zip(found[:3], (wrong, blunt, faint)):
            whole[chosen] |= part & mask
        off[chosen], close[chosen] = np.where(mask, found[3], off[chosen]), np.where(mask, found[4], close[chosen])
        digits = found[5]
        # a difference that is nothing beside what flows through the same results, as where a function saturates
        nothing = wrong & open_pairs & (sides.off <= given.epsilon * (4 * sides.result + given.c * through))
        wrong, faint = wrong & ~nothing, faint | nothing
    parts = _part(off, sides.scale), _part(close, sides.scale)
    return Outcome(wrong, blunt, faint, bool(finite.all()), *parts, lost, not sides.scale.any(), digits)


class _Resolved(NamedTuple):
    wrong: np.ndarray
    blunt: np.ndarray
    faint: np.ndarray
    off: np.ndarray
    tolerance: np.ndarray
    digits: float


def _resolve(
    function: Differentiable,
    k: int,
    method: Method,
    v: np.ndarray,
    u: np.ndarray,
    sides: Sides,
    precisions: Precisions,
    rng: np.random.Generator,
    is_exact: Callable[[], bool],
) -> _Resolved:
    """Do the two sides differ by rounding?  Then the difference shrinks with ε when both are computed in wider numbers.

    One that shrinks less than ε is a mistake if it is also the same at points a few units in the last place away.
    Otherwise the check cannot tell: a function may hold a cast or a constant that is no wider.
    """
    if precisions.pair is None:
        return _measured(function, k, method, v, u, sides, precisions.given, rng)
    narrow, wide = precisions.pair
    nobody = np.ones(sides.off.shape, bool)

    def both(values: Sequence[np.ndarray], v: np.ndarray, u: np.ndarray) -> tuple[Sides, Sides]:
        one, other = (compare(function, k, method, values, v, u, precision) for precision in (narrow, wide))
        return one._replace(flow=sides.flow), other._replace(
            flow=sides.flow, result=np.maximum(other.result, sides.result)
        )

    near, far = both(function.values, v, u)
    tolerance = precisions.given.epsilon * narrow.c * far.scale + far.error

    def shrinks(near_off: np.ndarray) -> np.ndarray:
        rounding = np.fmax(near_off, narrow.epsilon * narrow.c * near.scale)
        return far.off <= MARGIN * wide.epsilon / narrow.epsilon * rounding

    equal = far.agree(wide) | (far.off <= tolerance) & (tolerance <= BLUNT * far.scale)
    steady = np.array(nobody)
    is_rounding = equal | shrinks(near.off)
    flow = np.zeros((len(v), 1))
    if not equal.all():
        flow = interior(function, v)[:, None]
        far = far._replace(result=np.maximum(far.result, flow))
    # what rounding of the numbers on the tape can explain; beyond that a rule may be wrong in the narrow kind alone
    plain = 4 * narrow.epsilon * narrow.c * (near.scale + near.flow + flow * max(1.0, length(function.values[k])))
    plain = np.where(near.error > 0, np.inf, plain)  # differences have other errors than rounding
    parted = np.abs((near.analytic - near.numeric) - (far.analytic - far.numeric))
    # so much larger than rounding, and the same in both: points nearby need not be asked
    gross = (far.off > _GROSS * plain) & (parted <= BLUNT * far.off)
    if not (is_rounding & (near.off <= plain) | gross).all():
        again = [both(*_nudged(function.values, v, u, rng)) for _ in range(_REPEATS)]
        is_rounding = equal | shrinks(np.fmax.reduce([near.off, *(one.off for one, _ in again)]))
        beyond = (near.off > plain) & _is_steady([near, *(one for one, _ in again)], 0.05)
        is_rounding &= ~beyond | (beyond.mean() < 0.5)  # one that happens to be steady is none
        steady = _is_steady([far, *(other for _, other in again)]) | (is_rounding < equal)
    faint = ~is_rounding & ~equal & (far.off <= far.negligible(wide))
    if not (is_rounding | faint).all() and not is_exact():
        faint |= ~is_rounding & ~equal & (far.off <= 4 * precisions.given.epsilon * far.result)
    if narrow == precisions.given:  # a mistake is the same in both
        steady &= equal | (parted <= 0.5 * far.off)
    steady |= gross & (far.off > BLUNT * far.scale)  # wrong at this very point, as where numbers are equal
    off = np.where(equal, near.off, far.off)
    wrong = ~is_rounding & ~faint & steady & (off > tolerance) & (far.error <= 0.1 * off)
    known = np.fmax(far.off, far.error)
    engine = np.abs(sides.analytic - far.analytic)  # how far rounding moves the engine's own numbers
    sharp = equal | (known <= BLUNT * far.scale) | (known <= _FAINT * far.flow)
    if wide.epsilon < precisions.given.epsilon:
        sharp |= known <= engine
    faint |= is_rounding & ~sharp & (known > 0.1 * far.scale)  # neither side is known to a digit
    blunt = ~wrong & ~faint & ~(is_rounding & sharp)
    moved = float(_part(np.where(is_rounding, engine, 0), far.scale))
    digits = min(16.0, max(0.0, -np.log10(moved))) if moved > 0 else 16.0
    off = np.where(wrong, off, far.off).astype(float)
    return _Resolved(wrong, blunt, faint, off, tolerance.astype(float), digits)


def _measured(
    function: Differentiable,
    k: int,
    method: Method,
    v: np.ndarray,
    u: np.ndarray,
    sides: Sides,
    given: Precision,
    rng: np.random.Generator,
) -> _Resolved:
    """The same where no wider numbers serve, as in a function of float32: known to as many digits as rounding leaves.

    Rounding is measured: it comes out otherwise at points nearby, where a mistake stays.
    """

    def near() -> Sides:
        points = [a * (1 + 32 * given.epsilon * rng.uniform(-2, 2, a.shape)) for a in (*function.values, v, u)]
        return compare(function, k, method, points[:-2], points[-2], points[-1], given)

    seen = [sides, *(near() for _ in range(_REPEATS))]
    scale, result, error = (np.max([getattr(s, name) for s in seen], axis=0) for name in ("scale", "result", "error"))
    off = np.stack([s.analytic - s.numeric for s in seen])
    bound = given.epsilon * (given.c * scale + 4 * result) + error
    tolerance = bound + np.ptp(off, axis=0)
    off = np.abs(off)
    is_right = (off.max(axis=0) <= tolerance) & (tolerance <= coarsest(given) * scale)
    faint = ~is_right & (sides.off <= sides.negligible(given))
    wrong = ~is_right & ~faint & (off.min(axis=0) > 4 * bound) & _is_steady(seen)
    part = _part(np.where(is_right, tolerance, 0), scale)
    digits = min(16.0, -np.log10(part)) if part else 16.0
    return _Resolved(wrong, ~(is_right | faint | wrong), faint, sides.off, tolerance, digits)


def coarsest(given: Precision) -> float:
    """The part of itself to which a slope must be known: a millionth, or in float32 what central differences leave."""
    return max(BLUNT, float(np.cbrt(given.epsilon)))


def _is_steady(seen: Sequence[Sides], part: float = 0.5) -> np.ndarray:
    """Which differences are the same at all of these points, up to this part of them?"""
    off = np.stack([sides.analytic - sides.numeric for sides in seen])
    with np.errstate(invalid="ignore"):
        return np.ptp(off, axis=0) <= part * np.abs(off[0])


def is_exact(
    function: Differentiable, k: int, method: Method, v: np.ndarray, u: np.ndarray, precisions: Precisions
) -> bool:
    """Do both sides agree to all digits of wider numbers?"""
    wide = precisions.wide
    return wide is not None and bool(compare(function, k, method, function.values, v, u, wide).agree(wide).all())


def retreat(
    function: Differentiable,
    k: int,
    method_at: Callable[[Scaled], Method],
    v: np.ndarray,
    u: np.ndarray,
    precisions: Precisions,
    rng: np.random.Generator,
) -> tuple[float, Outcome] | None:
    """Compare nearer to zero, where a function that saturates does not: the part of x it took, and what is found.

    method_at: how slopes are computed there.
    The first part at which the gradient keeps DIGITS digits, else the first at which anything is left of it. None where
    no part tells: the function is not finite on the way, or all is lost in rounding.
    """
    first = None
    for step in _RETREATS:
        part = 4.0**-step
        if not np.isfinite(function.evaluate([part * x for x in function.values])).all():
            break
        there = Scaled(function, part)
        found = hold(there, k, method_at(there), v, part * u, precisions, rng)
        if not found.finite:
            break
        if not found.lost and (found.wrong.any() or not found.faint.any()):
            first = first or (part, found)
            if found.wrong.any() or found.digits >= DIGITS:
                return part, found
        if not found.lost and step == _NEARER:
            break
    return first


def is_constant(function: Differentiable, k: int, precisions: Precisions, rng: np.random.Generator) -> bool:
    """Does the result stay the same, up to rounding, while the entries of input k go to zero, each by itself?"""
    given, values = precisions.given, function.values
    y = function.evaluate(values)
    size = np.maximum(np.where(np.isfinite(y), np.abs(y), 0.0), noise(function, precisions))
    for step in (0, *_RETREATS[::2]):
        nearer = 4.0**-step * values[k] * rng.uniform(0.5, 1.5, values[k].shape)
        off = np.abs(function.evaluate([*values[:k], nearer, *values[k + 1 :]]) - y)
        if (off[np.isfinite(off)] > (given.c * given.epsilon * size)[np.isfinite(off)]).any():
            return False
    return True


def reach(
    function: Differentiable, k: int, v: np.ndarray, precisions: Precisions, rng: np.random.Generator
) -> np.ndarray:
    """For each cotangent Σ|vᵢyᵢ| with the largest size that each yᵢ has at x, a little to both sides of it, nearer to
    zero, and inside the function, as far as rounding shows that. And so much for each op call on the tape."""
    x = function.values[k]
    along = line(function, function.values, k, dense(rng, x.shape) * sizes(x))
    scaled = (Scaled(function, 4.0**-step) for step in _RETREATS[:2])
    nearer = [near.evaluate(near.values).reshape(-1) for near in scaled]
    seen = np.abs([along(t).reshape(-1) for t in (0.0, 0.125, -0.125)] + nearer)
    size = np.where(np.isfinite(seen), seen, 0.0).max(axis=0)
    whole = np.abs(v) @ np.maximum(size, np.reshape(noise(function, precisions), -1))
    return np.maximum(whole, interior(function, v, [4.0**-step for step in _RETREATS[:2]]))


def interior(function: Differentiable, v: np.ndarray, parts: Sequence[float] = ()) -> np.ndarray:
    """For each cotangent (a row of v) the largest Σ|x̄ x| over the result and the inputs x of all op calls on the tape.

    So much of the result flows through these numbers, and their rounding moves it by ε times as much.
    parts: also the largest Σ|ȳ y| with the y that each op call has at these parts of its inputs.
    """
    calls: dict[Any, tuple[Sequence[Any], Any]] = {}

    def note(node: Any, arrays: Sequence[Any], static: Any, place: str) -> None:
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
    found = np.abs(v) @ np.where(np.isfinite(y.data), np.abs(y.data), 0.0).reshape(-1)
    for i, row in enumerate(v if y.requires_grad else ()):
        sums = Sums({origin(leaf) for leaf in leaves})
        for node, dy, gradients in walk(origin(y), row.reshape(y.shape).astype(y.dtype), sums, retain=True):
            pairs = [(g, x) for g, x in zip(gradients, calls.get(node, ((), {}))[0]) if g is not None]
            for a, b in [*pairs, *((dy, near) for near in nearer(node))]:
                size = np.abs(array_of(a) * b)
                found[i] = max(found[i], float(size[np.isfinite(size)].sum()))
    return found


def noise(function: Differentiable, precisions: Precisions) -> np.ndarray | float:
    """How far rounding inside the function moves each number of its result, as a multiple of ε: computed once."""
    if precisions.pair is None:
        return 0.0
    if function not in precisions.noise:
        narrow, wide = precisions.pair
        found: np.ndarray | float = 0.0
        for t in (0.0, 2.0**-12, -(2.0**-9)):
            x = [value.astype(narrow.dtype) * (1 + t) for value in function.values]
            off = np.abs(function.evaluate([value.astype(wide.dtype) for value in x]) - function.evaluate(x))
            found = np.maximum(found, np.where(np.isfinite(off), off, 0.0).astype(float) / narrow.epsilon)
        precisions.noise[function] = found
    return precisions.noise[function]


def _nudged(
    values: Sequence[np.ndarray], v: np.ndarray, u: np.ndarray, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    *near, near_v, near_u = nudged([*values, v, u], rng)
    return near, near_v, near_u


def _columns(u: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen directions among those of u."""
    if u.ndim == 2:
        return u[chosen]
    kept = np.zeros_like(u)
    kept[np.flatnonzero(u)[chosen]] = u[np.flatnonzero(u)[chosen]]
    return kept


def compare(
    function: Differentiable,
    k: int,
    method: Method,
    values: Sequence[np.ndarray],
    v: np.ndarray,
    u: np.ndarray,
    precision: Precision,
) -> Sides:
    """Each cotangent (a row of v) with each direction of input k (a row of u, or each of its numbers by itself)."""
    values = [x.astype(precision.dtype) for x in values]
    v, u = v.astype(precision.dtype), u.astype(precision.dtype)
    y, leaves = function.record(values)
    a = np.zeros((len(v), values[k].size), precision.dtype)
    if y.requires_grad:
        a = rows([grad(y, leaves[k], row.reshape(y.shape).astype(y.dtype), retain_graph=True) for row in v])
    a = np.where((u if u.ndim == 2 else u[None]).any(axis=0), a, 0)  # also where it is infinite
    size_a, size_v = np.abs(a), np.abs(v)
    size_y = np.where(np.isfinite(y.data), np.abs(y.data), 0.0).reshape(-1)
    columns = []
    for row in u if u.ndim == 2 else (np.where(np.arange(u.size) == i, u, 0) for i in np.flatnonzero(u)):
        found = method(line(function, values, k, row.reshape(values[k].shape)), epsilon=precision.epsilon)
        ju, error = found.value.reshape(-1), found.error.reshape(-1)
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


def rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([a.reshape(-1) for a in arrays])


def _part(a: np.ndarray, whole: np.ndarray) -> float:
    """The largest a / whole; 0 where there is nothing to be a part of."""
    with np.errstate(all="ignore"):
        return float(np.max(np.divide(a, whole, where=whole > 0, out=np.zeros(np.shape(whole))), initial=0))
