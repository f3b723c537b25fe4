"""A gradient looked at closely: its worst entry, the mistake it looks like, the slopes on both sides of a kink."""

from __future__ import annotations

import numpy as np

from nanograd_llm.gradcheck.check import kinks
from nanograd_llm.gradcheck.check.comparison import Method, length, line, rows, slope
from nanograd_llm.gradcheck.check.function import Differentiable, gradients
from nanograd_llm.gradcheck.check.patterns import recognise
from nanograd_llm.gradcheck.check.report import Entry, Kink

_FEW = 256  # entries that are looked at one by one


def worst_entry(
    function: Differentiable, k: int, cotangent: np.ndarray, method: Method, places: np.ndarray
) -> Entry | None:
    """The entry of input k whose gradient is off the most; among many, looked for where the sum of halves is worse."""
    x = function.values[k]
    analytic = gradients(function, function.values, [cotangent])[0][k].reshape(-1)

    def numeric(places: np.ndarray) -> float:
        return float(np.sum(cotangent * slope(function, function.values, k, places, length(x), method).value))

    while places.size > _FEW:
        halves = np.array_split(places, 2)
        places = max(halves, key=lambda half: abs(analytic[half].sum() * length(x) - numeric(half)))
    if not places.size:
        return None
    slopes = np.array([numeric(np.array([place])) / length(x) for place in places])
    off = np.abs(analytic[places] - slopes)
    worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
    return Entry(_index(places[worst], x.shape), float(analytic[places[worst]]), float(slopes[worst]))


def pattern(function: Differentiable, k: int, y: np.ndarray, cotangent: np.ndarray, method: Method) -> str:
    """What the wrong gradient of input k looks like; nothing is tried where it would take too long."""
    values = function.values

    def jacobian(k: int) -> np.ndarray:
        size = length(values[k])
        columns = [slope(function, values, k, j, size, method).value for j in range(values[k].size)]
        return rows(columns).T / size

    if not 0 < values[k].size <= 1024 or values[k].size * y.size > 2**20:
        return ""
    same = [j for j, x in enumerate(values) if j != k and x.shape == values[k].shape and x.size <= _FEW][:4]
    others = {function.names[j]: (cotangent.reshape(-1) @ jacobian(j)).reshape(values[j].shape) for j in same}
    a = gradients(function, values, [cotangent])[0][k]
    return recognise(values[k], y, cotangent, a, jacobian(k), others)


def kink(function: Differentiable, k: int, place: int, v: np.ndarray) -> Kink:
    """What the function does to both sides of one entry of input k, and what the engine makes of it.

    v: flat cotangents in rows; the first is the one that is reported.
    """
    x = function.values[k]
    u = np.zeros(x.size)
    u[place] = length(x)
    along = line(function, function.values, k, u.reshape(x.shape))
    left, right = (found.reshape(-1) / length(x) for found in kinks.slopes(along))
    with np.errstate(invalid="ignore"):
        lows = np.minimum(v * left, v * right).sum(axis=1)
        highs = np.maximum(v * left, v * right).sum(axis=1)
        near = 1e-6 * (np.abs(v) @ (np.abs(left) + np.abs(right)))
    shape = function.evaluate(function.values).shape
    a = np.array(
        [g[k].reshape(-1)[place] for g in gradients(function, function.values, [row.reshape(shape) for row in v])]
    )
    allowed = bool(((lows - near <= a) & (a <= highs + near)).all())
    return Kink(_index(place, x.shape), float(v[0] @ left), float(v[0] @ right), float(a[0]), allowed)


def _index(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(place, shape))
