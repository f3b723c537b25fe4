"""Where the gradient and the slopes differ: a mistake, or rounding?

Rounding moves the two sides by c ε (Σ|aᵢuᵢ| + Σ|vᵢ(Ju)ᵢ|), with c from the longest chain of ops between an input and
the result. A difference of that size decides nearly every case. Where the function itself cancels or saturates,
rounding is larger, and no formula says by how much. Then both sides are computed again with wider numbers: **rounding
shrinks with ε, a mistake does not**.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nanograd_llm.gradcheck.check.comparison import (
    BLUNT,
    NEARER,
    NOTHING,
    RETREATS,
    Method,
    Sides,
    Slopes,
    along,
    compare,
    interior,
    length,
    noise,
    perturbed,
    reach,
    rows,
    sizes,
    slope,
)
from nanograd_llm.gradcheck.check.derivatives import differences
from nanograd_llm.gradcheck.check.function import Differentiable, Scaled
from nanograd_llm.gradcheck.check.rounding import DEPTH, EPS, MARGIN, Precision, Precisions, nudged

DIGITS = 6  # a gradient with fewer correct decimal digits gets a note; float64 has 16
_REPEATS = 4  # points nearby at which a difference is measured again
_FAINT = 1e-10  # a slope below this part of the result need not be known to a millionth
_FURTHER, _FURTHEST = 16, 1e-3  # times the relative difference that points are moved to see it again, and at most
_FEW = 4  # entries that are compared once more, for those results alone that they move
_GROSS = 1e3  # times as large as what rounding explains
# wrong, blunt, faint, off, tolerance, scale of each pair, and digits: see `Outcome`
_Resolved = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]


@dataclass(frozen=True)
class Outcome:
    """Which pairs of a cotangent and a direction are wrong, and which cannot be told.

    wrong, blunt, faint: for each pair. blunt: rounding hides more than a millionth, also in wider numbers.
    faint: both sides are beyond what rounding leaves of larger numbers, so that neither can be trusted.
    finite: are the function's slopes?  off, tolerance: the largest, as parts of the numbers compared.
    lost: is all that was compared smaller than the rounding of the result?  zero: is it zero?
    hidden: are some differences only nothing beside what the result is elsewhere?
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
    hidden: bool
    digits: float = 16.0

    @property
    def clear(self) -> bool:
        """Is nothing of it wrong or in doubt?"""
        return self.finite and not (self.wrong | self.blunt | self.faint).any()


