"""The slope of a function along a line, from its values alone: by complex step, or by differences on a ladder of steps.

A line is φ(t) = f(x + t u), a function of one number that returns an array; wanted is φ'(0).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanograd_llm.gradcheck.check.rounding import EPS

Line = Callable[[complex], np.ndarray]

COMPLEX_STEP = 1e-30
CONTRADICTED = "the function is not analytic (as abs, or var of complex numbers), which a complex step needs"
_RUNGS = tuple(2.0**-k for k in (*range(3, 14), 16, 19, 22, 25, 28))  # u is as large as x, so these are parts of x
_WIDE_RUNGS = tuple(2.0**-k for k in range(4, 47, 3))  # where rounding leaves room for them
_CORNERS, _SEEN = 16, 64  # of a circle; times its rounding that a mean over it must differ to count


@dataclass(frozen=True)
class Derivative:
    """φ'(0), and how far off each entry may be (0 where only rounding is left to say).

    step: what was used; of a ladder, the smallest. why: the reason for differences rather than a complex step.
    """

    value: np.ndarray
    error: np.ndarray
    step: float
    method: str
    why: str = ""


class ComplexStepError(Exception):
    """The function does not run on complex numbers, or not as the same function."""


def derivative(
    line: Line, *, confirm: bool = True, epsilon: float = EPS, noise: np.ndarray | float = 0.0
) -> Derivative:
    """φ'(0) by complex step where a difference agrees with it, by differences elsewhere.

    confirm: a forward that drops the imaginary part on the way (x.real, a modulus) gives a complex step that is wrong
        without complaint; a few differences, coarse as they are, tell. Once for every function is enough.
    epsilon: the machine epsilon of what φ computes in.  noise: how far rounding inside φ moves it, in units of that.
    """
    try:
        exact = complex_step(line)
    except ComplexStepError as reason:
        return differences(line, epsilon=epsilon, noise=noise, why=str(reason))
    if not confirm:
        return exact
    witness = differences(line, enough=1e-7, epsilon=epsilon, noise=noise)
    known = np.isfinite(line(0.0))  # elsewhere there is no slope
    largest = np.abs(witness.value[known]).max(initial=0)
    if (np.abs(exact.value - witness.value) <= 10 * witness.error + 1e-7 * largest)[known].all():
        return exact
    near, coarse = _nearest(line, epsilon, noise, max(largest, np.abs(exact.value[known]).max(initial=0)))
    if (np.abs(exact.value - near) <= coarse)[known].all():
        return exact
    return differences(line, epsilon=epsilon, noise=noise, why=CONTRADICTED)


def complex_step(line: Line) -> Derivative:
    """φ'(0) = Im φ(ih)/h: no difference is taken, so h can be tiny and the result exact to rounding.

    W. Squire and G. Trapp, "Using complex variables to estimate derivatives of real functions", SIAM Review 40 (1998).
    Raises ComplexStepError where φ does not run on complex numbers.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        try:
            y = line(1j * COMPLEX_STEP)
        except Exception as error:  # it ran on real numbers, so whatever stops it here is about complex ones
            cause = error.__cause__ or error
            if isinstance(cause, np.exceptions.ComplexWarning):
                raise ComplexStepError("it drops the imaginary part of complex numbers") from error
            raise ComplexStepError(f"on complex numbers it raises {type(cause).__name__}: {cause}") from error
    if y.dtype.kind != "c":
        raise ComplexStepError(f"on complex numbers its result is {y.dtype}")
    value = y.imag / COMPLEX_STEP
    if not np.isfinite(value).all() or value[~np.isfinite(y.real)].any():  # log(inf + inf j) is inf + 0.79j
        raise ComplexStepError("on complex numbers it is not finite")
    return Derivative(value, np.zeros_like(value), COMPLEX_STEP, "complex step")


