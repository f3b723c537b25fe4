"""Explain a wrong gradient: its worst entry, and the mistake it looks like.

Each known mistake predicts what the gradient would be. One that explains all but a thousandth of the error is named; a
factor only if it explains all that is known of the slopes.

a the engine's gradient for the cotangent v; J the function's Jacobian from its values, outputs in rows; g = Jᵀ v what a
should be, so that a - g is the error
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np

from nanograd_llm.gradcheck.check import report
from nanograd_llm.gradcheck.check.comparison import Method, length, rows, slope
from nanograd_llm.gradcheck.check.derivatives import differences
from nanograd_llm.gradcheck.check.function import Differentiable, gradients
from nanograd_llm.gradcheck.check.kinks import index_of
from nanograd_llm.gradcheck.check.report import Entry
from nanograd_llm.gradcheck.check.rounding import DEPTH, EPS

_SMALL = 1e-6  # entries below this part of the largest need not show a factor
_FEW = 256  # entries that are looked at one by one
_MOST = 1024  # entries of an input among whose Jacobian a known mistake is looked for
_ENOUGH = 1e-11  # part of them that slopes may be off: the last digit of differences takes longer than all others
_SHORT = 4  # an axis whose size is a factor that formulas have too


def explained(
    function: Differentiable,
    k: int,
    y: np.ndarray,
    cotangent: np.ndarray,
    method: Method,
    places: np.ndarray,
    seconds: float,
    epsilon: float,
    tolerance: float,
    must: bool,
) -> tuple[Entry | None, str]:
    """The worst entry of the wrong gradient of input k among these places, and the mistake that it looks like, or "".

    seconds: no mistake is looked for where its entries take longer, unless one `must` be.  epsilon: of the function's
    numbers.  tolerance: the part of them that slopes may be off.
    """
    values, until = function.values, np.inf if must else time.monotonic() + seconds
    method = functools.partial(method, epsilon=epsilon, **({"enough": _ENOUGH} if method is differences else {}))

    def jacobian(k: int) -> np.ndarray | None:
        """None where it is large, or takes too long."""
        size, number, begin, columns = length(values[k]), values[k].size, time.monotonic(), []
        for j in range(number if number <= _MOST and number * y.size <= 2**20 else 0):
            if j and begin + number / j * (time.monotonic() - begin) > until:
                return None
            columns.append(slope(function, values, k, j, size, method).value)
        return rows(columns).T / size if columns else None

    whole = jacobian(k) if places.size == values[k].size else None
    worst = _worst_entry(function, k, cotangent, method, places, seconds, whole)
    if whole is None:
        return worst, ""
    same = [j for j, x in enumerate(values) if j != k and x.shape == values[k].shape and x.size <= _FEW][:4]
    found = {function.names[j]: other for j in same if (other := jacobian(j)) is not None}
    others = {name: (cotangent.reshape(-1) @ other).reshape(values[k].shape) for name, other in found.items()}
    a = gradients(function, values, [cotangent])[0][k]
    return worst, recognise(values[k], y, cotangent, a, whole, others, tolerance)


def _worst_entry(
    function: Differentiable,
    k: int,
    cotangent: np.ndarray,
    method: Method,
    places: np.ndarray,
    seconds: float,
    jacobian: np.ndarray | None,
) -> Entry | None:
    """The entry of input k whose gradient is off the most. Of many entries, the half whose sum is worse is searched.

    seconds: so many entries are looked at one by one as take no longer.  jacobian: where it is known.
    Where it moves one number of the result only, it is shown for ȳ = 1 there, as on paper, if it is off so too.
    """
    x, few = function.values[k], _FEW
    analytic = gradients(function, function.values, [cotangent])[0][k].reshape(-1)

    def numeric(places: np.ndarray) -> float:
        slopes = slope(function, function.values, k, places, length(x), method).value
        return float(np.sum(np.where(cotangent == 0, 0, cotangent * slopes)))  # without results that are not finite

    while jacobian is None and places.size > few:
        halves, begin = np.array_split(places, 2), time.monotonic()
        places = max(halves, key=lambda half: abs(analytic[half].sum() * length(x) - numeric(half)))
        few = max(1, min(_FEW, int(2 * seconds / (time.monotonic() - begin + 1e-9))))
    if not places.size:
        return None
    if jacobian is None:
        slopes = np.array([numeric(np.array([place])) / length(x) for place in places])
    else:
        v = cotangent.reshape(-1, 1)
        slopes = np.where(v == 0, 0, v * jacobian).sum(axis=0)
    off = np.abs(analytic[places] - slopes)
    more = np.where(off > DEPTH * EPS * np.abs(slopes), off, 0)  # than rounding of an entry, which may be tiny
    worst = int(np.argmax(np.where(np.isfinite(off), more if more.any() else off, np.inf)))
    place = int(places[worst])
    index = index_of(place, x.shape)
    of_each = slope(function, function.values, k, [place], length(x), method).value.reshape(-1) / length(x)
    moved = np.flatnonzero(of_each) if of_each.any() or x.shape != cotangent.shape else np.array([place])
    if moved.size == 1 or cotangent.size == 1:
        j = int(moved[0]) if moved.size else 0
        one = np.where(np.arange(cotangent.size) == j, 1.0, 0.0).reshape(cotangent.shape)
        at_one = float(gradients(function, function.values, [one])[0][k].reshape(-1)[place])
        shown = f"1 at {list(index_of(j, cotangent.shape))} and 0 elsewhere" if cotangent.size > 1 else "1"
        entry = Entry(index, at_one, float(of_each[j]), shown)
        if not entry.off < 0.5 * off[worst] / abs(cotangent.reshape(-1)[j]):  # nor where it is not finite
            return entry
    shown = f"{cotangent.item():.6g}" if cotangent.size == 1 else ""
    return Entry(index, float(analytic[place]), float(slopes[worst]), shown)


def recognise(
    x: np.ndarray,
    y: np.ndarray,
    v: np.ndarray,
    a: np.ndarray,
    jacobian: np.ndarray,
    others: Mapping[str, np.ndarray],
    tolerance: float,
) -> str:
    """The mistake in words, or "". jacobian (y.size, x.size).  others: gradients, by numbers, of the other inputs.

    tolerance: the part of them that slopes may be off.
    """
    g = (v.reshape(-1) @ jacobian).reshape(x.shape)
    if not np.isfinite(a).all():
        return "it is not finite"
    if not a.any():
        return "no gradient arrives at all"
    if not g.any():
        return "the function does not change with this input here: its slope is zero, and the gradient is not"
    off, rounding = np.abs(a - g).max(), DEPTH * EPS * np.abs(g)
    differs = np.abs(a - g) > rounding
    if off <= rounding.max():  # entries are wrong that are tiny beside others
        return _unknown(differs, x)
    factor = float(np.vdot(a, g) / np.vdot(g, g))
    scaled = factor * g
    # of each entry a part: rows of different sizes may have different factors, of which the largest row hides others
    spread = np.max(np.abs(a - scaled) / np.maximum(np.abs(scaled), _SMALL * np.abs(scaled).max()))
    apart = np.abs(a - scaled).max()
    left = max(spread * off, apart) if apart <= max(1e-9 * off, 8 * tolerance * np.abs(a).max()) else np.inf
    if left > 1e-9 * off:  # only digits that are known
        factor = float(f"{factor:.{max(1, int(-math.log10(max(tolerance, EPS))))}g}")
    other = _other(a, off, others) if x.size == 1 else ""  # then a factor explains everything
    kinds = [
        ("; ".join(filter(None, ("the sign is wrong", other))), -g),
        ("what comes from upstream is ignored: the rule takes ȳ to be one", jacobian.sum(0).reshape(x.shape)),
        ("what comes from upstream arrives without its sign", (np.abs(v).reshape(-1) @ jacobian).reshape(x.shape)),
        *((f"it is the gradient of {name}", other) for name, other in others.items()),
    ]
    known = [
        (np.abs(a - wanted).max(), words)
        for words, wanted in (*kinds, *_moved(g), *_turned(x, v, jacobian), *_unsummed(x, y, v, jacobian))
    ]
    several = int((np.abs(g) > _SMALL * np.abs(g).max()).sum()) > 1  # any factor explains one
    shown = several or int((differs & (np.abs(a - scaled) <= 1e-3 * np.abs(a - g))).sum()) > 1
    words = "; ".join(filter(None, (_about_factor(factor, x.shape, y.shape, shown), other)))
    known.insert(2, (left, words))
    for part in (1e-9, 1e-3):  # of two that explain it, the one that does so exactly
        if words := next((words for left, words in known if left <= part * off), ""):
            return words
    left_over = _left_over(x, y, a - g) if several else ""
    if words := _zeros(x, a, g, off) or _lost_contributions(v, a, g, jacobian, off) or left_over:
        return words
    wrong = np.abs(a - g) > max(1e-6 * off, rounding.max())
    return _unknown(wrong, x, "at least " * bool((differs & ~wrong).any()))


def _unknown(wrong: np.ndarray, x: np.ndarray, at_least: str = "") -> str:
    """at_least: others may be wrong too."""
    return "" if wrong.all() else f"no known mistake; {at_least}{_number_of(wrong)} wrong{_which(wrong, x)}"


def _other(a: np.ndarray, off: float, others: Mapping[str, np.ndarray]) -> str:
    """Which other input has this gradient?"""
    name = next((name for name, g in others.items() if np.abs(a - g).max() <= 1e-3 * off), "")
    return name and f"{name} has this gradient: are they swapped?"


def _moved(g: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if g.ndim >= 2 and g.shape[-1] == g.shape[-2]:
        yield "it is transposed", g.swapaxes(-1, -2)
    if g.ndim >= 2:
        yield "it is transposed, then reshaped", g.T.reshape(g.shape)
    for axis in range(g.ndim):
        for step in (1, -1):
            yield f"it is shifted by one place along axis {axis}", np.roll(g, step, axis)


def _turned(x: np.ndarray, v: np.ndarray, jacobian: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The gradients of rules that run along some axes from the wrong end."""
    axes = [(axis,) for axis in range(x.ndim)] + [(x.ndim - 2, x.ndim - 1)] * (x.ndim > 1)
    for some in axes if x.ndim == v.ndim else ():
        turned = (np.flip(v, some).reshape(-1) @ jacobian).reshape(x.shape)
        words = f"it runs along {_named(some)} from the wrong end, as where a cumsum or kernel is not reversed"
        yield words, np.flip(turned, some)


