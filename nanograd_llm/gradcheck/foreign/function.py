"""A function of any library, and its gradient, as functions of NumPy arrays.

How the gradient is given decides the class: `gradient(*inputs)`, `vjp(cotangent, *inputs)` or
`backward(cotangent, cache)` here, a layer's methods in `layers`, the library's own in `pytorch` and `jax_arrays`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nanograd_llm.autograd.checked import raised_at
from nanograd_llm.errors import DtypeError, GraphError, InPlaceError, NanogradError, ShapeError
from nanograd_llm.gradcheck.check.function import label, place_of
from nanograd_llm.gradcheck.check.trees import branches, leaves, rebuilt
from nanograd_llm.gradcheck.foreign.inputs import Inputs, described
from nanograd_llm.gradcheck.foreign.library import Library, first_line, is_wider

Arrays = Sequence[np.ndarray]


class Foreign:
    """A function whose gradient other code computes.

    rule: the function that computes the gradient; f itself if its library does.
    narrow: hand on results as float32, for a function that computes in float32 whatever comes.
    notes: for the report, in words.  doubts: notes that are shown only if the gradient of the input of this name, or
        for "" any gradient, is wrong.  may_be_unused: the names that `unused=` may hold.
    """

    form = ""  # under which name the rule was given
    shares = ""  # what to mend where the rule uses what a later call of f has stored; "" where that is only noted

    def __init__(
        self,
        f: Callable[..., Any],
        inputs: Sequence[Any],
        names: Sequence[str],
        library: Library,
        rule: Callable[..., Any],
    ):
        self.f, self.library, self.rule, self.label = f, library, rule, label(f)
        self.who = label(rule) if self.form == "" or label(rule) != "<lambda>" else f"the lambda given as {self.form}="
        self.rules = {self.who: rule}  # what may be at fault where a gradient is wrong, by name
        self.inputs = Inputs(inputs, names, library)
        self.names, self.values = self.inputs.names, self.inputs.values
        self.may_be_unused = self.inputs.all_names
        self.narrow = False
        self.notes: dict[str, None] = {}
        self.doubts: dict[str, str] = {}
        self._narrowest_gradient: np.dtype = np.dtype(np.longdouble)
        self.between: Callable[[], None] = _nothing  # is called after f and before the rule
        self._is_wide = True  # are longdouble inputs computed with throughout?

    def settle(self) -> None:
        """Find out whether f runs on float64 arrays, or only on the float32 arrays that it was given.

        Raises GraphError where there is nothing to check.
        """
        if not self.values:
            came = ", ".join(described(x) for x in self.inputs.constants) or "none"
            raise GraphError(f"{self.label} has no input to check; it got {came}; give it float arrays or floats")
        try:
            self.run([a.astype(np.float64) for a in self.values])
        except InPlaceError:
            raise
        except NanogradError:
            if any(a.dtype != np.float32 for a in self.values):
                raise
            self.library.only = np.dtype(np.float32)
            self.run(self.values)
            self.notes[f"{self.label} runs on float32 only, whose rounding hides small mistakes"] = None
        else:
            for dtype in sorted({str(a.dtype) for a in self.values if a.dtype != np.float64}):
                self.notes[f"{dtype} inputs were checked as float64 copies"] = None
        self._is_wide = self._computes_in(np.longdouble)

    def _computes_in(self, dtype: type[np.floating]) -> bool:
        """Do the function and its gradient run on inputs of this dtype, and give results of it?"""
        arrays = [a.astype(dtype) for a in self.values]
        try:
            with np.errstate(all="ignore"):
                y = self.run(arrays)
                self.pull(y, arrays)
        except NanogradError:
            return False
        return min(y.dtype.itemsize, self._narrowest_gradient.itemsize) >= np.dtype(dtype).itemsize

    def is_narrow(self) -> bool:
        """Does f or its gradient compute in float32 for float64 inputs? It is noted."""
        if self.library.only is not None or self._narrowest_gradient.itemsize < np.dtype(np.float64).itemsize:
            return False  # a note says so already
        kind = np.longdouble if self._is_wide else np.float64  # in which float64's own rounding is not in the way
        arrays, rng = [a.astype(kind) for a in self.values], np.random.default_rng(0)
        dy = rng.standard_normal(self.run(arrays).shape)

        def gradient(both: Arrays) -> np.ndarray:
            return np.concatenate([g.reshape(-1) for g in self.pull(both[0], both[1:])])

        with contextlib.suppress(NanogradError):  # it may not be defined where it is moved to
            for who, f, at in ((self.label, self.run, arrays), (self.who, gradient, [dy, *arrays])):
                if _is_rounded(f, at, rng) or any(_is_grainy(f, at, rng) for _ in range(3)):
                    self.notes[f"{who} computes in float32, whose rounding hides small mistakes"] = None
                    return True
        return False

    def problems(self, seed: int) -> Iterator[str]:
        """What is wrong apart from the numbers of the gradient, in words; less important things are noted."""
        if not self._changes_when_interleaved(seed):
            return
        if self.shares:
            yield f"{self.who} gives another gradient when {self.label} was called again in between: {self.shares}"
        else:  # a layer with a cache is like that, and right where it is used so
            self.notes[
                f"{self.who} uses what the last call of {self.label} stored: it is right only directly after that call"
            ] = None

    def _changes_when_interleaved(self, seed: int) -> bool:
        """Does the rule give something else where f was called with other inputs in between?"""
        arrays = [a.astype(np.float64) for a in self.values]
        dy = np.random.default_rng(seed).standard_normal(self.run(arrays).shape)

        def other() -> None:
            self.between = _nothing
            with contextlib.suppress(NanogradError):  # it may not be defined there
                self.run([a * (1 - 2.0**-10) for a in arrays])

        def gradients(between: Callable[[], None]) -> list[np.ndarray]:
            self.run(arrays)
            self.between = between
            return self.pull(dy, arrays)

        first, *later = (gradients(between) for between in (_nothing, _nothing, other))
        same = [all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, found)) for found in later]
        return same == [True, False]  # not one that draws random numbers

    def unchecked(self) -> Iterator[str]:
        """What was not checked although a gradient of it was given, in words."""
        for name in self.inputs.integers:
            yield f"{name} is integer, so its gradient was not checked: give floats"

    def call(self, *arguments: Any) -> Any:
        """The function's result, as it returns it."""
        return self.f(*arguments)

    def pull(self, dy: np.ndarray, arrays: Arrays) -> list[np.ndarray]:
        """The gradient of each value, for a cotangent of the result that `run` gives for these arrays.

        `between` is called where f has been called, and the rule has not.
        """
        raise NotImplementedError

    def run(self, arrays: Arrays) -> np.ndarray:
        """The result's numbers: an array, or all arrays of the result in one row."""
        kinds = "fc" if any(np.iscomplexobj(a) for a in arrays) else "f"
        with self.library.context():
            result = self.applied(self.call, arrays)
            parts = [part for part in map(self._as_numbers, leaves(result)) if part.dtype.kind in kinds]
        if not parts:
            raise DtypeError(
                f"{self.label} returned {described(result)}; a function to check returns a float array, a float, or a "
                "list, tuple or dict of them"
            )
        y = parts[0] if branches(result) is None else np.concatenate([part.reshape(-1) for part in parts])
        return y.astype(np.float32) if self.narrow and y.dtype.kind == "f" else y

    def applied(self, function: Callable[..., Any], arrays: Arrays, who: str = "") -> Any:
        """function(*inputs) with copies of these arrays in the inputs.

        Raises InPlaceError where it writes into an input; NanogradError with its name where it raises something.
        """
        natives = self.natives(arrays)
        before = [self.library.to_numpy(x).copy() for x in natives]
        result = self.guarded(lambda: function(*self.inputs.having(iter(natives))), arrays, who)
        for name, x, a in zip(self.names, natives, before):
            now = self.library.to_numpy(x)
            if not any(np.array_equal(now, a, equal_nan=nan) for nan in (False, True)):  # with NaN it takes longer
                advice = ", and update weights after the backward pass" if who else ""
                raise InPlaceError(
                    f"{who or self.label} writes into {name}, which belongs to its caller; write into a copy{advice}"
                    + (f"; it is written at {place}" if (place := place_of(self.rule if who else self.f)) else "")
                )
        return result

    def natives(self, arrays: Arrays) -> list[Any]:
        """Copies of these arrays as f takes them. Raises DtypeError for longdouble that would lose its digits."""
        if not self._is_wide and any(map(is_wider, arrays)):
            raise DtypeError(f"{self.label} or its gradient does not compute in longdouble throughout; use float64")
        return [self.library.as_given(a.copy(), like) for a, like in zip(arrays, self.inputs.originals)]

    def guarded(self, work: Callable[[], Any], arrays: Arrays, who: str = "") -> Any:
        """What `work` returns; an error in it becomes one that names the function and what it got."""
        try:
            return work()
        except NanogradError:
            raise
        except Exception as error:
            if any(np.iscomplexobj(a) for a in arrays):  # only a reason for differences
                raise NanogradError(f"{type(error).__name__}: {first_line(error)}") from error
            what = f"{who or self.label} raised {type(error).__name__}: {first_line(error)}"
            came = ", ".join(f"{name} {a.shape} {a.dtype}" for name, a in zip(self.names, arrays))
            where = raised_at(error, self.rule if who else self.f)
            raise NanogradError(f"{what} (it got {came})" + (f"; raised at {where}" if where else "")) from error

    def ruled(self, rule: Callable[..., Any], cotangent: Any, *arguments: Any) -> Any:
        """rule(cotangent, *arguments); a note where it writes into the cotangent."""
        floats = [x for _, x in leaves(cotangent) if x is not None]
        before = [self.library.to_numpy(x).copy() for x in floats]
        returned = rule(cotangent, *arguments)
        if not all(map(np.array_equal, map(self.library.to_numpy, floats), before)):
            self.notes[f"{self.who} writes into its cotangent: right only where nothing else uses that array"] = None
        return returned

    def cotangent(self, dy: np.ndarray, result: Any) -> Any:
        """The cotangent in the form of the result; None for parts of it that are no floats."""
        made: list[Any] = []
        place = 0
        for name_and_leaf in leaves(result):
            part = self._as_numbers(name_and_leaf)
            if part.dtype.kind == "f":
                piece = dy.reshape(-1)[place : place + part.size].reshape(part.shape)
                made.append(self.library.as_given(piece.astype(part.dtype), name_and_leaf[1]))
                place += part.size
            else:
                made.append(None)
        return rebuilt(result, iter(made))

    def gradients(self, returned: Any, arrays: Arrays, result: tuple[int, ...] | None = None) -> list[np.ndarray]:
        """What was returned as the gradients of the values, as arrays of their shapes.

        result: the shape of the result, where derivatives of it were returned: they have the shape result + input.
        """
        found = []
        for g, x, name in zip(self.chosen(returned), arrays, self.names):
            shape = x.shape if result is None else result + x.shape
            array = np.zeros(shape, x.dtype) if g is None else self.library.to_numpy(g)
            if g is None:
                constant = f"if {name} is a constant, pass unused={[name]}"
                self.doubts[f"{self.who} {self.gave(name)} None for {name}: {constant}"] = name
            if array.dtype.kind not in "fiu":
                raise NanogradError(f"{self.who} returned {described(g)} for {name}; a gradient is a float array")
            if array.shape != shape and array.shape == x.shape == result:
                self.doubts[
                    f"{self.who} returns one number for each entry of {name}: taken as the derivative of each entry of "
                    "the result by the entry at its own place; where the result mixes entries, write vjp(dy, *inputs)"
                ] = name
            elif array.shape != shape:
                hint = "; sum over the axes along which it was repeated" if array.size > x.size else ""
                expected = f"{shape}{hint}"
                if result is not None and result:
                    same = f"{x.shape}, the derivative of each entry by itself, or " if result == x.shape else ""
                    expected = f"{same}{shape}, the Jacobian"
                    expected += "; if it takes a cotangent, give it as vjp=" if array.shape == x.shape else ""
                raise ShapeError(
                    f"{self.who} {self.gave(name)} an array {array.shape} for {name} {x.shape}; expected {expected}"
                )
            is_narrow = array.dtype.kind == "f" and array.itemsize < x.itemsize  # which the check sees by its dtype
            if is_narrow and array.itemsize < self._narrowest_gradient.itemsize:
                self._narrowest_gradient = array.dtype
            found.append(array if is_narrow else array.astype(x.dtype))
        return found

    def gave(self, name: str) -> str:
        """How the rule gives the gradient of this value."""
        return "returned"

    def chosen(self, returned: Any) -> list[Any]:
        """What was returned for each value."""
        return self.inputs.gradients(returned, self.who)

    def _as_numbers(self, name_and_leaf: tuple[str, Any]) -> np.ndarray:
        """A leaf of the result as an array; one of objects where it is none."""
        _, leaf = name_and_leaf
        return np.empty(0, object) if leaf is None or isinstance(leaf, str) else self.library.to_numpy(leaf)


