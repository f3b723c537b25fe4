"""What must hold of every right gradient, whatever its values.

It is the same when it is computed again, for one input alone, after another call, in another memory layout, or in
float32. It is linear in the cotangent: ten times as large for one ten times as large, zero for zeros, and a sum for a
sum. Two uses of an input add up. A rule does not write into its cotangent, and a Hessian is symmetric.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanograd_llm.autograd.checked import read_only
from nanograd_llm.autograd.modes import higher_order, watched
from nanograd_llm.autograd.op import WRITES
from nanograd_llm.autograd.sums import Sums
from nanograd_llm.autograd.tape import walk
from nanograd_llm.autograd.tensor import Tensor, origin
from nanograd_llm.backend.arrays import beside, is_array, to_host, xp
from nanograd_llm.errors import GraphError, NanogradError
from nanograd_llm.gradcheck.cases.samples import laid_out
from nanograd_llm.gradcheck.check.comparison import dense, interior, length, perturbed, reach, sizes
from nanograd_llm.gradcheck.check.function import Function, Gradient, Varying, grad, gradients
from nanograd_llm.gradcheck.check.rounding import DEPTH, MARGIN, Precision, Precisions, nudged
from nanograd_llm.ops import concatenate

_ALONE = 8  # inputs at most whose gradient is also asked for alone
_FACTORS = (2.0**20, 2.0**-20, -1.0)  # of the cotangent: about a million, a millionth; powers of two round nothing
_SHOWN = 8  # names of inputs in one line
_DIRECTIONS = 4  # along which gradients in float32 are compared
_NEARBY, _NEAR = 5, 2.0**-40  # points nearby where a difference is looked at again, and how far away, relatively
_REPEATS = 48  # calls of rules for the same inputs, divided among the op calls on the tape,
_FIRST = 6  # backward passes at most whose gradients are kept to compare later ones with
_SHARE = 1 / 50  # which take no larger part of a check's seconds
_WHY = "the rule draws random numbers or changes what it keeps; make it repeatable, and check again"
_FAR = (2.0**6, 2.0**13) * 4  # units in the last place, up to which float32 inputs are moved to compare again


class _Pair(NamedTuple):
    """Two gradients of input k that must be equal, to the last bit where `is_exact`. words: what it means if not."""

    k: int
    words: str
    expected: np.ndarray
    found: np.ndarray
    is_exact: bool

    @property
    def difference(self) -> np.ndarray:
        known = np.isfinite(self.expected)
        return self.expected[known] - self.found[known]

    @property
    def off(self) -> float:
        return float(np.abs(self.difference).max(initial=0))


def problems(
    function: Function,
    cotangent: np.ndarray,
    precisions: Precisions,
    rng: np.random.Generator,
    is_early: Callable[[], bool] = lambda: True,
    seconds: float = 1.0,
    early: Early | None = None,
) -> list[str]:
    """In words: each pair of `_pairs` that is not equal, and what `_guarded` and `_in_float32` find.

    is_early: is there time for one more pair?  seconds: of the whole check.  early: see `Early`.
    Raises Varying where two backward passes over one tape differ, or one of the early ones from one of these.
    """
    if not is_early() or not function.record(function.values)[0].requires_grad:
        return []
    if found := _guarded(function, cotangent):
        return found
    _require_repeatable(function, cotangent, _SHARE * seconds, early)
    seed, flow = int(rng.integers(2**32)), float(interior(function, cotangent.reshape(1, -1))[0])
    points = _nearby(function.values, [cotangent], rng)

    @functools.cache
    def pairs(precision: Precision, nearby: int = 0) -> list[_Pair]:
        *values, v = (x.astype(precision.dtype) for x in points[nearby])
        return [*_pairs(function, values, v, np.random.default_rng(seed))]

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
    first: dict[str, list[_Pair]] = {}  # of each input only the first: what breaks one of these breaks more of them
    broken: set[int] = set()
    *values, v = points[0]
    in_time = itertools.takewhile(lambda _: is_early(), _pairs(function, values, v, np.random.default_rng(seed)))
    for number, pair in enumerate(in_time):
        if pair.k in broken:
            continue
        size = np.abs(pair.expected[np.isfinite(pair.expected)]).max(initial=0)
        flowing = flow / length(function.values[pair.k])
        if pair.off <= (0 if pair.is_exact else given.c * given.epsilon * (size + flowing)):
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
    return found or (_in_float32(function, cotangent, flow, precisions, rng) if is_early() else [])


def _pairs(
    function: Function, values: Sequence[np.ndarray], cotangent: np.ndarray, rng: np.random.Generator
) -> Iterator[_Pair]:
    y, leaves = function.record(values)
    cotangent = cotangent.astype(y.dtype)
    together = grad(y, leaves, cotangent, retain_graph=True)

    def each(words: str, found: Sequence[np.ndarray], factor: float = 1.0, is_exact: bool = False) -> Iterator[_Pair]:
        return (_Pair(k, words, factor * a, b, is_exact) for k, (a, b) in enumerate(zip(together, found)))

    def of(v: np.ndarray, y: Tensor = y, **how: Any) -> list[np.ndarray]:
        return grad(y, leaves, v, retain_graph=True, **how)

    for k, (a, b) in enumerate(zip(together, of(0 * cotangent))):
        words = "the gradient of {} does not depend on the cotangent ȳ: the rule ignores what comes from upstream"
        if not np.array_equal(a, b):
            words = "a cotangent of zeros gives a gradient that is not zero, for {}"
        yield _Pair(k, words, 0 * a, b, True)
    words = "the gradient of {}, asked for alone, is another, by up to {:.1e}"
    for k, leaf in enumerate(leaves[:_ALONE] if len(leaves) > 1 else ()):
        yield _Pair(k, words, together[k], grad(y, leaf, cotangent, retain_graph=True), False)
    for factor in _FACTORS:
        words = (
            f"the rule is not linear in ȳ: for {factor:.0e} ȳ the gradient of {{}} is not {factor:.0e} times that for "
            "ȳ; they differ by up to {:.1e}, where the largest entry is {:.1e}"
        )
        yield from each(words, of((factor * cotangent).astype(y.dtype)), factor)
    some = rng.random(y.shape) < 0.5
    parts = [of(np.where(mask, cotangent, 0).astype(y.dtype)) for mask in (some, ~some)]
    words = "the rule is not linear in ȳ: the gradients of {} for two parts of ȳ do not add up to that for ȳ, by {:.1e}"
    yield from each(words, [a + b for a, b in zip(*parts)])
    words = "the gradient of {} depends on how the inputs and the cotangent lie in memory, by up to {:.1e}"
    for layout in ("negative strides", "fortran"):
        other, others = function.record([laid_out(x, layout) for x in values])
        yield from each(words, grad(other, others, laid_out(cotangent, layout)))
    one = np.broadcast_to(np.asarray(1, y.dtype), y.shape)
    ones = of(one.copy())
    yield from (_Pair(k, words, a, b, False) for k, (a, b) in enumerate(zip(ones, of(one))))
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
    """The gradients of a check's first backward passes, for this cotangent: they must be those of later ones."""

    cotangent: np.ndarray
    passes: list[list[np.ndarray]]


