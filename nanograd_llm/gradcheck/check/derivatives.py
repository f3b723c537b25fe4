"""The slope of a function along a line, from its values alone: by complex step, or by differences on a ladder of steps.

A line is φ(t) = f(x + t u), a function of one number that returns an array; wanted is φ'(0).
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable

import numpy as np

from nanograd_llm.gradcheck.check.rounding import EPS

Line = Callable[[complex], np.ndarray]

COMPLEX_STEP = 1e-30
_UNDERFLOW = np.finfo(np.float64).tiny / COMPLEX_STEP  # a smaller slope is lost in a complex step
CONTRADICTED = "the function is not analytic (as abs, or var of complex numbers), which a complex step needs"
DOUBTED = "differences and a complex step give different slopes"
_RUNGS = tuple(2.0**-k for k in (*range(3, 14), 16, 19, 22, 25, 28))  # u is as large as x, so these are parts of x
_WIDE_RUNGS = tuple(2.0**-k for k in range(4, 47, 3))  # where rounding leaves room for them
_CORNERS = np.exp(1j * (np.arctan(np.longdouble(1)) * 8 * np.arange(7) / 12))  # of the upper half of a circle
_RADII = tuple(2.0**-k for k in range(5, 41, 2))
_CONFIRMING = 4  # of these radii, the largest, leave enough digits to confirm a complex step


@dataclasses.dataclass(frozen=True)
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
    """φ'(0) by complex step where circles or differences agree with it, by differences elsewhere.

    confirm: a forward that drops the imaginary part on the way (x.real, a modulus) gives a complex step that is wrong
        without complaint: see `_circle`. Once for every function is enough.
    epsilon: the machine epsilon of what φ computes in.  noise: how far rounding inside φ moves it, in units of that.
    """
    try:
        exact = complex_step(line)
    except ComplexStepError as reason:
        return differences(line, epsilon=epsilon, noise=noise, why=str(reason))
    if not confirm:
        return exact
    known = np.isfinite(line(0.0))  # elsewhere there is no slope
    near, coarse = _nearest(line, epsilon, noise, float(np.abs(exact.value[known]).max(initial=0)))
    is_near = bool((np.abs(exact.value - near) <= coarse)[known].all())  # nothing bends between here and the circles
    for radius in _RADII[:_CONFIRMING] if is_near else ():
        around, rounding = _circle(line, radius, epsilon, noise)
        if (np.abs(exact.value - around) <= rounding)[known].all():
            return exact
    witness = differences(line, epsilon=epsilon, noise=noise)
    with np.errstate(invalid="ignore"):
        off = witness.value - exact.value
    if _is_contradicted(line, exact.value, off, np.abs(off) > 2 * witness.error + _UNDERFLOW, epsilon, noise):
        return dataclasses.replace(witness, why=CONTRADICTED)
    apart = known & ~(np.abs(off) <= 10 * witness.error + _UNDERFLOW)  # also where there is no number
    if apart.any() and epsilon < EPS:  # no step of wider numbers is left over that is shorter than what lies nearby
        return dataclasses.replace(witness, why=CONTRADICTED)
    if is_near or not (apart & ~(np.abs(off) <= 1e-7 * np.abs(witness.value[known]).max(initial=0))).any():
        return exact
    return dataclasses.replace(witness, why=DOUBTED)


def _is_contradicted(
    line: Line, exact: np.ndarray, off: np.ndarray, apart: np.ndarray, epsilon: float, noise: np.ndarray | float
) -> bool:
    """Do two circles, one inside the other, lie halfway between a complex step and differences, `off` from it, in an
    entry where these are `apart`?"""
    before = np.zeros(off.shape, bool)
    for radius in _RADII:
        around, rounding = _circle(line, radius, epsilon, noise)
        is_seen = apart & ~(rounding > np.abs(off))
        with np.errstate(invalid="ignore"):
            halfway = is_seen & (np.abs(around - exact - off / 2) <= np.abs(off) / 8)
        if (before & halfway).any():
            return True
        if not is_seen.any():
            return False
        before = halfway
    return False


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


def _circle(line: Line, radius: float, epsilon: float, noise: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """The slope by Cauchy's integral over a circle around 0, and how far rounding moves it; NaN where φ raises there.

    Of an analytic function it is φ'(0), with all digits. Of one that is not, as |z|, it lies halfway between a complex
    step and the slope along real numbers: (∂/∂x - i ∂/∂y)/2. The lower half of the circle is conjugate to the upper.
    """
    slope = largest = np.zeros(())
    kind = np.complex128 if epsilon >= EPS else np.clongdouble
    with np.errstate(all="ignore"):  # a circle may leave the function's domain
        for corner, weight in zip(_CORNERS.astype(kind), (1, 2, 2, 2, 2, 2, 1)):
            try:
                y = line(radius * corner)
            except Exception:  # a user's function may refuse such numbers
                return np.asarray(np.nan), np.asarray(np.nan)
            slope, largest = slope + weight * (y / corner).real, np.maximum(largest, np.abs(y))
        slope = slope / (12 * radius)
        rounding = 8 * epsilon * np.maximum(np.maximum(largest, noise), np.abs(slope)) / radius
        return slope, np.where(np.isfinite(slope), rounding, np.nan)  # inf would agree with anything


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
        if coarse.max(initial=0) <= 0.01 * whole or whole == 0:  # what is flat here is taken as flat
            return slope, coarse
    return np.full_like(slope, np.inf), coarse


def _central(line: Line, step: float) -> tuple[np.ndarray, np.ndarray]:
    """(45 Δ₁ - 9 Δ₂ + Δ₃)/60h with Δₖ = φ(kh) - φ(-kh), and the largest φ that it is made of, entry by entry."""
    slope = largest = np.zeros(())
    with np.errstate(all="ignore"):  # a step may leave the function's domain: that rung is then of no use
        for k, weight in ((1, 45), (2, -9), (3, 1)):
            ahead, behind = line(k * step), line(-k * step)
            is_flat = ahead == behind
            if (is_flat & np.isinf(ahead)).any():  # an infinity is flat where it stays
                is_flat &= np.isfinite(ahead) | (ahead == line(0.0))
            slope = slope + weight * np.where(is_flat, 0.0, ahead - behind)
            largest = np.maximum(largest, np.maximum(np.abs(ahead), np.abs(behind)))
    return slope / (60 * step), np.where(np.isfinite(largest), largest, 0.0)
