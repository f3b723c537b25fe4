"""Inputs to check an op with: from the samples it declares, or else drawn to fit its shape line and domain.

A case can then be varied in what must not change a gradient: how its arrays lie in memory, which gradients are wanted,
and whether one Tensor is given twice.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.tensor import Tensor
from nanograd_llm.backend.arrays import on_default_device
from nanograd_llm.errors import NanogradError

_GAP = 0.04
_SMALL = 128  # numbers in a case, at most, of which others are derived
_KEPT_APART = 64  # numbers in a draw, at most, that are kept apart: more would spread too far

LAYOUTS = ("contiguous", "fortran", "negative strides", "zero strides", "every other", "read-only")


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """The numbers of x in one of LAYOUTS; under zero strides the first row of two or more stands for all of them.

    >>> laid_out(np.array([[1.0, 2.0], [3.0, 4.0]]), "zero strides")
    array([[1., 2.],
           [1., 2.]])
    """
    if layout == "fortran":
        return np.array(x, order="F")  # `asfortranarray` makes an axis where there is none
    if layout == "negative strides":
        back: Any = (..., *(slice(None, None, -1),) * x.ndim)  # the dots keep an array of one that has no axes
        return x[back].copy()[back]
    if layout == "zero strides":
        return np.broadcast_to(x[:1], x.shape) if x.ndim > 1 and x.size else x
    if layout == "every other":
        return np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x
    x = x.copy(order="C")
    x.flags.writeable = layout != "read-only"
    return x


@dataclass(frozen=True, eq=False)
class Case:
    """One call of an op: its inputs (float64 arrays, constants, None for one left out) and static arguments.

    layouts: one of LAYOUTS for each input, or none where all are contiguous.
    needs: which inputs require a gradient; None for all that can.  same: two places of the inputs that are one Tensor.
    region: one of REGIONS where the numbers were moved there.
    """

    inputs: tuple[Any, ...]
    static: dict[str, Any] = field(default_factory=dict)
    layouts: tuple[str, ...] = ()
    needs: tuple[bool, ...] | None = None
    same: tuple[int, int] | None = None
    region: str = ""

    @property
    def size(self) -> int:
        """How many numbers its inputs hold."""
        return sum(map(np.size, self.inputs))

    def astype(self, dtype: Any) -> Case:
        """The same case with its float inputs in another dtype."""
        return replace(self, inputs=tuple(x.astype(dtype) if _is_float(x) else x for x in self.inputs))

    def placed(self) -> list[Any]:
        """Its inputs with arrays on the default device."""
        return [on_default_device(x) if isinstance(x, np.ndarray) else x for x in self.inputs]

    def on(self, op: Op) -> tuple[Callable[..., Tensor], list[np.ndarray]]:
        """The op as a function of the arrays that require a gradient, each once, and these arrays: for `gradcheck`."""
        places = [i for i, _ in differentiated(op, self) if self.needs is None or self.needs[i]]
        if self.same is not None:
            places = sorted({self.same[0] if i == self.same[1] else i for i in places})
        names = dict(differentiated(op, self))

        def call(*leaves: Any) -> Tensor:
            inputs = self.placed()
            for place, leaf in zip(places, leaves):
                inputs[place] = leaf
            if self.same is not None:
                inputs[self.same[1]] = inputs[self.same[0]]
            return op(*inputs, **self.static)

        call.__name__ = op.name
        parameters = [inspect.Parameter(names[i], inspect.Parameter.POSITIONAL_ONLY) for i in places]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call, [self.inputs[i] for i in places]

    def __str__(self) -> str:
        said = [str(np.shape(x)) if x is not None else "None" for x in self.inputs]
        said += [f"{name}={value!r}" for name, value in self.static.items()]
        if self.layouts:
            said.append("laid out " + ", ".join(self.layouts))
        if self.needs is not None:
            said.append(f"gradients wanted of {[i for i, need in enumerate(self.needs) if need]}")
        if self.same is not None:
            said.append("inputs {} and {} the same".format(*self.same))
        if self.region:
            said.append(self.region)
        return f"({', '.join(said)})"


def differentiated(op: Op, case: Case) -> list[tuple[int, str]]:
    """Place and name of each input that a gradient goes to."""
    names = [f"{op.inputs[0]}_{i}" for i in range(len(case.inputs))] if op.variadic else op.inputs
    return [
        (i, name)
        for i, (name, x) in enumerate(zip(names, case.inputs))
        if name not in op.constants and isinstance(x, np.ndarray) and x.dtype.kind == "f"
    ]


Choices = Any  # what decides the shape of a case: a NumPy generator, or Hypothesis in its place, which can shrink it


class Draw:
    """What an op's `samples` draws its numbers with: `draw(2, 3)` gives a float64 array, roughly standard normal.

    Up to 64 numbers at a time lie at least 0.01 away from 0, from ±1, from each other and from those of the two draws
    before, so from the kinks of functions. With `kinks`, every fourth number lies at one: 0 or ±1, which are also ties.
    """

    def __init__(self, rng: np.random.Generator, *, kinks: bool = False):
        self._rng = rng
        self._kinks = kinks
        self._lane = 0

    def __call__(self, *shape: int) -> np.ndarray:
        values = np.asarray(self._rng.standard_normal(shape))
        if self._kinks:
            return np.where(self._rng.random(shape) < 0.25, np.clip(np.rint(values), -1, 1), values)
        if values.size > _KEPT_APART:
            return values
        flat = values.reshape(-1)
        order = np.argsort(flat)
        place, count = np.floor(flat[order] / (3 * _GAP)), np.arange(flat.size)
        place = count + np.maximum.accumulate(place - count)  # every third place is this draw's: take each once
        self._lane = (self._lane + 1) % 3
        flat[order] = _GAP * (3 * place + self._lane + self._rng.uniform(0.3, 0.7, flat.size))
        return values

    def within(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        """Float64 numbers, uniform between low and high."""
        return np.asarray(self._rng.uniform(low, high, shape))

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """Integers from low up to, but not including, high."""
        return np.asarray(self._rng.integers(low, high, shape))


def draw_cases(op: Op, rng: np.random.Generator, count: int, *, kinks: bool = False) -> Iterator[Case]:
    """`count` cases for an op, or one for each of its samples where there are more; without samples, every third lacks
    the inputs with a default. Every fourth has an axis of size zero, unless the op refuses that. kinks: see `Draw`.

    Raises NanogradError for an op that needs samples and declares none.
    """
    draw = Draw(rng, kinks=kinks)
    if op.samples is None:
        for number in range(count):
            case = case_from_shape_line(op, draw, rng, left_out=number % 3 == 2)
            yield emptied(op, case, rng) if number % 4 == 3 else case
        return
    made = 0
    while made < count:
        whole = made == 0  # each sample is drawn as it is at least once
        for case in cases_from_samples(op, draw):
            yield case if whole or made % 4 != 3 else emptied(op, case, rng)
            made += 1


def cases_from_samples(op: Op, draw: Draw) -> list[Case]:
    """A case for each sample that the op declares."""
    assert op.samples is not None
    expected = f"op {op.name}: a sample is (inputs, static arguments), such as ((draw(3),), {{}})"
    samples = op.samples(draw)
    if not isinstance(samples, Iterable):
        raise NanogradError(f"{expected}; yield such pairs; got {samples!r:.100}")
    found = []
    for sample in samples:
        match sample:
            case ((tuple() | list()) as inputs, dict() as static):
                found.append(Case(tuple(inputs), dict(static)))
            case _:
                raise NanogradError(f"{expected}; got {sample!r:.100}")
    if not found:
        raise NanogradError(f"the samples of op {op.name} are empty; yield at least one (inputs, static)")
    return found


def case_from_shape_line(op: Op, draw: Draw, choices: Choices, *, left_out: bool) -> Case:
    """A case whose shapes the shape line and `choices` decide; left_out: without the inputs that have a default."""
    needed = [name for name, default in op.static_defaults.items() if default is inspect.Parameter.empty]
    if op.constants or needed:
        form = ", ".join(name if name in op.constants else "draw(3, 4)" for name in op.inputs)
        static = ", ".join(f"{name!r}: {name}" for name in needed)
        raise NanogradError(
            f"op {op.name} has constants or static arguments without a default, so its inputs cannot be drawn from "
            f"the shape line; declare samples=lambda draw: [(({form},), {{{static}}}), ...] with values of your own"
        )
    shapes = op.shape_line.draw(choices)
    names = op.inputs[: op.required] if left_out and not op.variadic else op.inputs
    names = names * int(choices.integers(1, 4)) if op.variadic else names
    inputs = [draw.within(*op.domain[n], shapes[n]) if n in op.domain else draw(*shapes[n]) for n in names]
    return Case((*inputs, *[None] * (len(op.inputs) - len(inputs))))


def emptied(op: Op, case: Case, choices: Choices) -> Case:
    """The case with one size of the shape line made zero, or as it was where the op refuses that or has no answer."""
    named = axis_names(op, case)
    known = sorted({label for labelled in named for label in labelled}, key=str)
    if not known or not all(np.size(x) for x in case.inputs if x is not None):
        return case
    chosen = known[int(choices.integers(0, len(known)))]
    inputs = tuple(
        x[tuple(slice(0) if label == chosen else slice(None) for label in labelled)] if labelled else x
        for x, labelled in zip(case.inputs, named)
    )
    empty = replace(case, inputs=inputs)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            op(*empty.inputs, **empty.static)
        except (NanogradError, ArithmeticError, RuntimeWarning):
            return case
    return empty


def derived(op: Op, cases: Iterable[Case]) -> list[Case]:
    """Cases made of these, one for each way of `_derivations` that the op takes: of another case for each way."""
    ways: dict[Any, list[tuple[Case, Case]]] = {}
    for case in cases:
        sizes = {n for x in case.inputs for n in np.shape(x)}
        if case.size <= _SMALL and 0 not in sizes and max(sizes, default=0) > 1:
            for way, other in _derivations(op, case):
                ways.setdefault(way, []).append((case, other))
    found: list[Case] = []
    for number, pairs in enumerate(ways.values()):
        turned = pairs[number % len(pairs) :] + pairs[: number % len(pairs)]
        taken = (other for case, other in turned if _where_defined(op, case, other) is other)
        found += itertools.islice(taken, 1)
    return found


def _derivations(op: Op, case: Case) -> Iterator[tuple[Any, Case]]:
    """Other cases made of one, each with a name for the way, whether or not the op takes it.

    A size is cut to 1, or to the next smaller one; all sizes are 1; the leading axes are gone, or there are one or two
    more; int32 takes the place of int64; numbers of a positive domain are negative; axes count from the other end.
    """
    sizes = sorted({n for x in case.inputs for n in np.shape(x) if n > 1})

    def cut(lengths: dict[int, int]) -> Case:
        places = [tuple(slice(lengths.get(n, n)) for n in np.shape(x)) for x in case.inputs]
        return replace(case, inputs=tuple(x[at].copy() if at else x for x, at in zip(case.inputs, places)))

    for place, (size, smaller) in enumerate(zip(sizes, [1, *sizes])):
        yield ("one", place), cut({size: 1})
        if place:
            yield ("equal", place), cut({size: smaller})
    yield "ones", cut(dict.fromkeys(sizes, 1))
    names = op.inputs * len(case.inputs) if op.variadic else op.inputs
    stars = [op.shape_line.inputs[name][:1] for name in names]
    leading = [
        sum(isinstance(label, int) for label in labelled) * (star in (["*"], ["..."])) if np.ndim(x) else 0
        for x, star, labelled in zip(case.inputs, stars, axis_names(op, case))
    ]
    if most := max(leading, default=0):
        gone = [max(0, count - (star == ["*"])) for star, count in zip(stars, leading)]
        fewer = (np.array(x[(-1,) * count]) if count else x for x, count in zip(case.inputs, gone))
        yield "fewer axes", replace(case, inputs=tuple(fewer))
        more = case.inputs
        for added in (1, 2):
            more = tuple(_doubled(x) if count == most else x for x, count in zip(more, leading))
            yield ("more axes", added), replace(case, inputs=more)
    held = [x if isinstance(x, tuple) else (x,) for x in (*case.inputs, *case.static.values())]
    if any(map(_is_int64, itertools.chain(*held))):
        static = {name: _narrow(value) for name, value in case.static.items()}
        yield "int32", replace(case, inputs=tuple(map(_narrow, case.inputs)), static=static)
    positive = {i for i, name in differentiated(op, case) if op.domain.get(names[i], (0,))[0] > 0}
    if positive:
        inputs = tuple(-x if i in positive else x for i, x in enumerate(case.inputs))
        yield "negative", replace(case, inputs=inputs)
    axis, ndim = case.static.get("axis"), np.ndim(case.inputs[0])
    if isinstance(axis, (int, tuple)) and axis != ():
        flipped = [a - ndim if a >= 0 else a + ndim for a in (axis if isinstance(axis, tuple) else (axis,))]
        axis = tuple(flipped) if isinstance(axis, tuple) else flipped[0]
        yield ("axis", axis), replace(case, static={**case.static, "axis": axis})


def _doubled(x: np.ndarray) -> np.ndarray:
    """x and an array of other numbers, or of the same integers in another order."""
    return np.stack([x, 0.875 * x if _is_float(x) else np.flip(x)])


def _narrow(x: Any) -> Any:
    """Arrays of int64 as int32."""
    if isinstance(x, tuple):
        return tuple(map(_narrow, x))
    return x.astype(np.int32) if _is_int64(x) else x


def _is_int64(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == np.int64


def enlarged(op: Op, case: Case, label: Any, size: int) -> Case:
    """The case repeated along the axes that the shape line names so, until it holds about `size` numbers; as it was
    where the op refuses that."""
    shapes = [list(zip(np.shape(x), labelled)) for x, labelled in zip(case.inputs, axis_names(op, case))]
    longest = max((n for shape in shapes for n, at in shape if at == label), default=0)
    grows = [[at == label and n == longest for n, at in shape] for shape in shapes]  # others of one are broadcast
    growing = sum(np.size(x) for x, axes in zip(case.inputs, grows) if any(axes))
    times = (size - case.size) // growing + 1 if growing else 1
    if times < 2:
        return case
    inputs = list(case.inputs)
    for i, axis in ((i, axis) for i, axes in enumerate(grows) for axis, grown in enumerate(axes) if grown):
        inputs[i] = np.concatenate([inputs[i]] * times, axis=axis)
    return _where_defined(op, case, replace(case, inputs=tuple(inputs)))


def sweeps(op: Op, drawn: Sequence[Case], rng: np.random.Generator) -> Iterator[Case]:
    """Cases of many numbers, made of those drawn: along each axis of the shape line, and in each of SWEEPS."""
    users: dict[Any, list[Case]] = {}
    drawn = [case for case in drawn if all(np.size(x) for x in case.inputs if x is not None)]
    for case in drawn:
        for label in {label for labelled in axis_names(op, case) for label in labelled}:
            users.setdefault(label, []).append(case)
    known = sorted(users, key=str) or [""]
    for number, region in zip(range(max(len(known), len(SWEEPS)) if drawn else 0), itertools.cycle(SWEEPS)):
        label = known[number % len(known)]
        some = users.get(label, drawn)
        tries = (some[int(i)] for i in rng.integers(0, len(some), 4))
        most_axes = max(tries, key=lambda case: sum(map(np.ndim, case.inputs)))
        yield moved(op, enlarged(op, most_axes, label, MANY), region, rng)


def _where_defined(op: Op, case: Case, other: Case) -> Case:
    """The other case, or the case where the op refuses the other, or is not finite there in as large a part."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            before, after = op(*case.inputs, **case.static), op(*other.inputs, **other.static)
        except (NanogradError, ArithmeticError):
            return case
    return other if np.isfinite(after).sum() * before.size >= np.isfinite(before).sum() * after.size else case