def first_passes(y: Tensor, leaves: list[Tensor], seed: int, seconds: float) -> Early:
    """The gradients of backward passes over one tape, before anything else calls a rule: several, or one where they
    take longer than their share of the check's seconds. None from where a rule raises: later that is a problem."""
    early, end = Early(dense(np.random.default_rng(seed), y.shape), []), time.monotonic() + _SHARE * seconds
    with contextlib.suppress(Exception):
        while y.requires_grad and len(early.passes) < _FIRST and not (early.passes and time.monotonic() > end):
            found = grad(y, leaves, early.cotangent.copy(), retain_graph=True)
            early.passes.append([np.array(a) for a in found])
    return early


def _require_repeatable(function: Function, cotangent: np.ndarray, seconds: float, early: Early | None) -> None:
    """Two backward passes over one tape must give the same bits, and so must the early ones and a later one, and more
    calls of each rule by itself.

    The rules are not called again after so many seconds.
    """
    y, leaves = function.record(function.values)
    passes = [grad(y, leaves, cotangent, retain_graph=True) for _ in range(2)]
    for name, a, b in zip(function.names, *passes):
        if not np.array_equal(a, b, equal_nan=True):
            differ = f"gradients that differ, by up to {np.nanmax(np.abs(a - b)):.1e}"
            raise Varying(f"two backward passes over one tape give {name} {differ}: {_WHY}")
    late = grad(y, leaves, early.cotangent, retain_graph=True) if early is not None and early.passes else []
    for number, found in enumerate(early.passes if early is not None else (), start=1):
        for name, a, b in zip(function.names, found, late):
            if not np.array_equal(a, b, equal_nan=True):
                differ = f"is {np.nanmax(np.abs(a - b)):.1e} away from that of a later one"
                raise Varying(f"the gradient of {name} in backward pass {number} of the check {differ}: {_WHY}")
    end, number_of_calls = time.monotonic() + seconds, function.tape()[2]
    seed = beside(cotangent.astype(y.dtype), y.data)
    for node, dy, found in walk(origin(y), seed, Sums({*map(origin, leaves)}), retain=True):
        pull_back = functools.partial(node.op.pull_back, node, dy, tuple(g is not None for g in found))
        first = [None if a is None else np.array(to_host(a)) for a in pull_back(Sums())]
        for _ in range(_REPEATS // number_of_calls):
            if time.monotonic() > end:
                return
            again = pull_back(Sums())
            if not all(a is None or np.array_equal(a, to_host(b), equal_nan=True) for a, b in zip(first, again)):
                raise Varying(f"the rule of {node.op.name} gives another gradient in a later call: {_WHY}")


class _Watch:
    """A guard of a node: it gives the rule a read-only cotangent, and notes whether the rule makes a NaN.

    An array of CuPy's can always be written to; there a copy tells whether the rule does.
    """

    def __init__(self, op: str, place: str, seen: list[_Watch]):
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


def _floats(arrays: Sequence[Any]) -> Iterator[np.ndarray]:
    return (a for a in arrays if is_array(a) and a.dtype.kind == "f")


def _guarded(function: Function, cotangent: np.ndarray) -> list[str]:
    """One backward pass that says which rule writes into its cotangent, raises, or makes a NaN of numbers."""
    seen: list[_Watch] = []

    def note(node: Any, y: Any, arrays: Sequence[Any], static: Any, place: str) -> None:
        node.guard = _Watch(node.op.name, place, seen)

    with watched(note):
        y, leaves = function.record(function.values)
    try:
        grad(y, leaves, cotangent)
    except Exception as error:
        if not seen or isinstance(error, NanogradError) and "read-only" not in str(error):
            raise
        if "read-only" in str(error):
            return [f"the rule of {seen[-1].op} {WRITES}: {seen[-1].place}"]
        message = f"the rule of {seen[-1].op} raises {type(error).__name__}: {error}; {seen[-1].place}"
        raise GraphError(message) from error
    found = [f"the rule of {at.op} {WRITES}: {at.place}" for at in seen if at.writes]
    if np.isfinite(to_host(y.data)).all():  # else the forward overflowed, and each input's verdict says so
        found += [f"the rule of {at.op} makes a NaN of numbers: {at.place}" for at in seen if at.makes_nan]
    return found[:1]


def _in_float32(
    function: Function, cotangent: np.ndarray, flow: float, precisions: Precisions, rng: np.random.Generator
) -> list[str]:
    """Where the gradient in float32 differs from that in float64 by more than rounding.

    At points nearby rounding is different, and a mistake is the same: see `rounding`.
    """
    epsilon = float(np.finfo(np.float32).eps)
    values, v = [x.astype(np.float32) for x in function.values], cotangent.astype(np.float32)
    exact, factors = [x.astype(np.float64) for x in values], (1.0, *_FACTORS[:2])

    def differences(values: Sequence[np.ndarray]) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
        """For each factor of the cotangent the gradients in float32 less those in float64; and the latter."""
        y, leaves = function.record(values)
        wide = gradients(function, [x.astype(np.float64) for x in values], [v.astype(np.float64)])[0]
        narrow = [grad(y, leaves, (factor * v).astype(y.dtype), retain_graph=True) for factor in factors]
        return [[a / factor - b for a, b in zip(found, wide)] for factor, found in zip(factors, narrow)], wide

    try:
        offs, wide = differences(values)
    except Exception:  # f is the user's: on float32 it may raise whatever it likes
        return []
    found: dict[int, str] = {}
    near: list[list[list[np.ndarray]]] = []
    moved: list[list[list[np.ndarray]]] = []
    for number, k in itertools.product(range(len(factors)), range(len(wide))):
        name, x, d = function.names[k], function.values[k], offs[number][k]
        u = np.stack([(dense(rng, x.shape) * sizes(x)).reshape(-1) for _ in range(_DIRECTIONS)])
        rounding = DEPTH * epsilon * (np.abs(u) @ np.abs(wide[k]).reshape(-1) + flow)
        if k in found or not np.isfinite(d).all() or not (np.abs(u @ d.reshape(-1)) > rounding).all():
            continue
        rounding += DEPTH * epsilon * reach(function, k, cotangent.reshape(1, -1), precisions, rng)
        moved = moved or perturbed(function, exact, v.reshape(1, -1).astype(np.float64), epsilon, rng)
        rounding += DEPTH * np.max([np.abs(u @ (other[0][k] - wide[k]).reshape(-1)) for other in moved], axis=0)
        if not (np.abs(u @ d.reshape(-1)) > rounding).all():
            continue
        near = near or [differences(nudged(values, rng, far=far))[0] for far in _FAR]
        seen = np.stack([u @ d.reshape(-1), *(u @ other[number][k].reshape(-1) for other in near)])
        if (np.ptp(seen, axis=0) < 0.1 * np.abs(seen[0])).all():
            where = "in float32" + (f", for a cotangent {factors[number]:.0e} times as large," if number else "")
            found[k] = f"{where} the gradient of {name} is off by up to {np.abs(d).max():.1e}, more than rounding"
    return [*found.values()]


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
    factors = 1 + _NEAR * rng.uniform(-1, 1, _NEARBY)
    changed = [[*(x * factor for x in values), *nudged(others, rng)] for factor in factors]
    return [[*values, *others], *changed]


def _is_steady(seen: Sequence[float]) -> bool:
    """Is a number nearly the same at all points nearby, as a mistake is?  Rounding is another one at each."""
    return float(np.ptp(seen)) <= 0.1 * abs(seen[0])
