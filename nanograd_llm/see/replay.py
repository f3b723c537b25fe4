"""Running a recorded forward again in float64: to move one entry, to take a slope, to see which digits were lost.

x̄[i] = Σₖ ȳ[k]·∂y[k]/∂x[i] is the chain rule for one entry of one input. The slopes come from the op's forward, not
from its rule, so they tell whether the rule is right.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanograd_llm.autograd.tensor import Tensor, array_of, grad
from nanograd_llm.backend.arrays import use_device
from nanograd_llm.errors import GraphError, IndexRangeError
from nanograd_llm.gradcheck.check.derivatives import Derivative, Line, derivative, differences
from nanograd_llm.gradcheck.check.kinks import bends
from nanograd_llm.gradcheck.check.rounding import EPS
from nanograd_llm.see.record import Call, Record, Value, at, recorded
from nanograd_llm.settings import counted, told_apart

Index = tuple[int, ...]
AGREE = "they agree"
STEP = 1e-5  # of one difference: its error is far below the rounding of float32
_SHOWN = 8


def wide(a: Any) -> Any:
    """Floats as float64; ids, masks and None as they are."""
    return a.astype(np.float64) if getattr(a, "dtype", None) is not None and a.dtype.kind == "f" else a


def wide_static(call: Call) -> dict[str, Any]:
    """The static arguments of a call, for which a cast to another float dtype is one to float64."""
    static = dict(call.static)
    if "dtype" in static and np.dtype(static["dtype"]).kind == "f":
        static["dtype"] = np.float64
    return static


def calls_below(record: Record, value: Value) -> list[Call]:
    """The calls that depend on a value, in order."""
    below, found = {id(value)}, []
    for call in record.calls:
        if any(id(x) in below for x in call.inputs) and call.output is not value:
            below.add(id(call.output))
            found.append(call)
    return found


class Replay:
    """The part of a recorded forward that depends on one value, ready to be run with another array in its place.

    result: what is computed, the result of the record if not given; it must depend on the value.
    widened: arrays in float64 by the id of the recorded one, which several replays of a record share.
    """

    def __init__(
        self,
        record: Record,
        value: Value,
        result: Value | None = None,
        widened: dict[int, np.ndarray] | None = None,
    ):
        self.value, self.result, self.array = value, result or record.result, wide(value.array)
        self.seed = np.asarray(1.0) if self.result.grad is None else wide(self.result.grad)
        last = self.result.made_by.number if self.result.made_by else -1
        calls = [call for call in calls_below(record, value) if call.number <= last]
        below = {id(value), *(id(call.output) for call in calls)}
        self.widened = {} if widened is None else widened
        self.steps: list[tuple[Call, list[Any], dict[str, Any]]] = []
        for call in calls:
            inputs = [None if x is None else x if id(x) in below else self.wide(x.array) for x in call.inputs]
            self.steps.append((call, inputs, wide_static(call)))

    def wide(self, a: np.ndarray) -> np.ndarray:
        if id(a) not in self.widened:
            self.widened[id(a)] = wide(a)
        return self.widened[id(a)]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The result, times the cotangent that backward began with, if the value were this array."""
        return np.sum(self.computed(array) * self.seed)

    def computed(self, array: np.ndarray) -> np.ndarray:
        """The result if the value were this array."""
        values = {id(self.value): array}
        for call, inputs, static in self.steps:
            given = [values[id(x)] if isinstance(x, Value) else x for x in inputs]
            with np.errstate(all="ignore"):
                values[id(call.output)] = np.asarray(call.op(*given, **static))
        return values[id(self.result)]


def moved(array: np.ndarray, index: Index, t: complex) -> np.ndarray:
    """The array with t added to one entry."""
    array = array.astype(np.result_type(array, type(t)))
    array[index] += t
    return array


def _agreement(forward: float, backward: float, tolerance: float, gap: float) -> str:
    """How a slope of the forward and a gradient agree, in words; "" where they do not.

    gap: half the distance between the slopes to both sides.
    """
    off = abs(forward - backward)
    if not math.isfinite(forward) or not math.isfinite(tolerance):
        return "they cannot be compared: no finite slope of the forward was found here"
    if off <= tolerance:
        return f"{AGREE} within the rounding of {tolerance:.1g}"
    is_between = off <= tolerance + gap
    return f"{AGREE}: at a kink each slope from {forward - gap:.6g} to {forward + gap:.6g} is right" * is_between