def _named(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def _unsummed(x: np.ndarray, y: np.ndarray, v: np.ndarray, jacobian: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """For each axis, and for all together, along which x was repeated if it was broadcast, a sum that was forgotten."""
    extra = y.ndim - x.ndim
    if extra < 0 or any(n not in (1, m) for n, m in zip(x.shape, y.shape[extra:])):
        return
    repeated = [i for i, m in enumerate(y.shape) if m > 1 and (i < extra or x.shape[i - extra] == 1)]
    for axes in [*((axis,) for axis in repeated), *([tuple(repeated)] if len(repeated) > 1 else [])]:
        for place, index in (("first", 0), ("last", -1)):
            kept = np.zeros_like(v)
            where = tuple(index if axis in axes else slice(None) for axis in range(y.ndim))
            kept[where] = v[where]
            words = (
                f"a sum over {_named(axes)} of the result, along which the input is used again, is missing: of several"
            )
            yield f"{words} contributions only the {place} arrives", (kept.reshape(-1) @ jacobian).reshape(x.shape)


def _about_factor(factor: float, shape: tuple[int, ...], result: tuple[int, ...], several: bool) -> str:
    """A constant factor, and what it may come from; only a plain one unless several entries show it."""
    words = f"off by the factor {report.factor(factor)}"
    sizes = {n: f"an axis of size {n}" for n in (*shape, *result)}
    sizes.setdefault(math.prod(shape), f"all {math.prod(shape)} entries")
    for n in (n for n in sizes if n > 2):
        for value, meaning in (
            (n, f"the gradient is that of a sum over {sizes[n]}, the function takes a mean"),
            (1 / n, f"the gradient is that of a mean over {sizes[n]}, the function takes a sum"),
            (n / (n - 1), f"the gradient divides by n - 1 for {sizes[n]}, the function by n"),
            ((n - 1) / n, f"the gradient divides by n for {sizes[n]}, the function by n - 1"),
        ):
            if abs(factor - value) <= 1e-9 * value:
                return f"{words}: {'a constant of the rule, or ' if n <= _SHORT else ''}{meaning}"
    if several or not math.isfinite(factor):
        return words
    is_plain = abs(factor) <= 4 and abs(factor - Fraction(factor).limit_denominator(4)) <= 1e-9
    return words if is_plain else ""


def _zeros(x: np.ndarray, a: np.ndarray, g: np.ndarray, off: float) -> str:
    """Are the wrong entries those that are zero?"""
    wrong = np.abs(a - g) > 1e-3 * off
    if a[wrong].any():
        return ""
    return f"{_number_of(wrong)} zero that should not be{_which(wrong, x)}"


def _number_of(wrong: np.ndarray) -> str:
    return f"{int(wrong.sum())} of {wrong.size} entries {'is' if wrong.sum() == 1 else 'are'}"


def _which(wrong: np.ndarray, x: np.ndarray) -> str:
    """Which entries these are: all on one place of an axis, or beyond a value of the input, or else their places."""
    for axis in range(wrong.ndim):
        places = np.unique(np.nonzero(wrong)[axis])
        if wrong.sum() > 1 and wrong.shape[axis] > 1 and places.size == 1:
            return f", all at {places[0]} on axis {axis}"
    for of, size in (("", x), ("the size of ", np.abs(x))):
        some, rest = size[wrong], size[~wrong]
        if min(some.size, rest.size) > 1 and (some.min() > rest.max() or some.max() < rest.min()):
            than = f"above {rest.max():.4g}" if some.min() > rest.max() else f"below {rest.min():.4g}"
            return f", those where {of}the input is {than}"
    shown = ", ".join(str(place) for place in np.argwhere(wrong)[:4].tolist())
    return f": {shown}" + (", ..." if wrong.sum() > 4 else "")


def _lost_contributions(v: np.ndarray, a: np.ndarray, g: np.ndarray, jacobian: np.ndarray, off: float) -> str:
    """Does every wrong entry lack one of the contributions that add up in it, or hold only one of them?"""
    parts = v.reshape(-1, 1) * jacobian
    wrong = np.flatnonzero(np.abs((a - g).reshape(-1)) > 1e-3 * off)
    if not 0 < wrong.size * parts.shape[0] <= 2**20:
        return ""
    a, g, parts = a.reshape(-1)[wrong], g.reshape(-1)[wrong], parts[:, wrong]
    near = DEPTH * EPS * np.abs(g).max() + 1e-3 * np.abs(a - g)
    several = (parts != 0).sum(axis=0) > 1
    if not several.all():
        return ""
    if (np.abs(parts - a).min(axis=0) <= near).all():
        return "of several contributions only one arrives, as where `=` stands for `+=`"
    if (np.abs(g - parts - a).min(axis=0) <= near).all():
        return "one of several contributions is lost"
    return ""


def _left_over(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> str:
    """What the difference is a multiple of in each row of the last axis: the term of the rule that is off."""
    if not x.ndim or x.shape[-1] < 3:
        return ""
    rows = error.reshape(-1, x.shape[-1])
    centred = (x - x.mean(axis=-1, keepdims=True)).reshape(rows.shape)
    shapes = [
        (np.ones_like(rows), "a constant: the term with a mean or sum is off or missing"),
        (centred, "a multiple of x - ⟨x⟩: the term with the variance is off or missing, or has N - 1 in place of N"),
        (x.reshape(rows.shape), "a multiple of the input: such a term is off or missing"),
    ]
    if y.shape == x.shape:
        shapes.append((y.reshape(rows.shape), "a multiple of the result: such a term is off or missing"))
    for shape, words in shapes:
        lengths = (shape * shape).sum(axis=-1, keepdims=True)
        along = (rows * shape).sum(axis=-1, keepdims=True) / np.where(lengths == 0, 1, lengths) * shape
        if np.abs(rows - along).max() <= 1e-3 * np.abs(rows).max():
            return f"in each row of the last axis the error is {words}"
    return ""