def hold(
    slopes: Slopes,
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
    function, k, _ = slopes
    is_by_result = v.ndim == 1
    v, given = np.diag(v) if is_by_result else v, precisions.given
    if slopes.method is differences:
        slopes = slopes._replace(method=functools.partial(differences, noise=noise(function, precisions)))
    sides = compare(slopes, function.values, v, u, given)
    lost = bool((sides.scale <= given.epsilon * sides.flow).all())
    if not sides.agree(given).all():
        through = reach(function, k, v, precisions, rng)[:, None]
        flow = np.maximum(through, sides.scale.max(initial=0))
        sides = sides._replace(flow=np.broadcast_to(flow, sides.flow.shape))
    close = given.epsilon * given.c * sides.scale + sides.error
    off = np.where(sides.off <= NOTHING * sides.flow, 0.0, sides.off)
    hidden = bool(((off == 0) & (sides.off > close)).any())
    loose = close + 4 * given.epsilon * sides.result
    open_pairs = ~(sides.agree(given) | (off <= loose) & (loose <= BLUNT * sides.scale))
    close = np.where(sides.agree(given), close, loose)
    finite = np.isfinite(sides.numeric)
    wrong = finite & ~np.isfinite(sides.analytic)
    blunt, faint, scale, digits = np.zeros_like(wrong), np.zeros_like(wrong), np.array(sides.scale), 16.0
    open_pairs &= finite & ~wrong
    if open_pairs.any():
        some_v, some_u = open_pairs.any(axis=1), open_pairs.any(axis=0)
        chosen = np.ix_(some_v, some_u)
        some = Sides(*(side[chosen] for side in sides))
        found = _resolve(slopes, v[some_v], _columns(u, some_u), some, precisions, rng, is_exact)
        mask = open_pairs[chosen]
        for part, whole in zip(found[:3], (wrong, blunt, faint)):
            whole[chosen] |= part & mask
        off[chosen], close[chosen] = np.where(mask, found[3], off[chosen]), np.where(mask, found[4], close[chosen])
        scale[chosen], digits = np.where(mask, np.maximum(scale[chosen], found[5]), scale[chosen]), found[6]
        # a difference that is nothing beside what flows through the same results, as where a function saturates
        nothing = wrong & open_pairs & (sides.off <= given.epsilon * (4 * sides.result + given.c * through))
        wrong, faint = wrong & ~nothing, faint | nothing
        left = _left_by_rounding(slopes, v, u, wrong & (sides.off <= BLUNT * through), precisions, rng)
        wrong, faint = wrong & ~left, faint | left
        if u.ndim == 1 and faint.any() and precisions.wide is not None:
            if is_by_result:
                differ = faint & _known_to_differ(slopes, v, u, precisions)
            else:
                differ = _wrong_alone(slopes, v, u, faint, precisions, rng)
            off, wrong, faint = np.where(differ, sides.off, off), wrong | differ, faint & ~differ
    shown = wrong if wrong.any() else np.ones_like(wrong)
    parts = _part(off[shown], scale[shown]), _part(close[shown], scale[shown])
    return Outcome(wrong, blunt, faint, bool(finite.all()), *parts, lost, not sides.scale.any(), hidden, digits)


def _wrong_alone(
    slopes: Slopes, v: np.ndarray, u: np.ndarray, faint: np.ndarray, precisions: Precisions, rng: np.random.Generator
) -> np.ndarray:
    """Which single entries are wrong where only those results count that the entry moves?

    A small mistake looks like rounding of all the other results. The _FEW largest, in wide numbers, are looked at.
    """
    (function, k, method), wrong, wide = slopes, np.zeros_like(faint), precisions.wide
    assert wide is not None
    columns = np.unique(np.nonzero(faint)[1])
    off = faint[:, columns] * compare(slopes, function.values, v, _columns(u, columns), wide).off
    for column in columns[np.argsort(-off.max(axis=0))[:_FEW]]:
        place = np.flatnonzero(u)[column]
        moved = slope(function, function.values, k, place, u[place], method).value.reshape(-1) != 0
        if moved.any() and v[:, ~moved].any():
            alone = np.where(np.arange(u.size) == place, u, 0)
            wrong[:, column] = faint[:, column] & hold(slopes, v * moved, alone, precisions, rng).wrong[:, 0]
    return wrong


def _left_by_rounding(
    slopes: Slopes, v: np.ndarray, u: np.ndarray, wrong: np.ndarray, precisions: Precisions, rng: np.random.Generator
) -> np.ndarray:
    """Which of these differences may rounding to the widest numbers leave, though it leaves them at all points nearby?

    As in softmax of large scores: the gradient is a difference of numbers that are equal to all digits, times the
    scores. So every number on the way is moved by about its last digit, which shows how far that moves the gradient.
    """
    left = np.zeros_like(wrong)
    if wrong.any() and precisions.pair is not None:
        function, k, _ = slopes
        wide, some = precisions.pair[1], wrong.any(axis=1)
        values = [x.astype(wide.dtype) for x in function.values]
        far = compare(slopes, values, v[some], u, wide)
        moved = perturbed(function, values, v[some], wide.epsilon, rng)
        spread = np.ptp([along(rows(a[k] for a in seen), u) for seen in moved], axis=0)
        left[some] = wrong[some] & (far.off <= MARGIN * spread)
    return left


def _known_to_differ(slopes: Slopes, v: np.ndarray, u: np.ndarray, precisions: Precisions) -> np.ndarray:
    """Which pairs differ by more than rounding though nothing is lost to rounding there, however small they are?

    Result, gradient and slope are not zero, and narrow and wide numbers have all their digits in common. Differences
    witness that the slope is right: so near zero nothing else has. Each cotangent has one number that is not zero.
    """
    function, k, _ = slopes
    assert precisions.pair is not None
    narrow, wide = precisions.pair
    y = np.abs(function.evaluate(function.values)).reshape(-1)
    is_known = (y > 0) & (np.reshape(noise(function, precisions), -1) <= narrow.c * y)
    near, far = (compare(slopes, function.values, v, u, precision) for precision in (narrow, wide))
    found = is_known[v.any(axis=0)][:, None] & (near.error == 0)
    for one, other in ((near.analytic, far.analytic), (near.numeric, far.numeric)):
        found &= (other != 0) & (np.abs(one - other) <= narrow.epsilon * narrow.c * np.abs(other))
    found &= far.off > narrow.epsilon * (narrow.c * far.scale + 4 * far.result)
    if (columns := found.any(axis=0)).any():
        by_differences = slopes._replace(method=differences)
        witness = compare(by_differences, function.values, v, _columns(u, columns), narrow)
        found[:, columns] &= np.abs(witness.numeric - near.numeric[:, columns]) <= 0.1 * far.off[:, columns]
    return found


def _resolve(
    slopes: Slopes,
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
        return _measured(slopes, v, u, sides, precisions.given, rng)
    wide = precisions.pair[1]
    tolerance, far, equal, is_rounding, steady, off, told = _evidence(slopes, v, u, sides, precisions, rng)
    faint = ~is_rounding & ~equal & (far.off <= far.negligible(wide))
    if not (is_rounding | faint).all() and not is_exact():
        faint |= ~is_rounding & ~equal & (far.off <= 4 * precisions.given.epsilon * far.result)
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
    off = np.where(wrong, off, np.where(far.off <= NOTHING * far.flow, 0, far.off)).astype(float)
    scale = far.scale.astype(float)
    if blunt.any():  # as a nearly singular matrix, which in float32 is another one: measure rounding in float64 alone
        *doubts, measured_off, measured_tolerance, measured_scale, measured_digits = _measured(
            slopes, v, u, sides, precisions.given, rng
        )
        is_wrong = blunt & doubts[0] & ~told  # where float32 is finite and not steady, float64 may not be known either
        if (known := is_wrong | blunt & ~np.any(doubts, axis=0)).any():
            wrong, blunt = wrong | is_wrong, blunt & ~known
            measured = [measured_off, measured_tolerance, measured_scale]
            off, tolerance, scale = np.where(known, measured, [off, tolerance, scale])
            digits = min(digits, measured_digits)
    return wrong, blunt, faint, off, tolerance.astype(float), scale, digits


def _evidence(
    slopes: Slopes, v: np.ndarray, u: np.ndarray, sides: Sides, precisions: Precisions, rng: np.random.Generator
) -> tuple[np.ndarray, Sides, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What narrow and wide numbers say of each pair: the tolerance; the sides in wide numbers; are these equal; does
    the difference shrink as rounding does; is it the same nearby and in both; how large it is; are narrow ones finite.
    """
    function, k, _ = slopes
    assert precisions.pair is not None
    narrow, wide = precisions.pair

    def both(point: Sequence[np.ndarray]) -> tuple[Sides, Sides]:
        *values, v, u = point
        one, other = (compare(slopes, values, v, u, precision) for precision in (narrow, wide))
        # differences in wide numbers serve narrow ones as well: what is left of their rounding is the gradient's
        one = one._replace(numeric=np.where(one.error > other.error, other.numeric, one.numeric))
        return one._replace(flow=sides.flow), other._replace(
            flow=sides.flow, result=np.maximum(other.result, sides.result)
        )

    near, far = both([*function.values, v, u])
    tolerance = precisions.given.epsilon * narrow.c * far.scale + far.error

    def shrunk(near_off: np.ndarray) -> np.ndarray:
        """What rounding leaves of these differences in wide numbers; NaN where narrow ones overflow."""
        left = MARGIN * wide.epsilon / narrow.epsilon * np.fmax(near_off, narrow.epsilon * narrow.c * near.scale)
        return np.where(np.isfinite(near.off + left), left, np.nan)

    equal = far.agree(wide) | (far.off <= tolerance) & (tolerance <= BLUNT * far.scale)
    steady = np.ones(sides.off.shape, bool)
    left = shrunk(near.off)
    is_rounding = equal | (far.off <= left)
    flow = np.zeros((len(v), 1))
    if not equal.all():
        flow = interior(function, v)[:, None]
        far = far._replace(result=np.maximum(far.result, flow))
    # what rounding of the numbers on the tape can explain; beyond that a rule may be wrong in the narrow kind alone
    inside = near.flow + flow * max(1.0, length(function.values[k]))
    plain = 4 * narrow.epsilon * narrow.c * (near.scale + inside)
    parted = np.abs((near.analytic - near.numeric) - (far.analytic - far.numeric))
    # so much larger than rounding, and the same in both: points nearby need not be asked
    gross = (far.off > _GROSS * (plain + near.error)) & (parted <= BLUNT * far.off)
    plain = np.where(near.error > 0, np.inf, plain)  # differences have other errors than rounding
    if not (is_rounding & (near.off <= plain) | gross).all():
        again = [both(nudged([*function.values, v, u], rng)) for _ in range(_REPEATS)]
        nearby = [near, *(one for one, _ in again)]
        if narrow != precisions.given and not near.error.any():  # last digits of float64 are none of float32
            points = [x.astype(narrow.dtype) for x in (*function.values, v, u)]
            moved = [nudged(points, rng, far=16.0) for _ in range(_REPEATS)]
            nearby = [near, *(compare(slopes, at[:-2], at[-2], at[-1], narrow) for at in moved)]
        left = shrunk(np.fmax.reduce([np.where(np.isfinite(one.off), one.off, 0) for one in nearby]))
        is_rounding = equal | (far.off <= left)
        beyond = (near.off > plain) & _is_steady(nearby, 0.05)
        if beyond.any():
            beyond &= _is_of_the_rule(slopes, v, u, near, plain, narrow, wide, rng)
        is_rounding &= ~beyond | (beyond.mean() < 0.5)  # one that happens to be steady is none
        steady = _is_steady([far, *(other for _, other in again)]) | (is_rounding < equal)
    if narrow == precisions.given:  # a mistake is the same in both
        steady &= equal | (parted <= 0.5 * far.off)
    steady |= gross & (far.off > BLUNT * far.scale)  # wrong at this very point, as where numbers are equal
    steady &= (told := np.isfinite(left))
    if (doubt := steady & ~is_rounding & (far.off > tolerance)).any():
        # rounding of the inputs moves both sides as much, and that of a sum of a few may be the same at all points
        points = [x.astype(wide.dtype) for x in (*function.values, v, u)]
        moved = [nudged(points, rng, near=DEPTH, far=DEPTH) for _ in range(2)]
        others = [compare(slopes, at[:-2], at[-2], at[-1], wide) for at in moved]
        by_rounding = np.max([np.abs(other.numeric - far.numeric) for other in others], axis=0)
        left = np.fmax(left, by_rounding)
        is_rounding = is_rounding | (far.off <= by_rounding)
        # rounding to 1 - p in a softmax that saturates is the same all around, and large beside p
        doubt &= ~is_rounding & (far.off <= MARGIN * wide.epsilon * wide.c * (far.scale + inside))
        if doubt.any():
            steady &= ~doubt | _is_steady([far, *_further(slopes, v, u, _FURTHEST, wide, rng)], 0.2)
    tolerance = np.where(is_rounding & ~equal, np.maximum(tolerance, left), tolerance)
    return tolerance, far, equal, is_rounding, steady, np.where(equal, near.off, far.off), told


def _is_of_the_rule(
    slopes: Slopes,
    v: np.ndarray,
    u: np.ndarray,
    near: Sides,
    plain: np.ndarray,
    narrow: Precision,
    wide: Precision,
    rng: np.random.Generator,
) -> np.ndarray:
    """Which differences, equal to nothing in wide numbers, are more than rounding in narrow ones can be?

    Rounding on the way to the gradient is tried out. And it comes out otherwise at points that are moved relatively by
    more than the difference is: where numbers cancel to a few units of their last place, a shorter step changes none.
    """
    function, k, _ = slopes
    moved = perturbed(function, [x.astype(wide.dtype) for x in function.values], v, narrow.epsilon, rng)
    left = plain + MARGIN * np.ptp([along(rows(a[k] for a in seen), u) for seen in moved], axis=0)
    found, gross = near.off > left, near.off > _GROSS * left  # rounding to fewer digits is steady at no other point
    part = _FURTHER * _part(near.off[found], near.scale[found])
    return found & (gross | _is_steady([near, *_further(slopes, v, u, part, narrow, rng)], 0.05))


def _further(
    slopes: Slopes, v: np.ndarray, u: np.ndarray, part: float, precision: Precision, rng: np.random.Generator
) -> list[Sides]:
    """The sides at some points that are moved by about this part of themselves; none where that is nothing."""
    far = min(part, _FURTHEST) / EPS
    points = [nudged([*slopes.function.values, v, u], rng, near=far / 4, far=far) for _ in range(_REPEATS * (far > 1))]
    return [compare(slopes, at[:-2], at[-2], at[-1], precision) for at in points]


def _measured(
    slopes: Slopes, v: np.ndarray, u: np.ndarray, sides: Sides, given: Precision, rng: np.random.Generator
) -> _Resolved:
    """The same where no wider numbers serve, as in a function of float32: known to as many digits as rounding leaves.

    Rounding is measured: it comes out otherwise at points nearby, where a mistake stays.
    """

    def near() -> Sides:
        points = [a * (1 + 32 * given.epsilon * rng.uniform(-2, 2, a.shape)) for a in (*slopes.function.values, v, u)]
        return compare(slopes, points[:-2], points[-2], points[-1], given)

    seen = [sides, *(near() for _ in range(_REPEATS))]
    scale, result, error = (np.max([getattr(s, name) for s in seen], axis=0) for name in ("scale", "result", "error"))
    off = np.stack([s.analytic - s.numeric for s in seen])
    bound = given.epsilon * (given.c * scale + 4 * result) + error
    tolerance = bound + np.ptp(off, axis=0)
    off = np.abs(off)
    coarsest = max(BLUNT, float(np.cbrt(given.epsilon)))  # in float32 what central differences leave
    is_right = (off.max(axis=0) <= tolerance) & (tolerance <= coarsest * scale)
    faint = ~is_right & (sides.off <= sides.negligible(given))
    wrong = ~is_right & ~faint & (off.min(axis=0) > 4 * bound) & _is_steady(seen)
    part = _part(np.where(is_right, tolerance, 0), scale)
    digits = min(16.0, -np.log10(part)) if part else 16.0
    return wrong, ~(is_right | faint | wrong), faint, sides.off, tolerance, scale, digits


def _is_steady(seen: Sequence[Sides], part: float = 0.5) -> np.ndarray:
    """Which differences are the same at all of these points, up to this part of them?"""
    off = np.stack([sides.analytic - sides.numeric for sides in seen])
    with np.errstate(invalid="ignore"):
        return np.ptp(off, axis=0) <= part * np.abs(off[0])


def is_exact(slopes: Slopes, v: np.ndarray, u: np.ndarray, precisions: Precisions) -> bool:
    """Do both sides agree to all digits of wider numbers?"""
    wide = precisions.wide
    return wide is not None and bool(compare(slopes, slopes.function.values, v, u, wide).agree(wide).all())


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
    for step in RETREATS:
        part = 4.0**-step
        if not np.isfinite(function.evaluate([part * x for x in function.values])).all():
            break
        there = Scaled(function, part)
        found = hold(Slopes(there, k, method_at(there)), v, part * u, precisions, rng)
        if not found.finite:
            break
        if not (found.lost or found.hidden) and (found.wrong.any() or not found.faint.any()):
            first = first or (part, found)
            if found.wrong.any() or found.digits >= DIGITS:
                return part, found
        if not found.lost and step == NEARER:
            break
    return first


def is_constant(function: Differentiable, k: int, precisions: Precisions, rng: np.random.Generator) -> bool:
    """Does the result stay the same, up to rounding, while the entries of input k move, each by itself?

    They go to zero, then move about while all inputs go to zero: only so does an input of zeros move where others make
    the function saturate.
    """
    given, values = precisions.given, function.values

    def stays(point: list[np.ndarray], moved: np.ndarray) -> bool:
        y = function.evaluate(point)
        size = np.maximum(np.where(np.isfinite(y), np.abs(y), 0.0), noise(function, precisions))
        off = np.abs(function.evaluate([*point[:k], moved, *point[k + 1 :]]) - y)
        return not (off[np.isfinite(off)] > (given.c * given.epsilon * size)[np.isfinite(off)]).any()

    for step in (0, *RETREATS[::2]):
        part, factors = 4.0**-step, rng.uniform(0.5, 1.5, values[k].shape)
        nearer, scaled = part * values[k] * factors, [part * x for x in values]
        if not stays([*values], nearer) or not stays(scaled, scaled[k] + part * sizes(values[k]) * (factors - 1)):
            return False
    return True


def _part(a: np.ndarray, whole: np.ndarray) -> float:
    """The largest a / whole; 0 where there is nothing to be a part of."""
    with np.errstate(all="ignore"):
        return float(np.max(np.divide(a, whole, where=whole > 0, out=np.zeros(np.shape(whole))), initial=0))


def _columns(u: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen directions among those of u."""
    if u.ndim == 2:
        return u[chosen]
    kept = np.zeros_like(u)
    kept[np.flatnonzero(u)[chosen]] = u[np.flatnonzero(u)[chosen]]
    return kept