@dataclass(frozen=True)
class Nudge:
    """How the result answers when one entry of a value moves, beside what backward says.

    entry: the entry in words.  before: its number.  slope: the change of the result per unit of it, by central
    differences of the recorded calls, run again; NaN where the result is not finite.  backward: the gradient of the
    entry.  tolerance: the rounding to expect.  uses: of the value, all of which move.  gap: half the distance between
    the slopes to both sides, where they differ.
    """

    entry: str
    before: float
    slope: float
    backward: float
    tolerance: float
    uses: int = 1
    gap: float = 0.0

    @property
    def agreement(self) -> str:
        """In words; "" where they differ."""
        return _agreement(self.slope, self.backward, self.tolerance, self.gap)

    @property
    def agrees(self) -> bool:
        return bool(self.agreement)

    def __str__(self) -> str:
        verdict = self.agreement or (
            f"they differ by more than the rounding of {self.tolerance:.1g}: a hook or a wrong rule on the way back "
            "from the result has changed the gradient; c in trace.step() names wrong rules"
        )
        return (
            f"{self.entry} is {self.before:.6g}. Move it up and down{_in_all(self.uses)} and run the recorded calls "
            f"again: the result moves by {self.slope:.6g} per unit; backward says {self.backward:.6g}: {verdict}"
        )


def nudge(record: Record, value: Value, index: Index, replay: Replay | None = None, *, quick: bool = False) -> Nudge:
    """Move one entry of a value and compare. quick: by one fixed step, and by more only where that does not agree.

    Numbers that the tape does not know, such as float(x), stay as they are; `gradcheck` moves them as well. Raises
    GraphError for a value without a gradient and for an entry that is not finite.
    """
    index = require_movable(value.array, index, value.label)
    if value.grad is None:
        raise GraphError(f"{value.label} has no gradient")
    replay, own = replay or Replay(record, value), abs(float(value.array[index]))
    rounding = 16 * len(record.calls) * float(np.finfo(value.grad.dtype).eps) * _largest(value.grad)
    for size in [1.0] if quick else _scales(own):

        def line(t: complex, size: float = size) -> np.ndarray:
            return replay(moved(replay.array, index, t * size))

        moves = _difference(line, STEP * max(1.0, own)) if quick else differences(line, enough=1e-7)
        change = float(moves.value) / size if np.isfinite(line(0.0)) else math.nan
        numbers = float(value.array[index]), change, float(value.grad[index])
        found = Nudge(value.entry(index), *numbers, rounding + float(moves.error) / size, len(value.uses))
        if found.agreement.startswith(AGREE):
            return found
    return nudge(record, value, index, replay) if quick else replace(found, gap=float(_half_gap(line)) / size)


def _scales(own: float) -> list[float]:
    """How large steps are: of the size of 1, and where that shows nothing, of the size of the entry itself."""
    return [1.0, own] if own else [1.0]


@dataclass(frozen=True)
class Terms:
    """x̄[i] = Σₖ ȳ[k]·∂y[k]/∂x[i] in numbers.

    entry: x̄[i] in words.  outputs: the size of y.  terms: (k, ȳ[k], ∂y[k]/∂x[i]) where the slope is not 0, the largest
    product first.  sent: what the rule sent.  method: how the slopes were found.  tolerance: the rounding to expect.
    uses: of x, of which this call is one.  gap: half the distance between the sums to both sides, where they differ.
    """

    entry: str
    outputs: int
    terms: list[tuple[Index, float, float]]
    sent: float
    method: str
    tolerance: float
    uses: int = 1
    gap: float = 0.0

    @property
    def total(self) -> float:
        return _sum(a * b for _, a, b in self.terms)

    @property
    def agreement(self) -> str:
        """In words; "" where they differ."""
        return _agreement(self.total, self.sent, self.tolerance, self.gap)

    @property
    def agrees(self) -> bool:
        return bool(self.agreement)

    def __str__(self) -> str:
        zero = self.outputs - len(self.terms)
        others = f", and {zero} that are zero" if zero else ""
        x = self.entry.replace(BAR, "")
        lines = [f"{self.entry} = Σ ȳ·∂y/∂{x}: {counted(len(self.terms), 'term')}{others}"]
        of = f"/∂{x.partition('[')[0]}"
        lines += [f"  ȳ{at(k)}·∂y{at(k)}{of} = {a:.6g}·{b:.6g} = {a * b + 0.0:.6g}" for k, a, b in self.terms[:_SHOWN]]
        if rest := self.terms[_SHOWN:]:
            lines.append(f"  and {len(rest)} smaller ones, in sum {_sum(a * b for _, a, b in rest):.6g}")
        verdict = self.agreement or "they differ: the rule is wrong here"
        lines.append(f"  = {self.total:.9g}; the rule sent {self.sent:.9g}: {verdict}")
        if self.uses > 1:
            lines.append(f"  this use is one of {self.uses}: the whole gradient is the sum of what they send")
        return "\n".join(lines)


