"""Typical mistakes in a backward rule, planted in one op at a time. A test of the op's gradients should notice each.

A rule is linear in its cotangent. So most mistakes can be made from outside the rule, for every op. To keep only the
first part of a sum, call the rule with a cotangent that is zero elsewhere. To write `=` instead of `+=`, call the rule
with one part of the cotangent after the other, and keep the last gradient that is not zero.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanograd_llm import ops
from nanograd_llm.autograd.op import Op
from nanograd_llm.autograd.tensor import Tensor, array_of
from nanograd_llm.backend.arrays import as_array, is_array, xp
from nanograd_llm.errors import GraphError
from nanograd_llm.gradcheck.cases.samples import Case, draw_cases
from nanograd_llm.gradcheck.check.function import grad
from nanograd_llm.gradcheck.check.promises import ERRORS
from nanograd_llm.settings import require_type

_CASES = 12  # of an op; a mistake must change a gradient in at least one of them
_DRAWN = 72  # cases drawn from a shape line; most are tiny, so the largest _CASES of them are used
_VISIBLE = 1e-11  # the smallest change that counts, relative to the gradient's largest entry; rounding is smaller
_PARTS = 7  # the largest number of parts that a cotangent is cut into, a prime; each part costs a call of the rule


@dataclass(frozen=True)
class Call:
    """One call of a rule. shown: an input that the mistake needs, even if the rule does not receive it."""

    rule: Callable[..., Any]
    dy: Any
    saved: Sequence[Any]
    shown: Any = None

    @functools.cached_property
    def gradients(self) -> list[Any]:
        """What the rule returns: arrays, or Tensors under `higher_order()`; None for a gradient that is not needed."""
        return self.on(self.dy, self.saved)

    def on(self, dy: Any, saved: Sequence[Any]) -> list[Any]:
        gradients = self.rule(dy, *saved)
        return [as_array(g, dy) for g in (gradients if isinstance(gradients, tuple) else (gradients,))]

    def where(self, mask: np.ndarray) -> list[Any]:
        """What the rule returns for a cotangent that is zero where the mask is false."""
        return self.on(_masked(self.dy, mask), self.saved)


Mistake = Callable[[Call], list[Any]]
_locks: dict[int, Any] = {}  # by the id of an op, held while a mistake is planted in it


@contextlib.contextmanager
def only_one(op: Any) -> Iterator[None]:
    """Raise GraphError where another thread has a mistake planted in this op. Blocks of one thread may be nested."""
    lock = _locks.setdefault(id(op), threading.RLock())
    if not lock.acquire(blocking=False):
        raise GraphError(f"{op.name} has a mistake planted in it by another thread; wait until that block ends")
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, eq=False)
class Mutant:
    """One mistake in the rule of one op (or BackwardRule). sharp: only a check exact to rounding can notice it."""

    op: Any
    name: str
    description: str
    sharp: bool
    _mistake: Mistake = field(repr=False)
    _place: int | None  # of the gradient with the mistake, among those of the rule; None where all have it
    _shown: str = ""  # name of the input that the mistake needs

    def gradients(self, call: Call) -> list[Any]:
        """What the rule returns in this call with the mistake."""
        with np.errstate(all="ignore"):
            wrong = self._mistake(call)
        if self._place is None:
            return wrong
        return [wrong[i] if i == self._place else g for i, g in enumerate(call.gradients)]

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Inside this block the op's rule makes the mistake, in every thread. The rule is restored in any case."""
        with only_one(op := self.op):
            rule, plan = op.rule, op._plan
            if rule is None:
                raise GraphError(f"op {op.name} has no rule any more, as when {self.name!r} was made; write one")

            @functools.wraps(rule)
            def mistaken(dy: Any, *saved: Any) -> tuple[Any, ...]:
                call = Call(rule, dy, saved[: len(plan)], *saved[len(plan) :])
                if self._shown and len(saved) == len(plan):
                    return tuple(call.gradients)  # recorded before the mistake was planted
                return tuple(self.gradients(call))

            op.rule = mistaken
            op._plan = [*plan, op._resolve(self._shown)] if self._shown else plan
            try:
                yield
            finally:
                op.rule, op._plan = rule, plan


