"""Where a function bends: the entries of an input by which its left and right derivatives differ.

A smooth φ has φ(h) + φ(-h) - 2φ(0) = h²φ'' + ..., which over h goes to zero with h. At a kink it goes to the difference
of the two slopes and stays there. Which entries are to blame is found by halving: a direction is made of ever fewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from nanograd_llm.gradcheck.check.comparison import length, line
from nanograd_llm.gradcheck.check.derivatives import Line
from nanograd_llm.gradcheck.check.function import Differentiable, gradients
from nanograd_llm.gradcheck.check.report import Kink
from nanograd_llm.gradcheck.check.rounding import widened

_FAR, _NEAR = 2.0**-17, 2.0**-20  # a kink nearer than the second, a part of x, is met; one farther away is not
_SLOPE_STEP = 2.0**-16
_PART = 1e-4  # of the slopes that their difference must make up, to be one
MOST = 64  # entries to look for


def bends(line: Line, epsilon: float) -> np.ndarray:
    """Which entries of φ have a kink at 0: a boolean for each."""
    shifts = itertools.cycle(epsilon * t for t in range(-40, 41, 5) if t)

    def second(step: float, at: float = 0.0) -> np.ndarray:
        """(φ(at + h) + φ(at - h) - 2φ(at))/h, each entry on an axis of its own; 0 where it is not finite."""
        bent = (line(at + step) + line(at - step) - 2 * line(at)) / step
        return np.where(np.isfinite(bent), bent, 0.0)[..., None]

    with np.errstate(all="ignore"):
        here, ahead, behind = line(0.0), line(_NEAR), line(-_NEAR)
        far, near = second(_FAR), second(_NEAR)
        slopes = np.abs(ahead - here) + np.abs(here - behind)
        bound = (_PART * slopes + 16 * epsilon * np.abs(here)) / _NEAR
        bound = widened(bound[..., None], near, lambda: second(_NEAR, next(shifts)))
        # with the step, curvature falls and rounding grows: what is neither stays the same
        return ((np.abs(far - near) <= np.abs(near) / 3) & (np.abs(near) > bound))[..., 0]


def find(line_along: Callable[[np.ndarray], Line], direction: np.ndarray, epsilon: float) -> np.ndarray | None:
    """The places (in the flat input) of the entries by which the function bends; None where they cannot be told.

    line_along: makes the line for a direction.  direction: a dense one.
    """

    def has_kink(places: np.ndarray) -> bool:
        u = np.zeros(direction.size)
        u[places] = direction.reshape(-1)[places]
        return bool(bends(line_along(u.reshape(direction.shape)), epsilon).any())

    found: list[int] = []
    groups = [np.arange(direction.size)] if direction.size and has_kink(np.arange(direction.size)) else []
    some = bool(groups)
    while groups:
        group = groups.pop()
        if group.size == 1:
            found.append(int(group[0]))
            if len(found) > MOST:
                return None
        else:
            groups += [half for half in np.array_split(group, 2) if has_kink(half)]
    if some and not found:  # it bends along the whole and along no part
        return None
    return np.array(sorted(found), dtype=int)


def look_at(function: Differentiable, k: int, place: int, v: np.ndarray) -> Kink:
    """The function to both sides of one entry of input k. v: flat cotangents in rows; the first is reported."""
    x = function.values[k]
    u = np.zeros(x.size)
    u[place] = length(x)
    along = line(function, function.values, k, u.reshape(x.shape))
    with np.errstate(all="ignore"):
        h, here = _SLOPE_STEP, along(0.0)  # the slopes are exact to second order in h
        right = ((4 * along(h) - 3 * here - along(2 * h)) / (2 * h * length(x))).reshape(-1)
        left = ((3 * here - 4 * along(-h) + along(-2 * h)) / (2 * h * length(x))).reshape(-1)
        lows = np.minimum(v * left, v * right).sum(axis=1)
        highs = np.maximum(v * left, v * right).sum(axis=1)
        near = 1e-6 * (np.abs(v) @ (np.abs(left) + np.abs(right)))
    cotangents = [row.reshape(here.shape) for row in v]
    a = np.array([g[k].reshape(-1)[place] for g in gradients(function, function.values, cotangents)])
    allowed = bool(((lows - near <= a) & (a <= highs + near)).all())
    return Kink(index_of(place, x.shape), float(v[0] @ left), float(v[0] @ right), float(a[0]), allowed)


def index_of(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(place, shape))