def _sum(numbers: Iterable[float]) -> float:
    """Exact; of infinities with both signs it is NaN."""
    numbers = [*numbers]
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)


def _in_all(uses: int) -> str:
    return f", in all {uses} uses," if uses > 1 else ""


BAR = "\N{COMBINING MACRON}"


def bar(name: str) -> str:
    """The name of an adjoint: a bar over the first letter."""
    return f"{name[0]}{BAR}{name[1:]}"


def terms(call: Call, name: str | int, index: Index, *, quick: bool = False, around: Around | None = None) -> Terms:
    """The chain rule for one entry of one input of a call. quick: see `Around.along`.

    Raises GraphError for an input without a gradient and for an entry that is not finite.
    """
    place, around = call.place_of(name), around or Around(call)
    x, sent = call.inputs[place], call.sent[place]
    assert x is not None and sent is not None
    index = require_movable(x.array, index, call.input_name(place))
    what, number = bar(call.input_name(place)) + at(index), float(sent[index])
    for size in _scales(abs(float(x.array[index]))):

        def shifted(t: complex, size: float = size) -> np.ndarray:
            return moved(around.inputs[place], index, t * size)

        largest = _largest(sent[index]) * size
        slope, _, rounding, gap = around.along({place: shifted}, number * size, largest, 1, quick, size)
        slopes = slope.value / size
        places = [tuple(map(int, k)) for k in np.argwhere(slopes != 0)]
        entries = [(k, float(around.dy[k]), float(slopes[k])) for k in places]
        entries.sort(key=lambda entry: -abs(entry[1] * entry[2]))
        found = Terms(what, around.dy.size, entries, number, slope.method, rounding / size, len(x.uses), gap / size)
        if found.agreement.startswith(AGREE):
            return found
    is_known = (around.is_finite & np.isfinite(around.dy)).all()  # else some slopes say nothing
    return found if is_known else replace(found, tolerance=math.nan)


