"""Inputs to check an op with: from the samples it declares, or else drawn to fit its shape line and domain."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanograd_llm.errors import NanogradError
from nanograd_llm.op import Op
from nanograd_llm.shapes import ShapeLine

_GAP = 0.04
_KEPT_APART = 64  # numbers in a draw, at most, that are kept apart: more would spread too far


@dataclass(frozen=True, eq=False)
class Case:
    """One call of an op: its inputs (float64 arrays, constants, None for one left out) and static arguments."""

    inputs: tuple[Any, ...]
    static: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many numbers its inputs hold."""
        return sum(np.size(x) for x in self.inputs)

    def astype(self, dtype: Any) -> Case:
        """The same case with its float inputs in another dtype."""
        return Case(tuple(x.astype(dtype) if _is_float(x) else x for x in self.inputs), self.static)

    def __str__(self) -> str:
        inputs = [str(np.shape(x)) if x is not None else "None" for x in self.inputs]
        return f"({', '.join([*inputs, *(f'{name}={value!r}' for name, value in self.static.items())])})"


class Draw:
    """What an op's `samples` draws its numbers with: `draw(2, 3)` gives a float64 array, roughly standard normal.

    Up to 64 numbers at a time lie at least 0.01 away from 0, from ±1, from each other and from those of the two draws
    before, so that no comparison, sign or clip is at its kink.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._lane = 0

    def __call__(self, *shape: int) -> np.ndarray:
        values = np.asarray(self._rng.standard_normal(shape))
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


def cases(op: Op, rng: np.random.Generator, count: int) -> Iterator[Case]:
    """`count` cases for an op, or one for each of its samples where there are more.

    Without samples, shapes come from the shape line: every fourth case has an axis of size zero, inputs with a default
    are left out in every third. Zero-size cases that the op refuses are left out.

    Raises NanogradError for an op that needs samples and declares none.
    """
    draw = Draw(rng)
    if op.samples is not None:
        made = 0
        while made < count:
            for inputs, static in op.samples(draw):
                yield Case(tuple(inputs), dict(static))
                made += 1
            if not made:
                raise NanogradError(f"the samples of op {op.name} are empty; yield at least one (inputs, static)")
        return
    if op.constants or any(default is inspect.Parameter.empty for default in op.static_defaults.values()):
        raise NanogradError(
            f"op {op.name} has constants or static arguments without a default, so its inputs cannot be drawn from "
            "the shape line; declare samples=..."
        )
    made = 0
    for number in itertools.count():
        if made == count:
            return
        case = _from_shape_line(op, draw, rng, number)
        if case is not None:
            yield case
            made += 1


def _from_shape_line(op: Op, draw: Draw, rng: np.random.Generator, number: int) -> Case | None:
    shapes = op.shape_line.draw(rng)
    empty = number % 4 == 3
    if empty:
        shapes = _with_empty_axis(op.shape_line, shapes, rng)
    names = op.inputs[: op.required] if number % 3 == 2 and not op.variadic else op.inputs
    names = names * int(rng.integers(1, 4)) if op.variadic else names
    inputs = [draw.within(*op.domain[n], shapes[n]) if n in op.domain else draw(*shapes[n]) for n in names]
    case = Case((*inputs, *[None] * (len(op.inputs) - len(inputs))))
    if empty:
        try:
            with np.errstate(all="ignore"):
                op(*case.inputs)
        except NanogradError:
            return None
    return case


def _with_empty_axis(
    line: ShapeLine, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> dict[str, tuple[int, ...]]:
    """The shapes with one of their sizes, wherever the line has it again, made zero."""
    axes = [(name, axis) for name, shape in shapes.items() for axis in range(len(shape))]
    if not axes:
        return shapes
    chosen = _label(line, shapes, *axes[rng.integers(len(axes))])
    return {
        name: tuple(0 if _label(line, shapes, name, axis) == chosen else n for axis, n in enumerate(shape))
        for name, shape in shapes.items()
    }


def _label(line: ShapeLine, shapes: dict[str, tuple[int, ...]], name: str, axis: int) -> Any:
    """What the line calls this axis of this input: its name, or its place from the right among the leading axes."""
    tokens = [token for token in line.inputs[name] if token not in ("*", "...")]
    absent = max(0, len(tokens) - len(shapes[name]))
    tokens = [token for token in tokens if not (absent and token.endswith("?"))]
    leading = len(shapes[name]) - len(tokens)
    return axis - leading if axis < leading else tokens[axis - leading].removesuffix("?")


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"
