"""What must hold of every right gradient, whatever its values.

It is the same when it is computed again, for one input alone, after another call, in another memory layout, or in
float32. It is linear in the cotangent: ten times as large for one ten times as large, zero for zeros, and a sum for a
sum. Two uses of an input add up. A rule does not write into its cotangent, and a Hessian is symmetric.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanograd_llm.autograd.checked import raised_at, read_only
from nanograd_llm.autograd.modes import higher_order, watched
from nanograd_llm.autograd.op import WRITES, Op
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import walk
from nanograd_llm.autograd.tensor import Tensor, origin
from nanograd_llm.backend.arrays import beside, is_array, to_host, xp
from nanograd_llm.errors import GraphError, NanogradError
from nanograd_llm.gradcheck.cases.samples import laid_out
from nanograd_llm.gradcheck.check.comparison import dense, interior, length, perturbed, reach, sizes
from nanograd_llm.gradcheck.check.function import Function, Gradient, Varying, grad, gradients
from nanograd_llm.gradcheck.check.rounding import DEPTH, EPS, MARGIN, Precision, Precisions, nudged
from nanograd_llm.ops import concatenate

_ALONE = 8  # inputs at most whose gradient is also asked for alone
# of the cotangent, and last of a part of it, for numbers of at most this ε; powers of two round nothing
_FACTORS = {
    EPS: (2.0**40, 2.0**-40, -1.0, 2.0**30),
    2.0**-23: (2.0**20, 2.0**-20, -1.0, 2.0**20),
    1.0: (2.0**-4, -1.0, 2.0**-4),  # float16 ends at 65504
}
_SHOWN = 8  # names of inputs in one line
# factors of the cotangent, and its layouts, for which gradients in float32 are compared with those in float64
_NARROW = (
    (1.0, "contiguous", ""),
    (2.0**20, "negative strides", ", for a cotangent 1e+06 times as large and in reverse order in memory,"),
    (2.0**-20, "fortran", ", for a cotangent 1e-06 times as large and in Fortran's order,"),
)
_DIRECTIONS = 4  # along which they are compared
_AROUND = 4  # points where one that is off by a part of itself is looked at again
_MEANT = 1e-4  # part of the result that flows through what is so compared, at least
_NEAR = 2.0 ** np.arange(-40, -11, 7)  # how far away, relatively, points nearby are where a difference is seen again
_REPEATS = 48  # calls of rules for the same inputs, divided among the op calls on the tape,
_FIRST = 6  # backward passes at most whose gradients are kept to compare later ones with
_SHARE = 1 / 50  # which take no larger part of a check's seconds
_WHY = "the rule draws random numbers, or changes or returns what it keeps; make it repeatable, and check again"
_FAR = (2.0**6, 2.0**13) * 4  # units in the last place, up to which float32 inputs are moved to compare again


class _Pair(NamedTuple):
    """Two gradients of input k that must be equal, to the last bit where `is_exact`. words: what it means if not.
    factor: of the cotangent."""

    k: int
    words: str
    expected: np.ndarray
    found: np.ndarray
    is_exact: bool = False
    factor: float = 1.0

    @property
    def difference(self) -> np.ndarray:
        known = np.isfinite(self.expected)
        return self.expected[known] - self.found[known]

    @property
    def off(self) -> float:
        return float(np.abs(self.difference).max(initial=0))


def problems(
    function: Function,
    early: Early,
    precisions: Precisions,
    rng: np.random.Generator,
    is_early: Callable[[], bool],
    seconds: float,
) -> list[str]:
    """In words: each pair of `_pairs` that is not equal, and what `_guarded` and `_in_float32` find.

    is_early: is there time for one more pair?  seconds: of the whole check.
    Raises Varying where two backward passes over one tape differ, or one of the early ones from one of these.
    """
    if not is_early() or not function.record(function.values)[0].requires_grad:
        return []
    cotangent = early.cotangent
    if found := _guarded(function, cotangent):
        return found
    _require_repeatable(function, early, _SHARE * seconds)
    seed, flow = int(rng.integers(2**32)), float(interior(function, cotangent.reshape(1, -1))[0])
    points = _nearby(function.values, [cotangent], rng)

    @functools.cache
    def pairs(precision: Precision, nearby: int = 0) -> list[_Pair]:
        *values, v = (x.astype(precision.dtype) for x in points[nearby])
        return [*_pairs(function, values, v, factors, np.random.default_rng(seed))]

    def is_rounding(number: int) -> bool:
        if precisions.pair is not None:
            narrow, wide = precisions.pair
            if pairs(wide)[number].off <= MARGIN * wide.epsilon / narrow.epsilon * pairs(narrow)[number].off:
                return True
        seen = [pairs(given, nearby)[number].difference for nearby in range(len(points))]
        if len({d.shape for d in seen}) > 1:  # other entries are not finite: nothing is the same
            return True
        u = dense(np.random.default_rng(seed), seen[0].shape)
        return bool(np.isfinite(seen[0]).all()) and not _is_steady([float((u * d).sum()) for d in seen])

    given = precisions.given
    factors = next(known for epsilon, known in _FACTORS.items() if given.epsilon <= epsilon)
    first: dict[str, list[_Pair]] = {}  # of each input only the first: what breaks one of these breaks more of them
    broken: set[int] = set()
    *values, v = points[0]
    here = _pairs(function, values, v, factors, np.random.default_rng(seed))
    for number, pair in enumerate(itertools.takewhile(lambda _: is_early(), here)):
        if pair.k in broken:
            continue
        size = np.abs(pair.expected[np.isfinite(pair.expected)]).max(initial=0)
        flowing = abs(pair.factor) * flow / length(function.values[pair.k])
        if pair.off <= (0 if pair.is_exact else given.c * (given.epsilon * (size + flowing) + np.finfo(float).tiny)):
            continue
        if not pair.is_exact and is_rounding(number):
            continue
        broken.add(pair.k)
        first.setdefault(pair.words, []).append(pair)
    for words, alike in first.items():
        names = [function.names[pair.k] for pair in alike]
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        largest = max(np.abs(p.expected[np.isfinite(p.expected)]).max(initial=0) for p in alike)
        found.append(words.format(shown, max(pair.off for pair in alike), largest))
    return found or (_in_float32(function, early, flow, precisions, rng) if is_early() else [])


def _pairs(
    function: Function,
    values: Sequence[np.ndarray],
    cotangent: np.ndarray,
    factors: Sequence[float],
    rng: np.random.Generator,
) -> Iterator[_Pair]:
    """factors: see `_FACTORS`."""
    y, leaves = function.record(values)
    cotangent = cotangent.astype(y.dtype)
    together = grad(y, leaves, cotangent, retain_graph=True)

    def each(words: str, found: Sequence[np.ndarray], factor: float = 1.0, is_exact: bool = False) -> Iterator[_Pair]:
        return (_Pair(k, words, factor * a, b, is_exact, factor) for k, (a, b) in enumerate(zip(together, found)))

    def of(v: np.ndarray, y: Tensor = y, **how: Any) -> list[np.ndarray]:
        return grad(y, leaves, v, retain_graph=True, **how)

    for k, (a, b) in enumerate(zip(together, of(0 * cotangent))):
        words = "the gradient of {} does not depend on the cotangent ȳ: the rule ignores what comes from upstream"
        if not np.array_equal(a, b):
            words = "a cotangent of zeros gives a gradient that is not zero, for {}"
        yield _Pair(k, words, 0 * a, b, True)
    words = "the gradient of {}, asked for alone, is another, by up to {:.1e}"
    for k, leaf in enumerate(leaves[:_ALONE] if len(leaves) > 1 else ()):
        yield _Pair(k, words, together[k], grad(y, leaf, cotangent, retain_graph=True))
    for factor in factors[:-1]:
        words = (
            f"the rule is not linear in ȳ: for {factor:.0e} ȳ the gradient of {{}} is not {factor:.0e} times that for "
            "ȳ; they differ by up to {:.1e}, where the largest entry is {:.1e}"
        )
        yield from each(words, of((factor * cotangent).astype(y.dtype)), factor)
    some, larger = rng.random(y.shape) < 0.5, factors[-1]
    rest, mixed = (of((np.where(some, part, 1.0) * cotangent).astype(y.dtype)) for part in (0.0, larger))
    words = (
        f"the rule is not linear in ȳ: where a part of ȳ is {larger:.0e} times as large, the gradient of {{}} is not "
        "the sum of those for both parts; they differ by up to {:.1e}"
    )
    for k, (a, b, c) in enumerate(zip(together, rest, mixed)):
        yield _Pair(k, words, larger * (a - b) + b, c, factor=larger)
    words = "the gradient of {} depends on how the inputs and the cotangent lie in memory, by up to {:.1e}"
    for layout in ("negative strides", "fortran"):
        other, others = function.record([laid_out(x, layout) for x in values])
        yield from each(words, grad(other, others, laid_out(cotangent, layout)))
    one = np.broadcast_to(np.asarray(1, y.dtype), y.shape)
    ones = of(one.copy())
    yield from (_Pair(k, words, a, b) for k, (a, b) in enumerate(zip(ones, of(one))))
    words = "the gradient of {} for a cotangent of ones is another than that for two parts of it, by up to {:.1e}"
    yield from each(words, [a - b for a, b in zip(ones, of((one - cotangent).astype(y.dtype)))])

    def places() -> list[np.ndarray]:
        return [xp(leaf.data).full(leaf.shape, np.nan, leaf.dtype) for leaf in leaves]

    words = "the gradient of {} is another where `out=` says into which array, by up to {:.1e}"
    yield from each(words, of(cotangent, out=places()))
    twice = concatenate([y.reshape(-1), function.record(values, leaves)[0].reshape(-1)])
    words = "where {} is used in two calls, their gradients do not add up: off by {:.1e}"
    yield from each(words, of(np.concatenate([cotangent.reshape(-1)] * 2), twice, out=places()), 2.0)
    try:
        function.record([(x * (1 + 0.25 * dense(rng, x.shape))).astype(x.dtype) for x in values])
    except Exception:  # f is the user's: at another point it may raise whatever it likes
        return
    function.record(values, leaves)  # what f holds gets its values again
    words = "a call in between changes the gradient of {}, by up to {:.1e}: the rule uses an array that calls share"
    yield from each(words, of(cotangent), is_exact=True)


class Early(NamedTuple):
    """The gradients of a check's first backward passes, for this cotangent: those of later ones must be the same.

    narrow: of the very first, in float32, so that a rule that computes in the dtype of its first call is wrong in
    float64; none where the function or its rules do not run on float32.
    """

    cotangent: np.ndarray
    narrow: list[np.ndarray]
    passes: list[list[np.ndarray]]


def first_passes(
    function: Function, rng: np.random.Generator, seconds: float
) -> tuple[Early, tuple[Tensor, list[Tensor]]]:
    """The gradients of backward passes before anything else calls a rule, and the tape of those in float64.

    There are several, or one where they take longer than their share of the check's seconds. None from where a rule
    raises: later that is a problem.
    """
    early, end = Early(dense(rng, function.shape), [], []), time.monotonic() + _SHARE * seconds

    def run(y: Tensor, leaves: list[Tensor], dtype: Any = np.float64) -> list[np.ndarray]:
        cotangent = early.cotangent.astype(dtype).astype(y.dtype)
        return [np.array(a) for a in grad(y, leaves, cotangent, retain_graph=True)]

    with contextlib.suppress(Exception):  # f is the user's: on float32 it may raise whatever it likes
        early.narrow.extend(run(*function.record([x.astype(np.float32) for x in function.values]), np.float32))
    y, leaves = function.record([x.copy() for x in function.values])  # a wrong rule may write into them
    with contextlib.suppress(Exception):
        while y.requires_grad and len(early.passes) < _FIRST and not (early.passes and time.monotonic() > end):
            early.passes.append(run(y, leaves))
    return early, (y, leaves)


def _require_repeatable(function: Function, early: Early, seconds: float) -> None:
    """Two backward passes over one tape must give the same bits, and so must the early ones and a later one, and more
    calls of each rule by itself, whatever is written into the gradients that it has returned.

    The rules are not called again after so many seconds.
    """
    y, leaves = function.record(function.values)
    late, again = (grad(y, leaves, early.cotangent, retain_graph=True) for _ in range(2))
    for name, a, b in zip(function.names, late, again):
        if not np.array_equal(a, b, equal_nan=True):
            differ = f"gradients that differ, by up to {np.nanmax(np.abs(a - b)):.1e}"
            raise Varying(f"two backward passes over one tape give {name} {differ}: {_WHY}")
    for number, found in enumerate(early.passes, start=1 + bool(early.narrow)):
        _require_equal(function.names, number, found, late)
    end, number_of_calls = time.monotonic() + seconds, function.tape()[2]
    start = beside(early.cotangent.astype(y.dtype), y.data)
    for node, dy, found in walk(origin(y), start, Sums({*map(origin, leaves)}), retain=True):
        pull_back = functools.partial(node.op.pull_back, node, dy, tuple(g is not None for g in found))
        given = pull_back(Sums())
        first = [None if a is None else np.array(to_host(a)) for a in given]
        _write_into(given, [dy, *node.saved])
        for _ in range(_REPEATS // number_of_calls):
            if time.monotonic() > end:
                return
            again = pull_back(Sums())
            if not all(a is None or np.array_equal(a, to_host(b), equal_nan=True) for a, b in zip(first, again)):
                raise Varying(f"the rule of {node.op.name} gives another gradient in a later call: {_WHY}")


def _require_equal(names: Sequence[str], number: int, early: Sequence[np.ndarray], late: Sequence[np.ndarray]) -> None:
    """Raise Varying where the early pass of this number has other gradients than a late one."""
    for name, a, b in zip(names, early, late):
        if not np.array_equal(a, b, equal_nan=True):
            differ = f"is {np.nanmax(np.abs(a - b)):.1e} away from that of a later one"
            raise Varying(f"the gradient of {name} in backward pass {number} of the check {differ}: {_WHY}")


def _write_into(gradients: Sequence[Any], others: Sequence[Any]) -> None:
    """Write NaN into those of a rule's gradients that are no part of its arguments: the engine sums in such arrays."""
    kept = [a for part in others for a in (part if isinstance(part, (list, tuple)) else [part]) if is_array(a)]
    for a in gradients:
        if isinstance(a, np.ndarray) and a.flags.writeable and not any(np.may_share_memory(a, b) for b in kept):
            a.fill(np.nan if a.dtype.kind in "fc" else -1)  # a wrong rule may return x > 0