def scaled(op: Op, factor: Any, place: int | None = None) -> Mutant:
    """The gradient at this place, or every gradient of the op, times a factor."""

    def mistake(call: Call) -> list[Any]:
        return [g if g is None or place not in (None, i) else g * factor for i, g in enumerate(call.gradients)]

    return Mutant(op, "scaled", "is multiplied by a factor", True, mistake, None)


def mutants(op: Op) -> list[Mutant]:
    """The mistakes that can be planted in this op's rule, most of them once for each differentiable input.

    Tried on the cases that `gradcheck.cases` draws. A mistake is left out if it changes no gradient by more than
    rounding, makes one NaN, or has the same effect as an earlier mistake.

    Raises GraphError for an op without a rule, NanogradError for one whose inputs cannot be drawn.
    """
    return mutants_and_cases(op)[0]


def mutants_and_cases(op: Op) -> tuple[list[Mutant], list[Case]]:
    """`mutants`, and a few cases in which they show: in one of them each changes a gradient at least half as much as
    in any case that was tried."""
    require_type("op", op, Op, "an op")
    if op.rule is None:
        raise GraphError(f"op {op.name} has no rule to make a mistake in; write one under @{op.name}.backward")
    drawn = list(draw_cases(op, np.random.default_rng(0), _CASES if op.samples else _DRAWN))
    if not op.samples:
        drawn = sorted(drawn, key=lambda case: -case.size)[:_CASES]
    right = [gradients_of(op, case) for case in drawn]
    changes, by_case = [], {}
    for mutant in _conceivable(op):
        with mutant.planted():
            wrong = [gradients_of(op, case) for case in drawn]
        changes.append((mutant, change(right, wrong)))
        found_in = (change([r], [w]) for r, w in zip(right, wrong))
        by_case[mutant] = [0.0 if by is None else float(np.abs(by).max(initial=0)) for by in found_in]
    found = distinct(changes)
    chosen: list[int] = []
    for sizes in (by_case[mutant] for mutant in found):
        if not any(sizes[place] >= max(sizes) / 2 for place in chosen):
            chosen.append(int(np.argmax(sizes)))
    return found, [drawn[place] for place in chosen]


def distinct(changes: Sequence[tuple[Mutant, np.ndarray | None]]) -> list[Mutant]:
    """The mutants that change a gradient visibly, and not as an earlier one does; changes: see `change`."""
    known: list[Any] = [0.0]
    found = []
    for mutant, by in changes:
        if by is not None and all(np.abs(by - other).max(initial=0) > _VISIBLE for other in known):
            known.append(by)
            found.append(mutant)
    return found


def gradients_of(op: Op, case: Case) -> list[np.ndarray]:
    """The gradients of a call for a fixed random cotangent; an empty list if nothing is recorded or the rule raises."""
    call, arrays = case.on(op)
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    try:
        with np.errstate(all="ignore"):
            y = call(*leaves)
            if not y.requires_grad:
                return []
            return grad(y, leaves, np.asarray(np.random.default_rng(1).uniform(0.5, 1.5, y.shape)))
    except ERRORS:
        return []


def change(right: Sequence[Sequence[np.ndarray]], wrong: Sequence[Sequence[np.ndarray]]) -> np.ndarray | None:
    """How much a mistake changes each gradient, relative to its largest entry; None if it makes one NaN."""
    changes = [np.zeros(0)]
    for gradients, mistaken in zip(right, wrong):
        for g, w in zip(gradients, mistaken or gradients):  # a mistake that does not fit a case changes nothing in it
            finite = np.isfinite(g)
            if not np.isfinite(w[finite]).all():
                return None
            largest = np.abs(g[finite]).max(initial=0) or 1
            changes.append(np.subtract(w, g, where=finite, out=np.zeros(g.shape)).reshape(-1) / largest)
    return np.concatenate(changes)


