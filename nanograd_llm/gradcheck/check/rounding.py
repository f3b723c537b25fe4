"""How far rounding may part two numbers that would be equal without it: the one place that says so.

Rounding moves a sum by the machine epsilon ε times the sizes of its terms, c ε Σ|terms|: that much is granted. A
difference that exceeds it is taken again at points a few units in the last place away. What is rounding comes out
otherwise there, what is wrong stays: the idea of J. Vignes, "A stochastic arithmetic for reliable scientific
computation", Mathematics and Computers in Simulation 35 (1993).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

EPS = float(np.finfo(np.float64).eps)
DEPTH = 64  # c of a single op: how many roundings, in a row and all the same way, its right gradient may suffer
_REPEATS = (6, 24)  # the second where the first leave a difference that is out of bounds, but not far:
_NEAR = 1e3  # as a multiple of the bound


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


def nudged(arrays: Sequence[Any], rng: np.random.Generator, *, far: float = 2.0**12) -> list[Any]:
    """Every float moved by a few units in its last place, or by up to `far` of them: few may leave a rounding as is."""
    size = far ** rng.uniform()
    return [
        np.asarray(a * (1 + size * np.finfo(a.dtype).eps * rng.uniform(-2, 2, a.shape)), dtype=a.dtype)
        if isinstance(a, np.ndarray) and a.dtype.kind == "f"
        else a
        for a in arrays
    ]