def _nothing() -> None:
    pass


def _is_rounded(f: Callable[[Arrays], np.ndarray], arrays: Arrays, rng: np.random.Generator) -> bool:
    """Is every number that f returns one of float32, here and nearer to zero, and do some need the last of its digits?

    Numbers of `round` need fewer.
    """
    points = [[part * a * rng.uniform(0.9, 1.1, a.shape) for a in arrays] for part in 4.0 ** -np.arange(6)]
    found = [np.empty(0)]
    with np.errstate(all="ignore"):
        for point in points:
            with contextlib.suppress(NanogradError):  # it may not be defined there
                found.append(f(point).reshape(-1))
        y = np.concatenate(found).astype(np.float64)  # in which a longdouble may be infinite
        y = y[np.isfinite(y)]
        return bool((y.astype(np.float32) == y).all() and (np.frexp(y)[0] * 2.0**22 % 1 != 0).any())


def _is_grainy(f: Callable[[Arrays], np.ndarray], arrays: Arrays, rng: np.random.Generator) -> bool:
    """Does f move by jumps where its inputs move by less than the last digit of float32?

    It is moved a little beside them, where no kink is.
    """
    arrays = [a * (1 + 2.0**-10 * rng.uniform(0.5, 1.5, a.shape)) for a in arrays]
    u = [a * rng.choice([-1.0, 1.0], a.shape) * rng.uniform(0.5, 1.5, a.shape) for a in arrays]

    def slope(step: float) -> np.ndarray:
        ahead, behind = (f([a + t * d for a, d in zip(arrays, u)]) for t in (step, -step))
        return (ahead - behind) / (2 * step)

    with np.errstate(all="ignore"):
        coarse, fine = slope(2.0**-24), slope(2.0**-28)
    known = np.isfinite(coarse) & np.isfinite(fine)
    coarse, fine = coarse[known], fine[known]
    moves = (coarse != 0) | (fine != 0)
    rounding = 2.0**-18 * np.abs(f(arrays))[known]
    jumps = np.abs(coarse - fine) > 0.1 * np.maximum(np.abs(coarse), np.abs(fine)) + rounding
    return bool(moves.any() and jumps.sum() > moves.sum() / 2)