class Around:
    """A call in float64, whose inputs can be moved: how y answers, beside what the rule sent."""

    def __init__(self, call: Call):
        self.call, self.static = call, wide_static(call)

    @functools.cached_property
    def dy(self) -> np.ndarray:
        found: np.ndarray = wide(self.call.cotangent)
        return found

    @functools.cached_property
    def inputs(self) -> list[Any]:
        return [None if x is None else wide(x.array) for x in self.call.inputs]

    @functools.cached_property
    def largest(self) -> float:
        return max(_largest(a) for a in (self.call.cotangent, *self.call.sent) if a is not None)

    @functools.cached_property
    def is_finite(self) -> np.ndarray:
        """Which entries of y are; the others are taken as flat."""
        return np.isfinite(self.call.output.array)

    def along(
        self,
        moves: Mapping[int, Callable[[complex], Any]],
        sent: float,
        size: float,
        order: int,
        quick: bool = False,
        scale: float = 1.0,
    ) -> tuple[Derivative, np.ndarray, float, float]:
        """The slope of y as inputs move, ȳ·slope, how far rounding moves Σ ȳ·slope from `sent`, and how far a kink.

        moves: place -> the input moved by t.  sent: the sum of what the rule sent, times how fast each entry moves.
        size: the norm of that, of this order: 1 where the roundings of one sum may all go the same way, 2 where the
        moves give them random signs.  quick: by one difference, and by more only where the sums do not agree.
        scale: of the moves.
        """

        def line(t: complex) -> np.ndarray:
            given = [moves[i](t) if i in moves else a for i, a in enumerate(self.inputs)]
            with np.errstate(all="ignore"):
                y = np.asarray(self.call.op(*given, **self.static))
            return y if self.is_finite.all() else np.where(self.is_finite, y, 0)

        found = _difference(line) if quick else derivative(line)
        dy = np.where(found.value != 0, self.dy, 0)  # also where it is infinite
        forward = dy * found.value
        whole = scale * self.largest + max(float(np.linalg.norm(forward[np.isfinite(forward)], order)), size)
        eps = max(float(np.finfo(g.dtype).eps) for g in self.call.sent if g is not None)
        tolerance, gap = 64 * eps * whole + float(np.sum(np.abs(dy) * found.error)), 0.0
        if not abs(forward.sum() - sent) <= tolerance:
            if quick:
                return self.along(moves, sent, size, order, scale=scale)
            half = _half_gap(line)
            gap = float(np.sum(np.abs(np.where(half != 0, self.dy, 0)) * half))
        return found, forward, tolerance, gap

    def no_slopes(self, place: int) -> np.ndarray:
        """The entries whose gradient is not finite, if it need not be: neither are ȳ or the slopes there."""
        entries = ~np.isfinite(np.asarray(self.call.sent[place]))
        if entries.any() and np.isfinite(self.dy).all():
            moves = {place: functools.partial(_along, self.inputs[place], entries * 1.0)}
            entries &= not np.isfinite(self.along(moves, 0.0, 0.0, 2)[1].sum())
        return entries

    def agrees(self, places: list[int], directions: int = 2, *, quick: bool = False) -> bool:
        """Are the gradients sent to these inputs right? All entries are compared at once, along random directions.

        Along a direction u, Σ x̄·u and Σ ȳ·(slope of y along u) are the same number, where the slope is the forward's.
        Where y is not finite, nothing is known, and this is True.
        """
        rng = np.random.default_rng(0)
        for _ in range(directions if self.is_finite.all() else 0):
            moves, sent, sizes = {}, 0.0, []
            for place in places:
                a, gradient = self.inputs[place], np.asarray(self.call.sent[place])
                u = rng.random(a.shape)
                u -= 0.5
                u += np.copysign(0.5, u)  # random signs, and sizes from 0.5 to 1
                if not np.isfinite(a.sum() + gradient.sum()):
                    u[~np.isfinite(a) | self.no_slopes(place)] = 0.0
                    gradient = np.where(u != 0, gradient, 0.0)
                moves[place] = functools.partial(_along, a, u)
                product = u * gradient
                sent += float(product.sum())
                sizes.append(
                    float(np.linalg.norm(product.reshape(-1) if math.isfinite(sent) else product[np.isfinite(product)]))
                )
            _, forward, tolerance, gap = self.along(moves, sent, math.hypot(*sizes), 2, quick)
            if not abs(forward.sum() - sent) <= tolerance + gap:
                return False
        return True


def _along(a: np.ndarray, u: np.ndarray, t: complex) -> np.ndarray:
    moved = np.asarray(u * t)
    moved += a
    return moved


def _difference(line: Line, step: float = STEP) -> Derivative:
    """The slope by one central difference."""
    with np.errstate(all="ignore"):
        ahead, behind = line(step), line(-step)
        value = np.asarray(np.where(ahead == behind, 0.0, ahead - behind) / (2 * step))  # infinities that stay are flat
    return Derivative(value, np.zeros_like(value), step, "a difference")


def _largest(a: np.ndarray) -> float:
    """The size of the largest entry that is finite."""
    most = float(np.abs(a).max(initial=0))
    return most if math.isfinite(most) else float(np.abs(a[np.isfinite(a)]).max(initial=0))


def _half_gap(line: Line) -> np.ndarray:
    """Half the distance from the left slope to the right one where y bends: any between them is right. 0 elsewhere."""
    h = 2.0**-20
    with np.errstate(all="ignore"):
        gap = np.abs(line(h) + line(-h) - 2 * line(0.0)) / (2 * h)
    return np.where(bends(line, EPS), gap, 0.0)


def wrong_places(call: Call, around: Around | None = None) -> list[int]:
    """The places of the inputs to which the rule of a call sent a wrong gradient: see `Around.agrees`."""
    around = around or Around(call)
    places = [place for place, sent in enumerate(call.sent) if sent is not None]
    return [place for place in places if not around.agrees([place])]


def wrong_rules(record: Record) -> list[tuple[Call, int]]:
    """Each call whose rule sent a wrong gradient, with the place of the input."""
    return [(call, place) for call in record.calls for place in wrong_places(call)]


def require_movable(array: np.ndarray, index: Any, what: str) -> Index:
    """The index of an entry that can be moved. Raises GraphError if the entry is not finite."""
    index = require_index(array, index, what)
    if not np.isfinite(array[index]):
        raise GraphError(f"{what}{at(index)} is {array[index]}; only a finite entry can be moved")
    return index


