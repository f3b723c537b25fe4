"""The shape line: one line of an op's docstring that gives the shapes of its inputs and its output. Tests check it.

    x (..., C), w (C), b (C) -> y (..., C)

A name such as C is a size, the same wherever the name appears. The other tokens:

    *        any shape; all stars of a line broadcast together, and the output's star is the result
    ...      any leading sizes; they broadcast together as stars do
    n?       a size that may be absent (matmul: a vector counts as a matrix, and its added axis is removed again)
    * - axis the star without the axes of the static argument `axis` (with size one instead if `keepdims`)
    shape    the name of a static argument that is itself a shape; a -1 in it is inferred
    ?        alone: any shape, not checked; the docstring says how it depends on the static arguments
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanograd_llm.errors import ShapeError

_ITEM = re.compile(r"(\w+) \(([^()]*)\)")
_LINE = re.compile(r"\w+ \([^()]*\)(, \w+ \([^()]*\))* -> \w+ \([^()]*\)")


class ShapeLine:
    """The parsed shape line of an op: `inputs` maps a name to its tokens, `output` holds the result's tokens."""

    def __init__(self, text: str):
        self.text = text
        left, _, right = text.partition("->")
        self.inputs = {name: _tokens(body) for name, body in _ITEM.findall(left)}
        outputs = [_tokens(body) for _, body in _ITEM.findall(right)]
        if len(outputs) != 1:
            raise ShapeError(f"a shape line has one output after '->'; got {text!r}")
        self.output = outputs[0]
        if any(token in ("*", "...") for tokens in self.inputs.values() for token in tokens[1:]):
            raise ShapeError(f"'*' and '...' are leading axes and come first; got {text!r}")
        if any("?" in tokens and len(tokens) > 1 for tokens in (*self.inputs.values(), self.output)):
            raise ShapeError(f"'?' is a whole shape, and stands alone, as in y (?); got {text!r}")

    @staticmethod
    def find(doc: str | None) -> ShapeLine | None:
        """The shape line inside a docstring, or None."""
        found = _LINE.search(doc or "")
        return ShapeLine(found.group(0)) if found else None

    def unbound(self) -> set[str]:
        """Names in the output that are in no input: they must be static arguments."""
        output = {"axis" if token == "* - axis" else token for token in self.output if not token.isdigit()}
        bound = {token for tokens in self.inputs.values() for token in tokens}
        return output - bound - {"*", "...", "?"}

    def mismatch(
        self, inputs: Mapping[str, Sequence[tuple[int, ...]]], static: Mapping[str, Any], output: tuple[int, ...]
    ) -> str | None:
        """Why these shapes do not match the line; None if they do.

        inputs: the shapes of each name: one, or several for an op that takes any number of inputs.
        """
        bound: dict[str, int] = {}
        stars: list[tuple[int, ...]] = []
        problem = self.misfit(inputs, bound, stars)
        if problem:
            return problem
        star = np.broadcast_shapes(*stars)
        expected = self._expected(star, bound, static)
        if expected is None or output == expected:
            return None
        return f"the result has shape {output} where the line says {expected}"

    def misfit(
        self,
        inputs: Mapping[str, Sequence[tuple[int, ...]]],
        bound: dict[str, int] | None = None,
        stars: list[tuple[int, ...]] | None = None,
    ) -> str | None:
        """Why these input shapes do not match the line, or None; adds sizes to `bound`, leading axes to `stars`."""
        bound, stars = {} if bound is None else bound, [] if stars is None else stars
        first: dict[str, str] = {}  # the input that bound a size
        for name, tokens in self.inputs.items():
            for shape in inputs.get(name, ()):
                problem = _bind(tokens, shape, bound, stars, first)
                if problem:
                    return f"{name} {shape}: {problem}"
                first = {**dict.fromkeys(bound, name), **first}
        try:
            np.broadcast_shapes(*stars)
        except ValueError:
            return f"{stars} do not broadcast together"
        return None

    def _expected(
        self, star: tuple[int, ...], bound: dict[str, int], static: Mapping[str, Any]
    ) -> tuple[int, ...] | None:
        """The output shape that the line gives; None if it allows any."""
        if self.output == ["?"]:
            return None
        if self.output == ["* - axis"]:
            return _reduced(star, static["axis"], static.get("keepdims", False))
        shape: list[int] = []
        for token in self.output:
            if token in ("*", "..."):
                shape += star
            elif token in static:
                given = static[token] if isinstance(static[token], (tuple, list)) else (static[token],)
                known = math.prod(size for size in given if size != -1)
                shape += [math.prod(star) // known if size == -1 else size for size in given]
            elif token.endswith("?"):
                shape += [bound[token[:-1]]] if token[:-1] in bound else []
            else:
                shape.append(int(token) if token.isdigit() else bound[token])
        return tuple(shape)

    def broadcasts(self, name: str, shape: tuple[int, ...], whole: tuple[int, ...], beside: bool = False) -> bool:
        """Does the line let the op broadcast the input of this name from `shape` to `whole`, which NumPy could do?

        Broadcasting adds axes that something else has: a static argument that is a shape, or another input (`beside`:
        one of the same name). Both have leading axes `*` or `...`, or both end with the same names.
        """
        tokens = self.inputs[name]
        if tokens == ["?"]:
            return True
        named = len([*itertools.takewhile(lambda t: t not in ("*", "...") and t[-1] != "?", reversed(tokens))])
        others = [other for key, other in self.inputs.items() if key != name]
        last = tokens[len(tokens) - named :]
        pairs = zip(last, shape[len(shape) - named :], whole[len(whole) - named :])
        if any(n != m and token != "1" for token, n, m in pairs):
            return False
        if named == len(tokens):
            ends = [other[len(other) - named :] for other in others if len(other) > named or "1" in last]
            return any(len(end) == named and all(t in (o, "1") for t, o in zip(last, end)) for end in ends)
        return beside or any(t[:1] in (["*"], ["..."], ["?"]) for t in others) or bool(self.unbound() - {"axis"})

    def draw(self, rng: np.random.Generator) -> dict[str, tuple[int, ...]]:
        """Random input shapes that match the line: small sizes, with broadcasting where '*' or '...' allow it."""
        bound: dict[str, int] = {}
        whole = tuple(int(n) for n in rng.integers(1, 4, size=rng.integers(0, 4)))
        shapes = {}
        for name, tokens in self.inputs.items():
            shape: list[int] = []
            leading = 0
            for token in tokens:
                if token in ("*", "..."):
                    kept = whole if len(self.inputs) == 1 else whole[rng.integers(0, len(whole) + 1) :]
                    shape += [n if rng.random() < 0.8 else 1 for n in kept]
                    leading = len(kept)
                elif token.endswith("?") and leading == 0 and rng.random() < 0.3:
                    continue
                else:
                    size = int(token) if token.isdigit() else int(rng.integers(1, 5))
                    shape.append(bound.setdefault(token.removesuffix("?"), size))
            shapes[name] = tuple(shape)
        return shapes


def _tokens(body: str) -> list[str]:
    return [token.strip() for token in body.split(",") if token.strip()]


def _bind(
    tokens: list[str],
    shape: tuple[int, ...],
    bound: dict[str, int],
    stars: list[tuple[int, ...]],
    first: Mapping[str, str],
) -> str | None:
    """Match one input's shape from its last axis to its first; add sizes to `bound` and leading axes to `stars`.

    Returns why the shape does not match, or None.
    """
    if tokens == ["?"]:
        return None
    rest = list(shape)
    fixed = [token for token in tokens if token not in ("*", "...")]
    for token in reversed(fixed):
        required = sum(not other.endswith("?") for other in fixed[: fixed.index(token)])
        if token.endswith("?") and len(rest) <= required:
            continue
        if not rest:
            return f"expected ({', '.join(tokens)})"
        size, name = rest.pop(), token.removesuffix("?")
        if bound.setdefault(name, int(name) if name.isdigit() else size) != size:
            where = f"in {first[name]}" if name in first else "elsewhere"
            return f"{name} is {size} here and {bound[name]} {where}"
    if len(fixed) < len(tokens):
        stars.append(tuple(rest))
    elif rest:
        return f"expected ({', '.join(tokens)})"
    return None


def require_row_of(x: Any, **vectors: Any) -> None:
    """Raise ShapeError unless each vector has the shape of a row of x. NumPy would broadcast other shapes."""
    for name, vector in vectors.items():
        if getattr(vector, "shape", ()) != getattr(x, "shape", ())[-1:]:
            raise ShapeError(
                f"{name} has shape {np.shape(vector)}; expected {np.shape(x)[-1:]}, as a row of {np.shape(x)}"
            )


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """One axis, a tuple of axes, or None for all, as a tuple of numbers from 0 to ndim-1.

    Raises ShapeError for an axis that is out of range, named twice or not an integer: NumPy often accepts True as axis
    1, which is always a mistake.
    """
    axes = tuple(range(ndim)) if axis is None else axis if isinstance(axis, (tuple, list)) else (axis,)
    for a in axes:
        if isinstance(a, (bool, np.bool_)) or not isinstance(a, (int, np.integer)):
            raise ShapeError(f"axis must be an integer, a tuple of integers or None; got {axis!r}")
        if not -ndim <= a < ndim:
            raise ShapeError(f"axis {a} is out of range for {ndim} dimensions; use {-ndim} to {ndim - 1}")
    found = tuple(int(a) % ndim for a in axes)
    if len(set(found)) < len(found):
        raise ShapeError(f"axis {axis} names an axis twice")
    return found


def _reduced(shape: tuple[int, ...], axis: int | tuple[int, ...] | None, keepdims: bool) -> tuple[int, ...]:
    gone = set(axes_of(axis, len(shape)))
    return tuple(1 if i in gone else n for i, n in enumerate(shape) if keepdims or i not in gone)