class _Watch:
    """A guard of a node: it gives the rule a read-only cotangent, and notes whether the rule makes a NaN.

    An array of CuPy's can always be written to; there a copy tells whether the rule does.
    """

    def __init__(self, op: Op, place: str, seen: list[_Watch]):
        self.op, self.place, self.seen = op, place, seen
        self.makes_nan = self.writes = False

    def cotangent(self, cotangent: Any) -> Any:
        self.seen.append(self)
        if isinstance(cotangent, np.ndarray):
            return read_only(cotangent)
        self.before = to_host(cotangent)
        return cotangent

    def gradients(self, gradients: Sequence[Any], sources: Sequence[Any], made_of: Sequence[Any]) -> None:
        if not isinstance(made_of[0], np.ndarray):
            self.writes = not np.array_equal(self.before, to_host(made_of[0]), equal_nan=True)
        self.makes_nan = any(np.isnan(a).any() for a in _floats(gradients)) and all(
            np.isfinite(a).all() for a in _floats(made_of)
        )


def _protected(saved: Any) -> Any:
    """What a node saved, as arrays that cannot be written to."""
    if isinstance(saved, list):
        return [*map(_protected, saved)]
    return read_only(saved) if isinstance(saved, np.ndarray) else saved


def _floats(arrays: Sequence[Any]) -> Iterator[np.ndarray]:
    return (a for a in arrays if is_array(a) and a.dtype.kind == "f")


