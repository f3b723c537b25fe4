"""Where a function bends: the entries of an input by which its left and right derivatives differ.

A smooth φ has φ(h) + φ(-h) - 2φ(0) = h²φ'' + ..., which over h goes to zero with h. At a kink it goes to the difference
of the two slopes and stays there. Which entries are to blame is found by halving: a direction is made of ever fewer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nanograd_llm.gradcheck.check.derivatives import Line

_FAR, _NEAR = 2.0**-17, 2.0**-20  # a kink nearer than the second, a part of x, is met; one farther away is not
_SLOPE_STEP = 2.0**-16
_PART = 1e-4  # of the slopes that their difference must make up, to be one
MOST = 64  # entries to look for


def bends(line: Line, epsilon: float) -> np.ndarray:
    """Which entries of φ have a kink at 0: a boolean for each."""
    with np.errstate(all="ignore"):
        here = line(0.0)
        second = []
        for step in (_FAR, _NEAR):
            ahead, behind = line(step), line(-step)
            second.append((ahead + behind - 2 * here) / step)
        far, near = second
        slopes = (np.abs(ahead - here) + np.abs(here - behind)) / step
        # what a few units in the last place of x change is rounding, also where φ is small and what it is made of large
        wobble = np.max([np.abs(line(t * epsilon) - here) for t in (-8, -4, 4, 8)], axis=0)
        rounding = (16 * wobble + 16 * epsilon * np.abs(here)) / step
        # with the step, curvature falls and rounding grows: what is neither stays the same
        return (np.abs(far - near) <= np.abs(near) / 3) & (np.abs(near) > _PART * slopes + rounding)


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


def slopes(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right derivative of φ at 0, to second order in a small step."""
    h = _SLOPE_STEP
    with np.errstate(all="ignore"):
        here = line(0.0)
        right = (4 * line(h) - 3 * here - line(2 * h)) / (2 * h)
        left = (3 * here - 4 * line(-h) + line(-2 * h)) / (2 * h)
    return left, right