REGIONS = ("scaled", "spread", "offset", "mixed", "saturated", "large products", "nearly constant", "ties", "near ties")
SWEEPS: dict[str, tuple[float, float]] = {  # the exponents of ten between which numbers lie
    "grid": (0, 0), "1e-8 to 1": (-8, 0), "1 to 300": (0, 2.5), "300 to 1e8": (2.5, 8), "equal": (0, 0),
}  # fmt: skip
MANY = 1500  # numbers in a case of many


def moved(op: Op, case: Case, region: str, choices: Choices) -> Case:
    """The case with its float inputs in one of REGIONS or SWEEPS, or as it was where the op is not defined or finite
    there.

    scaled: by 1e-3 to 1e3, each input by its own factor.  spread: by 3 to 6, to where many functions are about to
    saturate.  offset: by up to 1e6.  mixed: each number by its own factor.
    saturated: by 30 to 300.  large products: all rows have a large part in common, which is the same for all inputs,
    so that the product of two rows is up to 1e4 times as large as what tells them apart.  nearly constant: the numbers
    of a row differ in their last digits.  ties: few different numbers.  near ties: the same, but for 1e-6 to 1e-12 of
    them.

    grid: evenly over [-10, 10].  1e-8 to 1 and so on: of these sizes, evenly on a logarithmic scale, and of both signs.
    equal: all numbers of an input are the same.
    """
    rng = np.random.default_rng(int(choices.integers(0, 2**32)))
    inputs = list(case.inputs)
    for i, name in differentiated(op, case):
        low, high = op.domain.get(op.inputs[0] if op.variadic else name, (-np.inf, np.inf))
        x = _in_region(inputs[i], region, rng)
        x = np.where(np.isfinite(inputs[i]), x, inputs[i])  # a mask stays
        least = 0 if region in SWEEPS else max(0, low / 1e3)  # sweeps hold no zeros
        inputs[i] = np.asarray(np.abs(x) + least if low > -high else x)
    return _where_defined(op, case, replace(case, inputs=tuple(inputs), region=region))