def _guarded(function: Function, cotangent: np.ndarray) -> list[str]:
    """One backward pass that says which rule writes into its arguments, raises, or makes a NaN of numbers."""
    seen: list[_Watch] = []

    def note(node: Any, y: Any, arrays: Sequence[Any], static: Any, place: str) -> None:
        node.guard = _Watch(node.op, place, seen)
        node.saved = tuple(map(_protected, node.saved))

    with watched(note):
        y, leaves = function.record(function.values)
    try:
        grad(y, leaves, cotangent)
    except Exception as error:
        if not seen or isinstance(error, NanogradError) and "read-only" not in str(error):
            raise
        if "read-only" in str(error):
            return [f"the rule of {seen[-1].op.name} {WRITES}: {seen[-1].place}"]
        message = f"the rule of {seen[-1].op.name} raises {type(error).__name__}: {error}; {seen[-1].place}"
        where = raised_at(error, seen[-1].op.rule)
        raise GraphError(f"{message}; raised at {where}" if where else message) from error
    found = [f"the rule of {at.op.name} {WRITES}: {at.place}" for at in seen if at.writes]
    if np.isfinite(to_host(y.data)).all():  # else the forward overflowed, and each input's verdict says so
        found += [f"the rule of {at.op.name} makes a NaN of numbers: {at.place}" for at in seen if at.makes_nan]
    return found[:1]


