"""What is known about rounding: the machine epsilon of each kind of number, and which wider kind a function runs on.

Rounding moves a sum by the machine epsilon ε times the sizes of its terms, c ε Σ|terms|: that much is allowed. Where a
difference exceeds it there are two ways to tell rounding from a mistake. With wider numbers rounding shrinks, and a
mistake stays: `Precisions`. And at points a few units in the last place away rounding is different, and a mistake
is the same: the idea of J. Vignes, "A stochastic arithmetic for reliable scientific computation", Mathematics
and Computers in Simulation 35 (1993): `widened`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanograd_llm.backend.arrays import default_device

EPS = float(np.finfo(np.float64).eps)
DEPTH = 64  # c of a single op: how many roundings, in a row and all the same way, its right gradient may suffer
MARGIN = 64  # rounding is random: in wider numbers it may be so many times larger than ε says
WIDER = 16  # wider numbers must be at least so many times as precise
_REPEATS = (6, 24)  # points to try first, and then, if a difference is still above its bound but by less than
_NEAR = 1e3  # this factor


class Precision(NamedTuple):
    """A kind of number: its dtype, the ε of the narrowest float that a function computes in when given it, and c."""

    dtype: Any
    epsilon: float
    c: float


class Precisions:
    """The numbers that a function can be computed in.

    given: float64, as it is checked.  epsilon_for: of a dtype, the ε of the narrowest float on the function's tape when
    its inputs have this dtype; raises whatever the function raises.  is_grainy, and noise (of functions): see
    `comparison`.
    """

    def __init__(
        self,
        epsilon: float,
        c: float,
        epsilon_for: Callable[[Any], float],
        is_grainy: Callable[[Any], bool] = lambda dtype: False,
    ):
        self.given = Precision(np.float64, epsilon, c)
        self.noise: dict[Any, np.ndarray | float] = {}
        self._epsilon_for, self._is_grainy = epsilon_for, is_grainy

    @functools.cached_property
    def wide(self) -> Precision | None:
        """NumPy's longdouble, where that is wider than float64 and the function computes in it throughout."""
        wide = self._of(np.longdouble, lambda epsilon: epsilon * WIDER <= self.given.epsilon)
        return None if wide is None or self._is_grainy(wide.dtype) else wide

    @functools.cached_property
    def pair(self) -> tuple[Precision, Precision] | None:
        """Narrow numbers and wide ones: float64 and longdouble, else float32 and float64; None where neither serves."""
        if self.wide is not None:
            return self.given, self.wide
        narrow = self._of(np.float32, lambda epsilon: epsilon >= WIDER * self.given.epsilon)
        return None if narrow is None else (narrow, self.given)

    def _of(self, dtype: Any, serves: Callable[[float], bool]) -> Precision | None:
        try:
            epsilon = self._epsilon_for(dtype)
        except Exception:  # f is the user's: on other numbers it may raise whatever it likes
            return None
        return Precision(dtype, epsilon, self.given.c) if serves(epsilon) else None


def has_wider_numbers() -> bool:
    """Can functions be computed in numbers wider than float64: not on a GPU, nor where longdouble is no wider."""
    return float(np.finfo(np.longdouble).eps) * WIDER <= EPS and default_device() == "cpu"


def widened(bound: Any, off: Any, again: Callable[[], Any]) -> Any:
    """The bound, and where a difference exceeds it also how far rounding moves the differences.

    off: differences along the last axis, which rounding moves alike; or a single one.
    again: the same differences for inputs that are `nudged`.
    """
    seen, wide = [off], bound
    with np.errstate(invalid="ignore", divide="ignore"):
        for repeats in _REPEATS:
            if (np.abs(off) <= wide).all() or (len(seen) > 1 and (np.abs(off) > _NEAR * wide).any()):
                break
            seen += [again() for _ in range(repeats)]
            spread = np.ptp(seen, axis=0)
            wide = bound + 4 * (spread.max(axis=-1, initial=0, keepdims=True) if spread.ndim else spread)
    return wide


def nudged(arrays: Sequence[Any], rng: np.random.Generator, *, near: float = 1.0, far: float = 2.0**12) -> list[Any]:
    """Every float moved by about `near` to `far` units in its last place: few may leave a rounding as is."""
    size = near * (far / near) ** rng.uniform()
    return [
        np.asarray(a * (1 + size * np.finfo(a.dtype).eps * rng.uniform(-2, 2, a.shape)), dtype=a.dtype)
        if isinstance(a, np.ndarray) and a.dtype.kind == "f"
        else a
        for a in arrays
    ]