def require_index(array: np.ndarray, index: Any, what: str) -> Index:
    """The index as a tuple of integers. Raises IndexRangeError unless it is of one entry of the array."""
    index = tuple(index) if isinstance(index, (tuple, list)) else (index,)
    if len(index) != array.ndim or not all(isinstance(i, (int, np.integer)) for i in index):
        raise IndexRangeError(f"{what} has shape {array.shape}; an entry of it needs {array.ndim} indices; got {index}")
    for axis, (i, n) in enumerate(zip(index, array.shape)):
        if not -n <= i < n:
            raise IndexRangeError(f"index {i} is out of range for axis {axis} of {what}, which has shape {array.shape}")
    return tuple(int(i) % n for i, n in zip(index, array.shape))


def composition(record: Record, call: Call, kind: type[Record]) -> Any:
    """A record of the composition that a fused op equals, at the numbers of this call, with its cotangent.

    Raises GraphError for an op that equals none.
    """
    equals: Callable[..., Any] | None = call.op.equals
    if equals is None:
        raise GraphError(f"{call.op.name} is made of no other ops: read its rule in {call.rule_place}")
    places = [i for i, need in enumerate(call.needs) if need]

    def opened(*leaves: Any) -> Any:
        inputs = [None if x is None else x.array for x in call.inputs]
        for place, leaf in zip(places, leaves):
            inputs[place] = leaf
        return equals(*inputs, **call.static)

    opened.__name__ = f"{call.op.name}, opened"
    names = [inspect.Parameter(call.input_name(i), inspect.Parameter.POSITIONAL_ONLY) for i in places]
    opened.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    with use_device("cpu"):
        leaves = [Tensor(call.inputs[i].array, requires_grad=True) for i in places]  # type: ignore[union-attr]
    return recorded(opened, tuple(leaves), {}, call.cotangent, kind, inside_ops=True)


@dataclass(frozen=True)
class Digits:
    """How many decimal digits of a call's numbers are right: of its value and of the gradients it sent.

    own: what is lost in the op itself, given the inputs it had.  all: with what was lost before it.
    """

    call: Call
    own: float
    all: float
    own_gradient: float
    all_gradient: float


@dataclass(frozen=True)
class Shadow:
    """The digits that each call has lost, by a run in float64 beside the recorded one."""

    rows: list[Digits]

    @property
    def worst(self) -> Call:
        """The call whose value loses the most digits in the op itself."""
        return min(self.rows, key=lambda row: row.own).call

    @property
    def worst_backward(self) -> Call:
        """The call whose rule loses the most digits itself."""
        return min(self.rows, key=lambda row: row.own_gradient).call

    def __str__(self) -> str:
        head = f"{'':>4} {'op':<22} {'module':<28} {'value: own':>10} {'all':>6} {'gradient: own':>14} {'all':>6}"
        lines = [
            f"{row.call.number:>4} {row.call.op.name:<22} {row.call.module:<28} {_digits(row.own):>10} "
            f"{_digits(row.all):>6} {_digits(row.own_gradient):>14} {_digits(row.all_gradient):>6}"
            for row in self.rows
        ]
        if all(row.all == row.all_gradient == math.inf for row in self.rows):
            return "\n".join(
                [head, *lines, "the pass was recorded in float64 itself: there is nothing wider beside it"]
            )
        forward, backward = (f"{call.number} {call.op.name}" for call in (self.worst, self.worst_backward))
        last = f"digits that are right; by itself {forward} loses the most forward, {backward} backward"
        return "\n".join([head, *lines, last])


def _digits(n: float) -> str:
    return "exact" if n == math.inf else "none" if n == -math.inf else f"{n:.1f}"


def shadow(record: Record) -> Shadow:
    """Run the recorded calls in float64, forward and backward, and count the digits that the recorded pass has."""
    leaves = [leaf for leaf in record.leaves.values() if leaf.uses]

    def again(*arrays: Any) -> Any:
        values: dict[int, Any] = dict(zip(map(id, leaves), arrays))
        for call in record.calls:
            given = [None if x is None else values.get(id(x), wide(x.array)) for x in call.inputs]
            values[id(call.output)] = call.op(*given, **wide_static(call))
        return values[id(record.result)]

    seed = record.result.grad
    with use_device("cpu"):
        exact = recorded(again, tuple(wide(leaf.array) for leaf in leaves), {}, None if seed is None else wide(seed))
        return Shadow([_compared(call, other) for call, other in zip(record.calls, exact.calls)])