def _in_float32(
    function: Function, early: Early, flow: float, precisions: Precisions, rng: np.random.Generator
) -> list[str]:
    """Where the gradient in float32 differs from that in float64 by more than rounding: in sum along some directions,
    or by one part of itself at all points around.

    At other points rounding is different, and a mistake is the same: see `rounding`.
    """
    epsilon = float(np.finfo(np.float32).eps)
    if precisions.given.epsilon > epsilon:
        return []
    values, v = [x.astype(np.float32) for x in function.values], early.cotangent.astype(np.float32)

    def differences(values: Sequence[np.ndarray], v: np.ndarray) -> list[list[np.ndarray]]:
        """The gradients in float64, and for each of _NARROW those in float32 less these."""
        wide = gradients(function, [x.astype(np.float64) for x in values], [v.astype(np.float64)])[0]
        y, leaves = function.record(values)  # after that: leaves that the function holds have the last dtype given
        if np.isinf(to_host(y.data)).any():
            raise OverflowError
        found = [wide]
        for factor, layout, _ in _NARROW:
            narrow = grad(y, leaves, laid_out((factor * v).astype(y.dtype), layout), retain_graph=True)
            found.append([a / factor - b for a, b in zip(narrow, wide)])
        return found

    @functools.cache
    def around(place: int) -> list[list[np.ndarray]]:
        """The same at one of some points that are moved by about a fourth."""
        *point, dy = ((x * (1 + 0.25 * dense(rng, x.shape))).astype(np.float32) for x in (*values, v))
        return differences(point, dy)

    @functools.cache
    def rounded() -> list[list[np.ndarray]]:
        """How far rounding to float32 on the way moves the gradients: see `perturbed`."""
        exact, row = [x.astype(np.float64) for x in values], v.reshape(1, -1).astype(np.float64)
        return [[a - b for a, b in zip(of_each[0], wide)] for of_each in perturbed(function, exact, row, epsilon, rng)]

    def parts(number: int, k: int) -> np.ndarray:
        """By which parts of itself is gradient k, or a row or column of it, wrong?"""
        off = _parts(offs[number][k] * wide[k], wide[k])
        is_wrong = (np.abs(off) > epsilon * precisions.given.c / 4) & (np.abs(off) < 0.5)
        is_wrong &= _sums(np.abs(wide[k] * values[k])) > _MEANT * flow  # else it is what far larger numbers leave
        with contextlib.suppress(Exception):  # f is the user's: at other points it may raise whatever it likes
            for place in range(_AROUND):
                if not is_wrong.any():
                    break
                g, *there = around(place)
                is_wrong &= np.abs(_parts(there[number][k] * g[k], g[k]) - off) <= 0.1 * np.abs(off)
            for moved in rounded() if is_wrong.any() else ():
                is_wrong &= np.abs(off) > 4 * _parts(np.abs(moved[k] * wide[k]), wide[k])
            return off[is_wrong]
        return off[:0]

    try:
        wide, *offs = differences(values, v)
    except Exception:  # in float32 the function overflows, or raises whatever it likes
        return []
    _require_equal(function.names, 1, [a - b for a, b in zip(early.narrow, wide)], offs[0])
    found: dict[int, str] = {}
    near: list[list[list[np.ndarray]]] = []
    for (number, (factor, _, words)), k in itertools.product(enumerate(_NARROW), range(len(wide))):
        name, x, d = function.names[k], function.values[k], offs[number][k]
        if k in found or not np.isfinite(d).all():
            continue
        if (off := parts(number, k)).size:
            found[k] = f"in float32{words} the gradient of {name} is off by {off[0]:.1e} of itself, more than rounding"
            continue
        u = np.stack([(dense(rng, x.shape) * sizes(x)).reshape(-1) for _ in range(_DIRECTIONS)])
        smallest = np.finfo(np.float32).smallest_subnormal / (min(factor, 1) * epsilon)  # ε of it is the least
        rounding = DEPTH * epsilon * (np.abs(u) @ np.maximum(np.abs(wide[k]), smallest).reshape(-1) + flow)
        if not (np.abs(u @ d.reshape(-1)) > rounding).all():
            continue
        rounding += DEPTH * epsilon * reach(function, k, early.cotangent.reshape(1, -1), precisions, rng)
        rounding += DEPTH * np.max([np.abs(u @ moved[k].reshape(-1)) for moved in rounded()], axis=0)
        if not (np.abs(u @ d.reshape(-1)) > rounding).all():
            continue
        near = near or [differences(nudged(values, rng, far=far), v)[1:] for far in _FAR]
        seen = np.stack([u @ d.reshape(-1), *(u @ other[number][k].reshape(-1) for other in near)])
        if (np.ptp(seen, axis=0) < 0.1 * np.abs(seen[0])).all():
            far = np.abs(d).max()
            found[k] = f"in float32{words} the gradient of {name} is off by up to {far:.1e}, more than rounding"
    return [*found.values()]