class WithGradient(Foreign):
    """The rule is `gradient(*inputs)`: of a number its gradient, of an array its Jacobian, or for a function of each
    entry by itself the derivatives of the entries."""

    form = "gradient"

    def pull(self, dy: np.ndarray, arrays: Arrays) -> list[np.ndarray]:
        self.between()
        with self.library.context():
            returned = self.applied(self.rule, arrays, who=self.who)
            derivatives = self.gradients(returned, arrays, dy.shape)
        return [
            (dy * d if d.shape == a.shape == dy.shape else np.tensordot(dy, d, dy.ndim)).astype(d.dtype)
            for d, a in zip(derivatives, arrays)
        ]


class _AfterForward(Foreign):
    """The rule is called directly after f, which may have stored something for it."""

    def called(self, arrays: Arrays) -> tuple[Any, Callable[..., Any]]:
        """The result for these arrays, and the rule that belongs to this call."""
        return self.applied(self.call, arrays), self.rule

    def pull(self, dy: np.ndarray, arrays: Arrays) -> list[np.ndarray]:
        with self.library.context():
            result, rule = self.called(arrays)
            cotangent = self.cotangent(dy, result)
            self.between()
            returned = self.applied(functools.partial(self.ruled, rule, cotangent), arrays, who=self.who)
            return self.gradients(returned, arrays)


class WithVjp(_AfterForward):
    """The rule is `vjp(cotangent, *inputs)`."""

    form = "vjp"


class WithCache(_AfterForward):
    """f returns (result, cache), and the rule is `backward(cotangent, cache)`."""

    form = "backward"
    shares = "the later call writes into the cache of the first, or into what both share; store new arrays in each call"

    def call(self, *arguments: Any) -> Any:
        return self._with_cache(*arguments)[0]

    def _with_cache(self, *arguments: Any) -> Any:
        returned = self.f(*arguments)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise NanogradError(
                f"{self.label} returned {described(returned)}; with backward= it returns a pair (result, cache)"
            )
        return returned

    def called(self, arrays: Arrays) -> tuple[Any, Callable[..., Any]]:
        result, cache = self.applied(self._with_cache, arrays)
        return result, lambda dy, *_: self.rule(dy, cache)