def is_analytic(line: Line, epsilon: float = EPS) -> bool:
    """Is φ(0) the mean of φ over small circles around it, as it is of any analytic function?

    Where φ takes |z|² of complex numbers, or where two pieces join, they differ by a multiple of r² for each radius r:
    where no difference is seen at one radius, there is none to see at a smaller one.
    """
    corners = np.exp(2j * np.pi * np.arange(_CORNERS) / _CORNERS)
    here = line(0.0)
    off: list[np.ndarray] = []
    for k in range(3, 40, 2):
        try:
            around = [line(2.0**-k * corner) for corner in corners]
        except Exception:  # a user's function may refuse such numbers: a smaller circle may do
            continue
        off.append(np.abs(np.mean(around, axis=0) - here))
        if len(off) > 2:
            far, middle, near = off[-3:]
            least = _SEEN * epsilon * np.abs(here).max(initial=0)
            if (near <= least).all():
                return True
            is_seen = near > least
            falls = (np.abs(far / middle - 16) < 1) & (np.abs(middle / near - 16) < 1)
            if (is_seen & falls).any():
                return False
    return True


def differences(
    line: Line, *, enough: float = 0.0, epsilon: float = EPS, noise: np.ndarray | float = 0.0, why: str = ""
) -> Derivative:
    """φ'(0) by central differences of 6th order, each entry at the step of the ladder that serves it best.

    Halving the step makes the truncation error 64 times smaller and the round-off twice as large. What one rung
    changes, plus the round-off to expect, is the error estimate of the finer one; where that is smallest, stop, as in
    C. J. F. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Advances in Engineering Software 4 (1982).
    A change that is small by chance is held against the change before it. The points x + tu are rounded too, which
    moves φ by about ε of its slope, since u is as large as x.

    enough: stop as soon as the errors are below this part of the largest entry.
    epsilon: the machine epsilon of what φ computes in; wider numbers than float64 allow far shorter steps.
    noise: how far rounding inside φ moves it, as a multiple of epsilon, where that is known.
    Errors are inf where no rung was usable.
    """
    rungs = _RUNGS if epsilon >= EPS else _WIDE_RUNGS
    value = before = _central(line, rungs[0])[0]
    error = change_before = np.full_like(value, np.inf)
    for longer, step in itertools.pairwise(rungs):
        slope, largest = _central(line, step)
        known = np.where(np.isfinite(slope), np.abs(slope), 0.0)
        roundoff = 8 * epsilon * np.maximum(np.maximum(largest, noise), known) / step
        change = np.where(np.isfinite(slope - before), np.abs(slope - before), np.inf)
        estimate = np.maximum(change, change_before * (step / longer) ** 6) + roundoff
        better = estimate < error
        value, error = np.where(better, slope, value), np.where(better, estimate, error)
        if (estimate <= 4 * roundoff).all() or (error <= enough * np.abs(value).max(initial=0)).all():
            break
        before, change_before = slope, change
    if not enough:
        near, coarse = _nearest(line, epsilon, noise, np.abs(value).max(initial=0))
        is_known = np.isfinite(value) & np.isfinite(near)
        off = np.abs(np.subtract(value, near, where=is_known, out=np.zeros_like(value)))
        error = np.where(off > coarse + 10 * error, off + error + coarse, error)
    return Derivative(value, error, step, "differences", why)


def _nearest(line: Line, epsilon: float, noise: np.ndarray | float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """A slope by the shortest step that leaves two digits of it, or of this size, and how coarse each entry is.

    To what lies nearby, a kink or all that varies, all farther steps are blind in the same way. The slope is inf where
    no step does.
    """
    for step in reversed(_RUNGS if epsilon >= EPS else _WIDE_RUNGS):
        slope, largest = _central(line, step)
        whole = max(size, float(np.abs(slope[np.isfinite(slope)]).max(initial=0)))
        coarse = 64 * epsilon * np.maximum(largest, noise) / step + 1e-5 * whole
        if coarse.max(initial=0) <= 0.01 * whole:
            return slope, coarse
    return np.full_like(slope, np.inf), coarse


def _central(line: Line, step: float) -> tuple[np.ndarray, np.ndarray]:
    """(45 Δ₁ - 9 Δ₂ + Δ₃)/60h with Δₖ = φ(kh) - φ(-kh), and the largest φ that it is made of, entry by entry."""
    slope = largest = np.zeros(())
    with np.errstate(all="ignore"):  # a step may leave the function's domain: that rung is then of no use
        for k, weight in ((1, 45), (2, -9), (3, 1)):
            ahead, behind = line(k * step), line(-k * step)
            slope = slope + weight * np.where(ahead == behind, 0.0, ahead - behind)  # infinities that stay are flat
            largest = np.maximum(largest, np.maximum(np.abs(ahead), np.abs(behind)))
    return slope / (60 * step), np.where(np.isfinite(largest), largest, 0.0)