def _parts(products: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The sum of the products over that of g²: see `_sums`."""
    return _sums(products) / _sums(g * g)


def _sums(a: np.ndarray) -> np.ndarray:
    """Over all entries, over each row, and over each column, where it has more than a few."""
    axes: list[Any] = [None]
    axes += [
        at for at in (tuple(range(1, a.ndim)), tuple(range(a.ndim - 1))) if at and math.prod(a.shape[i] for i in at) > 3
    ]
    return np.concatenate([np.reshape(a.sum(axis=at), -1) for at in axes])


def asymmetry(function: Function, cotangent: np.ndarray, precisions: Precisions, rng: np.random.Generator) -> list[str]:
    """Whether the Hessian of ⟨v, f⟩ is not symmetric: ⟨w, H u⟩ must be ⟨u, H w⟩."""
    n = len(function.values)
    directions = [dense(rng, x.shape) * sizes(x) for x in function.values * 2]

    def difference(point: Sequence[np.ndarray]) -> tuple[float, float]:
        """⟨w, H u⟩ - ⟨u, H w⟩, and the sizes of all terms together. point: the values, u and w."""
        values, u, w, products = point[:n], point[n : 2 * n], point[2 * n :], []
        with higher_order():
            y, leaves = function.record(values)
            if not y.requires_grad:
                return 0.0, 0.0
            gradient = grad(y, leaves, cotangent.astype(y.dtype))
            for one, other in ((u, w), (w, u)):
                terms = [(g * beside(d.astype(g.dtype), g.data)).sum() for g, d in zip(gradient, one)]
                along = functools.reduce(Tensor.__add__, terms)
                hessian = grad(along, leaves) if along.requires_grad else [Tensor(np.zeros(x.shape)) for x in u]
                products.append([d * h.numpy() for d, h in zip(other, hessian)])
        sums = [sum(p.sum() for p in product) for product in products]
        size = sum(float(np.abs(p).sum()) for product in products for p in product)
        return float(sums[0] - sums[1]), size

    given = precisions.given
    off, size = difference([*function.values, *directions])
    if not np.isfinite(off) or abs(off) <= 4 * given.c * given.epsilon * size:
        return []
    along = np.concatenate([u.reshape(-1) for u in directions[:n]])
    flow = float(interior(Gradient(function, cotangent), along.reshape(1, -1))[0])
    if abs(off) <= 4 * given.c * given.epsilon * (size + flow):
        return []
    narrow, wide = precisions.pair or (given, given)
    points = _nearby(function.values, directions, rng)
    near, far = ([difference([x.astype(kind.dtype) for x in point]) for point in points] for kind in (narrow, wide))
    offs, size = [off for off, _ in far], max(size for _, size in far)
    largest = max(map(abs, offs))
    shrinks = largest <= MARGIN * wide.epsilon / narrow.epsilon * max(abs(off) for off, _ in near)
    if shrinks or largest <= 4 * given.c * given.epsilon * size or not _is_steady(offs):
        return []
    if size <= wide.epsilon * given.c * flow:
        return []
    return [f"the Hessian is not symmetric: ⟨w, H u⟩ and ⟨u, H w⟩ differ by {abs(off):.1e}, of terms of {size:.1e}"]


def _nearby(
    values: Sequence[np.ndarray], others: Sequence[np.ndarray], rng: np.random.Generator
) -> list[list[np.ndarray]]:
    """The values and others as they are, and a little changed: all values by one factor, so that ties stay ties."""
    factors = 1 + _NEAR * rng.uniform(-1, 1, len(_NEAR))
    changed = [[*(x * factor for x in values), *nudged(others, rng)] for factor in factors]
    return [[*values, *others], *changed]


def _is_steady(seen: Sequence[float]) -> bool:
    """Is a number nearly the same at all points nearby, as a mistake is?  Rounding is another one at each."""
    return float(np.ptp(seen)) <= 0.1 * abs(seen[0])