def in_any_gradient() -> list[tuple[str, str, Mistake]]:
    """Mistakes that do not depend on the cotangent. Each has a title, a description, and the change itself."""
    return [
        ("scaled by 1 + 1e-9", "is 1 + 1e-9 times what it should be", _each(lambda g: g * (1 + 1e-9))),
        ("factor 2", "is twice what it should be", _each(lambda g: g * 2)),
        ("sign", "has the wrong sign", _each(lambda g: -g)),
        ("dropped", "is zero", _each(lambda g: g * 0)),
        ("transposed", "has its numbers in transposed order (shown by inputs of two axes)", _each(_transposed)),
        ("last lost", "is zero in the last slice", _each(_without_last)),
        ("shifted", "is shifted by one place", _each(_shifted)),
    ]


def from_any_cotangent() -> list[tuple[str, str, Mistake]]:
    """Mistakes in how a rule uses its cotangent, of any shape."""
    return [
        ("upstream ignored", "is that for a cotangent of ones", _of_ones),
        ("= for +=", "has the last of several contributions instead of their sum", _overwritten),
    ]


def from_cotangent_of_same_shape() -> list[tuple[str, str, Mistake]]:
    """Mistakes where a gradient has the shape of the cotangent."""
    return [
        ("cross terms dropped", "uses for each entry only the entry of ȳ at the same index", _own_terms),
        ("n-1", "has n-1 for n in a mean over the last axis", _cross_terms_over_n_minus_1),
    ]


def not_summed(name: str) -> tuple[str, str, Mistake]:
    """A missing sum over the axes along which an input was repeated. The call shows an array of its shape."""
    words = f"has the first slice instead of the sum where {name} was broadcast"
    return "no broadcast sum", words, _first_slice


def _conceivable(op: Op) -> Iterator[Mutant]:
    """Every mistake that is possible for the op's signature, even if it changes nothing."""
    line = op.shape_line
    for place, name in enumerate(op.differentiable):
        mistakes = in_any_gradient() + from_any_cotangent()
        if line.inputs[name] == line.output:
            mistakes += from_cotangent_of_same_shape()
        elif line.output == ["* - axis"] or line.output == line.inputs[name][: len(line.output)]:
            mistakes.append(("n-1", "has n-1 for n in a mean over what is reduced", _each_over_n_minus_1))
        for title, words, mistake in mistakes:
            where = None if op.variadic else place
            sharp = title.startswith("scaled")
            yield Mutant(op, f"{name}: {title}", f"the gradient of {name} {words}", sharp, mistake, where)
        if not op.variadic and line.output != ["?"]:
            title, words, mistake = not_summed(name)
            yield Mutant(op, f"{name}: {title}", f"the gradient of {name} {words}", False, mistake, place, name)
    for place, (kind, key) in enumerate(op._plan):
        if kind in ("y", "kept") or (kind == "input" and not op.variadic):
            name = op.inputs[key] if kind == "input" else key or "y"
            words = f"the terms of the rule that have {name} as a factor are dropped"
            yield Mutant(op, f"terms with {name} dropped", words, False, functools.partial(without_saved, place), None)
    if not op.variadic:
        for place, (a, b) in enumerate(zip(op.differentiable, op.differentiable[1:])):
            words = f"{a} gets the gradient of {b}, and {b} that of {a}"
            yield Mutant(op, f"{a} and {b} exchanged", words, False, functools.partial(exchanged, place), None)


# The changes below use ops and operators only: these take arrays, and the Tensors of `higher_order()`.


def _each(change: Callable[[Any], Any]) -> Mistake:
    return lambda call: [None if g is None else change(g) for g in call.gradients]