def _in_region(x: np.ndarray, region: str, rng: np.random.Generator) -> np.ndarray:
    if region in SWEEPS and region != "equal":
        at = rng.permutation((np.arange(x.size) + rng.uniform(0.2, 0.8, x.size)) / max(1, x.size)).reshape(x.shape)
        low, high = SWEEPS[region]
        return 20 * at - 10 if low == high else rng.choice([-1.0, 1.0], x.shape) * 10 ** (low + (high - low) * at)
    row, normal = x.shape[:-1] + (1,) * (x.ndim > 0), np.random.default_rng(x.shape[-1:]).standard_normal
    ways: dict[str, Callable[[], np.ndarray]] = {
        "scaled": lambda: x * 10 ** rng.uniform(-3, 3),
        "spread": lambda: x * rng.uniform(3, 6),
        "offset": lambda: x + rng.choice([-1, 1]) * 10 ** rng.uniform(0, 6),
        "mixed": lambda: x * 10 ** rng.uniform(-3, 3, x.shape),
        "saturated": lambda: x * 10 ** rng.uniform(1.5, 2.5),
        "large products": lambda: x + 10 ** rng.uniform(0, 2) * normal(x.shape[-1:]),  # the same for all inputs
        "nearly constant": lambda: rng.standard_normal(row) + x * 10 ** rng.uniform(-9, -3),
        "equal": lambda: np.full_like(x, rng.standard_normal()),
        "ties": lambda: np.rint(x),
        "near ties": lambda: np.rint(x) * (1 + 10 ** rng.uniform(-12, -6) * rng.standard_normal(x.shape)),
    }
    return ways[region]()