def _compared(call: Call, exact: Call) -> Digits:
    given = [
        None if x is None else Tensor(wide(x.array), requires_grad=True) if need else wide(x.array)
        for x, need in zip(call.inputs, call.needs)
    ]
    y = call.op(*given, **wide_static(call))
    own = grad(y, [x for x, need in zip(given, call.needs) if need], wide(call.cotangent))
    sent = [g for g in call.sent if g is not None]
    return Digits(
        call,
        _right_digits([call.output.array], [y.data]),
        _right_digits([call.output.array], [exact.output.array]),
        _right_digits(sent, own),
        _right_digits(sent, [g for g in exact.sent if g is not None]),
    )


def _right_digits(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """-log₁₀ of the relative error of these arrays, the worst of them; inf where nothing is lost, -inf for a NaN."""
    worst = 0.0
    for a, b in zip(found, exact):
        keep = np.isfinite(b)
        off = float(np.linalg.norm(a.astype(np.float64)[keep] - b[keep]))
        worst = math.inf if math.isnan(off) else max(worst, off / (float(np.linalg.norm(b[keep])) or 1.0))
    return -math.log10(worst) if worst else math.inf


def compare(record: Record, name: str, value: Value, mine: Any) -> tuple[bool, str]:
    """Is this array the gradient of the value? True or False, and lines that say how close, or what it is like."""
    right = value.grad
    assert right is not None
    try:
        mine = np.asarray(array_of(mine))
    except ValueError:  # rows of several lengths
        mine = np.asarray("")
    if mine.dtype.kind not in "fiub":
        got = "nothing" if mine.dtype == object and mine.ndim == 0 and mine.item() is None else "no array of numbers"
        return False, f"{name}: not yet right\n  {got} was returned; the gradient is an array of shape {right.shape}"
    scale = float(np.abs(right).max(initial=0))
    eps = float(np.finfo(right.dtype).eps)

    def equal(a: np.ndarray, b: np.ndarray) -> bool:
        return a.shape == b.shape and bool((np.abs(a - b) <= 64 * eps * max(scale, 1e-30)).all())

    if mine.shape == right.shape and np.array_equal(mine, right):
        return True, f"{name}: right\n  exact, to the last bit"
    if equal(mine, right):
        return True, f"{name}: right\n  close, at most {float(np.abs(mine - right).max()):.1g} off"
    looks = _looks_like(record, value, mine, right, equal)
    if not looks and mine.shape != right.shape:
        looks = f"its shape is {mine.shape}, that of the gradient {right.shape}"
    if not looks:
        worst = tuple(map(int, np.unravel_index(int(np.argmax(np.abs(mine - right))), right.shape)))
        one, other = told_apart(float(mine[worst]), float(right[worst]), 6)
        looks = f"at {worst} it is {one}, expected {other}"
    return False, f"{name}: not yet right\n  {looks}"


def _looks_like(
    record: Record, value: Value, mine: np.ndarray, right: np.ndarray, equal: Callable[[Any, Any], bool]
) -> str:
    if equal(mine.T, right):
        return "it is transposed"
    if mine.ndim > right.ndim or (mine.ndim == right.ndim and mine.size > right.size):
        extra = mine.ndim - right.ndim
        axes = tuple(i for i in range(mine.ndim) if i < extra or right.shape[i - extra] != mine.shape[i])
        if equal(mine.sum(axis=axes, keepdims=True).reshape(-1), right.reshape(-1)):
            return f"sum it over axis {', '.join(map(str, axes))}"
    for use in value.uses if len(value.uses) > 1 else ():
        if equal(mine, use.gradient):
            return f"it is the part from {use} alone; the gradient is the sum of {len(value.uses)} uses"
    if mine.shape == right.shape and right.any():
        factor = float(np.vdot(mine, right) / np.vdot(right, right))
        if factor and equal(mine / factor, right):
            return (
                "the sign is wrong"
                if abs(factor + 1) < 1e-6
                else f"it is {told_apart(factor, 1, 6)[0]} times the gradient"
            )
    for other in record.values():
        if other is not value and other.grad is not None and equal(mine, other.grad):
            return f"it is the gradient of {other.label}"
    return ""
