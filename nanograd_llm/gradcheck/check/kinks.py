"""Where a function bends or jumps: the entries of an input by which its left and right derivatives differ.

A smooth φ has φ(h) + φ(-h) - 2φ(0) = h²φ'' + ..., which over h goes to zero with h. At a kink it goes to the difference
of the two slopes and stays there; at a jump φ(h) - φ(-h) itself stays. The entries that cause it are found by halving:
half of the entries are moved, then half of those, and so on. Where the function computes in wider numbers, what was
found in float64 is tested again with far shorter steps: a kink a little away does not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from nanograd_llm.gradcheck.check import comparison
from nanograd_llm.gradcheck.check.comparison import line, sizes
from nanograd_llm.gradcheck.check.derivatives import Line, differences
from nanograd_llm.gradcheck.check.function import Differentiable, gradients
from nanograd_llm.gradcheck.check.report import Kink
from nanograd_llm.gradcheck.check.rounding import EPS, Precisions, widened

_FAR = 8.0  # a kink nearer than `_near`, relative to x, counts; one farther than this many times that does not
_PART = 1e-4  # at a kink the two slopes differ by more than this part of them
MOST = 64  # kinks to look for, at most
_TIES = 16  # groups of equal entries to look at
IN_STEPS = (
    "the function moves in steps, as round does: between them its slope is 0, and the gradient is not; no slopes can "
    "judge a straight-through estimate"
)


_HALVINGS = 40  # of the way between two points


def bends(line: Line, epsilon: float, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """Which entries of φ have a kink or a jump at 0: a boolean for each.

    noise: how far rounding inside φ moves it, as a multiple of epsilon.
    """
    shifts = itertools.cycle(epsilon * t for t in range(-40, 41, 5) if t)
    near_step = _near(epsilon)
    far_step = _FAR * near_step

    def second(step: float, at: float = 0.0) -> np.ndarray:
        """(φ(at + h) + φ(at - h) - 2φ(at))/h, each entry on an axis of its own; 0 where it is not finite."""
        bent = (line(at + step) + line(at - step) - 2 * line(at)) / step
        return np.where(np.isfinite(bent), bent, 0.0)[..., None]

    with np.errstate(all="ignore"):
        here, ahead, behind = line(0.0), line(near_step), line(-near_step)
        far, near = second(far_step), second(near_step)
        slopes = np.abs(ahead - here) + np.abs(here - behind)
        bound = (_PART * slopes + 16 * epsilon * np.maximum(np.abs(here), noise)) / near_step
        # with a shorter step, curvature matters less and rounding more; a kink stays the same
        kinks = (np.abs(far - near) <= np.abs(near) / 3) & (np.abs(near) > bound[..., None])
        if kinks.any():
            kinks &= np.abs(near) > widened(bound[..., None], near, lambda: second(near_step, next(shifts)))
        if kinks.any():  # a shorter step does not meet one that lies a little away
            step = _nearer(epsilon)
            rounding = 16 * epsilon * np.maximum(np.maximum(np.abs(here), noise), slopes / near_step) / step
            kinks &= np.abs(second(step)) + rounding[..., None] > np.abs(near) / 2
        return kinks[..., 0] | _jumps(line, near_step, epsilon, noise)


def _near(epsilon: float) -> float:
    """How near a kink must be to be met: as near as rounding lets it be seen, in float32, float64 and wider numbers."""
    return 2.0**-11 if epsilon > EPS else 2.0**-20 if epsilon == EPS else 2.0**-41


def _nearer(epsilon: float) -> float:
    """How near it must be where rounding lets that be seen: farther than the differences of `derivatives` reach."""
    return _near(epsilon) / (16 if epsilon >= EPS else 1)


def _jumps(line: Line, h: float, epsilon: float, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """Is φ(h) - φ(-h) larger than rounding, and as large with a longer step and with a shorter one?"""
    ahead, behind = line(h), line(-h)
    step = np.abs(ahead - behind)
    rounding = 64 * epsilon * np.maximum(np.abs(ahead) + np.abs(behind), noise)
    found = np.isfinite(step) & (step > rounding)
    for other in (8 * h, _nearer(epsilon)):
        found = found & (np.abs(np.abs(line(other) - line(-other)) - step) <= step / 3) if found.any() else found
    return found


def find(function: Differentiable, k: int, direction: np.ndarray, precisions: Precisions) -> np.ndarray | None:
    """The places (in the flat input) of the entries of input k by which the function bends or jumps.

    None where they cannot be told.  direction: a dense one.
    """
    values, epsilon, u = function.values, precisions.given.epsilon, direction.reshape(-1)
    noise: np.ndarray | float = 0.0

    def has_kink(places: np.ndarray) -> bool:
        some = np.zeros_like(u)
        some[places] = u[places]
        return bool(bends(line(function, values, k, some.reshape(direction.shape)), epsilon, noise).any())

    everywhere = np.arange(u.size)
    if not u.size or not has_kink(everywhere):
        return everywhere[:0]
    if (wide := precisions.wide) is not None:
        values, u, epsilon = [x.astype(wide.dtype) for x in values], u.astype(wide.dtype), wide.epsilon
    noise = comparison.noise(function, precisions)
    if not has_kink(everywhere):
        return everywhere[:0]
    found: list[int] = []
    groups = [everywhere]
    while groups:
        group = groups.pop()
        if group.size == 1:
            found.append(int(group[0]))
            if len(found) > MOST:
                return None
        else:
            groups += [half for half in np.array_split(group, 2) if has_kink(half)]
    return np.array(sorted(found), dtype=int) if found else None  # all together bend it, no single one does


def moves_in_steps(function: Differentiable, k: int, direction: np.ndarray, precisions: Precisions) -> bool:
    """Is the function flat at nearly all points, here, to both sides, nearer to zero and farther, and does it jump
    somewhere between two of them?"""
    epsilon, values = precisions.given.epsilon, function.values
    h = _near(epsilon) / (256 if epsilon <= EPS else 1)  # so short that even far out few steps are met
    seen: list[np.ndarray] = []
    changes: list[np.ndarray] = []
    points: list[list[np.ndarray]] = []
    noise = comparison.noise(function, precisions)
    for part in (1.0, 0.11, 0.013, 0.0017, 37.0, 1100.0):
        along = line(function, [part * x for x in values], k, part * direction)
        for t in (0.0, 0.37, -0.53, 1.19, -1.61, 2.23, -2.71):
            y, change = along(t).reshape(-1), np.abs(along(t + h) - along(t - h)).reshape(-1)
            bound = 64 * epsilon * np.maximum(np.abs(y), np.reshape(noise, -1))
            if not np.isfinite(y).all():
                continue
            if not seen and (change > bound).any():  # it moves at the first point: no step function
                return False
            seen.append(y)
            points.append([part * (x + t * direction) if i == k else part * x for i, x in enumerate(values)])
            changes.append(change / np.maximum(bound, np.finfo(float).tiny))
    if not seen:
        return False
    bounds = 64 * epsilon * np.maximum(np.abs(seen).max(axis=0), np.reshape(noise, -1))
    moving = np.ptp(seen, axis=0) > 4 * bounds / h
    flat = (np.array(changes)[:, moving] <= 1).mean(axis=0)
    if not moving.any() or flat.min() <= (0.95 if epsilon <= EPS else 0.75):
        return False
    place = int(np.flatnonzero(moving)[0])
    low, high = (int(pick([y[place] for y in seen])) for pick in (np.argmin, np.argmax))
    return _jumps_between(function, points[low], points[high], place)


def _jumps_between(function: Differentiable, a: list[np.ndarray], b: list[np.ndarray], place: int) -> bool:
    """Is one number of the result still another one at two points that are as good as the same, between a and b?

    Of each half of the way, the one with the larger change is halved again: a ramp gets flat, a step stays.
    """
    one, other = (function.evaluate(point).reshape(-1)[place] for point in (a, b))
    whole = abs(other - one)
    for _ in range(_HALVINGS):
        middle = [(p + q) / 2 for p, q in zip(a, b)]
        y = function.evaluate(middle).reshape(-1)[place]
        if abs(y - one) < abs(other - y):
            a, one = middle, y
        else:
            b, other = middle, y
    return bool(abs(other - one) > whole * 2.0 ** (-0.75 * _HALVINGS))


def look_at(function: Differentiable, k: int, place: int, v: np.ndarray, precisions: Precisions) -> Kink:
    """The function to both sides of one entry of input k. v: flat cotangents in rows, for each of which it is tested.

    Reported are the slopes of the one number of the result that bends; of several, those of Σ v y for the first v.
    """
    x, wide = function.values[k], precisions.wide
    values: Sequence[np.ndarray] = function.values if wide is None else [x.astype(wide.dtype) for x in function.values]
    epsilon = precisions.given.epsilon if wide is None else wide.epsilon
    h = _FAR * _near(epsilon)
    size = float(sizes(x).reshape(-1)[place])
    u = np.zeros_like(values[k]).reshape(-1)
    u[place] = size
    along = line(function, values, k, u.reshape(x.shape))
    with np.errstate(all="ignore"):
        shape = along(0.0).shape

        def one_sided(h: float) -> np.ndarray:
            """To the left and to the right, exact to second order in h."""
            behind, here, ahead, twice, twice_behind = (along(t * h).reshape(-1) for t in (-1, 0, 1, 2, -2))
            return np.stack([3 * here - 4 * behind + twice_behind, 4 * ahead - 3 * here - twice]) / (2 * h * size)

        left, right = both = one_sided(h)
        change, whole = (np.abs(v) @ np.abs(a).sum(axis=0) for a in (one_sided(h / 2) - both, both))
        jumps = bool(_jumps(along, h, epsilon).any() or (change > 0.2 * whole).any())  # slopes do not change with h
        lows = np.minimum(v * left, v * right).sum(axis=1)
        highs = np.maximum(v * left, v * right).sum(axis=1)
        part = 1e-6 if epsilon <= EPS else 0.1  # float32 leaves a digit of slopes to one side
        near = part * (np.abs(v) @ (np.abs(left) + np.abs(right)))
    moved = np.flatnonzero((left != 0) | (right != 0))
    first = np.where(np.arange(left.size) == moved[0], 1.0, 0.0) if moved.size == 1 else v[0]
    cotangents = [row.reshape(shape) for row in (*v, first)]
    *a, shown = (float(g[k].reshape(-1)[place]) for g in gradients(function, function.values, cotangents))
    beyond = np.maximum(lows - a, a - highs)
    allowed = jumps or bool((beyond <= near).all())
    size = np.abs(a) + np.abs(v) @ np.maximum(np.abs(left), np.abs(right))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = 0.0 if allowed else float(np.nanmax(beyond / size))
    words = "" if moved.size == 1 else "of the sum of all results, each times a random ȳ"
    slopes = float(first @ left), float(first @ right)
    return Kink(index_of(place, x.shape), *slopes, shown, allowed, jumps, off, part, words)


def ties(
    function: Differentiable, bent: Sequence[np.ndarray | None], v: np.ndarray, precisions: Precisions
) -> list[str]:
    """Where equal entries at kinks, moved together, have a slope that is not the sum of their gradients, in words.

    The gradient of one entry at a kink may be either slope or a value between. But the ties of a maximum meet no kink
    when they move together, so their gradients must add up to the slope there. Those of max|x| are of equal size and
    move apart. v: a flat cotangent.
    """
    if all(places is None or not places.size for places in bent):
        return []
    wide, found = precisions.wide, []
    values = function.values if wide is None else [x.astype(wide.dtype) for x in function.values]
    known = [(k, int(place)) for k, places in enumerate(bent) if places is not None for place in places]
    entries = [(float(function.values[k].reshape(-1)[place]), k, place) for k, place in known]
    groups: dict[tuple[tuple[float, int, int], ...], None] = {}  # of those that are equal, then of equal sizes
    for key in (float, abs):
        every = sorted({key(at) for at, _, _ in entries})[:_TIES]
        groups |= dict.fromkeys(tuple(entry for entry in entries if key(entry[0]) == one) for one in every)
    for places in groups:
        if len(places) < 2:
            continue
        together, first = [np.zeros_like(x) for x in values], places[0][0]
        for at, k, place in places:
            together[k].reshape(-1)[place] = at * np.sign(first) or 1.0
        unit = abs(first) or 1.0

        def along(t: complex, u: Sequence[np.ndarray] = together) -> np.ndarray:
            return function.evaluate([x + t * d for x, d in zip(values, u)])

        epsilon = precisions.given.epsilon if wide is None else wide.epsilon
        if bends(along, epsilon).any():
            continue
        slope = differences(along, epsilon=epsilon)
        of, ones = ("the result", v.item()) if v.size == 1 else ("the sum of all results, each times a random ȳ,", 1.0)
        numeric = float(v @ slope.value.reshape(-1))
        a = gradients(function, function.values, [v.reshape(slope.value.shape)])[0]
        analytic = float(sum((g * d).sum() for g, d in zip(a, together)))
        size = float(sum(np.abs(g * d).sum() for g, d in zip(a, together))) + abs(numeric)
        if abs(analytic - numeric) > 1e-6 * size + float(np.abs(v) @ slope.error.reshape(-1)):
            names = dict.fromkeys(
                f"{function.names[k]}{list(index_of(p, function.values[k].shape))}" for _, k, p in places
            )
            signed = ", each times its entry's sign," * (len({at for at, _, _ in places}) > 1)
            total, slopes = analytic / (ones * unit), numeric / (ones * unit)
            found.append(
                f"the gradients of the ties {', '.join([*names][:4])}{signed} add up to {total:.6g}; moved together "
                f"they change {of} with slope {slopes:.6g}: give it to one of them, or divide it"
            )
    return found


def index_of(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(place, shape))