def _transposed(g: Any) -> Any:
    return ops.reshape(ops.transpose(g), shape=g.shape)


def _without_last(g: Any) -> Any:
    axis = next((axis for axis, n in enumerate(g.shape) if n > 1), None)
    return g if axis is None else _masked(g, np.indices(g.shape)[axis] < g.shape[axis] - 1)


def _shifted(g: Any) -> Any:
    axis = next((axis for axis in reversed(range(g.ndim)) if g.shape[axis] > 1), None)
    if axis is None:
        return g
    return ops.getitem(g, index=(slice(None),) * axis + (np.roll(np.arange(g.shape[axis]), 1),))


def _of_ones(call: Call) -> list[Any]:
    return call.on(_like(call.dy, np.ones_like), call.saved)


def _parts(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Masks that cut a cotangent into parts. Along any axis, two entries of one part are at least _PARTS apart."""
    lines = sum(((axis + 1) * index for axis, index in enumerate(np.indices(shape))), np.zeros(shape, dtype=int))
    return [lines % _PARTS == part for part in np.unique(lines % _PARTS)]


def _overwritten(call: Call) -> list[Any]:
    """Each part of the cotangent in turn overwrites the gradient's entries that depend on it."""
    written = [None if g is None else g * 0 for g in call.gradients]
    for part in _parts(call.dy.shape):
        pairs = zip(written, call.where(part))
        written = [None if g is None else ops.where(array_of(g) != 0, g, before) for before, g in pairs]
    return written


def _first_slice(call: Call) -> list[Any]:
    """For a cotangent that is zero outside the first slice of the axes along which the input was repeated."""
    shape = np.shape(array_of(call.shown))
    absent = call.dy.ndim - len(shape)
    kept = np.ones(call.dy.shape, dtype=bool)
    for axis, n in enumerate((1,) * absent + shape if absent >= 0 else ()):
        if n == 1:
            kept &= np.indices(call.dy.shape)[axis] == 0
    return call.where(kept)


def _own_terms(call: Call) -> list[Any]:
    """The part of each entry that comes from the cotangent's entry at the same index, for gradients of its shape."""
    own = list(call.gradients)
    for part in _parts(call.dy.shape):
        for i, g in enumerate(call.where(part)):
            if g is not None and g.shape == call.dy.shape:
                own[i] = ops.where(part, g, own[i])
    return own


def _cross_terms_over_n_minus_1(call: Call) -> list[Any]:
    n = call.dy.shape[-1] if call.dy.ndim else 1
    if n < 2:
        return call.gradients
    pairs = zip(call.gradients, _own_terms(call))
    return [None if g is None else own + (g - own) * (n / (n - 1)) for g, own in pairs]


def _each_over_n_minus_1(call: Call) -> list[Any]:
    sizes = [g.size // max(1, call.dy.size) if g is not None else 0 for g in call.gradients]
    return [g * (n / (n - 1)) if n > 1 else g for g, n in zip(call.gradients, sizes)]


def without_saved(place: int, call: Call) -> list[Any]:
    """The rule gets zeros instead of what was saved at this place, if that is a float array."""
    value = call.saved[place]
    if not is_array(array_of(value)) or array_of(value).dtype.kind != "f":
        return call.gradients
    return call.on(call.dy, [*call.saved[:place], _like(value, np.zeros_like), *call.saved[place + 1 :]])


def exchanged(place: int, call: Call) -> list[Any]:
    gradients = list(call.gradients)
    gradients[place], gradients[place + 1] = gradients[place + 1], gradients[place]
    return gradients


def _like(value: Any, make: Callable[[Any], Any]) -> Any:
    made = make(array_of(value))
    return Tensor(made) if isinstance(value, Tensor) else made


def _masked(g: Any, mask: np.ndarray) -> Any:
    """g where the mask is true, 0 elsewhere."""
    return as_array(g * xp(array_of(g)).asarray(mask, dtype=g.dtype), array_of(g))