def axis_names(op: Op, case: Case) -> list[list[Any]]:
    """For each input the shape line's name of each axis, or its place from the right among the leading axes."""
    found = []
    for name, x in zip(op.inputs * len(case.inputs) if op.variadic else op.inputs, case.inputs):
        ndim = np.ndim(x) if x is not None else 0
        tokens = [token for token in op.shape_line.inputs[name] if token not in ("*", "...", "?")]
        if len(tokens) > ndim:
            tokens = [token for token in tokens if not token.endswith("?")]
        leading = range(len(tokens) - ndim, 0)
        found.append([*leading, *(token.removesuffix("?") for token in tokens)][:ndim])
    return found


def varied(op: Op, case: Case, choices: Choices) -> Case:
    """The case with layouts, wanted gradients and, where two inputs have the same shape, one given twice."""
    places = [i for i, _ in differentiated(op, case)]
    layouts = tuple(LAYOUTS[int(choices.integers(0, len(LAYOUTS)))] for _ in case.inputs)
    layouts = tuple(  # zero strides change the numbers, and those of a mask belong to those of other inputs
        "contiguous" if layout == "zero strides" and not _is_float(x) else layout
        for layout, x in zip(layouts, case.inputs)
    )
    needs = same = None
    if len(places) > 1:
        wanted = {places[int(choices.integers(0, len(places)))]}
        wanted |= {place for place in places if choices.random() < 0.3}
        needs = tuple(i in wanted for i in range(len(case.inputs)))
        pairs = [pair for pair in itertools.combinations(places, 2) if _may_be_one(op, case, *pair)]
        if pairs and choices.random() < 0.5:
            same = pairs[int(choices.integers(0, len(pairs)))]
            if not op.variadic and op.inputs[same[1]] in op.domain:
                same = same[::-1]  # what is given twice lies in the narrower domain
    return replace(case, layouts=layouts, needs=needs, same=same)


def _may_be_one(op: Op, case: Case, i: int, j: int) -> bool:
    """Can these two inputs be one Tensor: of one shape, and not from two domains?"""
    domains = set() if op.variadic else {op.domain[op.inputs[k]] for k in (i, j) if op.inputs[k] in op.domain}
    return np.shape(case.inputs[i]) == np.shape(case.inputs[j]) and len(domains) < 2


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"
